"""The limiter layer: waits for a permit, sends the request, and passes the answer to the limiter."""

from functools import partial
from typing import Any, Final

import httpx

from ..._checks import is_async
from ..._errors import ConfigurationError
from ..._event_loops import loop_has_ended
from ..._headers import copy_request
from ...events import RateChanged
from .._body_end import BodyEnd, when_body_ends
from .._call import RESERVED, Attempt, SignatureExpired
from .._context import Context
from .._layer_transport import AsyncLayerTransport, LayerBase, LayerTransport
from .._operations import Close, Flow, Run, Send, Steps
from .._options import NO_OPTIONS
from .._recipe import Layer, recipe
from .all_of import checked_limiter, plan_of
from .limiter import TOO_MANY_REQUESTS, Answer, Chooser, Limiter, Plan, Turn, log_failure, notify, subscribe
from .metering import Bill, Estimate, Meter, Settle
from .permit import wait_for_permit
from .queue_limiter import QueueLimiter, is_ours

# A limiter, one per host or key, or a list of limiters that all have to admit a request.
AnyLimiter = Any

_EXPECTED: Final = (
    "a limiter layer needs a stkai.TokenBucket, AimdLimiter or PerHost, an InFlight, AllOf or PerKey, a stkai.Limiter"
    " of your own, or a list of limiters, not "
)


