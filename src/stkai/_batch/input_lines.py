"""The lines of an input, with their numbers: JSONL and CSV files, and stdin, which is copied to a file."""

import csv
import hashlib
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from .._errors import ConfigurationError, StkaiError
from .append_file import AppendFile
from .request_formats import InvalidLineError, JsonValue, Values, values_of

_BOM: Final = b"\xef\xbb\xbf"
_BLOCK: Final = 1 << 16
_ANY_SIZE: Final = 2**31 - 1

ReadLine = Callable[[], Values | None]
"""Reads the members of a line; raises InvalidLineError."""


Lines = Generator[tuple[int, ReadLine] | None, None, None]
"""The number of each line and how to read it; None if the next one has not arrived. Keeps a file open."""


def json_lines(path: Path, size: int | None = None, copy: "StdinCopy | None" = None) -> Lines:
    """The lines of the first `size` bytes of a JSONL file, or of a `copy` of stdin, which grows until it is complete.

    They are numbered from 1, as in an editor; blank lines are numbered but skipped. If the copy is cut off, an
    incomplete last line does not count.
    """
    number = offset = 0
    with path.open("rb") as file:
        while True:
            # Check before reading: once the copy is complete, nothing more is appended.
            ends_here = copy is None or not copy.is_alive()
            for raw in _up_to(size, file):
                if raw[-1:] != b"\n" and copy is not None and (copy.is_cut_off or not ends_here):
                    file.seek(offset)
                    break
                number += 1
                offset += len(raw)
                line = raw.removeprefix(_BOM) if number == 1 else raw
                if line and not line.isspace():
                    yield number, partial(values_of, line)
            if ends_here:
                return
            yield None


def first_object(path: Path) -> tuple[int, Values]:
    """The number and the members of the first line of a JSONL file that is not blank; no members if it has none."""
    with suppress(InvalidLineError):
        for item in json_lines(path):
            return (0, {}) if item is None else (item[0], item[1]() or {})
    return 0, {}


def _up_to(size: int | None, file: BinaryIO) -> Iterator[bytes]:
    """The lines in the first `size` bytes of a file, or in all of it."""
    left = math.inf if size is None else size
    for raw in file:
        if len(raw) > left:
            if left:
                yield raw[: int(left)]
            return
        left -= len(raw)
        yield raw


def csv_columns(path: Path) -> list[str]:
    """The column names in the header of a CSV file."""
    csv.field_size_limit(_ANY_SIZE)
    try:
        with path.open("rb") as file:
            names: list[str] = next(csv.reader(_texts(file), strict=True), [])
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line 1: this is not a CSV header: {error}") from error
    if not names:
        raise ConfigurationError(f"{path} has no header: its first line must name the columns")
    # A spreadsheet may have several unnamed columns at its end.
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise ConfigurationError(f"{path} has two columns named {min(twice)!r}: rename one")
    return names


def csv_records(path: Path, size: int | None = None) -> Lines:
    """The records in the first `size` bytes of a CSV file, or in all of it, numbered from 1, without the header."""
    names, number = csv_columns(path), 0
    row: list[str] | str
    with path.open("rb") as file:
        rows = csv.reader(_texts(_up_to(size, file)), strict=True)
        next(rows, None)
        while True:
            begin = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                end = rows.line_num
                lines = f"line {end}" if begin == end else f"lines {begin} to {end}"
                row = f"{error}, in {lines} of the file: double the quotes inside a cell"
            if row:
                number += 1
                yield number, partial(_row, names, row)


def _texts(lines: Iterable[bytes]) -> Iterator[str]:
    """The lines as text. Bytes that are not UTF-8 make only their row fail, not the whole file."""
    for number, raw in enumerate(lines):
        for line in (raw if number else raw.removeprefix(_BOM)).splitlines(keepends=True):
            yield line.decode(errors="surrogateescape")


def _row(names: list[str], row: list[str] | str) -> Values:
    """The cells of a row by column name; for an invalid row, pass the error message."""
    if isinstance(row, str):
        raise InvalidLineError(row)
    if len(row) > len(names):
        msg = f"this has {len(row)} cells, but the header has {len(names)}: quote cells that contain commas"
        raise InvalidLineError(msg)
    return {name: JsonValue(text, "") for name, text in zip(names, row, strict=False)}


