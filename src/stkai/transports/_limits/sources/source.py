"""What a queue takes permits from: the base class of all sources."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Self

from ..limiter import Answer, RateChange, Turn, number_of, place_in

TICK: Final = 1e-6
"""Seconds; a shorter sleep might not move a clock that has run for years."""

ROUNDING: Final = 1e-6
"""Permits, or shares of a bucket; covers the clock's rounding, so that no waiter has to sleep twice."""

MAX_OVERSLEEP: Final = 5.0
"""Seconds after which a waiter that has not woken no longer delays those behind it: its loop may be stuck."""

_SEARCH_LIMIT: Final = 1000  # How far to look where some wait for limits of their own.

_WAKE_LIMIT: Final = 30  # How far to look for a turn to wake.

_RUN_LENGTH, _RUN_COUNT = 50, 10
"""Farther away, to look at so many turns side by side, and at so many such runs: tenants often alternate."""


class Limits(NamedTuple):
    """The numbers of a limiter, as its user gave them."""

    max_requests: float | None = None  # None if they are not counted, or unknown.
    time_window: float | None = None  # Seconds; None if unknown.
    max_cost: float | None = None  # Units of cost per window; None if they are not counted.
    burst: float | None = None  # Requests at once after a quiet time; None for `max_requests`.

    @property
    def rate(self) -> float:
        """Requests per second; infinite if they are not counted."""
        if self.max_requests is None or self.time_window is None:
            return math.inf
        return self.max_requests / self.time_window

    @property
    def at_once(self) -> float:
        """Requests that may go at once after a quiet time, at least one."""
        return max(1.0, (self.max_requests or 1.0) if self.burst is None else self.burst)


def in_words(limits: Limits) -> str:
    """What a limiter of requests allows."""
    return f"{limits.max_requests:g} requests per {limits.time_window:g} s"


