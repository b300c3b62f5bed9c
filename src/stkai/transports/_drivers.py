"""The two drivers: each carries out the operations of a flow, in a thread or in a task, and holds it to its deadline.

    a result               is sent back into the flow
    an error               is thrown into the flow, where `try` and `finally` read as usual
    a cancellation, an     is thrown as well; the driver then carries out the clean-up that the flow asks for, under a
    interrupt, an exit     shield, and raises it again: the flow can neither swallow it nor go on

The deadline wraps every operation but the clean-up.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import httpx

from .._clock import Clock
from .._errors import DeadlineExceededError
from .._families import alike
from ._bodies import BRIEF, adrain, aload, aread, drain, limited, load, read, unlimited
from ._call import Attempt
from ._hand import Hand, TooLateError
from ._operations import Close, Drain, Flow, Load, Operation, Read, Run, Send, Sleep, Until

_logger = logging.getLogger("stkai")

_PATIENCE: Final = 100
"""How often a flow is told that its call is over; each layer of it may catch that once."""


def drive(flow: Flow, attempt: Attempt, clock: Clock) -> httpx.Response:
    """Run a flow to its end in this thread, and return the response that it comes to."""
    deadline = attempt.call.deadline
    hand: Hand | None = None
    try:
        operation = flow.send(None)
        while True:
            try:
                value = None
                if deadline is None and isinstance(operation, Send):
                    value = operation.wire.handle_request(operation.request)
                elif isinstance(operation, Until):
                    deadline = operation.deadline if deadline is None else min(deadline, operation.deadline)
                elif deadline is not None:
                    hand = hand or Hand()
                    value = _in_time(operation, deadline, attempt, clock, hand)
                else:
                    value = _perform(operation, clock)
            except Exception as error:  # noqa: BLE001 - the flow decides
                operation = flow.throw(error)
            else:
                operation = flow.send(value)
    except StopIteration as stop:
        response: httpx.Response = stop.value
        return response
    except BaseException as error:
        if getattr(flow, "gi_frame", None) is not None:
            _clean_up(flow, error, clock)
        raise
    finally:
        if hand is not None:
            hand.release()


def _perform(operation: Operation, clock: Clock, left: float = math.inf) -> Any:
    match operation:
        case Sleep():
            clock.sleep(operation.seconds)
        case Read():
            read(operation.response)
        case Load():
            load(operation.response, operation.limit)
        case Drain():
            drain(operation.response, clock.monotonic)
        case Close():
            _close(operation.response)
        case Run():
            return operation.sync(left)
        case Send():
            return operation.wire.handle_request(operation.request)
        case _:
            raise _unknown(operation)
    return None


def _in_time(operation: Operation, deadline: float, attempt: Attempt, clock: Clock, hand: Hand) -> Any:
    """Carry out an operation, and stop waiting for it at the deadline.

    A timeout bounds one read, not how many there are: a server that sends its answer byte by byte could hold a call
    for as long as it likes. A thread cannot be cancelled, so another one works, and the wait for that is given up.
    """

    def left() -> float:
        return deadline - clock.monotonic()

    if isinstance(operation, Drain):
        if left() <= 0:
            return _close(operation.response)
        until = min(deadline, clock.monotonic() + BRIEF)
        with suppress(TooLateError):
            hand.do(partial(drain, operation.response, clock.monotonic), lambda: until - clock.monotonic())
        return None
    if _is_clean_up(operation):
        return _perform(operation, clock)
    if left() <= 0:
        raise attempt.too_late(deadline)
    match operation:
        case Sleep():
            clock.sleep(min(operation.seconds, max(0.0, left())))
            if operation.seconds and left() <= 0:
                raise attempt.too_late(deadline)
            return None
        case Run():
            return operation.sync(left())
        case Send():
            request = limited(operation.request, left())
            value = _by_hand(partial(operation.wire.handle_request, request), left, deadline, attempt, hand)
            if not attempt.call.buffered:
                unlimited(operation.request, request)
            return value
        case Read() | Load():
            limit = operation.limit if isinstance(operation, Load) else math.inf
            _by_hand(partial(load, operation.response, limit, left), left, deadline, attempt, hand)
            if isinstance(operation, Read):
                read(operation.response)
            return None
        case _:
            raise _unknown(operation)


def _by_hand(
    work: Callable[[], Any], left: Callable[[], float], deadline: float, attempt: Attempt, hand: Hand
) -> Any:
    try:
        return hand.do(work, left)
    except TooLateError:
        raise attempt.too_late(deadline) from None
    except alike(httpx.TimeoutException) as error:
        if left() > 0 or isinstance(error, DeadlineExceededError):
            raise
        raise attempt.too_late(deadline) from error


def _clean_up(flow: Flow, error: BaseException, clock: Clock) -> None:
    """Tell the flow that the call is over, and carry out what it still asks for."""
    told = 0
    try:
        operation = flow.throw(error)
        while told < _PATIENCE:
            if _is_clean_up(operation):
                _try(operation, clock)
                operation = flow.send(None)
            else:
                told = _report(error, operation, told)
                operation = flow.throw(error)
        flow.close()
    except StopIteration as stop:
        _report(error, "an answer", told)
        if isinstance(stop.value, alike(httpx.Response)):
            _close(stop.value)
    except BaseException as other:
        if other is not error:
            _logger.debug("the clean-up of a call failed", exc_info=True)


def _try(operation: Operation, clock: Clock) -> None:
    try:
        _perform(operation, clock)
    except Exception:
        _logger.debug("the clean-up of a call failed", exc_info=True)


def _close(response: httpx.Response) -> None:
    try:
        response.close()
    except Exception:
        _logger.debug("a response could not be closed", exc_info=True)


async def adrive(flow: Flow, attempt: Attempt, clock: Clock) -> httpx.Response:
    """Run a flow to its end in this task, and return the response that it comes to."""
    deadline = attempt.call.deadline
    try:
        operation = flow.send(None)
        while True:
            try:
                value = None
                if deadline is None and isinstance(operation, Send):
                    value = await operation.wire.handle_async_request(operation.request)
                elif isinstance(operation, Until):
                    deadline = operation.deadline if deadline is None else min(deadline, operation.deadline)
                elif deadline is not None:
                    value = await _ain_time(operation, deadline, attempt, clock)
                elif isinstance(operation, Sleep):
                    await clock.asleep(operation.seconds)
                else:
                    value = await _aperform(operation, clock)
            except Exception as error:  # noqa: BLE001 - the flow decides
                operation = flow.throw(error)
            else:
                operation = flow.send(value)
    except StopIteration as stop:
        response: httpx.Response = stop.value
        return response
    except BaseException as error:
        if getattr(flow, "gi_frame", None) is not None:
            await _aclean_up(flow, error, clock)
        raise


async def _aperform(operation: Operation, clock: Clock, left: float = math.inf) -> Any:
    match operation:
        case Sleep():
            await clock.asleep(operation.seconds)
        case Read():
            await aread(operation.response)
        case Load():
            await aload(operation.response, operation.limit)
        case Drain():
            await adrain(operation.response, left)
        case Close():
            await _aclose(operation.response)
        case Run(cleans_up=True):
            import anyio

            with anyio.CancelScope(shield=True):
                return await operation.asynchronous(left)
        case Run():
            return await operation.asynchronous(left)
        case Send():
            return await operation.wire.handle_async_request(operation.request)
        case _:
            raise _unknown(operation)
    return None


async def _ain_time(operation: Operation, deadline: float, attempt: Attempt, clock: Clock) -> Any:
    """Carry out an operation, and cancel it at the deadline."""

    def left() -> float:
        return deadline - clock.monotonic()

    if isinstance(operation, Drain):
        return await _aperform(operation, clock, left())
    if _is_clean_up(operation):
        return await _aperform(operation, clock)
    seconds = left()
    if seconds <= 0:
        raise attempt.too_late(deadline)
    match operation:
        case Sleep():
            # By the call's clock, which need not be that of the event loop.
            await clock.asleep(min(operation.seconds, seconds))
            if operation.seconds and left() <= 0:
                raise attempt.too_late(deadline)
            return None
        case Send():
            request = limited(operation.request, seconds)
            value = await _by_scope(
                partial(operation.wire.handle_async_request, request), left, deadline, attempt
            )
            if not attempt.call.buffered:
                unlimited(operation.request, request)
            return value
        case Read() | Load():
            limit = operation.limit if isinstance(operation, Load) else math.inf
            await _by_scope(partial(aload, operation.response, limit, left), left, deadline, attempt)
            if isinstance(operation, Read):
                await aread(operation.response)
            return None
        case Run():
            return await _by_scope(partial(operation.asynchronous, seconds), left, deadline, attempt)
        case _:
            raise _unknown(operation)


async def _by_scope(
    work: Callable[[], Awaitable[Any]], left: Callable[[], float], deadline: float, attempt: Attempt
) -> Any:
    import anyio

    try:
        with anyio.move_on_after(left()):
            return await work()
    except TooLateError:
        raise attempt.too_late(deadline) from None
    except alike(httpx.TimeoutException) as error:
        if left() > 0 or isinstance(error, DeadlineExceededError):
            raise
        raise attempt.too_late(deadline) from error
    raise attempt.too_late(deadline)


async def _aclean_up(flow: Flow, error: BaseException, clock: Clock) -> None:
    """Tell the flow that the call is over, and carry out what it still asks for, whoever cancels meanwhile."""
    told = 0
    awaits = not isinstance(error, GeneratorExit)  # A coroutine that is closed cannot await.
    try:
        operation = flow.throw(error)
        while told < _PATIENCE:
            if _is_clean_up(operation):
                if awaits:
                    await _atry(operation, clock)
                operation = flow.send(None)
            else:
                told = _report(error, operation, told)
                operation = flow.throw(error)
        flow.close()
    except StopIteration as stop:
        _report(error, "an answer", told)
        if awaits and isinstance(stop.value, alike(httpx.Response)):
            await _aclose(stop.value)
    except BaseException as other:
        if other is not error:
            _logger.debug("the clean-up of a call failed", exc_info=True)


async def _atry(operation: Operation, clock: Clock) -> None:
    import anyio

    try:
        with anyio.CancelScope(shield=True):
            await _aperform(operation, clock)
    except Exception:
        _logger.debug("the clean-up of a call failed", exc_info=True)


async def _aclose(response: httpx.Response) -> None:
    import anyio

    with anyio.CancelScope(shield=True):
        try:
            await response.aclose()
        except Exception:
            _logger.debug("a response could not be closed", exc_info=True)


def _is_clean_up(operation: object) -> bool:
    return isinstance(operation, Close) or (isinstance(operation, Run) and operation.cleans_up)


def _unknown(operation: object) -> TypeError:
    return TypeError(f"a flow yields operations of stkai.transports, such as Sleep(1.0), not {operation!r}")


def _report(error: BaseException, answer: object, told: int) -> int:
    """Note, once, that a layer answered the end of the call with something else; returns how often it has been told."""
    if not told:
        what = answer if isinstance(answer, str) else type(answer).__name__
        bug = f"a layer answered {type(error).__name__} with {what}; it must clean up and let it pass"
        error.add_note(f"stkai: {bug}")
        _logger.error("%s", bug)
    return told + 1
