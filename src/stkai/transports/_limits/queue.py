"""The queue of requests: which are admitted, and which wait.

A queue has one or more sources of permits. A turn is admitted when all of its sources have a permit for it, and takes
from all of them in one step; while it waits, it holds no permit. All state is numbers under one lock that is held for
arithmetic only, so that threads, event loops and stacks can share a queue.

Each turn knows when it is due, sleeps until then, and *claims* its permit from that instant on. A turn that asks gets a
permit only if no turn before it claims or will need it, so sleepers never lose permits to awake turns. A sleeper is
woken when a slot in flight is free, and when the turns before it leave, so that the queue does not stall.
"""

import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Final

from ..._process import IN_HANDLER, begin_in_each_process
from ..._secrets import StaysInProcess
from .._operations import Operation
from .limiter import Answer, RateChange, Turn, was_never_sent
from .sources import ASK_INTERVAL, MAX_OVERSLEEP, TICK, Source, require_own_shares
from .waiting_turns import MIN_GAIN, NORMAL_STEP, WaitingTurns

# Seconds before its time at which a sleeper begins to claim its permit; otherwise, awake turns would win ties.
_CLAIM_LEAD: Final = 0.0005

# Some waiters ask less often than every ASK_INTERVAL seconds. Beyond _FREQUENT_PLACES in a fast queue, where asking
# again rarely changes anything, turns sleep through waits of up to _QUIET_NAP seconds. Elsewhere, naps grow by a second
# for every _PLACES_PER_S places: 10,000 waiters ask about 3,300 times per second. Those that can be woken, and need not
# notice what the limiter learns, rest until _FREQUENT_PLACES or _QUIET_NAP seconds are left, or all of a short wait.
_FREQUENT_PLACES: Final = 200
_QUIET_NAP: Final = 4.0
_PLACES_PER_S: Final = 1000

# Sleepers whose permits an awake turn leaves alone; later ones wake up in time.
_MAX_SLEEPERS: Final = 100

# Returned for a turn that is admitted by all sources except custom limiters, which are asked next.
READY: Final = math.nan


