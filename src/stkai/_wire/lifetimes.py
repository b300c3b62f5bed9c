"""How long wires and connections live: one wire for each event loop and forked process; which idle connection to
close, and which waiting request gets a free one.

A connection works only in the process and in the event loop that opened it. httpx keeps the connections of a loop that
has ended, and fails with "Event loop is closed" when it picks one. Here each loop gets its own wire, which is closed
when the loop ends, or dropped without being closed if the loop gives no chance to close it.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Container, Coroutine
from typing import Any, Final, NamedTuple, TypeVar
from weakref import ref

import httpx

from .._event_loops import anyio, running_loop
from .._families import HTTPX, Family
from .._process import after_fork, never_finalize

CLOSED_IN_USE: Final = "the connection was closed on this side"
"""The message of the error if another thread or task closes the client during a request."""


class _OwnWire:
    """The wire of one loop, until the loop ends."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        self.wire: httpx.AsyncBaseTransport | None = wire


Closer = AsyncGenerator[None, None]


class WirePerLoop(httpx.AsyncBaseTransport):
    """Sends each request through its event loop's own wire, which is made there; several loops may run at once."""

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
        return await (await self._begin(loop)).handle_async_request(request)

    async def reserve(self, request: httpx.Request, left: float, priority: str) -> Any:
        """Wait for a connection of the pool that is the event loop's wire."""
        loop = running_loop()
        found = self._by_loop.get(loop)
        pool: Any = None if found is None else found[0].wire
        if pool is None:
            pool = await self._begin(loop)
        return await pool.reserve(request, left, priority)

    async def _begin(self, loop: Any) -> httpx.AsyncBaseTransport:
        """Make the wire of a loop."""
        self._forget_ended_loops()
        wire = self._make()
        own = _OwnWire(wire)
        closer = _close_with_the_loop(own)
        await anext(closer)  # Registers the generator with the loop, without suspending.
        with self._lock:
            self._by_loop[loop] = own, closer
        return wire

    def _forget_ended_loops(self) -> None:
        with self._lock:
            ended = [loop for loop, (own, _) in self._by_loop.items() if own.wire is None or _has_ended(loop)]
            forgotten = [self._by_loop.pop(loop) for loop in ended]
        with warnings.catch_warnings():
            # Dropping the sockets closes them; they can no longer be closed in an orderly way.
            warnings.simplefilter("ignore", ResourceWarning)
            for own, _ in forgotten:
                own.wire = None
            del forgotten

    async def aclose(self) -> None:
        self._forget_ended_loops()
        # The generators are dropped here, which makes loops in other threads close their own wires.
        wires, self._by_loop = self._by_loop, {}
        here = wires.get(running_loop())
        if here is not None:
            await here[1].aclose()


def _has_ended(loop: Any) -> bool:
    return hasattr(loop, "is_closed") and bool(loop.is_closed())


async def _close_with_the_loop(own: _OwnWire) -> Closer:
    """Close the wire when the loop ends, which is when asyncio and trio close all their asynchronous generators."""
    try:
        yield
    finally:
        wire, own.wire = own.wire, None
        if wire is not None:
            with anyio.CancelScope(shield=True):
                await wire.aclose()


Pooled = TypeVar("Pooled")

Destination = tuple[str, bytes]
"""Where a connection leads: scheme, and host with port."""


class Idle(NamedTuple):
    """An idle connection's destination, when it became idle (seconds of the clock), and its network stream."""

    destination: Destination
    since: float
    stream: Any


class IdleConnections(OrderedDict[Pooled, Idle]):
    """Idle connections, the most recently used last. A step that is interrupted may be repeated from its beginning."""

    def last_to(self, destination: Destination) -> Pooled | None:
        """The most recently used connection to that destination."""
        for connection in reversed(self):
            if self[connection].destination == destination:
                return connection
        return None

    def least_useful(self) -> Pooled:
        """The connection to close: one that the server has closed, or else the one that has been idle for longest."""
        dead = (connection for connection, idle in self.items() if is_dead(idle.stream))
        return next(dead, next(iter(self)))

    def surplus(self, now: float, most: float, expiry: float) -> Pooled | None:
        """A connection to close because there are more than `most`, or it has been idle for longer than `expiry`."""
        if len(self) > most:
            return self.least_useful()
        oldest = next(iter(self), None)
        return None if oldest is None or now - self[oldest].since <= expiry else oldest


def is_dead(stream: Any) -> bool:
    """Whether the server has closed an idle connection; False if unknown."""
    if stream is None:
        return False
    try:
        # On an idle connection, nothing should arrive but its end.
        return bool(stream.get_extra_info("is_readable"))
    except Exception:  # noqa: BLE001 - for a closed socket, libraries raise different errors
        return True


_NORMAL_PER_LOW: Final = 9


class WaitingLoans:
    """Loans that wait for a connection, in order of arrival: nine of normal priority for each one of low priority.

    Requests that gave up a connection until their permits were due come first, since they are the oldest.
    """

    def __init__(self) -> None:
        self._queues = {priority: OrderedDict[int, Any]() for priority in ("first", "normal", "low")}
        self._passed = 0  # Normal loans served since the last one of low priority, while one waited.

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, loan: Any) -> None:
        self._queues[loan.priority][loan.number] = ref(loan)

    def remove(self, number: int) -> None:
        for queue in self._queues.values():
            queue.pop(number, None)

    def next(self, lent: Container[int]) -> Any:
        """The loan to serve, which stays queued until it is removed; None if all that wait are already `lent`."""
        first, normal, low = self._queues.values()
        while self:
            is_low = bool(low) and (not normal or self._passed >= _NORMAL_PER_LOW)
            queue = first or (low if is_low else normal)
            number, waiter = next(iter(queue.items()))
            loan = waiter()
            if loan is not None and number not in lent:
                if queue is not first:
                    self._passed = 0 if is_low else self._passed + bool(low)
                return loan
            del queue[number]
        return None

    def alive(self) -> list[Any]:
        """The loans to which something still refers."""
        waiters = [waiter for queue in self._queues.values() for waiter in queue.values()]
        return [loan for waiter in waiters if (loan := waiter()) is not None]

    def clear(self) -> None:
        for queue in self._queues.values():
            queue.clear()
