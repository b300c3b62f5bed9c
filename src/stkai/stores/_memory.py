"""A quota shared within one process, on any clock, for tests and simulations."""

import threading

from .._clock import Clock
from . import _tickets
from ._members import KnownMembers
from ._protocol import Ask, Law, Lease, Snapshot
from ._tickets import State


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
        """Take permits."""
        with self._lock:
            now = self._clock.monotonic()
            state = self._states.get(ask.share)
            if state is None:
                state = self._states[ask.share] = State(now, KnownMembers())
            return _tickets.lease(state, ask, now)

    try_lease = lease

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        with self._lock:
            state = self._states.get(law.share)
            return state is not None and _tickets.amend(state, epoch, law, self._clock.monotonic())

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        with self._lock:
            state = self._states.get(share)
            if state is None or not state.rate:
                return None
            return _tickets.look(state, self._clock.monotonic())

    def reset(self, share: str) -> None:
        """Delete the state of a share."""
        with self._lock:
            state = self._states.get(share)
            if state is not None:
                state.members = KnownMembers()
                self._states[share] = _tickets.forget(state, self._clock.monotonic())

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
