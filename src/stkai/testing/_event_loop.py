"""What FakeClock needs from an event loop: a bell that any thread may ring, and to know when no task can run."""

import asyncio
from collections.abc import Callable

import anyio
import anyio.lowlevel

from .._event_loops import run_soon, running_loop

_IDLE_CYCLES = 2  # one cycle polls the sockets; what arrived on them runs in the next
_BLIND_CYCLES = 20  # on a loop that does not show what it still has to run
_MAX_CYCLES = 1_000  # a task that spins without ever sleeping must not stop the clock


class Bell:
    """Wakes one task, again and again. Created in that task; rung from anywhere."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._loop = running_loop()

    def ring(self) -> None:
        """Wake the task, or keep its next `wait` from waiting. Safe in any thread."""
        run_soon(self._loop, self._set)

    def reset(self) -> None:
        """Forget all earlier rings. Call it before looking at what the bell announces, never after."""
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait until it rings."""
        await self._event.wait()

    def _set(self) -> None:
        self._event.set()


async def all_tasks_wait(still_wanted: Callable[[], bool]) -> None:
    """Yield until no other task can run, or until `still_wanted` returns False.

    A task that waits for a socket counts as waiting.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        from trio.testing import wait_all_tasks_blocked

        await wait_all_tasks_blocked()
        return
    # The queue of what runs next is not a public attribute, but asyncio offers no other way to see that it is empty;
    # a fixed number of cycles is either too small (many tasks in line for one lock) or slow.
    ready = getattr(loop, "_ready", None)
    needed = _BLIND_CYCLES if ready is None else _IDLE_CYCLES
    idle = 0
    for _ in range(_MAX_CYCLES):
        await anyio.lowlevel.checkpoint()
        idle = 0 if ready else idle + 1
        if idle == needed or not still_wanted():
            return
