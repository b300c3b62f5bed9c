"""Sends no faster than a fixed quota, first come first served, and tells callers how long they would wait.

The policy is `TokenBucket`: a bucket that holds `burst` permits and is refilled at `max_requests / time_window` per
second. Only the methods that count against the quota (POST) are held back.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from .._adaptive.limiter import AimdLimiter
from .sharing import SharingQueue, require_share
from .tickets import require_positive


class TokenBucket(SharingQueue):
    """A constant rate with a burst. Share the object to share the quota, also between sync and async stacks.

    Args:
        max_requests: requests allowed in `time_window`.
        time_window: seconds.
        max_cost: units of cost allowed in `time_window`, such as tokens; None counts requests only. The bucket of units
            starts full. A call that costs more than it holds goes when it is full, and is paid for afterwards.
        burst: requests that may go at once after a quiet time, at least 1; by default `max_requests`.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.
        methods: HTTP methods that need a permit.
        share: a name; processes that give the same name share the quota, and the burst, exactly.
        store: where a shared quota lives: None or "file" for this machine, a URL (`file:///directory`, `redis://`,
            `rediss://`, `unix://`), or a `stkai.stores.Store`.

    Raises:
        ConfigurationError: a number is not positive and finite, or the store cannot be used.
    """

    def __init__(
        self,
        max_requests: float,
        time_window: float,
        *,
        max_cost: float | None = None,
        burst: float | None = None,
        max_wait_time: float | None = None,
        methods: Iterable[str] = frozenset({"POST"}),
        share: str | None = None,
        store: Any = None,
    ) -> None:
        super().__init__(max_requests, time_window, max_wait_time, methods, max_cost=max_cost)
        self._burst = max(1.0, require_positive("burst", max_requests if burst is None else burst))
        require_share(share, store)
        if share is not None:
            alone = partial(AimdLimiter, max_requests, time_window, max_cost=max_cost, methods=self.methods)
            self._join_share(share, store, burst=self._burst, alone=alone)

    def __repr__(self) -> str:
        cost = "" if self.max_cost is None else f", max_cost={self.max_cost:g}"
        shared = "" if self.share is None else f", share={self.share!r}, store={self.store!r}"
        return (
            f"TokenBucket({self.max_requests:g}, {self.time_window:g}{cost}, burst={self._burst:g}{shared})"
        )
