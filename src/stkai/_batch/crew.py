"""Tasks that outlive no one: they run beside an async generator, on asyncio and trio, until it ends or is closed.

A task group inside an async generator would stay open while the generator is suspended, and its cancel scope would then
enclose the caller's code. These tasks belong to the event loop instead.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import anyio

Work = Callable[[], Coroutine[Any, Any, None]]


class Crew(Protocol):
    """Runs pieces of work that raise nothing but the cancellation."""

    def start(self, work: Work) -> None:
        """Run `work` in a task of its own."""
        ...

    async def close(self) -> None:
        """Cancel what runs, and return when it has ended."""
        ...


def new_crew() -> Crew:
    """A crew on the event loop that runs."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return _TrioCrew(trio)
    return _AsyncioCrew()


class _AsyncioCrew:
    """Plain tasks of asyncio's, which cost a few microseconds each."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks)


class _TrioCrew:
    """The children of a nursery that a system task holds open."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._nursery: Any = None
        self._waiting: list[Work] = []
        self._is_closed = False
        self._ended = trio.Event()
        trio.lowlevel.spawn_system_task(self._hold)

    async def _hold(self) -> None:
        try:
            async with self._trio.open_nursery() as nursery:
                self._nursery = nursery
                for work in self._waiting:
                    nursery.start_soon(work)
                if self._is_closed:
                    nursery.cancel_scope.cancel()
                await self._trio.sleep_forever()
        finally:
            self._ended.set()

    def start(self, work: Work) -> None:
        if self._nursery is None:
            self._waiting.append(work)
        else:
            self._nursery.start_soon(work)

    async def close(self) -> None:
        self._is_closed = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        with self._trio.CancelScope(shield=True):
            await self._ended.wait()
