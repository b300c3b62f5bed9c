"""The state of a connection pool: connections in use, idle ones, and queued requests. It never waits and does no I/O.

A connection is a transport with room for one. An interrupt (Ctrl-C) may come between any two lines, and a finalizer may
run there. Every step can therefore be cut off without losing a connection: a loan that is given back, or that nothing
refers to any more, is recorded in one atomic step, and the next user of the pool completes what was left undone. A
signal handler that asks for a connection while it interrupts these lines gets an error.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import ref

import httpx

from .._clock import SystemClock
from .._families import HTTPX, Family, of_family
from .._process import IN_HANDLER, begin_in_each_process
from ..transports._call import cannot_send
from .pool_queues import Destination, Idle, IdleConnections, WaitingLoans

if TYPE_CHECKING:
    from .._config.models import HttpConfig

Pooled = TypeVar("Pooled", bound=httpx.BaseTransport | httpx.AsyncBaseTransport)

_numbers: Final = count(1)


class Loan(Generic[Pooled]):
    """One request's use of a connection. It ends once: when given back, or when nothing refers to it any more."""

    connection: Pooled | None = None
    wake: Callable[[], object] | None = None  # Called when a queued loan gets its connection, or never will.
    idle_since: float | None = None  # Set when the loan ends; None if the connection cannot be reused.
    priority = "normal"  # While it waits: "first" is served before all others, "low" after nine normal ones.
    _over = False

    def __init__(
        self, state: "PoolState[Pooled]", destination: Destination, priority: str = "normal"
    ) -> None:
        self.number = next(_numbers)
        self.destination = destination  # Where the request is sent.
        if priority != "normal":
            self.priority = priority
        self._state = state

    def end(self, idle_since: float | None = None) -> None:
        """Give the connection back: idle since `idle_since` or, if that is None, not to be reused."""
        if not self._over:
            self.idle_since = idle_since
            self._state.give(self)
            self._over = True

    def is_for(self, state: "PoolState[Pooled]", destination: Destination) -> bool:
        """Whether its connection belongs to this pool, and was lent for this destination."""
        return self._state is state and self.destination == destination

    def unused(self) -> None:
        """Give the connection back although no request was sent on it."""
        self.end(self._state.now())

    def __del__(self) -> None:
        if not self._over and hasattr(self, "_state"):
            # If an interrupt cuts this off, the state is still notified: see `_Lent`.
            self._state.give_from_finalizer(self)


class _Lent(ref[Loan[Any]]):
    """A loan that has a connection, until its number is removed from the state.

    The callback of this reference is a method of a C type: unlike a finalizer, it cannot be cut off by an interrupt.
    """

    __slots__ = ("connection", "number")
    number: int
    connection: Any