class Shard(NamedTuple):
    """One of several parts of an input: every `total`-th line, starting at `position`, which counts from 0."""

    position: int
    total: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigurationError(
                f"--shard must be I/N with 0 <= I < N, such as 0/4 for the first of four, not {text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, number: int) -> bool:
        """Whether the line with this number, counted from 1, belongs to this shard."""
        return (number - 1) % self.total == self.position


ALL_LINES: Final = Shard(0, 1)


class Survey(NamedTuple):
    """The input as it was when a run started."""

    size: int  # In bytes.
    sha256: str  # The hash of these bytes.
    lines: int  # The number of lines that belong to this job, without blank ones.
    last: int  # The number of the input's last line.

    @classmethod
    def of(cls, path: Path, size: int, lines: Lines, shard: Shard) -> "Survey":
        """The survey of the first `size` bytes of a file, which contain `lines`."""
        own = last = 0
        for item in lines:
            if item is not None:
                last = item[0]
                own += shard.has(last)
        return cls(size, sha256(path, size), own, last)

    @classmethod
    def of_record(cls, size: int, rest: str) -> "Survey":
        digest, lines, last = rest.split(" ")
        return cls(size, digest, int(lines), int(last))


class StdinCopy(threading.Thread):
    """Copies a descriptor to a file, so that a resumed job can read it there.

    It is alive until everything has been copied, or copying has failed.
    """

    def __init__(
        self, path: Path, shard: Shard = ALL_LINES, *, resumes: bool = False, descriptor: int = 0
    ) -> None:
        super().__init__(name="stkai.batch.stdin", daemon=True)
        self.path = path
        self.is_cut_off = False  # Set if the copy may lack the end of stdin.
        self.survey: Survey | None = None  # Set once everything has been copied.
        self.error: StkaiError | None = None  # Why copying failed.
        self._file, self._shard, self._descriptor = AppendFile(path), shard, descriptor
        self._resumes = resumes  # Whether an earlier run has begun the copy.

    def start(self) -> None:
        try:
            super().start()
        except RuntimeError as error:
            raise StkaiError(f"stdin cannot be read: no thread could be started ({error})") from error

    def _can_be_read(self) -> bool:
        """Whether stdin can be read and is not a terminal; nohup replaces a terminal by a file that cannot be read."""
        try:
            return (
                sys.stdin is not None and not os.isatty(self._descriptor) and not os.read(self._descriptor, 0)
            )
        except OSError:
            return False

    def _skip_copied(self) -> bool:
        """Read again what an earlier run has copied; returns whether there was anything to read."""
        left, is_same = self._file.size, True
        with self.path.open("rb") as copied:
            while left and is_same and (again := os.read(self._descriptor, min(left, _BLOCK))):
                left -= len(again)
                is_same = copied.read(len(again)) == again
        if not is_same or 0 < left < self._file.size:
            raise StkaiError(f"stdin does not begin with what an earlier run copied to {self.path}")
        return left < self._file.size

    def run(self) -> None:
        try:
            is_passed = not self._resumes
            if is_passed or self._can_be_read():
                is_passed = self._skip_copied() or is_passed
                while block := os.read(self._descriptor, _BLOCK):
                    self._file.append(block)
                    is_passed = True
                self._file.sync()
            if is_passed:
                self.survey = Survey.of(self.path, self._file.size, json_lines(self.path), self._shard)
            else:
                self.is_cut_off = True
        except StkaiError as error:
            self.error = error
        except OSError as error:  # For example, another process has made the pipe non-blocking.
            self.error = StkaiError(f"stdin cannot be read: {error.strerror}")
        finally:
            self._file.close()
            self.is_cut_off = self.is_cut_off or self.error is not None


def sha256(path: Path, size: int) -> str:
    """The hash of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def ends_complete(path: Path, size: int) -> bool:
    """Whether a line ends after the first `size` bytes, so that whatever follows is a new line."""
    with path.open("rb") as file:
        file.seek(max(0, size - 1))
        around = file.read(3) if size else b"\n"
    return around[:1] == b"\n" or around[1:].removeprefix(b"\r")[:1] in {b"\n", b""}
