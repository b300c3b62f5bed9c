"""Waits for a limiter's permit, sends, and lets the limiter learn from the answer."""

import logging
import math
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final

import httpx

from ..._errors import ConfigurationError, InvalidArgumentError, TokenAcquisitionTimeoutError
from ...events import RateChanged, Rejected, Waited
from .._base import AsyncLayerTransport, LayerBase, LayerTransport
from .._call import PACED, Attempt
from .._context import Context
from .._layer import Layer
from .._operations import Close, Flow, Operation, Sleep, Steps
from .._options import UNSET, check_cost
from .limiter import Answer, Limiter, Turn
from .metering import Meter
from .per_host import PerHost
from .tickets import TicketQueue

Cost = Callable[[httpx.Request], float]
"""Estimates what a request will cost, in units."""

Settle = Callable[[httpx.Response], float | None]
"""Reads from its answer what a call has cost, in units; None if that is unknown."""

_TICK: Final = 1e-6
"""Seconds; covers the rounding of a clock."""

_LONG: Final = 1.0
"""Seconds; a longer wait is worth a line in the log."""

_SIGNED_AT_ONCE: Final = 0.1
"""Seconds; signing a request takes longer only if a new token must be fetched first."""

_LONGEST: Final = 3600.0
"""Seconds; a longer wait is slept in pieces: every system limits the length of a sleep."""


class _LimitFlow(LayerBase):
    """A limiter layer, for both drivers."""

    name = "limiter"
    policy: Limiter | PerHost
    cost: Cost | None
    settle: Settle | None
    _meter: Meter | None

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        policy = self.policy
        limiter = policy.limiter_for(request.url) if isinstance(policy, PerHost) else policy
        if request.method not in limiter.methods:
            return (yield from self.forward(request, attempt))
        context = self.context
        clock = context.clock
        place = attempt.place
        turn = Turn(request)
        turn.chance, turn.priority = context.random(), attempt.call.options.priority
        if place is not None and place[0] is limiter:
            turn.number = place[1]
        counts_units = getattr(limiter, "max_cost", None) is not None
        if counts_units:
            turn.cost = self._cost_of(request, attempt)
        sent = clock.monotonic()
        wait, asked_again = limiter.ask(turn, sent), False
        while wait != 0:
            sent = yield from self._wait(limiter, turn, attempt, wait, sent)
            if attempt.signer is None:
                break
            try:
                request = yield from attempt.signer.signed_again(request, attempt)
            except BaseException:
                limiter.leave(turn, clock.monotonic())
                raise
            now = clock.monotonic()
            if asked_again or now - sent <= _SIGNED_AT_ONCE:
                break
            # Otherwise all requests that waited for the same token would leave now, whenever they got their permits.
            # Ask only once more: if every token takes long, the request might never be sent.
            limiter.leave(turn, now)
            asked_again, sent = True, now
            wait = limiter.ask(turn, now)
        attempt.ticket = (limiter, turn.number)
        try:
            response = yield from self.forward(request, attempt)
        except BaseException as error:
            answer = Answer(sent, clock.monotonic(), None, error, clock.utcnow, 0.5)
            limiter.learn(turn, answer)
            raise
        try:
            answer = Answer(sent, clock.monotonic(), response, None, clock.utcnow, turn.chance)
            change = limiter.learn(turn, answer)
            if turn.paced:
                response.extensions[PACED] = True
            if change is not None:
                event = RateChanged(call=attempt.info, old=change.old, new=change.new, reason=change.reason)
                context.emit(event)
            if counts_units and self._meter is not None:
                self._meter.watch(response, partial(self._settle, limiter, turn))
        except BaseException:  # The limiter and the listener may be user code.
            yield Close(response)
            raise
        return response

    def _wait(
        self, limiter: Limiter, turn: Turn, attempt: Attempt, wait: float | Operation, start: float
    ) -> Steps[float]:
        """Wait for the permit, and return the instant at which it was granted; a wait that fails gives it back."""
        context, call, record = self.context, attempt.call, attempt.record
        clock, now = context.clock, start
        allowed = call.options.max_wait_time
        if allowed is UNSET:
            allowed = limiter.max_wait_time
        # The attempts of a call share its allowance for waiting.
        limit = math.inf if allowed is None else allowed - record.queued
        refusal: Rejected | None = None
        try:
            while wait != 0:
                if isinstance(wait, Operation):
                    turn.call = turn.call or attempt.info
                    yield wait
                elif not isinstance(wait, int | float) or not wait > 0:
                    raise _no_answer(limiter, wait)
                else:
                    waited = now - start
                    left = call.time_left(now)
                    if wait > min(left, limit - waited) + _TICK:
                        if left < limit - waited:
                            refusal = Rejected(call=attempt.info, layer=self.name, wait=wait, limit=left)
                            raise attempt.no_time_for(wait, left)
                        waited += record.queued
                        error = TokenAcquisitionTimeoutError(waited, allowed or 0.0, required=waited + wait)
                        refusal = Rejected(
                            call=attempt.info,
                            layer=self.name,
                            wait=error.required,
                            limit=error.max_wait_time,
                        )
                        raise error
                    yield Sleep(min(wait, turn.nap, _LONGEST))
                now = clock.monotonic()
                wait = limiter.ask(turn, now)
        except BaseException:
            now = clock.monotonic()
            limiter.leave(turn, now)
            record.queued += now - start
            if refusal is not None:
                context.emit(refusal)
            raise
        waited = now - start
        record.queued += waited
        if waited and context.hears(logging.INFO if waited > _LONG else logging.DEBUG):
            context.emit(Waited(call=attempt.info, layer=self.name, seconds=waited))
        return now

    def describe(self) -> str:
        # The repr of a user's own limiter may be anything.
        own = f", {self.policy!r}" if isinstance(self.policy, TicketQueue | PerHost) else ""
        return own + super().describe()

    def _settle(self, limiter: Limiter, turn: Turn, cost: float) -> None:
        limiter.settle(turn, cost, self.context.clock.monotonic())

    def _cost_of(self, request: httpx.Request, attempt: Attempt) -> float:
        given = attempt.call.options.cost
        if given is not UNSET and given is not None:
            return given
        if self.cost is None:
            return 1.0
        try:
            return check_cost(self.cost(request))
        except Exception as error:
            msg = f"the stack's cost function gave no cost for {request.method} {request.url.host}: {error!r}"
            raise InvalidArgumentError(msg) from error

    def _take_policy(self, policy: Limiter | PerHost, cost: Cost | None, settle: Settle | None) -> None:
        self.policy = checked_limiter(policy)
        for name, function in (("cost", cost), ("settle", settle)):
            if function is not None and (not callable(function) or iscoroutinefunction(function)):
                msg = f"{name} must be a plain function, not {function!r}"
                raise ConfigurationError(msg)
        self.cost, self.settle = cost, settle
        self._meter = None if settle is None else Meter(settle)
        subscribe = getattr(policy, "subscribe", None)
        if subscribe is not None:
            subscribe(self)


