"""Wires for HTTP/2, whose few connections carry many requests at once.

httpcore resets no stream of a request that is given up: its answer would still arrive, and use up the streams and the
window of the connection. So a wire on which that has happened takes no new requests, and is closed when it has none
left.
"""

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, TypeVar

import httpx

from .._clock import SystemClock
from .._errors import describe
from .._event_loops import anyio, running_loop
from .._families import HTTPX, Family, adopt, alike, of_family
from .._forks import begin_in_each_process
from ..transports._body_end import BodyEnd, when_body_ends
from ..transports._retry.policy import NOT_SENT
from .lifetimes import AsyncClosable, Closable
from .network import connection_with_leftovers

T = TypeVar("T")


class _Use(Generic[T]):
    """A wire for HTTP/2, and how many requests are on it."""

    def __init__(self, wire: T) -> None:
        self.wire, self.requests = wire, 0


class _Wires(Generic[T]):
    """The wire that takes new requests, and those that only finish theirs.

    Attributes:
        trash: wires to close, for anyone who finds them.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.trash: deque[T] = deque()
        self._lock = threading.Lock()
        self._newest = _Use(make())
        self._finishing: list[_Use[T]] = []
        self._ended: deque[tuple[_Use[T], bool]] = deque()

    def take(self) -> _Use[T]:
        """The wire for a new request."""
        with self._lock:
            while self._ended:
                use, is_clean = self._ended.popleft()
                use.requests -= 1
                if not is_clean and use is self._newest:
                    self._finishing.append(use)
                    self._newest = _Use(self._make())
            self.trash.extend(use.wire for use in self._finishing if not use.requests)
            self._finishing = [use for use in self._finishing if use.requests]
            self._newest.requests += 1
            return self._newest

    def failed(self, use: _Use[T], error: BaseException) -> None:
        """Note that a request has no answer."""
        self._ended.append((use, isinstance(error, alike(*NOT_SENT))))

    def answered(self, use: _Use[T], response: httpx.Response) -> None:
        """Note the end of an answer, when it comes."""
        when_body_ends(response, lambda how: self._ended.append((use, how is BodyEnd.WHOLE)))

    def all(self) -> list[T]:
        """All wires that are open."""
        with self._lock:
            return [*self.trash, *(use.wire for use in (self._newest, *self._finishing))]


@contextmanager
def _named_errors(request: httpx.Request) -> Iterator[None]:
    """Turn what httpcore raises on a connection that another request has broken into an error of httpx that says so.

    If the first request is cancelled while the connection is made, the others fail with errors of h2, or of a
    semaphore. If one runs into its read timeout, so do all, however long theirs are.
    """
    start = _now()
    try:
        yield
    except Exception as error:
        if isinstance(error, alike(httpx.ReadTimeout)):
            most = request.extensions.get("timeout", {}).get("read")
            is_of_another = most is None or _now() - start < _NEARLY * most
        else:
            is_of_another = type(error).__module__.startswith("h2.") or str(error) in _SEMAPHORE
        if not is_of_another:
            raise
        named = httpx.RemoteProtocolError(f"the HTTP/2 connection is disconnected: {describe(error)}")
        adopt(named, request)
        named.request = request
        raise named from error


_now: Final = SystemClock.monotonic

_NEARLY: Final = 0.9
"""A share of a timeout; whatever times out earlier had another one."""

_SEMAPHORE: Final = ("semaphore released too many times", "can't release past max_value")
"""The words of anyio's and trio's semaphores."""


class Multiplexed(Closable):
    """Sends all requests over the connections of one wire; a forked child makes its own.

    Args:
        make: makes a wire.
        family: its package.
    """

    def __init__(self, make: Callable[[], httpx.BaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._make = make
        self._body = of_family(_Body, family)
        begin_in_each_process(self, Multiplexed._begin)

    def _begin(self) -> None:
        self._wires = _Wires(self._make)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        wires = self._wires
        use = wires.take()
        try:
            while wires.trash:
                with suppress(IndexError):  # Another thread was faster.
                    wires.trash.popleft().close()
            with _named_errors(request):
                response = use.wire.handle_request(request)
        except BaseException as error:
            wires.failed(use, error)
            raise
        response.stream = self._body(response.stream, request)
        wires.answered(use, response)
        return response

    def _close(self) -> None:
        for wire in self._wires.all():
            wire.close()


class _Body(httpx.SyncByteStream):
    """A body whose errors say what broke it."""

    def __init__(self, body: Any, request: httpx.Request) -> None:
        self._body, self._request = body, request

    def __iter__(self) -> Iterator[bytes]:
        with _named_errors(self._request):
            yield from self._body

    def close(self) -> None:
        with _named_errors(self._request):
            if (connection := connection_with_leftovers(self._body)) is not None:
                connection.close()
            self._body.close()


class AsyncMultiplexed(AsyncClosable):
    """The async version, for the event loop that runs when it is made; `WirePerLoop` handles loops and forks."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._wires = _Wires(make)
        self._loop = running_loop()
        self._body = of_family(_BodyOfLoop, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        wires = self._wires
        use = wires.take()
        try:
            while wires.trash:
                with anyio.CancelScope(shield=True):
                    await wires.trash.popleft().aclose()
            with _named_errors(request):
                response = await use.wire.handle_async_request(request)
        except BaseException as error:
            wires.failed(use, error)
            raise
        response.stream = self._body(response.stream, self._loop, request)
        wires.answered(use, response)
        return response

    async def _aclose(self) -> None:
        for wire in self._wires.all():
            await wire.aclose()


class _BodyOfLoop(httpx.AsyncByteStream):
    """A body that can be closed, along with its connection, after its loop has ended."""

    def __init__(self, body: Any, loop: Any, request: httpx.Request) -> None:
        self._body, self._loop, self._request = body, loop, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _named_errors(self._request):
            async for part in self._body:
                yield part

    async def aclose(self) -> None:
        if self._loop is running_loop():
            with _named_errors(self._request):
                if (connection := connection_with_leftovers(self._body)) is not None:
                    await connection.aclose()
                await self._body.aclose()
