"""The idle wires of a pool: by destination, and by how long they have been idle."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Wire = TypeVar("Wire")

Place = tuple[str, bytes]
"""Scheme, and host with port: where a connection goes."""


class Idle(NamedTuple):
    """An idle wire's destination, since when it is idle, and the connection underneath."""

    place: Place
    since: float
    stream: Any


class IdleWires(Generic[Wire]):
    """Unused wires. Every step may be interrupted and then repeated from its beginning."""

    def __init__(self) -> None:
        self._wires: OrderedDict[Wire, Idle] = OrderedDict()
        self._at: dict[Place, list[Wire]] = {}

    def __len__(self) -> int:
        return len(self._wires)

    def __contains__(self, wire: object) -> bool:
        return wire in self._wires

    def __iter__(self) -> Iterator[Wire]:
        return iter(list(self._wires))

    def last_at(self, place: Place) -> Wire | None:
        """The most recently used wire to that place."""
        at = self._at.get(place)
        return at[-1] if at else None

    def stream_of(self, wire: Wire) -> Any:
        """The connection underneath; None if that is unknown, or the wire is not here."""
        idle = self._wires.get(wire)
        return None if idle is None else idle.stream

    def add(self, wire: Wire, idle: Idle) -> None:
        """Add a wire, which is now the most recently used one."""
        if wire not in self._wires:
            self._wires[wire] = idle
            self._at.setdefault(idle.place, []).append(wire)

    def remove(self, wire: Wire) -> None:
        """Remove a wire if it is there."""
        idle = self._wires.get(wire)
        if idle is None:
            return
        at = self._at.get(idle.place, [])
        if at and at[-1] is wire:
            at.pop()
        elif wire in at:
            at.remove(wire)
        if not at:
            self._at.pop(idle.place, None)
        del self._wires[wire]

    def least_useful(self) -> Wire:
        """The wire to part with: one whose connection the server has closed, or the one idle for longest."""
        dead = (wire for wire, idle in self._wires.items() if _is_dead(idle.stream))
        return next(dead, next(iter(self._wires)))

    def surplus(self, now: float, most: float, expiry: float) -> Wire | None:
        """A wire above the limit, or idle for too long."""
        if len(self._wires) > most:
            return self.least_useful()
        for wire, idle in self._wires.items():
            return wire if now - idle.since > expiry else None
        return None


def _is_dead(stream: Any) -> bool:
    """Whether the other end has closed an idle connection; False if that is unknown."""
    if stream is None:
        return False
    try:
        # An idle server sends nothing but the end of the connection.
        return bool(stream.get_extra_info("is_readable"))
    except Exception:  # noqa: BLE001 - a closed socket raises whatever the library that holds it likes
        return True
