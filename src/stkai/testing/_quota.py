"""Three ways in which services count a quota of `max_requests` per `time_window` seconds, and the refusal of a request.

They read no clock: `admit(now)` takes the time, which must not go back. A refused request uses nothing.
`max_requests` may be changed at any time.
"""

import math
from collections import deque
from datetime import datetime
from email.utils import formatdate
from typing import Final, Literal

from .._checks import SOME_SECONDS, Numbers, check_number
from ._replies import Reply, error_reply

RetryAfter = Literal["true", "date"] | float | None

_AT_LEAST_ONE: Final = Numbers("at least 1", 1)

_EPSILON = 1e-9  # of a permit: a client that waits exactly as long as the 429 says is admitted, whatever the rounding


class ServerQuota:
    """One quota, shared by all clients of the server."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        check_number("max_requests", max_requests, _AT_LEAST_ONE)
        check_number("time_window", time_window, SOME_SECONDS)
        self.max_requests, self.time_window = max_requests, time_window

    def admit(self, now: float) -> float:
        """Count a request that arrives at `now`: 0.0 if accepted, otherwise the seconds until one would be."""
        raise NotImplementedError


class FixedWindow(ServerQuota):
    """A counter per window; windows start at multiples of `time_window`."""

    _window, _used = -math.inf, 0

    def admit(self, now: float) -> float:
        self._enter_window(now)
        if self._used >= self.max_requests:
            return self.reset_in(now)
        self._used += 1
        return 0.0

    def remaining(self, now: float) -> int:
        """How many more requests the window of `now` accepts."""
        self._enter_window(now)
        return max(0, self.max_requests - self._used)

    def reset_in(self, now: float) -> float:
        """Seconds until the next window starts."""
        return self.time_window - now % self.time_window

    def _enter_window(self, now: float) -> None:
        window = now // self.time_window
        if window != self._window:
            self._window, self._used = window, 0


class SlidingWindow(ServerQuota):
    """A log of the accepted requests: no `time_window`, wherever it starts, ever holds more than `max_requests`."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        super().__init__(max_requests, time_window)
        self._expiries: deque[float] = deque()

    def admit(self, now: float) -> float:
        while self._expiries and self._expiries[0] <= now:
            self._expiries.popleft()
        if len(self._expiries) >= self.max_requests:
            return self._expiries[-self.max_requests] - now
        self._expiries.append(now + self.time_window)
        return 0.0


class Bucket(ServerQuota):
    """A token bucket: `depth` requests at once, refilled at `max_requests / time_window` per second; starts full."""

    def __init__(self, max_requests: int, time_window: float, *, depth: float = 10.0) -> None:
        super().__init__(max_requests, time_window)
        check_number("depth", depth, _AT_LEAST_ONE)
        self.depth = depth
        self._level = depth
        self._updated = -math.inf

    def admit(self, now: float) -> float:
        rate = self.max_requests / self.time_window
        self._level = min(self.depth, self._level + (now - self._updated) * rate)
        self._updated = now
        if self._level >= 1 - _EPSILON:
            self._level -= 1
            return 0.0
        return (1 - self._level) / rate


def refusal(quota: ServerQuota | None, retry_after: RetryAfter, now: float, utcnow: datetime) -> Reply | None:
    """Count a request that arrives now: the 429 if it is one too many, otherwise None."""
    wait = 0.0 if quota is None else quota.admit(now)
    if not wait:
        return None
    value = f"{retry_after:g}" if isinstance(retry_after, int | float) else str(math.ceil(wait))
    if retry_after == "date":
        value = formatdate(math.ceil(utcnow.timestamp() + wait), usegmt=True)
    headers = () if retry_after is None else (("retry-after", value),)
    return error_reply(429, "too_many_requests", "the quota is used up; see Retry-After", headers)
