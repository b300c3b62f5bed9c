"""Time, randomness and event loops: the only module that reads a clock, sleeps, draws, or asks which loop runs."""

import random
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from ._lazy import LateModule

if TYPE_CHECKING:
    import anyio as anyio  # noqa: PLC0414 - for other modules
    import anyio.to_thread
else:
    anyio = LateModule("anyio")


class Clock(Protocol):
    """What a stack needs to know about time. Pass another one (`stkai.testing.FakeClock`) to test without sleeping."""

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes back."""
        ...

    def utcnow(self) -> datetime:
        """The wall clock, with its zone; only for HTTP-dates (RFC 9110, section 5.6.7)."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread for this many seconds."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Suspend this task for this many seconds, on whichever event loop runs it."""
        ...


_LONGEST: Final = 1e6
"""Seconds; a longer sleep is split, since systems limit its length."""


class SystemClock:
    """The machine's own clock; its async sleeps work on asyncio and on trio."""

    monotonic = staticmethod(time.monotonic)

    def utcnow(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        while seconds > _LONGEST:
            time.sleep(_LONGEST)
            seconds -= _LONGEST
        time.sleep(seconds)

    def asleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        # Thousands of tasks may sleep here: on asyncio, nothing comes between a task and its timer.
        if in_asyncio_task():
            asyncio = sys.modules["asyncio"]
            sleeping: Coroutine[Any, Any, None] = asyncio.sleep(seconds)
            return sleeping
        return anyio.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


_SLEEPS: Final = SystemClock.sleep, SystemClock.asleep


def is_system_clock(clock: Clock) -> bool:
    """Whether a clock sleeps in real time, so that a sleep may be replaced by another wait of the same length."""
    return type(clock) is SystemClock and (SystemClock.sleep, SystemClock.asleep) == _SLEEPS


uniform = random.random
"""A number in [0, 1). The generator reseeds itself in a forked child, so children draw different jitter."""


def unique_key() -> str:
    """A key that no other call has, for an `Idempotency-Key` header."""
    return f"{random.SystemRandom().getrandbits(128):032x}"


def running_loop() -> Any:
    """What identifies the event loop of this task: asyncio's loop, or trio's token.

    Raises:
        RuntimeError: no event loop runs here.
    """
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):  # This is not a trio task.
            trio.lowlevel.current_task()
            return trio.lowlevel.current_trio_token()
    import asyncio

    return asyncio.get_running_loop()


def run_soon(loop: Any, function: Callable[..., object], *arguments: object) -> None:
    """Have a loop call a function soon, unless it has ended; safe in any thread and in finalizers."""
    call = getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
    with suppress(RuntimeError):  # asyncio's "Event loop is closed"; trio's RunFinishedError is one as well.
        call(function, *arguments)


def in_asyncio_task() -> bool:
    """Whether an asyncio task is running, and trio is not: neither as a guest of its loop, nor within the task."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    if asyncio is None:
        return False
    try:
        return (trio is None or not trio.lowlevel.in_trio_run()) and asyncio.current_task() is not None
    except (AttributeError, RuntimeError):  # A trio that cannot tell, or no loop in this thread.
        return False
