"""A call on its way through a stack, and its attempts: what the layers tell each other.

A `Call` never changes. Each pass of its request through the stack is an `Attempt`, whose fields one layer writes once.
"""

import itertools
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from .._errors import ConfigurationError, DeadlineExceededError
from .._families import family_of
from .._urls import DEFAULT_PORTS, origin_of
from ._options import NO_OPTIONS, UNSET, CallRecord, RequestOptions

if TYPE_CHECKING:
    from ..events import CallInfo

OPTIONS: Final = "stkai"
"""The extension that holds `RequestOptions` on a request and the `CallRecord` on a response."""

ATTEMPT: Final = "stkai.attempt"
"""The extension that carries an attempt through transports that are not layers."""

PACED: Final = "stkai.paced"
"""The extension on a response that a limiter has seen: the limiter handles the wait before the next attempt."""

_FIRST_HOP: Final = "stkai.first_hop"
"""The extension that tells a redirected request where and when its first hop began."""

_numbers = itertools.count(1)


class FirstHop:
    """Where and when a chain of redirects began.

    Attributes:
        call_id: the call that made the first hop.
        began: when it began, in seconds of the clock.
        url: where the first request went.
    """

    __slots__ = ("_request", "began", "call_id", "url")

    def __init__(self, call: "Call") -> None:
        request = call.request
        self.call_id = call.id
        self.began = call.started
        self.url = request.url
        self._request = weakref.ref(request)

    def leads_to(self, request: httpx.Request, call_id: int) -> bool:
        """Whether `request` is a later hop of the same call; False if the caller sends the first request again."""
        return self.call_id == call_id or self._request() is not request

    def is_home(self, url: httpx.URL) -> bool:
        """Whether `url` has the same origin as the first hop."""
        return url is self.url or origin_of(url) == origin_of(self.url)

    def __copy__(self) -> "FirstHop":
        return self

    def __deepcopy__(self, memo: object) -> "FirstHop":
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
        """Begin a call with the options on the request.

        Raises:
            ConfigurationError: the extension holds something else.
        """
        options = request.extensions.get(OPTIONS, NO_OPTIONS)
        # Faster than the constructor.
        call = tuple.__new__(cls, (next(_numbers), request, options, now, None, buffered))
        if options is NO_OPTIONS:
            return call
        if not isinstance(options, RequestOptions):
            msg = f'extensions["stkai"] must be a stkai.RequestOptions, not {type(options).__name__}'
            raise ConfigurationError(msg)
        if options.deadline is UNSET or options.deadline is None:
            return call
        return call.within(options.deadline)

    def within(self, seconds: float) -> "Call":
        """The same call, but it must end within `seconds` of its first hop."""
        return self._replace(deadline=self.first_hop().began + seconds)

    def first_hop(self) -> FirstHop:
        """Where and when the chain of redirects began that led to this call; this call itself if there was none."""
        extensions = self.request.extensions
        hop = extensions.get(_FIRST_HOP)
        if not isinstance(hop, FirstHop) or not hop.leads_to(self.request, self.id):
            # httpx copies the extensions to the request of the next hop.
            hop = extensions[_FIRST_HOP] = FirstHop(self)
        return hop

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    @property
    def host(self) -> str:
        """The host that the caller asked for, without port."""
        return self.request.url.host

    def time_left(self, now: float) -> float:
        """Seconds until the deadline; infinite without one."""
        return math.inf if self.deadline is None else self.deadline - now


class Attempt:
    """One pass of a call's request through the stack.

    Attributes:
        call: the call it belongs to.
        number: 1 for the first.
        record: what the caller will see; successive attempts share it.
        place: a limiter and a ticket number: the place in its queue that this attempt returns to, or None.
        ticket: the limiter that admitted it, and its ticket number. Written by the limiter layer.
        signer, token: the auth layer, and the token it signed the request with. Written by the auth layer.
        is_told: whether somebody hears of this call. Written where the call begins.
    """

    __slots__ = ("_numbers", "call", "is_told", "number", "place", "record", "signer", "ticket", "token")

    def __init__(
        self, call: Call, number: int = 1, record: CallRecord | None = None, place: Any = None
    ) -> None:
        self.call = call
        self.number = number
        self.record = record or CallRecord()
        self.place: tuple[object, int] | None = place
        self.ticket: tuple[object, int] | None = None
        self.signer: Any = None
        self.token: Any = None
        self.is_told = True
        self._numbers: Iterator[int] | None = None

    def again(self) -> "Attempt":
        """The attempt that follows this one; it returns to its place in the queue."""
        return self._next(self.record, self.ticket or self.place)

    def apart(self) -> "Attempt":
        """The same attempt with its own record, for the first of several in parallel; see `absorb`."""
        self._numbers = self._numbers or itertools.count(self.number + 1)
        other = Attempt(self.call, self.number, self._own_record(), self.place)
        other.signer, other.token, other._numbers = self.signer, self.token, self._numbers
        return other

    def beside(self) -> "Attempt":
        """Another attempt in parallel, with its own record; see `absorb`."""
        return self._next(self._own_record(), None)

    def absorb(self, other: "Attempt") -> None:
        """Continue from the parallel attempt whose answer is used: take over its times and its place."""
        mine, theirs = self.record, other.record
        mine.attempts += theirs.attempts
        mine.queued, mine.backed_off = theirs.queued, theirs.backed_off
        mine.authenticating = theirs.authenticating
        self.ticket, self.token = other.ticket, other.token

    def _next(self, record: CallRecord, place: tuple[object, int] | None) -> "Attempt":
        self.record.attempts += 1
        # Parallel attempts share one sequence of numbers.
        numbers = self._numbers = self._numbers or itertools.count(self.number + 1)
        other = Attempt(self.call, next(numbers), record, place)
        other.signer, other.token, other._numbers = self.signer, self.token, numbers
        return other

    def _own_record(self) -> CallRecord:
        """A record that continues this one, with no attempts of its own yet."""
        return replace(self.record, attempts=0)

    def within(self, call: Call) -> "Attempt":
        """The same attempt for a call with another deadline."""
        other = Attempt(call, self.number, self.record, self.place)
        other.signer, other.token, other._numbers = self.signer, self.token, self._numbers
        return other

    @property
    def info(self) -> "CallInfo":
        """How events describe it."""
        call = self.call
        from ..events import CallInfo  # A call that nobody hears of does not pay for it.

        url = call.request.url
        port = url.port or DEFAULT_PORTS.get(url.scheme)
        return CallInfo(id=call.id, method=call.method, host=call.host, attempt=self.number, port=port)

    def too_late(self, deadline: float) -> DeadlineExceededError:
        """The error to raise when the deadline has passed."""
        allowed, number = deadline - self.call.first_hop().began, max(self.number, self.record.attempts)
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
