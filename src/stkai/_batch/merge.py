"""Joins the outputs of several jobs, usually the shards of one."""

from itertools import pairwise
from pathlib import Path

from .errors import UsageError
from .outputs import SUFFIX, Index, Paths, write_sorted


def merge(names: list[str], target: str) -> tuple[int, int]:
    """Write the answers and the failures of all outputs, each in input order; returns both counts.

    Raises:
        UsageError: an output is missing, the target exists, or a line is in two outputs.
        WriteError: the target cannot be written.
    """
    # `part-*.jsonl` also matches the failure outputs, which are read in any case.
    outputs = [Paths.of(name) for name in names if not name.endswith(f".failed{SUFFIX}")]
    merged = Paths.of(target)
    if not outputs:
        msg = "pass the answer outputs: the failure outputs are read along with them"
        raise UsageError(msg)
    for path in (merged.out, merged.failed):
        if path.exists():
            msg = f"{path} exists: choose another name with -o"
            raise UsageError(msg)
    if not merged.out.parent.is_dir():
        msg = f"{merged.out.parent} is not a directory: create it, or choose another name with -o"
        raise UsageError(msg)
    for output in outputs:
        if not output.out.is_file():
            msg = f"{output.out} does not exist: is that job done?"
            raise UsageError(msg)
    failures = [output.failed for output in outputs if output.failed.exists()]
    done, failed = _index([output.out for output in outputs]), _index(failures)
    _check_each_once(done, failed, [output.out for output in outputs], failures)
    write_sorted(failed, failures, merged.failed)
    try:
        write_sorted(done, [output.out for output in outputs], merged.out)
    except BaseException:
        # Half a result would block the next attempt.
        merged.failed.unlink(missing_ok=True)
        raise
    return len(done), len(failed)


def _index(paths: list[Path]) -> Index:
    index = Index()
    for place, path in enumerate(paths):
        index.add(path, place)
    return index


def _check_each_once(done: Index, failed: Index, outs: list[Path], failures: list[Path]) -> None:
    entries = [*((number, outs[file]) for number, file, _ in done.in_order())]
    entries += [(number, failures[file]) for number, file, _ in failed.in_order()]
    entries.sort(key=lambda entry: entry[0])
    for (number, path), (following, other) in pairwise(entries):
        if number == following:
            msg = f"line {number} is in two outputs, {path} and {other}: pass each shard of one input once"
            raise UsageError(msg)
