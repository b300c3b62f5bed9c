"""The second dimension of a queue: units of cost, such as tokens per minute, alongside requests."""

from typing import Final

_ROUNDING: Final = 1e-6
"""As a share of the bucket; covers the clock's rounding, so that a waiter that slept as told need not sleep again."""

_LEARNING: Final = 0.1
"""The weight of the latest correction in the average worth of estimates."""

_MINUTE: Final = 60.0
"""Seconds: the window of every token quota that servers name in their headers."""

_LONGEST: Final = 3600.0
"""Seconds, or the window if that is longer: no answer stops a program for longer."""

GRAIN: Final = 0.005
"""Seconds; no request asks again sooner than this just because an estimate may turn out too high."""


class Units:
    """A bucket of units: starts full, is refilled evenly, and is below zero while there is a debt.

    Holds numbers only; the queue that owns it holds the lock.

    Attributes:
        most: units that it holds.
        rate: units per second by which it is refilled.
        level: units that are there now.
        worth: the real cost of calls, as a share of their estimates.
    """

    __slots__ = ("_longest", "_own_rate", "level", "most", "rate", "worth")

    def __init__(self, most: float, time_window: float) -> None:
        self.most = self.level = most
        self.rate = self._own_rate = most / time_window
        self._longest = max(time_window, _LONGEST)
        self.worth = 1.0

    def refill(self, seconds: float) -> None:
        """Add what this many seconds bring."""
        self.give(self.rate * seconds)

    def missing(self, cost: float, before: float = 0.0, last: float = 0.0) -> float:
        """Units that must still arrive before a cost may be taken; 0.0 for none.

        A cost above the whole bucket waits until it is full, and leaves a debt. Those in front take `before` together,
        the last of them `last`: a call that costs nothing waits for them, but not until that last one's debt is paid.
        """
        if cost:
            needed = before + min(cost, self.most)
        elif before > _ROUNDING * self.most:  # A sum that should be zero may differ from it by rounding.
            needed = before - max(0.0, last - self.most)
        else:
            return 0.0
        missing = needed - self.level
        return missing if missing > _ROUNDING * self.most else 0.0

    def give(self, units: float) -> None:
        """Give units back, or take them if `units` is negative."""
        self.level = min(self.most, self.level + units)

    def believed(self, estimate: float, cost: float) -> float:
        """The cost that an answer names, capped at what one answer may hold others back for."""
        return min(cost, max(estimate, self._own_rate * self._longest))

    def settle(self, estimate: float, cost: float) -> None:
        """Correct an estimate that has been taken, now that the real cost is known."""
        self.give(estimate - cost)
        if cost and estimate:
            # One call that cost a hundred times its estimate says little about the next.
            self.worth += _LEARNING * (min(cost / estimate, 2.0) - self.worth)

    def hear(self, limit: float, remaining: float) -> None:
        """Adopt what the server says: `limit` units per minute, of which `remaining` are left to all its clients."""
        # A limit that would take more than the longest wait to fill the bucket is nonsense.
        self.rate = min(self._own_rate, max(limit / _MINUTE, self.most / self._longest))
        self.level = min(self.level, remaining)

    def nap(self, wait: float, waited: float) -> float:
        """How much of a wait for units to sleep before asking again: overestimated units are returned early."""
        return max(GRAIN, min(0.9 * self.worth * wait, 0.5 * wait, 0.5 + waited))
