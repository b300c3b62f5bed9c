"""What can be found out about a quota that nobody has told us: its window, from the waits that the server asks for."""

import math
from collections import deque

from .headers import Reading
from .pause import longest

_FIRST = 60.0
"""Seconds: the window until something is known. Most quotas are per minute."""

_SHORTEST = 30.0
"""Seconds. A bucket asks for the time until one more request, which says nothing of a window ..."""

_COUNTABLE = 30.0
"""... nor does a server that is only busy. This many requests of the sender's own are a window, if that is less."""

_REMEMBERED = 8
"""Waits that are remembered, of which the longest counts. One that was wrong is forgotten after so many others."""

_USUAL = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
"""Seconds: windows that services have. A reset lies within one; the shortest that it fits is taken."""

_TOLERANCE = 1.6
"""Seconds by which a reset may exceed its window, since it is rounded."""


class QuotaSearch:
    """What is known so far.

    Attributes:
        window: seconds, an estimate.
        rate: requests per second of the whole quota; infinite until the server has told it in headers.
    """

    def __init__(self) -> None:
        self.window = _FIRST
        self.rate = math.inf
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._reset = 0.0

    def asked(self, seconds: float, rate: float) -> bool:
        """Take in the wait that a refusal asks for at that rate; whether the window is another one now."""
        if seconds > longest(0.0) or self.rate < math.inf:
            return False
        self._waits.append(seconds)
        before, self.window = self.window, max(min(_SHORTEST, _COUNTABLE / rate), *self._waits)
        return self.window != before

    def completed(self, reading: Reading) -> Reading:
        """The reading with a window, where the server gave none: the shortest usual one that holds its resets."""
        if reading.window < math.inf:
            return reading
        self._reset = max(self._reset, reading.reset)
        fitting = (window for window in _USUAL if self._reset <= window + _TOLERANCE)
        return reading._replace(window=next(fitting, reading.window))

    def told(self, reading: Reading) -> bool:
        """Take in a quota that the server has described; whether it is another one now."""
        before = self.window, self.rate
        self.window, self.rate = reading.window, reading.limit / reading.window
        return (self.window, self.rate) != before
