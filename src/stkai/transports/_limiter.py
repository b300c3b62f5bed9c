"""The two transports that wait for their turn in a queue of tickets, and what they have in common."""

import httpx

from .._errors import TokenAcquisitionTimeoutError
from .._options import UNSET
from ._base import AsyncLayerTransport, Call, Context, LayerTransport
from ._tickets import TICK, Ticket, TicketQueue


class _Turn:
    """One request's wait for its permit: what the sync and the async transport have in common."""

    __slots__ = ("call", "context", "name", "queue", "start", "ticket")

    def __init__(self, name: str, queue: TicketQueue, context: Context, call: Call, start: float) -> None:
        self.name, self.queue, self.context, self.call, self.start = name, queue, context, call, start
        last = call.ticket
        self.ticket = Ticket(last[1] if last is not None and last[0] is queue else 0)

    def ask(self, now: float) -> float:
        """Seconds to sleep before asking again; 0.0 when the permit is there.

        Raises:
            TokenAcquisitionTimeoutError: the wait would be longer than allowed.
            DeadlineExceededError: the call has no time left.
        """
        self.call.check_deadline(now)
        waited = now - self.start
        wait = self.queue.remaining(self.ticket, now, self.context.random())
        if wait:
            limit = self._limit(now)
            if waited + wait > limit + TICK:
                raise TokenAcquisitionTimeoutError(waited, limit, required=waited + wait)
            return self.queue.nap(wait)
        if waited:
            self.call.record.queued += waited
            from .._events import Waited

            self.context.emit(Waited(layer=self.name, seconds=waited))
        return 0.0

    def leave(self, reason: BaseException, now: float) -> None:
        """Give the permit back."""
        self.queue.cancel(self.ticket, now)
        self.call.record.queued += now - self.start
        if isinstance(reason, TokenAcquisitionTimeoutError):
            from .._events import Rejected

            self.context.emit(Rejected(layer=self.name, wait=reason.required, limit=reason.max_wait_time))

    def _limit(self, now: float) -> float:
        """Seconds that the wait may take in all."""
        allowed = self.call.options.max_wait_time
        if allowed is UNSET:
            allowed = self.queue.max_wait_time
        left = now - self.start + self.call.time_left(now)
        return left if allowed is None else min(allowed, left)


class LimiterTransport(LayerTransport):
    """Base of the sync limiters: waits for a permit of `policy` before it sends."""

    name = "limiter"

    def __init__(
        self, inner: httpx.BaseTransport, policy: TicketQueue, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy

    def admit(self, call: Call) -> float:
        """Wait for a permit, and return the instant at which it was there; a wait that fails gives it back."""
        context, policy = self.context, self.policy
        now = context.clock.monotonic()
        number = policy.take(now, context.random())
        if not number:
            turn = _Turn(self.name, policy, context, call, now)
            try:
                while seconds := turn.ask(now):
                    context.clock.sleep(seconds)
                    now = context.clock.monotonic()
            except BaseException as reason:
                turn.leave(reason, context.clock.monotonic())
                raise
            number = turn.ticket.number
        call.ticket = (policy, number)
        return now


class AsyncLimiterTransport(AsyncLayerTransport):
    """Base of the async limiters: waits for a permit of `policy` before it sends."""

    name = "limiter"

    def __init__(
        self, inner: httpx.AsyncBaseTransport, policy: TicketQueue, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy

    async def admit(self, call: Call) -> float:
        """Wait for a permit, and return the instant at which it was there; a wait that fails gives it back."""
        context, policy = self.context, self.policy
        now = context.clock.monotonic()
        number = policy.take(now, context.random())
        if not number:
            turn = _Turn(self.name, policy, context, call, now)
            try:
                while seconds := turn.ask(now):
                    await context.clock.asleep(seconds)
                    now = context.clock.monotonic()
            except BaseException as reason:
                turn.leave(reason, context.clock.monotonic())
                raise
            number = turn.ticket.number
        call.ticket = (policy, number)
        return now