class PoolState(Generic[Pooled]):
    """A limited number of connections. Lends the most recently used idle one to the destination, if there is any."""

    _body_class: type  # Of response bodies; it notifies the pool when one ends.
    now = staticmethod(SystemClock.monotonic)  # In seconds of the clock by which connections are idle.

    def __init__(
        self,
        make: Callable[[], Pooled],
        limits: "HttpConfig | httpx.Limits",
        family: Family = HTTPX,
        full: set[Any] | None = None,  # Collects the pools whose connections are all in use.
    ) -> None:
        self.family = family
        self._full = set() if full is None else full
        self._me = ref(self, self._full.discard)  # A loop may end without closing its pool.
        self._body: Any = of_family(self._body_class, family)
        self._make = make
        self._max_connections = _or_unlimited(limits.max_connections)
        self._max_idle = _or_unlimited(limits.max_keepalive_connections)
        self._expiry = _or_unlimited(limits.keepalive_expiry)
        self._closed = False
        begin_in_each_process(self, PoolState._start)

    def _start(self) -> None:
        self._full.discard(self._me)
        self._lock = threading.RLock()
        self._busy = False
        self._lent: dict[int, _Lent] = {}
        self._idle = IdleConnections[Pooled]()
        self._waiting = WaitingLoans()
        self._back: deque[Loan[Pooled]] = deque()
        self._dropped: deque[_Lent] = deque()
        self._note_dropped = self._dropped.append
        self.discarded: deque[Pooled] = deque()  # Connections to close; any user of the pool may do so.

    @property
    def connections(self) -> list[Pooled]:
        return [*(lent.connection for lent in self._lent.values()), *self._idle]

    @property
    def latest(self) -> int:
        """The highest number of a loan in use; it grows while connections become free."""
        return max(tuple(self._lent), default=0)

    def take(self, loan: Loan[Pooled]) -> bool:
        """Lend a connection if one is free; otherwise queue the loan, if it has a `wake`.

        Raises an error if the pool is closed, or if the caller is a signal handler that has interrupted the pool.
        """
        with self._lock:
            if self._busy:
                raise RuntimeError(IN_HANDLER)
            try:
                self._busy = True
                if self._back or self._dropped or self._closed:
                    self._process_returns()
                is_lent = self._lend(loan)
            finally:
                self._busy = False
        if self._back or self._dropped or self._closed:
            self.catch_up()
        return is_lent

    def reserved(self, request: httpx.Request, loans: list[Loan[Pooled]]) -> Loan[Pooled] | None:
        """The loan that the request carries, unless another copy took it, or it is for another destination."""
        with suppress(IndexError):
            loan = loans.pop()
            if loan.is_for(self, (request.url.scheme, request.url.netloc)) and not self._closed:
                return loan
            loan.unused()
        return None

    def leave(self, loan: Loan[Pooled]) -> None:
        """Remove a loan from the queue; raises an error if it has no connection because the pool was closed."""
        with self._lock:  # Another thread may be iterating over the queue.
            self._waiting.remove(loan.number)
        if loan.connection is None and self._closed:
            raise cannot_send()

    def give(self, loan: Loan[Pooled]) -> None:
        """Take a connection back and lend it to the first in the queue."""
        self._back.append(loan)
        self.catch_up()

    def give_from_finalizer(self, loan: Loan[Pooled]) -> None:
        """Like `give`, from a finalizer, which may run in any thread at any moment."""
        self.give(loan)

    def catch_up(self) -> None:
        """Process the recorded returns, unless this thread is in the middle of another step, which will do so."""
        while self._back or self._dropped or (self._closed and self._has_any()):
            with self._lock:
                if self._busy:
                    return
                try:
                    self._busy = True
                    self._process_returns()
                finally:
                    self._busy = False

    def discard_all(self) -> None:
        """Discard all connections, even those in use."""
        self._closed = True
        self.catch_up()

    # Everything below runs in one thread at a time, and is never reentered.

    def _has_any(self) -> bool:
        return bool(self._lent or self._idle or self._waiting)

    def _process_returns(self) -> None:
        """Process the recorded returns, and complete what was cut off."""
        while self._back:
            loan = self._back[0]
            self._take_back(loan.number, loan)
            self._back.popleft()
        while self._dropped:
            self._take_back(self._dropped[0].number, None)
            self._dropped.popleft()
        if self._closed and self._has_any():
            self._clear()

    def _lend(self, loan: Loan[Pooled]) -> bool:
        if self._closed:
            raise cannot_send()
        connection = self._idle.last_to(loan.destination)
        if connection is None:
            if len(self._lent) + len(self._idle) < self._max_connections:
                connection = self._make()
            elif self._idle:
                # It is to another destination. The transport has room for one, so it closes that one and opens another.
                connection = next(iter(self._idle))
            else:
                if loan.wake is not None:
                    self._waiting.add(loan)
                return False
        self._hand_over(loan, connection)
        return True

    def _hand_over(self, loan: Loan[Pooled], connection: Pooled) -> None:
        lent = _Lent(loan, self._note_dropped)
        lent.number, lent.connection = loan.number, connection
        self._lent[loan.number] = lent
        loan.connection = connection
        self._idle.pop(connection, None)
        if len(self._lent) >= self._max_connections:
            self._full.add(self._me)

    def _take_back(self, number: int, loan: Loan[Pooled] | None) -> None:
        """Take back the connection of a loan; `loan` is None if nothing refers to it any more."""
        lent = self._lent.get(number)
        if lent is None:
            self._waiting.remove(number)
            if loan is not None and loan.connection is not None:
                connection, loan.connection = loan.connection, None
                # An unknown one was lent before a fork, or before the pool was closed. A known one has already come
                # back, because two threads closed the same response.
                if connection not in self.connections:
                    self.discarded.append(connection)
            return
        connection = lent.connection
        idle_since = None if loan is None else loan.idle_since
        successor: Loan[Pooled] | None = self._waiting.next(self._lent) if self._waiting else None
        if successor is not None:
            self._hand_over(successor, self._make() if idle_since is None else connection)
        elif loan is not None and idle_since is not None:
            self._idle.setdefault(connection, Idle(loan.destination, idle_since))
        del self._lent[number]
        if self._full and len(self._lent) < self._max_connections:
            self._full.discard(self._me)
        if loan is not None:
            loan.connection = None
        if successor is not None:
            self._wake(successor)
        if idle_since is None:
            self._discard(connection)
        elif successor is None:
            surplus = self._idle.surplus(idle_since, self._max_idle, self._expiry)
            if surplus is not None:  # One is enough, since connections come back one at a time.
                self._discard(surplus)

    def _wake(self, loan: Loan[Pooled]) -> None:
        wake, loan.wake = loan.wake, None
        if wake is not None:
            wake()
        self._waiting.remove(loan.number)

    def _discard(self, connection: Pooled) -> None:
        self.discarded.append(connection)
        self._idle.pop(connection, None)

    def _clear(self) -> None:
        for connection in self.connections:
            self._discard(connection)
        self._lent.clear()
        self._full.discard(self._me)
        while (loan := self._waiting.next(())) is not None:
            self._wake(loan)


def _or_unlimited(limit: float | None) -> float:
    return math.inf if limit is None else limit
