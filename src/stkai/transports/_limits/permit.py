"""Permits for other work than requests of httpx, in threads, on asyncio and on trio."""

from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx

from ..._checks import SECONDS, check_number, clock_or_system, even_half_made
from ..._clock import Clock, uniform
from ..._errors import ConfigurationError, InvalidArgumentError, NotSent
from ..._event_loops import loop_has_ended
from .._async_driver import adrive
from .._call import Attempt, Call
from .._context import Context
from .._driver import drive
from .._operations import Operation, Steps
from .._options import Priority, RequestOptions, Unset, check_cost
from .limiter import TOO_MANY_REQUESTS, Answer, Plan, Turn
from .queue import Queue, was_never_sent
from .waiting import wait_for_permit


class Permit:
    """A permit while its block runs: `with limiter.permit() as permit:`, or `async with`."""

    def __init__(
        self,
        limiter: Queue,
        plan: Plan | None,
        *,
        cost: float | None,
        priority: Priority,
        max_wait_time: float | Unset | None,
        clock: Clock | None,
    ) -> None:
        self._options = RequestOptions(cost=cost, priority=priority, max_wait_time=max_wait_time)
        if plan is None or not plan.sources:
            raise ConfigurationError(f"{limiter!r} has no permits without a request: ask one of its limiters")
        if cost is None and plan.priced:
            raise InvalidArgumentError(
                "this limiter counts units, so a permit needs a cost: limiter.permit(cost=...)"
            )
        self._limiter, self._plan = limiter, plan
        self._clock = clock_or_system(clock)
        self._cost, self._priority = 1.0 if cost is None else float(cost), priority
        self._turn: Turn | None = None
        self._sent = 0.0
        self._has_learned = self._is_open = False

    def settle(self, cost: float) -> None:
        """Correct the units that the permit took to the real cost.

        Raises:
            InvalidArgumentError: `cost` is not a finite number of at least 0.
        """
        self._limiter.settle(self._taken(), check_cost(cost), self._clock.monotonic())

    def refused(self, retry_after: float | None = None) -> None:
        """Tell the limiter that the work was refused because the quota is used up; an adaptive one slows down.

        Args:
            retry_after: seconds after which the service asks to try again.

        Raises:
            InvalidArgumentError: `retry_after` is not a number of seconds.
        """
        headers = {}
        if retry_after is not None:
            check_number("retry_after", retry_after, SECONDS, error=InvalidArgumentError)
            headers = {"retry-after": f"{retry_after:.3f}"}
        self._learn(httpx.Response(TOO_MANY_REQUESTS, headers=headers), None)

    def __enter__(self) -> Self:
        turn, wait = self._ask()
        if wait is not None:
            try:
                drive(*wait, self._clock)
            except BaseException:  # An interrupt, or a wait that takes too long.
                self._limiter.leave(turn, self._clock.monotonic())
                raise
        self._is_open = True
        return self

    async def __aenter__(self) -> Self:
        turn, wait = self._ask()
        turn.loop_has_ended = loop_has_ended()
        if wait is not None:
            try:
                await adrive(*wait, self._clock)
            except BaseException:  # An interrupt, or a wait that takes too long.
                self._limiter.leave(turn, self._clock.monotonic())
                raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        turn, now = self._taken(), self._clock.monotonic()
        if isinstance(error, NotSent):
            self._limiter.leave(turn, now)
            return
        try:
            if not self._has_learned and (error is not None or self._limiter.listens(now)):
                # Whatever the block has raised, it has used its permit.
                unused = was_never_sent(error)
                self._learn(httpx.Response(200) if error is None else None, None if unused else error)
        finally:
            self._limiter.end(turn, now)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _ask(self) -> tuple[Turn, tuple[Any, Attempt] | None]:
        """A new turn, and its wait and what stands for its call if it has to wait."""
        if self._is_open:
            raise RuntimeError("this permit is in use: take one for each block, with limiter.permit()")
        now = self._sent = self._clock.monotonic()
        plan = self._plan
        turn = self._turn = Turn(None, 0, uniform(), self._cost, self._priority, plan.sources)
        if plan.guests:
            turn.guests = plan.guests
        self._has_learned = False
        try:
            wait = self._limiter.ask(turn, now)
        except BaseException:  # An interrupt, or a limiter of the user's own.
            self._limiter.leave(turn, now)
            raise
        if wait == 0:
            return turn, None
        call = Call.start(_request(), now)._replace(options=self._options, deadline=None)
        attempt = Attempt(call, 1, None, None, False)
        turn.call = attempt.info
        return turn, (self._wait(turn, wait, attempt), attempt)

    def _wait(self, turn: Turn, wait: float | Operation, attempt: Attempt) -> Steps[None]:
        context = Context(clock=self._clock, listener=_hear_nothing)
        self._sent = yield from wait_for_permit(
            context, "permit", self._limiter, turn, self._plan, attempt, wait, self._sent
        )

    def _learn(self, response: httpx.Response | None, error: BaseException | None) -> None:
        turn, clock = self._taken(), self._clock
        self._has_learned = True
        self._limiter.learn(
            turn, Answer(self._sent, clock.monotonic(), response, error, clock.utcnow, turn.chance)
        )

    def _taken(self) -> Turn:
        if self._turn is None:
            raise RuntimeError("a permit is taken by entering its block: with limiter.permit() as permit:")
        return self._turn

    @even_half_made
    def __repr__(self) -> str:
        return f"<Permit of {self._limiter!r}>"


def _hear_nothing(event: object) -> None:
    """No stack has a listener for permits."""


@cache
def _request() -> httpx.Request:
    """The request in whose place permits are taken: only events name it."""
    return httpx.Request("POST", "permit:")
