"""Time and randomness: the only module of the package that reads a clock, sleeps or draws a random number."""

import random
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol


class Clock(Protocol):
    """How a stack reads the time and sleeps. Pass `stkai.testing.FakeClock` to test without sleeping."""

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes backwards."""
        ...

    def utcnow(self) -> datetime:
        """The current date and time with a time zone; used only for HTTP-dates (RFC 9110, section 5.6.7)."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread for that many seconds."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Suspend this task for that many seconds, on whichever event loop runs it."""
        ...


_LONGEST: Final = 1e6
"""Seconds; no system sleeps for any number of them at once."""


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
        # Thousands of tasks may sleep here, so asyncio tasks get its own timer directly.
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and _runs_a_task(asyncio):
            sleeping: Coroutine[Any, Any, None] = asyncio.sleep(seconds)
            return sleeping
        import anyio

        return anyio.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


def _runs_a_task(asyncio: Any) -> bool:
    """Whether an asyncio task is running, and not trio as a guest of its loop or inside the task."""
    trio = sys.modules.get("trio")
    try:
        return (trio is None or not trio.lowlevel.in_trio_run()) and asyncio.current_task() is not None
    except (AttributeError, RuntimeError):  # A trio that cannot tell, or no loop in this thread.
        return False


uniform = random.random
"""A number in [0, 1). The generator reseeds itself in a forked child, so children draw different jitter."""


def unique_key() -> str:
    """A unique key for an `Idempotency-Key` header."""
    return f"{random.SystemRandom().getrandbits(128):032x}"
