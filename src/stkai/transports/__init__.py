"""The layers: transports to combine by hand, and the recipes that a `StackBuilder` takes."""

from typing import TYPE_CHECKING

from .._lazy import lazily as _lazily

if TYPE_CHECKING:
    from ._async_driver import adrive
    from ._auth.flow import AsyncAuthTransport, AuthTransport, auth
    from ._base import AsyncLayerTransport, LayerTransport
    from ._call import Attempt, Call, can_resend, copy_request
    from ._context import Context
    from ._driver import drive
    from ._layer import Layer
    from ._limits.flow import (
        AdaptiveTransport,
        AsyncAdaptiveTransport,
        AsyncLimiterTransport,
        AsyncTokenBucketTransport,
        LimiterTransport,
        TokenBucketTransport,
        adaptive,
        limiter,
        token_bucket,
    )
    from ._limits.limiter import Answer, RateChange, Turn
    from ._operations import Close, Drain, Flow, Load, Operation, Read, Run, Send, Sleep, Until
    from ._retry.flow import AsyncRetryTransport, RetryTransport, retry
    from ._stk_cli import StkCLITransport

__getattr__, __dir__ = _lazily(
    __name__,
    {
        "_auth.flow": ("AsyncAuthTransport", "AuthTransport", "auth"),
        "_base": ("AsyncLayerTransport", "LayerTransport"),
        "_context": ("Context",),
        "_layer": ("Layer",),
        "_call": ("Attempt", "Call", "can_resend", "copy_request"),
        "_async_driver": ("adrive",),
        "_driver": ("drive",),
        "_limits.flow": (
            "AdaptiveTransport",
            "AsyncAdaptiveTransport",
            "AsyncLimiterTransport",
            "AsyncTokenBucketTransport",
            "LimiterTransport",
            "TokenBucketTransport",
            "adaptive",
            "limiter",
            "token_bucket",
        ),
        "_limits.limiter": ("Answer", "RateChange", "Turn"),
        "_operations": (
            "Close",
            "Drain",
            "Flow",
            "Load",
            "Operation",
            "Read",
            "Run",
            "Send",
            "Sleep",
            "Until",
        ),
        "_retry.flow": ("AsyncRetryTransport", "RetryTransport", "retry"),
        "_stk_cli": ("StkCLITransport",),
    },
)

__all__ = [
    "AdaptiveTransport",
    "Answer",
    "AsyncAdaptiveTransport",
    "AsyncAuthTransport",
    "AsyncLayerTransport",
    "AsyncLimiterTransport",
    "AsyncRetryTransport",
    "AsyncTokenBucketTransport",
    "Attempt",
    "AuthTransport",
    "Call",
    "Close",
    "Context",
    "Drain",
    "Flow",
    "Layer",
    "LayerTransport",
    "LimiterTransport",
    "Load",
    "Operation",
    "RateChange",
    "Read",
    "RetryTransport",
    "Run",
    "Send",
    "Sleep",
    "StkCLITransport",
    "TokenBucketTransport",
    "Turn",
    "Until",
    "adaptive",
    "adrive",
    "auth",
    "can_resend",
    "copy_request",
    "drive",
    "limiter",
    "retry",
    "token_bucket",
]
