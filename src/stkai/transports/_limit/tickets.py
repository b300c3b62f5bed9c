"""The queue that both limiters share: tickets on a virtual clock.

Permits are released at a rate and may run at most `burst` ahead of the requests that ask for them. A request takes
the next ticket; it may go when there is a permit for it and for everyone before it. All state is numbers under a lock
that is held for arithmetic only, so that threads, event loops and stacks can share one queue, and at a constant rate
every waiter sleeps exactly once.

Nobody who sleeps can be woken. Therefore the place of somebody who leaves goes to the next that comes, as long as it
is still ahead of time: those behind go when they were told to, and its permit is not lost. Without that, a crowd with
little patience would stop all traffic: the head of the queue would always be asleep, and never wait to the end.
"""

import heapq
import math
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Collection, Iterable
from operator import attrgetter

from ..._errors import ConfigurationError
from .limiter import Answer, RateChange, Turn

_LATENESS = 0.25
"""Seconds for which the permit of a waiter that wakes late is kept for it, beyond the burst."""

_OVERSLEPT = 5.0
"""Seconds after which a waiter that has not woken no longer holds up those behind it: its loop may be stuck."""

_ROUNDING = 1e-6
"""Permits; covers the rounding of a clock, so that a waiter that slept as told need not sleep again."""

TICK = 1e-6
"""Seconds; a shorter sleep might not move a clock that has run for years."""


_number = attrgetter("number")


