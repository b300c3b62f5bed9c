"""The queue that both limiters share: tickets on a virtual clock.

Permits are released at a rate and may run at most `burst` ahead of the requests that ask for them. A request takes
the next ticket; it may go when there is a permit for it and for everyone before it, and, where units of cost are
counted as well, its units and theirs. All state is numbers under a lock that is held for arithmetic only, so that
threads, event loops and stacks can share one queue, and at a constant rate every waiter sleeps exactly once.
"""

import math
import os
import threading
import weakref
from collections.abc import Collection, Iterable

from ..._errors import ClientSideRateLimitError, ConfigurationError
from ..._families import alike
from .._retry.policy import NOT_SENT
from .limiter import Answer, RateChange, Turn
from .order import NORMAL, Order
from .units import Units

_LATENESS = 0.25
"""Seconds for which the permit of a waiter that wakes late is kept for it, beyond the burst."""

_OVERSLEPT = 5.0
"""Seconds after which a waiter that has not woken no longer holds up those behind it: its loop may be stuck."""

_ROUNDING = 1e-6
"""Permits; covers the rounding of a clock, so that a waiter that slept as told need not sleep again."""

TICK = 1e-6
"""Seconds; a shorter sleep might not move a clock that has run for years."""


class TicketQueue:
    """First come, first served at a rate, with a burst. Takes `now`, answers in seconds; never waits itself."""

    def __init__(
        self,
        max_requests: float,
        time_window: float,
        max_wait_time: float | None,
        methods: Iterable[str],
        *,
        max_cost: float | None = None,
    ) -> None:
        self.max_requests = require_positive("max_requests", max_requests)
        self.time_window = require_positive("time_window", time_window)
        self.max_wait_time = (
            None
            if max_wait_time is None
            else require_positive("max_wait_time", max_wait_time, "; None waits as long as it takes")
        )
        self.methods: Collection[str] = _require_names(methods)
        self.max_cost = (
            None
            if max_cost is None
            else require_positive("max_cost", max_cost, "; None counts requests only")
        )
        self._units = None if max_cost is None else Units(max_cost, time_window)
        self._rate = max_requests / time_window
        self._burst = 1.0
        self._spread = 0.0
        self._credit = 0.0
        self._at = -math.inf
        self._paused_until = -math.inf
        self._order = Order()
        # The same list: whether anybody waits is asked for each request.
        self._queue = self._order.turns
        self.forget_waiters()
        _queues.add(self)

    def forget_waiters(self) -> None:
        """Nobody waits and nobody holds the lock: so it is in a forked child, which has only the forking thread."""
        self._lock = threading.Lock()
        self._order.forget()

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
            turn.number = self.take(now, turn.chance, turn.cost)
            if turn.number:
                turn.granted = True
                return 0.0
        wait = self.remaining(turn, now)
        turn.nap = min(turn.nap, self.nap(wait))
        turn.granted = not wait
        return wait

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or a permit that was not used."""
        if turn.granted:
            turn.granted = False
            with self._lock:
                self._advance(now)
                self._credit += 1 + turn.extra
                if self._units is not None:
                    self._units.give(turn.cost)
        else:
            self.cancel(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Take the units back where nothing was sent; the rate is constant."""
        if self._units is not None and isinstance(answer.error, alike(*NOT_SENT, ClientSideRateLimitError)):
            self.settle(turn, 0.0, answer.now)
        return None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took: it really cost that many."""
        if self._units is not None:
            with self._lock:
                self._advance(now)
                self._units.settle(turn.cost, cost)
                turn.cost = cost

    def take(self, now: float, chance: float = 0.5, cost: float = 1.0) -> int:
        """Take a permit that is there and for which nobody waits: the number of its ticket, or 0 if there is none."""
        if self._queue:
            return 0
        with self._lock:
            if self._queue:
                return 0
            self._advance(now)
            if self._credit < 1 - _ROUNDING or now < self._paused_until:
                return 0
            if self._units is not None:
                if self._units.missing(cost):
                    return 0
                self._units.level -= cost
            self._credit -= 1 + self._spread * (2 * chance - 1)
            order = self._order
            order.last += NORMAL
            return order.last

    def remaining(self, turn: Turn, now: float) -> float:
        """Seconds until `turn` may go. At 0.0 it goes: its permit is taken, and it has left the queue.

        A turn that is not in the queue joins it: at the end if it is new, else in the place of its number. Its `chance`
        then decides on what it takes: known from the start, it does not wake those behind at a wrong time.
        """
        with self._lock:
            self._advance(now)
            order, units = self._order, self._units
            while self._queue and self._queue[0].told + _OVERSLEPT < self._at:
                # When it wakes, it comes back to the head.
                order.drop(0)
            place = order.join(turn, self._at, self._spread)
            missing = place + 1 - self._credit
            if place and self._spread:
                missing += order.extras_before(place, self._spread)
            paused = max(0.0, self._paused_until - now)
            lacking = 0.0 if units is None else self._lacking(units, turn, place)
            if missing > _ROUNDING or paused > 0 or lacking:
                wait = max(TICK, paused + self._time_for(max(0.0, missing)))
                turn.nap = math.inf
                if lacking and units is not None:
                    for_units = lacking / units.rate
                    turn.nap = max(wait, units.nap(for_units, self._at - turn.since))
                    wait = max(wait, for_units)
                if turn.priority == "low":
                    # Those of normal priority before it may leave, and nobody wakes it then.
                    turn.nap = min(turn.nap, max(1 / self._rate, min(wait / 2, self._at - turn.since)))
                turn.told = self._at + wait
                return wait
            # In this order an interrupt in between leaves a permit too many to the others, not one too few.
            order.go(place)
            self._credit -= 1 + turn.extra
            if units is not None:
                units.level -= turn.cost
            return 0.0

    def _lacking(self, units: Units, turn: Turn, place: int) -> float:
        """Units that must still come before the turn in that place may go."""
        if place == 0:
            return units.missing(turn.cost)
        return units.missing(turn.cost, self._order.cost_before(place), self._order.last_cost_before(place))

    def cancel(self, turn: Turn, now: float) -> None:
        """Leave the queue without going; everyone behind moves up, or the next that comes takes the place."""
        with self._lock:
            self._advance(now)
            self._order.leave(turn)

    def nap(self, wait: float) -> float:
        """How many of the `wait` seconds to sleep before asking again; all of them at a constant rate."""
        return wait

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
        if self._units is not None:
            self._units.refill(now - start)
        if self._queue:
            late = _LATENESS if self._units is None else self._lateness(now)
            most += min(len(self._queue), self._rate * late)
        if released < most - self._credit:
            self._credit += released
        else:
            self._credit = most

    def _lateness(self, now: float) -> float:
        """Seconds by which the head of the queue is late, where it may have waited for units."""
        return max(0.0, min(_LATENESS, now - self._queue[0].told))

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
