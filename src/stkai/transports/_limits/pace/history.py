"""What a sender remembers of its recent past: how many requests were not refused, and how long it was held back."""

import math

from .law import Past
from .quota import KnownQuota

_SLOTS = 16
"""Slots of a tally. More would be finer than a count of a few dozen requests justifies."""


class Tally:
    """Counts requests of the last `span` seconds in constant memory, dated by when they were sent.

    A request counts from the moment it is sent and is taken back if it is refused, so a slow answer does not make the
    count lag behind the rate.

    Attributes:
        span: seconds.
        began: when counting began: with the first request, if not said otherwise.
    """

    __slots__ = ("_counts", "_end", "_newest", "_start", "_width", "began", "span")

    def __init__(self, span: float, began: float = math.inf) -> None:
        self.span, self.began = span, began
        self._width = span / _SLOTS
        self._newest = self._start = self._end = -math.inf
        # Newest slot first. The last one is only partly within the span.
        self._counts = [0.0] * (_SLOTS + 1)

    def add(self, sent: float, count: float = 1.0) -> None:
        """Count a request sent at `sent` (seconds of the clock), or take one back with -1."""
        if self._start <= sent < self._end:  # Nearly every request falls into the newest slot.
            self._counts[0] += count
            return
        if self.began == math.inf:
            self.began = sent
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
        other = Tally(span, self.began)
        if self._newest > -math.inf:
            for age in range(_SLOTS, -1, -1):
                other.add((self._newest - age + 0.5) * self._width, self._counts[age])
        return other

    def _move_to(self, slot: float) -> None:
        passed = slot - self._newest
        if passed > 0:
            passed = int(min(passed, _SLOTS + 1))
            self._counts = [0.0] * passed + self._counts[: _SLOTS + 1 - passed]
            self._newest, self._start, self._end = slot, slot * self._width, (slot + 1) * self._width


class History:
    """The past that a law judges a refusal by.

    Args:
        span: seconds over which requests are counted.
        quota: over its window fades the share of the time that was spent holding back.

    Attributes:
        tally: the requests.
        holds: whether requests are held back now.
    """

    def __init__(self, span: float, quota: KnownQuota) -> None:
        self.tally = Tally(span)
        self._quota = quota
        # The share as of an instant, and whether requests have been held back since: it fades when that changes.
        self._held, self._held_at, self.holds = 1.0, -math.inf, True

    def add(self, sent: float, count: float = 1.0) -> None:
        """Count a request sent at `sent`, or take one back with -1."""
        self.tally.add(sent, count)

    def note(self, start: float, *, holds: bool) -> None:
        """Note whether requests are held back from `start` on."""
        if holds != self.holds:
            self._fade(start)
            self.holds = holds

    def past(self, now: float, *, cold: bool) -> Past:
        """What a law needs to know about a refusal at `now`."""
        self._fade(now)
        return Past(self.tally.count(now), min(now - self.tally.began, self.tally.span), self._held, cold)

    def resize(self, span: float) -> None:
        """Count over another span, because more is known about the quota."""
        self.tally = self.tally.resized(span)

    def restart(self, instant: float) -> None:
        """Forget all requests, and count the time from `instant` on."""
        self.tally = Tally(self.tally.span, instant)

    def _fade(self, now: float) -> None:
        if self._held_at > -math.inf and now > self._held_at:
            fading = math.exp((self._held_at - now) / self._quota.window)
            self._held = 1 - (1 - self._held) * fading if self.holds else self._held * fading
        self._held_at = max(self._held_at, now)
