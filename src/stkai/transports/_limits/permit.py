"""The wait for a permit: for calls, and for work without httpx, in threads, on asyncio and on trio."""

import logging
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import httpx

from ..._checks import REAL, SECONDS, check_number, safe_repr
from ..._clock import Clock, clock_or_system, is_system_clock, uniform
from ..._errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotSent,
    TokenAcquisitionTimeoutError,
    digits,
)
from ..._event_loops import loop_has_ended
from ..._log import LONG_WAIT, Listeners
from ...events import Rejected, Waited
from .._async_driver import adrive
from .._call import Attempt, Call, SignatureExpired
from .._context import Context
from .._driver import NAP, drive
from .._operations import Operation, Sleep, Steps
from .._options import UNSET, Priority, RequestOptions, check_cost
from .limiter import TOO_MANY_REQUESTS, Answer, Plan, Turn, was_never_sent
from .queue import Queue
from .sources import TICK, Source

_MAX_SLEEP: Final = 3600.0  # Seconds; every system limits the length of a sleep.
_MAX_IDLE: Final = 0.1  # Seconds for which a request that has a connection may wait for a permit.
_RESERVE_LEAD: Final = 0.05  # Seconds before its permit is due at which it reserves another connection.

_PLACEHOLDER: Final = httpx.Request("POST", "permit:")  # For calls that have no request.

_Held = dict[Source | None, float]  # Seconds for which each source held a turn up.


def wait_for_permit(  # noqa: C901, PLR0912, PLR0915 - one loop, which reads in order
    context: Context,
    layer: str,
    limiter: Any,
    turn: Turn,
    plan: Plan,
    attempt: Attempt,
    wait: float | Operation,
    start: float,
    *,
    reserved: list[Any] | None = None,  # The request's connection, which others may use if it waits long.
    again: Callable[[], Steps[None]] | None = None,  # Reserves another connection.
) -> Steps[float]:
    """Wait until the limiter admits the turn; returns when it did. `wait` is its answer at `start`.

    After an error, the caller must call `leave`. Raises SignatureExpired if the token has expired.
    """
    now, held_since, given, deadline = start, start, attempt.options.max_wait_time, attempt.deadline
    most = plan.max_wait_time if given is UNSET else given
    latest = math.inf if deadline is None else deadline
    end = latest if most is None else min(start + attempt.allowance(most), latest)
    if not plan.sources or limiter.has_remote:
        turn.call = attempt.info  # Only if needed: thousands may wait.
    held: _Held | None = {} if attempt.is_observed else None
    try:
        while wait != 0.0:
            if isinstance(wait, REAL) and wait > 0:
                left = end - now
                if wait > left + TICK and (left <= TICK or not (turn.is_guess or turn.certain <= left)):
                    raise _rejection(context, layer, attempt, most, wait, now - start, now)
                if reserved and now - held_since + wait > _MAX_IDLE:
                    reserved.pop().unused()
                if again is not None and not reserved and not turn.is_guess:
                    if wait > _RESERVE_LEAD:
                        turn.nap = min(turn.nap, wait - _RESERVE_LEAD)
                    elif wait <= turn.nap:  # Otherwise it has no permit yet, and the wait may become longer.
                        yield from again()
                        before, now = now, context.now()
                        # This was not a wait for a permit.
                        start, end, held_since = start + now - before, min(end + now - before, latest), now
                        wait = limiter.ask(turn, now)
                        continue
                wait = _sleep(context, turn, wait, left)
            elif not isinstance(wait, Operation):
                # A limiter that returns None would admit everything.
                names = [source.limit for source in turn.custom] or [type(limiter).__name__]
                raise ConfigurationError(
                    f"{' or '.join(names)}.ask must return 0.0 to let a request go, the seconds that it must wait,"
                    f" or an operation; not {wait!r}"
                )
            try:
                yield wait
            except DeadlineExceededError:  # The driver's, whose words are about an answer.
                allowed = latest - attempt.call.began
                raise _too_late(attempt, f"no permit within the deadline of {allowed:g} s") from None
            before, now = now, context.now()
            if held is not None:
                held[turn.held_by] = held.get(turn.held_by, 0.0) + now - before
            if turn.held_by is not None:
                turn.held_by.relieve(now)
            wait = limiter.ask(turn, now)
    except BaseException:
        now = context.now()
        raise
    finally:
        attempt.record.queued += now - start
    if held is not None:
        _report(context, layer, attempt, turn, now - start, held)
    if attempt.is_signed is not None and not attempt.is_signed():
        # Otherwise, all requests that wait for a new token would be sent together when it arrives.
        attempt.place = (limiter, turn)
        raise SignatureExpired
    return now


