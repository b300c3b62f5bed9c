"""A resilient pipeline under any httpx client: authentication, rate limiting and retry, each a transport."""

from typing import TYPE_CHECKING

from ._clock import Clock as Clock
from ._clock import SystemClock as SystemClock
from ._config import STKAI as STKAI
from ._errors import AuthenticationError as AuthenticationError
from ._errors import ClientSideRateLimitError as ClientSideRateLimitError
from ._errors import ConfigurationError as ConfigurationError
from ._errors import DeadlineExceededError as DeadlineExceededError
from ._errors import InvalidArgumentError as InvalidArgumentError
from ._errors import MaxRetriesExceededError as MaxRetriesExceededError
from ._errors import NotSent as NotSent
from ._errors import OutcomeUnknownError as OutcomeUnknownError
from ._errors import RetryableError as RetryableError
from ._errors import ServerSideRateLimitError as ServerSideRateLimitError
from ._errors import StkaiError as StkaiError
from ._errors import TokenAcquisitionTimeoutError as TokenAcquisitionTimeoutError
from ._lazy import lazily as _lazily
from ._log import Listener as Listener
from ._log import log_events as log_events

if TYPE_CHECKING:
    from . import costs as costs
    from . import events as events
    from . import limiters as limiters
    from . import stores as stores
    from . import telemetry as telemetry
    from . import testing as testing
    from . import transports as transports
    from . import wires as wires
    from ._auth import ClientCredentialsAuthProvider as ClientCredentialsAuthProvider
    from ._auth import create_standalone_auth as create_standalone_auth
    from ._batch.concurrency import Outcome as Outcome
    from ._batch.send_all import asend_all as asend_all
    from ._batch.send_all import send_all as send_all
    from ._builder import StackBuilder as StackBuilder
    from ._builder import build_async_client as build_async_client
    from ._builder import build_async_transport as build_async_transport
    from ._builder import build_client as build_client
    from ._builder import build_transport as build_transport
    from ._client import AsyncHttpClient as AsyncHttpClient
    from ._client import HttpClient as HttpClient
    from ._config.models import AuthConfig as AuthConfig
    from ._config.models import HttpConfig as HttpConfig
    from ._config.models import RateLimitConfig as RateLimitConfig
    from ._config.models import RetryConfig as RetryConfig
    from ._config.models import Settings as Settings
    from ._exchange import StreamedResponse as StreamedResponse
    from ._http import EnvironmentAwareHttpClient as EnvironmentAwareHttpClient
    from ._http import StandaloneHttpClient as StandaloneHttpClient
    from ._http import StkCLIHttpClient as StkCLIHttpClient
    from ._rate_limit import AdaptiveRateLimitedHttpClient as AdaptiveRateLimitedHttpClient
    from ._rate_limit import TokenBucketRateLimitedHttpClient as TokenBucketRateLimitedHttpClient
    from ._retry import Retrying as Retrying
    from .events import *
    from .limiters import *
    from .transports._auth import AuthProvider as AuthProvider
    from .transports._auth import StaticToken as StaticToken
    from .transports._auth.bearer import BearerAuth as BearerAuth
    from .transports._context import Context as Context
    from .transports._options import CallRecord as CallRecord
    from .transports._options import RequestOptions as RequestOptions
    from .transports._options import options as options
    from .transports._options import record as record
    from .transports._recipe import Layer as Layer
    from .transports._retry.policy import RetryBudget as RetryBudget
    from .transports._retry.policy import RetryPolicy as RetryPolicy

    __all__: list[str]
    __version__: str
else:  # Type checkers would take any name for one that exists.
    # Imported on first use. All names of `events` and `limiters` can be imported from here as well.
    __getattr__, __dir__, __all__ = _lazily(
        __name__,
        {
            "_builder": (
                "StackBuilder",
                "build_async_client",
                "build_async_transport",
                "build_client",
                "build_transport",
            ),
            "_client": ("AsyncHttpClient", "HttpClient"),
            "_exchange": ("StreamedResponse",),
            "transports._context": ("Context",),
            "transports._recipe": ("Layer",),
            "transports._options": ("CallRecord", "RequestOptions", "options", "record"),
            "_batch.concurrency": ("Outcome",),
            "_batch.send_all": ("asend_all", "send_all"),
            "_config.models": ("AuthConfig", "HttpConfig", "RateLimitConfig", "RetryConfig", "Settings"),
            "_auth": ("ClientCredentialsAuthProvider", "create_standalone_auth"),
            "_http": ("EnvironmentAwareHttpClient", "StandaloneHttpClient", "StkCLIHttpClient"),
            "_rate_limit": ("AdaptiveRateLimitedHttpClient", "TokenBucketRateLimitedHttpClient"),
            "_retry": ("Retrying",),
            "limiters": ("AimdLimiter", "TokenBucket"),
            "transports._auth.bearer": ("BearerAuth",),
            "transports._auth": ("AuthProvider", "StaticToken"),
            "transports._retry.policy": ("RetryBudget", "RetryPolicy"),
        },
        submodules=("costs", "events", "limiters", "stores", "telemetry", "testing", "transports", "wires"),
        unlisted=("events", "limiters"),
    )
