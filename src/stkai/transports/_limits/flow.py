"""Waits for a limiter's permit, sends, and lets the limiter learn from the answer."""

import logging
import math
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, cast

import httpx

from ..._errors import ConfigurationError, TokenAcquisitionTimeoutError
from ..._events import RateChanged, Rejected, Waited
from .._base import AsyncLayerTransport, LayerBase, LayerTransport
from .._body_end import BodyEnd, when_body_ends
from .._call import PACED, Attempt
from .._context import Context
from .._layer import Layer
from .._operations import Close, Flow, Operation, Steps
from .._options import UNSET
from .all_of import checked_limiter
from .limiter import Answer, Limiter, Turn
from .metering import Estimate, Meter, Settle
from .per_key import PerKey, subscribe
from .queue_limiter import Plan, QueueLimiter
from .waiting import TooLongError, Waiting

Limits = Any
"""A limiter, one per host or key, or a list of limiters that all have to let a request go."""

_TOO_MANY_REQUESTS: Final = 429

_LONG: Final = 1.0
"""Seconds; a longer wait is worth a line in the log."""

_SIGNED_AT_ONCE: Final = 0.1
"""Seconds; signing a request takes longer only if a new token must be fetched first."""

_WANTED: Final = (
    "a limiter layer needs a stkai.TokenBucket, AimdLimiter or PerHost, an InFlight, AllOf or PerKey, a stkai.Limiter"
    " of your own, or a list of limiters, not "
)