class TicketQueue:
    """First come, first served at a rate, with a burst. Takes `now`, answers in seconds; never waits itself."""

    def __init__(
        self, max_requests: float, time_window: float, max_wait_time: float | None, methods: Iterable[str]
    ) -> None:
        self.max_requests = require_positive("max_requests", max_requests)
        self.time_window = require_positive("time_window", time_window)
        self.max_wait_time = (
            None
            if max_wait_time is None
            else require_positive("max_wait_time", max_wait_time, "; None waits as long as it takes")
        )
        self.methods: Collection[str] = _require_names(methods)
        self._rate = max_requests / time_window
        self._burst = 1.0
        self._spread = 0.0
        self._extras = 0.0
        self._credit = 0.0
        self._at = -math.inf
        self._paused_until = -math.inf
        self._number = 0
        self._released = 0.0
        self.forget_waiters()
        _queues.add(self)

    def forget_waiters(self) -> None:
        """Nobody waits and nobody holds the lock: so it is in a forked child, which has only the forking thread."""
        self._lock = threading.Lock()
        self._queue: list[Turn] = []
        self._vacant: list[tuple[int, float, float, float]] = []

    @property
    def rate(self) -> float:
        """Requests per second in force now."""
        return self._rate

    @property
    def burst(self) -> float:
        """Permits that may be taken at once after a quiet time."""
        return self._burst

    @property
    def waiting(self) -> int:
        """Requests that hold a ticket and have not gone yet."""
        return len(self._queue)

    def ask(self, turn: Turn, now: float) -> float:
        """Seconds until the turn comes, as far as can be known; 0.0 when its permit is taken."""
        if not turn.number:
            turn.number = self.take(now, turn.chance)
            if turn.number:
                turn.granted = True
                return 0.0
        wait = self.remaining(turn, now, turn.chance)
        turn.nap = self.nap(wait)
        turn.granted = not wait
        return wait

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or a permit that was not used."""
        if turn.granted:
            turn.granted = False
            with self._lock:
                self._advance(now)
                self._credit += 1 + turn.extra
        else:
            self.cancel(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Nothing: the rate is constant."""
        return None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Nothing: only requests are counted."""

    def take(self, now: float, chance: float = 0.5) -> int:
        """Take a permit that is there and for which nobody waits: the number of its ticket, or 0 if there is none."""
        if self._queue:
            return 0
        with self._lock:
            if self._queue:
                return 0
            self._advance(now)
            if self._credit < 1 - _ROUNDING or now < self._paused_until:
                return 0
            self._credit -= 1 + self._spread * (2 * chance - 1)
            self._number += 1
            return self._number

    def remaining(self, ticket: Turn, now: float, chance: float = 0.5) -> float:
        """Seconds until `ticket` may go. At 0.0 it goes: its permit is taken, and it has left the queue.

        A ticket that is not in the queue joins it: at the end if it is new, else in the place of its number. `chance`,
        in [0, 1), then decides on what it takes: known from the start, it does not wake those behind at a wrong time.
        """
        with self._lock:
            self._advance(now)
            place = self._join(ticket, chance)
            missing = place + 1 - self._credit
            if place and self._spread:
                # Those who left in between no longer count, though their extras are still in the sum.
                most = self._spread * place
                missing += max(-most, min(most, ticket.ahead - self._queue[0].ahead))
            paused = max(0.0, self._paused_until - now)
            if missing > _ROUNDING or paused > 0:
                missing = max(0.0, missing)
                ticket.due = self._released + missing
                return max(TICK, paused + self._time_for(missing))
            # In this order an interrupt in between leaves a permit too many to the others, not one too few.
            del self._queue[place]
            self._credit -= 1 + ticket.extra
            return 0.0

    def cancel(self, ticket: Turn, now: float) -> None:
        """Leave the queue without going; everyone behind moves up, or the next that comes takes the place."""
        with self._lock:
            self._advance(now)
            place = self._place(ticket)
            if self._queue[place : place + 1] == [ticket]:
                del self._queue[place]
                if place < len(self._queue):
                    heapq.heappush(self._vacant, (ticket.number, ticket.due, ticket.extra, ticket.ahead))

    def nap(self, wait: float) -> float:
        """How many of the `wait` seconds to sleep before asking again; all of them at a constant rate."""
        return wait

    def _join(self, ticket: Turn, chance: float) -> int:
        """The place of the ticket in the queue, counted from 0."""
        if self._queue and self._queue[0] is ticket and not self._vacant:
            return 0  # Whoever wakes in time is the first.
        while self._queue and self._queue[0].due + self._rate * _OVERSLEPT < self._released:
            # When it wakes, it comes back to the head.
            del self._queue[0]
        new = ticket.number == 0
        if new:
            self._number_anew(ticket, chance)
        number = ticket.number
        while self._vacant and self._vacant[0][0] < number:
            # Who asks moves up, so that these places are no longer free.
            heapq.heappop(self._vacant)
        place = self._place(ticket)
        if self._queue[place : place + 1] != [ticket]:
            if not new:
                ticket.extra = self._spread * (2 * chance - 1)
                behind = self._queue[place].ahead if place < len(self._queue) else self._extras
                ticket.ahead = behind - ticket.extra
            self._queue.insert(place, ticket)
        return place

    def _place(self, ticket: Turn) -> int:
        """Where the ticket is in the queue, or belongs."""
        queue, number = self._queue, ticket.number
        if not queue or queue[-1].number < number:
            return len(queue)
        place = bisect_left(queue, number, key=_number)
        while place < len(queue) and queue[place].number == number and queue[place] is not ticket:
            # Two attempts of one call side by side.
            place += 1
        return place

    def _number_anew(self, ticket: Turn, chance: float) -> None:
        """Give a new ticket the place of somebody who left, if one is free, or else the last."""
        while self._vacant:
            ticket.number, due, ticket.extra, ticket.ahead = heapq.heappop(self._vacant)
            if due > self._released - _ROUNDING:
                return
        self._number += 1
        ticket.number = self._number
        if self._spread:
            ticket.extra = self._spread * (2 * chance - 1)
            ticket.ahead = self._extras
            self._extras += ticket.extra

    def _advance(self, now: float) -> None:
        """Release what is due since the last look, up to the burst and what late wakers are owed."""
        start = self._at
        if now <= start:
            return
        self._at = now
        if start == -math.inf:
            self._credit = self._burst
            return
        unpaused = now - start
        if start < self._paused_until:
            unpaused = max(0.0, now - self._paused_until)
        released = self._release(now - start, unpaused)
        most = self._burst
        if self._queue:
            self._released += released
            most += min(len(self._queue), self._rate * _LATENESS)
        if released < most - self._credit:
            self._credit += released
        else:
            self._credit = most

    def _release(self, seconds: float, unpaused: float) -> float:
        """Permits released in the last `seconds`, of which `unpaused` were free of a pause."""
        return self._rate * unpaused

    def _time_for(self, permits: float) -> float:
        """Seconds until that many more permits have been released."""
        return permits / self._rate


_queues: "weakref.WeakSet[TicketQueue]" = weakref.WeakSet()


def _forget_all_waiters() -> None:
    for queue in _queues:
        queue.forget_waiters()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_waiters)


def require_positive(name: str, value: float, hint: str = "") -> float:
    """The value, if it is a positive and finite number.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        msg = f"{name} must be a positive, finite number, not {value!r}{hint}"
        raise ConfigurationError(msg)
    return value


def _require_names(methods: Iterable[str]) -> frozenset[str]:
    names = [] if isinstance(methods, str) or not isinstance(methods, Iterable) else list(methods)
    if not names or not all(isinstance(name, str) for name in names):
        msg = f"methods must be HTTP method names such as {{'POST', 'PUT'}}, not {methods!r}"
        raise ConfigurationError(msg)
    return frozenset(name.upper() for name in names)
