"""Time and randomness: no other module reads the system's clocks or draws random numbers."""

import random
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from ._errors import ConfigurationError
from ._event_loops import anyio, asyncio_loop


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

    def asleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Suspend this task for this many seconds, on whichever event loop runs it."""
        ...


_LONGEST: Final = 1e6  # Seconds; a longer sleep is split, since systems limit its length.


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
        if asyncio_loop() is not None:
            asyncio = sys.modules["asyncio"]
            sleeping: Coroutine[Any, Any, None] = asyncio.sleep(seconds)
            return sleeping
        return anyio.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


_SLEEPS: Final = SystemClock.sleep, SystemClock.asleep


_METHODS: Final = ("monotonic", "utcnow", "sleep", "asleep")


def clock_or_system(clock: Clock | None) -> Clock:
    """The argument `clock`, or the system's clock.

    Raises:
        ConfigurationError: it is no clock.
    """
    if clock is None:
        return SystemClock()
    is_class = isinstance(clock, type)  # Its methods lack `self`.
    missing = [name for name in _METHODS if is_class or not callable(getattr(clock, name, None))]
    if missing:
        raise ConfigurationError(
            "clock must be a stkai.Clock, an object with the methods monotonic(), utcnow(), sleep(seconds) and"
            f" asleep(seconds), such as stkai.testing.FakeClock(): {clock!r} has no {missing[0]}()"
        )
    return clock


def is_system_clock(clock: Clock) -> bool:
    """Whether a clock sleeps in real time, so that a sleep may be replaced by another wait of the same length."""
    return type(clock) is SystemClock and (SystemClock.sleep, SystemClock.asleep) == _SLEEPS


uniform = random.random
"""A number in [0, 1). The generator reseeds itself in a forked child, so children draw different jitter."""


def unique_key() -> str:
    """A key that no other call has, for an `Idempotency-Key` header."""
    return f"{random.SystemRandom().getrandbits(128):032x}"
