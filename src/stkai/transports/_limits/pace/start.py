"""The cold start: how fast a sender may send before its first refusal."""

import math
from typing import NamedTuple

from .law import Past, is_soft
from .pairs import TOGETHER
from .quota import KnownQuota

SHARE = 0.2
"""Share of the quota's rate at which it starts."""

_SOFT_SHARE = 0.4
"""The same in a short window, where a refusal costs a whole window, but the start is soon over."""

_AT_ONCE, _SOFT_AT_ONCE = 3.0, 1.0
"""Requests that may go out at once before the first answer; in a short window, they go one by one."""

_FREE = 0.25  # Share of one window's quota that successes may release ahead of the rate, one each.
_DOUBLING = 1 / 4  # Windows in which the rate doubles while requests are held back.
_SHORTEST_DOUBLING = 1.0  # Seconds, a few round trips: nothing is learned before an answer comes back.

_BLAMELESS, _FEW, _SOON = 2.0, 0.15, 0.5
"""A sender that was twice as fast as the rate was refused for its burst, not for its rate, if it had used less than
0.15 of a window's quota, or is asked to wait for less than half a window: one that is used up asks for more."""

_SEARCH_RATE, _SEARCH_DOUBLING = 5.0, 0.3
"""Requests per second at the start if the quota is unknown, and seconds in which that doubles. Successes release no
more: whoever starts first would take everything."""

_SEARCH_MOST = 1e6
"""Requests per second at which it stops doubling: a program may stand still for an hour, with requests waiting."""


class Found(NamedTuple):
    """What was found before the first refusal."""

    rate: float  # Requests per second.
    is_open: bool  # Whether the rate is still to be found, because no more than a burst was refused.
    accepted: float  # Requests so far.
    since: float  # When the first was sent.
    is_bursty: bool  # Whether two requests at one instant were accepted.


class ColdStart:
    """The rate doubles with time while requests wait, and with a known quota, each success releases a permit."""

    def __init__(self, quota: KnownQuota) -> None:
        self.over = False
        self._quota, self._window = quota.requests, quota.window
        self._free = 0.0 if quota.requests == math.inf else _FREE * quota.requests
        self._excused = False
        self._sent, self.is_bursty = -math.inf, False
        if quota.requests == math.inf:
            self._most, self.rate, self.burst = _SEARCH_MOST, _SEARCH_RATE, _AT_ONCE
            self._doubling = _SEARCH_DOUBLING
            return
        soft = is_soft(quota.window)
        self._most = quota.ceiling
        self.rate = (_SOFT_SHARE if soft else SHARE) * quota.ceiling  # Initial requests per second.
        self.burst = _SOFT_AT_ONCE if soft else max(1.0, min(_AT_ONCE, quota.requests))  # Permits at once.
        self._doubling = max(_SHORTEST_DOUBLING, _DOUBLING * quota.window)

    @property
    def releases(self) -> bool:
        return not self.over and self._free >= 1

    def released_by_success(self) -> float:
        if not self.releases:
            return 0.0
        self._free -= 1
        return 1.0

    def excuses(self, past: Past, rate: float, asked: float = 0.0) -> bool:
        """Whether the first refusal says nothing about the rate: a burst met a small bucket.

        It asks for `asked` seconds, or for nothing. It ends the bursts. The rate keeps doubling until the next refusal.
        """
        self._free = 0.0
        sent, is_known = past.successes, self._quota < math.inf
        is_small = sent < _FEW * self._quota or 0.0 < asked < _SOON * self._window
        excused = not self._excused and is_known and is_small and sent > _BLAMELESS * rate * past.seconds
        self._excused = True
        return excused

    def found(self, past: Past, rate: float, now: float) -> Found:
        """What was found until a refusal at `now`, and the rate with which to go on; a start is over."""
        is_open = False
        if past.cold:
            self.over = True
            goodput = min(rate, past.successes / max(1.0, past.seconds))
            is_open = self.excuses(past, rate) or self._quota == math.inf
            rate = goodput / 2 if is_open else max(rate / 2, goodput)
        return Found(rate, is_open, past.successes, now - past.seconds, self.is_bursty)

    def note(self, sent: float) -> None:
        """Note when accepted requests were sent: two at one instant show that the server is bursty."""
        self.is_bursty = self.is_bursty or abs(sent - self._sent) < TOGETHER
        self._sent = sent

    def doubled(self, rate: float, seconds: float) -> tuple[float, float]:
        """The rate after `seconds` of holding back, and the permits released meanwhile."""
        growing = min(seconds, self._doubling * math.log2(self._most / rate))
        later = min(self._most, rate * 2 ** (growing / self._doubling))
        return later, (later - rate) * self._doubling / math.log(2) + self._most * (seconds - growing)

    def time_for(self, permits: float, rate: float) -> float:
        """Seconds until this many more permits are released, while the rate keeps doubling."""
        doubling = self._doubling / math.log(2)
        while_growing = (self._most - rate) * doubling
        if permits <= while_growing:
            return doubling * math.log1p(permits / (doubling * rate))
        return self._doubling * math.log2(self._most / rate) + (permits - while_growing) / self._most
