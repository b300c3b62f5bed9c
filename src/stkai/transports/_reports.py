"""Reports the start and the end of calls and attempts to a stack's listener."""

from logging import DEBUG
from typing import Final

import httpx

from .._families import adopt, alike
from ._call import Attempt
from ._context import Context

_NOTE: Final = "stkai: "


def attempt_started(context: Context, attempt: Attempt) -> dict[str, str]:
    """Report that a request is about to be sent; returns the headers that listeners add to it."""
    from ..events import AttemptStarted

    started = AttemptStarted(call=attempt.info, resend_count=attempt.number - 1)
    context.emit(started)
    return started.headers


def attempt_finished(
    context: Context, attempt: Attempt, start: float, *, status: int | None = None, error: str | None = None
) -> None:
    """Report that the wire has returned a response, or raised an error; `start` is when it was asked."""
    from ..events import AttemptFinished

    seconds = context.clock.monotonic() - start
    context.emit(AttemptFinished(call=attempt.info, status=status, error=error, seconds=seconds))


def call_started(context: Context, attempt: Attempt) -> None:
    """Report that a call begins."""
    if context.hears(DEBUG):
        from ..events import CallStarted

        context.emit(CallStarted(call=attempt.info))


def call_answered(context: Context, attempt: Attempt, response: httpx.Response) -> None:
    """Report that a call has ended with a response."""
    _call_finished(context, attempt, context.clock.monotonic(), status=response.status_code)


def call_failed(context: Context, attempt: Attempt, error: BaseException) -> None:
    """Add the request to the error of a call, and report that it has ended."""
    call = attempt.call
    if isinstance(error, alike(httpx.RequestError)):
        error.request = call.request
        adopt(error, call.request)
    if isinstance(error, Exception) and not any(
        note.startswith(_NOTE) for note in getattr(error, "__notes__", ())
    ):
        number = attempt.record.attempts
        error.add_note(f"{_NOTE}{call.method} {call.host}: {number} attempt{'s' * (number != 1)}")
    if attempt.is_observed:
        _call_finished(context, attempt, context.clock.monotonic(), error=type(error).__name__)


def _call_finished(
    context: Context, attempt: Attempt, now: float, *, status: int | None = None, error: str | None = None
) -> None:
    from ..events import CallFinished

    record = attempt.record
    context.emit(
        CallFinished(
            call=Attempt(attempt.call, record.attempts, record).info,
            status=status,
            error=error,
            attempts=record.attempts,
            seconds=now - attempt.call.started,
        )
    )
