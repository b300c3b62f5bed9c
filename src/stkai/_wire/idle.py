"""The idle wires of a pool: by the place to which they lead, and by the time for which nobody has used them."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Wire = TypeVar("Wire")

Place = tuple[str, bytes]
"""Scheme, and host with port: where a connection leads."""


class Idle(NamedTuple):
    """What is known of an idle wire: where it leads, since when it is idle, and the connection below it."""

    place: Place
    since: float
    stream: Any


class IdleWires(Generic[Wire]):
    """Wires that nobody uses. Every step may be interrupted, and be done again from its beginning."""

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
        """The wire to that place that was in use last."""
        at = self._at.get(place)
        return at[-1] if at else None

    def add(self, wire: Wire, idle: Idle) -> None:
        """Add a wire, which is the last used one now."""
        if wire not in self._wires:
            self._wires[wire] = idle
            self._at.setdefault(idle.place, []).append(wire)

    def remove(self, wire: Wire) -> None:
        """Remove a wire, if it is there."""
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
        """The wire to part with: one whose connection the server has closed, or the one unused for longest."""
        dead = (wire for wire, idle in self._wires.items() if _is_dead(idle.stream))
        return next(dead, next(iter(self._wires)))

    def surplus(self, now: float, most: float, expiry: float) -> Wire | None:
        """A wire that is one too many, or unused for too long."""
        if len(self._wires) > most:
            return self.least_useful()
        for wire, idle in self._wires.items():
            return wire if now - idle.since > expiry else None
        return None


def _is_dead(stream: Any) -> bool:
    """Whether the other end of an idle connection has closed it; False where nobody can tell."""
    if stream is None:
        return False
    try:
        return bool(stream.get_extra_info("is_readable"))  # An idle server has nothing to say but goodbye.
    except Exception:  # noqa: BLE001 - a socket that is closed, in the words of whichever library holds it
        return True
