"""The two transports that wait for their turn in a queue of tickets, and what they have in common."""

import httpx

from ..._errors import TokenAcquisitionTimeoutError
from ..._options import UNSET
from .._base import AsyncLayerTransport, Call, Context, LayerTransport
from .tickets import TICK, Ticket, TicketQueue


class _Turn(Ticket):
    """One request's wait for its permit: what the sync and the async transport have in common."""

    __slots__ = ("call", "layer", "limit", "start")

    def __init__(self, layer: "LimiterTransport | AsyncLimiterTransport", call: Call, start: float) -> None:
        last = call.ticket
        super().__init__(last[1] if last is not None and last[0] is layer.policy else 0)
        self.layer, self.call, self.start = layer, call, start
        allowed = call.options.max_wait_time
        if allowed is UNSET:
            allowed = layer.policy.max_wait_time
        left = call.time_left(start)
        self.limit = left if allowed is None or left < allowed else allowed

    def ask(self, now: float) -> float:
        """Seconds to sleep before asking again; 0.0 when the permit is there.

        Raises:
            TokenAcquisitionTimeoutError: the wait would be longer than allowed.
            DeadlineExceededError: the call has no time left.
        """
        if self.call.deadline is not None:
            self.call.check_deadline(now)
        policy, context, waited = self.layer.policy, self.layer.context, now - self.start
        wait = policy.remaining(self, now, context.random())
        if wait:
            if waited + wait > self.limit + TICK:
                raise TokenAcquisitionTimeoutError(waited, self.limit, required=waited + wait)
            return policy.nap(wait)
        if waited:
            self.call.record.queued += waited
            if context.hears_details:
                from ..._events import Waited

                context.emit(Waited(layer=self.layer.name, seconds=waited))
        return 0.0

    def leave(self, reason: BaseException, now: float) -> None:
        """Give the permit back."""
        self.layer.policy.cancel(self, now)
        self.call.record.queued += now - self.start
        if isinstance(reason, TokenAcquisitionTimeoutError):
            from ..._events import Rejected

            event = Rejected(layer=self.layer.name, wait=reason.required, limit=reason.max_wait_time)
            self.layer.context.emit(event)


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
            turn = _Turn(self, call, now)
            try:
                while seconds := turn.ask(now):
                    context.clock.sleep(seconds)
                    now = context.clock.monotonic()
            except BaseException as reason:
                turn.leave(reason, context.clock.monotonic())
                raise
            number = turn.number
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
            turn = _Turn(self, call, now)
            try:
                while seconds := turn.ask(now):
                    await context.clock.asleep(seconds)
                    now = context.clock.monotonic()
            except BaseException as reason:
                turn.leave(reason, context.clock.monotonic())
                raise
            number = turn.number
        call.ticket = (policy, number)
        return now
