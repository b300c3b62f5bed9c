"""Three ways in which services count a quota of `max_requests` per `time_window` seconds: numbers in, numbers out.

They read no clock: `admit(now)` takes the time, which must not go back. A refused request uses nothing.
`max_requests` may be changed at any time.
"""

import math
from collections import deque
from typing import Protocol

from .._checks import SOME_SECONDS, at_least, check_number

_EPSILON = 1e-9  # of a permit: a client that waits exactly as long as the 429 says is admitted, whatever the rounding


class Quota(Protocol):
    """One shared quota."""

    max_requests: int
    time_window: float

    def admit(self, now: float) -> float:
        """Count a request that arrives at `now`: 0.0 if accepted, otherwise the seconds until one would be."""
        ...


class FixedWindow:
    """A counter per window; windows start at multiples of `time_window`."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        _check(max_requests, time_window)
        self.max_requests = max_requests
        self.time_window = time_window
        self._window = -math.inf
        self._used = 0

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


class SlidingWindow:
    """A log of the accepted requests: no `time_window`, wherever it starts, ever holds more than `max_requests`."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        _check(max_requests, time_window)
        self.max_requests = max_requests
        self.time_window = time_window
        self._expiries: deque[float] = deque()

    def admit(self, now: float) -> float:
        while self._expiries and self._expiries[0] <= now:
            self._expiries.popleft()
        if len(self._expiries) >= self.max_requests:
            return self._expiries[-self.max_requests] - now
        self._expiries.append(now + self.time_window)
        return 0.0


class Bucket:
    """A token bucket: `depth` requests at once, refilled at `max_requests / time_window` per second; starts full."""

    def __init__(self, max_requests: int, time_window: float, *, depth: float = 10.0) -> None:
        _check(max_requests, time_window)
        check_number("depth", depth, at_least(1))
        self.max_requests = max_requests
        self.time_window = time_window
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


def _check(max_requests: int, time_window: float) -> None:
    check_number("max_requests", max_requests, at_least(1))
    check_number("time_window", time_window, SOME_SECONDS)
