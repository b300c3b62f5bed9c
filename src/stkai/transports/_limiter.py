"""The queue that both limiters share: tickets on a virtual clock, and the two transports that wait for their turn.

Permits are released at a rate and may run at most `burst` ahead of the requests that ask for them. A request takes
the next ticket; it may go when there is a permit for it and for everyone before it. All state is numbers under a lock
that is held for arithmetic only, so that threads, event loops and stacks can share one queue, and at a constant rate
every waiter sleeps exactly once.
"""

import itertools
import math
import threading
from bisect import bisect_left, insort
from collections.abc import Iterable

import httpx

from .._errors import ConfigurationError, TokenAcquisitionTimeoutError
from .._events import Rejected, Waited
from .._options import UNSET
from ._base import AsyncLayerTransport, Call, Context, LayerTransport

_LATENESS = 0.25
"""Seconds for which the permit of a waiter that wakes late is kept for it, beyond the burst."""

_TOLERANCE = 1e-6
"""Permits; covers the rounding of a clock, so that a waiter that slept as told need not sleep again."""


class TicketQueue:
    """First come, first served at a rate, with a burst. Takes `now`, answers in seconds; never waits itself."""

    def __init__(
        self, max_requests: float, time_window: float, max_wait_time: float | None, methods: Iterable[str]
    ) -> None:
        self.max_requests = require_positive("max_requests", max_requests)
        self.time_window = require_positive("time_window", time_window)
        self.max_wait_time = (
            None if max_wait_time is None else require_positive("max_wait_time", max_wait_time)
        )
        if isinstance(methods, str):
            msg = f"methods must be a set of method names such as {{'POST'}}, not the string {methods!r}"
            raise ConfigurationError(msg)
        self.methods = frozenset(method.upper() for method in methods)
        self._lock = threading.Lock()
        self._queue: list[int] = []
        self._numbers = itertools.count()
        self._rate = max_requests / time_window
        self._burst = 1.0
        self._credit: float | None = None
        self._at = -math.inf
        self._paused_until = -math.inf

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

    def issue(self) -> int:
        """A new ticket, not yet in the queue."""
        return next(self._numbers)

    def reserve(self, now: float, ticket: int | None = None) -> int:
        """Join the queue with `ticket`, a new one if none is given, and return it.

        The place is that of the ticket's number: one that was issued long ago comes back at the head.
        """
        if ticket is None:
            ticket = self.issue()
        with self._lock:
            self._advance(now)
            insort(self._queue, ticket)
        return ticket

    def remaining(self, ticket: int, now: float, chance: float = 0.5) -> float:
        """Seconds until `ticket` may go. At 0.0 it goes: its permit is taken, and it has left the queue."""
        with self._lock:
            self._advance(now)
            place = bisect_left(self._queue, ticket)
            credit = self._credit or 0.0
            missing = place + 1 - credit
            paused = max(0.0, self._paused_until - now)
            if missing > _TOLERANCE or paused > 0:
                return paused + self._time_for(max(0.0, missing))
            self._credit = credit - self._cost(chance)
            del self._queue[place]
            return 0.0

    def cancel(self, ticket: int) -> None:
        """Leave the queue without going: the permit is for the next in line, and everyone behind moves up."""
        with self._lock:
            place = bisect_left(self._queue, ticket)
            if place < len(self._queue) and self._queue[place] == ticket:
                del self._queue[place]

    def nap(self, wait: float) -> float:
        """How many of the `wait` seconds to sleep before asking again; all of them at a constant rate."""
        return wait

    def _advance(self, now: float) -> None:
        """Release what is due since the last look, up to the burst and what late wakers are owed."""
        if self._credit is None:
            self._credit = self._burst
        elif now > self._at:
            released = self._release(now - self._at, now - min(now, max(self._at, self._paused_until)))
            owed = min(len(self._queue), self._rate * _LATENESS)
            self._credit = min(self._credit + released, self._burst + owed)
        else:
            return
        self._at = now

    def _release(self, seconds: float, unpaused: float) -> float:
        """Permits released in the last `seconds`, of which `unpaused` were free of a pause."""
        return self._rate * unpaused

    def _time_for(self, permits: float) -> float:
        """Seconds until that many more permits have been released."""
        return permits / self._rate

    def _cost(self, chance: float) -> float:
        """Permits that one request uses up."""
        return 1.0


