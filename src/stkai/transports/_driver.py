"""The sync driver: carries out the operations of a flow in a thread, and enforces the deadline.

    a result               is sent back into the flow
    an error               is thrown into the flow, where `try` and `finally` work as usual
    an interrupt, an exit  is thrown as well; the driver then carries out the clean-up that the flow asks for and
                           re-raises it: the flow can neither swallow it nor continue

An exception raised by a signal handler counts as an interrupt, even if the wire wraps it. The deadline covers every
operation except clean-up. The async driver does the same for tasks.
"""

import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

import httpx

from .._abandonable import GivenUpError, Latch, NoThreadError, do_in_thread, do_within
from .._clock import Clock, is_system_clock
from .._errors import DeadlineExceededError
from .._log import logger
from .._process import raise_interrupt
from ._bodies import SHORT, Sending, drain_time, is_read, is_short, keep, limited, load, read, reset_timeouts
from ._body_end import CLEAN_UP_LIMIT, give_up
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

_BOUNDED: Final = (Drain, Load, Until)
"""Operations that set a deadline, or have a time limit without one (at most a second, in another thread)."""

NAP: Final = 0.5
"""Seconds; a shorter sleep without a sleeper does not end early, which halves its processor time."""


def drive(flow: Flow, attempt: Attempt, clock: Clock) -> httpx.Response:
    """Run a flow in this thread until it ends, and return its response."""
    deadline = attempt.deadline
    bounded: _Bounded | None = None
    try:
        operation = flow.send(None)
        while True:
            try:
                if deadline is None and isinstance(operation, Send):
                    value = operation.wire.handle_request(operation.request)
                elif deadline is None and isinstance(operation, Sleep):
                    _sleep(operation, operation.seconds, attempt, clock)
                    value = None
                elif deadline is None and not isinstance(operation, _BOUNDED):
                    value = _perform(operation)
                elif isinstance(operation, Until):
                    deadline = operation.deadline if deadline is None else min(deadline, operation.deadline)
                    value = None
                else:
                    bounded = bounded or _Bounded(attempt, clock)
                    bounded.deadline = math.inf if deadline is None else deadline
                    value = bounded.perform(operation)
            except Exception as error:  # noqa: BLE001 - the flow decides
                raise_interrupt(error)
                operation = flow.throw(error)
            else:
                operation = flow.send(value)
    except StopIteration as stop:
        response: httpx.Response = stop.value
        if deadline is not None and may_continue(response):
            bounded = bounded or _Bounded(attempt, clock)
            bounded.load_redirect(response, deadline)
        return response
    except BaseException as error:
        if getattr(flow, "gi_frame", None) is not None:
            _clean_up(flow, error)
        raise


def _sleep(operation: Sleep, seconds: float, attempt: Attempt, clock: Clock) -> None:
    closing, sleeper = attempt.closing, operation.sleeper
    if (sleeper is None and (closing is None or seconds < NAP)) or not is_system_clock(clock):
        clock.sleep(seconds)
    else:
        (closing or Latch()).wait(seconds, sleeper)
    require_open(attempt)


def _perform(operation: Operation, left: float = math.inf) -> Any:
    match operation:
        case Read():
            read(operation.response)
        case Close():
            close_response(operation.response)
        case Run():
            return operation.sync(left)
        case _:
            raise WrongOperationError(operation)
    return None


