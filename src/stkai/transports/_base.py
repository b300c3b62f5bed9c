"""What every layer stands on: the call that travels inward, the context of a stack, and the two base transports."""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from .._clock import Clock, SystemClock, uniform
from .._errors import ConfigurationError, DeadlineExceededError
from .._events import Event, Listener, log_event, logger
from .._options import UNSET, CallRecord, RequestOptions

OPTIONS: Final = "stkai"
"""The extension that holds `RequestOptions` on a request and the `CallRecord` on a response."""

CALL: Final = "stkai.call"
"""The extension in which the running call travels from layer to layer."""

_NO_OPTIONS: Final = RequestOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a stack gives to each of its layers: time, chance, and somebody to tell.

    Attributes:
        clock: where time comes from.
        listener: called with every event; its exceptions are logged and go no further.
        random: draws a number in [0, 1).
    """

    clock: Clock = field(default_factory=SystemClock)
    listener: Listener = log_event
    random: Callable[[], float] = uniform

    def emit(self, event: Event) -> None:
        """Tell the listener. Whatever it raises is logged: an observer does not fail a request."""
        try:
            self.listener(event)
        except Exception:  # noqa: BLE001 - user code; whatever it raises
            logger.exception("the listener failed on %s", event)


class Call:
    """One call on its way through a stack, with all its attempts; the outermost layer, or the client, starts it.

    Attributes:
        options: what the caller set.
        record: what the caller will learn.
        deadline: the instant (monotonic seconds) at which the call must have ended, or None.
        buffered: the caller wants the whole body, so that retry reads it inside the attempt.
        extensions: those of the caller's own request, which travel on when it is redirected.
        paced: a limiter below keeps the wait before the next attempt; nobody else needs to.
        ticket: the place in that limiter's queue to which the call goes back.
    """

    __slots__ = ("buffered", "deadline", "extensions", "options", "paced", "record", "started", "ticket")

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
        self.ticket: int | None = None

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
        allowed, attempts = self.deadline - self.started, self.record.attempts
        msg = f"no answer within the deadline of {allowed:g} s, at attempt number {attempts}"
        raise DeadlineExceededError(msg) from cause

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

    def limit_body(self, response: httpx.Response, clock: Clock) -> httpx.Response:
        """The response; where the caller waits for the whole body, that ends with the deadline as well."""
        if self.buffered and not isinstance(response.stream, _LimitedBody):
            response.stream = _LimitedBody(response.stream, self, clock)
        return response

    def finish(self, response: httpx.Response, now: float) -> None:
        """Put the record on the response."""
        record = self.record
        record.on_wire = max(
            0.0, now - self.started - record.queued - record.backed_off - record.authenticating
        )
        response.extensions[OPTIONS] = record


class _LimitedBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that must be there by the call's deadline: a timeout bounds single reads, not how many there are."""

    def __init__(self, body: httpx.SyncByteStream | httpx.AsyncByteStream, call: Call, clock: Clock) -> None:
        self._body: Any = body
        self._call = call
        self._clock = clock

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._body:
                self._call.check_deadline(self._clock.monotonic())
                yield chunk
        except httpx.TimeoutException as error:
            self._call.check_deadline(self._clock.monotonic(), error)
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._body:
                self._call.check_deadline(self._clock.monotonic())
                yield chunk
        except httpx.TimeoutException as error:
            self._call.check_deadline(self._clock.monotonic(), error)
            raise

    def close(self) -> None:
        self._body.close()

    async def aclose(self) -> None:
        await self._body.aclose()


def copy_request(
    request: httpx.Request, *, headers: httpx.Headers | None = None, extensions: dict[str, Any] | None = None
) -> httpx.Request:
    """The same request with other headers or extensions; the body stream is shared, the original stays as it is."""
    copy = object.__new__(type(request))
    copy.__dict__.update(request.__dict__)
    if headers is not None:
        copy.headers = headers
    if extensions is not None:
        copy.extensions = extensions
    return copy


def can_resend(request: httpx.Request) -> bool:
    """Whether the body can be sent a second time: only bytes can, a generator or a file may be used up."""
    return isinstance(request.stream, httpx.ByteStream)


