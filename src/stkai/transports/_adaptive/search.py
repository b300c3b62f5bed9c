"""Estimates an unknown quota: its window, from the waits that the server asks for."""

import math
from collections import deque

from .headers import Reading
from .pause import longest

_FIRST = 60.0
"""Seconds: the assumed window until something is known. Most quotas are per minute."""

_SHORTEST = 30.0
"""Seconds. A bucket asks for the time until one more request, which says nothing about a window ..."""

_COUNTABLE = 10.0
"""... nor does a server that is only busy. The time for this many of the sender's own requests, if that is shorter."""

_PACE = 7.0
"""Seconds: growth is as for a window of at least that length, and the same for all senders."""

_REMEMBERED = 8
"""Waits to remember; the longest counts. A wrong one is forgotten after this many others."""

_USUAL = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
"""Seconds: common windows. A reset lies within its window, so the shortest window that fits is chosen."""

_TOLERANCE = 1.6
"""Seconds by which a rounded reset may exceed its window."""


class QuotaSearch:
    """What is known about the quota so far.

    Attributes:
        window: the estimated window, in seconds.
        rate: the whole quota in requests per second; infinite until the server states it in headers.
        pace: the longest wait that the server asked for lately, in seconds, but at least `_PACE`.
    """

    def __init__(self) -> None:
        self.window = _FIRST
        self.rate = math.inf
        self.pace = _PACE
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._reset = 0.0

    def asked(self, seconds: float, rate: float) -> bool:
        """Note the wait that a refusal asks for at this rate, and return whether the window or the pace has changed."""
        if seconds > longest(0.0) or self.rate < math.inf:
            return False
        self._waits.append(seconds)
        before = self.window, self.pace
        self.window = max(min(_SHORTEST, _COUNTABLE / rate), *self._waits)
        self.pace = max(_PACE, *self._waits)
        return (self.window, self.pace) != before

    def completed(self, reading: Reading) -> Reading:
        """The reading with a window; if the server gave none, the shortest common one that holds its resets."""
        if reading.window < math.inf:
            return reading
        self._reset = max(self._reset, reading.reset)
        fitting = (window for window in _USUAL if self._reset <= window + _TOLERANCE)
        return reading._replace(window=next(fitting, reading.window))

    def told(self, reading: Reading) -> bool:
        """Take in a quota that the server has described; returns whether it has changed."""
        before = self.window, self.rate
        self.window, self.rate = reading.window, reading.limit / reading.window
        return (self.window, self.rate) != before
