"""The state of a connection pool: wires in use, idle wires, and queued requests. It never waits and does no I/O.

An interrupt (Ctrl-C) may come between any two lines, and a finalizer may run there. Every step can therefore be cut off
without losing a wire: a loan that is given back, or that nothing refers to any more, is noted by one atomic step, and
whoever uses the pool next completes what was left undone. A signal handler that asks for a wire while it interrupts
these lines gets an error.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Generic, TypeVar
from weakref import ref

import httpx

from .._families import HTTPX, Family, of_family
from .._process import IN_HANDLER, begin_in_each_process
from ..transports._call import cannot_send
from .lifetimes import Idle, IdleWires, Place

Wire = TypeVar("Wire", bound=httpx.BaseTransport | httpx.AsyncBaseTransport)

_numbers: Final = count(1)


class Loan(Generic[Wire]):
    """One request's hold on a wire. It ends once, and by itself when nothing refers to it any more."""

    wire: Wire | None = None
    # The connection underneath: of the response (its `network_stream`), before that the one that the wire kept open.
    stream: Any = None
    wake: Callable[[], object] | None = None  # Called when a queued loan gets its wire, or never will.
    idle_since: float | None = None  # Once it is over; None if the wire is unusable.
    _over = False

    def __init__(self, state: "PoolState[Wire]", place: Place) -> None:
        self.number = next(_numbers)
        self.place = place  # Where the request goes.
        self._state = state

    def end(self, idle_since: float | None = None) -> None:
        """Give the wire back: idle from `idle_since` on or, with None, unusable."""
        if not self._over:
            self.idle_since = idle_since
            self._state.give(self)
            self._over = True

    def __del__(self) -> None:
        if not self._over and hasattr(self, "_state"):
            # If an interrupt cuts this off, the state still finds out: see `_Lent`.
            self._state.give_from_finalizer(self)


class _Lent(ref[Loan[Any]]):
    """A loan whose request has a wire, until its number is removed from the state.

    The callback of this reference is a method of a C type: no interrupt can cut it off, as it can a finalizer.
    """

    __slots__ = ("number", "wire")
    number: int
    wire: Any