class LayerTransport(httpx.BaseTransport):
    """Base of the sync layers: override `handle_call`, and send inward with `forward`.

    Raises:
        ConfigurationError: `inner` is not a sync transport.
    """

    name = "layer"

    def __init__(self, inner: httpx.BaseTransport, *, context: Context | None = None) -> None:
        if not isinstance(inner, httpx.BaseTransport):
            msg = f"{type(self).__name__} needs an httpx.BaseTransport inside, not {_describe(inner)}"
            raise ConfigurationError(msg)
        self.inner = inner
        self.context = context or Context()

    def __str__(self) -> str:
        return _chain(self.name, self.inner)

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Do this layer's work for one pass of a request. Here: nothing."""
        return self.forward(request, call)

    def forward(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Send the request to the next layer, within what is left of the deadline.

        Raises:
            DeadlineExceededError: nothing is left, or a timeout that was cut to what was left has run out.
        """
        if call.deadline is None:
            return self.inner.handle_request(request)
        clock = self.context.clock
        try:
            response = self.inner.handle_request(call.limit(request, clock.monotonic()))
        except httpx.TimeoutException as error:
            call.check_deadline(clock.monotonic(), error)
            raise
        return call.limit_body(response, clock)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        call = request.extensions.get(CALL)
        if call is not None:
            return self.handle_call(request, call)
        clock = self.context.clock
        call = Call.start(request, clock.monotonic())
        try:
            inner = copy_request(request, extensions={**request.extensions, CALL: call})
            response = self.handle_call(inner, call)
        except httpx.RequestError as error:
            error.request = request
            raise
        call.finish(response, clock.monotonic())
        return response

    def close(self) -> None:
        self.inner.close()

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.inner.__exit__(exc_type, exc_value, traceback)


class AsyncLayerTransport(httpx.AsyncBaseTransport):
    """Base of the async layers, on asyncio and trio: override `handle_call`, and send inward with `forward`.

    Raises:
        ConfigurationError: `inner` is not an async transport.
    """

    name = "layer"

    def __init__(self, inner: httpx.AsyncBaseTransport, *, context: Context | None = None) -> None:
        if not isinstance(inner, httpx.AsyncBaseTransport):
            msg = f"{type(self).__name__} needs an httpx.AsyncBaseTransport inside, not {_describe(inner)}"
            raise ConfigurationError(msg)
        self.inner = inner
        self.context = context or Context()

    def __str__(self) -> str:
        return _chain(self.name, self.inner)

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Do this layer's work for one pass of a request. Here: nothing."""
        return await self.forward(request, call)

    async def forward(self, request: httpx.Request, call: Call) -> httpx.Response:
        """Send the request to the next layer, within what is left of the deadline.

        Raises:
            DeadlineExceededError: nothing is left, or a timeout that was cut to what was left has run out.
        """
        if call.deadline is None:
            return await self.inner.handle_async_request(request)
        clock = self.context.clock
        try:
            response = await self.inner.handle_async_request(call.limit(request, clock.monotonic()))
        except httpx.TimeoutException as error:
            call.check_deadline(clock.monotonic(), error)
            raise
        return call.limit_body(response, clock)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = request.extensions.get(CALL)
        if call is not None:
            return await self.handle_call(request, call)
        clock = self.context.clock
        call = Call.start(request, clock.monotonic())
        try:
            inner = copy_request(request, extensions={**request.extensions, CALL: call})
            response = await self.handle_call(inner, call)
        except httpx.RequestError as error:
            error.request = request
            raise
        call.finish(response, clock.monotonic())
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.inner.__aexit__(exc_type, exc_value, traceback)


def _chain(name: str, inner: object) -> str:
    """A stack in words, outermost first."""
    return f"{name} > {inner if isinstance(inner, LayerTransport | AsyncLayerTransport) else 'wire'}"


def _describe(inner: object) -> str:
    kind = type(inner).__name__
    if isinstance(inner, httpx.AsyncBaseTransport):
        return f"the async {kind}: build the async stack, or pass a sync wire such as httpx.HTTPTransport()"
    if isinstance(inner, httpx.BaseTransport):
        return (
            f"the sync {kind}: build the sync stack, or pass an async wire such as httpx.AsyncHTTPTransport()"
        )
    return f"{inner!r}" if isinstance(inner, type) else f"a {kind}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A recipe for one layer of a stack: a name, and how to put it around an inner transport, sync and async.

    Attributes:
        name: unique in a stack.
        sync: called as `sync(inner, context=context)`; returns an `httpx.BaseTransport`.
        asynchronous: the same for `httpx.AsyncBaseTransport`.
        policy: what the layer obeys, if it likes to be asked; two stacks that hold the same object share its state.
    """

    name: str
    sync: Callable[..., httpx.BaseTransport]
    asynchronous: Callable[..., httpx.AsyncBaseTransport]
    policy: object = None

    def __str__(self) -> str:
        return self.name
