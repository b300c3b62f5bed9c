"""One request's hold on one wire of a pool, which ends however the request ends."""

from collections.abc import Callable
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from .idle import Place

Wire = TypeVar("Wire")

_numbers = count(1)


class Lender(Protocol):
    """Whatever takes wires back."""

    def give(self, lease: Any) -> None:
        """Take a wire back and lend it to the first in line."""
        ...

    def lose(self, lease: Any) -> None:
        """The same, from a finalizer: in any thread, at any moment."""
        ...


class Lease(Generic[Wire]):
    """One request's hold on a wire. It ends once, and by itself when nobody refers to it any more.

    Attributes:
        number: no other lease has it.
        place: where the request goes.
        wire: the wire, once there is one.
        stream: the connection underneath, from the response's extension `network_stream`.
        wake: called when a lease in line gets its wire, or when it never will.
        idle_since: once it is over, the instant from which the wire is idle; None if the wire is unusable.
    """

    wire: Wire | None = None
    stream: Any = None
    wake: Callable[[], object] | None = None
    idle_since: float | None = None
    _over = False

    def __init__(self, lender: Lender, place: Place) -> None:
        self.number = next(_numbers)
        self.place = place
        self._lender = lender

    def end(self, idle_since: float | None = None) -> None:
        """Give the wire back: idle from `idle_since` on or, with None, unusable."""
        if not self._over:
            self.idle_since = idle_since
            self._lender.give(self)
            self._over = True

    def __del__(self) -> None:
        if not self._over and hasattr(self, "_lender"):
            self._over = True
            self._lender.lose(self)
