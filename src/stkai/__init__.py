"""A resilient pipeline under any httpx client: authentication, rate limiting and retry, each a transport."""

from typing import TYPE_CHECKING, Any

from ._auth import AuthProvider, ClientCredentialsAuthProvider, create_standalone_auth
from ._builder import StackBuilder, build_async_client, build_async_transport, build_client, build_transport
from ._client import AsyncHttpClient, HttpClient, StreamedResponse
from ._clock import Clock, SystemClock
from ._errors import (
    AuthenticationError,
    ClientSideRateLimitError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    MaxRetriesExceededError,
    RetryableError,
    ServerSideRateLimitError,
    StkaiError,
    TokenAcquisitionTimeoutError,
)
from ._events import Event, Listener, RateChanged, Rejected, RetryScheduled, TokenRenewed, Waited
from ._options import CallRecord, RequestOptions
from ._settings import STKAI
from .transports._adaptive import AimdLimiter
from .transports._auth import BearerAuth
from .transports._base import Context, Layer
from .transports._retry import RetryPolicy
from .transports._token_bucket import TokenBucket

if TYPE_CHECKING:
    from ._config import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings

_FROM_PYDANTIC = frozenset({"AuthConfig", "HttpConfig", "RateLimitConfig", "RetryConfig", "Settings"})


def __getattr__(name: str) -> Any:
    # pydantic takes longer to import than all the rest, and only those who name these classes need it.
    if name in _FROM_PYDANTIC:
        from . import _config

        return getattr(_config, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


__all__ = [
    "STKAI",
    "AimdLimiter",
    "AsyncHttpClient",
    "AuthConfig",
    "AuthProvider",
    "AuthenticationError",
    "BearerAuth",
    "CallRecord",
    "ClientCredentialsAuthProvider",
    "ClientSideRateLimitError",
    "Clock",
    "ConfigurationError",
    "Context",
    "DeadlineExceededError",
    "Event",
    "HttpClient",
    "HttpConfig",
    "InvalidArgumentError",
    "Layer",
    "Listener",
    "MaxRetriesExceededError",
    "RateChanged",
    "RateLimitConfig",
    "Rejected",
    "RequestOptions",
    "RetryConfig",
    "RetryPolicy",
    "RetryScheduled",
    "RetryableError",
    "ServerSideRateLimitError",
    "Settings",
    "StackBuilder",
    "StkaiError",
    "StreamedResponse",
    "SystemClock",
    "TokenAcquisitionTimeoutError",
    "TokenBucket",
    "TokenRenewed",
    "Waited",
    "build_async_client",
    "build_async_transport",
    "build_client",
    "build_transport",
    "create_standalone_auth",
]
