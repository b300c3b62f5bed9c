"""Which event loop runs a task, asyncio's or trio's; and anyio, imported on first use."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._lazy import LateModule

if TYPE_CHECKING:
    import asyncio

    import anyio as anyio  # noqa: PLC0414 - for other modules
    import anyio.to_thread
else:
    anyio, asyncio = LateModule("anyio"), LateModule("asyncio")


def _trio() -> Any:
    """trio's low-level functions; None if it is not loaded. (While a thread is importing it, nothing can run on it.)"""
    return getattr(sys.modules.get("trio"), "lowlevel", None)


def running_loop() -> Any:
    """The identity of this task's event loop: asyncio's loop, or trio's token. Raises a RuntimeError without a loop."""
    trio = _trio()
    if trio is not None:
        with suppress(RuntimeError):  # This is not a trio task.
            trio.current_task()
            return trio.current_trio_token()
    return asyncio.get_running_loop()


def loop_has_ended() -> Callable[[], bool]:
    """A function that returns whether the event loop of this task has ended: never for trio, which ends all tasks."""
    with suppress(RuntimeError):  # A flow that is run by hand.
        return end_of(running_loop())
    return bool


def end_of(loop: Any) -> Callable[[], bool]:
    """A function that returns whether that loop has ended; `bool`, which returns False, for trio's."""
    end: Callable[[], bool] = getattr(loop, "is_closed", bool)
    return end


def run_soon(loop: Any, function: Callable[..., object], *arguments: object) -> None:
    """Schedule a function on a loop, unless the loop has ended; safe in any thread and in finalizers."""
    call = getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
    # asyncio's "Event loop is closed", trio's RunFinishedError, or the closed socket of a run that was broken off.
    with suppress(RuntimeError, OSError):
        call(function, *arguments)


def asyncio_loop() -> Any:
    """The loop of the running asyncio task; None if trio is running, even as a guest of the loop or inside the task."""
    if "asyncio" not in sys.modules:
        return None
    trio = _trio()
    if trio is not None:
        with suppress(RuntimeError):  # trio does not run. (`in_trio_run` is from 2024.)
            trio.current_trio_token()
            return None
    try:
        task = asyncio.current_task()
    except RuntimeError:  # No loop runs in this thread.
        return None
    return None if task is None else task.get_loop()


async def in_thread(work: Callable[[], object], *, abandon_on_cancel: bool = False) -> None:
    """Do blocking work in a thread, or in this one if the system allows no more threads."""
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True
        work()

    try:
        await anyio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError:
        if has_begun:
            raise
        work()