class _LimitFlow(LayerBase):
    """A limiter layer, for both drivers."""

    name = "limiter"
    policy: Limiter | PerKey
    _choose: Callable[[httpx.Request], Limiter] | None
    _meter: Meter

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        limiter: Any = self.policy if self._choose is None else self._choose(request)
        is_ours = isinstance(limiter, QueueLimiter) and not limiter.is_own
        plan = limiter.plan_for(request) if is_ours else _plan_of_own(limiter, request)
        if plan is None:
            return (yield from self.forward(request, attempt))
        clock, options, place = self.context.clock, attempt.call.options, attempt.place
        turn = Turn(request, chance=self.context.random(), priority=options.priority)
        if is_ours:
            turn.sources, turn.guests = plan.sources, plan.guests
        if place is not None and place[0] is limiter:
            turn.resume(cast(Any, place[1]))
        if plan.priced:
            self._meter.price(turn, plan, request, options.cost)
        sent = clock.monotonic()
        wait = limiter.ask(turn, sent)
        if wait != 0:
            request, sent = yield from self._wait(limiter, turn, plan, request, attempt, wait, sent)
        attempt.ticket = (limiter, cast(Any, turn))
        try:
            response = yield from self.forward(request, attempt)
        except BaseException as error:
            now = clock.monotonic()
            limiter.learn(turn, Answer(sent, now, None, error, clock.utcnow, 0.5))
            if plan.ends:
                limiter.end(turn, now)
            raise
        # While nothing can be learnt from a success, do without the answer, and without the limiter's lock.
        was_refused = response.status_code == _TOO_MANY_REQUESTS
        learns = was_refused or not is_ours or (plan.listens and limiter.listens(clock.monotonic()))
        if not learns and not plan.ends and not plan.priced:
            return response
        try:
            if learns:
                yield from self._learn(limiter, turn, attempt, response, sent)
            if plan.ends or (plan.priced and not was_refused):
                self._watch(limiter, turn, plan, request, response)
        except BaseException:  # The limiter and the listener may be user code.
            if plan.ends:
                limiter.end(turn, clock.monotonic())
            yield Close(response)
            raise
        return response

    def _learn(
        self, limiter: Limiter, turn: Turn, attempt: Attempt, response: httpx.Response, sent: float
    ) -> Steps[None]:
        clock = self.context.clock
        answer = Answer(sent, clock.monotonic(), response, None, clock.utcnow, turn.chance)
        change = limiter.learn(turn, answer)
        if turn.paced:
            response.extensions[PACED] = True
        if change is not None:
            event = RateChanged(call=attempt.info, old=change.old, new=change.new, reason=change.reason)
            self.context.emit(event)
        if turn.errand is not None:
            yield turn.errand

    def _watch(
        self, limiter: Any, turn: Turn, plan: Plan, request: httpx.Request, response: httpx.Response
    ) -> None:
        """Settle the call's cost, and tell the limiter, when the body has ended."""
        clock = self.context.clock
        bill = None
        if response.status_code != _TOO_MANY_REQUESTS:
            bill = self._meter.bill(turn, plan, request, response)
        if bill is None and not plan.ends:
            return

        def ended(how: BodyEnd) -> None:
            now = clock.monotonic()
            if plan.ends:
                limiter.end(turn, now)
            if bill is not None:
                bill.settle(how, now)

        when_body_ends(response, ended, None if bill is None else bill.add)

    def _wait(
        self,
        limiter: Limiter,
        turn: Turn,
        plan: Plan,
        request: httpx.Request,
        attempt: Attempt,
        wait: float | Operation,
        start: float,
    ) -> Steps[tuple[httpx.Request, float]]:
        """Wait for the permit; returns the request, signed, and the instant at which the permit was granted."""
        clock, asked_again = self.context.clock, False
        while True:
            sent = yield from self._stand_in_line(limiter, turn, plan, attempt, wait, start)
            if attempt.signer is None:
                return request, sent
            try:
                request = yield from attempt.signer.signed_again(request, attempt)
            except BaseException:
                limiter.leave(turn, clock.monotonic())
                raise
            now = clock.monotonic()
            if asked_again or now - sent <= _SIGNED_AT_ONCE:
                return request, sent
            # Otherwise all requests that waited for the same token would leave now, whenever they got their permits.
            # Ask only once more: if every token takes long, the request might never be sent.
            limiter.leave(turn, now)
            asked_again, start = True, now
            wait = limiter.ask(turn, now)
            if wait == 0:
                return request, now

    def _stand_in_line(
        self,
        limiter: Limiter,
        turn: Turn,
        plan: Plan,
        attempt: Attempt,
        wait: float | Operation,
        start: float,
    ) -> Steps[float]:
        context, call, record = self.context, attempt.call, attempt.record
        allowed = call.options.max_wait_time
        if allowed is UNSET:
            allowed = plan.max_wait_time
        # The attempts of a call share its allowance for waiting.
        limit = math.inf if allowed is None else allowed - record.queued
        deadline = math.inf if call.deadline is None else call.deadline
        turn.call = attempt.info
        waiting = Waiting(limiter, turn, context.clock, limit, deadline)
        before = record.queued
        try:
            sent = yield from waiting.steps(wait, start)
        except TooLongError as late:
            record.queued += late.waited
            if late.left < limit - late.waited:
                refusal = Rejected(call=attempt.info, layer=self.name, wait=late.wait, limit=late.left)
                context.emit(refusal)
                raise attempt.no_time_for(late.wait, late.left) from None
            waited = before + late.waited
            error = TokenAcquisitionTimeoutError(waited, allowed or 0.0, required=waited + late.wait)
            context.emit(
                Rejected(call=attempt.info, layer=self.name, wait=error.required, limit=error.max_wait_time)
            )
            raise error from None
        except BaseException:
            record.queued += waiting.now - start
            raise
        waited = sent - start
        record.queued += waited
        if waited and context.hears(logging.INFO if waited > _LONG else logging.DEBUG):
            limit_in_words = waiting.limit_in_words
            context.emit(Waited(call=attempt.info, layer=self.name, seconds=waited, limit=limit_in_words))
        return sent

    def describe(self) -> str:
        # The repr of a user's own limiter may be anything.
        own = f", {self.policy!r}" if isinstance(self.policy, QueueLimiter | PerKey) else ""
        return own + super().describe()

    def _take_policy(self, policy: Limits, cost: Estimate | None, settle: Settle | None) -> None:
        self.policy = checked_limiter(policy, _WANTED)
        self._choose = self.policy.limiter_for if isinstance(self.policy, PerKey) else None
        for name, function in (("cost", cost), ("settle", settle)):
            if function is not None and (not callable(function) or iscoroutinefunction(function)):
                msg = f"{name} must be a plain function, not {function!r}"
                raise ConfigurationError(msg)
        self._meter = Meter(cost, settle)
        subscribe(self.policy, self)


