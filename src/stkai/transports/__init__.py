"""The layers: transports to combine by hand, and the recipes that a `StackBuilder` takes."""

from typing import TYPE_CHECKING

from .._families import alike as alike
from .._families import response_like as response_like
from .._headers import copy_request as copy_request
from .._lazy import lazily as _lazily

if TYPE_CHECKING:
    from ._async_driver import adrive as adrive
    from ._auth.flow import AsyncAuthTransport as AsyncAuthTransport
    from ._auth.flow import AuthTransport as AuthTransport
    from ._auth.flow import auth as auth
    from ._bodies import can_resend as can_resend
    from ._call import Attempt as Attempt
    from ._call import Call as Call
    from ._context import Context as Context
    from ._driver import drive as drive
    from ._layer_transport import AsyncLayerTransport as AsyncLayerTransport
    from ._layer_transport import LayerBase as LayerBase
    from ._layer_transport import LayerTransport as LayerTransport
    from ._limits.flow import AdaptiveTransport as AdaptiveTransport
    from ._limits.flow import AsyncAdaptiveTransport as AsyncAdaptiveTransport
    from ._limits.flow import AsyncLimiterTransport as AsyncLimiterTransport
    from ._limits.flow import AsyncTokenBucketTransport as AsyncTokenBucketTransport
    from ._limits.flow import LimiterTransport as LimiterTransport
    from ._limits.flow import TokenBucketTransport as TokenBucketTransport
    from ._limits.flow import adaptive as adaptive
    from ._limits.flow import limiter as limiter
    from ._limits.flow import token_bucket as token_bucket
    from ._limits.limiter import Answer as Answer
    from ._limits.limiter import RateChange as RateChange
    from ._limits.limiter import Turn as Turn
    from ._operations import Close as Close
    from ._operations import Drain as Drain
    from ._operations import Flow as Flow
    from ._operations import Load as Load
    from ._operations import Operation as Operation
    from ._operations import Read as Read
    from ._operations import Run as Run
    from ._operations import Send as Send
    from ._operations import Sleep as Sleep
    from ._operations import Until as Until
    from ._operations import play as play
    from ._recipe import Layer as Layer
    from ._retry.flow import AsyncRetryTransport as AsyncRetryTransport
    from ._retry.flow import RetryTransport as RetryTransport
    from ._retry.flow import retry as retry
    from ._stk_cli import StkCLITransport as StkCLITransport

    __all__: list[str]
else:  # Type checkers would take any name for one that exists.
    __getattr__, __dir__, __all__ = _lazily(
        __name__,
        {
            "_async_driver": ("adrive",),
            "_layer_transport": ("AsyncLayerTransport", "LayerBase", "LayerTransport"),
            "_bodies": ("can_resend",),
            "_call": ("Attempt", "Call"),
            "_context": ("Context",),
            "_driver": ("drive",),
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
                "play",
            ),
            "_recipe": ("Layer",),
            "_auth.flow": ("AsyncAuthTransport", "AuthTransport", "auth"),
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
            "_retry.flow": ("AsyncRetryTransport", "RetryTransport", "retry"),
            "_stk_cli": ("StkCLITransport",),
        },
    )
