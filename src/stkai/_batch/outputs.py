"""The outputs of a job: one file of answers and one of failures. They decide which lines are done."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from .append_file import AppendFile
from .entries import ENTRY
from .errors import UsageError, WriteError
from .fates import DONE, FAILED, Fates

SUFFIX: Final = ".jsonl"


class Paths(NamedTuple):
    """The files of a job, derived from the name passed to `-o`."""

    out: Path
    failed: Path
    journal: Path
    spool: Path

    @classmethod
    def of(cls, name: str) -> "Paths":
        stem = name.removesuffix(SUFFIX)
        return cls(*(Path(stem + end) for end in (SUFFIX, f".failed{SUFFIX}", ".journal", f".stdin{SUFFIX}")))


class Outputs:
    """Both outputs, open for appending.

    Attributes:
        done: the answers.
        failed: the failures.
        counts: the number of lines in each.
        is_sorted: whether the lines of each are in input order.
    """

    def __init__(self, paths: Paths) -> None:
        self.done = AppendFile(paths.out)
        try:
            self.failed = AppendFile(paths.failed)
        except BaseException:
            self.done.close()
            raise
        self.is_sorted = True
        self.counts = {DONE: 0, FAILED: 0}
        self._last = {DONE: 0, FAILED: 0}

    def read(self, fates: Fates) -> None:
        """Find out which lines are in which output, and cut off a torn last line.

        Raises:
            UsageError: a line is not an entry, or occurs twice.
        """
        for fate, file in ((DONE, self.done), (FAILED, self.failed)):
            file.cut_torn_tail()
            for number in numbers_in(file.path):
                if fates[number]:
                    msg = (
                        f"line {number} is in the outputs of {self.done.path} twice: remove one of them,"
                        " or pass --restart to start over"
                    )
                    raise UsageError(msg)
                fates[number] = fate
                self._count(fate, number)

    def _count(self, fate: int, number: int) -> None:
        self.counts[fate] += 1
        self.is_sorted = self.is_sorted and number > self._last[fate]
        self._last[fate] = number

    def append(self, fate: int, number: int, entry: bytes) -> None:
        """Write the outcome of a line.

        Raises:
            WriteError: it could not be written.
        """
        (self.done if fate == DONE else self.failed).append(entry)
        self._count(fate, number)

    def forget(self) -> None:
        """Empty both."""
        for file in (self.done, self.failed):
            file.truncate()
        self.counts, self._last, self.is_sorted = {DONE: 0, FAILED: 0}, {DONE: 0, FAILED: 0}, True

    def forget_failures(self) -> None:
        """Empty the output of failures."""
        self.failed.truncate()
        self.counts[FAILED] = self._last[FAILED] = 0

    def sync(self) -> None:
        """Return once everything written would survive a power failure."""
        self.done.sync()
        self.failed.sync()

    def sort(self) -> None:
        """Sort the lines of each into input order.

        Raises:
            WriteError: there is no room for a second copy; nothing was changed.
        """
        for file in (self.done, self.failed):
            index = Index()
            index.add(file.path, 0)
            if not index.is_sorted:
                write_sorted(index, [file.path], file.path)
        self.is_sorted = True

    def close(self) -> None:
        self.done.close()
        self.failed.close()


def numbers_in(path: Path) -> Iterator[int]:
    """The numbers of the lines in an output.

    Raises:
        UsageError: one of its lines is not an entry.
    """
    with path.open("rb") as lines:
        for place, line in enumerate(lines, 1):
            found = ENTRY.match(line)
            if found is None:
                raise _foreign(path, place)
            yield int(found[1])


def _foreign(path: Path, place: int) -> UsageError:
    return UsageError(f"{path}, line {place}: this is not an output line of `stkai batch`")


class Index:
    """Where each entry stands: its number, its file, its place in it."""

    def __init__(self) -> None:
        self._numbers, self._files, self._places = array("Q"), array("L"), array("Q")
        self.is_sorted = True

    def add(self, path: Path, file: int) -> None:
        """Enter the lines of one output.

        Raises:
            UsageError: a line is not an entry, or is cut off.
        """
        place = 0
        with path.open("rb") as lines:
            for count, line in enumerate(lines, 1):
                found = ENTRY.match(line)
                if found is None:
                    raise _foreign(path, count)
                if not line.endswith(b"\n"):
                    msg = f"{path}, line {count} is cut off: finish that job first, with --resume"
                    raise UsageError(msg)
                number = int(found[1])
                self.is_sorted = self.is_sorted and (not self._numbers or number > self._numbers[-1])
                self._numbers.append(number)
                self._files.append(file)
                self._places.append(place)
                place += len(line)

    def __len__(self) -> int:
        return len(self._numbers)

    def in_order(self) -> Iterator[tuple[int, int, int]]:
        """Number, file and place of each entry, by number."""
        for entry in sorted(range(len(self)), key=self._numbers.__getitem__):
            yield self._numbers[entry], self._files[entry], self._places[entry]


def write_sorted(index: Index, sources: list[Path], target: Path) -> None:
    """Write all entries by number into `target`, which is created or replaced only once it is complete.

    Raises:
        WriteError: there is no room.
    """
    unfinished = target.with_name(f"{target.name}.sorting")
    files: list[BinaryIO] = []
    try:
        try:
            files = [source.open("rb") for source in sources]
            with unfinished.open("wb") as sorted_file:
                for _, file, place in index.in_order():
                    files[file].seek(place)
                    sorted_file.write(files[file].readline())
                sorted_file.flush()
                os.fsync(sorted_file.fileno())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WriteError(target, error) from error
    finally:
        for opened in files:
            opened.close()
