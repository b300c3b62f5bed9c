"""A limit on the number of requests in flight."""

import gc
import math
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final
from weakref import ref

from ..._checks import POSITIVE_COUNT, check_number, safe_repr
from .limiter import Turn
from .queue import Queue
from .queue_limiter import QueueLimiter
from .sources import TICK, Source

_FIRST_ESTIMATE: Final = 0.05  # Seconds that a request takes, until one has ended.
_SAMPLE_WEIGHT: Final = 0.1  # Weight of the latest request in that estimate.
_MIN_NAP: Final = 0.001  # Seconds.
# Seconds between searches for slots of closed event loops; also the shortest nap of a turn that can be woken.
_SEARCH_INTERVAL: Final = 1.0
# Seconds for which a free slot is reserved for the turn that was woken to take it.
_RESERVED_FOR: Final = 0.05
# Seconds for which no slot was taken or freed, after which responses that were dropped in cycles are looked for; a
# second time when these seconds have doubled, and so on. At first only young objects: all may be many millions.
_STALLED: Final = 5.0
_LONG_STALLED: Final = 20.0
# Turns to search for one that waits for a slot, if all wait for the same sources.
_SEARCH_LIMIT: Final = 30


class Slots(Source):
    """At most `most` requests at once: a slot is taken when a request is sent, and freed when its response ends.

    When a response will end is unknown, so the wait is a guess based on recent durations. Therefore a freed slot wakes
    the first turn that waits for one, which takes it and wakes the next turn if more are free. Sleeps that cannot be
    woken, such as those of a thread on a user's clock, end after the guessed time; by then, other turns may be awake.
    A slot is also freed when its turn is garbage-collected, since an interrupt may prevent the usual way; the callback
    of the weak reference is a method of a C type, which no interrupt can split. Layers and permits keep their turns
    until then. And it is freed when the event loop of its turn is closed, whose tasks will never free it.
    """

    is_exact = False
    wakes = True

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: set[ref[Turn] | Turn] = set()
        self._lost: deque[ref[Turn]] = deque()
        self._note_lost = self._lost.append
        self._mean = _FIRST_ESTIMATE
        self.freed_at, self._taken_at = 0.0, 0.0
        self._looked_at = self._collected_at = -math.inf
        self._woken: Turn | None = None
        # Whether a turn may wait for a slot. Thousands may wait for limits of their own, and leave together.
        self._is_wanted = False

    @property
    def busy(self) -> int:
        return len(self._taken) - len(self._lost)

    @property
    def limit(self) -> str:  # type: ignore[override]
        return f"{self.most} in flight"

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        while self._lost:
            self._taken.discard(self._lost.popleft())
        if self.busy + ahead >= self.most and now - self._looked_at >= _SEARCH_INTERVAL:
            self._looked_at = now
            self._taken = {taken for taken in self._taken if not _has_ended(taken)}
        if self.busy + ahead < self.most:
            first = self._woken
            if (
                first is None or not first.is_woken
                or turn.number <= first.number or now >= first.due_at + _RESERVED_FOR
            ):  # fmt: skip
                return 0.0
            turn.nap = min(turn.nap, _RESERVED_FOR)
            return TICK
        self._is_wanted = True
        # If requests take longer than recent ones did, check less and less often.
        idle = now - max(self.freed_at, turn.asked)
        each = max(self._mean, idle) / self.most
        shortest = _MIN_NAP if turn.wake is None else _SEARCH_INTERVAL
        turn.nap = min(turn.nap, max(shortest, each * (ahead or 0.5) / 2, idle / 4))
        return max(TICK, each * (self.busy + ahead - self.most + 1))

    def due_in(self, turn: Turn, wait: float) -> float:
        # It sleeps until it is woken for a slot; until then, others can use its permits of other sources.
        return wait if turn.wake is None else max(wait, turn.nap)

    def relieve(self, now: float) -> None:
        """Collect garbage: an SDK's stream is part of a cycle, and a program that waits collects none by itself."""
        idle = now - max(self.freed_at, self._taken_at)
        if idle >= _STALLED and now - self._collected_at >= idle / 2:
            self._collected_at = now
            gc.collect(1 if idle < _LONG_STALLED else 2)

    def take(self, turn: Turn, now: float) -> None:
        self._taken_at = now
        self._taken.add(turn if turn.is_by_hand else ref(turn, self._note_lost))
        if self.waiting:
            self.pass_on(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        self._taken.discard(turn if turn.is_by_hand else ref(turn))
        self.freed_at = now
        if self.waiting:
            self.pass_on(turn, now)

    def pass_on(self, turn: Turn, now: float, but: tuple[Any, ...] = ()) -> None:
        """Wake the first other turn that waits for a slot, if one is free; skip turns that are slow to wake up."""
        if turn is self._woken:
            self._woken = None
        if not self.waiting or self.busy >= self.most or not self._is_wanted:
            return
        is_mixed = self.order.is_mixed
        near = islice(self.turns, None if is_mixed else _SEARCH_LIMIT)
        others = [turn.held_by] if but else []  # Those behind it that need that, too, cannot overtake it.
        for other in self.in_turn(near, *others, but=turn):
            if not other.is_woken:
                self.order.woken.append(other)
            if not other.is_woken or other.due_at > now:  # It may have been woken only because it moved up.
                other.is_woken, other.due_at = True, now
                self._woken = other
            if now < other.due_at + _RESERVED_FOR:
                return
        self._is_wanted = not is_mixed or self in [other.held_by for other in self.turns]

    def end(self, turn: Turn, now: float) -> None:
        self._mean += _SAMPLE_WEIGHT * (max(0.0, now - turn.since) - self._mean)
        self.give_back(turn, now)

    def available(self, now: float, seconds: float) -> float:
        return self.most - self.busy + self.most * seconds / max(self._mean, seconds / 4, TICK)

    def forked(self) -> None:
        self._taken.clear()
        self._lost.clear()
        self._woken = None


def _has_ended(taken: "ref[Turn] | Turn") -> bool:
    """Whether the event loop of a slot's turn was closed."""
    turn = taken() if isinstance(taken, ref) else taken
    return turn is not None and turn.loop_has_ended()


class InFlight(QueueLimiter):
    """At most `n` requests in flight: from when they are sent until their answers have been read or closed.

    Args:
        n: the number of requests, at least 1.
        methods: HTTP methods that count; None for all.
        max_wait_time: seconds that a request may wait; None waits as long as necessary.

    Raises:
        ConfigurationError: `n` is not a whole number of at least 1.
    """

    def __init__(
        self, n: int, *, methods: Iterable[str] | None = None, max_wait_time: float | None = None
    ) -> None:
        self._slots = Slots(check_number("n", n, POSITIVE_COUNT))
        super().__init__(self._slots, methods=methods, max_wait_time=max_wait_time)

    @property
    def n(self) -> int:
        """How many requests may be in flight."""
        return self._slots.most

    @property
    def busy(self) -> int:
        """How many requests are in flight now."""
        with Queue.lock:  # Otherwise, a request that is sent and dropped meanwhile could count as -1.
            return self._slots.busy

    def update(self, *, n: int) -> None:
        """Change how many requests may be in flight; those that already are continue.

        Raises:
            ConfigurationError: `n` is not a whole number of at least 1; nothing has changed.
        """
        n, slots = check_number("n", n, POSITIVE_COUNT), self._slots
        with Queue.lock:
            slots.most = n
            # No slot was freed, so pass a dummy turn; a limiter has no clock, so pass the last known time.
            slots.pass_on(Turn(), slots.freed_at)
        slots.order.wake()

    @safe_repr
    def __repr__(self) -> str:
        return f"InFlight({self.n}{self._options()})"
