"""Connections side by side: a wire whose cost per request does not grow with the requests in flight.

httpcore's pool looks at all its connections, and asks the system about each idle one, whenever a request begins or
ends. Here each connection is its own wire with room for one, and a request takes the most recently used: it costs what
it costs with a single connection. The limits apply to all of them together. Requests that find all connections in use
wait in line, as long as their pool timeout allows.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from .._abandonable import GivenUpError, abandoned, do_within
from .._clock import SystemClock
from .._event_loops import anyio, run_soon, running_loop
from .._families import HTTPX, Family, of_family
from .._headers import has_field
from .._signals import is_interrupt
from ..transports._body_end import BRIEF, AsyncWatchedBody, BodyEnd, WatchedBody
from .closing import AsyncClosable, Closable
from .pool_state import Lease, PoolState

_CLOCK = SystemClock()


def _lease(state: PoolState[Any], request: httpx.Request) -> Lease[Any]:
    return Lease(state, (request.url.scheme, request.url.netloc))


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
    if has_field(response.headers, b"connection") and "close" in response.headers["connection"].lower():
        return False
    return (
        response.status_code != httpx.codes.SWITCHING_PROTOCOLS
        and response.extensions.get("http_version") != b"HTTP/1.0"
    )


class _SyncState(PoolState[httpx.BaseTransport]):
    """Closes wires that are no longer of use."""

    def lose(self, lease: Lease[httpx.BaseTransport]) -> None:
        super().lose(lease)
        self.sweep()

    def sweep(self) -> None:
        while self.trash:
            with suppress(IndexError):  # Another thread was faster.
                self.trash.popleft().close()

    def sweep_after_interrupt(self) -> None:
        """The same, though an interrupt may have left a lock of a wire taken, for which closing would wait for ever."""
        with suppress(GivenUpError):
            do_within(BRIEF, self.sweep)


class ConnectionPool(Closable):
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
        self._state = _SyncState(make, limits)
        self._body = of_family(_Body, family)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        state = self._state
        lease = _lease(state, request)
        try:
            if not state.take(lease):
                self._wait(request, lease)
            if state.trash:
                state.sweep()
            if lease.wire is None:
                raise _none_free(request, self.family)
            response: httpx.Response = lease.wire.handle_request(request)
        except BaseException as error:
            lease.end()
            if is_interrupt(error):
                state.sweep_after_interrupt()
            else:
                state.sweep()
            raise
        response.stream = _lent_body(self._body, response, lease, state)
        return response

    def _wait(self, request: httpx.Request, lease: Lease[httpx.BaseTransport]) -> None:
        # A lock and not an Event: a finalizer that runs while this thread begins to wait may release it, and that takes
        # no other lock.
        turn = threading.Lock()
        turn.acquire()
        if self._state.join(lease, turn.release):
            return
        patience = _patience(request)
        turn.acquire(timeout=-1 if patience is None else min(max(patience, 0), threading.TIMEOUT_MAX))
        self._state.leave(lease)
        if abandoned():
            # Leave the connection to a request that still has a caller.
            lease.end(_CLOCK.monotonic())
            raise GivenUpError

    def _close(self) -> None:
        self._state.close()
        self._state.sweep()


class _AsyncState(PoolState[httpx.AsyncBaseTransport]):
    """The async version, for one event loop; a finalizer in another thread leaves the rest to the loop."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits) -> None:
        super().__init__(make, limits)
        self.loop = running_loop()

    def lose(self, lease: Lease[httpx.AsyncBaseTransport]) -> None:
        self._back.append(lease)
        run_soon(self.loop, self.settle)

    async def sweep(self) -> None:
        while self.trash:
            with anyio.CancelScope(shield=True):
                await self.trash.popleft().aclose()


class AsyncConnectionPool(AsyncClosable):
    """The async version, for one event loop of asyncio or trio, which must be running when this is made."""

    def __init__(
        self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._state = _AsyncState(make, limits)
        self._body = of_family(_AsyncBody, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        state = self._state
        lease = _lease(state, request)
        try:
            if not state.take(lease):
                await self._wait(request, lease)
            if state.trash:
                await state.sweep()
            if lease.wire is None:
                raise _none_free(request, self.family)
            response: httpx.Response = await lease.wire.handle_async_request(request)
        except BaseException:
            lease.end()
            await state.sweep()
            raise
        response.stream = _lent_body(self._body, response, lease, state)
        return response

    async def _wait(self, request: httpx.Request, lease: Lease[httpx.AsyncBaseTransport]) -> None:
        turn = anyio.Event()
        if self._state.join(lease, turn.set):
            return
        with anyio.move_on_after(_patience(request)):
            await turn.wait()
        self._state.leave(lease)

    async def _aclose(self) -> None:
        self._state.close()
        await self._state.sweep()


class _Body(WatchedBody):
    """A body that ends its lease when it has been read and closed, breaks, or is left."""

    lease: Lease[Any]
    state: _SyncState
    is_persistent: bool

    def _end(self, how: BodyEnd) -> None:
        self.lease.end(_CLOCK.monotonic() if how is BodyEnd.WHOLE and self.is_persistent else None)
        if how is BodyEnd.STUCK:
            self.state.sweep_after_interrupt()
        elif self.state.trash:
            self.state.sweep()


class _AsyncBody(AsyncWatchedBody):
    """The async version."""

    lease: Lease[Any]
    state: _AsyncState
    is_persistent: bool

    def _end(self, how: BodyEnd) -> None:
        self.lease.end(_CLOCK.monotonic() if how is BodyEnd.WHOLE and self.is_persistent else None)

    async def aclose(self) -> None:
        if self.state.loop is not running_loop():
            self._end(BodyEnd.CLOSED)  # Its loop has ended, and so has its connection.
            return
        try:
            await super().aclose()  # httpx completes this even in a cancelled task
        finally:
            if self.state.trash:
                await self.state.sweep()


def _lent_body(kind: Any, response: httpx.Response, lease: Lease[Any], state: PoolState[Any]) -> Any:
    """The body of a response, which holds the lease of its wire: the lease ends by itself if it is dropped."""
    body = kind(response.stream, None)
    lease.stream = response.extensions.get("network_stream")
    body.lease, body.state, body.is_persistent = lease, state, _is_persistent(response)
    return body
