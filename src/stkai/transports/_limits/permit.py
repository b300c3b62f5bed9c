"""`limiter.permit()`: permits for work without httpx, in threads, on asyncio and on trio."""

from types import TracebackType
from typing import Any, Final, Self

import httpx

from ..._checks import SECONDS, check_number, safe_repr
from ..._clock import Clock, clock_or_system, uniform
from ..._errors import ConfigurationError, InvalidArgumentError, NotSent
from ..._event_loops import loop_has_ended
from ..._log import Listeners
from .._async_driver import adrive
from .._call import Attempt, Call
from .._context import Context
from .._driver import drive
from .._operations import Operation, Steps
from .._options import UNSET, Priority, RequestOptions, check_cost
from .limiter import TOO_MANY_REQUESTS, Answer, Plan, Turn, was_never_sent
from .queue import Queue
from .wait_for_permit import wait_for_permit

_REQUEST: Final = httpx.Request("POST", "permit:")  # A placeholder, which appears only in events.


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
        call = Call.start(_REQUEST, now)._replace(options=self._options, deadline=None)
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
        # Its units are returned too, so a later `settle` charges all. A copy, since a postponed `leave` needs the cost;
        # without `copy`, which imports, and may be too late for that when the program ends.
        self._turn = Turn.__new__(Turn)
        vars(self._turn).update(vars(turn), cost=0.0, costs=None)

    def _taken(self) -> Turn:
        if self._turn is None:
            raise RuntimeError("a permit is taken by entering its block: with limiter.permit() as permit:")
        return self._turn

    @safe_repr
    def __repr__(self) -> str:
        return f"<Permit of {self._limiter!r}>"
