"""The two transports that send at the rate of an `AimdLimiter`, and let it learn from what comes back."""

from functools import partial

import httpx

from .._base import Call, Layer
from .._limit.transport import AsyncLimiterTransport, LimiterTransport
from .._retry.retry_after import retry_after
from .headers import read_rate_limit
from .limiter import AimdLimiter

_TOO_MANY_REQUESTS = 429


def _learn(
    layer: "AdaptiveTransport | AsyncAdaptiveTransport", response: httpx.Response, call: Call, sent: float
) -> None:
    """Tell the policy what the server said, and the caller's retry who keeps the wait."""
    policy, context = layer.policy, layer.context
    now, reading = context.clock.monotonic(), None
    call.paced = response.status_code == _TOO_MANY_REQUESTS
    if policy.listens(now, refused=call.paced):
        reading = read_rate_limit(response.headers, context.clock.utcnow(), policy.time_window)
    if call.paced:
        asked = retry_after(response.headers, context.clock.utcnow())
        change = policy.refused(now, sent, asked, context.random(), reading)
    else:
        change = policy.succeeded(now, sent, reading)
    if change is not None:
        from ..._events import RateChanged

        context.emit(RateChanged(old=change.old, new=change.new, reason=change.reason))


class AdaptiveTransport(LimiterTransport):
    """Waits for a permit of the adaptive limiter, sends, and lets it learn from the answer.

    Raises:
        TokenAcquisitionTimeoutError: the wait would exceed `max_wait_time` or the call's deadline; nothing was sent.
    """

    name = "adaptive"
    policy: AimdLimiter

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if request.method not in self.policy.methods:
            return self.forward(request, call)
        sent = self.admit(call)
        response = self.forward(request, call)
        _learn(self, response, call, sent)
        return response


class AsyncAdaptiveTransport(AsyncLimiterTransport):
    """Waits for a permit of the adaptive limiter, sends, and lets it learn from the answer.

    Raises:
        TokenAcquisitionTimeoutError: the wait would exceed `max_wait_time` or the call's deadline; nothing was sent.
    """

    name = "adaptive"
    policy: AimdLimiter

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if request.method not in self.policy.methods:
            return await self.forward(request, call)
        sent = await self.admit(call)
        response = await self.forward(request, call)
        _learn(self, response, call, sent)
        return response


def adaptive(policy: AimdLimiter) -> Layer:
    """The layer `adaptive`, for a `StackBuilder`."""
    return Layer(
        "adaptive",
        partial(AdaptiveTransport, policy=policy),
        partial(AsyncAdaptiveTransport, policy=policy),
        policy,
    )
