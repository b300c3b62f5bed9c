"""`--dry-run`: reads every line, sends nothing, and estimates the size and the cost."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .._config.stkai import STKAI
from .formats import Format, InvalidLineError, Target
from .lines import CsvRecords, JsonLines, Lines
from .options import Options
from .price import show_count, show_dollars
from .progress import show_time

_SHOWN: Final = 20
"""How many lines to list for each kind of problem."""

_BYTES_PER_TOKEN: Final = 4


class _Findings:
    """Problems of one kind: lists the first lines and counts the rest."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.count = 0

    def add(self, message: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self._say(message)


class DryRun:
    """Reads the lines as a run would.

    Args:
        say: called with each line of the report.
    """

    def __init__(self, options: Options, form: Format, say: Callable[[str], None]) -> None:
        self._options, self._form, self._say = options, form, say
        self._invalid, self._duplicates = _Findings(say), _Findings(say)
        self._first: dict[int, int] = {}
        self._requests = self._bytes = 0

    def read(self, lines: Lines) -> bool:
        """Read all lines; whether each is a valid request."""
        shard, shards = self._options.slice()
        for item in lines:
            if item is None or (item[0] - 1) % shards != shard:
                continue
            number, read = item
            try:
                self._take(number, self._form.target(read()))
            except InvalidLineError as error:
                self._invalid.add(f"{self._options.source}, line {number}: {error}")
        self._conclude()
        return not self._invalid.count

    def _take(self, number: int, target: Target) -> None:
        self._requests += 1
        self._bytes += len(target.content or b"")
        if target.custom_id == "null":
            return
        first = self._first.setdefault(hash(target.custom_id), number)
        if first != number:
            source, own_id = self._options.source, target.custom_id
            self._duplicates.add(f"{source}, line {number}: duplicate custom_id {own_id}, as in line {first}")

    def _conclude(self) -> None:
        if self._duplicates.count:
            self._say(
                f"{self._duplicates.count:,} duplicate ids, which is allowed; use `id` to tell the lines apart"
            )
        if self._invalid.count:
            self._say(f"{self._invalid.count:,} invalid lines, which would be reported as failures")
        tokens = self._bytes / _BYTES_PER_TOKEN
        price = self._options.price
        cost = (
            "" if price is None else f", {show_dollars(price.dollars(round(tokens), 0))} for the input alone"
        )
        self._say(
            f"{self._requests:,} requests, {show_count(self._bytes)} bytes,"
            f" about {show_count(tokens)} input tokens{cost}"
        )
        limit = STKAI.config.rate_limit
        if limit.enabled and self._requests and limit.max_requests and limit.time_window:
            seconds = self._requests * limit.time_window / limit.max_requests
            self._say(
                f"at {limit.max_requests} requests per {limit.time_window:g} s: at least {show_time(seconds)}"
            )


def dry_run(options: Options, form: Format, say: Callable[[str], None]) -> bool:
    """Report on the input; whether every line is a valid request."""
    with ExitStack() as stack:
        if options.from_stdin:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="stkai-batch-"))
            while block := sys.stdin.buffer.read(1 << 16):
                copy.write(block)
            copy.flush()
            path = Path(copy.name)
        else:
            path = Path(options.source)
        return DryRun(options, form, say).read(CsvRecords(path) if options.is_csv else JsonLines(path))
