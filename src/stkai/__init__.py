"""A resilient pipeline under any httpx client: authentication, rate limiting and retry, each a transport."""

from typing import TYPE_CHECKING

from ._builder import StackBuilder, build_async_client, build_async_transport, build_client, build_transport
from ._client import AsyncHttpClient, HttpClient
from ._clock import Clock, SystemClock
from ._config.stkai import STKAI
from ._errors import (
    AuthenticationError,
    ClientSideRateLimitError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    MaxRetriesExceededError,
    NotSent,
    RetryableError,
    ServerSideRateLimitError,
    StkaiError,
    TokenAcquisitionTimeoutError,
)
from ._exchange import StreamedResponse
from ._lazy import lazily as _lazily
from ._log import Listener, log_events
from .transports._context import Context
from .transports._layer import Layer
from .transports._options import CallRecord, RequestOptions

if TYPE_CHECKING:
    from ._batch.engine import Outcome
    from ._batch.errors import OutcomeUnknownError
    from ._batch.send_all import asend_all, send_all
    from ._config.models import AuthConfig, HttpConfig, RateLimitConfig, RetryConfig, Settings
    from ._credentials.client_credentials import ClientCredentialsAuthProvider, create_standalone_auth
    from ._events import (
        AttemptFinished,
        AttemptStarted,
        CallFinished,
        CallInfo,
        CallStarted,
        Event,
        QuotaDisagreement,
        RateChanged,
        Rejected,
        RetryScheduled,
        StoreLost,
        StoreRestored,
        TokenRenewed,
        Waited,
    )
    from ._reference.clients import (
        AdaptiveRateLimitedHttpClient,
        EnvironmentAwareHttpClient,
        StandaloneHttpClient,
        StkCLIHttpClient,
        TokenBucketRateLimitedHttpClient,
    )
    from ._reference.retrying import Retrying
    from .transports._auth.bearer import BearerAuth
    from .transports._auth.provider import AuthProvider, StaticToken
    from .transports._limits.aimd import AimdLimiter
    from .transports._limits.all_of import AllOf
    from .transports._limits.in_flight import InFlight
    from .transports._limits.limiter import Limiter
    from .transports._limits.per_key import PerHost, PerKey
    from .transports._limits.token_bucket import TokenBucket
    from .transports._retry.budget import RetryBudget
    from .transports._retry.policy import RetryPolicy

__getattr__, __dir__ = _lazily(
    __name__,
    {
        "_batch.engine": ("Outcome",),
        "_batch.errors": ("OutcomeUnknownError",),
        "_batch.send_all": ("asend_all", "send_all"),
        "_config.models": ("AuthConfig", "HttpConfig", "RateLimitConfig", "RetryConfig", "Settings"),
        "_credentials.client_credentials": ("ClientCredentialsAuthProvider", "create_standalone_auth"),
        "_events": (
            "AttemptFinished",
            "AttemptStarted",
            "CallFinished",
            "CallInfo",
            "CallStarted",
            "Event",
            "QuotaDisagreement",
            "RateChanged",
            "Rejected",
            "RetryScheduled",
            "StoreLost",
            "StoreRestored",
            "TokenRenewed",
            "Waited",
        ),
        "_reference.clients": (
            "AdaptiveRateLimitedHttpClient",
            "EnvironmentAwareHttpClient",
            "StandaloneHttpClient",
            "StkCLIHttpClient",
            "TokenBucketRateLimitedHttpClient",
        ),
        "_reference.retrying": ("Retrying",),
        "transports._auth.bearer": ("BearerAuth",),
        "transports._auth.provider": ("AuthProvider", "StaticToken"),
        "transports._limits.aimd": ("AimdLimiter",),
        "transports._limits.all_of": ("AllOf",),
        "transports._limits.in_flight": ("InFlight",),
        "transports._limits.limiter": ("Limiter",),
        "transports._limits.per_key": ("PerHost", "PerKey"),
        "transports._limits.token_bucket": ("TokenBucket",),
        "transports._retry.budget": ("RetryBudget",),
        "transports._retry.policy": ("RetryPolicy",),
    },
    submodules=("costs", "stores", "telemetry", "testing", "transports"),
)

__all__ = [
    "STKAI",
    "AdaptiveRateLimitedHttpClient",
    "AimdLimiter",
    "AllOf",
    "AsyncHttpClient",
    "AttemptFinished",
    "AttemptStarted",
    "AuthConfig",
    "AuthProvider",
    "AuthenticationError",
    "BearerAuth",
    "CallFinished",
    "CallInfo",
    "CallRecord",
    "CallStarted",
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
    "InFlight",
    "InvalidArgumentError",
    "Layer",
    "Limiter",
    "Listener",
    "MaxRetriesExceededError",
    "NotSent",
    "Outcome",
    "OutcomeUnknownError",
    "PerHost",
    "PerKey",
    "QuotaDisagreement",
    "RateChanged",
    "RateLimitConfig",
    "Rejected",
    "RequestOptions",
    "RetryBudget",
    "RetryConfig",
    "RetryPolicy",
    "RetryScheduled",
    "RetryableError",
    "Retrying",
    "ServerSideRateLimitError",
    "Settings",
    "StackBuilder",
    "StandaloneHttpClient",
    "StaticToken",
    "StkCLIHttpClient",
    "StkaiError",
    "StoreLost",
    "StoreRestored",
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
    "log_events",
    "send_all",
]
