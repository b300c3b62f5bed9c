"""FakeClock: time that moves when a test moves it, or when code sleeps; nothing really waits."""

import math
import threading
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final

import anyio
import anyio.lowlevel

from .._abandonable import Latch
from .._checks import SECONDS, check_number
from .._errors import ConfigurationError
from .._event_loops import asyncio_loop

_EPOCH: Final = datetime(2030, 1, 1, tzinfo=UTC)
_IDLE_CYCLES: Final = 2  # One cycle polls the sockets; the next handles what has arrived on them.
_BLIND_CYCLES: Final = 20  # For a loop that does not show what it still has to run.
_MAX_CYCLES: Final = 1_000  # A task that never sleeps must not stop the clock.


class FakeClock:
    """A `Clock` for tests. Works in threads, on asyncio and on trio (one event loop at a time).

    With `autojump`, a sleep moves the clock: in a thread at once, in a task once every other task sleeps or waits as
    well, so that many can sleep concurrently and wake in the order of their wake-up times, then of their arrival. The
    clock cannot see into sockets: a task that waits for one counts as waiting.

    Without `autojump`, sleepers stay asleep until `advance` or `advance_to_next` passes their wake-up time.

    Args:
        start: the first reading of `monotonic`, in seconds.
        autojump: whether sleeping moves the clock.
        epoch: the first reading of `utcnow`; 2030-01-01T00:00:00Z by default.

    Attributes:
        sleeps: the length of every sleep in seconds, in the order of the calls; you may clear it.
    """

    def __init__(self, start: float = 0.0, *, autojump: bool = True, epoch: datetime = _EPOCH) -> None:
        if not math.isfinite(start):
            raise ConfigurationError(f"start must be a finite number of seconds, not {start}")
        if epoch.tzinfo is None:
            raise ConfigurationError(f"epoch must have a time zone: epoch={epoch!r}; add tzinfo=datetime.UTC")
        self.sleeps: list[float] = []
        self._start = start
        self._now = start
        self._autojump = autojump
        self._epoch = epoch
        self._sleepers: list[_Sleeper] = []  # In the order in which they wake.
        self._changed = threading.Condition()

    def monotonic(self) -> float:
        return self._now

    def utcnow(self) -> datetime:
        return self._epoch + timedelta(seconds=self._now - self._start)

    @property
    def sleepers(self) -> int:
        """The number of threads and tasks that are asleep until a time in the future."""
        with self._changed:
            return sum(sleeper.target > self._now for sleeper in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move the clock, and wake the sleepers that have slept long enough."""
        check_number("seconds", seconds, SECONDS)
        with self._changed:
            self._now += seconds
        self._wake_first()

    def advance_to_next(self) -> float:
        """Move the clock to the next time at which a sleeper wakes; returns the seconds moved.

        Raises:
            RuntimeError: there is no sleeper.
        """
        with self._changed:
            later = (sleeper.target for sleeper in self._sleepers if sleeper.target > self._now)
            target = next(later, None)
            if target is None:
                raise RuntimeError(
                    "there is no sleeper, so there is no next instant; wait_for_sleepers(1) first"
                )
            moved, self._now = target - self._now, target
        self._wake_first()
        return moved

    def wait_for_sleepers(self, count: int, timeout: float = 5.0) -> None:
        """Block this thread until at least `count` threads and tasks are asleep.

        Raises:
            TimeoutError: fewer were asleep after `timeout` seconds of real time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.sleepers >= count, timeout):
                raise TimeoutError(f"{self.sleepers} asleep, not {count}, after {timeout:g} s of real time")

    def sleep(self, seconds: float) -> None:
        """Sleep in a thread: moves the clock (`autojump`), or blocks until it is moved."""
        check_number("seconds", seconds, SECONDS)
        if self._autojump or seconds == 0:
            self.sleeps.append(seconds)
            self.advance(seconds)
            return
        with self._sleeper(seconds) as sleeper:
            while not self._may_leave(sleeper):
                sleeper.alarm.wait()
                sleeper.alarm = Latch()  # Before the clock is read again, never after.

    async def asleep(self, seconds: float) -> None:
        """Sleep in a task: moves the clock when every task sleeps (`autojump`), or waits until it is moved."""
        check_number("seconds", seconds, SECONDS)
        if seconds == 0:
            self.sleeps.append(seconds)
            await anyio.lowlevel.checkpoint()
            return
        with self._sleeper(seconds) as sleeper:
            while not self._may_leave(sleeper):
                if self._autojump and self._sleepers[0] is sleeper:
                    await self._move_to(sleeper)
                else:
                    await sleeper.alarm.await_()
                sleeper.alarm = Latch()

    def __repr__(self) -> str:
        return f"FakeClock(now={self._now:g}, autojump={self._autojump}, sleepers={self.sleepers})"

    @contextmanager
    def _sleeper(self, seconds: float) -> "Iterator[_Sleeper]":
        """A sleeper, asleep inside the block. When it leaves, the next one wakes."""
        with self._changed:
            self.sleeps.append(seconds)
            sleeper = _Sleeper(self._now + seconds)
            insort(self._sleepers, sleeper, key=attrgetter("target"))
            self._changed.notify_all()
        try:
            yield sleeper
        finally:
            with self._changed:
                self._sleepers.remove(sleeper)
            self._wake_first()

    def _may_leave(self, sleeper: "_Sleeper") -> bool:
        """Whether it has slept long enough and is the first, which keeps the order of sleepers on any event loop."""
        with self._changed:
            return sleeper.target <= self._now and self._sleepers[0] is sleeper

    async def _move_to(self, sleeper: "_Sleeper") -> None:
        """Move the clock to the first sleeper's wake-up time when no task can run.

        If the clock has moved in the meantime, another sleeper has woken and may have to run before that time.
        """
        before = self._now

        def is_next() -> bool:
            return self._now == before and self._sleepers[0] is sleeper

        await _all_tasks_wait(is_next)
        with self._changed:
            if is_next():
                self._now = max(self._now, sleeper.target)

    def _wake_first(self) -> None:
        with self._changed:
            first = self._sleepers[0] if self._sleepers else None
        if first is not None and (self._autojump or first.target <= self._now):
            first.alarm.run()  # Rings it.


class _Sleeper:
    """A thread or task asleep until `target`. Its alarm, which any thread may set off, makes it read the clock."""

    def __init__(self, target: float) -> None:
        self.target, self.alarm = target, Latch()


async def _all_tasks_wait(still_wanted: Callable[[], bool]) -> None:
    """Yield until no other task can run, or until `still_wanted` returns False."""
    loop = asyncio_loop()
    if loop is None:
        await anyio.wait_all_tasks_blocked()
        return
    # asyncio offers no public way to see that nothing is ready to run. A fixed number of cycles is either too small, if
    # many tasks wait for one lock, or slow.
    ready = getattr(loop, "_ready", None)
    needed = _BLIND_CYCLES if ready is None else _IDLE_CYCLES
    idle = 0
    for _ in range(_MAX_CYCLES):
        await anyio.lowlevel.checkpoint()
        idle = 0 if ready else idle + 1
        if idle == needed or not still_wanted():
            return
