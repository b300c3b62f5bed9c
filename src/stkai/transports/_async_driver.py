"""The async driver, for asyncio and trio: like the sync one, with cancellation in place of interrupts.

The clean-up that a flow asks for runs under a shield, so that a cancelled call closes what it opened.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from .._abandonable import Latch
from .._clock import Clock, is_system_clock
from .._event_loops import anyio, run_soon, running_loop
from .._log import logger
from .._process import raise_interrupt
from ._bodies import adrain, aload, aread, drain_time, limited, reset_timeouts
from ._call import Attempt, require_open
from ._operations import (
    Close,
    Drain,
    Flow,
    Load,
    Operation,
    Read,
    Run,
    Send,
    Sleep,
    Until,
    WrongOperationError,
    clean_ups,
    is_clean_up,
)
from ._redirect_chain import may_continue


class AbandonedCallError(BaseException):
    """Thrown into a flow whose coroutine is closed before its end."""


async def adrive(flow: Flow, attempt: Attempt, clock: Clock) -> httpx.Response:
    """Run a flow in this task until it ends, and return its response."""
    deadline = attempt.deadline
    try:
        operation = flow.send(None)
        while True:
            try:
                if deadline is None and isinstance(operation, Send):
                    value = await operation.wire.handle_async_request(operation.request)
                elif deadline is None and isinstance(operation, Sleep):
                    # Thousands of tasks may sleep here, so this one awaits the clock's sleep directly.
                    value = await _sleeping(operation, operation.seconds, attempt, clock)
                    require_open(attempt)
                elif isinstance(operation, Until):
                    deadline = operation.deadline if deadline is None else min(deadline, operation.deadline)
                    value = None
                elif deadline is not None:
                    value = await _ain_time(operation, deadline, attempt, clock)
                else:
                    value = await _aperform(operation)
            except Exception as error:  # noqa: BLE001 - the flow decides
                raise_interrupt(error)
                operation = flow.throw(error)
            else:
                operation = flow.send(value)
    except StopIteration as stop:
        response: httpx.Response = stop.value
        if deadline is not None and may_continue(response):
            await _load_redirect(response, deadline, attempt, clock)
        return response
    except BaseException as error:
        if getattr(flow, "gi_frame", None) is not None:
            await _aclean_up(flow, error)
        raise


async def _load_redirect(response: httpx.Response, deadline: float, attempt: Attempt, clock: Clock) -> None:
    """Load the body of a redirect or a challenge, which an httpx client reads before it sends the next request."""
    try:
        await _ain_time(Load(response, math.inf), deadline, attempt, clock)
    except BaseException:
        await aclose_response(response)
        raise


def _sleeping(operation: Sleep, seconds: float, attempt: Attempt, clock: Clock) -> Awaitable[object]:
    """A sleep that ends early if the stack is closed, or `operation.sleeper` is woken."""
    closing, sleeper = attempt.closing, operation.sleeper
    if not is_system_clock(clock):
        return clock.asleep(seconds) if sleeper is None else _until_woken(sleeper, seconds, clock)
    if closing is None and sleeper is None:
        return clock.asleep(seconds)
    return (closing or Latch()).await_(seconds, sleeper)


async def _until_woken(sleeper: Any, seconds: float, clock: Clock) -> None:
    with anyio.CancelScope() as scope:
        sleeper.wake = partial(run_soon, running_loop(), scope.cancel)
        if not sleeper.is_woken:
            await clock.asleep(seconds)


async def _aperform(operation: Operation, left: Callable[[], float] = lambda: math.inf) -> Any:
    match operation:
        case Read():
            await aread(operation.response)
        case Load():
            seconds = drain_time(left()) if operation.brief else math.inf
            await aload(operation.response, operation.limit, left, seconds)
        case Drain():
            await adrain(operation.response, min(operation.seconds, drain_time(left())))
        case Close():
            await aclose_response(operation.response)
        case Run(cleans_up=True):
            with anyio.CancelScope(shield=True):
                return await operation.asynchronous(left())
        case Run():
            return await operation.asynchronous(left())
        case _:
            raise WrongOperationError(operation)
    return None


async def _ain_time(operation: Operation, deadline: float, attempt: Attempt, clock: Clock) -> Any:
    """Carry out an operation, and cancel it at the deadline."""

    def left() -> float:
        return deadline - clock.monotonic()

    if isinstance(operation, Drain):
        return await _aperform(operation, left)
    if is_clean_up(operation):
        return await _aperform(operation)
    seconds = left()
    if seconds <= 0:
        raise attempt.too_late(deadline)
    match operation:
        case Sleep():
            # Sleep by the call's clock, which may differ from the event loop's.
            await _sleeping(operation, min(operation.seconds, seconds), attempt, clock)
            require_open(attempt)
            if operation.seconds and left() <= 0:
                raise attempt.too_late(deadline)
            return None
        case Send():
            request = limited(operation.request, seconds)
            value = await _by_scope(
                partial(operation.wire.handle_async_request, request), left, deadline, attempt
            )
            if left() <= 0:  # The call's clock may have been moved in the meantime.
                await aclose_response(value)
                raise attempt.too_late(deadline)
            if not attempt.buffered:
                reset_timeouts(operation.request, request)
            return value
        case Read():
            return await _by_scope(partial(aread, operation.response, left), left, deadline, attempt)
        case _:
            return await _by_scope(partial(_aperform, operation, left), left, deadline, attempt)


async def _by_scope(
    work: Callable[[], Awaitable[Any]], left: Callable[[], float], deadline: float, attempt: Attempt
) -> Any:
    with attempt.deadline_errors(deadline, left), anyio.move_on_after(left()):
        return await work()
    raise attempt.too_late(deadline)


async def _aclean_up(flow: Flow, error: BaseException) -> None:
    """Notify the flow that the call is over, and carry out the clean-up that it requests, even if cancelled again."""
    # A coroutine that is being closed cannot await, and `yield from` would not pass on a GeneratorExit.
    awaits = not isinstance(error, GeneratorExit)
    try:
        for operation in clean_ups(flow, error if awaits else AbandonedCallError()):
            if awaits:
                await _atry(operation)
    except BaseException:  # Another interrupt.
        logger.debug("the clean-up of a call failed", exc_info=True)
    finally:
        del error  # See `clean_ups`.


async def _atry(operation: Operation) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await _aperform(operation)
    except Exception:
        logger.debug("the clean-up of a call failed", exc_info=True)


async def aclose_response(response: httpx.Response) -> None:
    """Close a response; log errors instead of raising them."""
    with anyio.CancelScope(shield=True):
        try:
            await response.aclose()
        except Exception as error:
            raise_interrupt(error)
            logger.debug("a response could not be closed", exc_info=True)
