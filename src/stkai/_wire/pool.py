"""Connections side by side: a wire whose cost per request does not grow with the requests in flight.

httpcore's pool looks at all its connections, and asks the system about each idle one, when a request begins and ends.
Here each connection is a wire of its own, with room for one, and a request takes the one that was in use last: it costs
what it costs with a single connection. The limits count for all of them together, and who finds all in use waits in
line, as long as the request's pool timeout allows. A forked child begins with none of its parent's connections.
"""

import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

import httpx

from .._clock import SystemClock
from .._families import HTTPX, Family, of_family
from .._forks import after_fork

Wire = TypeVar("Wire", bound=httpx.BaseTransport | httpx.AsyncBaseTransport)

_CLOCK = SystemClock()

Place = tuple[str, bytes]
"""Scheme, and host with port: where a connection leads."""


class _Waiter(Generic[Wire]):
    """Somebody in line for a wire, and how to wake them."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.wire: Wire | None = None


class _Shelf(Generic[Wire]):
    """The wires: which are idle, the last used on top, and who waits for one. Numbers and lists; it never waits."""

    def __init__(self, make: Callable[[], Wire], limits: httpx.Limits) -> None:
        self._make = make
        self._most = math.inf if limits.max_connections is None else limits.max_connections
        kept = limits.max_keepalive_connections
        self._most_idle = math.inf if kept is None else kept
        expiry = limits.keepalive_expiry
        self._expiry = math.inf if expiry is None else expiry
        self._idle: list[tuple[Place, Wire, float]] = []
        self._waiting: deque[_Waiter[Wire]] = deque()
        self.wires: set[Wire] = set()

    def take(self, place: Place) -> Wire | None:
        """A wire, best one that leads to `place` already; None where all are in use."""
        idle = self._idle
        for index in range(len(idle) - 1, -1, -1):
            if idle[index][0] == place:
                return idle.pop(index)[1]
        if len(self.wires) < self._most:
            wire = self._make()
            self.wires.add(wire)
            return wire
        # It leads elsewhere: having room for one connection, it closes that and opens another.
        return idle.pop(0)[1] if idle else None

    def join(self, waiter: _Waiter[Wire]) -> None:
        """Stand in line."""
        self._waiting.append(waiter)

    def leave(self, waiter: _Waiter[Wire]) -> Wire | None:
        """Stand in line no longer: the wire that the waiter was given, or None."""
        if waiter.wire is None:
            self._waiting.remove(waiter)
        return waiter.wire

    def give(self, place: Place, wire: Wire) -> Wire | None:
        """Take a wire back, or hand it to the first in line; one to be closed is returned.

        That is one too many, one unused for too long, or one taken before a fork, which belongs to the parent.
        """
        if wire not in self.wires:
            return wire
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.wire = wire
            waiter.wake()
            return None
        now = _CLOCK.monotonic()
        self._idle.append((place, wire, now))
        # One each time is enough: they come in one by one.
        if len(self._idle) <= self._most_idle and now - self._idle[0][2] <= self._expiry:
            return None
        surplus = self._idle.pop(0)[1]
        self.wires.discard(surplus)
        return surplus


def _place(request: httpx.Request) -> Place:
    return request.url.scheme, request.url.netloc


def _patience(request: httpx.Request) -> float | None:
    """Seconds for which the request may wait for a wire."""
    seconds: float | None = request.extensions.get("timeout", {}).get("pool")
    return seconds


def _none_free(request: httpx.Request, family: Family) -> httpx.PoolTimeout:
    return family.PoolTimeout(f"all connections stayed in use for {_patience(request)} s", request=request)


class SideBySide(httpx.BaseTransport):
    """Sends each request through one of many wires, and never two at a time through the same.

    Args:
        make: makes a wire that has room for one connection.
        limits: how many there are, how many of them stay open while nobody uses them, and for how long.
        family: the package of the wires.
    """

    def __init__(
        self, make: Callable[[], httpx.BaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._make, self._limits = make, limits
        self._start()
        after_fork(self, SideBySide._start)

    def _start(self) -> None:
        self._shelf = _Shelf[httpx.BaseTransport](self._make, self._limits)
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        place = _place(request)
        with self._lock:
            wire = self._shelf.take(place)
        wire = wire or self._wait(request, place)
        try:
            response = wire.handle_request(request)
        except BaseException:
            self._give(place, wire)
            raise
        body = of_family(_Body, self.family)
        response.stream = body(response.stream, lambda: self._give(place, wire))
        return response

    def _wait(self, request: httpx.Request, place: Place) -> httpx.BaseTransport:
        ready = threading.Event()
        waiter = _Waiter[httpx.BaseTransport](ready.set)
        with self._lock:
            wire = self._shelf.take(place)  # One may have come back just now.
            if wire is not None:
                return wire
            self._shelf.join(waiter)
        try:
            ready.wait(_patience(request))
        except BaseException:
            with self._lock:
                wire = self._shelf.leave(waiter)
            if wire is not None:
                self._give(place, wire)
            raise
        with self._lock:
            wire = self._shelf.leave(waiter)
        if wire is None:
            raise _none_free(request, self.family)
        return wire

    def _give(self, place: Place, wire: httpx.BaseTransport) -> None:
        with self._lock:
            surplus = self._shelf.give(place, wire)
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        with self._lock:
            wires = list(self._shelf.wires)
        for wire in wires:
            wire.close()


class AsyncSideBySide(httpx.AsyncBaseTransport):
    """The same for the async world: asyncio and trio, one event loop, as with any httpx wire."""

    def __init__(
        self, make: Callable[[], httpx.AsyncBaseTransport], limits: httpx.Limits, family: Family = HTTPX
    ) -> None:
        self.family = family
        self._make, self._limits = make, limits
        self._start()
        after_fork(self, AsyncSideBySide._start)

    def _start(self) -> None:
        self._shelf = _Shelf[httpx.AsyncBaseTransport](self._make, self._limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        place = _place(request)
        wire = self._shelf.take(place) or await self._wait(request, place)
        try:
            response = await wire.handle_async_request(request)
        except BaseException:
            await self._give(place, wire)
            raise
        body = of_family(_AsyncBody, self.family)
        response.stream = body(response.stream, lambda: self._give(place, wire))
        return response

    async def _wait(self, request: httpx.Request, place: Place) -> httpx.AsyncBaseTransport:
        import anyio

        ready = anyio.Event()
        waiter = _Waiter[httpx.AsyncBaseTransport](ready.set)
        self._shelf.join(waiter)
        try:
            with anyio.move_on_after(_patience(request)):
                await ready.wait()
        except BaseException:
            wire = self._shelf.leave(waiter)
            if wire is not None:
                await self._give(place, wire)
            raise
        wire = self._shelf.leave(waiter)
        if wire is None:
            raise _none_free(request, self.family)
        return wire

    async def _give(self, place: Place, wire: httpx.AsyncBaseTransport) -> None:
        surplus = self._shelf.give(place, wire)
        if surplus is not None:
            import anyio

            with anyio.CancelScope(shield=True):
                await surplus.aclose()

    async def aclose(self) -> None:
        for wire in list(self._shelf.wires):
            await wire.aclose()


class _Body(httpx.SyncByteStream):
    """A body that gives its wire back when it is closed; once, however often that is."""

    def __init__(self, body: Any, give: Callable[[], None]) -> None:
        self._body = body
        self._give: Callable[[], None] | None = give

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        give, self._give = self._give, None
        try:
            self._body.close()
        finally:
            if give is not None:
                give()


class _AsyncBody(httpx.AsyncByteStream):
    """The same for the async world."""

    def __init__(self, body: Any, give: Callable[[], Any]) -> None:
        self._body = body
        self._give: Callable[[], Any] | None = give

    def __aiter__(self) -> AsyncIterator[bytes]:
        iterator: AsyncIterator[bytes] = aiter(self._body)
        return iterator

    async def aclose(self) -> None:
        import anyio

        give, self._give = self._give, None
        try:
            with anyio.CancelScope(shield=True):  # Who is cancelled still leaves no connection open.
                await self._body.aclose()
        finally:
            if give is not None:
                await give()
