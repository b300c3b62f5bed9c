"""Connections side by side: a wire whose cost per request does not grow with the requests in flight.

httpcore's pool looks at all its connections, and asks the system about each idle one, whenever a request begins or
ends. Here each connection is its own wire with room for one, and a request takes the most recently used: it costs what
it costs with a single connection. The limits apply to all of them together. Requests that find all connections in use
wait in the queue, as long as their pool timeout allows.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from .._abandonable import GivenUpError, Sending, abandoned, do_within
from .._clock import SystemClock
from .._event_loops import anyio, run_soon, running_loop
from .._families import HTTPX, Family, of_family
from .._headers import has_field
from .._process import is_interrupt
from ..transports._body_end import BRIEF, AsyncWatchedBody, BodyEnd, WatchedBody
from .network import connection_with_leftovers
from .pool_state import Loan, PoolState

_CLOCK = SystemClock()


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

    def give_from_finalizer(self, loan: Loan[httpx.BaseTransport]) -> None:
        super().give_from_finalizer(loan)
        self.sweep()

    def sweep(self) -> None:
        while self.trash:
            with suppress(IndexError):  # Another thread was faster.
                self.trash.popleft().close()

    def sweep_after_interrupt(self) -> None:
        """The same, though an interrupt may have left a lock of a wire taken, for which closing would wait for ever."""
        with suppress(GivenUpError):
            do_within(BRIEF, self.sweep)


class ConnectionPool(httpx.BaseTransport):
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
        loan = Loan(state, (request.url.scheme, request.url.netloc))
        try:
            if not state.take(loan):
                self._wait(request, loan)
            if state.trash:
                state.sweep()
            if loan.wire is None:
                raise _none_free(request, self.family)
            if loan.stream is not None and isinstance(sending := request.extensions.get("trace"), Sending):
                sending.uses(loan.stream)
            response: httpx.Response = loan.wire.handle_request(request)
        except BaseException as error:
            loan.end()
            if is_interrupt(error):
                state.sweep_after_interrupt()
            else:
                state.sweep()
            raise
        response.stream = _lent_body(self._body, response, loan, state)
        return response

    def _wait(self, request: httpx.Request, loan: Loan[httpx.BaseTransport]) -> None:
        # A lock and not an Event: a finalizer that runs while this thread begins to wait may release it, and that takes
        # no other lock.
        turn = threading.Lock()
        turn.acquire()
        loan.wake = turn.release
        if self._state.take(loan):
            return
        patience = _patience(request)
        turn.acquire(timeout=-1 if patience is None else min(max(patience, 0), threading.TIMEOUT_MAX))
        self._state.leave(loan)
        if abandoned():
            # Leave the connection to a request that still has a caller.
            loan.end(_CLOCK.monotonic())
            raise GivenUpError

    def close(self) -> None:
        self._state.close()
        self._state.sweep()


class _AsyncState(PoolState[httpx.AsyncBaseTransport]):
    """The async version, for one event loop; a finalizer in another thread leaves the rest to the loop."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits) -> None:
        super().__init__(make, limits)
        self.loop = running_loop()

    def give_from_finalizer(self, loan: Loan[httpx.AsyncBaseTransport]) -> None:
        self._back.append(loan)
        run_soon(self.loop, self.settle)

    async def sweep(self) -> None:
        while self.trash:
            with anyio.CancelScope(shield=True):
                await self.trash.popleft().aclose()


class AsyncConnectionPool(httpx.AsyncBaseTransport):
    """The async version, for one event loop of asyncio or trio, which must be running when this is made."""

    def __init__(
        self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._state = _AsyncState(make, limits)
        self._body = of_family(_AsyncBody, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        state = self._state
        loan = Loan(state, (request.url.scheme, request.url.netloc))
        try:
            if not state.take(loan):
                await self._wait(request, loan)
            if state.trash:
                await state.sweep()
            if loan.wire is None:
                raise _none_free(request, self.family)
            response: httpx.Response = await loan.wire.handle_async_request(request)
        except BaseException:
            loan.end()
            await state.sweep()
            raise
        response.stream = _lent_body(self._body, response, loan, state)
        return response

    async def _wait(self, request: httpx.Request, loan: Loan[httpx.AsyncBaseTransport]) -> None:
        turn = anyio.Event()
        loan.wake = turn.set
        if self._state.take(loan):
            return
        with anyio.move_on_after(_patience(request)):
            await turn.wait()
        self._state.leave(loan)

    async def aclose(self) -> None:
        self._state.close()
        await self._state.sweep()


class _Body(WatchedBody):
    """A body that ends its loan when it has been read and closed, breaks, or is abandoned."""

    loan: Loan[Any]
    state: _SyncState
    is_persistent: bool

    def _end(self, how: BodyEnd) -> None:
        self.loan.end(_idle_since(how, self._body) if self.is_persistent else None)
        if how is BodyEnd.STUCK:
            self.state.sweep_after_interrupt()
        elif self.state.trash:
            self.state.sweep()


class _AsyncBody(AsyncWatchedBody):
    """The async version."""

    loan: Loan[Any]
    state: _AsyncState
    is_persistent: bool

    def _end(self, how: BodyEnd) -> None:
        self.loan.end(_idle_since(how, self._body) if self.is_persistent else None)

    async def aclose(self) -> None:
        if self.state.loop is not running_loop():
            self._end(BodyEnd.CLOSED)  # Its loop has ended, and so has its connection.
            return
        try:
            await super().aclose()  # httpx completes this even in a cancelled task
        finally:
            if self.state.trash:
                await self.state.sweep()


def _idle_since(how: BodyEnd, body: Any) -> float | None:
    """Since when the connection of a body that has ended is idle; None if it cannot be used again."""
    if how is not BodyEnd.WHOLE or connection_with_leftovers(body) is not None:
        return None
    return _CLOCK.monotonic()


def _lent_body(kind: Any, response: httpx.Response, loan: Loan[Any], state: PoolState[Any]) -> Any:
    """The body of a response, which holds the loan of its wire: the loan ends by itself if it is dropped."""
    body = kind(response.stream, None)
    loan.stream = response.extensions.get("network_stream")
    body.loan, body.state, body.is_persistent = loan, state, _is_persistent(response)
    return body
