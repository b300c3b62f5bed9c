"""The second dimension of a queue: units of cost, such as tokens per minute, beside requests."""

from typing import Final

_ROUNDING: Final = 1e-6
"""Of the whole bucket; covers the rounding of a clock, so that a waiter that slept as told need not sleep again."""

_LEARNING: Final = 0.1
"""How much the last correction counts in what estimates are worth."""

_MINUTE: Final = 60.0
"""Seconds: the window of every quota of tokens that servers name in their headers."""

GRAIN: Final = 0.005
"""Seconds; nobody asks again sooner because an estimate may turn out too high."""


class Units:
    """A bucket of units: full at first, refilled evenly, and below zero where somebody has left a debt.

    Holds numbers only; the queue that owns it holds the lock.

    Attributes:
        most: units that it holds.
        rate: units per second by which it is refilled.
        level: units that are there now.
        worth: what calls really cost, as a share of their estimates.
    """

    __slots__ = ("_own_rate", "level", "most", "rate", "worth")

    def __init__(self, most: float, time_window: float) -> None:
        self.most = self.level = most
        self.rate = self._own_rate = most / time_window
        self.worth = 1.0

    def refill(self, seconds: float) -> None:
        """Add what these seconds bring."""
        self.give(self.rate * seconds)

    def missing(self, cost: float, before: float = 0.0, last: float = 0.0) -> float:
        """Units that must still come before a cost may be taken; 0.0 for none.

        A cost above the whole bucket waits until that is full, and leaves a debt. Those who wait in front take `before`
        together, the last of them `last`: whoever costs nothing waits for them, but not until that one's debt is paid.
        """
        if cost:
            needed = before + min(cost, self.most)
        elif before:
            needed = before - max(0.0, last - self.most)
        else:
            return 0.0
        missing = needed - self.level
        return missing if missing > _ROUNDING * self.most else 0.0

    def give(self, units: float) -> None:
        """Give units back, or take them if there are less than none."""
        self.level = min(self.most, self.level + units)

    def settle(self, estimate: float, cost: float) -> None:
        """Correct an estimate that has been taken: it really cost that much."""
        self.give(estimate - cost)
        if cost and estimate:
            # One call that cost a hundred times its estimate says little of the next.
            self.worth += _LEARNING * (min(cost / estimate, 2.0) - self.worth)

    def hear(self, limit: float, remaining: float) -> None:
        """Let what the server says hold: `limit` units per minute, of which `remaining` are left to all its clients."""
        self.rate = min(self._own_rate, limit / _MINUTE)
        self.level = min(self.level, remaining)

    def nap(self, wait: float, waited: float) -> float:
        """How much of a wait for units to sleep before asking again: what was estimated too high comes back early."""
        return max(GRAIN, min(0.9 * self.worth * wait, 0.5 * wait, 0.5 + waited))
