"""What the tests of `stkai batch` have in common: a server that counts executions, and the command as a process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from aiohttp import web

import stkai
from tests.support.command_line import invoke
from tests.support.forked import Forked
from tests.support.servers import broken, serve

ROOT = Path(__file__).parent.parent.parent

Answer = Callable[[web.BaseRequest, Any], Awaitable[web.StreamResponse]]

HANGS = 120.0
"""Seconds after which a process hangs: a busy machine may take many."""


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def echo(request: web.BaseRequest, body: Any) -> web.StreamResponse:
    """The answer of a server that does what it is told."""
    return web.json_response({"echo": body}, headers={"x-request-id": "request-1"})


@dataclass
class Server:
    """Counts how often each body is executed; before that, `answer` decides what happens to a request.

    Attributes:
        url: its origin.
        answer: makes the answer; to refuse, it raises `RefusalError`.
        executed: how often each body was executed, by its JSON.
        seen: every request.
    """

    url: str = ""
    answer: Answer = echo
    executed: Counter[str] = field(default_factory=Counter)
    seen: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            content = await request.content.read()  # Without the limit of `request.read()`.
        except ConnectionResetError:  # The client was killed.
            return web.Response()
        seen = Seen(request.method, str(request.rel_url), dict(request.headers), content)
        with self._lock:
            self.seen.append(seen)
        body = (
            json.loads(content) if content[:1] in {b"{", b"["} else None
        )  # That of a token endpoint is a form.
        try:
            return await self.answer(request, body)
        except RefusalError as refusal:
            return web.json_response(
                {"error": {"message": "no"}}, status=refusal.status, headers=refusal.headers
            )

    def execute(self, body: Any) -> None:
        """The side effect that must not happen twice."""
        with self._lock:
            self.executed[json.dumps(body)] += 1

    @property
    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    @property
    def bodies(self) -> list[Any]:
        return [seen.json() for seen in self.seen]


class RefusalError(Exception):
    """Answer with this status; nothing was executed."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def server(answer: Answer | None = None) -> Iterator[Server]:
    """Run a server in a thread; without `answer` it executes every body, and echoes it."""
    running = Server()

    async def execute(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        running.execute(body)
        return await echo(request, body)

    running.answer = answer or execute
    with serve(running.handle) as url:
        running.url = url
        yield running


@contextmanager
def descriptors(stdin: bytes) -> Iterator[IO[bytes]]:
    """Replace the process's stdin by these bytes, and its stdout by the file that this yields."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(stdin)
        source.seek(0)
        before = [os.dup(descriptor) for descriptor in (0, 1)]
        try:
            os.dup2(source.fileno(), 0)
            os.dup2(target.fileno(), 1)
            yield target
        finally:
            for descriptor, saved in enumerate(before):
                os.dup2(saved, descriptor)
                os.close(saved)


@dataclass
class Job:
    """A folder with an input, and the command to run on it."""

    folder: Path
    url: str
    options: tuple[str, ...] = ("--no-auth",)

    @property
    def input(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def failed(self) -> Path:
        return self.folder / "out.failed.jsonl"

    @property
    def journal(self) -> Path:
        return self.folder / "out.journal"

    def write(self, count: int, **more: Any) -> None:
        """An input of so many lines; line N has the body {"n": N}."""
        lines = [
            {"custom_id": f"id-{n}", "method": "POST", "url": "/v1/do", "body": {"n": n, **more}}
            for n in range(1, count + 1)
        ]
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def arguments(self, *more: str, base: bool = True) -> list[str]:
        source = [] if more and (more[0] == "-" or not more[0].startswith("-")) else [str(self.input)]
        given = ["-o", str(self.out)] if "-o" not in more and "--dry-run" not in more else []
        url = ["--base-url", self.url] if base and "--base-url" not in more else []
        return [sys.executable, "-m", "stkai", "batch", *source, *more, *given, *url, *self.options]

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith("STKAI_") and not name.upper().endswith("_PROXY")
        }
        source = str(ROOT / "src")
        # A quota that never limits, since a batch is adaptive by default and would begin slowly.
        fast = {
            "STKAI_RETRY_INITIAL_DELAY": "0.01",
            "STKAI_RATE_LIMIT_ENABLED": "true",
            "STKAI_RATE_LIMIT_MAX_REQUESTS": "1000000",
            "STKAI_RATE_LIMIT_TIME_WINDOW": "1",
        }
        return {**kept, **fast, "PYTHONPATH": source, "COLUMNS": "200", **variables}

    def run(
        self, *more: str, stdin: bytes | None = None, env: dict[str, str] | None = None, base: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end, in this process."""
        return self.run_here(self.arguments(*more, base=base), self.environment(**(env or {})), stdin or b"")

    def run_here(
        self, command: list[str], environment: dict[str, str], stdin: bytes = b""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in this process."""
        before = Path.cwd()
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        os.chdir(self.folder)
        stkai.STKAI.reset()
        try:
            with descriptors(stdin) as stdout:
                done = invoke(command[3:], {**environment, "PYTHONPATH": None})
                stdout.seek(0)
                printed = stdout.read().decode()
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
            os.chdir(before)
            stkai.STKAI.reset()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout + printed, done.stderr)

    def start(
        self, *more: str, env: dict[str, str] | None = None, before: str = "", **options: Any
    ) -> "subprocess.Popen[bytes]":
        """Start the command; in its process, the program `before` runs first."""
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        program = f"{before}; import runpy; runpy.run_module('stkai', run_name='__main__', alter_sys=True)"
        python, *module = self.arguments(*more)[:3]
        command = [python, *(["-c", program] if before else module), *self.arguments(*more)[3:]]
        return Forked(command, cwd=self.folder, env=self.environment(**(env or {})), **options)

    def done(self) -> dict[int, Any]:
        return entries(self.out)

    def failures(self) -> dict[int, Any]:
        return entries(self.failed)

    def codes(self) -> dict[int, str]:
        return {number: entry["error"]["code"] for number, entry in self.failures().items()}

    def snapshot(self) -> dict[str, bytes]:
        """All files of the job."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def entries(path: Path) -> dict[int, Any]:
    """The lines of an output by their numbers; each number occurs once."""
    found: dict[int, Any] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        assert list(entry) == ["id", "custom_id", "response", "error"]
        number = int(entry["id"].removeprefix("line-"))
        assert number not in found
        found[number] = entry
    return found


def summary(stderr: str) -> str:
    """The last line of stderr."""
    return stderr.splitlines()[-1]


def until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait until a condition holds; the process must not end before."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.005)


__all__ = [
    "HANGS",
    "Job",
    "RefusalError",
    "Server",
    "broken",
    "echo",
    "entries",
    "server",
    "summary",
    "until",
]
