"""The cold start: how fast a sender may send before its first refusal."""

import math
from typing import Final, NamedTuple

from .law import Past, is_soft
from .pairs import seconds_together
from .quota import KnownQuota

START_FRACTION: Final = 0.2
"""The initial rate, as a fraction of the quota's."""

# In a short window, a refusal costs a whole window, but the start is soon over: it is faster, without a burst.
_SHORT_WINDOW_FRACTION: Final = 0.4
_SHORT_WINDOW_BURST: Final = 1.0
_BURST: Final = 3.0  # Requests that may be sent at once before the first answer.

# Fraction of a window's quota that may be released early, one permit per success.
_EARLY_FRACTION: Final = 0.25
_DOUBLING_TIME: Final = 1 / 4  # Windows in which the rate doubles while requests are held back.
_MIN_DOUBLING_TIME: Final = 1.0  # Seconds, a few round trips: nothing is learned before an answer arrives.

# The first refusal is due to a burst, not to the rate, if requests were sent faster than this multiple of the rate, and
# either they used less than this fraction of a window's quota, or the server asks for a wait of less than this fraction
# of a window: one that is used up asks for more. If it has accepted nothing and asks for no longer, the burst was of
# another sender.
_EXCUSED_SPEED: Final = 2.0
_EXCUSED_USAGE: Final = 0.15
_EXCUSED_WAIT: Final = 0.5

# The start with an unknown quota. Successes release nothing early: the first program to start would take everything.
_SEARCH_RATE: Final = 5.0  # The initial requests per second.
_SEARCH_DOUBLING: Final = 0.3  # Seconds in which the rate doubles.
_MAX_SEARCH_RATE: Final = 1e6  # The process may be suspended for an hour while requests wait.


class Found(NamedTuple):
    """What was learned before a refusal that does not say how long to wait."""

    rate: float  # Requests per second.
    is_open: bool  # Whether the rate is still to be found: the quota is unknown, or only a burst was refused.
    accepted: float  # Requests that were sent recently and not refused.
    since: float  # When they began to be counted.
    is_bursty: bool  # Whether two simultaneous requests were accepted.


class ColdStart:
    """The rate doubles with time while requests wait; with a known quota, each success also releases a permit."""

    def __init__(self, quota: KnownQuota) -> None:
        self.over = False
        self._quota, self._window = quota.requests, quota.window
        # Permits that successes may still release.
        self.early = 0.0 if quota.requests == math.inf else _EARLY_FRACTION * quota.requests
        self._excused = False
        self._sent, self.is_bursty = -math.inf, False
        self._together = seconds_together(quota.ceiling)
        if quota.requests == math.inf:
            self._most, self.rate, self.burst = _MAX_SEARCH_RATE, _SEARCH_RATE, _BURST
            self._doubling = _SEARCH_DOUBLING
            return
        soft = is_soft(quota.window)
        self._most = quota.ceiling
        # Requests per second, and permits at once.
        self.rate = (_SHORT_WINDOW_FRACTION if soft else START_FRACTION) * quota.ceiling
        self.burst = _SHORT_WINDOW_BURST if soft else max(1.0, min(_BURST, quota.requests))
        self._doubling = max(_MIN_DOUBLING_TIME, _DOUBLING_TIME * quota.window)

    @property
    def releases(self) -> bool:
        return not self.over and self.early >= 1

    def released_by_success(self) -> float:
        if not self.releases:
            return 0.0
        self.early -= 1
        return 1.0

    def excuses(self, past: Past, rate: float, asked: float = 0.0) -> bool:
        """Whether the first refusal says nothing about the rate: a burst met a small bucket.

        It asks for a wait of `asked` seconds, or for none. It ends the bursts; if excused, the rate keeps doubling.
        """
        self.early = 0.0
        sent, is_known = past.successes, self._quota < math.inf
        is_short = asked < _EXCUSED_WAIT * self._window
        is_small = sent < _EXCUSED_USAGE * self._quota or (asked > 0 and is_short)
        is_burst = sent > _EXCUSED_SPEED * rate * past.seconds or (sent == 0 and is_short)
        excused = not self._excused and is_known and is_small and is_burst
        self._excused = True
        return excused

    def found(self, past: Past, rate: float, now: float) -> Found:
        """What was learned before the refusal at `now`, and the rate to continue at. Ends the cold start."""
        is_open = False
        if past.cold:
            self.over = True
            goodput = min(rate, past.successes / max(1.0, past.seconds))
            is_open = self.excuses(past, rate) or self._quota == math.inf
            rate = goodput / 2 if is_open else max(rate / 2, goodput)
        return Found(rate, is_open, past.successes, now - past.seconds, self.is_bursty)

    def note(self, sent: float) -> None:
        """Record when an accepted request was sent: two simultaneous ones show that the server accepts bursts."""
        self.is_bursty = self.is_bursty or abs(sent - self._sent) < self._together
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
