"""The queues of a pool: idle connections, and which to close first; waiting requests, and which to serve first."""

from collections import OrderedDict
from collections.abc import Container
from typing import Any, Final, NamedTuple, TypeVar
from weakref import ref

Pooled = TypeVar("Pooled")

Destination = tuple[str, bytes]
"""What a connection connects to: scheme, and host with port."""


class Idle(NamedTuple):
    """An idle connection's destination, and when it became idle, in seconds of the clock."""

    destination: Destination
    since: float


class IdleConnections(OrderedDict[Pooled, Idle]):
    """Idle connections, the most recently used last. A step that is interrupted may be repeated from its beginning."""

    def last_to(self, destination: Destination) -> Pooled | None:
        """The most recently used connection to that destination."""
        for connection in reversed(self):
            if self[connection].destination == destination:
                return connection
        return None

    def surplus(self, now: float, most: float, expiry: float) -> Pooled | None:
        """The one idle for longest, if there are more than `most`, or it has been idle for longer than `expiry`."""
        oldest = next(iter(self), None)
        is_surplus = oldest is not None and (len(self) > most or now - self[oldest].since > expiry)
        return oldest if is_surplus else None


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
