"""Sends no faster than a fixed quota allows, first come first served, and tells callers how long they would wait.

The policy is `TokenBucket`: a bucket that holds `burst` permits and is refilled at `max_requests / time_window` per
second. Only the methods that count against the quota (POST) are held back.
"""

from collections.abc import Iterable
from functools import partial

import httpx

from .._base import Call, Layer
from .tickets import TicketQueue, require_positive
from .transport import AsyncLimiterTransport, LimiterTransport


class TokenBucket(TicketQueue):
    """A constant rate with a burst. Share the object to share the quota, between sync and async stacks as well.

    Args:
        max_requests: requests allowed in `time_window`.
        time_window: seconds.
        burst: requests that may go at once after a quiet time, at least 1; by default `max_requests`.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.
        methods: HTTP methods that need a permit.

    Raises:
        ConfigurationError: a number is not positive and finite.
    """

    def __init__(
        self,
        max_requests: float,
        time_window: float,
        *,
        burst: float | None = None,
        max_wait_time: float | None = 45.0,
        methods: Iterable[str] = frozenset({"POST"}),
    ) -> None:
        super().__init__(max_requests, time_window, max_wait_time, methods)
        self._burst = max(1.0, require_positive("burst", max_requests if burst is None else burst))

    def __repr__(self) -> str:
        return f"TokenBucket({self.max_requests:g}, {self.time_window:g}, burst={self._burst:g})"


class TokenBucketTransport(LimiterTransport):
    """Waits for a permit of the bucket before it sends.

    Raises:
        TokenAcquisitionTimeoutError: the wait would exceed `max_wait_time` or the call's deadline; nothing was sent.
    """

    name = "token_bucket"

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if request.method in self.policy.methods:
            self.admit(call)
        return self.forward(request, call)


class AsyncTokenBucketTransport(AsyncLimiterTransport):
    """Waits for a permit of the bucket before it sends.

    Raises:
        TokenAcquisitionTimeoutError: the wait would exceed `max_wait_time` or the call's deadline; nothing was sent.
    """

    name = "token_bucket"

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        if request.method in self.policy.methods:
            await self.admit(call)
        return await self.forward(request, call)


def token_bucket(policy: TokenBucket) -> Layer:
    """The layer `token_bucket`, for a `StackBuilder`."""
    return Layer(
        "token_bucket",
        partial(TokenBucketTransport, policy=policy),
        partial(AsyncTokenBucketTransport, policy=policy),
        policy,
    )
