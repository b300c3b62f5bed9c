"""The queue of waiting requests: the order in which they go, and nothing else.

A queue has one or more sources of permits. A turn goes when all of its sources have a permit for it, and takes from all
of them in one step; while it waits it holds nothing. All state is numbers under one lock that is held for arithmetic
only, so that threads, event loops and stacks can share a queue.

A sleeper cannot be woken. So each turn is told when it may go, and *claims* its permit from that instant on. A permit
that no turn before it claims or will need goes to the turn that asks; the place of one that left goes to the next that
comes. So a crowd that gives up cannot stop the line, and no sleeper loses its permit to one that is awake.

Normal numbers are even and low-priority ones odd, eighteen apart: nine normal turns go between two low ones while both
wait, and a low one that is alone has nobody before it.
"""

import heapq
import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Final
from weakref import WeakSet

from ..._errors import ClientSideRateLimitError
from ..._families import alike
from ..._forks import after_fork
from .._operations import Operation
from .._retry.policy import NOT_SENT
from .limiter import Answer, RateChange, Turn
from .sources.source import TICK, Source

_NORMAL: Final = 2
_LOW: Final = 18

_EARLY: Final = 0.0005
"""Seconds before its time from which a sleeper claims its permit: otherwise ties would go to whoever is awake."""

_OVERSLEPT: Final = 5.0
"""Seconds after which a waiter that has not woken stops holding up those behind it: its loop may be stuck."""

_GLANCE: Final = 1.0
"""Seconds; a waiter asks at least so often, since quotas may change and permits may be returned ..."""

_GLANCERS: Final = 1000
"""... up to this place in the line; those behind it ask more rarely."""

_LOOKED_AT: Final = 100
"""Sleepers whose permits a turn that is awake leaves alone; those behind them wake before theirs are due."""

READY: Final = math.nan
"""Said to a turn that may go as soon as the user's own limiters among its limits let it go."""

_INTERRUPTED: Final = (
    "a signal handler cannot use the client that it interrupted: set a flag or write to a queue instead"
)

_number = attrgetter("number")


