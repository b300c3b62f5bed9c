"""The outputs of a job: a file of answers and one of failures, which determine which lines are done; or stdout.

In each line, the id comes first and the error last, so that they can be read back without a JSON parser.
"""

import json
import os
import re
import select
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import httpx

from .._errors import ConfigurationError
from .._event_loops import in_thread
from .append_file import AppendFile, WriteError, check_room
from .journal import LineState, LineStates
from .request_formats import STRICT, JsonValue, one_line

SUFFIX: Final = ".jsonl"

_LINE_START: Final = re.compile(rb'\{"id": "line-([1-9][0-9]{0,8})", "custom_id": ')
"""The start of each line of an output."""

_CODE: Final = b'"error": {"code": "'
_ANSWER_END: Final = b'"error": null}'
_FAILURE_END: Final = b'"}}'

UNKNOWN: Final = "unknown"
"""The code of lines that were in flight when an earlier run ended."""

INVALID_LINE: Final = "invalid_line"
"""The code of lines that are not valid requests."""


class Paths(NamedTuple):
    """The files of a job, derived from the name passed to `-o`."""

    out: Path
    failed: Path
    journal: Path
    stdin: Path

    @classmethod
    def of(cls, name: str) -> "Paths":
        if not name:
            raise ConfigurationError("-o needs the name of a file, or - for stdout")
        if Path(name).is_dir():  # Otherwise `-o answers/` would write hidden files there.
            raise ConfigurationError(f"{name} is a directory: name a file in it, such as answers{SUFFIX}")
        if Path(name).exists() and not Path(name).is_file():  # Such as /dev/stdout.
            raise ConfigurationError(f"{name} is not a file: name one with -o, or pass - for stdout")
        stem = name.removesuffix(SUFFIX)
        return cls(*(Path(stem + end) for end in (SUFFIX, f".failed{SUFFIX}", ".journal", f".stdin{SUFFIX}")))

    def check_folder(self) -> None:
        folder = self.out.parent
        if not folder.is_dir():
            raise ConfigurationError(
                f"{folder} is not a directory: create it, or choose another name with -o"
            )

    @property
    def has_other_stdin(self) -> bool:
        """Whether the file for the copy of stdin is the output of another job."""
        return self.stdin.with_suffix(".journal").exists()


class LineFailure(NamedTuple):
    """Why a line failed: a code for programs, and a message for people."""

    code: str
    message: str

    def plus(self, hint: str) -> "LineFailure":
        """The same failure with a hint at the end of its message."""
        return self._replace(message=self.message.rstrip(".") + hint)


class Entry(NamedTuple):
    """The outcome of a line, as written to an output; an answer has no failure."""

    number: int
    line: bytes
    failure: LineFailure | None

    @property
    def code(self) -> str | None:
        return None if self.failure is None else self.failure.code

    @classmethod
    def of(
        cls,
        number: int,
        custom_id: str,
        failure: LineFailure | None,
        response: httpx.Response | None = None,
        body: JsonValue | None = None,
    ) -> "Entry":
        """The entry for an answer, or for a failure, with its answer if there was one; the id is JSON."""
        answer = "null"
        if response is not None and body is not None:
            request_id = json.dumps(response.headers.get("x-request-id"))
            answer = (
                f'{{"status_code": {response.status_code}, "request_id": {request_id}, "body": {body.text}}}'
            )
        error = json.dumps(None if failure is None else failure._asdict())
        own_id = one_line(custom_id)
        line = f'{{"id": "line-{number}", "custom_id": {own_id}, "response": {answer}, "error": {error}}}\n'
        return cls(number, line.encode(), failure)


def code_in(entry: bytes) -> str:
    start = entry.rfind(_CODE)
    return entry[start + len(_CODE) :].partition(b'"')[0].decode(errors="replace") if start >= 0 else "other"


def body_of(response: httpx.Response) -> JsonValue:
    """The body of an answer as JSON: a string for other text, an object with type and base64 for binary content."""
    content = response.content
    try:
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
        return JsonValue(STRICT.decode(text), one_line(text.strip()))
    except (ValueError, RecursionError):
        pass
    for charset in (response.charset_encoding or "utf-8", "utf-8"):
        try:
            return JsonValue(None, json.dumps(content.decode(charset)))
        except (LookupError, ValueError):
            continue
    kind = response.headers.get("content-type", "application/octet-stream")
    return JsonValue(None, json.dumps({"content_type": kind, "base64": b64encode(content).decode()}))


