"""Sorts outputs, and joins those of several jobs, usually the shards of one input."""

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import BinaryIO, Final

from .._errors import ConfigurationError
from .append_file import WriteError
from .input_lines import ALL_LINES, Shard, Survey
from .journal import read_header, records
from .outputs import SUFFIX, Paths, entries_in
from .progress import Usage, count, listed

_OPEN_FILES: Final = 64  # Maximum number of outputs that are open at the same time.

_MAX_MISSING: Final = 10  # Line numbers that an error lists.

_OFFSET_BITS: Final = 48
_FILE_BITS: Final = 16


class Entries:
    """The entries of several outputs, by line number."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._index: list[int] = []
        """The line number, index of the file and offset in it, in one int: a tuple takes three times the memory."""
        self.counts: Counter[Path] = Counter()  # Entries in each output.
        for file, path in enumerate(paths):
            offset = 0
            for number, entry in entries_in(path):
                self._index.append((number << _FILE_BITS | file) << _OFFSET_BITS | offset)
                self.counts[path] += 1
                offset += len(entry)
        self.is_sorted = all(position < following for position, following in pairwise(self._index))
        self._index.sort()

    def __iter__(self) -> Iterator[tuple[int, Path, int]]:
        """The number, file and offset of each entry, ordered by number."""
        for position in self._index:
            line, offset = divmod(position, 1 << _OFFSET_BITS)
            number, file = divmod(line, 1 << _FILE_BITS)
            yield number, self._paths[file], offset

    def copy(self, target: Path) -> None:
        """Write the entries, ordered by number, to `target`; only those who can read all outputs may read it."""
        mode = 0o666
        for path in self._paths:
            mode &= path.stat().st_mode
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as copy, ExitStack() as stack:
            if self._paths:
                target.chmod(mode)
            sources: dict[Path, BinaryIO] = {}
            for _, path, offset in self:
                if path not in sources:
                    if len(sources) == _OPEN_FILES:
                        stack.close()
                        sources.clear()
                    sources[path] = stack.enter_context(path.open("rb"))
                sources[path].seek(offset)
                copy.write(sources[path].readline())
            copy.flush()
            os.fsync(descriptor)


def _write(contents: Mapping[Path, Entries]) -> None:
    """Write entries, ordered by number, to their targets, which are created or replaced only once all are complete."""
    targets = {Path(os.path.realpath(target)): entries for target, entries in contents.items()}
    copies = {target: target.with_name(f"{target.name}.{os.getpid()}.sorting") for target in targets}
    target = Path()
    try:
        for target, copy in copies.items():
            targets[target].copy(copy)
        for target, copy in copies.items():
            copy.replace(target)
    except OSError as error:
        raise WriteError(target, error) from error
    finally:
        for copy in copies.values():
            with suppress(OSError):
                copy.unlink(missing_ok=True)


def sort_file(path: Path) -> None:
    """Sort an output into input order, in place; changes nothing if there is no room for a second copy."""
    entries = Entries([path])
    if not entries.is_sorted:
        _write({path: entries})


def merge(names: list[str], target: str, *, partial: bool = False) -> tuple[int, int, Usage]:
    """Join the answers and the failures of all outputs, each in input order.

    Returns both counts, and the tokens that the jobs have used; none if that is not known of all.
    """
    # `part-*.jsonl` also matches the failure outputs, which are read anyway, and the copies of stdin.
    copies = {paths.stdin for paths in map(Paths.of, names) if not paths.has_other_stdin}
    outputs = [Paths.of(name) for name in names if not name.endswith(f".failed{SUFFIX}")]
    outputs = [paths for paths in outputs if paths.out not in copies]
    merged = Paths.of(target)
    if target == "-":
        raise ConfigurationError("a merge writes two files: name one with -o, such as all.jsonl")
    if not outputs:
        raise ConfigurationError("pass the answer outputs: the failure outputs are read along with them")
    merged.check_folder()
    for path in (merged.out, merged.failed):
        if path.exists():
            raise ConfigurationError(f"{path} exists: remove it, or choose another name with -o")
    for output in outputs:
        if not output.out.is_file():
            raise ConfigurationError(f"{output.out} does not exist: is that job done?")
    answers = Entries([output.out for output in outputs])
    failures = Entries([output.failed for output in outputs if output.failed.exists()])
    for (number, path, _), (following, other, _) in pairwise(heapq.merge(answers, failures)):
        if number == following:
            msg = f"line {number} is in two outputs, {path} and {other}: pass each shard of one input once"
            raise ConfigurationError(msg)
    usage = Usage() if partial else _check_complete(outputs, answers, failures)
    _write({merged.failed: failures, merged.out: answers})
    return answers.counts.total(), failures.counts.total(), usage


def _check_complete(outputs: list[Paths], answers: Entries, failures: Entries) -> Usage:
    """Refuse outputs of different inputs, and outputs in which lines of the input are missing; returns their tokens.

    Without a journal, which may be deleted once a job is done, only line numbers are known; blanks count as missing.
    """
    present = {number for number, *_ in chain(answers, failures)}
    last = max(present, default=0)
    complete: list[Shard] = []
    inputs: dict[str, Path] = {}
    used: list[Usage] = []
    for output in outputs:
        shard, survey, usage = _contents_of(output.journal)
        if survey is not None:
            used.append(usage)
            last = max(last, survey.last)
            inputs[survey.sha256] = output.out
            if answers.counts[output.out] + failures.counts[output.failed] >= survey.lines:
                complete.append(shard)
    if len(inputs) > 1:
        some = " and ".join(map(str, islice(inputs.values(), 2)))
        raise ConfigurationError(
            f"{some} come from different versions of the input: resume or restart each with the same one, or pass"
            " --partial to join them anyway"
        )
    missing = [
        number
        for number in range(1, last + 1)
        if number not in present and not any(shard.has(number) for shard in complete)
    ]
    if missing:
        shown = listed(list(map(str, missing)), _MAX_MISSING)
        raise ConfigurationError(
            f"the input has {count(len(missing), 'line')} without an outcome ({shown}): resume the jobs that halted,"
            " pass all shards, or pass --partial to join what there is"
        )
    return Usage(*map(sum, zip(*used, strict=True))) if len(used) == len(outputs) else Usage()


def _contents_of(journal: Path) -> tuple[Shard, Survey | None, Usage]:
    """The shard of a job, the survey of its input if the journal contains one, and its tokens."""
    survey, usage = None, Usage()
    header = read_header(journal) if journal.is_file() else None
    if header is None:
        return ALL_LINES, None, usage
    for kind, number, rest in records(journal, header):
        if kind == "i":
            survey = Survey.of_record(number, rest)
        elif kind == "u":
            usage = Usage(number, int(rest))
    if survey is None and header.facts.get("input") == "stdin":
        msg = f"stdin had not ended when the last run of {journal} did: resume it with all of stdin, or pass --partial"
        raise ConfigurationError(msg)
    return Shard.parse(header.facts.get("options", {}).get("--shard") or "0/1"), survey, usage
