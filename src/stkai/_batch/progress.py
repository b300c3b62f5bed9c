"""The progress of a run on stderr: lines, tokens and dollars; a bar in a terminal, plain lines elsewhere."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from .._errors import ConfigurationError, escaped
from .._llm_bodies import used_tokens

_LINE_INTERVAL: Final = 10.0  # Seconds between plain lines.

_MILLION: Final = 1_000_000


def count(number: int, what: str) -> str:
    """A number of things: 1 line, 3,000 lines."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(words: Sequence[str], limit: int) -> str:
    """The first words of a list, followed by dots if there are more."""
    return ", ".join(words[:limit]) + (", ..." if len(words) > limit else "")


def show_count(count: float) -> str:
    """A count in short form: 812, 41.2k, 12.4M."""
    if count >= _MILLION - 50:  # Otherwise shown as 1000.0k.
        return f"{count / _MILLION:.1f}M"
    return f"{count / 1000:.1f}k" if count >= 10_000 else f"{count:,.0f}"


def show_dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"


def show_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(message: str) -> None:
    """Write a message to stderr, if it is still open, with control characters escaped."""
    with suppress(OSError, ValueError, AttributeError):  # stderr is None if it was closed at the start.
        sys.stderr.write("".join(f"{escaped(line)}\n" for line in message.split("\n")))
        sys.stderr.flush()


def print_error(message: str) -> None:
    say(f"stkai batch: {message}")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens, of input and of output."""

    input: float
    output: float

    @classmethod
    def parse(cls, text: str) -> "Price":
        """Parse a price such as `input=0.15,output=0.6`; an omitted price is 0."""
        prices = {"input": 0.0, "output": 0.0}
        for item in text.split(","):
            name, _, amount = item.strip().partition("=")
            try:
                value = float(amount)
            except ValueError:
                value = -1.0
            if name not in prices or not 0 <= value < _MILLION:
                raise ConfigurationError(
                    f"--price must be dollars per million tokens, such as input=0.15,output=0.6, not {text!r}"
                )
            prices[name] = value
        return cls(**prices)

    def dollars(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input + output_tokens * self.output) / _MILLION


class Usage(NamedTuple):
    """The tokens that the lines have used so far."""

    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, body: Any, content: bytes = b"") -> "Usage":
        input_tokens, output_tokens = used_tokens(body, content)
        return Usage(self.input_tokens + input_tokens, self.output_tokens + output_tokens)

    def text(self, price: Price | None) -> str:
        """The usage for people, such as `12.4M tokens $1.86`; empty if nothing was reported."""
        total = sum(self)
        if not total:
            return ""
        cost = "" if price is None else f" {show_dollars(price.dollars(*self))}"
        return f"{show_count(total)} tokens{cost}"


@dataclass(frozen=True, slots=True)
class Progress:
    finished: int  # Lines of the whole job that have an outcome.
    total: int | None = None  # All lines of the job; None until all of stdin has arrived.
    failed: int = 0  # Finished lines that failed.
    waiting: int = 0  # Lines in flight that wait for a permit or another attempt.
    refusals: Mapping[int, int] = field(default_factory=dict)  # How many of these were refused, by status.
    tokens: str = ""  # Tokens and their price.

    def text(self, rate: float) -> str:
        """One line: `41 % 872/3,000 | 812/s | 9 waiting, 2 after 429 | 3 failed | 12.4M tokens $1.86 | ETA 12:04`."""
        total = self.total
        share = "" if total is None else f"{100 * self.finished // total if total else 100} % "
        columns = [f"{share}{self.finished:,}{'' if total is None else f'/{total:,}'}"]
        if rate:
            columns.append(f"{rate:.1f}/s" if rate < 10 else f"{show_count(rate)}/s")
        if self.waiting:
            why = "".join(f", {count} after {status}" for status, count in sorted(self.refusals.items()))
            columns.append(f"{self.waiting} waiting{why}")
        columns.append(f"{self.failed:,} failed")
        if self.tokens:
            columns.append(self.tokens)
        if rate and total is not None:
            columns.append(f"ETA {show_time((total - self.finished) / rate)}")
        return " | ".join(columns)


class Display:
    """Reports progress in plain lines, without escape codes, every `every` seconds; by default never."""

    pause = 0.25  # Seconds between updates.

    def __init__(self, every: float = math.inf) -> None:
        self._every = every
        self._start: tuple[float, int] | None = None
        self._said: float | None = None

    def text(self, now: float, progress: Progress) -> str:
        """The progress at `now` (monotonic seconds), with the rate of this run."""
        began, before = self._start = self._start or (now, progress.finished)
        return progress.text((progress.finished - before) / (now - began) if now > began else 0.0)

    def show(self, now: float, progress: Progress) -> None:
        text = self.text(now, progress)
        if self._said is None:
            self._said = now
        elif now - self._said >= self._every:
            self._said = now
            say(text)

    def close(self) -> None:
        """Leave the terminal as it was."""


class Bar(Display):
    """A bar with the same text, which stays below everything that is written to stderr meanwhile."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        is_ascii = console.options.ascii_only
        spinner = SpinnerColumn("line" if is_ascii else "dots")
        # rich marks a cut by an ellipsis, which would be escaped, and make the line wider than the terminal.
        column = Column(no_wrap=True, overflow="crop" if is_ascii else "ellipsis")
        text = TextColumn("{task.description}", markup=False, table_column=column)
        columns = (spinner, BarColumn(bar_width=24), text)
        # Refresh by hand: a thread that draws ten times a second would use more time than everything else.
        self._bars = Bars(*columns, console=console, auto_refresh=False, redirect_stdout=False)
        self._task = self._bars.add_task("", total=None)
        self._bars.start()

    def show(self, now: float, progress: Progress) -> None:
        text = self.text(now, progress)
        with suppress(OSError):  # The terminal may have closed.
            self._bars.update(self._task, description=text, completed=progress.finished, total=progress.total)
            self._bars.refresh()

    def close(self) -> None:
        with suppress(OSError):
            self._bars.stop()


def display(*, quiet: bool, to_stdout: bool = False) -> Display:
    if quiet:
        return Display()
    # Outcomes on the same terminal would continue the line of the bar.
    shares_terminal = to_stdout and os.isatty(1)
    if sys.stderr is not None and sys.stderr.isatty() and not shares_terminal:
        console = Console(stderr=True)
        if not console.is_dumb_terminal:  # On a dumb terminal, rich draws nothing until the end.
            return Bar(console)
    return Display(_LINE_INTERVAL)
