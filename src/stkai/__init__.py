"""A resilient pipeline under any httpx client: authentication, rate limiting and retry, each a transport."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._builder import StackBuilder, build_async_client, build_async_transport, build_client, build_transport
from ._client import AsyncHttpClient, HttpClient
from ._clock import Clock, SystemClock
from ._config.stkai import STKAI
from ._credentials.client_credentials import (
    AuthProvider,
    ClientCredentialsAuthProvider,
    create_standalone_auth,
)
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
from ._exchange import StreamedResponse
from ._log import Listener
from ._options import CallRecord, RequestOptions
from .transports._base import Context, Layer

if TYPE_CHECKING:
    from ._batch.errors import OutcomeUnknownError
    from ._batch.outcome import Outcome
    from ._batch.send import asend_all, send_all
    from ._config.models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
    from ._events import Event, RateChanged, Rejected, RetryScheduled, TokenRenewed, Waited
    from ._reference.clients import (
        AdaptiveRateLimitedHttpClient,
        EnvironmentAwareHttpClient,
        StandaloneHttpClient,
        StkCLIHttpClient,
        TokenBucketRateLimitedHttpClient,
    )
    from ._reference.retrying import Retrying
    from .transports._adaptive.transport import AimdLimiter
    from .transports._auth.transport import BearerAuth
    from .transports._limit.token_bucket import TokenBucket
    from .transports._retry.transport import RetryPolicy

_LAZY = {
    "_batch.errors": ("OutcomeUnknownError",),
    "_batch.outcome": ("Outcome",),
    "_batch.send": ("asend_all", "send_all"),
    "_config.models": ("AuthConfig", "HttpConfig", "RateLimitConfig", "RetryConfig", "Settings"),
    "_reference.clients": (
        "AdaptiveRateLimitedHttpClient",
        "EnvironmentAwareHttpClient",
        "StandaloneHttpClient",
        "StkCLIHttpClient",
        "TokenBucketRateLimitedHttpClient",
    ),
    "_events": ("Event", "RateChanged", "Rejected", "RetryScheduled", "TokenRenewed", "Waited"),
    "_reference.retrying": ("Retrying",),
    "transports._adaptive.transport": ("AimdLimiter",),
    "transports._auth.transport": ("BearerAuth",),
    "transports._retry.transport": ("RetryPolicy",),
    "transports._limit.token_bucket": ("TokenBucket",),
}
"""What is imported when it is first asked for, by module: pydantic alone takes longer than all the rest."""


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "STKAI",
    "AdaptiveRateLimitedHttpClient",
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
    "EnvironmentAwareHttpClient",
    "Event",
    "HttpClient",
    "HttpConfig",
    "InvalidArgumentError",
    "Layer",
    "Listener",
    "MaxRetriesExceededError",
    "Outcome",
    "OutcomeUnknownError",
    "RateChanged",
    "RateLimitConfig",
    "Rejected",
    "RequestOptions",
    "RetryConfig",
    "RetryPolicy",
    "RetryScheduled",
    "RetryableError",
    "Retrying",
    "ServerSideRateLimitError",
    "Settings",
    "StackBuilder",
    "StandaloneHttpClient",
    "StkCLIHttpClient",
    "StkaiError",
    "StreamedResponse",
    "SystemClock",
    "TokenAcquisitionTimeoutError",
    "TokenBucket",
    "TokenBucketRateLimitedHttpClient",
    "TokenRenewed",
    "Waited",
    "asend_all",
    "build_async_client",
    "build_async_transport",
    "build_client",
    "build_transport",
    "create_standalone_auth",
    "send_all",
]
