"""The sync driver: carries out the operations of a flow in a thread, and enforces the deadline.

    a result               is sent back into the flow
    an error               is thrown into the flow, where `try` and `finally` read as usual
    an interrupt, an exit  is thrown as well; the driver then carries out the clean-up that the flow asks for and
                           re-raises it: the flow can neither swallow it nor continue

The deadline covers every operation except clean-up. The async driver does the same for tasks.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import httpx

from .._clock import Clock
from .._errors import DeadlineExceededError
from .._families import alike
from ._bodies import briefly, drain, fetch, is_short, is_there, keep, limited, load, read, unlimited
from ._call import Attempt
from ._hand import Hand, TooLateError
from ._operations import (
    PATIENCE,
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
    is_clean_up,
    swallowed,
)

_logger = logging.getLogger("stkai")


def drive(flow: Flow, attempt: Attempt, clock: Clock) -> httpx.Response:
    """Run a flow to its end in this thread, and return its response."""
    deadline = attempt.call.deadline
    hand: Hand | None = None
    try:
        operation = flow.send(None)
        while True:
            try:
                if deadline is None and isinstance(operation, Send):
                    value = operation.wire.handle_request(operation.request)
                elif isinstance(operation, Until):
                    deadline = operation.deadline if deadline is None else min(deadline, operation.deadline)
                    value = None
                elif deadline is not None or isinstance(operation, Drain | Load):
                    hand = hand or Hand()
                    until = math.inf if deadline is None else deadline
                    value = _in_time(operation, until, attempt, clock, hand)
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
        case Drain():
            drain(operation.response, clock.monotonic)
        case Close():
            close_response(operation.response)
        case Run():
            return operation.sync(left)
        case Send():
            return operation.wire.handle_request(operation.request)
        case _:
            raise WrongOperationError(operation)
    return None


def _in_time(operation: Operation, deadline: float, attempt: Attempt, clock: Clock, hand: Hand) -> Any:
    """Carry out an operation, and stop waiting for it at the deadline.

    A timeout bounds one read, not the number of reads: a server that sends its answer byte by byte could hold a call
    as long as it likes. A thread cannot be cancelled, so another one does the work and this one stops waiting for it.
    """

    def left() -> float:
        return deadline - clock.monotonic()

    if isinstance(operation, Drain):
        if left() <= 0 or not is_short(operation.response):
            return close_response(operation.response)
        until = clock.monotonic() + briefly(left())
        with suppress(TooLateError):
            hand.do(partial(drain, operation.response, clock.monotonic), lambda: until - clock.monotonic())
        return None
    if is_clean_up(operation):
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
        case Read():
            _by_hand(partial(load, operation.response, math.inf, left), left, deadline, attempt, hand)
            read(operation.response)
            return None
        case Load():
            _load(operation, left, deadline, attempt, hand, clock)
            return None
        case _:
            raise WrongOperationError(operation)


def _load(
    operation: Load,
    left: Callable[[], float],
    deadline: float,
    attempt: Attempt,
    hand: Hand,
    clock: Clock,
) -> None:
    """Fetch a body for a limited time, then abandon the thread that fetches the rest."""
    if is_there(operation.response):
        return
    until = clock.monotonic() + briefly(left()) if operation.brief else deadline

    def shortly() -> float:
        return until - clock.monotonic()

    chunks: list[bytes] = []
    work = partial(fetch, operation.response, operation.limit, shortly, chunks)
    try:
        _by_hand(work, shortly, deadline, attempt, hand)
    except DeadlineExceededError:
        if left() <= 0:
            raise
    keep(operation.response, chunks)


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
    """Tell the flow that the call is over, and carry out the clean-up it asks for."""
    told = 0
    try:
        operation = flow.throw(error)
        while told < PATIENCE:
            if is_clean_up(operation):
                _try(operation, clock)
                operation = flow.send(None)
            else:
                told = swallowed(error, operation, told)
                operation = flow.throw(error)
        flow.close()
    except StopIteration as stop:
        swallowed(error, "an answer", told)
        if isinstance(stop.value, alike(httpx.Response)):
            close_response(stop.value)
    except BaseException as other:
        if other is not error:
            _logger.debug("the clean-up of a call failed", exc_info=True)


def _try(operation: Operation, clock: Clock) -> None:
    try:
        _perform(operation, clock)
    except Exception:
        _logger.debug("the clean-up of a call failed", exc_info=True)


def close_response(response: httpx.Response) -> None:
    """Close a response, whatever goes wrong."""
    try:
        response.close()
    except Exception:
        _logger.debug("a response could not be closed", exc_info=True)
