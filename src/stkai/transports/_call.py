"""A call on its way through a stack, and its attempts: what layers pass to each other.

A `Call` never changes. Each pass of its request through the stack is an `Attempt`; one layer sets each of its fields.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

import httpx

from .._abandonable import GivenUpError, Latch
from .._errors import ConfigurationError, DeadlineExceededError
from .._families import alike
from .._log import events
from .._urls import port_of
from ._operations import Flow
from ._options import ENTERED, NO_OPTIONS, OPTIONS, UNSET, CallRecord, Priority, RequestOptions
from ._redirect_chain import CHAIN, CONTINUED, Chain, chain_before

ATTEMPT: Final = "stkai.attempt"
"""The extension that carries an attempt through transports that are not layers. On the request of a call that has not
begun, it may hold a function to run instead of the stack's flow; the function's first argument is that flow."""

RESERVED: Final = "stkai.reserved"
"""The extension with the connection reserved for a request: a list, since only one copy of the request may take it."""

_numbers: Final = itertools.count(1)

# Bound once, since Python does not cache the lookup.
_new: Final = object.__new__
_entered: Final = ENTERED.get


class Call(NamedTuple):
    """One call with all its attempts. Immutable; created by the outermost layer, or by the client.

    Attributes:
        id: unique in this process.
        request: the caller's own request.
        options: the options that the caller set.
        started: when the call started, in seconds of the clock.
        deadline: when the call must have ended, in seconds of the clock, or None.
        buffered: whether the caller wants the whole body, so that retry reads it inside the attempt.
    """

    id: int
    request: httpx.Request
    options: RequestOptions
    started: float
    deadline: float | None
    buffered: bool

    @classmethod
    def start(cls, request: httpx.Request, now: float, buffered: bool = False) -> "Call":
        """Begin a call; see `begin`."""
        return cls(next(_numbers), *begin(request, now, buffered)[1:])

    def within(self, seconds: float) -> "Call":
        """The same call, with a deadline `seconds` after the start of its chain."""
        return self._replace(deadline=self.began + seconds)

    @property
    def began(self) -> float:
        """When the first request of its chain started, in seconds of the clock."""
        chain = chain_before(self.request)
        return self.started if chain is None else chain.started

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    @property
    def host(self) -> str:
        """The host that the caller asked for, without port."""
        return self.request.url.host

    @property
    def priority(self) -> Priority:
        """The caller's priority; "normal" by default."""
        given = self.options.priority
        return "normal" if given is UNSET else given

    def time_left(self, now: float) -> float:
        """Seconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline - now


Beginning = tuple[None, httpx.Request, RequestOptions, float, float | None, bool]
"""The fields of a `Call`, whose id is assigned when it is first needed."""


def begin(request: httpx.Request, now: float, buffered: bool = False) -> Beginning:
    """Begin a call with the options on the request, completed by those of `stkai.options`."""
    options, deadline = NO_OPTIONS, None
    if OPTIONS in request.extensions or _entered():
        options = request.extensions.get(OPTIONS, NO_OPTIONS)
        if not isinstance(options, RequestOptions):
            msg = f'extensions["stkai"] must be a stkai.RequestOptions, not {type(options).__name__}'
            raise ConfigurationError(msg)
        entered = _entered()
        if entered:
            options = options.over(entered[-1][1])
        if options.deadline is not UNSET and options.deadline is not None:
            chain = chain_before(request)
            deadline = (now if chain is None else chain.started) + options.deadline
    return None, request, options, now, deadline, buffered


class SignatureExpired(Exception):  # noqa: N818 - not an error: the auth layer signs the request again
    """Raised by a limiter layer if the token expired while the request waited; its permit has been returned."""


class Attempt:
    """One pass of a call's request through the stack.

    Attributes:
        request, options, started, deadline, buffered: those of its call.
        number: 1 for the first.
        place: a limiter and a turn, or None: the place in the limiter's queue to which this attempt returns or, after
            its admission, the limiter that admitted it and its turn. Set by the limiter layer.
        paced: whether the limiter handles the wait after the refusal of this attempt. Set by the limiter layer.
        excused: whether the refusal of this attempt does not use up a retry. Set by the limiter layer.
        is_signed: returns whether the token that signed it is still valid; None if that does not matter. Set by the
            auth layer. After a wait, a limiter layer raises `SignatureExpired` if it is not.
        is_observed: whether a listener receives the events of this call. Set where the call begins and ends.
        closing: set when the stack is closed, which ends all waits. Set where the call begins.
        causes: why the attempts before it were followed by another. Set by the retry layer.
    """

    paced = excused = False
    number = 1
    causes: tuple[str, ...] = ()
    _numbers: Iterator[int] | None = None

    def __init__(
        self, call: Call | Beginning, closing: Latch | None = None, is_observed: bool = True
    ) -> None:
        # For speed: every call reads these attributes, and those with a default on the class are slower to read. Python
        # also creates an object faster if its `__init__` gets all arguments, and by position.
        self._call = call
        _, self.request, self.options, self.started, self.deadline, self.buffered = call
        self.closing = closing
        self.is_observed = is_observed
        self.place: tuple[object, Any] | None = None
        self.is_signed: Callable[[], bool] | None = None
        self._record: CallRecord | None = None
        self._info: events.CallInfo | None = None
        self._following: Attempt | None = None

    @property
    def call(self) -> Call:
        """The call that it belongs to, and that all its attempts share."""
        if not isinstance(self._call, Call):
            self._call = Call(next(_numbers), *self._call[1:])
        return self._call

    @property
    def record(self) -> CallRecord:
        """The record that the caller will see; successive attempts share it."""
        if self._record is None:  # Most calls need none until they end.
            self._record = CallRecord()
        return self._record

    def again(self) -> "Attempt":
        """The attempt that follows this one; it returns to its place in the queue."""
        previous = self.last
        other = previous._following = self._next(self.record, previous.place)  # noqa: SLF001
        return other

    @property
    def last(self) -> "Attempt":
        """The latest attempt that followed this one: layers further inside may have made some of their own."""
        attempt = self
        while attempt._following is not None:
            attempt = attempt._following
        return attempt

    def apart(self) -> "Attempt":
        """The same attempt with a record of its own, for the first of several in parallel; see `absorb`."""
        self._numbers = self._numbers or itertools.count(self.number + 1)
        return self._with(self.call, self.number, replace(self.record, attempts=0), self.place)

    def beside(self) -> "Attempt":
        """Another attempt in parallel, with a record of its own; see `absorb`."""
        return self._next(replace(self.record, attempts=0))

    def absorb(self, other: "Attempt") -> None:
        """Continue from the parallel attempt whose answer is used: take over its times and its place in the queue."""
        mine, theirs, other = self.record, other.record, other.last
        mine.attempts += theirs.attempts
        mine.queued, mine.backed_off = theirs.queued, theirs.backed_off
        mine.authenticating = theirs.authenticating
        self.place, self.paced, self.excused = other.place or self.place, other.paced, other.excused

    def _next(self, record: CallRecord, place: Any = None) -> "Attempt":
        self.record.attempts += 1
        # Parallel attempts are numbered together.
        self._numbers = self._numbers or itertools.count(self.number + 1)
        return self._with(self.call, next(self._numbers), record, place)

    def _with(self, call: Call, number: int, record: CallRecord, place: Any = None) -> "Attempt":
        other = Attempt(call, self.closing, self.is_observed)
        other.number, other._record, other.place = number, record, place
        other.is_signed, other._numbers, other.causes = self.is_signed, self._numbers, self.causes
        return other

    def within(self, call: Call) -> "Attempt":
        """The same attempt for a call with another deadline."""
        self._following = self._with(call, self.number, self.record, self.place)
        return self._following

    def allowance(self, seconds: float | None) -> float:
        """How much is left of the `seconds` of waiting for permits that all attempts and redirects of a call share."""
        if seconds is None:
            return math.inf
        chain = chain_before(self.request)
        return seconds - self.record.queued - (0.0 if chain is None else chain.queued)

    @property
    def info(self) -> "events.CallInfo":
        """Its description in events."""
        if self._info is None:
            call = self.call
            port = port_of(call.request.url)
            self._info = events.CallInfo(
                id=call.id, method=call.method, host=call.host, attempt=self.number, port=port
            )
        return self._info

    def too_late(self, deadline: float) -> DeadlineExceededError:
        """The error to raise when the deadline has passed."""
        allowed, number = deadline - self.call.began, max(self.number, self.record.attempts)
        msg = f"no answer within the deadline of {allowed:g} s, at attempt number {number}"
        return DeadlineExceededError(msg)

    @contextmanager
    def deadline_errors(self, deadline: float, left: Callable[[], float]) -> Iterator[None]:
        """Turn a GivenUpError, and a timeout when no time is `left()`, into the error of the deadline."""
        try:
            yield
        except GivenUpError:
            raise self.too_late(deadline) from None
        except alike(httpx.TimeoutException) as error:
            if left() > 0 or isinstance(error, DeadlineExceededError):
                raise
            raise self.too_late(deadline) from error

    def forget_places(self) -> None:
        """Drop references to limiters: a wire may keep the requests that it has sent, which refer to their attempts."""
        attempt: Attempt | None = self
        while attempt is not None:
            attempt.place = None
            attempt = attempt._following  # noqa: SLF001

    def finish(self, response: httpx.Response, now: float) -> None:
        """Attach the record to the response."""
        record = self._record
        self.place = None
        if self._following is not None:
            self.forget_places()
        if record is None:
            record = self._record = _new(CallRecord)  # Faster than the constructor.
            record.attempts, record.on_wire = 1, now - self.started
            record.queued = record.backed_off = record.authenticating = 0.0
        else:
            rest = now - self.started - record.queued - record.backed_off - record.authenticating
            record.on_wire = max(0.0, rest)
        response.extensions[OPTIONS] = record
        if response.status_code in CONTINUED or CHAIN in self.request.extensions:
            chain = chain_before(self.request) or Chain(self.request, self.started)
            chain.ended(response, record.queued)
            self.request.extensions[CHAIN] = chain


def cannot_send() -> RuntimeError:
    """The error for a request to a closed transport."""
    return RuntimeError("Cannot send a request, as this transport has been closed: build another one.")


def require_open(attempt: Attempt) -> None:
    """Raise an error if the stack was closed."""
    if attempt.closing is not None and attempt.closing.is_done:
        raise cannot_send()


Enter = Callable[[httpx.Request, Attempt], Flow]
"""The type of a layer's `flow`."""


def ending_with(ending: Latch, flow: Enter, request: httpx.Request, attempt: Attempt) -> Flow:
    """The same flow, which stops waiting, for example for a permit, once `ending` is set or the stack is closed."""
    assert attempt.closing is not None
    with attempt.closing.ending_also(ending):
        attempt.closing = ending
        return (yield from flow(request, attempt))
