"""FakeClock: time that moves when told, or when code sleeps, without any real waiting."""

import heapq
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio.lowlevel

from .._errors import ConfigurationError
from ._event_loop import Bell, everybody_waits

_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class FakeClock:
    """A `Clock` for tests. Works in threads, on asyncio and on trio (one event loop at a time).

    With `autojump`, sleeping moves the clock: a thread moves it at once, a task once all other tasks sleep or wait too.
    Many tasks can thus sleep at the same time, and wake in order of time, then of arrival. The clock cannot see into
    sockets: a task that waits for one counts as waiting.

    Without `autojump`, sleepers stay asleep until `advance` or `advance_to_next` moves the clock far enough.

    Args:
        start: The first reading of `monotonic`, in seconds.
        autojump: Whether sleeping moves the clock.
        epoch: The first reading of `utcnow`; by default 2030-01-01T00:00:00Z.

    Attributes:
        sleeps: The duration of every sleep in seconds, in the order of the calls. You may clear it.
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
        self._heap: list[tuple[float, int, _Sleeper]] = []
        self._arrivals = 0
        self._changed = threading.Condition()

    def monotonic(self) -> float:
        return self._now

    def utcnow(self) -> datetime:
        return self._epoch + timedelta(seconds=self._now - self._start)

    @property
    def sleepers(self) -> int:
        """How many threads and tasks are asleep."""
        with self._changed:
            return self._asleep()

    def advance(self, seconds: float) -> None:
        """Move the clock and wake all sleepers that are due."""
        _check(seconds)
        with self._changed:
            self._now += seconds
        self._wake_first()

    def advance_to_next(self) -> float:
        """Move the clock to the next sleeper's instant; returns the seconds moved.

        Raises:
            RuntimeError: Nobody is asleep.
        """
        with self._changed:
            later = (target for target, _, sleeper in self._heap if target > self._now and not sleeper.gone)
            target = min(later, default=None)
            if target is None:
                raise RuntimeError(
                    "nobody is asleep, so there is no next instant; wait_for_sleepers(1) first"
                )
            moved, self._now = target - self._now, target
        self._wake_first()
        return moved

    def wait_for_sleepers(self, count: int, timeout: float = 5.0) -> None:
        """Block this thread until at least `count` threads and tasks are asleep.

        Raises:
            TimeoutError: They were not within `timeout` seconds of real time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._asleep() >= count, timeout):
                raise TimeoutError(f"{self._asleep()} asleep, not {count}, after {timeout:g} s of real time")

    def sleep(self, seconds: float) -> None:
        """Sleep in a thread: moves the clock (`autojump`), or blocks until it is moved."""
        _check(seconds)
        if self._autojump or seconds == 0:
            with self._changed:
                self.sleeps.append(seconds)
                self._now += seconds
            self._wake_first()
            return
        woken = threading.Event()
        sleeper = self._enter(seconds, woken.set)
        try:
            while not self._leave_if_due(sleeper):
                woken.wait()
                woken.clear()  # before checking, so that a call after the check is not lost
        except BaseException:
            self._abandon(sleeper)
            raise

    async def asleep(self, seconds: float) -> None:
        """Sleep in a task: moves the clock once all tasks sleep (`autojump`), or waits until it is moved."""
        _check(seconds)
        if seconds == 0:
            self.sleeps.append(seconds)
            await anyio.lowlevel.checkpoint()
            return
        bell = Bell()
        sleeper = self._enter(seconds, bell.ring)
        try:
            while not self._leave_if_due(sleeper):
                if self._autojump and self._first() is sleeper:
                    await self._move_to(sleeper)
                else:
                    await bell.wait()
                bell.reset()
        except BaseException:
            self._abandon(sleeper)
            raise

    def __repr__(self) -> str:
        return f"FakeClock(now={self._now:g}, autojump={self._autojump}, sleepers={self.sleepers})"

    def _asleep(self) -> int:
        return sum(target > self._now and not sleeper.gone for target, _, sleeper in self._heap)

    def _enter(self, seconds: float, wake: Callable[[], None]) -> "_Sleeper":
        with self._changed:
            self.sleeps.append(seconds)
            self._arrivals += 1
            sleeper = _Sleeper(self._now + seconds, wake)
            heapq.heappush(self._heap, (sleeper.target, self._arrivals, sleeper))
            self._changed.notify_all()
        return sleeper

    def _leave_if_due(self, sleeper: "_Sleeper") -> bool:
        """Sleepers leave one by one, each waking the next, which keeps their order on any event loop."""
        with self._changed:
            if sleeper.target > self._now or self._first() is not sleeper:
                return False
            heapq.heappop(self._heap)
        self._wake_first()
        return True

    def _abandon(self, sleeper: "_Sleeper") -> None:
        sleeper.gone = True
        self._wake_first()

    def _first(self) -> "_Sleeper | None":
        with self._changed:
            while self._heap and self._heap[0][2].gone:
                heapq.heappop(self._heap)
            return self._heap[0][2] if self._heap else None

    async def _move_to(self, sleeper: "_Sleeper") -> None:
        """Move the clock to the first sleeper's instant once no task can run.

        If the clock has moved meanwhile, a sleeper has woken and may have to run before that instant.
        """
        before = self._now

        def is_next() -> bool:
            return self._now == before and self._first() is sleeper

        await everybody_waits(is_next)
        with self._changed:
            if is_next():
                self._now = max(self._now, sleeper.target)

    def _wake_first(self) -> None:
        first = self._first()
        if first is not None and (self._autojump or first.target <= self._now):
            first.wake()


class _Sleeper:
    """A sleeper until `target`; `wake`, from any thread, makes it check the clock again."""

    __slots__ = ("gone", "target", "wake")

    def __init__(self, target: float, wake: Callable[[], None]) -> None:
        self.target = target
        self.wake = wake
        self.gone = False


def _check(seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a number from 0 up, and finite, not {seconds}")
