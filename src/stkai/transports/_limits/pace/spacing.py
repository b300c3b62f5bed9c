"""Finds the least time between two requests that a server accepts, where it spaces requests out.

Such a server, for example nginx's `limit_req` without a burst, refuses whatever comes sooner. A refusal does not say
by how much, so pairs of requests narrow down the range in which the spacing lies.
"""

import math

INSTANT = 0.009
"""Seconds: a server that accepts two requests so close together counts as one that does not space them out."""

_SHORTEST = 0.005
"""Seconds, the least that is looked for: senders cannot keep to less."""

_CLOSE = 1.5
"""The search ends when the shortest time that was accepted is at most this many times the longest that was refused."""

_REFUSED = 2
"""Pairs of which only the first request was accepted before a distance counts as too short: in one, another program's
request may have come between."""


class Spacing:
    """The range in which the spacing lies, and what was found."""

    def __init__(self) -> None:
        self._found = 0.0
        self._least, self._most = _SHORTEST, math.inf
        self._refused = 0
        self._accepted_at = -math.inf

    def is_found(self, gap: float) -> bool:
        """Whether the range is narrow enough, for a sender whose requests are `gap` seconds apart."""
        return min(self._most, gap) <= _CLOSE * self._least

    def middle(self, gap: float) -> float:
        """Seconds between the next two requests of a search."""
        return math.sqrt(self._least * min(self._most, max(gap, 2 * self._least)))

    def seconds(self, gap: float) -> float:
        """The spacing as far as it is known."""
        return self._found or self.middle(gap)

    def accepted(self, sent: float, gap: float) -> None:
        """Note that a request sent at `sent` was accepted."""
        self.accepted_after(sent - self._accepted_at, gap)
        self._accepted_at = sent

    def accepted_after(self, seconds: float, gap: float) -> None:
        """Note that a request was accepted so many seconds after another one."""
        if INSTANT < seconds < self._most:
            # What was refused at a longer distance has collided with others.
            self._least = self._least if seconds > self._least else seconds / 2
            self._most, self._refused = seconds, 0
            self._conclude(gap)

    def refused_after(self, seconds: float, gap: float) -> None:
        """Note that a request was refused so many seconds after one that was accepted."""
        self._refused += 1
        if self._refused >= _REFUSED:
            self._least, self._refused = max(self._least, min(seconds, self._most)), 0
            self._conclude(gap)

    def doubt(self) -> None:
        """Search once more below what was found: it may be too long."""
        if self._found:
            self._least = max(_SHORTEST, self._least / 2)

    def _conclude(self, gap: float) -> None:
        if self.is_found(gap):
            self._found = min(self._most, gap)
