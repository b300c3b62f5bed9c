"""Stores that run the step in this process. One keeps shares in memory, on any clock, for tests and simulations."""

import threading
from collections.abc import Callable
from typing import TypeVar

from .._clock import Clock
from ._protocol import Ask, Law, Lease, Snapshot
from ._state import State
from ._step import amend, forget, look, step

T = TypeVar("T")


class LocalStore:
    """A store that runs the step itself; a subclass keeps the states."""

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        """Call `work(state, now)` on a share's state, which no other process or thread uses meanwhile, and keep it."""
        raise NotImplementedError

    def lease(self, ask: Ask) -> Lease:
        """Take a member's report and lease it permits."""
        return self._change(ask.share, lambda state, now: step(state, ask, now))

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        return self._change(law.share, lambda state, now: amend(state, epoch, law, now))

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        return self._change(share, look)

    def reset(self, share: str) -> bool:
        """Delete the state of a share; active members start over. Returns whether there was one."""
        return self._change(share, forget)


class MemoryStore(LocalStore):
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

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        with self._lock:
            now = self._clock.monotonic()
            state = self._states.get(share) or self._states.setdefault(share, State.new(now))
            return work(state, now)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