class Order:
    """Who waits, in the order of their numbers; queues that have a source in common share it.

    Attributes:
        turns: those who wait.
        members: the sources whose turns wait here.
        deferred: what a finalizer or a signal handler found to do while the lock was held.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.members: WeakSet[Source] = WeakSet()
        self.deferred: deque[Callable[[], object]] = deque()
        self._vacant: list[tuple[int, Turn]] = []
        # The last number of normal and of low priority, and the highest number that has gone.
        self.last = self._low = self._gone = 0

    def forget(self) -> None:
        """Drop all who wait."""
        while self.turns:
            self.drop(len(self.turns) - 1)
        self._vacant.clear()

    def absorb(self, other: "Order") -> None:
        """Add the turns of another order behind these."""
        for turn in other.turns:
            turn.number += self.last
        self.turns += other.turns
        self.last += other.last
        self.deferred.extend(other.deferred)

    def join(self, turn: Turn, now: float) -> int:
        """The place of a turn, counted from 0; a turn that is not in the order joins it where its number belongs."""
        turns, vacant = self.turns, self._vacant
        if turns and turns[0] is turn and not vacant:
            return 0  # Usually the one that wakes on time is the first.
        if not turns:
            # Everyone who got a number has gone, including those who did not have to wait.
            self._gone = self.last
            vacant.clear()
        if not turn.number:
            turn.asked = now
            self._give_number(turn, now)
        while vacant and vacant[0][0] < turn.number:
            # The turn that asks moves up, so these places are no longer free.
            heapq.heappop(vacant)
        place = self.place_of(turn)
        if turns[place : place + 1] != [turn]:
            turn.told = Turn.told
            turns.insert(place, turn)
            for source in turn.sources:
                source.join(turn, place)
        return place

    def _give_number(self, turn: Turn, now: float) -> None:
        vacant = self._vacant
        while vacant and vacant[0][1].told <= now:
            heapq.heappop(vacant)
        low = turn.priority == "low"
        if vacant and vacant[0][0] & 1 == low and _could_stand_in(turn, vacant[0][1]):
            turn.number = heapq.heappop(vacant)[0]
        elif low:
            self._low = turn.number = (max(self._low, self._gone) | 1) + _LOW
        else:
            turn.number = self.last = self.last + _NORMAL

    def go(self, place: int) -> None:
        """Let the turn in that place go with its permit."""
        number = self.drop(place).number
        if number > self._gone:
            self._gone = number
            if number > self.last:
                # A low-priority one: the next to come goes after it, and before the next of low priority.
                self.last = number - 1

    def drop(self, place: int) -> Turn:
        """Remove the turn in that place."""
        turn = self.turns.pop(place)
        for source in turn.sources:
            source.drop(turn, place)
        return turn

    def leave(self, turn: Turn) -> None:
        """Remove a turn that goes without its permit; the next that comes may have its place."""
        place = self.place_of(turn)
        if self.turns[place : place + 1] == [turn]:
            self.drop(place)
            if place < len(self.turns):
                heapq.heappush(self._vacant, (turn.number, turn))

    def place_of(self, turn: Turn) -> int:
        """Where the turn is, or where it belongs."""
        turns, number = self.turns, turn.number
        if not turns or turns[-1].number < number:
            return len(turns)
        place = bisect_left(turns, number, key=_number)
        while place < len(turns) and turns[place].number == number and turns[place] is not turn:
            # Two parallel attempts of one call.
            place += 1
        return place


def _could_stand_in(turn: Turn, other: Turn) -> bool:
    """Whether a new turn may have the place of one that left: it takes no more, and from the same sources."""
    if turn.sources != other.sources:
        return False
    if turn.costs is None and other.costs is None:
        return turn.cost <= other.cost
    return all(source.cost_of(turn) <= source.cost_of(other) for source in turn.sources)


class Queue:
    """First come, first served, over one or more sources of permits. Told the time; never waits, sends or sleeps."""

    lock: ClassVar[Any] = threading.RLock()
    """One for all queues: an `AllOf` may join queues that are in use, and take from all their sources in one step."""

    def __init__(self, *sources: Source) -> None:
        self.sources = sources
        self._has_remote = any(source.is_remote for source in sources)
        join_all(sources)
        after_fork(self, Queue.forget_waiters)

    def forget_waiters(self) -> None:
        """Drop all waiters, and renew the lock, in a forked child: only the thread that forked exists there."""
        Queue.lock = threading.RLock()
        for source in self.sources:
            source.order.forget()
            source.forked()

    @property
    def waiting(self) -> int:
        """Requests that have asked and not gone yet."""
        return max((source.waiting for source in self.sources), default=0)

    def ask(self, turn: Turn, now: float) -> float | Operation:
        """0.0 if the turn may go: its permits are taken. Otherwise the seconds that it has to wait, or an operation.

        It asks again after them, or after `turn.nap` if that is earlier.
        """
        lock = Queue.lock
        if lock._is_owned():  # noqa: SLF001 - no public method tells; Condition uses it as well
            raise RuntimeError(_INTERRUPTED)
        with lock:
            sources = turn.sources or self._sources_for(turn)
            order = sources[0].order
            if order.deferred:
                catch_up(order)
            wait = self._ask(turn, now, sources, order)
        if self._has_remote:
            self._afterwards(turn, now)
        return wait

    def _ask(self, turn: Turn, now: float, sources: tuple[Source, ...], order: Order) -> float | Operation:
        if turn.not_before > now:
            turn.nap = Turn.nap
            return turn.not_before - now
        if order.turns or turn.guests:
            return self._stand_in_line(turn, now, order)
        for source in sources:
            if source.when(turn, 0, now):
                return self._stand_in_line(turn, now, order)
        for source in sources:
            source.take(turn, now)
        if not turn.number:
            turn.number = order.last = order.last + _NORMAL
        turn.granted, turn.since = True, now
        return 0.0

    def _afterwards(self, turn: Turn, now: float) -> None:
        """Let stores be called, and listeners be notified, without the lock."""
        for source in turn.sources:
            if source.is_remote:
                source.afterwards(now)

    def _sources_for(self, turn: Turn) -> tuple[Source, ...]:
        turn.sources = self.sources
        return self.sources

    def _stand_in_line(self, turn: Turn, now: float, order: Order) -> float | Operation:
        """What `ask` returns if somebody waits, or if there is no permit."""
        place, turns = order.join(turn, now), order.turns
        while place and turns[0].told + _OVERSLEPT < now:
            # When it wakes, it returns to the head.
            order.drop(0)
            place -= 1
        wait = self._has_to_wait(turn, place, now)
        if not wait and turn.guests and not turn.is_admitted:
            turn.told = now
            for source in turn.sources:
                source.reserve(turn)
            return READY
        if not wait:
            for source in turn.sources:
                source.take(turn, now)
            order.go(place)
            turn.granted, turn.since = True, now
            return 0.0
        self._tell(turn, place, wait, now)
        for source in turn.sources:
            if source.is_remote and (operation := source.call(turn, place, now)) is not None:
                return operation
        return turn.wait

    def _has_to_wait(self, turn: Turn, place: int, now: float) -> float:
        """0.0 if there is a permit beyond those that turns before it claim now, or will need when they wake."""
        turns, rank = turn.sources[0].order.turns, 0
        while rank < place and turns[rank].told <= now + _EARLY:
            rank += 1
        for source in turn.sources:
            if source.when(turn, source.count(rank), now):
                return TICK
        asleep = turns[rank : min(place, rank + _LOOKED_AT)]
        if asleep:
            for source in turn.sources:
                if wait := source.until_spare(turn, source.count(rank), asleep, now):
                    return wait
        return 0.0

    def _tell(self, turn: Turn, place: int, wait: float, now: float) -> None:
        """Tell a turn how long it has to wait, and when to ask again."""
        turn.nap, turn.held_by = Turn.nap, turn.sources[0]
        exact = guess = 0.0
        for source in turn.sources:
            seconds = source.when(turn, source.count(place), now)
            if source.is_exact and seconds > exact:
                exact, turn.held_by = seconds, source
            elif seconds > max(guess, exact):
                guess, turn.held_by = seconds, source
        exact = max(exact, wait)
        # A turn that waits for nothing but an answer to end claims its permits from now on.
        turn.told, turn.is_guess = now + exact, exact <= TICK
        turn.wait = max(exact, guess)
        turn.nap = min(turn.nap, _GLANCE * max(1.0, place / _GLANCERS))
        if turn.priority == "low":
            # The normal turns before it may leave, and then nobody would wake it.
            turn.nap = min(turn.nap, max(0.05, min(exact / 2, now - turn.asked)))

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or a permit that was not used."""
        self._when_free(turn, now, self._leave)

    def _leave(self, turn: Turn, now: float) -> None:
        if turn.granted:
            turn.granted = False
            for source in turn.sources:
                source.give_back(turn, now)
        elif turn.sources:
            turn.sources[0].order.leave(turn)
        if self._has_remote:
            for source in turn.sources:
                if source.is_remote:
                    source.left(turn, now)

    def listens(self, now: float) -> bool:
        """Whether an answer of success at `now` could teach any of the sources anything."""
        return any(source.listens(now) for source in self.sources)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Take note of the answer's head, or of the error in its place; what was never sent is given back."""
        changes: list[RateChange | None] = []
        with Queue.lock:
            if answer.response is None and was_never_sent(answer.error):
                self._leave(turn, answer.now)
            else:
                changes = [source.learn(turn, answer) for source in turn.sources]
        if self._has_remote:
            self._afterwards(turn, answer.now)
        return next((change for change in changes if change is not None), None)

    def end(self, turn: Turn, now: float) -> None:
        """Take note that the answer has ended: its body was read or closed, or there is none."""
        self._when_free(turn, now, self._end)

    def _end(self, turn: Turn, now: float) -> None:
        if turn.granted:
            turn.granted = False
            for source in turn.sources:
                source.end(turn, now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took, now that its real cost is known."""
        self._settle([source for source in self.sources if source in turn.sources], turn, cost, now)

    def _settle(self, sources: Iterable[Source], turn: Turn, cost: float, now: float) -> None:
        def correct(turn: Turn, now: float) -> None:
            for source in sources:
                source.settle(turn, cost, now)

        self._when_free(turn, now, correct)

    def _when_free(self, turn: Turn, now: float, work: Callable[[Turn, float], None]) -> None:
        """Do it now; or later, if a finalizer or a signal handler calls in the middle of the arithmetic."""
        if Queue.lock._is_owned():  # noqa: SLF001 - see `ask`
            if turn.sources:
                turn.sources[0].order.deferred.append(partial(work, turn, now))
            return
        with Queue.lock:
            work(turn, now)
        if self._has_remote:
            self._afterwards(turn, now)


def join_all(sources: tuple[Source, ...]) -> None:
    """Let the turns of these sources, and of all that are used with them, wait in one order."""
    with Queue.lock:
        order: Order = next((source.order for source in sources if source.order is not None), None) or Order()
        for source in sources:
            old: Order | None = source.order
            if old is order:
                continue
            if old is not None:
                order.absorb(old)
            for member in [source] if old is None else list(old.members):
                member.order = order
                order.members.add(member)


def catch_up(order: Order) -> None:
    """Do what was put off while the lock was held."""
    while order.deferred:
        order.deferred.popleft()()


def was_never_sent(error: BaseException | None) -> bool:
    """Whether a request that ended with this error did not reach the server."""
    return isinstance(error, alike(ClientSideRateLimitError, *NOT_SENT))
