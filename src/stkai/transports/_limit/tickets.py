"""The queue that both limiters use: tickets on a virtual clock.

Permits are released at a rate and may run at most `burst` ahead of the requests that ask for them. A request takes
the next ticket; it may go when there is a permit for it and for everyone before it, and, if units of cost are
counted as well, enough units too. All state is numbers under a lock that is held for arithmetic only, so threads,
event loops and stacks can share one queue, and while the rate is constant every waiter sleeps exactly once.
"""

import math
import os
import threading
import weakref
from collections.abc import Collection, Iterable
from typing import Any

import httpx

from ..._errors import ClientSideRateLimitError, ConfigurationError
from ..._families import alike
from .._retry.policy import NOT_SENT
from .cost_headers import read_cost_limit
from .limiter import Answer, RateChange, Turn
from .order import NORMAL, Order
from .units import Units

_LATENESS = 0.25
"""Seconds, beyond the burst, for which the permit of a waiter that wakes late is kept for it."""

_OVERSLEPT = 5.0
"""Seconds after which a waiter that has not woken stops holding up those behind it: its loop may be stuck."""

_ROUNDING = 1e-6
"""Permits; covers the clock's rounding, so that a waiter that slept as told need not sleep again."""

_WHOLE = 1 - _ROUNDING

_NEVER = -math.inf

TICK = 1e-6
"""Seconds; a shorter sleep might not move a clock that has run for years."""


