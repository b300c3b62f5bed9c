"""A call on its way through a stack: what was asked for, how it went, and how long it may still take."""

import math
from typing import Any, Final

import httpx

from .._errors import ConfigurationError, DeadlineExceededError
from .._families import family_of
from .._options import UNSET, CallRecord, RequestOptions

OPTIONS: Final = "stkai"
"""The extension that holds `RequestOptions` on a request and the `CallRecord` on a response."""

CALL: Final = "stkai.call"
"""The extension in which the running call travels from layer to layer."""

_NO_OPTIONS: Final = RequestOptions()


class Call:
    """One call on its way through a stack, with all its attempts; the outermost layer, or the client, starts it.

    Attributes:
        options: what the caller set.
        record: what the caller will learn.
        deadline: the instant (monotonic seconds) at which the call must have ended, or None.
        buffered: the caller wants the whole body, so that retry reads it inside the attempt.
        extensions: those of the caller's own request, which travel on when it is redirected.
        paced: a limiter below keeps the wait before the next attempt; nobody else needs to.
        broken: the response whose body broke off, if that is how the last attempt ended.
        ticket: a limiter's queue, and the call's number in it: another attempt comes back to that place.
    """

    __slots__ = (
        "broken",
        "buffered",
        "deadline",
        "extensions",
        "options",
        "paced",
        "record",
        "started",
        "ticket",
    )

    def __init__(
        self, options: RequestOptions, extensions: dict[str, Any], now: float, *, buffered: bool = False
    ) -> None:
        self.options = options
        self.record = CallRecord()
        self.started = now
        self.deadline = (
            None if options.deadline is UNSET or options.deadline is None else now + options.deadline
        )
        self.buffered = buffered
        self.extensions = extensions
        self.paced = False
        self.broken: httpx.Response | None = None
        self.ticket: tuple[object, int] | None = None

    @classmethod
    def start(cls, request: httpx.Request, now: float) -> "Call":
        options = request.extensions.get(OPTIONS, _NO_OPTIONS)
        if not isinstance(options, RequestOptions):
            msg = f'extensions["stkai"] must be a stkai.RequestOptions, not {type(options).__name__}'
            raise ConfigurationError(msg)
        return cls(options, request.extensions, now)

    def time_left(self, now: float) -> float:
        """Seconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline - now

    def check_deadline(self, now: float, cause: httpx.TimeoutException | None = None) -> None:
        """Go on while time is left.

        Raises:
            DeadlineExceededError: none is left; `cause` is the timeout by which that was noticed.
        """
        if self.deadline is None or now < self.deadline or isinstance(cause, DeadlineExceededError):
            return
        raise self.too_late() from cause

    def too_late(self) -> DeadlineExceededError:
        """What to raise when the deadline has passed."""
        allowed, attempts = self.started if self.deadline is None else self.deadline, self.record.attempts
        allowed -= self.started
        msg = f"no answer within the deadline of {allowed:g} s, at attempt number {attempts}"
        return DeadlineExceededError(msg)

    def limit(self, request: httpx.Request, now: float) -> httpx.Request:
        """The request with no timeout longer than the time that is left.

        Raises:
            DeadlineExceededError: none is left.
        """
        self.check_deadline(now)
        left = self.time_left(now)
        given = request.extensions.get("timeout", {})
        keys = ("connect", "read", "write", "pool")
        timeout = {key: left if given.get(key) is None else min(left, given[key]) for key in keys}
        return copy_request(request, extensions={**request.extensions, "timeout": timeout})

    def finish(self, response: httpx.Response, now: float) -> None:
        """Put the record on the response."""
        record = self.record
        on_wire = now - self.started - record.queued - record.backed_off - record.authenticating
        record.on_wire = on_wire if on_wire > 0 else 0.0
        response.extensions[OPTIONS] = record


def copy_request(
    request: httpx.Request, *, headers: httpx.Headers | None = None, extensions: dict[str, Any] | None = None
) -> httpx.Request:
    """The same request with other headers or extensions; the body stream is shared, the original stays as it is."""
    state = request.__dict__.copy()
    if headers is not None:
        state["headers"] = headers
    if extensions is not None:
        state["extensions"] = extensions
    copy = object.__new__(type(request))
    copy.__dict__ = state
    return copy


def can_resend(request: httpx.Request) -> bool:
    """Whether the body can be sent a second time: only bytes can, a generator or a file may be used up."""
    return isinstance(request.stream, family_of(request).ByteStream)
