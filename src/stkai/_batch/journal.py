"""The journal of a batch: records each line before it is sent.

    {"stkai": "batch", "version": 1, ...}   the header: the job's id, and the facts that must not change
    f 32                                    from here on, at most 32 lines are in flight
    s 123                                   line 123 is about to be sent
    n 123                                   line 123 was refused, which proves that it did not run
    x 123 01HX...                           the execution that line 123 created
    d 123                                   the outcome of request 123 was handed out (`send_all`, which has no outputs)
    e                                       all of stdin has been copied

Each record is one write. The process that has the journal open holds its lock. It contains no user-supplied ids, no
bodies and no credentials.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from .._clock import unique_key
from .append_file import AppendFile
from .errors import RunningError, UsageError
from .lock import lock

VERSION: Final = 1


class Record(NamedTuple):
    """One line of the journal: what happened, to which input line, and further data."""

    kind: bytes
    number: int
    rest: bytes


class Header(NamedTuple):
    """The first line of the journal.

    Attributes:
        kind: "batch" for the command, "send_all" for the function.
        job: a unique id.
        facts: what must be the same when the job is resumed.
        version: of the format.
    """

    kind: str
    job: uuid.UUID
    facts: dict[str, Any]
    version: object = VERSION


class Journal:
    """An open, locked journal.

    Attributes:
        header: None if no job has begun yet.
        torn: the beginning of a last record that was only partly written.
    """

    def __init__(self, file: AppendFile) -> None:
        self.file = file
        self.torn = b""
        self._before_next = b""
        self.header: Header | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and lock the journal at `path`, and create it if it is missing.

        Raises:
            RunningError: another process holds the lock.
            UsageError: the file is not a journal.
            WriteError: it cannot be opened.
        """
        journal = cls(AppendFile(path))
        try:
            if not lock(journal.file.descriptor):
                msg = f"another process is working on this job: it holds {path}; wait for it, or stop it"
                raise RunningError(msg)
            journal.header = _read_header(path)
        except BaseException:
            journal.close()
            raise
        return journal

    def begin(self, kind: str, facts: Mapping[str, Any]) -> Header:
        """Start a new job, and discard the journal's contents."""
        header = Header(kind, uuid.UUID(hex=unique_key(), version=4), dict(facts))
        self.file.truncate()
        first = {"stkai": kind, "version": VERSION, "job": str(header.job), **header.facts}
        self.file.append(json.dumps(first).encode() + b"\n")
        self.header = header
        return header

    def records(self) -> Iterator[Record]:
        """All records, without the header and a torn tail.

        Raises:
            UsageError: a line is not a record, or is in another format.
        """
        version = VERSION if self.header is None else self.header.version
        if version != VERSION:
            msg = (
                f"{self.file.path} was written by another version of stkai (format {version}, not {VERSION}):"
                " finish the job with that version, or pass --restart to start over"
            )
            raise UsageError(msg)
        with self.file.path.open("rb") as lines:
            lines.readline()
            for place, line in enumerate(lines, 2):
                kind, _, rest = line[:-1].partition(b" ")
                if line[-1:] != b"\n":
                    return
                if kind == b"e":
                    yield Record(kind, 0, b"")
                    continue
                number, _, more = rest.partition(b" ")
                if len(kind) != 1 or not number.isdigit():
                    msg = (
                        f"{self.file.path}, line {place}: this is not a journal record; the file is damaged."
                        " Pass --restart to start over"
                    )
                    raise UsageError(msg)
                yield Record(kind, int(number), more)

    def cut(self) -> None:
        """Cut off a torn tail and keep it in `torn`."""
        self.torn = self.file.cut_torn_tail()

    def limit(self, in_flight: int) -> None:
        """From here on, at most that many lines are in flight; written when the first one is sent."""
        self._before_next = b"f %d\n" % in_flight

    def sent(self, number: int) -> None:
        """The line is about to be sent.

        Raises:
            WriteError: the record could not be written, so the line must not be sent.
        """
        self.file.append(b"%bs %d\n" % (self._before_next, number))
        self._before_next = b""

    def not_sent(self, number: int) -> None:
        """The line was refused."""
        self.file.append(b"n %d\n" % number)

    def all_not_sent(self, numbers: Iterable[int]) -> None:
        """Mark lines as new again, in one write."""
        self.file.append(b"".join(b"n %d\n" % number for number in numbers))

    def execution(self, number: int, name: str) -> None:
        """The line has created an execution."""
        self.file.append(b"x %d %s\n" % (number, name.encode()))

    def done(self, number: int) -> None:
        """The outcome was handed out."""
        self.file.append(b"d %d\n" % number)

    def input_ended(self) -> None:
        """All of stdin has been copied."""
        self.file.append(b"e\n")

    def close(self) -> None:
        """Close the file and release the lock."""
        self.file.close()


def _read_header(path: Path) -> Header | None:
    """The header; None if it is missing or incomplete, so that nothing was sent."""
    with path.open("rb") as lines:
        first = lines.readline()
    if not first.endswith(b"\n"):
        if not first or first.startswith(b'{"stkai"'[: len(first)]):
            return None
        raise _not_a_journal(path)
    try:
        header = json.loads(first)
        kind, version, job = header.pop("stkai"), header.pop("version"), uuid.UUID(header.pop("job"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _not_a_journal(path) from error
    return Header(kind, job, header, version)


def _not_a_journal(path: Path | os.PathLike[str]) -> UsageError:
    return UsageError(f"{path} is not a stkai journal: choose another name with -o")