class PoolState(Generic[Wire]):
    """A limited number of wires; prefers an idle one to the right place, the most recently used first."""

    _watched: type  # The class of the bodies whose ends the pool notices.

    def __init__(self, make: Callable[[], Wire], limits: httpx.Limits, family: Family = HTTPX) -> None:
        self.family = family
        self._body: Any = of_family(self._watched, family)
        self._make = make
        self._most = _or_unlimited(limits.max_connections)
        self._most_idle = _or_unlimited(limits.max_keepalive_connections)
        self._expiry = _or_unlimited(limits.keepalive_expiry)
        self._closed = False
        begin_in_each_process(self, PoolState._start)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._lent: dict[int, _Lent] = {}
        self._idle = IdleWires[Wire]()
        self._waiting: OrderedDict[int, ref[Loan[Wire]]] = OrderedDict()
        self._back: deque[Loan[Wire]] = deque()
        self._dropped: deque[_Lent] = deque()
        self._note_dropped = self._dropped.append
        self.trash: deque[Wire] = deque()  # Wires to close, for anyone who finds them.

    @property
    def wires(self) -> list[Wire]:
        return [*(lent.wire for lent in self._lent.values()), *self._idle]

    def take(self, loan: Loan[Wire]) -> bool:
        """Lend a wire if one is free; otherwise queue a loan that has a `wake`.

        Raises an error if the pool is closed, or if a signal handler calls it that has interrupted the pool.
        """
        with self._lock:
            if self._busy:
                raise RuntimeError(IN_HANDLER)
            try:
                self._busy = True
                if self._back or self._dropped or self._closed:
                    self._catch_up()
                is_lent = self._lend(loan)
            finally:
                self._busy = False
        if self._back or self._dropped or self._closed:
            self.settle()
        return is_lent

    def leave(self, loan: Loan[Wire]) -> None:
        """Leave the queue; raises an error if the pool was closed."""
        with self._lock:  # Another thread may be looking for the first in the queue.
            self._waiting.pop(loan.number, None)
        if loan.wire is None and self._closed:
            raise cannot_send()

    def give(self, loan: Loan[Wire]) -> None:
        """Take a wire back and lend it to the first in the queue."""
        self._back.append(loan)
        self.settle()

    def give_from_finalizer(self, loan: Loan[Wire]) -> None:
        """The same, from a finalizer: in any thread, at any moment."""
        self.give(loan)

    def settle(self) -> None:
        """Take back what has been noted, unless this thread is in the middle of another step, which will."""
        while self._back or self._dropped or (self._closed and self._is_used()):
            with self._lock:
                if self._busy:
                    return
                try:
                    self._busy = True
                    self._catch_up()
                finally:
                    self._busy = False

    def discard_all(self) -> None:
        """Move all wires to the trash, even those in use."""
        self._closed = True
        self.settle()

    # Everything below runs in one thread at a time, and never inside itself.

    def _is_used(self) -> bool:
        return bool(self._lent or self._idle or self._waiting)

    def _catch_up(self) -> None:
        """Do what was noted, or cut off."""
        while self._back:
            loan = self._back[0]
            self._take_back(loan.number, loan)
            self._back.popleft()
        while self._dropped:
            self._take_back(self._dropped[0].number, None)
            self._dropped.popleft()
        if self._closed and self._is_used():
            self._clear()

    def _lend(self, loan: Loan[Wire]) -> bool:
        if self._closed:
            raise cannot_send()
        wire = self._idle.last_at(loan.place)
        if wire is None:
            if len(self._lent) + len(self._idle) < self._most:
                wire = self._make()
            elif self._idle:
                # It goes elsewhere: with room for one connection, it closes that one and opens another.
                wire = self._idle.least_useful()
            else:
                if loan.wake is not None:
                    self._waiting[loan.number] = ref(loan)
                return False
        self._hand_over(loan, wire)
        return True

    def _hand_over(self, loan: Loan[Wire], wire: Wire, stream: Any = None) -> None:
        lent = _Lent(loan, self._note_dropped)
        lent.number, lent.wire = loan.number, wire
        self._lent[loan.number] = lent
        idle = self._idle.get(wire)
        loan.wire, loan.stream = wire, stream if idle is None else idle.stream
        self._idle.pop(wire, None)

    def _take_back(self, number: int, loan: Loan[Wire] | None) -> None:
        """Take back the wire of a loan, which is None if nothing refers to it any more."""
        lent = self._lent.get(number)
        if lent is None:
            self._waiting.pop(number, None)
            if loan is not None and loan.wire is not None:
                wire, loan.wire = loan.wire, None
                self._take_back_unlent(wire)
            return
        wire = lent.wire
        idle_since, stream = (None, None) if loan is None else (loan.idle_since, loan.stream)
        successor = self._next_in_line() if self._waiting else None
        if successor is not None:
            if idle_since is None:
                self._hand_over(successor, self._make())
            else:
                self._hand_over(successor, wire, stream)
        elif loan is not None and idle_since is not None:
            self._idle.setdefault(wire, Idle(loan.place, idle_since, loan.stream))
        del self._lent[number]
        if loan is not None:
            loan.wire = None
        if successor is not None:
            self._wake(successor)
        if idle_since is None:
            # Only once: closing it again could wait for ever for a lock of its that an interrupt has left taken.
            self._discard(wire)
        elif successor is None:
            surplus = self._idle.surplus(idle_since, self._most_idle, self._expiry)
            if surplus is not None:  # One at a time is enough: they return one at a time.
                self._discard(surplus)

    def _take_back_unlent(self, wire: Wire) -> None:
        # An unknown wire was lent before a fork, or before the pool was closed. A known one has already come back: two
        # threads closed one response.
        if wire not in self.wires:
            self.trash.append(wire)

    def _next_in_line(self) -> Loan[Wire] | None:
        while self._waiting:
            number, waiter = next(iter(self._waiting.items()))
            loan = waiter()
            if loan is not None and number not in self._lent:
                return loan
            del self._waiting[number]
        return None

    def _wake(self, loan: Loan[Wire]) -> None:
        wake, loan.wake = loan.wake, None
        if wake is not None:
            wake()
        self._waiting.pop(loan.number, None)

    def _discard(self, wire: Wire) -> None:
        self.trash.append(wire)
        self._idle.pop(wire, None)

    def _clear(self) -> None:
        for wire in self.wires:
            self._discard(wire)
        self._lent.clear()
        for waiter in list(self._waiting.values()):
            loan = waiter()
            if loan is not None:
                self._wake(loan)
        self._waiting.clear()


def _or_unlimited(limit: float | None) -> float:
    return math.inf if limit is None else limit
