"""A number of requests that may be on their way at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .source import TICK, Limits, Source

if TYPE_CHECKING:
    from ..limiter import Turn

_FIRST_GUESS: Final = 0.05
_LEARNING: Final = 0.1
_SHORTEST: Final = 0.001


class Slots(Source):
    """At most `most` at once: a slot is taken when a request goes, and is free when its answer has ended.

    Nobody knows when that will be: its seconds are a guess, from how long the last ones took.

    Attributes:
        most: how many there are.
        busy: how many are taken.
    """

    is_exact = False

    def __init__(self, most: int) -> None:
        self.most, self.busy = most, 0
        self._mean = _FIRST_GUESS
        self._freed_at = 0.0

    @property
    def limit(self) -> str:  # type: ignore[override]
        return f"{self.most} in flight"

    def when(self, turn: "Turn", ahead: int, now: float) -> float:
        if self.busy + ahead < self.most:
            return 0.0
        each = self._mean / self.most
        # If they take longer than the last ones did, look ever more rarely.
        soonest = max(_SHORTEST, each * (ahead or 0.5) / 2, (now - max(self._freed_at, turn.asked)) / 4)
        turn.nap = min(turn.nap, soonest)
        return max(TICK, each * (self.busy + ahead - self.most + 1))

    def until_spare(self, turn: "Turn", rank: int, asleep: "Sequence[Turn]", now: float) -> float:
        return 0.0  # A slot is free again before long.

    def take(self, turn: "Turn", now: float) -> None:
        self.busy += 1

    def give_back(self, turn: "Turn", now: float) -> None:
        self.busy -= 1
        self._freed_at = now

    def end(self, turn: "Turn", now: float) -> None:
        self._mean += _LEARNING * (max(0.0, now - turn.since) - self._mean)
        self.give_back(turn, now)

    def soon(self, now: float, seconds: float) -> float:
        return self.most - self.busy + self.most * seconds / max(self._mean, seconds / 4, TICK)

    def update(self, limits: Limits) -> None:
        if limits.max_requests is not None:
            self.most = int(limits.max_requests)

    def forked(self) -> None:
        self.busy = 0