class LimiterTransport(_LimitFlow, LayerTransport):
    """Waits for a permit of `policy` before it sends, and lets the policy learn from the answer.

    Args:
        inner: the next layer, or the wire.
        policy: any `Limiter`, or a `PerHost`. Share the object to share its state.
        context: the stack's clock, random numbers and listener.
        cost: estimates what a request will cost, in units; for a limiter with `max_cost`.
        settle: reads from the answer what the request has cost.

    Raises:
        ConfigurationError: `policy` is not a limiter.
        TokenAcquisitionTimeoutError: (per request) the wait would exceed `max_wait_time`; nothing was sent.
        DeadlineExceededError: (per request) the wait would exceed the call's deadline; nothing was sent.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        policy: Limiter | PerHost,
        *,
        context: Context | None = None,
        cost: Cost | None = None,
        settle: Settle | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self._take_policy(policy, cost, settle)


class AsyncLimiterTransport(_LimitFlow, AsyncLayerTransport):
    """The same as `LimiterTransport`, for async clients."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: Limiter | PerHost,
        *,
        context: Context | None = None,
        cost: Cost | None = None,
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


def _no_answer(limiter: Limiter, wait: object) -> ConfigurationError:
    """The error for a faulty limiter of the user's own; one that returns nothing would let everything pass."""
    return ConfigurationError(
        f"{type(limiter).__name__}.ask must return 0.0 to let a request go, the seconds that it must wait, or an"
        f" operation; not {wait!r}"
    )


def checked_limiter(policy: Any) -> Limiter | PerHost:
    """The policy, if it can be asked for permits.

    Raises:
        ConfigurationError: it cannot.
    """
    if isinstance(policy, type) or not isinstance(policy, Limiter | PerHost):
        msg = (
            "a limiter layer needs a stkai.TokenBucket, AimdLimiter or PerHost, or a stkai.Limiter of your own,"
            f" not {policy!r}"
        )
        raise ConfigurationError(msg)
    return policy


def limiter(policy: Limiter | PerHost, *, cost: Cost | None = None, settle: Settle | None = None) -> Layer:
    """The layer `limiter`, for a `StackBuilder`: takes any object that can be asked for permits."""
    return _layer("limiter", LimiterTransport, AsyncLimiterTransport, policy, cost, settle)


def token_bucket(
    policy: Limiter | PerHost, *, cost: Cost | None = None, settle: Settle | None = None
) -> Layer:
    """The layer `token_bucket`, for a `StackBuilder`."""
    return _layer("token_bucket", TokenBucketTransport, AsyncTokenBucketTransport, policy, cost, settle)


def adaptive(policy: Limiter | PerHost, *, cost: Cost | None = None, settle: Settle | None = None) -> Layer:
    """The layer `adaptive`, for a `StackBuilder`."""
    return _layer("adaptive", AdaptiveTransport, AsyncAdaptiveTransport, policy, cost, settle)


def _layer(
    name: str,
    sync: type[LimiterTransport],
    asynchronous: type[AsyncLimiterTransport],
    policy: Limiter | PerHost,
    cost: Cost | None,
    settle: Settle | None,
) -> Layer:
    policy = checked_limiter(policy)
    return Layer(
        name,
        partial(sync, policy=policy, cost=cost, settle=settle),
        partial(asynchronous, policy=policy, cost=cost, settle=settle),
        policy,
    )
