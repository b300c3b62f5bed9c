"""The files of a job: opened, locked and read, so that it begins or goes on."""

import hashlib
import os
from pathlib import Path
from typing import Any, Final

from .errors import UsageError
from .fates import FAILED, NEW, Fates
from .journal import Journal
from .options import Options
from .outputs import Outputs, Paths
from .replay import Replay, replay

_SAMPLE: Final = 1 << 16


class Session:
    """A job that this process is working on, locked against others until it is closed.

    Attributes:
        journal: what was sent.
        outputs: what is done.
        known: what both say of each line.
        began: it began just now.
    """

    def __init__(self, paths: Paths, journal: Journal) -> None:
        self.paths, self.journal = paths, journal
        self.known = Replay(Fates())
        self.began = False
        self.outputs: Outputs

    @classmethod
    def open(cls, options: Options, facts: dict[str, Any]) -> "Session":
        """Start or resume the job that writes to `-o`.

        Raises:
            UsageError: it runs already, it is not the same job, or the files are not those of a job.
            WriteError: a file cannot be written.
        """
        paths = Paths.of(options.out or "")
        check_paths(options, paths)
        if not paths.journal.exists():
            _check_ours(options, paths)
        session = cls(paths, Journal.open(paths.journal))
        try:
            session._start(options, facts)
        except BaseException:
            session.journal.close()
            raise
        return session

    def _start(self, options: Options, facts: dict[str, Any]) -> None:
        header = self.journal.header
        if header is not None and not options.goes_on and not options.restart:
            path = self.journal.file.path
            msg = f"{path} is the journal of a job: pass --resume to continue it, or --restart to start over"
            raise UsageError(msg)
        if header is None:
            _check_ours(options, self.paths)
        if header is None or options.restart:
            self._begin(options, facts)
            return
        _check_same(options, header.kind, header.facts, facts, self.paths)
        self.outputs = Outputs(self.paths)
        try:
            self._go_on(options)
        except BaseException:
            self.outputs.close()
            raise

    def _begin(self, options: Options, facts: dict[str, Any]) -> None:
        # In this order, a kill in between leaves either a complete job or none.
        self.journal.file.truncate()
        if options.restart:
            for path in (self.paths.out, self.paths.failed, self.paths.spool):
                path.unlink(missing_ok=True)
        size = 0 if options.from_stdin else Path(options.source).stat().st_size
        given = {"size": size, "sha256": None if options.from_stdin else _sample(Path(options.source), size)}
        self.journal.begin("batch", {"options": facts, "input": given})
        self.journal.limit(options.max_in_flight)
        self.outputs = Outputs(self.paths)
        self.began = True

    def _go_on(self, options: Options) -> None:
        fates = Fates()
        self.outputs.read(fates)
        self.known = replay(self.journal, fates)
        if options.retry_failed:
            again = fates.all_with(FAILED)
            # After a kill before the truncation they are still failures; after it they are new.
            if again:
                self.journal.all_not_sent(again)
            self.outputs.forget_failures()
            for number in again:
                fates[number] = NEW

    def close(self) -> None:
        """Close all files."""
        self.outputs.close()
        self.journal.close()


def check_paths(options: Options, paths: Paths) -> None:
    """Refuse outputs that cannot be written, or would overwrite the input.

    Raises:
        UsageError: an output cannot be used; says which, and why.
    """
    folder = paths.out.parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a directory: create it, or choose another name with -o")
    for path in paths:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file: choose another name with -o")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise UsageError(
                f"{path} cannot be written: choose another name with -o, or change its permissions"
            )
        for given in (options.source, options.body):
            if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
                raise UsageError(f"{path} is both an input and an output: choose another name with -o")


def _check_ours(options: Options, paths: Paths) -> None:
    """Refuse to overwrite files that are not outputs of a job."""
    for path in (paths.out, paths.failed):
        if path.exists() and not options.restart:
            msg = (
                f"{path} exists but has no journal next to it, so it is not the output of a job:"
                " choose another name with -o, or pass --restart to overwrite it"
            )
            raise UsageError(msg)


def _check_same(
    options: Options, kind: str, old: dict[str, Any], facts: dict[str, Any], paths: Paths
) -> None:
    """Continue only the job that the journal belongs to."""
    if kind != "batch":
        raise UsageError(
            f"{paths.journal} is the journal of a program that uses stkai.send_all: choose another name with -o"
        )
    before = old.get("options", {})
    for name, value in facts.items():
        if before.get(name) != value:
            shown = (
                "" if name in {"--base-url", "--body"} else f": it was {before.get(name)!r}, not {value!r}"
            )
            msg = f"{name} has changed since the job began{shown}; pass the old value, or --restart to start over"
            raise UsageError(msg)
    given = old.get("input", {})
    if (given.get("sha256") is None) != options.from_stdin:
        was = (
            "stdin: pass - instead of a file"
            if given.get("sha256") is None
            else "a file: pass it instead of -"
        )
        raise UsageError(f"the input of this job was {was}, or pass --restart to start over")
    if options.from_stdin:
        return
    path, size = Path(options.source), given["size"]
    if path.stat().st_size < size or _sample(path, size) != given["sha256"]:
        msg = (
            f"{path} has changed since the job began, other than by lines added at the end:"
            " restore it, or pass --restart to start over"
        )
        raise UsageError(msg)


def _sample(path: Path, size: int) -> str:
    """A hash of the first 64 KiB of the first `size` bytes."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(min(size, _SAMPLE))).hexdigest()
