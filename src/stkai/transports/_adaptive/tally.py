"""Counts recent requests that were not refused, in constant memory."""

import math

_SLOTS = 16
"""Slots of a tally. More would be finer than a count of a few dozen requests justifies."""


class Tally:
    """Requests of the last `span` seconds, dated by when they were sent.

    A request counts from the moment it is sent and is taken back if it is refused, so a slow answer does not make the
    count lag behind the rate.
    """

    __slots__ = ("_counts", "_newest", "_width", "span")

    def __init__(self, span: float) -> None:
        self.span = span
        self._width = span / _SLOTS
        self._newest = -math.inf
        # Newest slot first. The last one is only partly within the span.
        self._counts = [0.0] * (_SLOTS + 1)

    def add(self, sent: float, count: float = 1.0) -> None:
        """Count a request sent at `sent` (seconds of the clock), or take one back with -1."""
        slot = sent // self._width
        self._move_to(slot)
        age = int(self._newest - slot)
        if age <= _SLOTS:
            self._counts[age] += count

    def count(self, now: float) -> float:
        """Requests of the last `span` seconds."""
        self._move_to(now // self._width)
        outside = now / self._width - self._newest
        return max(0.0, sum(self._counts) - outside * self._counts[-1])

    def resized(self, span: float) -> "Tally":
        """The same requests, each dated by the middle of its slot, counted over another span."""
        other = Tally(span)
        if self._newest > -math.inf:
            for age in range(_SLOTS, -1, -1):
                other.add((self._newest - age + 0.5) * self._width, self._counts[age])
        return other

    def _move_to(self, slot: float) -> None:
        gone = slot - self._newest
        if gone > 0:
            gone = int(min(gone, _SLOTS + 1))
            self._counts = [0.0] * gone + self._counts[: _SLOTS + 1 - gone]
            self._newest = slot