class Source:
    """Decides when a turn is admitted, takes a permit for it, and takes one back. The queue holds the lock."""

    order: Any  # The turns that wait, for this source and for those it is used with; None with `stands_for`.
    waiting: int  # How many of them wait for this source.
    line: list[Turn]  # These, in their order, once not all of them do.
    limit = ""  # What it allows, in words, for events; one of a few for each limiter, so that metrics may count by it.
    stands_for: Any = None  # The source in whose place it is asked: turns wait for that, and name it.
    counts_units = False  # Whether it counts units of cost.
    is_exact = True  # Whether the seconds that it names are exact; otherwise they are a guess.
    wakes = False  # Whether it wakes those who wait for it, also from short sleeps.
    # Whether it is a `Leased`: the queue also calls its `call` and `afterwards`.
    is_remote = False

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Not on the class: Python finds what an object has instead of its class more slowly, and every permit asks.
        source = super().__new__(cls)
        source.order, source.line, source.waiting = None, [], 0
        return source

    @property
    def turns(self) -> Sequence[Turn]:
        """The turns that wait for this source, in their order."""
        waited_for = self.stands_for or self
        turns: list[Turn] = waited_for.order.turns
        return turns if self.waiting == len(turns) else waited_for.line

    def count(self, place: int) -> int:
        """How many of the first `place` turns in the queue wait for this source."""
        turns, waiting = self.order.turns, self.waiting
        if waiting == len(turns):
            return place
        return place_in(self.line, turns[place]) if place < len(turns) else waiting

    def comes_later(self, turn: Turn, instant: float) -> bool:
        """Whether another of its limits lets a turn that waits for this one wait until after that instant."""
        by = turn.held_by
        return by is not None and by is not (self.stands_for or self) and turn.due_at > instant

    @property
    def is_mixed(self) -> bool:
        """Whether the turns that wait may have limits of their own beside this one."""
        mixed: bool = (self.stands_for or self).order.is_mixed
        return mixed

    def first(self, count: int, now: float, each: Sequence[Any]) -> Sequence[Any]:
        """Of `each`, with an item for each turn in the line, the first ones, without those of turns that come later."""
        if not self.is_mixed:
            return each[:count]
        near = zip(each, self.turns[:_SEARCH_LIMIT], strict=False)
        items = list(islice((item for item, other in near if not self.comes_later(other, now)), count))
        return [*items, *each[_SEARCH_LIMIT : _SEARCH_LIMIT + count - len(items)]]

    def later_ones(self, count: int, now: float) -> int:
        """How many of the first turns in the line will use no permit yet, for another limit holds them up.

        Of those more than a thousand places before the last of these, it looks at a few runs.
        """
        line, far = self.turns, max(0, count - _SEARCH_LIMIT)
        later = self._later_ones(line[far:count], now)
        if far:
            starts = range(0, far, far // _RUN_COUNT + 1)
            some = [turn for start in starts for turn in line[start : start + _RUN_LENGTH]]
            later += self._later_ones(some, now) * far // len(some)
        return later

    def _later_ones(self, turns: Sequence[Turn], now: float) -> int:
        # Each of thousands asks: to call `comes_later` takes three times as long.
        by = [turn.held_by for turn in turns if turn.due_at > now]
        return len([source for source in by if source is not None and source is not self])

    def claims(self, start: int, end: int, due: float) -> int:
        """How many of these turns in the line are due."""
        near, since = self.turns[start : min(end, start + _SEARCH_LIMIT)], due - MAX_OVERSLEEP
        return len([turn for turn in near if since < turn.due_at <= due])

    def join(self, turn: Turn, place: int) -> int:
        """Note that a turn waits in that place of the queue; returns its place among the turns of this source."""
        self.waiting += 1
        if self.order.is_mixed:
            place = bisect_right(self.line, turn.number, key=number_of)
            self.line.insert(place, turn)
        return place

    def drop(self, turn: Turn, place: int) -> int:
        """Note that the turn in that place of the queue no longer waits; returns the place that it had here."""
        self.waiting -= 1
        if self.order.is_mixed:
            place = place_in(self.line, turn)
            del self.line[place]
        return place

    def recover(self, turns: Sequence[Turn]) -> None:
        """Make the numbers agree again, after an interrupt or a fork between two of them; these turns wait."""
        self.line, self.waiting = list(turns), len(turns)

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        """Seconds until the turn is admitted if `ahead` turns take a permit of this source first; 0.0 for now.

        May lower `turn.nap`, after which the turn asks again.
        """
        raise NotImplementedError

    def until_spare(self, turn: Turn, rank: int, asleep: Sequence[Turn], now: float) -> float:
        """Seconds until the turn can take a permit that none of those asleep before it will need; 0.0 for now.

        The first of those that wait for this source will need one; the others wake when theirs are due, and many may
        leave before. Those that wait for another source will need one if they are in the same queue: it is first come,
        first served over all its sources. Turns of other queues do not claim a permit while they wait.
        """
        if self.is_remote or not self.is_exact:
            return 0.0  # Its permits come when sleeping turns are woken to ask again, or at any moment.
        others = [other for other in asleep if self._will_need(turn, other, asleep[0])]
        taken = rank + 1
        if not others or self.soon(now, 0.0) >= taken + len(others):
            return 0.0
        for other in others:
            taken += 1
            if self.soon(now, other.due_at - now) < taken - ROUNDING:
                return max(TICK, other.due_at - now)
        return 0.0

    def _will_need(self, turn: Turn, other: Turn, first: Turn) -> bool:
        if other.held_by is self:
            return other is first
        return other.sources == turn.sources and not other.is_guess

    def take(self, turn: Turn, now: float) -> None:
        """Take a permit for the turn; `when` has just returned 0.0."""
        raise NotImplementedError

    def give_back(self, turn: Turn, now: float) -> None:
        """Take back the permit of a turn that sent nothing."""

    def listens(self, now: float) -> bool:
        """Whether a successful answer at `now` could teach it anything."""
        return False

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Learn from the head of an answer, or from the error in its place."""
        return None

    def end(self, turn: Turn, now: float) -> None:
        """Note that the turn's answer has ended."""

    def pass_on(self, turn: Turn, now: float, but: tuple[Any, ...] = ()) -> None:
        """Note that the turn no longer waits for this source: the next one may take what it would have taken.

        The next one is a turn that does not take its permits from the sources `but`.
        """

    def wake_first(self) -> None:
        """Wake the first turn that waits for this source, which has more to give than it said."""
        if self.waiting and self.is_exact and not self.is_remote:
            first = next((turn for turn in islice(self.turns, _WAKE_LIMIT) if turn.held_by is self), None)
            if first is not None:
                first.moves_up = True
                self.order.wake_soon([first])

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the turn took to its real cost."""

    def soon(self, now: float, seconds: float) -> float:
        """How many permits it could give within so many seconds, if no other turn took any."""
        return math.inf

    def update(self, limits: Limits) -> None:
        """Adopt new numbers; they apply to waiting turns when these ask again."""

    def forked(self) -> None:
        """Begin anew in a forked child."""

    def cost_of(self, turn: Turn) -> float:
        """Units that the turn takes from this source; 0.0 for a source that counts none."""
        if not self.counts_units:
            return 0.0
        return turn.cost if turn.costs is None else turn.costs.get(self.stands_for or self, turn.cost)


def listens_of(sources: Iterable[Source]) -> Callable[[float], bool] | None:
    """A function: could a successful answer at an instant teach any of them anything? None if none ever does."""
    each = [source.listens for source in sources if type(source).listens is not Source.listens]
    if len(each) < 2:
        return each[0] if each else None
    return lambda now: any(listens(now) for listens in each)
