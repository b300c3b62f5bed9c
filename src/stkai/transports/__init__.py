"""The layers: the transports, to be put together by hand, and the factories of recipes for a `StackBuilder`."""

from ._adaptive import AdaptiveTransport, AsyncAdaptiveTransport, adaptive
from ._auth import AsyncAuthTransport, AuthTransport, auth
from ._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request
from ._retry import AsyncRetryTransport, RetryTransport, retry
from ._stk_cli import StkCLITransport
from ._token_bucket import AsyncTokenBucketTransport, TokenBucketTransport, token_bucket

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
