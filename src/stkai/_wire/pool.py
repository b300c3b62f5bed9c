"""Connections side by side: a wire whose cost per request does not grow with the requests in flight.

httpcore's pool looks at all its connections, and asks the system about each idle one, whenever a request begins or
ends. Here each connection is its own wire with room for one, and a request takes the most recently used: it costs what
it costs with a single connection. The limits apply to all of them together. Requests that find all connections in use
wait in line, as long as their pool timeout allows.
"""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import httpx

from .._clock import SystemClock
from .._event_loops import run_soon, running_loop
from .._families import HTTPX, Family, of_family
from .closing import AsyncClosable, Closable
from .lease import Lease
from .shelf import Shelf

_CLOCK = SystemClock()

_CONNECTION: Final = b"connection"
_LENGTH: Final = len(_CONNECTION)


def _lease(shelf: Shelf[Any], request: httpx.Request) -> Lease[Any]:
    return Lease(shelf, (request.url.scheme, request.url.netloc))


def _patience(request: httpx.Request) -> float | None:
    """Seconds for which the request may wait for a wire."""
    seconds: float | None = request.extensions.get("timeout", {}).get("pool")
    return seconds


def _none_free(request: httpx.Request, family: Family) -> httpx.PoolTimeout:
    return family.PoolTimeout(
        f"all connections were in use for {_patience(request)} s: close responses that you do not read to the end,"
        " or raise max_connections (STKAI_HTTP_MAX_CONNECTIONS) or the timeout",
        request=request,
    )


def _is_persistent(response: httpx.Response) -> bool:
    """Whether the connection can carry another request once the body has been read (RFC 9112, section 9.3)."""
    # Look in the raw headers: to find that one is missing, httpx decodes all the others.
    for name, value in response.headers.raw:
        if len(name) == _LENGTH and name.lower() == _CONNECTION and b"close" in value.lower():
            return False
    return (
        response.status_code != httpx.codes.SWITCHING_PROTOCOLS
        and response.extensions.get("http_version") != b"HTTP/1.0"
    )


class _SyncShelf(Shelf[httpx.BaseTransport]):
    """Closes wires that are no longer of use."""

    def lose(self, lease: Lease[httpx.BaseTransport]) -> None:
        super().lose(lease)
        self.sweep()

    def sweep(self) -> None:
        while self.trash:
            with suppress(IndexError):  # Another thread was faster.
                self.trash.popleft().close()


class SideBySide(Closable):
    """Sends each request through one of many wires, and never two at a time through the same one.

    Args:
        make: makes a wire that has room for one connection.
        limits: how many wires there are, how many of them stay open while idle, and for how long.
        family: the package of the wires.
    """

    def __init__(
        self, make: Callable[[], httpx.BaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._shelf = _SyncShelf(make, limits)
        self._body = of_family(_Body, family)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        shelf = self._shelf
        lease = _lease(shelf, request)
        try:
            if not shelf.take(lease):
                self._wait(request, lease)
            if shelf.trash:
                shelf.sweep()
            if lease.wire is None:
                raise _none_free(request, self.family)
            response: httpx.Response = lease.wire.handle_request(request)
        except BaseException:
            lease.end()
            shelf.sweep()
            raise
        lease.stream = response.extensions.get("network_stream")
        persistent = _is_persistent(response)
        response.stream = self._body(response.stream, lease, shelf, persistent=persistent)
        return response

    def _wait(self, request: httpx.Request, lease: Lease[httpx.BaseTransport]) -> None:
        # A lock and not an Event: a signal handler that came while this thread began to wait may release it, and
        # that takes no other lock.
        turn = threading.Lock()
        turn.acquire()
        if self._shelf.join(lease, turn.release):
            return
        patience = _patience(request)
        turn.acquire(timeout=-1 if patience is None else min(max(patience, 0), threading.TIMEOUT_MAX))
        self._shelf.leave(lease)

    def _close(self) -> None:
        self._shelf.close()
        self._shelf.sweep()


class _Body(httpx.SyncByteStream):
    """A body that ends its lease when it is read to the end and closed, breaks, or is abandoned."""

    def __init__(
        self, body: Any, lease: Lease[httpx.BaseTransport], shelf: _SyncShelf, *, persistent: bool
    ) -> None:
        self._body, self._lease, self._shelf, self._persistent = body, lease, shelf, persistent
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except BaseException:
            self.close()
            raise
        self._whole = True

    def close(self) -> None:
        try:
            self._body.close()
        except BaseException:
            self._whole = False
            raise
        finally:
            self._lease.end(_CLOCK.monotonic() if self._whole and self._persistent else None)
            if self._shelf.trash:
                self._shelf.sweep()


class _AsyncShelf(Shelf[httpx.AsyncBaseTransport]):
    """The async version, for one event loop; a finalizer in another thread leaves the rest to the loop."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits) -> None:
        super().__init__(make, limits)
        self.loop = running_loop()

    def lose(self, lease: Lease[httpx.AsyncBaseTransport]) -> None:
        self._back.append(lease)
        run_soon(self.loop, self.settle)

    async def sweep(self) -> None:
        while self.trash:
            import anyio

            with anyio.CancelScope(shield=True):
                await self.trash.popleft().aclose()


class AsyncSideBySide(AsyncClosable):
    """The async version, for one event loop of asyncio or trio, which must be running when this is made."""

    def __init__(
        self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._shelf = _AsyncShelf(make, limits)
        self._body = of_family(_AsyncBody, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        shelf = self._shelf
        lease = _lease(shelf, request)
        try:
            if not shelf.take(lease):
                await self._wait(request, lease)
            if shelf.trash:
                await shelf.sweep()
            if lease.wire is None:
                raise _none_free(request, self.family)
            response: httpx.Response = await lease.wire.handle_async_request(request)
        except BaseException:
            lease.end()
            await shelf.sweep()
            raise
        lease.stream = response.extensions.get("network_stream")
        persistent = _is_persistent(response)
        response.stream = self._body(response.stream, lease, shelf, persistent=persistent)
        return response

    async def _wait(self, request: httpx.Request, lease: Lease[httpx.AsyncBaseTransport]) -> None:
        import anyio

        turn = anyio.Event()
        if self._shelf.join(lease, turn.set):
            return
        with anyio.move_on_after(_patience(request)):
            await turn.wait()
        self._shelf.leave(lease)

    async def _aclose(self) -> None:
        self._shelf.close()
        await self._shelf.sweep()


class _AsyncBody(httpx.AsyncByteStream):
    """The async version of `_Body`."""

    def __init__(
        self, body: Any, lease: Lease[httpx.AsyncBaseTransport], shelf: _AsyncShelf, *, persistent: bool
    ) -> None:
        self._body, self._lease, self._shelf, self._persistent = body, lease, shelf, persistent
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
        except BaseException:
            await self.aclose()
            raise
        self._whole = True

    async def aclose(self) -> None:
        if self._shelf.loop is not running_loop():
            self._lease.end()  # Its loop has ended, and so has its connection.
            return
        try:
            await self._body.aclose()  # httpx completes this even in a cancelled task
        except BaseException:
            self._whole = False
            raise
        finally:
            self._lease.end(_CLOCK.monotonic() if self._whole and self._persistent else None)
            if self._shelf.trash:
                await self._shelf.sweep()
