"""The clock, random numbers and listener that a stack gives its layers, and the events of calls and attempts."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import DEBUG
from typing import Final

import httpx

from .._clock import Clock, clock_or_system, uniform
from .._errors import ConfigurationError, InvalidArgumentError, describe, visible
from .._families import adopt, alike
from .._headers import Fields
from .._log import Listener, Listeners, events, log_events, logger, notify
from ._call import Attempt
from ._failures import advice_on

_NOTE: Final = "stkai: "


class Context:
    """The clock, random numbers and listener that a stack gives each of its layers.

    Attributes:
        clock: where time comes from.
        now: the clock's `monotonic`, looked up once: every call reads it several times.
        listener: called with every event; its exceptions are logged, not raised.
        random: draws a number in [0, 1).
        observes: whether anything receives events that the default log writes at this level; bound once, like `now`.
    """

    __slots__ = ("clock", "listener", "now", "observes", "random")

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        listener: Listener = log_events,
        random: Callable[[], float] | None = None,
    ) -> None:
        if random is not None and not callable(random):
            msg = f"random must be a function that draws numbers in [0, 1), such as random.random, not {random!r}"
            raise ConfigurationError(msg)
        if not callable(listener):
            msg = f"listener must be one function that takes an event, not {listener!r}; a StackBuilder takes a list"
            raise ConfigurationError(msg)
        self.clock, self.listener, self.random = clock_or_system(clock), listener, random or uniform
        self.now = self.clock.monotonic
        has_listener = not isinstance(listener, Listeners) or bool(listener.each)
        self.observes = logger.isEnabledFor if listener is log_events else lambda _: has_listener

    def emit(self, event: "events.Event") -> None:
        """Call the listener. An exception that it raises is logged; an interrupt is raised."""
        notify(self.listener, event)


def attempt_started(context: Context, attempt: Attempt) -> Fields | None:
    """Report that a request is about to be sent; returns the headers that listeners add to it."""
    started = events.AttemptStarted(call=attempt.info, resend_count=attempt.number - 1)
    context.emit(started)
    try:
        return Fields.of(started.headers) if started.headers else None
    except InvalidArgumentError as error:
        logger.error("the listener added headers that cannot be sent: %s", error)  # noqa: TRY400 - it is not ours
        return None


def attempt_finished(
    context: Context, attempt: Attempt, start: float, *, status: int | None = None, error: str | None = None
) -> None:
    """Report that the wire has returned a response, or raised an error; `start` is when it was called."""
    seconds = context.now() - start
    context.emit(events.AttemptFinished(call=attempt.info, status=status, error=error, seconds=seconds))


def call_started(context: Context, attempt: Attempt) -> None:
    started = events.CallStarted(call=attempt.info) if context.observes(DEBUG) else None
    attempt.is_observed = True  # An interrupt before this leaves neither a start nor an end.
    if started is not None:
        context.emit(started)


def call_failed(context: Context, attempt: Attempt, error: BaseException) -> None:
    """Add the request to the error of a call, and report that it has ended."""
    call = attempt.call
    try:
        attempt.forget_places()
        if isinstance(error, alike(httpx.RequestError)):
            error.request = call.request
            adopt(error, call.request)
        if isinstance(error, Exception):
            add_note(error, call.method, call.host, attempt.record.attempts, attempt.last.causes)
    finally:  # Even if interrupted.
        if attempt.is_observed:
            call_finished(context, attempt, error=type(error).__name__)


def add_note(error: Exception, method: str, host: str, attempts: int, causes: Iterable[str] = ()) -> None:
    """Add a note to the error that ends a call, unless it has one: about the request, its attempts, and what to do."""
    if not any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
        others = ", ".join(dict.fromkeys(cause for cause in causes if cause not in visible(describe(error))))
        parts = f"{attempts} attempt{'s' * (attempts != 1)}", others and f"before: {others}", advice_on(error)
        error.add_note(f"{_NOTE}{method} {host}: {'; '.join(filter(None, parts))}")


def call_finished(
    context: Context, attempt: Attempt, *, status: int | None = None, error: str | None = None
) -> None:
    attempts, info = attempt.record.attempts, attempt.last.info
    if attempts != info.attempt:  # Some attempts were parallel.
        info = replace(info, attempt=attempts)
    seconds = context.now() - attempt.call.started
    finished = events.CallFinished(call=info, status=status, error=error, attempts=attempts, seconds=seconds)
    attempt.is_observed = False  # After an interrupt, it does not end a second time.
    context.emit(finished)