class Outputs:
    """Writes outcomes as calls finish, or in the order in which they are expected, and counts them."""

    def __init__(self, *, in_order: bool = False) -> None:
        self.done = 0  # Answers written.
        self.codes: Counter[str] = Counter()  # Failures written, by code.
        self.unknown = 0  # Lines of this run that the server may have executed before.
        self.error: WriteError | None = None  # Why an outcome could not be written.
        self.unwritten = 0  # Outcomes that went to stderr instead.
        self.before_stderr: Callable[[], None] = lambda: None  # Called before an outcome goes to stderr.
        self._in_order = in_order
        self._waiting: dict[int, Entry | None] = {}
        """Outcomes to be written, by line; None for an outcome still expected, for which later ones have to wait."""

    @property
    def held(self) -> int:
        """How many outcomes wait in memory."""
        return sum(entry is not None for entry in self._waiting.values())

    def expect(self, number: int) -> None:
        """Announce that an outcome for this line will follow; raises a WriteError if there is no room for it."""
        if self._in_order:
            self._waiting[number] = None

    async def write_outcome(self, number: int, entry: Entry | None) -> None:
        """Write the outcome of a line, unless it has none in this run. If that fails, write it to stderr."""
        if entry is None:
            self._waiting.pop(number, None)
        else:
            self._waiting[number] = entry
        while (first := next(iter(self._waiting.values()), None)) is not None:
            del self._waiting[first.number]
            await self._write(first)

    async def write_held(self) -> None:
        """Write the outcomes that wait for earlier ones, since the process is about to end."""
        for number, entry in list(self._waiting.items()):
            # The line that they wait for may end meanwhile, which also writes them.
            if entry is not None and self._waiting.pop(number, None) is not None:
                await self._write(entry)

    def sync(self) -> None:
        """Return once everything written would survive a power failure."""

    async def _append(self, entry: Entry) -> None:
        raise NotImplementedError

    async def _write(self, entry: Entry) -> None:
        try:
            await self._append(entry)
        except WriteError as error:
            self.error = error
            self.unwritten += 1
            self.before_stderr()
            with suppress(OSError, AttributeError):  # stderr may be closed.
                sys.stderr.buffer.write(entry.line)
                sys.stderr.buffer.flush()
            return
        if entry.code is None:
            self.done += 1
        else:
            self.codes[entry.code] += 1
            self.unknown += entry.code == UNKNOWN


class FileOutputs(Outputs):
    """The files of answers and of failures, open for appending."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.answers, self.failures = AppendFile(paths.out), AppendFile(paths.failed)
        self._has_room = False  # Until it has been checked.

    def expect(self, number: int) -> None:
        if not self._has_room:
            # A small record of the journal may fit on a full disk, and the line would be sent.
            check_room(self.answers.path)
            self._has_room = True

    def read(self) -> LineStates:
        """Find out which lines are in which file, and cut off an incomplete last line."""
        states = LineStates()
        for file, end in ((self.answers, _ANSWER_END), (self.failures, _FAILURE_END)):
            file.cut_torn_tail()
            for number, entry in entries_in(file.path, end):
                if states[number] is not LineState.NEW:
                    raise ConfigurationError(
                        f"line {number} is in the outputs of {self.answers.path} twice: remove one of them,"
                        " or pass --restart to start over"
                    )
                states[number] = LineState.DONE
                if file is self.failures:
                    self.codes[code_in(entry)] += 1
                else:
                    self.done += 1
        return states

    async def _append(self, entry: Entry) -> None:
        (self.answers if entry.code is None else self.failures).append(entry.line)

    def sync(self) -> None:
        self.answers.sync()
        self.failures.sync()

    def close(self) -> None:
        self.answers.close()
        self.failures.close()


def entries_in(path: Path, end: bytes = b"}") -> Iterator[tuple[int, bytes]]:
    """The lines of an output, each with the number of its input line; every line must end with `end`."""
    match = _LINE_START.match
    with path.open("rb") as lines:
        for lineno, line in enumerate(lines, 1):
            if line[-1:] != b"\n":
                msg = f"{path}, line {lineno} is cut off: finish that job first, with --resume"
                raise ConfigurationError(msg)
            found = match(line)
            if found is None or not line.rstrip().endswith(end):
                raise ConfigurationError(
                    f"{path}, line {lineno}: this is not an output line of `stkai batch`, or not one of this file:"
                    " pass another file, restore this one, or remove the line, whose request then counts as unknown"
                )
            yield int(found[1]), line


class StdoutOutputs(Outputs):
    """Writes every outcome to stdout.

    Writes in a thread, so that a slow reader does not make the calls in flight miss their deadlines.
    """

    def __init__(self, *, in_order: bool, descriptor: int = 1) -> None:
        super().__init__(in_order=in_order)
        self._descriptor, self._appending = descriptor, anyio.Lock()

    async def _append(self, entry: Entry) -> None:
        async with self._appending:
            await in_thread(partial(self._print, entry.line), abandon_on_cancel=True)

    def _print(self, line: bytes) -> None:
        try:
            left = memoryview(line)
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # Another process has made the pipe non-blocking, and it is full.
                    select.select([], [self._descriptor], [])
        except OSError as error:
            raise WriteError("stdout", error) from error
