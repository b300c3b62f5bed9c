"""A call on its way through a stack, and its attempts: what the layers tell each other.

A `Call` never changes. Each pass of its request through the stack is an `Attempt`, whose fields one layer writes once.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from .._abandonable import Job
from .._errors import ConfigurationError, DeadlineExceededError
from .._families import family_of
from .._urls import DEFAULT_PORTS, origin_of
from ._options import AMBIENT, NO_OPTIONS, UNSET, CallRecord, Priority, RequestOptions

if TYPE_CHECKING:
    from ..events import CallInfo

OPTIONS: Final = "stkai"
"""The extension that holds `RequestOptions` on a request and the `CallRecord` on a response."""

ATTEMPT: Final = "stkai.attempt"
"""The extension that carries an attempt through transports that are not layers."""

_CHAIN: Final = "stkai.chain"
"""The extension that tells a later hop of a call where and when the call began."""

_AUTHORIZATION: Final = "authorization"

_UNAUTHORIZED: Final = 401

_CHALLENGE: Final = "www-authenticate"
"""A 401 with this header makes an auth of httpx send the request again with credentials."""

_numbers = itertools.count(1)


class Chain:
    """The requests of one call of an httpx client: the first, its redirects, and what httpx's own auth sends again.

    Each of them passes through the whole stack and is a `Call` there; they share one deadline and one allowance for
    waiting.

    Attributes:
        began: when the first began, in seconds of the clock.
        queued: seconds that earlier requests spent waiting for permits.
        url: where the first went.
    """

    __slots__ = (
        "_call_id",
        "_is_challenged",
        "_is_redirected",
        "_request",
        "_signed",
        "began",
        "queued",
        "url",
    )

    def __init__(self, call: "Call") -> None:
        request = call.request
        self.began = call.started
        self.queued = 0.0
        self.url = request.url
        self._call_id = call.id
        self._is_redirected = self._is_challenged = False
        self._request = weakref.ref(request)
        self._signed: str | None = None

    def includes(self, request: httpx.Request, call_id: int) -> bool:
        """Whether the request continues the chain: not if it is a new call that copies the extensions of an old one.

        A redirect is another request object. httpx's auth sends the same one again, with other credentials.
        """
        if self._call_id == call_id:
            return True
        if self._request() is not request:
            return self._is_redirected
        return self._is_challenged and request.headers.get(_AUTHORIZATION) != self._signed

    def ended(self, response: httpx.Response, queued: float) -> None:
        """Note the answer to the latest request, which says whether another may follow."""
        self.queued += queued
        self._is_redirected = response.has_redirect_location
        self._is_challenged = response.status_code == _UNAUTHORIZED and _CHALLENGE in response.headers
        if self._is_challenged:
            request = self._request()
            self._signed = None if request is None else request.headers.get(_AUTHORIZATION)

    def is_home(self, url: httpx.URL) -> bool:
        """Whether `url` has the same origin as the first request."""
        return url is self.url or origin_of(url) == origin_of(self.url)

    def __copy__(self) -> "Chain":
        return self

    def __deepcopy__(self, memo: object) -> "Chain":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


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
    def start(cls, request: httpx.Request, now: float, *, buffered: bool = False) -> "Call":
        """Begin a call with the options on the request, and those of `stkai.options` for what it leaves open.

        Raises:
            ConfigurationError: the extension holds something else.
        """
        options = request.extensions.get(OPTIONS, NO_OPTIONS)
        if not isinstance(options, RequestOptions):
            msg = f'extensions["stkai"] must be a stkai.RequestOptions, not {type(options).__name__}'
            raise ConfigurationError(msg)
        ambient = AMBIENT.get()
        if ambient is not NO_OPTIONS:
            options = options.over(ambient)
        # Faster than the constructor.
        call = tuple.__new__(cls, (next(_numbers), request, options, now, None, buffered))
        if options is NO_OPTIONS or options.deadline is UNSET or options.deadline is None:
            return call
        return call.within(options.deadline)

    def within(self, seconds: float) -> "Call":
        """The same call, but it must end within `seconds` of the beginning of its chain."""
        return self._replace(deadline=self.chain().began + seconds)

    def chain(self) -> Chain:
        """The chain of requests that led to this call; a new one if this call begins it."""
        extensions = self.request.extensions
        chain = extensions.get(_CHAIN)
        if not isinstance(chain, Chain) or not chain.includes(self.request, self.id):
            # httpx copies the extensions to the request of the next hop.
            chain = extensions[_CHAIN] = Chain(self)
        return chain

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


class SignatureExpired(Exception):  # noqa: N818 - not an error: the auth layer signs the request again
    """Raised by a limiter layer if the token expired while the request waited; it has given its permit back."""


class Attempt:
    """One pass of a call's request through the stack.

    Attributes:
        call: the call it belongs to.
        number: 1 for the first.
        record: what the caller will see; successive attempts share it.
        place: a limiter and a ticket number: the place in its queue that this attempt returns to, or None.
        ticket: the limiter that admitted it, and its ticket number. Written by the limiter layer.
        paced: whether the limiter handles the wait after the refusal of this attempt. Written by the limiter layer.
        excused: whether the refusal of this attempt does not use up a retry. Written by the limiter layer.
        is_signed: tells whether the token it was signed with is still valid; None if it does not matter. Written by the
            auth layer. After a wait, a limiter layer raises `SignatureExpired` if it is not.
        is_observed: whether a listener receives the events of this call. Written where the call begins.
        closing: ends when the stack is closed, and with it all waits. Written where the call begins.
    """

    place: tuple[object, Any] | None = None
    ticket: tuple[object, Any] | None = None
    paced = excused = False
    is_signed: Callable[[], bool] | None = None
    is_observed = True
    closing: Job | None = None
    _numbers: Iterator[int] | None = None
    _following: "Attempt | None" = None

    def __init__(self, call: Call, number: int = 1, record: CallRecord | None = None) -> None:
        self.call = call
        self.number = number
        self.record = record or CallRecord()

    def again(self) -> "Attempt":
        """The attempt that follows this one; it returns to its place in the queue."""
        previous = self.last
        other = previous._following = self._next(self.record)  # noqa: SLF001
        other.place = previous.ticket or previous.place
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
        self.ticket, self.paced = other.ticket or other.place, other.paced
        self.excused = other.excused

    def _next(self, record: CallRecord) -> "Attempt":
        self.record.attempts += 1
        # Parallel attempts share one sequence of numbers.
        self._numbers = self._numbers or itertools.count(self.number + 1)
        return self._with(self.call, next(self._numbers), record)

    def _own_record(self) -> CallRecord:
        """A record that continues this one, with no attempts of its own yet."""
        return replace(self.record, attempts=0)

    def _with(self, call: Call, number: int, record: CallRecord) -> "Attempt":
        other = Attempt(call, number, record)
        other.is_signed, other.is_observed, other._numbers = self.is_signed, self.is_observed, self._numbers
        other.closing = self.closing
        return other

    def within(self, call: Call) -> "Attempt":
        """The same attempt for a call with another deadline."""
        other = self._following = self._with(call, self.number, self.record)
        other.place = self.place
        return other

    def allowance(self, seconds: float | None) -> float:
        """What is left of so many seconds of waiting for permits; all attempts and redirects of a call share them."""
        return math.inf if seconds is None else seconds - self.record.queued - self.call.chain().queued

    @property
    def info(self) -> "CallInfo":
        """How events describe it."""
        call = self.call
        from ..events import CallInfo  # A call without a listener does not pay for it.

        url = call.request.url
        port = url.port or DEFAULT_PORTS.get(url.scheme)
        return CallInfo(id=call.id, method=call.method, host=call.host, attempt=self.number, port=port)

    def too_late(self, deadline: float) -> DeadlineExceededError:
        """The error to raise when the deadline has passed."""
        allowed, number = deadline - self.call.chain().began, max(self.number, self.record.attempts)
        msg = f"no answer within the deadline of {allowed:g} s, at attempt number {number}"
        return DeadlineExceededError(msg)

    def no_time_for(self, wait: float, left: float) -> DeadlineExceededError:
        """The error to raise when a wait of `wait` seconds would not end before the deadline."""
        msg = f"a permit takes {wait:.3g} s, and the call's deadline leaves {max(0.0, left):.3g} s: nothing was sent"
        return DeadlineExceededError(msg)

    def finish(self, response: httpx.Response, now: float) -> None:
        """Attach the record to the response."""
        record = self.record
        on_wire = now - self.call.started - record.queued - record.backed_off - record.authenticating
        record.on_wire = on_wire if on_wire > 0 else 0.0
        response.extensions[OPTIONS] = record
        chain = self.call.request.extensions.get(_CHAIN)
        if chain is not None:
            chain.ended(response, record.queued)


def cannot_send() -> RuntimeError:
    """The error for a request to a closed transport."""
    return RuntimeError("Cannot send a request, as this transport has been closed: build another one.")


def copy_request(
    request: httpx.Request, *, headers: httpx.Headers | None = None, extensions: dict[str, Any] | None = None
) -> httpx.Request:
    """The same request with other headers or extensions; the body stream is shared, the original is unchanged."""
    state = request.__dict__.copy()
    if headers is not None:
        state["headers"] = headers
    if extensions is not None:
        state["extensions"] = extensions
    copy = object.__new__(type(request))
    copy.__dict__ = state
    return copy


def can_resend(request: httpx.Request) -> bool:
    """Whether the body can be sent again: bytes can, a generator or a file may be used up."""
    return isinstance(request.stream, family_of(request).ByteStream)
