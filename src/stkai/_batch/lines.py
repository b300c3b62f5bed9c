"""The lines of an input, with their numbers, read once from front to back."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from .errors import UsageError
from .formats import InvalidLineError, Values, values_of
from .json_text import Part

_BOM: Final = b"\xef\xbb\xbf"
_SPACES: Final = b" \t\r\n\v\f"
_ANY_SIZE: Final = 2**31 - 1

Read = Callable[[], Values | None]
"""Reads the members of a line; raises InvalidLineError."""


class Lines(Protocol):
    """Numbered lines that are parsed only when asked.

    Attributes:
        place: bytes read so far.
    """

    place: int

    def __iter__(self) -> Iterator[tuple[int, Read] | None]:
        """The number of each line and how to read it; None while the next one has not arrived yet."""
        ...


class JsonLines:
    """The lines of a JSONL file, numbered from 1 as in an editor; blank lines are numbered but skipped.

    Args:
        path: of the file.
        is_complete: whether nothing more will be appended; None means that the file is complete.
    """

    def __init__(self, path: Path, is_complete: Callable[[], bool] | None = None) -> None:
        self.place = 0
        self._path, self._is_complete = path, is_complete

    def __iter__(self) -> Iterator[tuple[int, Read] | None]:
        number = 0
        with self._path.open("rb") as file:
            while True:
                # Ask before reading: then nothing can be appended after the end that we read.
                is_complete = self._is_complete is None or self._is_complete()
                for raw in file:
                    if raw[-1:] != b"\n" and not is_complete:
                        file.seek(self.place)
                        break
                    number += 1
                    self.place += len(raw)
                    line = raw.removeprefix(_BOM) if number == 1 else raw
                    if line.strip(_SPACES):
                        yield number, _JsonLine(line)
                if is_complete:
                    return
                yield None


class _JsonLine:
    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __call__(self) -> Values | None:
        return values_of(self._raw)


class CsvRecords:
    """The records of a CSV file, numbered from 1; the header is not counted, and names the columns.

    Raises:
        UsageError: there is no header, or two columns have the same name.
    """

    def __init__(self, path: Path) -> None:
        self.place = 0
        self._path = path
        csv.field_size_limit(_ANY_SIZE)
        with self._open() as (_, rows):
            try:
                self.names: list[str] = next(rows, [])
            except csv.Error as error:
                msg = f"{path}, line 1: this is not a CSV header: {error}"
                raise UsageError(msg) from error
        if not self.names:
            msg = f"{path} has no header: its first line must name the columns"
            raise UsageError(msg)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            msg = f"{path} has two columns named {min(twice)!r}: rename one"
            raise UsageError(msg)

    def _open(self) -> "_Csv":
        return _Csv(self._path)

    def __iter__(self) -> Iterator[tuple[int, Read] | None]:
        number = 0
        with self._open() as (file, rows):
            next(rows, None)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    self.place = file.tell()
                    return
                except csv.Error as error:
                    number += 1
                    yield number, _Broken(f"line {rows.line_num}: {error}: double the quotes inside a cell")
                    continue
                if row:
                    number += 1
                    self.place = file.tell()
                    yield number, _Row(self.names, row)


class _Csv:
    """An open CSV file and its reader."""

    def __init__(self, path: Path) -> None:
        # Bytes that are not UTF-8 fail only their row, not the file.
        self._binary = path.open("rb")
        self._text = io.TextIOWrapper(
            self._binary, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )

    def __enter__(self) -> tuple[BinaryIO, Any]:
        return self._binary, csv.reader(self._text, strict=True)

    def __exit__(self, *_: object) -> None:
        self._text.close()


class _Broken:
    __slots__ = ("_message",)

    def __init__(self, message: str) -> None:
        self._message = message

    def __call__(self) -> Values | None:
        raise InvalidLineError(self._message)


class _Row:
    __slots__ = ("_names", "_row")

    def __init__(self, names: list[str], row: list[str]) -> None:
        self._names, self._row = names, row

    def __call__(self) -> Values | None:
        if len(self._row) > len(self._names):
            msg = (
                f"this has {len(self._row)} cells, but the header has {len(self._names)}:"
                " quote cells that contain commas"
            )
            raise InvalidLineError(msg)
        return {name: Part(text, "") for name, text in zip(self._names, self._row, strict=False)}
