"""The layers: the transports, to be put together by hand, and the factories of recipes for a `StackBuilder`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request

if TYPE_CHECKING:
    from ._adaptive.transport import AdaptiveTransport, AsyncAdaptiveTransport, adaptive
    from ._auth.transport import AsyncAuthTransport, AuthTransport, auth
    from ._limit.token_bucket import AsyncTokenBucketTransport, TokenBucketTransport, token_bucket
    from ._retry.transport import AsyncRetryTransport, RetryTransport, retry
    from ._stk_cli import StkCLITransport

_LAZY: Final = {
    "_adaptive.transport": ("AdaptiveTransport", "AsyncAdaptiveTransport", "adaptive"),
    "_auth.transport": ("AsyncAuthTransport", "AuthTransport", "auth"),
    "_retry.transport": ("AsyncRetryTransport", "RetryTransport", "retry"),
    "_stk_cli": ("StkCLITransport",),
    "_limit.token_bucket": ("AsyncTokenBucketTransport", "TokenBucketTransport", "token_bucket"),
}
"""What is imported when it is first asked for, by module: few programs use all the layers."""


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
    "AdaptiveTransport",
    "AsyncAdaptiveTransport",
    "AsyncAuthTransport",
    "AsyncLayerTransport",
    "AsyncRetryTransport",
    "AsyncTokenBucketTransport",
    "AuthTransport",
    "Call",
    "Context",
    "Layer",
    "LayerTransport",
    "RetryTransport",
    "StkCLITransport",
    "TokenBucketTransport",
    "adaptive",
    "auth",
    "can_resend",
    "copy_request",
    "retry",
    "token_bucket",
]
