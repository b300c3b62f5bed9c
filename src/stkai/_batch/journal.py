"""The journal of a batch: records each line before it is sent, so that a job can be resumed.

    {"stkai": "batch", "version": 1, ...}   the header: the job's id, and the facts that must not change
    i 512 9f86d0... 40 43                   the input: bytes, hash, the job's lines in it, the number of its last line
    s 123                                   line 123 is about to be sent
    n 123                                   line 123 was refused, which proves that it did not run
    x 123 01HX...                           the execution that line 123 created
    d 123                                   the outcome of request 123 was handed out (`send_all`, which has no outputs)
    u 520 78                                the answers so far have used 520 and 78 tokens

Each record is a single write, and a line is sent only after it: if a kill truncates the record, the line was not sent.
The process that has the journal open holds its lock. The journal contains no user-supplied ids, bodies or credentials.
"""

import json
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from .._clock import unique_key
from .._errors import ConfigurationError
from ..stores import _file
from .append_file import AppendFile
from .input_lines import Survey

VERSION: Final = 1

_LINE, _COUNT = r"\d{1,9}", r"\d{1,99}"  # A higher line number would take gigabytes in `LineStates`.
_RECORDS: Final = {
    **dict.fromkeys("snd", _LINE),
    "x": rf"{_LINE} [^\x00-\x1f\udc80-\udcff]+",
    "f": _COUNT,  # Written by earlier versions: the number of lines in flight, which no longer matters.
    "u": rf"{_COUNT} {_COUNT}",
    "i": rf"{_COUNT} [0-9a-f]{{64}} {_LINE} {_LINE}",
}
"""The rest of each kind of record; bytes that are not UTF-8 are read as surrogates."""
_RECORD: Final = re.compile("|".join(f"{kind} {rest}" for kind, rest in _RECORDS.items()), re.ASCII)


class LineState(IntEnum):
    """The state of one line, or of one request of `send_all`."""

    NEW = 0  # Not sent, or refused: a resumed job sends it.
    SENT = 1  # Sent, with an unknown outcome.
    DONE = 2  # Its answer or failure is in an output; for `send_all`: its outcome was handed out.


_STATES: Final = tuple(LineState)


class LineStates:
    """A state for each number; `NEW` until it is set."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __getitem__(self, number: int) -> LineState:
        return _STATES[self._bytes[number]] if number < len(self._bytes) else LineState.NEW

    def __setitem__(self, number: int, state: LineState) -> None:
        missing = number + 1 - len(self._bytes)
        if missing > 0:
            self._bytes.extend(bytes(missing))
        self._bytes[number] = state

    def count(self, state: LineState) -> int:
        return self._bytes.count(state)


@dataclass(slots=True)
class Recovered:
    """The contents of the outputs and the journal of earlier runs."""

    states: LineStates = field(default_factory=LineStates)  # The outputs take precedence over the journal.
    executions: dict[int, str] = field(default_factory=dict)  # Of lines without an outcome, by line.
    survey: Survey | None = None  # The input of the latest run; None if not all of stdin was copied.
    usage: tuple[int, int] = (0, 0)  # Input and output tokens.


class Header(NamedTuple):
    """The first line of the journal."""

    kind: str  # "batch" for the command, "send_all" for the function.
    job: uuid.UUID
    facts: dict[str, Any]  # Must be the same when the job is resumed.
    version: object = VERSION


class Journal(AppendFile):
    """An open, locked journal, created if it is missing; its header is None if no job has started yet."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._process = os.getpid()
        try:
            self._lock()
            self.header = read_header(path)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Lock the file for this process. The system releases the lock when the process ends, even if it is killed."""
        if sys.platform == "win32":
            raise ConfigurationError("a batch needs Linux, macOS or WSL, whose files it can lock and cut")
        try:
            is_free = _file.try_lock(self.descriptor)
        except OSError as error:
            msg = f"{self.path} cannot be locked ({error.strerror}): choose a file system with locks for -o"
            raise ConfigurationError(msg) from error
        if not is_free:
            raise ConfigurationError(
                f"another process, or another loop in this one, is working on this job: it holds {self.path};"
                " wait for it, or stop it"
            )

    def _close(self, descriptor: int) -> None:
        """Close the file and release its lock, which forked processes hold as well."""
        if os.getpid() == self._process:
            with suppress(OSError):
                _file.unlock(descriptor)
        super()._close(descriptor)

    def begin(self, kind: str, facts: Mapping[str, Any], survey: Survey | None = None) -> Header:
        """Start a new job, and discard the journal's contents."""
        header = Header(kind, uuid.UUID(hex=unique_key(), version=4), dict(facts))
        self.truncate()
        first = {"stkai": kind, "version": VERSION, "job": str(header.job), **header.facts}
        self.append(json.dumps(first).encode() + b"\n" + (b"" if survey is None else _record("i", *survey)))
        self.header = header
        return header

    def recover(self, states: LineStates) -> Recovered:
        """Add the journal's records to the states found in the outputs; cut off a truncated last record."""
        found = Recovered(states)
        for kind, number, rest in records(self.path, self.header):
            state = states[number]
            if kind == "s" and state is LineState.NEW:
                states[number] = LineState.SENT
            elif kind == "n" and state is LineState.SENT:
                states[number] = LineState.NEW
                found.executions.pop(number, None)
            elif kind == "x" and state is LineState.SENT:
                found.executions[number] = rest
            elif kind == "d":
                states[number] = LineState.DONE
            elif kind == "u":
                found.usage = (number, int(rest))
            elif kind == "i":
                found.survey = Survey.of_record(number, rest)
        self.cut_torn_tail()
        return found

    def write(self, kind: str, *values: object) -> None:
        """Append a record; not in a forked process, whose job it is not, even if it leaves the loop as well."""
        if os.getpid() == self._process:
            self.append(_record(kind, *values))


def _record(kind: str, *values: object) -> bytes:
    return " ".join(map(str, (kind, *values))).encode() + b"\n"


def records(path: Path, header: Header | None) -> Iterator[tuple[str, int, str]]:
    """All records: what happened, to which line, and further data; without the header and a truncated last record."""
    version = VERSION if header is None else header.version
    if version != VERSION:
        raise ConfigurationError(
            f"{path} was written by another version of stkai (format {version}, not {VERSION}):"
            " finish the job with that version, or pass --restart to start over"
        )
    with path.open("rb") as lines:
        lines.readline()
        for lineno, line in enumerate(lines, 2):
            if line[-1:] != b"\n":
                return
            text = line[:-1].decode(errors="surrogateescape")
            if _RECORD.fullmatch(text) is None:
                raise ConfigurationError(
                    f"{path}, line {lineno} is damaged: this is not a journal record; restore the file, or start over"
                    " (--restart; send_all: another journal), which sends everything again"
                )
            kind, number, *rest = text.split(" ", 2)
            yield kind, int(number), "".join(rest)


def read_header(path: Path) -> Header | None:
    """The header; None if it is missing or incomplete, which means that nothing was sent."""
    with path.open("rb") as lines:
        first = lines.readline()
    not_a_journal = ConfigurationError(f"{path} is not a stkai journal: choose another name with -o")
    if not first.endswith(b"\n"):
        if not first or first.startswith(b'{"stkai"'[: len(first)]):
            return None
        raise not_a_journal
    try:
        header = json.loads(first)
        kind, version, job = header.pop("stkai"), header.pop("version"), uuid.UUID(header.pop("job"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise not_a_journal from error
    return Header(kind, job, header, version)