class _Bounded:
    """Carries out operations within a time limit.

    A timeout limits each read, but not the number of reads: a server that sends its answer byte by byte could delay a
    call indefinitely. A thread cannot be cancelled, so another one does the work, and this one stops waiting for it.
    """

    def __init__(self, attempt: Attempt, clock: Clock) -> None:
        self.deadline = math.inf  # When operations must have ended, in seconds of the clock.
        self._attempt, self._clock = attempt, clock

    def left(self) -> float:
        return self.deadline - self._clock.monotonic()

    def perform(self, operation: Operation) -> Any:
        """Carry out an operation, or raise the deadline's error."""
        left = self.left()
        if isinstance(operation, Drain):
            return self._drain(operation, min(operation.seconds, drain_time(left)))
        if is_clean_up(operation):
            return _perform(operation)
        if left <= 0:
            raise self._attempt.too_late(self.deadline)
        match operation:
            case Sleep():
                _sleep(operation, min(operation.seconds, left), self._attempt, self._clock)
                if operation.seconds and self.left() <= 0:
                    raise self._attempt.too_late(self.deadline)
                return None
            case Send():
                return self._send(operation, left)
            case Read():
                self._load(operation.response, math.inf, self.deadline)
                read(operation.response)
                return None
            case Load():
                until = self._clock.monotonic() + drain_time(left) if operation.brief else self.deadline
                self._load(operation.response, operation.limit, until)
                return None
            case _:
                with self._in_time():
                    return _perform(operation, left)

    def load_redirect(self, response: httpx.Response, deadline: float) -> None:
        """Load the body of a redirect or a challenge, which an httpx client reads before it sends the next request."""
        self.deadline = deadline
        try:
            self.perform(Load(response, math.inf))
        except BaseException:
            close_response(response)
            raise

    def _send(self, operation: Send, left: float) -> httpx.Response:
        sending = Sending(operation.request.extensions.get("trace"))
        request = limited(operation.request, left, sending)
        send = partial(operation.wire.handle_request, request)
        with self._in_time():
            response: httpx.Response = do_in_thread(partial(sending.do, send), self.left)
        if self.left() <= 0:  # The call's clock may have been moved in the meantime.
            close_response(response)
            raise self._attempt.too_late(self.deadline)
        if not self._attempt.buffered:
            reset_timeouts(operation.request, request)
        return response

    def _load(self, response: httpx.Response, limit: float, until: float, *, is_wanted: bool = True) -> None:
        """Make what arrives before `until` the body of the response; giving up the rest closes the connection."""
        if is_read(response):
            return
        chunks: list[bytes] = []

        def left() -> float:
            return until - self._clock.monotonic()

        work = partial(load, response, limit, chunks, left)
        try:
            with self._in_time():
                try:
                    do_in_thread(work, left)
                except NoThreadError:
                    if not is_wanted:
                        raise
                    work()
        except DeadlineExceededError:
            if self.left() <= 0:
                raise
        keep(response, chunks)

    def _drain(self, operation: Drain, seconds: float) -> None:
        response = operation.response
        if seconds > 0 and is_short(response):
            try:
                self._load(response, SHORT, self._clock.monotonic() + seconds, is_wanted=False)
            except Exception as error:  # noqa: BLE001 - the response is no longer needed
                raise_interrupt(error)
        close_response(response)

    def _in_time(self) -> AbstractContextManager[None]:
        return self._attempt.deadline_errors(self.deadline, self.left)


def _clean_up(flow: Flow, error: BaseException) -> None:
    """Notify the flow that the call is over, and carry out the clean-up that it requests."""
    try:
        for operation in clean_ups(flow, error):
            _clean_up_one(operation)
    except BaseException:  # Another interrupt.
        logger.debug("the clean-up of a call failed", exc_info=True)
    finally:
        del error  # See `clean_ups`.


def _clean_up_one(operation: Operation) -> None:
    """Carry out a clean-up within a time limit, since the interrupt may have left a lock of the wire held."""
    try:
        do_within(CLEAN_UP_LIMIT, partial(_perform, operation))
    except GivenUpError:
        if isinstance(operation, Close):
            give_up(operation.response.stream)
    except Exception:
        logger.debug("the clean-up of a call failed", exc_info=True)


def close_response(response: httpx.Response) -> None:
    """Close a response; log errors instead of raising them."""
    try:
        response.close()
    except Exception as error:
        raise_interrupt(error)
        logger.debug("a response could not be closed", exc_info=True)