class _LimitFlow(LayerBase):
    """A limiter layer, for both drivers."""

    name = "limiter"
    policy: Limiter | Chooser

    def __init__(
        self,
        inner: Any,
        policy: AnyLimiter,
        *,
        context: Context | None = None,
        cost: Estimate | None = None,
        settle: Settle | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = _checked(policy)
        self._choose = self.policy.limiter_for if isinstance(self.policy, Chooser) else None
        self._plan = self.policy.plan_for_all if is_ours(self.policy) else None
        for name, function in (("cost", cost), ("settle", settle)):
            if function is not None and (not callable(function) or is_async(function)):
                msg = f"{name} must be a plain function, not {function!r}"
                raise ConfigurationError(msg)
        self._meter = Meter(cost, settle)
        subscribe(self.policy, self)

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        limiter: Any = self.policy
        plan = self._plan
        if plan is None:
            if self._choose is not None:
                limiter = self._choose(request)
            plan = plan_of(limiter, request)
            if plan is None:
                return (yield from self._onward(request, attempt))
        context = self.context
        chance = 0.5 if plan.listens is None else context.random()
        # All arguments, by position: CPython creates the object faster.
        turn = Turn(request, 0, chance, 1.0, "normal", plan.sources)
        if attempt.options is not NO_OPTIONS or attempt.place is not None or not plan.is_plain:
            self._prepare(turn, limiter, plan, request, attempt)
        sent = context.now()
        try:
            wait = limiter.ask(turn, sent)
            if wait != 0.0:
                reserved = request.extensions.get(RESERVED)  # By a limiter layer further outside.
                sent = yield from wait_for_permit(
                    context, self.name, limiter, turn, plan, attempt, wait, sent, reserved=reserved
                )
        except BaseException:  # An interrupt, a wait that takes too long, or a limiter of the user's own.
            notify(limiter, "leave", turn, context.now())
            raise
        if self.full_pools:
            request, sent = yield from self._connected(limiter, turn, plan, attempt, request, sent)
        attempt.place = (limiter, turn)
        try:
            if self._sends and not attempt.is_observed:  # The same as `forward`, without a generator.
                response: httpx.Response = yield Send(self._inner, request, attempt)
            else:
                response = yield from self._onward(request, attempt)
        except BaseException as error:
            for loan in request.extensions.get(RESERVED, ()):  # A layer further inside did not send it.
                loan.unused()
            self._handle_error(limiter, turn, plan, error, sent)
            raise
        handles = plan.handles
        # While a success teaches nothing, create no answer and do not take the limiter's lock.
        if response.status_code == TOO_MANY_REQUESTS or (handles is not None and handles(sent)):
            yield from self._handle_answer(limiter, turn, plan, attempt, response, sent)
        return response

    def _connected(
        self, limiter: Any, turn: Turn, plan: Plan, attempt: Attempt, request: httpx.Request, sent: float
    ) -> Steps[tuple[httpx.Request, float]]:
        """Return the permit and wait for a connection: held meanwhile, it would be used late, together with later ones.

        Returns the request with its connection, and when it got its permit. If it waits long for the permit, others may
        use the connection in the meantime. It keeps its place in the limiter's queue, and is the next to get a
        connection shortly before its permit is due.
        """
        if request.extensions.get(RESERVED):
            return request, sent
        context, priority, reserved = self.context, str(turn.priority), list[Any]()
        wait_for = partial(wait_for_permit, context, self.name, limiter, turn, plan, attempt)
        again = partial(self._reserve, reserved, request, "first")
        while self.full_pools:
            notify(limiter, "leave", turn, context.now())
            yield from self._reserve(reserved, request, priority)
            priority = "first"
            try:
                start = context.now()
                sent = yield from wait_for(limiter.ask(turn, start), start, reserved=reserved, again=again)
                if reserved:
                    extensions = {**request.extensions, RESERVED: reserved}
                    return copy_request(request, extensions=extensions), sent
            except BaseException:
                for loan in reserved:
                    loan.unused()
                notify(limiter, "leave", turn, context.now())
                raise
        return request, sent

    def _reserve(self, reserved: list[Any], request: httpx.Request, priority: str) -> Steps[None]:
        """Wait for a connection, and add it to `reserved`."""
        work = partial(self.reserve_connection, request, priority)
        reserved.append((yield Run(work, work)))

    def _prepare(
        self, turn: Turn, limiter: Any, plan: Plan, request: httpx.Request, attempt: Attempt
    ) -> None:
        """Set what few turns need: low priority, custom limiters, the place of an earlier attempt, costs."""
        options, place = attempt.options, attempt.place
        if options.priority == "low":
            turn.priority = "low"
        if plan.custom:
            turn.custom, turn.call = plan.custom, attempt.info
        if place is not None and place[0] is limiter:
            turn.resume(place[1])
        if (plan.ends or plan.custom) and self._kind is httpx.AsyncBaseTransport:
            turn.loop_has_ended = loop_has_ended()
        if plan.priced:
            self._meter.price(turn, plan, request, options.cost)

    def _handle_error(self, limiter: Any, turn: Turn, plan: Plan, error: BaseException, sent: float) -> None:
        now = self.context.now()
        if isinstance(error, SignatureExpired):  # An inner limiter has not admitted it.
            notify(limiter, "leave", turn, now)
            return
        try:
            notify(limiter, "learn", turn, Answer(sent, now, None, error, self.context.clock.utcnow, 0.5))
        finally:
            self._handle_end(limiter, turn, plan)

    def _handle_answer(
        self, limiter: Any, turn: Turn, plan: Plan, attempt: Attempt, response: httpx.Response, sent: float
    ) -> Steps[None]:
        """Pass the answer to the limiter; when the body has ended, settle the cost and notify the limiter."""
        context, is_refused = self.context, response.status_code == TOO_MANY_REQUESTS
        try:
            if is_refused or (plan.listens is not None and plan.listens(sent)):
                answer = Answer(sent, context.now(), response, None, context.clock.utcnow, turn.chance)
                try:
                    change = limiter.learn(turn, answer)
                    if change is not None:
                        context.emit(RateChanged(call=attempt.info, **change._asdict()))
                except Exception as error:  # noqa: BLE001 - user code
                    log_failure(limiter, error)
                attempt.paced = attempt.paced or turn.paced
                attempt.excused = attempt.excused or turn.excused
                if turn.errand is not None:
                    yield turn.errand
            bill = None if is_refused else self._meter.bill(turn, plan, attempt.request, response)
            if plan.ends or bill is not None:
                ended = partial(self._handle_end, limiter, turn, plan, bill)
                when_body_ends(response, ended, None if bill is None else bill.kept.add)
        except BaseException:  # An interrupt while the limiter or the listener was being called.
            self._handle_end(limiter, turn, plan)
            yield Close(response)
            raise

    def _handle_end(
        self, limiter: Any, turn: Turn, plan: Plan, bill: Bill | None = None, how: BodyEnd = BodyEnd.CLOSED
    ) -> None:
        now = self.context.now()
        if plan.ends:
            notify(limiter, "end", turn, now)
        if bill is not None:
            bill.settle(how, now)

    def describe(self) -> str:
        # The repr of a user's own limiter may be anything.
        own = f", {self.policy!r}" if isinstance(self.policy, QueueLimiter | Chooser) else ""
        return own + super().describe()


class LimiterTransport(_LimitFlow, LayerTransport):
    """Waits for a permit from `policy` before it sends, and passes the answer to the policy.

    Args:
        inner: the next layer, or the wire.
        policy: any `Limiter`, one per host or key, or a list of limiters. Share the object to share its state.
        context: the stack's clock, random numbers and listener.
        cost: estimates the cost of a request, in units; for limiters with `max_cost` that have no `cost` themselves.
        settle: reads the actual cost from the answer, for the same limiters.

    Raises:
        ConfigurationError: `policy` is not a limiter.
        TokenAcquisitionTimeoutError: (per request) the wait would exceed `max_wait_time`; the request was not sent.
        DeadlineExceededError: (per request) the wait would exceed the call's deadline; the request was not sent.
        InvalidArgumentError: (per request) a limiter counts units, but the request has no cost; nothing was sent.
    """


class AsyncLimiterTransport(_LimitFlow, AsyncLayerTransport):
    """The same as `LimiterTransport`, for async clients."""


class TokenBucketTransport(LimiterTransport):
    """Waits for a permit from the bucket before it sends; otherwise like `LimiterTransport`."""

    name = "token_bucket"


class AsyncTokenBucketTransport(AsyncLimiterTransport):
    """Waits for a permit from the bucket before it sends; otherwise like `AsyncLimiterTransport`."""

    name = "token_bucket"


class AdaptiveTransport(LimiterTransport):
    """Waits for a permit from the adaptive limiter before it sends; otherwise like `LimiterTransport`."""

    name = "adaptive"


class AsyncAdaptiveTransport(AsyncLimiterTransport):
    """Waits for a permit from the adaptive limiter before it sends; otherwise like `AsyncLimiterTransport`."""

    name = "adaptive"


def limiter(policy: AnyLimiter, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `limiter`, for a `StackBuilder`; takes any limiter, or a list of them."""
    return recipe(LimiterTransport, AsyncLimiterTransport, _checked(policy), cost=cost, settle=settle)


def token_bucket(policy: AnyLimiter, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `token_bucket`, for a `StackBuilder`."""
    return recipe(TokenBucketTransport, AsyncTokenBucketTransport, _checked(policy), cost=cost, settle=settle)


def adaptive(policy: AnyLimiter, *, cost: Estimate | None = None, settle: Settle | None = None) -> Layer:
    """The layer `adaptive`, for a `StackBuilder`."""
    return recipe(AdaptiveTransport, AsyncAdaptiveTransport, _checked(policy), cost=cost, settle=settle)


def _checked(policy: AnyLimiter) -> Any:
    return checked_limiter(policy, _EXPECTED)
