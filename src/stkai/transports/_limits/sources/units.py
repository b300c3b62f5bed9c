"""Limits on units of cost, such as tokens per minute."""

import math
from collections.abc import Sequence
from typing import Final

from ..limiter import Answer, RateChange, Turn
from ..pace.headers import read_cost_limit
from ..pace.law import longest_pause
from . import ROUNDING, TICK, Limits, Source

_MINUTE: Final = 60.0  # Seconds: the window of every token quota that servers name in their headers.
_MIN_NAP: Final = 0.005  # Seconds before asking again, in case an estimate is corrected downwards.
_CORRECTION_WEIGHT: Final = 0.1  # The weight of the latest correction in the average ratio.


class Units(Source):
    """A bucket of units: full at first, refilled evenly, and negative while there is a debt.

    A request that costs more than the whole bucket waits until it is full, and leaves a debt. `start`: an instant and
    the level at it. With `reads_headers`, a server's statements about its quota of tokens may lower level and rate,
    except those about "input" or "output" tokens, if these are not the ones that are counted.
    """

    counts_units = keeps_costs = True

    def __init__(
        self,
        most: float,
        time_window: float,
        *,
        reads_headers: bool = False,
        uncounted: str = "none",
        start: tuple[float, float] | None = None,
    ) -> None:
        self._set(most, time_window)
        self._reads_headers, self._uncounted = reads_headers, uncounted
        self._ratio = 1.0
        # The costs of waiting turns, in the order of the queue: thousands may wait, and each needs their sum.
        self._costs: list[float] = []
        self._at, self.level = (-math.inf, most) if start is None else start

    def _set(self, most: float, time_window: float) -> None:
        self.most = most
        self.rate = self._own_rate = most / time_window
        self._longest = longest_pause(time_window)
        self.limit = f"{most:g} units per {time_window:g} s"

    def join(self, turn: Turn, place: int) -> int:
        place = super().join(turn, place)
        self._costs.insert(place, self.cost_of(turn))
        return place

    def drop(self, turn: Turn, place: int) -> int:
        place = super().drop(turn, place)
        del self._costs[place]
        return place

    def recover(self, turns: Sequence[Turn]) -> None:
        super().recover(turns)
        self._costs = [self.cost_of(turn) for turn in turns]

    def _advance(self, now: float) -> None:
        if now > self._at:
            if self._at > -math.inf:
                self._give(self.rate * (now - self._at))
            self._at = now

    def missing(self, now: float) -> float:
        """Units missing until the bucket is full."""
        self._advance(now)
        return self.most - self.level

    def _give(self, units: float) -> None:
        self.level = min(self.most, self.level + units)

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        self._advance(now)
        cost = self.cost_of(turn)
        need = min(cost, self.most)
        if ahead:
            if self.stands_for is None:
                costs = self.first(ahead, now, self._costs)
            else:
                costs = [self.cost_of(other) for other in self.first(ahead, now, self.turns)]
            need += sum(costs)
            if not cost:  # A free turn does not wait for the debt of the turn before it.
                need -= max(0.0, next(filter(None, reversed(costs)), 0.0) - self.most)
        if not need or need <= self.level + ROUNDING * self.most:
            return 0.0
        return self._wait(turn, need, now)

    def _wait(self, turn: Turn, need: float, now: float) -> float:
        wait = max(TICK, (need - self.level) / self.rate)
        # Units of estimates that are too high return early.
        turn.nap = min(
            turn.nap, max(_MIN_NAP, min(0.9 * self._ratio * wait, wait / 2, 0.5 + now - turn.asked))
        )
        return wait

    def until_spare(self, turn: Turn, rank: int, asleep: Sequence[Turn], now: float) -> float:
        before, cost = sum(self._costs[:rank]), self.cost_of(turn)
        left = self.level - before - cost + ROUNDING * self.most
        need = 0.0
        for other in asleep:
            waits_for_units = other.held_by is self
            if not waits_for_units and (other.is_guess or other.sources != turn.sources):
                continue
            need += min(self.cost_of(other), self.most)
            if need <= left:
                continue  # There is enough for all of them, and for this turn.
            if waits_for_units or need > min(self.most, left + self.rate * (other.due_at - now)):
                return self._wait(turn, before + need + min(cost, self.most), now)
        return 0.0

    def take(self, turn: Turn, now: float) -> None:
        self.level -= self.cost_of(turn)

    def give_back(self, turn: Turn, now: float) -> None:
        self._advance(now)
        self._give(self.cost_of(turn))

    def listens(self, now: float) -> bool:
        return self._reads_headers

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        response = answer.response
        if answer.is_refusal:
            self.settle(turn, 0.0, answer.now)
        if not self._reads_headers or response is None:
            return None
        if (reading := read_cost_limit(response.headers, self._uncounted)) is not None:
            self._advance(answer.now)
            # A limit with which filling the bucket takes longer than the longest wait is a mistake.
            self.rate = min(self._own_rate, max(reading.limit / _MINUTE, self.most / self._longest))
            self.level = min(self.level, reading.remaining)
        return None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self._advance(now)
        estimate = self.cost_of(turn)
        # No answer delays the other requests by more than the longest wait.
        cost = min(cost, max(estimate, self._own_rate * self._longest))
        self._give(estimate - cost)
        if cost < estimate:
            self.wake_first()
        if cost and estimate:
            # One call that costs a hundred times its estimate says little about the next.
            self._ratio += _CORRECTION_WEIGHT * (min(cost / estimate, 2.0) - self._ratio)
        if turn.costs is None and len(turn.sources) == 1:
            turn.cost = cost
        else:
            turn.costs = {**(turn.costs or {}), self.stands_for or self: cost}

    def update(self, limits: Limits) -> None:
        assert limits.max_cost is not None and limits.time_window is not None  # noqa: PT018
        # Keep past usage, but do not create a debt by lowering the limit.
        self.level = max(self.level + limits.max_cost - self.most, min(self.level, 0.0))
        self._set(limits.max_cost, limits.time_window)
