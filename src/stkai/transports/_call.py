"""A call on its way through a stack, and its attempts: what the layers tell each other.

A `Call` never changes. Each pass of its request through the stack is an `Attempt`, whose fields one layer writes once.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import httpx

from .._abandonable import Latch
from .._errors import ConfigurationError, DeadlineExceededError
from .._log import events
from .._urls import DEFAULT_PORTS
from ._operations import Flow
from ._options import ENTERED, NO_OPTIONS, OPTIONS, UNSET, CallRecord, Priority, RequestOptions
from ._redirect_chain import CHAIN, CONTINUED, Chain, chain_before

ATTEMPT: Final = "stkai.attempt"
"""The extension that carries an attempt through transports that are not layers; or, on the request of a call that has
not begun, a function that is called like a flow, but with the stack's own flow first, and is carried out instead."""

_numbers = itertools.count(1)

# Python looks up attributes of built-in classes anew each time.
_new: Final = object.__new__
_entered: Final = ENTERED.get


class Call(NamedTuple):
    """One call with all its attempts. Immutable; created by the outermost layer, or by the client.

    Attributes:
        id: unique in this process.
        request: the caller's own request.
        options: the options that the caller set.
        started: when the call began, in seconds of the clock.
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
        return cls(next(_numbers), *begin(request, now, buffered))

    def within(self, seconds: float) -> "Call":
        """The same call, but it must end within `seconds` of the beginning of its chain."""
        return self._replace(deadline=self.began + seconds)

    @property
    def began(self) -> float:
        """When the first request of its chain began, in seconds of the clock."""
        chain = chain_before(self.request)
        return self.started if chain is None else chain.began

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
        """The caller's, or "normal"."""
        given = self.options.priority
        return "normal" if given is UNSET else given

    def time_left(self, now: float) -> float:
        """Seconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline - now


# The fields of a `Call` but its id.
Beginning = tuple[httpx.Request, RequestOptions, float, float | None, bool]


def begin(request: httpx.Request, now: float, buffered: bool = False) -> Beginning:
    """Begin a call with the options on the request, and those of `stkai.options` for what it leaves open."""
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
            deadline = (now if chain is None else chain.began) + options.deadline
    return request, options, now, deadline, buffered


class SignatureExpired(Exception):  # noqa: N818 - not an error: the auth layer signs the request again
    """Raised by a limiter layer if the token expired while the request waited; it has given its permit back."""


class Attempt:
    """One pass of a call's request through the stack.

    Attributes:
        request, options, started, deadline, buffered: those of its call.
        number: 1 for the first.
        place: a limiter and a turn: the place in its queue to which this attempt returns, or None; once a limiter has
            admitted it, that one and its turn. Written by the limiter layer.
        paced: whether the limiter handles the wait after the refusal of this attempt. Written by the limiter layer.
        excused: whether the refusal of this attempt does not use up a retry. Written by the limiter layer.
        is_signed: tells whether the token it was signed with is still valid; None if it does not matter. Written by the
            auth layer. After a wait, a limiter layer raises `SignatureExpired` if it is not.
        is_observed: whether a listener receives the events of this call. Written where the call begins.
        closed: set when the stack is closed, and with it all waits. Written where the call begins.
    """

    paced = excused = False
    number = 1
    _numbers: Iterator[int] | None = None

    def __init__(self, call: Call | Beginning, closed: Latch | None = None, is_observed: bool = True) -> None:
        # Python reads what has a default on the class more slowly: these are read in every call. And it makes an object
        # faster if its `__init__` gets each argument, and all by position.
        self._call = call
        self.request, self.options, self.started, self.deadline, self.buffered = (
            call[1:] if isinstance(call, Call) else call
        )
        self.closed = closed
        self.is_observed = is_observed
        self.place: tuple[object, Any] | None = None
        self.is_signed: Callable[[], bool] | None = None
        self._record: CallRecord | None = None
        self._info: events.CallInfo | None = None
        self._following: Attempt | None = None

    @property
    def call(self) -> Call:
        """The call it belongs to; all its attempts share it."""
        if not isinstance(self._call, Call):
            self._call = Call(next(_numbers), *self._call)
        return self._call

    @property
    def record(self) -> CallRecord:
        """What the caller will see; successive attempts share it."""
        if self._record is None:  # Most calls write nothing into it until they end.
            self._record = CallRecord()
        return self._record

    def again(self) -> "Attempt":
        """The attempt that follows this one; it returns to its place in the queue."""
        previous = self.last
        other = previous._following = self._next(self.record)  # noqa: SLF001
        other.place = previous.place
        return other

    @property
    def last(self) -> "Attempt":
        """The latest attempt that followed this one: a layer further in may have made some of its own."""
        attempt = self
        while attempt._following is not None:
            attempt = attempt._following
        return attempt

    def apart(self) -> "Attempt":
        """The same attempt with its own record, for the first of several in parallel; see `absorb`."""
        self._numbers = self._numbers or itertools.count(self.number + 1)
        other = self._with(self.call, self.number, self._own_record())
        other.place = self.place
        return other

    def beside(self) -> "Attempt":
        """Another attempt in parallel, with its own record; see `absorb`."""
        return self._next(self._own_record())

    def absorb(self, other: "Attempt") -> None:
        """Continue from the parallel attempt whose answer is used: take over its times and its place."""
        mine, theirs, other = self.record, other.record, other.last
        mine.attempts += theirs.attempts
        mine.queued, mine.backed_off = theirs.queued, theirs.backed_off
        mine.authenticating = theirs.authenticating
        self.place, self.paced, self.excused = other.place or self.place, other.paced, other.excused

    def _next(self, record: CallRecord) -> "Attempt":
        self.record.attempts += 1
        # Parallel attempts share one sequence of numbers.
        self._numbers = self._numbers or itertools.count(self.number + 1)
        return self._with(self.call, next(self._numbers), record)

    def _own_record(self) -> CallRecord:
        """A record that continues this one, with no attempts of its own yet."""
        return replace(self.record, attempts=0)

    def _with(self, call: Call, number: int, record: CallRecord) -> "Attempt":
        other = Attempt(call, self.closed, self.is_observed)
        other.number, other._record = number, record
        other.is_signed, other._numbers = self.is_signed, self._numbers
        return other

    def within(self, call: Call) -> "Attempt":
        """The same attempt for a call with another deadline."""
        other = self._following = self._with(call, self.number, self.record)
        other.place = self.place
        return other

    def allowance(self, seconds: float | None) -> float:
        """What is left of so many seconds of waiting for permits; all attempts and redirects of a call share them."""
        if seconds is None:
            return math.inf
        chain = chain_before(self.request)
        return seconds - self.record.queued - (0.0 if chain is None else chain.queued)

    @property
    def info(self) -> "events.CallInfo":
        """How events describe it."""
        if self._info is None:
            call = self.call
            url = call.request.url
            port = url.port or DEFAULT_PORTS.get(url.scheme)
            self._info = events.CallInfo(
                id=call.id, method=call.method, host=url.host, attempt=self.number, port=port
            )
        return self._info

    def too_late(self, deadline: float) -> DeadlineExceededError:
        """The error to raise when the deadline has passed."""
        allowed, number = deadline - self.call.began, max(self.number, self.record.attempts)
        msg = f"no answer within the deadline of {allowed:g} s, at attempt number {number}"
        return DeadlineExceededError(msg)

    def forget_places(self) -> None:
        """Drop the references to the call's limiters: a wire may keep sent requests, and these keep their attempts."""
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
    if attempt.closed is not None and attempt.closed.is_done:
        raise cannot_send()


Enter = Callable[[httpx.Request, Attempt], Flow]  # Such as a layer's `flow`.


def ending_with(ending: Latch, flow: Enter, request: httpx.Request, attempt: Attempt) -> Flow:
    """The same flow, which waits no longer, for example for a permit, once `ending` or the stack has ended."""
    assert attempt.closed is not None
    with attempt.closed.ending_also(ending):
        attempt.closed = ending
        return (yield from flow(request, attempt))
