"""Time and randomness: no other module reads the system's clocks or draws random numbers."""

import random
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol, runtime_checkable

from ._errors import ConfigurationError
from ._event_loops import anyio, asyncio_loop


@runtime_checkable
class Clock(Protocol):
    """Where a stack gets its time from. To test without sleeping, pass `stkai.testing.FakeClock`."""

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never decreases."""
        ...

    def utcnow(self) -> datetime:
        """The wall-clock time, with a time zone; only for HTTP-dates (RFC 9110, section 5.6.7)."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread for this many seconds."""
        ...

    def asleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Suspend this task for this many seconds, on the event loop that runs it."""
        ...


class SystemClock:
    """The system's clock; its async sleeps work on asyncio and trio."""

    monotonic = staticmethod(time.monotonic)

    def utcnow(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def asleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        # Thousands of tasks may sleep here: on asyncio, with nothing but asyncio's own timer.
        if asyncio_loop() is not None:
            asyncio = sys.modules["asyncio"]
            sleeping: Coroutine[Any, Any, None] = asyncio.sleep(seconds)
            return sleeping
        return anyio.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


_SLEEPS: Final = SystemClock.sleep, SystemClock.asleep


def clock_or_system(clock: Clock | None) -> Clock:
    """The argument `clock`, or the system's clock; raises a ConfigurationError if it is not a clock."""
    if clock is None:
        return SystemClock()
    is_class = isinstance(clock, type)  # Its methods lack `self`.
    names = "monotonic", "utcnow", "sleep", "asleep"
    missing = [name for name in names if is_class or not callable(getattr(clock, name, None))]
    if missing:
        raise ConfigurationError(
            "clock must be a stkai.Clock, an object with the methods monotonic(), utcnow(), sleep(seconds) and"
            f" asleep(seconds), such as stkai.testing.FakeClock(): {clock!r} has no {missing[0]}()"
        )
    return clock


def is_system_clock(clock: Clock) -> bool:
    """Whether a clock sleeps in real time, so that its sleeps can be replaced by other waits of the same length."""
    return type(clock) is SystemClock and (SystemClock.sleep, SystemClock.asleep) == _SLEEPS


uniform: Final = random.random
"""Draw a number in [0, 1). The generator is reseeded in a forked child, so that children draw different jitter."""


def unique_key() -> str:
    """A key that no other call has, for an `Idempotency-Key` header."""
    return f"{random.SystemRandom().getrandbits(128):032x}"