class LimiterTransport(_LimitFlow, LayerTransport):
    """Waits for a permit of `policy` before it sends, and lets the policy learn from the answer.

    Args:
        inner: the next layer, or the wire.
        policy: any `Limiter`, one per host or key, or a list of limiters. Share the object to share its state.
        context: the stack's clock, random numbers and listener.
        cost: estimates what a request will cost, in units; for a limiter with `max_cost` that has no `cost` of its own.
        settle: reads from the answer what the request has cost; for the same.

    Raises:
        ConfigurationError: `policy` is not a limiter.
        TokenAcquisitionTimeoutError: (per request) the wait would exceed `max_wait_time`; nothing was sent.
        DeadlineExceededError: (per request) the wait would exceed the call's deadline; nothing was sent.
        InvalidArgumentError: (per request) a limiter counts units, and there is no cost; nothing was sent.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        policy: Limits,
        *,
        context: Context | None = None,
        cost: Estimate | None = None,
        settle: Settle | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self._take_policy(policy, cost, settle)


class AsyncLimiterTransport(_LimitFlow, AsyncLayerTransport):
    """The same as `LimiterTransport`, for async clients."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: Limits,
        *,
        context: Context | None = None,
        cost: Estimate | None = None,
        settle: Settle | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self._take_policy(policy, cost, settle)


class TokenBucketTransport(LimiterTransport):
    """Waits for a permit of the bucket before it sends; otherwise like `LimiterTransport`."""

    name = "token_bucket"


class AsyncTokenBucketTransport(AsyncLimiterTransport):
    """Waits for a permit of the bucket before it sends; otherwise like `AsyncLimiterTransport`."""

    name = "token_bucket"


class AdaptiveTransport(LimiterTransport):
    """Waits for a permit of the adaptive limiter, sends, and lets the limiter learn from the answer.

    Otherwise like `LimiterTransport`.
    """

    name = "adaptive"


class AsyncAdaptiveTransport(AsyncLimiterTransport):
    """Waits for a permit of the adaptive limiter, sends, and lets the limiter learn from the answer.

    Otherwise like `AsyncLimiterTransport`.
    """

    name = "adaptive"


class _OwnPriced:
    """A limiter of the user's own that counts units of cost."""

    sources = ()

    def __init__(self, limiter: Any) -> None:
        self.max_cost, self.cost = limiter.max_cost, getattr(limiter, "cost", None)
        self.settle = limiter.settle


def _plan_of_own(limiter: Limiter, request: httpx.Request) -> Plan | None:
    """The plan of a limiter of the user's own, which must see every request and every answer."""
    if isinstance(limiter, QueueLimiter):
        plan = limiter.plan_for(request)
        return None if plan is None else plan._replace(ends=True)
    methods = limiter.methods
    if methods is not None and request.method not in methods:
        return None
    priced = () if getattr(limiter, "max_cost", None) is None else (_OwnPriced(limiter),)
    return Plan(priced=priced, ends=hasattr(limiter, "end"), max_wait_time=limiter.max_wait_time)


def limiter(policy: Limits, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `limiter`, for a `StackBuilder`: takes any object that can be asked for permits, or a list of them."""
    return _layer("limiter", LimiterTransport, AsyncLimiterTransport, policy, cost, settle)


def token_bucket(policy: Limits, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `token_bucket`, for a `StackBuilder`."""
    return _layer("token_bucket", TokenBucketTransport, AsyncTokenBucketTransport, policy, cost, settle)


def adaptive(policy: Limits, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `adaptive`, for a `StackBuilder`."""
    return _layer("adaptive", AdaptiveTransport, AsyncAdaptiveTransport, policy, cost, settle)


def _layer(
    name: str,
    sync: type[LimiterTransport],
    asynchronous: type[AsyncLimiterTransport],
    policy: Limits,
    cost: Estimate | None,
    settle: Settle | None,
) -> Layer:
    policy = checked_limiter(policy, _WANTED)
    return Layer(
        name,
        partial(sync, policy=policy, cost=cost, settle=settle),
        partial(asynchronous, policy=policy, cost=cost, settle=settle),
        policy,
    )