def _sleep(context: Context, turn: Turn, wait: float, left: float) -> Sleep:
    """The sleep of a turn that has to wait: not beyond its nap, nor the seconds that are left."""
    # Sleeps of other clocks are exact, and end early only if necessary.
    wakes = getattr(turn.held_by, "wakes", False)
    is_real = (wakes or wait >= NAP) and is_system_clock(context.clock)
    if is_real and wakes and turn.wake is not None and not turn.held_by.is_exact:
        # It will be woken; thousands that check their guesses leave no time for anything else.
        wait = turn.nap
    is_long = is_real and wait >= NAP
    nap = max(turn.nap, turn.rest) if is_long else turn.nap
    seconds = float(min(wait + turn.slack if is_long else wait, nap, left, _MAX_SLEEP))  # Not NumPy's.
    return Sleep(seconds, turn if wakes or (is_long and seconds >= NAP) else None)


def _rejection(
    context: Context, layer: str, attempt: Attempt, most: float | None, wait: float, waited: float, now: float
) -> Exception:
    """Report that the wait would be too long; returns the error to raise."""
    left, allowed = attempt.call.time_left(now), attempt.allowance(most)
    if most is None or left < allowed - waited:
        limit = max(0.0, left)
        why = f"a permit takes {digits(wait)} s, and the call's deadline leaves {digits(limit)} s"
        error = _too_late(attempt, why)
    else:
        waited += most - allowed  # Including earlier redirects.
        limit, wait = most, waited + wait
        error = TokenAcquisitionTimeoutError(waited, most, required=wait)
    context.emit(Rejected(call=attempt.info, layer=layer, wait=wait, limit=limit))
    return error


def _too_late(attempt: Attempt, why: str) -> Exception:
    unsent = "nothing was sent" if attempt.number == 1 else f"attempt number {attempt.number} was not sent"
    return DeadlineExceededError(f"{why}: {unsent}")


def _report(context: Context, layer: str, attempt: Attempt, turn: Turn, waited: float, held: _Held) -> None:
    if waited and context.observes(logging.INFO if waited > LONG_WAIT else logging.DEBUG):
        limit = ""
        if len({source.limit for source in turn.sources}) > 1:
            # The limit that held it up the longest.
            source: Any = max(held, key=held.__getitem__, default=None)
            limit = "" if source is None else str(source.limit)
        context.emit(Waited(call=attempt.info, layer=layer, seconds=waited, limit=limit))


