"""A quota shared within one process, on any clock, for tests and simulations."""

import threading

from .._clock import Clock
from ._protocol import Ask, Law, Lease, Snapshot
from ._state import Member, State
from ._step import amend, forget, look, step


class KnownMembers(dict[str, Member]):
    """Members in a dict."""

    def overdue(self, now: float, most: int) -> list[tuple[str, Member]]:
        """The first members whose `due` is not after `now`."""
        found = [
            (member.due, name.encode(), name, member) for name, member in self.items() if member.due <= now
        ]
        return [(name, member) for _, _, name, member in sorted(found, key=lambda each: each[:2])[:most]]

    def all(self) -> list[Member]:
        """All members."""
        return list(self.values())


class MemoryStore:
    """Keeps shares in memory, on a clock that you pass: sharing in virtual time, without a file.

    Args:
        clock: its `monotonic` is the store's time.
    """

    blocks = False
    """The store never waits, so an event loop may call it directly."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}

    def lease(self, ask: Ask) -> Lease:
        """Take a member's report and lease it permits."""
        with self._lock:
            now = self._clock.monotonic()
            state = self._states.get(ask.share)
            if state is None:
                state = self._states[ask.share] = State(now, KnownMembers())
            return step(state, ask, now)

    try_lease = lease

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        with self._lock:
            state = self._states.get(law.share)
            return state is not None and amend(state, epoch, law, self._clock.monotonic())

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        with self._lock:
            state = self._states.get(share)
            return None if state is None else look(state, self._clock.monotonic())

    def reset(self, share: str) -> bool:
        """Delete the state of a share. Returns whether there was one."""
        with self._lock:
            state = self._states.get(share)
            if state is None or not state.rate:
                return False
            self._states[share] = forget(state, KnownMembers(), self._clock.monotonic())
            return True

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
