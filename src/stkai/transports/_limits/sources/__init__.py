"""The base class of sources, from which a queue takes permits."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Self

from ...._errors import ConfigurationError
from ...._log import logger
from ..._operations import Run
from ..limiter import Answer, RateChange, Turn, number_of, place_in

TICK: Final = 1e-6  # Seconds; a shorter sleep might not advance a clock that has run for years.

# Permits, or fractions of a bucket: tolerance for the clock's rounding, so that no waiter has to sleep twice.
ROUNDING: Final = 1e-6

# Seconds after which most waiters ask again, as quotas may change and permits may return.
ASK_INTERVAL: Final = 1.0
# Seconds after which a waiter that has not woken up no longer delays those behind it: its loop may be stuck.
MAX_OVERSLEEP: Final = 5.0

_SEARCH_LIMIT: Final = 1000  # Turns to examine if some also wait for limits of their own.
_RUN_LENGTH: Final = 50  # Beyond it, turns to examine in a row: the turns of tenants often alternate.
_RUN_COUNT: Final = 10  # The number of such runs.
_WAKE_LIMIT: Final = 30  # Turns to search for one to wake, if all wait for the same sources.


class Limits(NamedTuple):
    """The numbers of a limiter, as configured."""

    max_requests: float | None = None  # None if they are not counted, or unknown.
    time_window: float | None = None  # Seconds; None if unknown.
    max_cost: float | None = None  # Units of cost per window; None if they are not counted.
    burst: float | None = None  # Requests at once after an idle period; None for `max_requests`.

    @property
    def rate(self) -> float:
        """Requests per second; infinite if they are not counted."""
        if self.max_requests is None or self.time_window is None:
            return math.inf
        return self.max_requests / self.time_window

    @property
    def at_once(self) -> float:
        """Requests that may be sent at once after an idle period, at least one."""
        return max(1.0, (self.max_requests or 1.0) if self.burst is None else self.burst)


def in_words(limits: Limits) -> str:
    """A limit of requests, in words."""
    return f"{limits.max_requests:g} requests per {limits.time_window:g} s"


class Source:
    """Decides when a turn is admitted, takes a permit for it, and takes it back. The queue holds the lock."""

    order: Any  # The turns that wait for this source or for sources used with it.
    waiting: int  # How many of them wait for this source.
    line: list[Turn]  # Those, in order; used once some turns do not wait for it.
    limit = ""  # What it allows, in words, for events; few texts per limiter, since metrics count by it.
    # The source that it replaces, if any: turns wait for that source, whose order, count and line it uses.
    stands_for: Any = None
    counts_units = False  # Whether it counts units of cost.
    keeps_costs = False  # Whether it keeps the costs of waiting turns, which `join` and `drop` update.
    is_exact = True  # Whether its waits are exact; otherwise they are guesses.
    wakes = False  # Whether it wakes the turns that wait for it, even from short sleeps.
    # Whether it is a `Leased`: the queue also calls its `call`, and its client's `after_step`.
    is_remote = False

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Not on the class: Python finds instance attributes that hide class attributes more slowly.
        source = super().__new__(cls)
        source.order, source.line, source.waiting = None, [], 0
        return source

    @property
    def turns(self) -> Sequence[Turn]:
        """The turns that wait for this source, in their order."""
        turns: list[Turn] = self.order.turns
        return turns if self.waiting == len(turns) else self.line

    def count(self, place: int) -> int:
        """How many of the first `place` turns in the queue wait for this source."""
        turns, waiting = self.order.turns, self.waiting
        if waiting == len(turns):
            return place
        return place_in(self.line, turns[place]) if place < len(turns) else waiting

    def comes_later(self, turn: Turn, instant: float) -> bool:
        """Whether another limit holds up a turn that waits for this source until after `instant`."""
        by = turn.held_by
        return by is not None and by is not (self.stands_for or self) and turn.due_at > instant

    def first(self, count: int, now: float, each: Sequence[Any]) -> Sequence[Any]:
        """The first `count` items of `each`, one for each turn in the line, without those of turns that come later."""
        if not self.order.is_mixed:
            return each[:count]
        near = zip(each, self.turns[:_SEARCH_LIMIT], strict=False)
        items = list(islice((item for item, other in near if not self.comes_later(other, now)), count))
        return [*items, *each[_SEARCH_LIMIT : _SEARCH_LIMIT + count - len(items)]]

    def later_ones(self, count: int, sources: tuple[Any, ...], now: float) -> int:
        """How many of the first `count` turns in the line cannot use a permit yet because another limit holds them up.

        Where waits are guesses, that must be a limit that a turn with these `sources` does not wait for: it cannot
        overtake the others. Exact for the last thousand turns; estimated from a few runs for those before them.
        """
        if self.is_exact:
            sources = (self,)
        line, far = self.turns, max(0, count - _SEARCH_LIMIT)
        later = self._later_ones(line[far:count], sources, now)
        if far:
            starts = range(0, far, far // _RUN_COUNT + 1)
            some = [turn for start in starts for turn in line[start : start + _RUN_LENGTH]]
            later += self._later_ones(some, sources, now) * far // len(some)
        return later

    def _later_ones(self, turns: Sequence[Turn], sources: tuple[Any, ...], now: float) -> int:
        # Thousands of turns call this, and calling `comes_later` takes three times as long.
        by = [turn.held_by for turn in turns if turn.due_at > now]
        return len([source for source in by if source is not None and source not in sources])

    def in_turn(
        self, turns: Iterable[Turn], *others: "Source | None", but: Turn | None = None
    ) -> Iterator[Turn]:
        """Those of the turns that this source holds up, but none that need `others` or what holds up earlier ones.

        They are searched as if `but` did not wait.
        """
        holders = set(others)
        for turn in turns:
            if turn is but:
                continue
            if turn.held_by is not self:
                holders.add(turn.held_by)
            elif holders.isdisjoint(turn.sources):
                yield turn

    def claims(self, start: int, end: int, due: float) -> int:
        """How many of these turns in the line are due."""
        near, since = self.turns[start : min(end, start + _SEARCH_LIMIT)], due - MAX_OVERSLEEP
        return len([turn for turn in near if since < turn.due_at <= due])

    def join(self, turn: Turn, place: int) -> int:
        """Insert a turn that waits at `place` in the queue; returns its place among the turns of this source.

        Called if limits are mixed or the source `keeps_costs`; `WaitingTurns` counts all turns itself.
        """
        if self.order.is_mixed:
            place = bisect_right(self.line, turn.number, key=number_of)
            self.line.insert(place, turn)
        return place

    def drop(self, turn: Turn, place: int) -> int:
        """Remove a turn that waited at `place` in the queue; returns the place that it had in this line."""
        if self.order.is_mixed:
            place = place_in(self.line, turn)
            del self.line[place]
        return place

    def recover(self, turns: Sequence[Turn]) -> None:
        """Recompute all counts from the turns that wait, after an interrupt or a fork."""
        self.line, self.waiting = list(turns), len(turns)

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        """Seconds until the turn is admitted if `ahead` turns take a permit of this source first; 0.0 for now.

        May lower `turn.nap`, after which the turn asks again.
        """
        raise NotImplementedError

    def least_wait(self, seconds: float, ahead: int, now: float) -> float:
        """A lower bound of the wait of `seconds` that `when` has just returned; called if it lowered the nap."""
        return seconds

    def due_in(self, turn: Turn, wait: float) -> float:
        """Seconds until a turn that this source holds up for about `wait` seconds claims its permits."""
        return wait

    def until_spare(self, turn: Turn, rank: int, asleep: Sequence[Turn], now: float) -> float:
        """Seconds until the turn can take a permit that no sleeping turn before it will need; 0.0 for now.

        The first turn that waits for this source will need one; the others wake up when theirs are due, and many may
        leave before. Turns that wait for another source will need one if they are in the same queue, which is first
        come, first served across all its sources. Turns of other queues claim no permit while they wait.
        """
        if self.is_remote or not self.is_exact:
            return 0.0  # Permits arrive at any moment, or sleepers are woken for them.
        others = [other for other in asleep if self._will_need(turn, other, asleep[0])]
        taken = rank + 1
        if not others or self.available(now, 0.0) >= taken + len(others):
            return 0.0
        for other in others:
            taken += 1
            if self.available(now, other.due_at - now) < taken - ROUNDING:
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
        """Take back the permit of a turn whose request was not sent."""

    def listens(self, now: float) -> bool:
        """Whether a success at `now` could teach it anything."""
        return False

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Learn from the head of an answer, or from an error."""
        return None

    def end(self, turn: Turn, now: float) -> None:
        """Record that the turn's answer has ended."""

    def pass_on(self, turn: Turn, now: float, but: tuple[Any, ...] = ()) -> None:
        """The turn no longer waits for this source: let the next one whose sources are not `but` take its permit."""
        if but:
            self.wake_first(turn.number, but)

    def wake_first(self, after: int = 0, but: tuple[Any, ...] = ()) -> None:
        """Wake the first turn after that number that waits for this source: it has permits earlier than announced."""
        if self.waiting and self.is_exact and not self.is_remote:
            near = islice(self.turns, _SEARCH_LIMIT if self.order.is_mixed else _WAKE_LIMIT)
            later = (turn for turn in near if turn.number > after and turn.sources != but)
            first = next((turn for turn in later if turn.held_by is self), None)
            if first is not None:
                first.moves_up = True
                self.order.wake_soon([first])

    def relieve(self, now: float) -> None:
        """Free what is lost, for a turn that waits for this source; called without the queue's lock."""

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the turn took to its actual cost."""

    def available(self, now: float, seconds: float) -> float:
        """How many permits are available within `seconds`, if no other turn takes any."""
        return math.inf

    def update(self, limits: Limits) -> None:
        """Adopt new limits; they apply to waiting turns when these ask again."""

    def forked(self) -> None:
        """Start over in a forked child."""

    def cost_of(self, turn: Turn) -> float:
        """Units that the turn takes from this source; 0.0 for a source that counts none."""
        if not self.counts_units:
            return 0.0
        return turn.cost if turn.costs is None else turn.costs.get(self.stands_for or self, turn.cost)


def listens_of(sources: Iterable[Source]) -> Callable[[float], bool] | None:
    """A function that returns whether a success at an instant could teach any source; None if none ever learns."""
    each = [source.listens for source in sources if type(source).listens is not Source.listens]
    if len(each) < 2:
        return each[0] if each else None
    return lambda now: any(listens(now) for listens in each)


def warning(message: str, *values: object) -> Run:
    """An errand that logs a warning: `learn` itself must not, since the queue holds its lock."""

    def warn(_left: float) -> None:
        logger.warning(message, *values)

    async def awarn(left: float) -> None:
        warn(left)

    return Run(warn, awarn)


def require_own_shares(sources: Iterable[Any]) -> None:
    """Raise a ConfigurationError if two sources are members of one share: each request would take two permits of it."""
    shares = [f"share={each.share!r} in {each.client.store!r}" for each in sources if each.is_remote]
    if twice := [share for share in shares if shares.count(share) > 1]:
        raise ConfigurationError(f"each limit of a list needs its own share=; two of these have {twice[0]}")
