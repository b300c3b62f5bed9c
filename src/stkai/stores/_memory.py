"""A quota that members within one process share: for tests and simulations, on any clock."""

import threading

from .._clock import Clock
from . import _tickets
from ._protocol import Ask, Law, Lease, Snapshot
from ._tickets import KnownMembers, State


class MemoryStore:
    """Keeps shares in memory, by a clock of your own: sharing in virtual time, and without a file.

    Args:
        clock: whose `monotonic` is the store's time.
    """

    blocks = False
    """Never waits, so that it may be asked in an event loop."""

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
        """Put a new adaptive state in the place of the one that `law.version` names."""
        with self._lock:
            state = self._states.get(law.share)
            return state is not None and _tickets.amend(state, epoch, law, self._clock.monotonic())

    def look(self, share: str) -> Snapshot | None:
        """What can be seen of a share from outside."""
        with self._lock:
            state = self._states.get(share)
            if state is None or not state.rate:
                return None
            return _tickets.look(state, self._clock.monotonic())

    def reset(self, share: str) -> None:
        """Forget a share."""
        with self._lock:
            state = self._states.get(share)
            if state is not None:
                state.members = KnownMembers()
                self._states[share] = _tickets.forget(state, self._clock.monotonic())

    def close(self) -> None:
        """Nothing: there is nothing to let go of."""