class Queue(StaysInProcess):
    """First come, first served, over one or more sources of permits. Receives the time as an argument; never waits."""

    # One lock for all queues: `AllOf` may join queues that are in use, and take from all their sources in one step.
    lock: ClassVar[Any]

    def __init__(self, *sources: Source) -> None:
        self.sources = sources
        self.has_remote = any(source.is_remote for source in sources)
        join_all(sources)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a permit."""
        return max((source.waiting for source in self.sources), default=0)

    def ask(self, turn: Turn, now: float) -> float | Operation:  # noqa: PLR0912 - every call costs
        """0.0 if the turn is admitted, with its permits taken; otherwise the seconds it has to wait, or an operation.

        The caller asks again after them, or after `turn.nap` if that is earlier.
        """
        lock = Queue.lock
        if lock._is_owned():  # noqa: SLF001 - not public, but Condition uses it as well
            raise RuntimeError(IN_HANDLER)
        with lock:
            sources = turn.sources or self._sources_for(turn)
            order = sources[0].order
            if order.deferred:
                order.catch_up()
            number, turns = turn.number, order.turns
            if number and turn.not_before > now:
                turn.nap = turn.certain = math.inf
                return turn.not_before - now
            try:
                if turn.custom or (turns and (turns[0] is not turn or order.vacant)):
                    wait = self._stand_in_line(turn, now, order)
                else:  # No turn precedes it, as is usual for a turn that wakes on time.
                    wait = 0.0
                    for source in sources:
                        # Not `if`: CPython 3.12 and 3.13 jump back outside of `with`: interrupts would leave it locked.
                        wait = wait or source.when(turn, 0, now)
                    if wait:
                        wait = self._stand_in_line(turn, now, order)
                    else:
                        for source in sources:
                            source.take(turn, now)
                        if not number:
                            turn.number = order.last = order.last + NORMAL_STEP
                        elif turns:
                            order.admit(0, now)
                        turn.granted, turn.since = True, now
            except BaseException:  # An interrupt, perhaps between two counts that must agree.
                order.deferred.append(order.recover)
                raise
        if order.woken:
            order.wake()
        if self.has_remote:
            self._after_step(turn, now)
        return wait

    def _after_step(self, turn: Turn, now: float) -> None:
        for source in turn.sources:
            if source.is_remote:
                source.client.after_step(now)

    def _sources_for(self, turn: Turn) -> tuple[Source, ...]:
        turn.sources, turn.is_by_hand = self.sources, True
        return self.sources

    def _stand_in_line(self, turn: Turn, now: float, order: WaitingTurns) -> float | Operation:
        """The result of `ask` if other turns wait, or if there is no permit."""
        turn.is_woken = False
        place, turns = order.join(turn, now), order.turns
        while place and turns[0].due_at + MAX_OVERSLEEP < now:
            # It returns to the head of the queue when it wakes up.
            order.drop(0)
            place -= 1
        wait = self._has_to_wait(turn, place, now)
        if not wait and turn.custom and not turn.is_admitted:
            turn.due_at = now
            for source in turn.custom:
                source.reserve(turn)
            return READY
        if not wait:
            for source in turn.sources:
                source.take(turn, now)
            order.admit(place, now)
            turn.granted, turn.since = True, now
            return 0.0
        wait = self._schedule(turn, place, wait, now)
        if self.has_remote:
            for source in turn.sources:
                operation: Operation | None = source.call(turn, now) if source.is_remote else None
                if operation is not None:
                    return operation
        return wait

    def _has_to_wait(self, turn: Turn, place: int, now: float) -> float:
        """0.0 if there is a permit besides those that the turns before it claim now, or will need when they wake up."""
        turns, rank, due = turn.sources[0].order.turns, 0, now + _CLAIM_LEAD
        while rank < place and turns[rank].due_at <= due:
            rank += 1
        for source in turn.sources:  # Checked first: if thousands ask, most have to wait for these turns.
            if source.when(turn, source.count(rank) if rank else 0, now):
                return TICK
        is_mixed = rank < place and turn.sources[0].order.is_mixed
        for source in turn.sources:
            ahead = source.count(rank) if rank else 0
            if not source.is_exact:
                # A turn that waits for an answer to end may be due at any moment: it claims only what it waits for.
                more = sum(1 for _ in source.in_turn(source.turns[ahead : source.count(place)]))
            else:  # Turns behind a turn that a limit of its own holds up may be due.
                more = source.claims(ahead, source.count(place), due) if is_mixed else 0
            if more and source.when(turn, ahead + more, now):
                return TICK
        asleep = turns[rank : min(place, rank + _MAX_SLEEPERS)]
        for source in turn.sources if asleep else ():
            wait: float = source.until_spare(turn, source.count(rank), asleep, now)
            if wait:
                return wait
        return 0.0

    def _schedule(self, turn: Turn, place: int, wait: float, now: float) -> float:  # noqa: C901, PLR0912 - every wait costs
        """Record when a waiting turn is due and when it asks again; returns the seconds that it has to wait."""
        sources, before = turn.sources, turn.held_by
        first = turn.held_by = sources[0]
        turn.slack = turn.rest = exact = certain = longest = latest = held = 0.0
        turn.nap, may_be_sooner, is_mixed = math.inf, False, first.order.is_mixed
        for source in sources:
            ahead = place
            if is_mixed and (ahead := source.count(place)):
                ahead -= source.later_ones(ahead, sources, now)
            seconds = nap = least = source.when(turn, ahead, now)
            if turn.nap < math.inf:
                may_be_sooner, nap, turn.nap = True, turn.nap, math.inf
                least = source.least_wait(seconds, ahead, now)
            if seconds > longest:
                turn.held_by, longest, held = source, seconds, nap
            if source.is_exact:
                exact = seconds if seconds > exact else exact  # noqa: FURB136 - a call takes longer
                latest = nap if nap > latest else latest  # noqa: FURB136
                certain = least if least > certain else certain  # noqa: FURB136
        if may_be_sooner:
            turn.nap = max(latest, held)  # At least one source has no permit before then.
        exact = exact if exact > wait else wait  # noqa: FURB136
        wait = longest if longest > wait else wait  # noqa: FURB136
        if turn.moves_up:
            turn.moves_up = not is_mixed
            if turn.due_at - now - wait > MIN_GAIN:
                turn.moves_up = False
                first.order.move_up(turn, place + 1)
        turn.due_at = now + turn.held_by.due_in(turn, wait)
        if before is not None and before is not turn.held_by:
            before.pass_on(turn, now, sources)
        turn.certain = certain if may_be_sooner else math.inf
        turn.is_guess = may_be_sooner and exact <= TICK
        if turn.is_guess and wait <= TICK:
            # It claims its permit immediately, although it does not ask until the source expects one.
            wait = max(wait, turn.nap)
        turn.wakes_at = now + wait
        if wait + turn.slack > ASK_INTERVAL:  # A shorter sleep ends before these naps would.
            is_far, is_plain = place >= _FREQUENT_PLACES, turn.priority == "normal" and not self.has_remote
            if is_far and is_plain and turn.nap >= wait and not is_mixed:
                near = min(wait - _QUIET_NAP, wait * (1 - _FREQUENT_PLACES / place))
                turn.rest = wait if wait < 2 * _QUIET_NAP else near
            is_quiet = is_far and exact <= _QUIET_NAP
            turn.nap = min(turn.nap, _QUIET_NAP if is_quiet else max(ASK_INTERVAL, place / _PLACES_PER_S))
        if turn.priority == "low":  # Nothing wakes it when the normal turns before it leave.
            turn.nap = min(turn.nap, max(0.05, min(exact / 2, now - turn.asked)))
        return wait

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or a permit that was taken but not used."""
        self._when_free(turn, now, self._leave)

    def _leave(self, turn: Turn, now: float) -> None:
        if turn.granted:
            turn.granted = False
            for source in turn.sources:
                source.give_back(turn, now)
                source.wake_first()
        else:
            turn.sources[0].order.leave(turn, now)
            for source in turn.sources:
                source.pass_on(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Learn from the answer's head, or from the error; take the permit back if the request was never sent."""
        if answer.response is None and was_never_sent(answer.error):
            self._when_free(turn, answer.now, self._leave)
            return None
        with Queue.lock:
            changes = [source.learn(turn, answer) for source in turn.sources]
        if changes:  # The units of a refused request were returned.
            turn.sources[0].order.wake()
        if self.has_remote:
            self._after_step(turn, answer.now)
        return next((change for change in changes if change is not None), None)

    def end(self, turn: Turn, now: float) -> None:
        """Record that the answer has ended: its body was read or closed, or there is none."""
        self._when_free(turn, now, self._end)

    def _end(self, turn: Turn, now: float) -> None:
        if turn.granted:
            turn.granted = False
            for source in turn.sources:
                source.end(turn, now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took to its actual cost."""
        self._settle([source for source in self.sources if source in turn.sources], turn, cost, now)

    def _settle(self, sources: Iterable[Source], turn: Turn, cost: float, now: float) -> None:
        def correct(turn: Turn, now: float) -> None:
            for source in sources:
                source.settle(turn, cost, now)

        self._when_free(turn, now, correct)

    def _when_free(self, turn: Turn, now: float, work: Callable[[Turn, float], None]) -> None:
        """Run `work` now; or later, if a finalizer or a signal handler calls this while the lock is held."""
        if not turn.sources:  # It never asked.
            return
        if Queue.lock._is_owned():  # noqa: SLF001 - see `ask`
            turn.sources[0].order.deferred.append(partial(work, turn, now))
            return
        with Queue.lock:
            order: WaitingTurns = turn.sources[0].order
            if order.deferred:
                order.catch_up()
            try:
                work(turn, now)
            except BaseException:  # See `ask`.
                order.deferred.append(order.recover)
                raise
        if order.woken:
            order.wake()
        if self.has_remote:
            self._after_step(turn, now)


def _begin(queue: type[Queue]) -> None:
    queue.lock = threading.RLock()


begin_in_each_process(Queue, _begin)


def join_all(sources: tuple[Source, ...]) -> None:
    """Merge the waiting turns of these sources, and of all sources used with them, into one order."""
    require_own_shares(sources)
    with Queue.lock:
        orders = filter(None, [source.order for source in sources])
        # Into the largest: a limiter that is used with thousands of others, such as one per key, joins them one by one.
        order = max(orders, key=lambda each: len(each.members), default=None) or WaitingTurns()
        for source in sources:
            order.add_source(source)
