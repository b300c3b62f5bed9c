"""Sorts outputs, and joins those of several jobs, usually the shards of one input."""

import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache, reduce
from itertools import pairwise
from operator import and_
from pathlib import Path
from typing import BinaryIO, Final

from .._errors import ConfigurationError
from .append_file import WriteError
from .input_lines import ALL_LINES, Shard, Survey
from .journal import read_header, records
from .outputs import SUFFIX, Paths, entries_in
from .progress import listed

_OPEN_FILES: Final = 64
"""Outputs that are open at the same time."""

_SHOWN: Final = 10


_OFFSET_BITS: Final = 48
_FILE_BITS: Final = 16


class Index:
    """Where each entry of some outputs is."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._places: list[int] = []
        """The line's number, the index of the file and the offset in it: a tuple would take three times the memory."""
        for file, path in enumerate(paths):
            offset = 0
            for number, entry in entries_in(path):
                self._places.append((number << _FILE_BITS | file) << _OFFSET_BITS | offset)
                offset += len(entry)
        self.is_sorted = all(place < following for place, following in pairwise(self._places))
        self._places.sort()

    def in_order(self) -> Iterator[tuple[int, int, int]]:
        """The number, the file and the offset of all entries, by number."""
        for place in self._places:
            line, offset = divmod(place, 1 << _OFFSET_BITS)
            yield *divmod(line, 1 << _FILE_BITS), offset

    def copy(self, target: Path, files: Container[int]) -> int:
        """Write the entries of these files by number into `target`; returns how many there are."""
        # The copy is readable to those who may read all of its sources.
        modes = [path.stat().st_mode for file, path in enumerate(self.paths) if file in files]
        mode = reduce(and_, modes, 0o666)
        written = 0
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as sorted_file, ExitStack() as stack:
            if modes:
                target.chmod(mode)
            sources: dict[int, BinaryIO] = {}
            for _, file, offset in self.in_order():
                if file not in files:
                    continue
                if file not in sources:
                    if len(sources) == _OPEN_FILES:
                        stack.close()
                        sources.clear()
                    sources[file] = stack.enter_context(self.paths[file].open("rb"))
                sources[file].seek(offset)
                sorted_file.write(sources[file].readline())
                written += 1
            sorted_file.flush()
            os.fsync(descriptor)
        return written

    def write(self, contents: Mapping[Path, Container[int]]) -> list[int]:
        """Write entries by number: for each target, those of some files; returns how many each has.

        The targets are created or replaced only once all are complete.

        Raises:
            WriteError: a target cannot be written.
        """
        targets = {Path(os.path.realpath(target)): files for target, files in contents.items()}
        copies = {target: target.with_name(f"{target.name}.{os.getpid()}.sorting") for target in targets}
        counts = []
        target = Path()
        try:
            for target, copy in copies.items():
                counts.append(self.copy(copy, targets[target]))
            for target, copy in copies.items():
                copy.replace(target)
        except OSError as error:
            raise WriteError(target, error) from error
        finally:
            for copy in copies.values():
                with suppress(OSError):
                    copy.unlink(missing_ok=True)
        return counts


def sort_file(path: Path) -> None:
    """Sort an output into input order, in place; nothing changes if there is no room for a second copy."""
    index = Index([path])
    if not index.is_sorted:
        index.write({path: {0}})


def merge(names: list[str], target: str, *, partial: bool = False) -> tuple[int, int]:
    """Write the answers and the failures of all outputs, each in input order; returns both counts.

    Raises:
        ConfigurationError: an output is missing, the target exists, a line is in two outputs, or one is in none and
            `partial` does not allow that.
        WriteError: the target cannot be written.
    """
    # `part-*.jsonl` also matches the failure outputs, which are read in any case.
    outputs = [Paths.of(name) for name in names if not name.endswith(f".failed{SUFFIX}")]
    merged = Paths.of(target)
    if not outputs:
        raise ConfigurationError("pass the answer outputs: the failure outputs are read along with them")
    if not merged.out.parent.is_dir():
        msg = f"{merged.out.parent} is not a directory: create it, or choose another name with -o"
        raise ConfigurationError(msg)
    for path in (merged.out, merged.failed):
        if path.exists():
            raise ConfigurationError(f"{path} exists: remove it, or choose another name with -o")
    for output in outputs:
        if not output.out.is_file():
            raise ConfigurationError(f"{output.out} does not exist: is that job done?")
    answers = [output.out for output in outputs]
    failures = [output.failed for output in outputs if output.failed.exists()]
    index = Index([*answers, *failures])
    present = _check_once(index)
    if not partial:
        _check_complete(outputs, present)
    contents = {merged.failed: range(len(answers), len(index.paths)), merged.out: range(len(answers))}
    failed, done = index.write(contents)
    return done, failed


def _check_once(index: Index) -> set[int]:
    """The numbers of all entries; refuses outputs in which one occurs twice."""
    for (number, file, _), (following, other, _) in pairwise(index.in_order()):
        if number == following:
            msg = f"line {number} is in two outputs, {index.paths[file]} and {index.paths[other]}"
            raise ConfigurationError(f"{msg}: pass each shard of one input once")
    return {number for number, _, _ in index.in_order()}


def _check_complete(outputs: list[Paths], present: set[int]) -> None:
    """Refuse outputs in which lines of the input are missing.

    Without a journal, which may be deleted once a job is done, only the numbers are left; blank lines have no outcome.
    """
    last = max(present, default=0)
    counts = cache(lambda parts: Counter((number - 1) % parts for number in present))
    complete: list[Shard] = []
    for output in outputs:
        shard, survey = _input_of(output.journal)
        if survey is not None:
            last = max(last, survey.last)
            if counts(shard.parts)[shard.place] >= survey.lines:
                complete.append(shard)
    missing = [
        number
        for number in range(1, last + 1)
        if number not in present and not any(shard.has(number) for shard in complete)
    ]
    if missing:
        raise ConfigurationError(
            f"{_lines(missing)} of the input {'has' if len(missing) == 1 else 'have'} no outcome: resume the jobs that"
            " halted, pass all shards, or pass --partial to join what there is"
        )


def _input_of(journal: Path) -> tuple[Shard, Survey | None]:
    """The shard of a job, and its input as far as its journal knows."""
    survey = None
    header = read_header(journal) if journal.is_file() else None
    if header is None:
        return ALL_LINES, None
    for kind, number, rest in records(journal, header):
        if kind == b"i":
            survey = Survey.of_record(number, rest)
    return Shard.parse(header.facts.get("options", {}).get("--shard") or "0/1"), survey


def _lines(numbers: list[int]) -> str:
    """Numbers for people: `lines 3, 7, 8 (3 lines)`."""
    shown = listed(list(map(str, numbers)), _SHOWN)
    return f"line {shown}" if len(numbers) == 1 else f"lines {shown} ({len(numbers):,} lines)"
