"""The idle wires of a pool, by how long they have been idle."""

from collections import OrderedDict
from typing import Any, NamedTuple, TypeVar

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
        """The wire to part with: one whose connection the server has closed, or the one idle for longest."""
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
