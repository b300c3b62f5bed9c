"""The wires of a pool: which are lent, which are idle, and who is waiting. It never waits and does no I/O.

Signal handlers and finalizers run in the middle of whatever their thread is doing, even inside the few lines that hold
the lock here. The lock is therefore reentrant: such a thread finds the shelf busy, and leaves a note that is handled
when the lines are done. Every step can be interrupted without losing a wire: a lease that nobody refers to any more
gives itself up, and a wire is added to one list before it is removed from the other.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

import httpx

from .._forks import after_fork
from .closing import cannot_send
from .idle import Idle, IdleWires
from .lease import Lease

Wire = TypeVar("Wire", bound=httpx.BaseTransport | httpx.AsyncBaseTransport)


class Shelf(Generic[Wire]):
    """A limited number of wires; prefers an idle one to the right place, the most recently used first.

    Args:
        make: makes a wire that has room for one connection.
        limits: how many wires there are, how many of them stay idle, and for how many seconds.

    Attributes:
        trash: wires to close, for anyone who finds them.
    """

    def __init__(self, make: Callable[[], Wire], limits: httpx.Limits) -> None:
        self._make = make
        self._most = _or_unlimited(limits.max_connections)
        self._most_idle = _or_unlimited(limits.max_keepalive_connections)
        self._expiry = _or_unlimited(limits.keepalive_expiry)
        self._closed = False
        self._start()
        after_fork(self, Shelf._start)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._lent: dict[int, Wire] = {}
        self._idle = IdleWires[Wire]()
        self._waiting: OrderedDict[int, ref[Lease[Wire]]] = OrderedDict()
        self._back: deque[Lease[Wire]] = deque()
        self.trash: deque[Wire] = deque()

    @property
    def wires(self) -> list[Wire]:
        """All wires, lent or idle."""
        return [*self._lent.values(), *self._idle]

    @property
    def waiting(self) -> int:
        """How many are waiting for a wire."""
        return len(self._waiting)

    def take(self, lease: Lease[Wire]) -> bool:
        """Lend a wire if one is free.

        Raises:
            RuntimeError: the shelf is closed.
        """
        return self._alone(self._lend, lease)

    def join(self, lease: Lease[Wire], wake: Callable[[], object]) -> bool:
        """Lend a wire, or put the lease in line; `wake` is called when it gets one, or when it never will."""
        lease.wake = wake
        return self._alone(self._lend_or_queue, lease)

    def leave(self, lease: Lease[Wire]) -> bool:
        """Leave the line; returns whether the lease got a wire.

        Raises:
            RuntimeError: the shelf was closed.
        """
        self._alone(self._unqueue, lease)
        if lease.wire is None and self._closed:
            raise cannot_send()
        return lease.wire is not None

    def give(self, lease: Lease[Wire]) -> None:
        """Take a wire back and lend it to the first in line."""
        self._back.append(lease)
        self.settle()

    def lose(self, lease: Lease[Wire]) -> None:
        """The same, from a finalizer: in any thread, at any moment."""
        self.give(lease)

    def settle(self) -> None:
        """Take back what was left while the shelf was busy."""
        if self._back or self._is_to_be_cleared():
            self._alone(None, None)

    def close(self) -> None:
        """Move all wires to the trash, lent ones too."""
        self._closed = True
        self.settle()

    # Everything below runs in one thread at a time, and never inside itself.

    def _alone(self, step: Callable[[Any], bool] | None, lease: Lease[Wire] | None) -> bool:
        with self._lock:
            if self._busy:
                # This very thread is inside already. It could wait for ever, so it may exceed the limit by one.
                return lease is None or self._lend_beyond(lease)
            try:
                self._busy = True
                answer = step is None or step(lease)
                if self._back or self._closed:
                    self._catch_up()
            finally:
                self._busy = False
        if self._back or self._closed:
            self.settle()
        return answer

    def _catch_up(self) -> None:
        """Do what was left undone while the shelf was busy."""
        while self._back:
            self._take_back(self._back[0])
            self._back.popleft()
        if self._is_to_be_cleared():
            self._clear()

    def _is_to_be_cleared(self) -> bool:
        return self._closed and bool(self._lent or self._idle or self._waiting)

    def _lend_beyond(self, lease: Lease[Wire]) -> bool:
        """Lend a wire that is on no list, and so is closed when it comes back."""
        lease.wire = lease.wire or self._make()
        return True

    def _lend(self, lease: Lease[Wire]) -> bool:
        if self._closed:
            raise cannot_send()
        wire = self._idle.last_at(lease.place)
        if wire is None:
            if len(self._lent) + len(self._idle) < self._most:
                wire = self._make()
            elif self._idle:
                # It goes elsewhere: with room for one connection, it closes that one and opens another.
                wire = self._idle.least_useful()
            else:
                return False
        self._hand_over(lease, wire)
        return True

    def _lend_or_queue(self, lease: Lease[Wire]) -> bool:
        if self._lend(lease):
            return True
        self._waiting[lease.number] = ref(lease)
        return False

    def _unqueue(self, lease: Lease[Wire]) -> bool:
        self._waiting.pop(lease.number, None)
        return True

    def _hand_over(self, lease: Lease[Wire], wire: Wire) -> None:
        self._lent[lease.number] = wire
        lease.wire = wire
        self._idle.remove(wire)

    def _take_back(self, lease: Lease[Wire]) -> None:
        wire = self._lent.get(lease.number)
        if wire is None:
            self._take_back_unlent(lease)
            return
        if lease.idle_since is None:
            self._discard(wire)
        successor = self._next_in_line() if self._waiting else None
        if successor is not None:
            self._hand_over(successor, self._make() if lease.idle_since is None else wire)
        elif lease.idle_since is not None:
            self._idle.add(wire, Idle(lease.place, lease.idle_since, lease.stream))
        del self._lent[lease.number]
        if successor is not None:
            self._wake(successor)
        elif lease.idle_since is not None:
            surplus = self._idle.surplus(lease.idle_since, self._most_idle, self._expiry)
            if surplus is not None:  # One at a time is enough: they return one at a time.
                self._discard(surplus)

    def _take_back_unlent(self, lease: Lease[Wire]) -> None:
        self._waiting.pop(lease.number, None)
        # An unknown wire was lent before a fork, before the shelf was closed, or beyond the limit. A known one has
        # already come back: two threads closed one response.
        wire = lease.wire
        if wire is not None and wire not in self._idle and wire not in self._lent.values():
            self.trash.append(wire)

    def _next_in_line(self) -> Lease[Wire] | None:
        while self._waiting:
            number, waiter = next(iter(self._waiting.items()))
            lease = waiter()
            if lease is not None and number not in self._lent:
                return lease
            del self._waiting[number]
        return None

    def _wake(self, lease: Lease[Wire]) -> None:
        wake, lease.wake = lease.wake, None
        if wake is not None:
            wake()
        self._waiting.pop(lease.number, None)

    def _discard(self, wire: Wire) -> None:
        self.trash.append(wire)
        self._idle.remove(wire)

    def _clear(self) -> None:
        for wire in self.wires:
            self._discard(wire)
        self._lent.clear()
        for waiter in list(self._waiting.values()):
            lease = waiter()
            if lease is not None:
                self._wake(lease)
        self._waiting.clear()


def _or_unlimited(limit: float | None) -> float:
    return math.inf if limit is None else limit
