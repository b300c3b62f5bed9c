"""How long wires live: idle ones; and each event loop has its own, and a forked child opens its own connections.

A connection works only in the process and in the event loop that opened it. httpx keeps the connections of a loop that
has ended, and fails with "Event loop is closed" when it meets one. Here each loop gets its own wire, which is closed
when the loop ends, or dropped untouched if the loop gave no chance to close it.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import httpx

from .._event_loops import anyio, running_loop
from .._families import HTTPX, Family
from .._process import after_fork, never_finalize


class _OwnWire:
    """The wire of one loop, until the loop ends."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        self.wire: httpx.AsyncBaseTransport | None = wire


Closer = AsyncGenerator[None, None]


class WirePerLoop(httpx.AsyncBaseTransport):
    """Sends each request through the wire of its event loop, which it makes there; several loops may run at once."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._make = make
        self._by_loop: dict[Any, tuple[_OwnWire, Closer]] = {}
        self._lock = threading.Lock()
        after_fork(self, WirePerLoop._start_anew)

    def _start_anew(self) -> None:
        wires, self._by_loop = self._by_loop, {}
        self._lock = threading.Lock()
        for own, closer in wires.values():
            own.wire = None
            never_finalize(closer)

    def handle_async_request(self, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        loop = running_loop()
        found = self._by_loop.get(loop)
        if found is not None and found[0].wire is not None:
            return found[0].wire.handle_async_request(request)
        return self._send_first(loop, request)

    async def _send_first(self, loop: Any, request: httpx.Request) -> httpx.Response:
        """Send a loop's first request."""
        self._forget_ended_loops()
        wire = self._make()
        own = _OwnWire(wire)
        closer = _close_with_the_loop(own)
        await anext(closer)  # From now on the loop knows the generator. This does not suspend.
        with self._lock:
            self._by_loop[loop] = own, closer
        return await wire.handle_async_request(request)

    def _forget_ended_loops(self) -> None:
        with self._lock:
            ended = [loop for loop, (own, _) in self._by_loop.items() if own.wire is None or _has_ended(loop)]
            forgotten = [self._by_loop.pop(loop) for loop in ended]
        with warnings.catch_warnings():
            # Dropping the sockets closes them; an orderly close is no longer possible.
            warnings.simplefilter("ignore", ResourceWarning)
            for own, _ in forgotten:
                own.wire = None
            del forgotten

    async def aclose(self) -> None:
        self._forget_ended_loops()
        # Loops in other threads close their own wires, since their generators are dropped here.
        wires, self._by_loop = self._by_loop, {}
        here = wires.get(running_loop())
        if here is not None:
            await here[1].aclose()


def _has_ended(loop: Any) -> bool:
    return hasattr(loop, "is_closed") and bool(loop.is_closed())


async def _close_with_the_loop(own: _OwnWire) -> Closer:
    """Close the wire when the loop ends: asyncio and trio close all their asynchronous generators then."""
    try:
        yield
    finally:
        wire, own.wire = own.wire, None
        if wire is not None:
            with anyio.CancelScope(shield=True):
                await wire.aclose()


Wire = TypeVar("Wire")

Place = tuple[str, bytes]
"""Scheme, and host with port: where a connection goes."""


class Idle(NamedTuple):
    """An idle wire's destination, since when it is idle, and the connection underneath."""

    place: Place
    since: float
    stream: Any


class IdleWires(OrderedDict[Wire, Idle]):
    """Unused wires, the most recently used last. Every step may be interrupted and then repeated from its beginning."""

    def last_at(self, place: Place) -> Wire | None:
        """The most recently used wire to that place."""
        for wire in reversed(self):
            if self[wire].place == place:
                return wire
        return None

    def least_useful(self) -> Wire:
        """The wire to close: one whose connection the server has closed, or the one idle for longest."""
        dead = (wire for wire, idle in self.items() if _is_dead(idle.stream))
        return next(dead, next(iter(self)))

    def surplus(self, now: float, most: float, expiry: float) -> Wire | None:
        """A wire above the limit, or idle for too long."""
        if len(self) > most:
            return self.least_useful()
        oldest = next(iter(self), None)
        return None if oldest is None or now - self[oldest].since <= expiry else oldest


def _is_dead(stream: Any) -> bool:
    """Whether the other end has closed an idle connection; False if that is unknown."""
    if stream is None:
        return False
    try:
        # An idle server sends nothing but the end of the connection.
        return bool(stream.get_extra_info("is_readable"))
    except Exception:  # noqa: BLE001 - a closed socket raises whatever the library that holds it likes
        return True