class Permit:
    """A permit for the duration of a block: `with limiter.permit() as permit:`, or `async with`."""

    def __init__(
        self, limiter: Queue, plan: Plan | None, options: RequestOptions, clock: Clock | None
    ) -> None:
        cost, priority = options.cost, options.priority
        if plan is None or not plan.sources:
            raise ConfigurationError(f"{limiter!r} has no permits without a request: ask one of its limiters")
        if cost is None and plan.priced:
            raise InvalidArgumentError(
                "this limiter counts units, so a permit needs a cost: limiter.permit(cost=...)"
            )
        self._limiter, self._plan, self._options = limiter, plan, options
        self._clock = clock_or_system(clock)
        self._cost = 1.0 if cost is None or cost is UNSET else float(cost)
        self._priority: Priority = "low" if priority == "low" else "normal"
        self._turn: Turn | None = None
        self._sent = 0.0
        self._has_learned = self._is_open = False

    def settle(self, cost: float) -> None:
        """Correct the units that the permit took to the actual cost.

        Raises:
            InvalidArgumentError: `cost` is not a finite number of at least 0.
        """
        self._limiter.settle(self._taken(), check_cost(cost), self._clock.monotonic())

    def refused(self, retry_after: float | None = None) -> None:
        """Report that the work was refused because the quota is used up; an adaptive limiter then slows down.

        Args:
            retry_after: seconds for which the service asks to wait; None if it does not say.

        Raises:
            InvalidArgumentError: `retry_after` is not a non-negative number of seconds.
        """
        headers = {}
        if retry_after is not None:
            check_number("retry_after", retry_after, SECONDS, error=InvalidArgumentError)
            headers = {"retry-after": f"{retry_after:.3f}"}
        self._learn(httpx.Response(TOO_MANY_REQUESTS, headers=headers), None)

    def __enter__(self) -> Self:
        turn = self._new_turn()
        try:
            wait = self._ask(turn)
            if wait is not None:
                drive(*wait, self._clock)
        except BaseException:  # An interrupt, a wait that takes too long, or a limiter of the user's own.
            self._leave(turn)
            raise
        return self

    async def __aenter__(self) -> Self:
        turn = self._new_turn()
        try:
            wait = self._ask(turn)
            turn.loop_has_ended = loop_has_ended()
            if wait is not None:
                await adrive(*wait, self._clock)
        except BaseException:  # An interrupt, a wait that takes too long, or a limiter of the user's own.
            self._leave(turn)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        turn, now, listens = self._taken(), self._clock.monotonic(), self._plan.listens
        if isinstance(error, NotSent):
            self._leave(turn)
            return
        try:
            teaches = error is not None or (listens is not None and listens(now))
            if teaches and not self._has_learned:
                # Whatever the block raised, it has used its permit.
                unused = was_never_sent(error)
                self._learn(httpx.Response(200) if error is None else None, None if unused else error)
        finally:
            self._limiter.end(turn, now)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _new_turn(self) -> Turn:
        if self._is_open:
            raise RuntimeError("this permit is in use: take one for each block, with limiter.permit()")
        plan = self._plan
        turn = self._turn = Turn(None, 0, uniform(), self._cost, self._priority, plan.sources)
        turn.custom = plan.custom
        self._has_learned = False
        self._is_open = True  # Also while it waits.
        return turn

    def _ask(self, turn: Turn) -> tuple[Any, Attempt] | None:
        """The wait of a turn that has to wait, with a placeholder for its call; None if the turn is admitted."""
        now = self._sent = self._clock.monotonic()
        wait = self._limiter.ask(turn, now)
        if wait == 0:
            return None
        call = Call.start(_PLACEHOLDER, now)._replace(options=self._options, deadline=None)
        attempt = Attempt(call, None, False)
        turn.call = attempt.info
        return self._wait(turn, wait, attempt), attempt

    def _wait(self, turn: Turn, wait: float | Operation, attempt: Attempt) -> Steps[None]:
        context = Context(clock=self._clock, listener=Listeners(()))  # There is no stack with listeners.
        self._sent = yield from wait_for_permit(
            context, "permit", self._limiter, turn, self._plan, attempt, wait, self._sent
        )

    def _learn(self, response: httpx.Response | None, error: BaseException | None) -> None:
        turn, clock, self._has_learned = self._taken(), self._clock, True
        answer = Answer(self._sent, clock.monotonic(), response, error, clock.utcnow, turn.chance)
        self._limiter.learn(turn, answer)

    def _leave(self, turn: Turn) -> None:
        self._is_open = False
        self._limiter.leave(turn, self._clock.monotonic())
        # Its units are returned too, so a later `settle` charges all. A postponed `leave` still needs the turn with its
        # cost, so this is another one; not made by `copy`, whose imports fail when the program ends.
        self._turn = Turn.__new__(Turn)
        vars(self._turn).update(vars(turn), cost=0.0, costs=None)

    def _taken(self) -> Turn:
        if self._turn is None:
            raise RuntimeError("a permit is taken by entering its block: with limiter.permit() as permit:")
        return self._turn

    @safe_repr
    def __repr__(self) -> str:
        return f"<Permit of {self._limiter!r}>"
