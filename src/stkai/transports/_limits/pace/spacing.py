"""Finds the least time between two requests that a server accepts, where it spaces requests out.

A server that was given a rate, such as nginx's `limit_req` without a burst, refuses whatever comes sooner. How much
sooner it did come, a refusal does not say, so pairs of requests halve the range in which the spacing lies.
"""

import math

INSTANT = 0.009
"""Seconds: a server that accepts two requests so close together is not worth a distinction."""

_SHORTEST = 0.005
"""Seconds, the least that is looked for: senders cannot keep to less."""

_CLOSE = 1.5
"""The longest time that may be refused and the shortest that was accepted, by that factor, end the search."""

_REFUSED = 2
"""Pairs of which only the first request was accepted that show a distance to be too short: others collide, too."""


class Spacing:
    """The range in which the spacing lies, and what is known of it.

    Args:
        known: seconds, if the quota is known; there is nothing to search for then. 0 if it is not.
    """

    def __init__(self, known: float = 0.0) -> None:
        self._is_known, self._found = known > 0, known
        self._least, self._most = known or _SHORTEST, known or math.inf
        self._refused = 0
        self._accepted_at = -math.inf

    def is_found(self, gap: float) -> bool:
        """Whether a sender whose requests are `gap` seconds apart has nothing to search for."""
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
        if INSTANT < seconds < self._most and not self._is_known:
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
        if self._found and not self._is_known:
            self._least = max(_SHORTEST, self._least / 2)

    def _conclude(self, gap: float) -> None:
        if self.is_found(gap):
            self._found = min(self._most, gap)