class TicketQueue:
    """First come, first served at a rate, with a burst. Takes `now` and answers in seconds; never waits itself."""

    def __init__(
        self,
        max_requests: float,
        time_window: float,
        max_wait_time: float | None,
        methods: Iterable[str],
        *,
        max_cost: float | None = None,
    ) -> None:
        self.max_requests: float | None = require_positive("max_requests", max_requests)
        self.time_window: float | None = require_positive("time_window", time_window)
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
        self._at = _NEVER
        self._paused_until = _NEVER
        self._order = Order()
        # The same list object: every request asks whether anybody waits.
        self._queue = self._order.turns
        self.forget_waiters()
        _queues.add(self)

    def forget_waiters(self) -> None:
        """Drop all waiters and renew the lock, in a forked child: only the forking thread exists there."""
        self._lock: Any = threading.RLock()
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
        """Seconds until the turn comes, as far as is known; 0.0 when its permit is taken."""
        if self.is_interrupted():
            turn.granted, turn.since = True, now
            self._credit -= 1
            return 0.0
        if not turn.number and (number := self.take(now, turn.chance, turn.cost)):
            turn.number, turn.granted, turn.since = number, True, now
            return 0.0
        wait = self.remaining(turn, now)
        if wait:
            turn.nap = min(turn.nap, self.nap(wait))
            turn.granted = False
        else:
            turn.granted, turn.since = True, now
        return wait

    def is_interrupted(self) -> bool:
        """Whether a signal handler asks that interrupted this thread in the middle of this queue's arithmetic.

        It cannot wait for the lock, which its own thread holds, and cannot rely on the numbers. So it goes at once, and
        those who come after pay for the permit.
        """
        owned: bool = self._lock._is_owned()  # noqa: SLF001 - no public method tells; Condition uses it as well
        return owned

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or an unused permit.

        A permit is lost if it was unused for as long as the whole burst takes to come back: many that were kept for so
        long, as by requests that waited for one token, would otherwise be used at once.
        """
        if turn.granted:
            turn.granted = False
            with self._lock:
                self._advance(now)
                if (now - turn.since) * self._rate < self._burst:
                    self._credit += 1 + turn.extra
                self._count(turn.since, -1.0)
                if self._units is not None:
                    self._units.give(turn.cost)
        else:
            self.cancel(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Take the units back if nothing was sent; the rate is constant."""
        if self._units is not None and isinstance(answer.error, alike(*NOT_SENT, ClientSideRateLimitError)):
            self._refund(turn, answer.now)
        return None

    def _refund(self, turn: Turn, now: float) -> None:
        """Give back the units of a request that was not sent."""
        self.settle(turn, 0.0, now)

    def hear_costs(self, headers: httpx.Headers, now: float) -> None:
        """Adjust the units to what a server says about its quota of tokens; `max_cost` stays the upper limit."""
        reading = None if self._units is None else read_cost_limit(headers)
        if self._units is not None and reading is not None:
            with self._lock:
                self._advance(now)
                self._units.hear(*reading)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took, now that its real cost is known."""
        if self._units is not None:
            with self._lock:
                self._advance(now)
                cost = self._units.believed(turn.cost, cost)
                self._units.settle(turn.cost, cost)
                turn.cost = cost

    def take(self, now: float, chance: float = 0.5, cost: float = 1.0) -> int:
        """Take a free permit that nobody waits for, and return its ticket number, or 0 if there is none."""
        with self._lock:
            if self._queue:
                return 0
            self._advance(now)
            if self._credit < _WHOLE or now < self._paused_until:
                return 0
            if self._units is not None:
                if self._units.missing(cost):
                    return 0
                self._units.level -= cost
            self._credit -= 1.0 + self._spread * (2.0 * chance - 1.0)
            self._count(now)
            order = self._order
            order.last += NORMAL
            return order.last

    def remaining(self, turn: Turn, now: float) -> float:
        """Seconds until `turn` may go. At 0.0 it goes: its permit is taken, and it has left the queue.

        A turn that is not in the queue joins it: at the end if it is new, otherwise at its number. Its `chance` decides
        what it takes, once: those behind are never woken at a wrong time.
        """
        with self._lock:
            self._advance(now)
            order, units = self._order, self._units
            while self._queue and self._queue[0].told + _OVERSLEPT < self._at:
                # When it wakes, it returns to the head.
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
                    # The normal-priority turns before it may leave, and then nobody would wake it.
                    turn.nap = min(turn.nap, max(1 / self._rate, min(wait / 2, self._at - turn.since)))
                turn.told = self._at + wait
                return wait
            # In this order, an interrupt in between gives the others one permit too many, not one too few.
            order.go(place)
            self._credit -= 1 + turn.extra
            self._count(now)
            if units is not None:
                units.level -= turn.cost
            return 0.0

    def _lacking(self, units: Units, turn: Turn, place: int) -> float:
        """Units that must still arrive before the turn in that place may go."""
        if place == 0:
            return units.missing(turn.cost)
        return units.missing(turn.cost, self._order.cost_before(place), self._order.last_cost_before(place))

    def cancel(self, turn: Turn, now: float) -> None:
        """Leave the queue without going; everyone behind moves up, or the next that comes takes the place."""
        with self._lock:
            self._advance(now)
            self._order.leave(turn)

    def nap(self, wait: float) -> float:
        """How many of the `wait` seconds to sleep before asking again; all of them while the rate is constant."""
        return wait

    def _count(self, sent: float, count: float = 1.0) -> None:
        """Note that a permit was taken at `sent`, or given back with -1. Called with the lock held."""

    def _advance(self, now: float) -> None:
        """Release what is due since the last time, up to the burst plus what late wakers are owed."""
        start = self._at
        if now <= start:
            return
        self._at = now
        if start == _NEVER:
            self._credit = self._burst
            return
        seconds = unpaused = now - start
        if start < self._paused_until:
            unpaused = max(0.0, now - self._paused_until)
        released = self._release(seconds, unpaused)
        most = self._burst
        if self._units is not None:
            self._units.refill(seconds)
        if self._queue:
            late = _LATENESS if self._units is None else self._lateness(now)
            most += min(len(self._queue), self._rate * late)
        if released < most - self._credit:
            self._credit += released
        else:
            self._credit = most

    def _lateness(self, now: float) -> float:
        """Seconds by which the head of the queue is late, if it may have waited for units."""
        return max(0.0, min(_LATENESS, now - self._queue[0].told))

    def _release(self, seconds: float, unpaused: float) -> float:
        """Permits released in the last `seconds`, of which `unpaused` were outside a pause."""
        return self._rate * unpaused

    def _time_for(self, permits: float) -> float:
        """Seconds until that many more permits are released."""
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
