"""The members that share a quota."""

from typing import Protocol

FORGET = 10.0
"""Seconds of silence after which a member is forgotten."""


class Members(Protocol):
    """The members that share the quota, and when each was last seen."""

    def seen(self, member: str, now: float, waiting: int) -> int:
        """Record that the member is alive, forget silent members, and count the rest."""
        ...

    def count(self, now: float) -> tuple[int, int]:
        """The number of members, and the number of requests waiting in them."""
        ...

    def move_back(self, seconds: float) -> None:
        """Move the times at which the members were last seen back by so many seconds."""
        ...


class KnownMembers:
    """Members in a dict."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def seen(self, member: str, now: float, waiting: int) -> int:
        self._seen[member] = (now, waiting)
        for other in [name for name, (at, _) in self._seen.items() if at <= now - FORGET]:
            del self._seen[other]
        return len(self._seen)

    def count(self, now: float) -> tuple[int, int]:
        alive = [waiting for at, waiting in self._seen.values() if at > now - FORGET]
        return len(alive), sum(alive)

    def move_back(self, seconds: float) -> None:
        self._seen = {name: (at - seconds, waiting) for name, (at, waiting) in self._seen.items()}
