"""Shows a run's progress on stderr: a bar in a terminal, a plain line every ten seconds elsewhere."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from .price import show_count

if TYPE_CHECKING:
    from rich.console import Console

_EVERY: Final = 10.0
"""Seconds between plain lines."""

_SMOOTH: Final = 0.2


@dataclass(frozen=True, slots=True)
class Standing:
    """The progress of a run.

    Attributes:
        share: the share of the input that was read, from 0 to 1; None if its size is unknown.
        finished: lines of the whole job that have an outcome.
        failed: how many of them failed.
        waiting: lines in flight that are not on the wire, because they wait for a permit or another attempt.
        tokens: tokens and their price, as text.
    """

    share: float | None
    finished: int
    failed: int
    waiting: int
    tokens: str


class Pace:
    """Lines per second, and the time left."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._start: tuple[float, float] | None = None
        self._last: tuple[float, int] | None = None

    def update(self, now: float, standing: Standing) -> None:
        """Record the progress at an instant (monotonic seconds)."""
        if self._last is not None and now > self._last[0]:
            rate = (standing.finished - self._last[1]) / (now - self._last[0])
            self.rate = rate if not self.rate else (1 - _SMOOTH) * self.rate + _SMOOTH * rate
        self._last = (now, standing.finished)
        if self._start is None:
            self._start = (now, standing.share or 0.0)

    def seconds_left(self, now: float, standing: Standing) -> float | None:
        """Seconds until all of the input is read, at the mean rate so far."""
        if self._start is None or standing.share is None:
            return None
        begun, share = self._start
        gone = standing.share - share
        return None if gone <= 0 else (now - begun) * (1 - standing.share) / gone


def describe(standing: Standing, rate: float, left: float | None) -> str:
    """One line for people: `41 % 412,332 | 812/s | 9 waiting for quota | 3 failed | 12.4M tokens $1.86 | ETA 12:04`."""
    share = "" if standing.share is None else f"{int(100 * standing.share)} % "
    parts = [f"{share}{standing.finished:,}", f"{show_count(rate)}/s"]
    if standing.waiting:
        parts.append(f"{standing.waiting} waiting for quota")
    parts.append(f"{standing.failed:,} failed")
    if standing.tokens:
        parts.append(standing.tokens)
    if left is not None:
        parts.append(f"ETA {show_time(left)}")
    return " | ".join(parts)


def show_time(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display(Protocol):
    """Shows the progress of a run."""

    pause: float
    """Seconds between updates."""

    def show(self, now: float, standing: Standing) -> None:
        """Show the progress."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Silent:
    """Shows nothing."""

    pause = 1.0

    def show(self, now: float, standing: Standing) -> None: ...
    def close(self) -> None: ...


class Plain:
    """A line every ten seconds, without escape codes."""

    pause = 1.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._pace, self._next = say, Pace(), 0.0

    def show(self, now: float, standing: Standing) -> None:
        self._pace.update(now, standing)
        if not self._next:
            self._next = now + _EVERY
        elif now >= self._next:
            self._next = now + _EVERY
            self._say(describe(standing, self._pace.rate, self._pace.seconds_left(now, standing)))

    def close(self) -> None: ...


class Bar:
    """A bar with the same text, updated four times a second."""

    pause = 0.25

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._pace = Pace()
        columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
        # Refresh by hand: a thread that draws ten times a second would cost more than everything else.
        self._progress = Progress(
            *columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, now: float, standing: Standing) -> None:
        self._pace.update(now, standing)
        words = describe(standing, self._pace.rate, self._pace.seconds_left(now, standing))
        total = None if standing.share is None else 1.0
        self._progress.update(self._task, description=words, completed=standing.share or 0.0, total=total)
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


def display(*, quiet: bool, say: Callable[[str], None]) -> Display:
    """The display that suits stderr."""
    if quiet:
        return Silent()
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console

        return Bar(Console(stderr=True))
    return Plain(say)