def require_positive(name: str, value: float) -> float:
    """The value, if it is a positive and finite number.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        msg = f"{name} must be a positive, finite number, not {value!r}"
        raise ConfigurationError(msg)
    return value


class _Turn:
    """One request's wait for its permit: what the sync and the async transport have in common."""

    def __init__(self, name: str, queue: TicketQueue, context: Context, call: Call) -> None:
        self.name, self.queue, self.context, self.call = name, queue, context, call
        self.start = context.clock.monotonic()
        # The number comes first and joins inside the transport's try: an interrupt in between strands nobody.
        self.ticket = queue.issue() if call.ticket is None else call.ticket

    def join(self) -> float:
        """Join the queue; seconds to sleep before asking, 0.0 when the permit is there at once."""
        self.queue.reserve(self.start, self.ticket)
        return self._ask(self.start)

    def ask(self) -> float:
        """Seconds to sleep before asking again; 0.0 when the permit is there.

        Raises:
            TokenAcquisitionTimeoutError: the wait would be longer than allowed.
        """
        now = self.context.clock.monotonic()
        seconds = self._ask(now)
        if not seconds:
            self.call.record.queued += now - self.start
            self.context.emit(Waited(layer=self.name, seconds=now - self.start))
        return seconds

    def _ask(self, now: float) -> float:
        wait = self.queue.remaining(self.ticket, now, self.context.random())
        if not wait:
            return 0.0
        required, limit = now - self.start + wait, self._limit(now)
        if required > limit:
            raise TokenAcquisitionTimeoutError(now - self.start, limit, required=required)
        return self.queue.nap(wait)

    def _limit(self, now: float) -> float:
        allowed = self.queue.max_wait_time
        if self.call.options.max_wait_time is not UNSET:
            allowed = self.call.options.max_wait_time
        left = now - self.start + self.call.time_left(now)
        return left if allowed is None else min(allowed, left)

    def leave(self, reason: BaseException) -> None:
        """Give the permit back."""
        self.queue.cancel(self.ticket)
        self.call.record.queued += self.context.clock.monotonic() - self.start
        if isinstance(reason, TokenAcquisitionTimeoutError):
            self.context.emit(Rejected(layer=self.name, wait=reason.required, limit=reason.max_wait_time))


class LimiterTransport(LayerTransport):
    """Base of the sync limiters: waits for a permit of `policy` before it sends."""

    name = "limiter"

    def __init__(
        self, inner: httpx.BaseTransport, policy: TicketQueue, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy

    def admit(self, call: Call) -> int:
        """Wait for a permit and return its ticket; a wait that fails gives it back."""
        turn = _Turn(self.name, self.policy, self.context, call)
        try:
            seconds = turn.join()
            while seconds:
                self.context.clock.sleep(seconds)
                seconds = turn.ask()
        except BaseException as reason:
            turn.leave(reason)
            raise
        return turn.ticket


class AsyncLimiterTransport(AsyncLayerTransport):
    """Base of the async limiters: waits for a permit of `policy` before it sends."""

    name = "limiter"

    def __init__(
        self, inner: httpx.AsyncBaseTransport, policy: TicketQueue, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy

    async def admit(self, call: Call) -> int:
        """Wait for a permit and return its ticket; a wait that fails gives it back."""
        turn = _Turn(self.name, self.policy, self.context, call)
        try:
            seconds = turn.join()
            while seconds:
                await self.context.clock.asleep(seconds)
                seconds = turn.ask()
        except BaseException as reason:
            turn.leave(reason)
            raise
        return turn.ticket
