"""A wire that plays a script: the innermost transport of transport tests, sync and async in one object."""

import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import httpx

T = TypeVar("T")

if TYPE_CHECKING:

    class BothTransports(httpx.BaseTransport, httpx.AsyncBaseTransport):
        pass

    class BothStreams(httpx.SyncByteStream, httpx.AsyncByteStream):
        pass

else:
    BothTransports = BothStreams = object

_made: dict[tuple[type, str], Any] = {}


def of_package(kind: type[T], package: Any, *bases: str) -> type[T]:
    """The class with these bases from a package, httpx or httpx2."""
    key = (kind, package.__name__)
    if key not in _made:
        _made[key] = type(kind.__name__, (kind, *(getattr(package, base) for base in bases)), {})
    made: type[T] = _made[key]
    return made


Answer: TypeAlias = int | httpx.Response | Exception
Handler: TypeAlias = Callable[[httpx.Request], Answer | Coroutine[Any, Any, Answer]]


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    msg = "the body awaited something that needs an event loop, in the sync world: go through `world`"
    raise AssertionError(msg)


def of_streams(kind: type[T]) -> type[T]:
    """The class as a body of the package under test."""
    return of_package(kind, httpx, "SyncByteStream", "AsyncByteStream")


class Wire(BothTransports):
    """Answers requests from a script, and remembers them.

    The script is a list of answers, used one by one (one request too many fails the test), or one handler that is
    called each time. An answer is a status, a response, or an exception to raise. A handler may be an `async def` that
    waits through `world`. Responses reach the caller unread, as from a real wire, so that open ones can be counted.

    Attributes:
        requests: the requests that arrived, in order.
        bodies: the bytes of their bodies.
        timeouts: their timeouts, as they were on arrival.
        closed: whether the transport itself was closed.
        package: the one it belongs to: the package under test, unless a subclass sets another.
    """

    package: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # `httpx` here is httpx2 in the tests of that package: see `package` in conftest.py.
        package = cls.package or httpx
        wire = object.__new__(of_package(cls, package, "BaseTransport", "AsyncBaseTransport"))
        wire.package = package
        return wire

    def __init__(self, *script: Answer | Handler) -> None:
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.timeouts: list[dict[str, float | None]] = []
        self.closed = False
        self._streams: list[_Stream] = []
        self._lock = threading.Lock()
        self._handler = script[0] if len(script) == 1 and callable(script[0]) else None
        self._script = iter(script)

    @property
    def open(self) -> int:
        """How many of the returned responses have not been closed."""
        return sum(not stream.closed for stream in self._streams)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, self.package.SyncByteStream), "an async body arrived at a sync wire"
        answer = self._ask(request, b"".join(request.stream))
        return self._respond(finish(answer) if isinstance(answer, Coroutine) else answer)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, self.package.AsyncByteStream), (
            "a sync body arrived at an async wire"
        )
        answer = self._ask(request, b"".join([chunk async for chunk in request.stream]))
        return self._respond(await answer if isinstance(answer, Coroutine) else answer)

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True

    def _ask(self, request: httpx.Request, body: bytes) -> Answer | Coroutine[Any, Any, Answer]:
        with self._lock:
            self.requests.append(request)
            self.bodies.append(body)
            self.timeouts.append(dict(request.extensions.get("timeout", {})))
            answer = self._handler or next(self._script, None)
        assert answer is not None, f"request number {len(self.requests)} has no answer in the script"
        return answer(request) if callable(answer) else answer

    def _respond(self, answer: Answer) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        response: type[httpx.Response] = self.package.Response
        given = response(answer) if isinstance(answer, int) else answer
        stream = of_package(_Stream, self.package, "SyncByteStream", "AsyncByteStream")(given.stream)
        with self._lock:
            self._streams.append(stream)
        return response(
            given.status_code, headers=given.headers, stream=stream, extensions=dict(given.extensions)
        )


class _Stream(BothStreams):
    """A response body that knows whether it was closed."""

    def __init__(self, inner: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self._inner = inner
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._inner, Iterable)
        yield from self._inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._inner, AsyncIterable)
        async for chunk in self._inner:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Foreign(BothTransports):
    """A transport around another one that knows nothing of stkai, and passes everything on.

    Attributes:
        log: "in" and "out" for each request.
    """

    def __new__(cls, *_: Any) -> Self:
        return object.__new__(of_package(cls, httpx, "BaseTransport", "AsyncBaseTransport"))

    def __init__(self, inner: Any = None) -> None:
        self.inner, self.log = inner, list[str]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.log.append("in")
        response: httpx.Response = self.inner.handle_request(request)
        self.log.append("out")
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.log.append("in")
        response: httpx.Response = await self.inner.handle_async_request(request)
        self.log.append("out")
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
