"""The turns that wait, ordered by numbers that never change once assigned.

Numbers of normal priority are even. Those of low priority are odd and 18 apart: while both wait, nine normal turns are
admitted between two low ones; a low one that waits alone is not delayed.

When a turn leaves, the next turn that joins takes its place, unless the time of that place has passed. The turn behind
moves up: once it is first, it is woken and asks again. If it gains time, the next turn moves up at once; if not, when
the first is admitted. The latter matters for windows, whose permits are due together: only the first turn of the next
window gains time. So if many turns leave at once, each later permit costs at most one more call of `ask`, not one for
each waiting turn. When permits are returned or a quota is raised, the first turn is woken, and a turn admitted earlier
than announced wakes the next.
"""

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final
from weakref import WeakSet

from ..._process import after_fork
from .limiter import Turn, number_of, place_in
from .sources import Source

NORMAL_STEP: Final = 2  # The difference between consecutive numbers of normal priority.
_LOW_STEP: Final = 18  # The same of low priority.
MIN_GAIN: Final = 0.02  # Seconds; no turn is woken for a smaller gain.
_MIN_EARLY: Final = 0.0005  # The same if its permit is there already: small gains of many turns add up.


class WaitingTurns:
    """The waiting turns, ordered by number; shared by all queues that have a source in common."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        # Whether they may wait for different sources; each source then has its own line.
        self.is_mixed = False
        self.members: WeakSet[Source] = WeakSet()  # The sources whose turns wait here.
        # Work that finalizers and signal handlers postpone while the lock is held; `recover`, after an interrupt.
        self.deferred: deque[Callable[[], object]] = deque()
        self.woken: deque[Turn] = deque()  # Turns to wake.
        # The places of turns that left, in order; without their requests, which may have long bodies.
        self.vacant: list[Turn] = []
        # The last normal number, the last low-priority number, and the highest number that was admitted.
        self.last = self._low = self._highest_admitted = 0
        after_fork(self, WaitingTurns.forget)

    def forget(self) -> None:
        """Drop all waiting turns in a forked child, where only the thread that forked exists."""
        self.turns.clear()
        self.vacant.clear()
        self.deferred.clear()
        self.woken.clear()
        self.recover()
        for source in self.members:
            source.forked()

    def wake_all(self, turns: Iterable[Turn]) -> None:
        """Let these turns ask again, once the lock is released."""
        for turn in turns:
            turn.is_woken = True
            self.woken.append(turn)

    def recover(self) -> None:
        """Recompute all counts from the waiting turns: an interrupt or a fork may have left them inconsistent."""
        self.is_mixed = True
        for source in self.members:
            source.recover([turn for turn in self.turns if source in turn.sources])

    def add_source(self, source: Source) -> None:
        """Let the turns of a source, and of all sources used with it, wait here."""
        if source.order is None:
            self.members.add(source)
            source.order = self
        elif source.order is not self:
            self.absorb(source.order)

    def absorb(self, other: "WaitingTurns") -> None:
        """Append the turns of `other`; low-priority ones are placed where they would have joined."""
        other.catch_up()
        if other.turns:
            self.deferred.append(self.recover)  # Before the next step, even if an interrupt ends this one.
        for member in list(other.members):
            self.members.add(member)
            member.order = self
        for turn in other.turns:
            turn.number += self.last
        self.turns += other.turns
        self.turns.sort(key=number_of)
        self._low = max([self._low, *(turn.number for turn in other.turns if turn.priority == "low")])
        self.last += other.last
        self.woken.extend(other.woken)  # Who called for it may find only this order.

    def catch_up(self) -> None:
        """Do the deferred work, and recover from an interrupt."""
        while self.deferred:
            try:
                self.deferred[0]()  # Removed only afterwards: an interrupt may prevent it.
            except BaseException:  # An interrupt.
                self.deferred[0] = self.recover
                raise
            self.deferred.popleft()

    def wake(self) -> None:
        """Wake the turns in `woken`. Must be called without holding the lock."""
        while self.woken:
            with suppress(IndexError):  # Another thread was faster.
                turn = self.woken.popleft()
                if turn.wake is not None:
                    turn.wake()

    def join(self, turn: Turn, now: float) -> int:
        """The place of a turn, counted from 0; a turn that is not waiting yet is inserted where its number belongs."""
        turns, vacant = self.turns, self.vacant
        if not turns:
            # All numbered turns were admitted or have left, including those that did not have to wait.
            self._low = self._highest_admitted = self.last
            self.is_mixed = False
            vacant.clear()
        if not turn.number:
            turn.asked = now
            if vacant or turn.priority == "low":
                self._give_number(turn, now)
            else:
                turn.number = self.last = self.last + NORMAL_STEP
        while vacant and vacant[0].number < turn.number:
            # The turn that asks moves up, so these places are no longer vacant.
            vacant.pop(0)
        place = len(turns)
        if place and turns[-1].number >= turn.number:  # Most turns join at the end.
            place = place_in(turns, turn)
        if place == len(turns) or turns[place] is not turn:
            turn.due_at = math.inf
            if not self.is_mixed and turns and turn.sources != turns[0].sources:
                self.is_mixed = True
                for source in turns[0].sources:
                    source.line = list(turns)
            turns.insert(place, turn)
            for source in turn.sources:
                source.waiting += 1
                if self.is_mixed or source.keeps_costs:
                    source.join(turn, place)
        return place

    def _give_number(self, turn: Turn, now: float) -> None:
        vacant = self.vacant
        while vacant and vacant[0].due_at <= now:
            vacant.pop(0)
        low = turn.priority == "low"
        if vacant and vacant[0].number & 1 == low and _could_stand_in(turn, vacant[0]):
            turn.number = vacant.pop(0).number
        elif low:
            self._low = turn.number = (max(self._low, self._highest_admitted) | 1) + _LOW_STEP
        else:
            turn.number = self.last = self.last + NORMAL_STEP

    def admit(self, place: int, now: float) -> None:
        """Remove the turn at `place`, which is admitted, and let those behind it move up."""
        turn = self.drop(place)
        gains = MIN_GAIN < turn.due_at - now < math.inf  # It had to wait, and would have waited longer.
        if gains or (turn.moves_up and not self.is_mixed):
            self.move_up(turn, place)
        if self.is_mixed or (not place and self.turns and self._gains(self.turns[0], now)):
            self.wake_soon(self._behind(turn, place))
        number, turns, last = turn.number, self.turns, self.last
        self._highest_admitted = max(self._highest_admitted, number)
        if number > last and (not place or turns[place - 1].number <= last):
            # A low-priority one, in its turn: the next normal number follows those that were admitted, and precedes the
            # next low one. If it was admitted before other low ones, these must not all precede it.
            most = turns[place].number - _LOW_STEP if place < len(turns) else self._highest_admitted
            self.last = max(number, min(most, self._highest_admitted)) - 1

    def _gains(self, turn: Turn, now: float) -> bool:
        """Whether the first turn may be admitted earlier than announced, so that waking it is worthwhile."""
        source, seconds, wait = turn.held_by, turn.due_at - now, 0.0
        if not turn.moves_up or seconds <= _MIN_EARLY:
            return False
        if source is not None and source.is_exact and not source.is_remote:
            wait = source.when(turn, 0, now)
            if not wait:
                return True
        return seconds - wait > MIN_GAIN

    def drop(self, place: int) -> Turn:
        turn = self.turns.pop(place)
        for source in turn.sources:
            source.waiting -= 1
            if self.is_mixed or source.keeps_costs:
                source.drop(turn, place)
        return turn

    def leave(self, turn: Turn, now: float) -> None:
        """Remove a turn that leaves without its permit; the next turn that joins may take its place."""
        place = place_in(self.turns, turn)
        if self.turns[place : place + 1] == [turn]:
            self.drop(place)
            if place < len(self.turns):
                left = Turn(None, turn.number, cost=turn.cost, sources=turn.sources)
                left.costs, left.due_at = turn.costs, turn.due_at
                insort(self.vacant, left, key=number_of)
                self.move_up(turn, place)
                source = turn.held_by or turn.sources[0]
                first = source.first(1, now, source.turns)
                if first and first[0].number >= turn.number:
                    self.wake_soon(first)

    def move_up(self, turn: Turn, place: int) -> None:
        """Let the turn behind, now at `place`, ask again once it is first: it may gain time."""
        for other in self._behind(turn, place):
            other.moves_up = True

    def _behind(self, turn: Turn, place: int) -> list[Turn]:
        """The turn at `place`, behind this one; if limits differ, the next one in the line of each of its sources."""
        if not self.is_mixed:
            return self.turns[place : place + 1]
        found: list[Turn] = []
        for source in turn.sources:
            behind = bisect_right(source.line, turn.number, key=number_of)
            found += source.line[behind : behind + 1]
        return found

    def wake_soon(self, turns: Sequence[Turn]) -> None:
        """Wake those of the turns that may be admitted earlier than announced."""
        self.wake_all(turn for turn in turns if turn.moves_up and not turn.is_woken)


def _could_stand_in(turn: Turn, other: Turn) -> bool:
    """Whether a new turn may take the place of one that left: it needs no more, and from the same sources."""
    return turn.sources == other.sources and all(
        source.cost_of(turn) <= source.cost_of(other) for source in turn.sources
    )
