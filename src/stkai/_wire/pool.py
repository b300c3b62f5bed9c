"""A connection pool: a wire whose cost per request does not grow with the number of requests in flight.

httpcore's pool iterates over all its connections, and polls the socket of each idle one, whenever a request begins or
ends. Here each connection is a transport with room for one, and a request takes the most recently used: it costs as
much as over a single connection. The limits apply to all of them together. A request that finds all connections in use
waits in the queue for as long as its pool timeout allows.
"""

import math
import threading
from contextlib import suppress
from functools import partial
from typing import Any, Final

import httpx

from .._abandonable import GivenUpError, abandoned
from .._clock import SystemClock
from .._errors import digits
from .._event_loops import anyio, run_soon, running_loop
from .._families import Family
from .._headers import has_field
from ..transports._body_end import AsyncWatchedBody, BodyEnd, WatchedBody
from ..transports._call import RESERVED
from . import http2
from .pool_state import Loan, PoolState

_CLOCK: Final = SystemClock()


def _pool_timeout(request: httpx.Request) -> float:
    """Seconds for which the request may wait for a connection."""
    seconds: float | None = request.extensions.get("timeout", {}).get("pool")
    return math.inf if seconds is None else seconds


def _none_free(request: httpx.Request, left: float | None, family: Family) -> httpx.PoolTimeout:
    seconds = min(_pool_timeout(request), math.inf if left is None else left)
    return family.PoolTimeout(
        f"all connections were in use for {digits(seconds)} s: close responses that you do not read to the end,"
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


def _has_leftovers(body: Any) -> bool:
    """Whether an HTTP/1.1 connection has received more than the answer, whose body was read, or its peer has closed it.

    What follows the answer is unsolicited: a second one, or the rest of one longer than announced. httpcore would take
    it for the answer to the next request. A peer that has ended TLS may keep the socket open.
    """
    try:
        connection = body._httpcore_stream._connection  # noqa: SLF001 - httpcore does not check this
        data, has_ended = connection._h11_state.trailing_data  # noqa: SLF001
        return bool(data) or has_ended
    except AttributeError:  # Not a transport of httpx's, or HTTP/2.
        return False


def _give_back(loan: Loan[Any], body: Any, is_persistent: bool, how: BodyEnd) -> None:
    """End the loan when the body of the answer has ended. If the body was dropped, the loan ends by itself."""
    if how is BodyEnd.WHOLE and is_persistent and not _has_leftovers(body):
        loan.end(_CLOCK.monotonic())
    elif how is not BodyEnd.DROPPED:
        loan.end()


class ConnectionPool(PoolState[httpx.BaseTransport], httpx.BaseTransport):
    """Sends each request through one of many connections, and never two at a time through the same one."""

    _body_class = WatchedBody

    def reserve(
        self, request: httpx.Request, left: float | None = None, priority: str = "normal"
    ) -> Loan[httpx.BaseTransport]:
        """Wait for a connection for the request, which then brings it in the extension `RESERVED`."""
        loan = Loan(self, (request.url.scheme, request.url.netloc), priority)
        try:
            if not self.take(loan):
                self._wait(request, loan, left)
            if self.discarded:
                self._close_discarded()
            if loan.connection is None:
                raise _none_free(request, left, self.family)
        except BaseException:
            loan.end()
            self._close_discarded()
            raise
        return loan

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        loans = request.extensions.get(RESERVED)
        loan: Any = (loans and self.reserved(request, loans)) or self.reserve(request)
        wire: Any = loan.connection
        try:
            response: httpx.Response = wire.handle_request(request)
        except BaseException:
            loan.end()
            self._close_discarded()
            raise
        if response.extensions.get("http_version") == b"HTTP/2":
            response.stream = http2.CheckedBody(response, request)
        ended = partial(self._ended, loan, response.stream, _is_persistent(response))
        response.stream = self._body(response.stream, ended)
        return response

    def _wait(self, request: httpx.Request, loan: Loan[httpx.BaseTransport], left: float | None) -> None:
        # A lock and not an Event: a finalizer may release it while this thread starts to wait, which must not take
        # another lock.
        turn = threading.Lock()
        turn.acquire()
        loan.wake = turn.release
        if self.take(loan):
            return
        most, latest = _pool_timeout(request), self.latest
        end = math.inf if left is None else _CLOCK.monotonic() + left
        while not turn.acquire(timeout=max(0.0, min(most, end - _CLOCK.monotonic(), threading.TIMEOUT_MAX))):
            if left is None or latest == self.latest or _CLOCK.monotonic() >= end:
                break
            latest = self.latest
        self.leave(loan)
        if abandoned():
            # The caller has given up: leave the connection to another request.
            loan.end(_CLOCK.monotonic())
            raise GivenUpError

    def _ended(self, loan: Loan[Any], body: Any, is_persistent: bool, how: BodyEnd) -> None:
        _give_back(loan, body, is_persistent, how)
        if self.discarded:
            self._close_discarded()

    def give_from_finalizer(self, loan: Loan[httpx.BaseTransport]) -> None:
        super().give_from_finalizer(loan)
        self._close_discarded()

    def _close_discarded(self) -> None:
        """Close discarded connections."""
        while self.discarded:
            with suppress(IndexError):  # Another thread was faster.
                self.discarded.popleft().close()

    def close(self) -> None:
        self.discard_all()
        self._close_discarded()


class _AsyncBody(AsyncWatchedBody):
    """A body at whose end the pool closes its discarded connections."""

    pool: "AsyncConnectionPool"

    async def aclose(self) -> None:
        if self.pool.loop is not running_loop():
            self._end(BodyEnd.CLOSED)  # Its event loop has ended, and its connection with it.
            return
        try:
            await super().aclose()  # httpx completes this even in a cancelled task
        finally:
            if self.pool.discarded:
                await self.pool.close_discarded()


class AsyncConnectionPool(PoolState[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    """A pool for one event loop, asyncio's or trio's, which must be running already. Finalizers leave work to it."""

    _body_class = _AsyncBody

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loop = running_loop()

    async def reserve(
        self, request: httpx.Request, left: float | None = None, priority: str = "normal"
    ) -> Loan[httpx.AsyncBaseTransport]:
        """Wait for a connection for the request, which then brings it in the extension `RESERVED`."""
        loan = Loan(self, (request.url.scheme, request.url.netloc), priority)
        try:
            if not self.take(loan):
                await self._wait(request, loan, left)
            if self.discarded:
                await self.close_discarded()
            if loan.connection is None:
                raise _none_free(request, left, self.family)
        except BaseException:
            loan.end()
            await self.close_discarded()
            raise
        return loan

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        loans = request.extensions.get(RESERVED)
        loan: Any = (loans and self.reserved(request, loans)) or await self.reserve(request)
        wire: Any = loan.connection
        try:
            response: httpx.Response = await wire.handle_async_request(request)
        except BaseException:
            loan.end()
            await self.close_discarded()
            raise
        if response.extensions.get("http_version") == b"HTTP/2":
            response.stream = http2.CheckedBody(response, request)
        ended = partial(_give_back, loan, response.stream, _is_persistent(response))
        body = response.stream = self._body(response.stream, ended)
        body.pool = self
        return response

    async def _wait(
        self, request: httpx.Request, loan: Loan[httpx.AsyncBaseTransport], left: float | None
    ) -> None:
        turn = anyio.Event()
        loan.wake = turn.set
        if self.take(loan):
            return
        most, latest = _pool_timeout(request), self.latest
        end = math.inf if left is None else _CLOCK.monotonic() + left
        while not turn.is_set():
            with anyio.move_on_after(min(most, end - _CLOCK.monotonic())):
                await turn.wait()
            if left is None or latest == self.latest or _CLOCK.monotonic() >= end:
                break
            latest = self.latest
        self.leave(loan)

    def give_from_finalizer(self, loan: Loan[httpx.AsyncBaseTransport]) -> None:
        self._back.append(loan)
        run_soon(self.loop, self.catch_up)

    async def close_discarded(self) -> None:
        while self.discarded:
            with anyio.CancelScope(shield=True):
                await self.discarded.popleft().aclose()

    async def aclose(self) -> None:
        self.discard_all()
        await self.close_discarded()
