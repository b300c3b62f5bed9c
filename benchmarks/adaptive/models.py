"""How servers count that never say how long to wait: numbers in, numbers out, like `stkai.testing._service`.

`admit(now)` returns 0.0 if a request that arrives at `now` is accepted, otherwise the seconds until one would be; a
server may keep that to itself.
"""

import math
import random

from stkai.testing._service import ServerQuota


class LeakyBucket(ServerQuota):
    """nginx's `limit_req` in its own arithmetic: an excess in thousandths, which only accepted requests raise.

    Args:
        max_requests: per `time_window`, which makes the rate at which the bucket leaks.
        time_window: seconds.
        burst: requests that may be ahead of the rate; 0 spaces all requests out.
        delays: whether those of the burst wait in the server until they are due, instead of going on at once.

    Attributes:
        delay: seconds for which the request that was accepted last waits in the server.
    """

    def __init__(
        self, max_requests: int, time_window: float, *, burst: int = 0, delays: bool = False
    ) -> None:
        super().__init__(max_requests, time_window)
        self.delay = 0.0
        self._burst, self._delays = burst * 1000, delays
        self._excess, self._at = 0, -math.inf

    def admit(self, now: float) -> float:
        milliseconds = math.floor(now * 1000)
        rate = round(self.max_requests / self.time_window * 1000)
        excess = 0
        if self._at > -math.inf:
            excess = max(0, self._excess - math.floor(rate * (milliseconds - self._at) / 1000) + 1000)
        if excess > self._burst:
            return (excess - self._burst) / rate
        self._excess, self._at = excess, milliseconds
        self.delay = excess / rate if self._delays else 0.0
        return 0.0


class RandomRefusals(ServerQuota):
    """No quota: a server that lacks capacity, which refuses a fraction of all requests, however few a client sends."""

    def __init__(self, max_requests: int, time_window: float, fraction: float, rng: random.Random) -> None:
        super().__init__(max_requests, time_window)
        self._fraction, self._rng = fraction, rng

    def admit(self, now: float) -> float:
        return self.time_window if self._rng.random() < self._fraction else 0.0


class CountingWindow(ServerQuota):
    """HAProxy's `http_req_rate`: the present period's count, and of the one before the part that is not over yet.

    It counts every request, also those that it refuses: who keeps asking stays refused.
    """

    def __init__(self, max_requests: int, time_window: float) -> None:
        super().__init__(max_requests, time_window)
        self._period = self._now = self._before = 0

    def admit(self, now: float) -> float:
        period = math.floor(now / self.time_window)
        if period > self._period:
            self._before = self._now if period == self._period + 1 else 0
            self._period, self._now = period, 0
        self._now += 1
        left = 1 - now / self.time_window + period
        if self._now + self._before * left <= self.max_requests:
            return 0.0
        return self.time_window * left
