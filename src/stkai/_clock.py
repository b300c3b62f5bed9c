"""Time and randomness: the only module of the package that reads a clock, sleeps or draws a random number."""

import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a stack needs to know of time. Pass another one (`stkai.testing.FakeClock`) to test without sleeping."""

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes back."""
        ...

    def utcnow(self) -> datetime:
        """The wall clock, with its zone; only for HTTP-dates (RFC 9110, section 5.6.7)."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread for that many seconds."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Suspend this task for that many seconds, on whichever event loop runs it."""
        ...


class SystemClock:
    """The machine's own clock; its async sleeps work on asyncio and on trio."""

    def monotonic(self) -> float:
        return time.monotonic()

    def utcnow(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        import anyio

        await anyio.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


uniform = random.random
"""A number in [0, 1). The generator seeds itself anew in a forked child, so children draw different jitter."""


def unique_key() -> str:
    """A key that no other call has, for an `Idempotency-Key` header."""
    return f"{random.SystemRandom().getrandbits(128):032x}"
