"""The innermost layer of a batch: after the permit, it records in the journal which line is about to be sent."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

import anyio
import anyio.to_thread
import httpx

from .._errors import ConfigurationError
from .._families import alike
from ..transports._base import LayerBase
from ..transports._call import Attempt
from ..transports._layer import Layer
from ..transports._operations import Flow, Run
from ..transports._retry.policy import RetryPolicy
from .append_file import AppendFile
from .errors import LetGoError, WriteError
from .journal import Journal
from .line import Line, line_of

_CLASSES: Final = RetryPolicy()
"""Tells which failures prove that the server has not acted."""

_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Intents:
    """Records which lines are about to be sent, and which were refused.

    Attributes:
        is_ending: nothing more may be sent.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self._journal: Journal | None = None
        self._commit: Commit | None = None

    def write_to(self, journal: Journal, sync: Literal["1s", "always", "never"]) -> None:
        """Use this journal from now on."""
        self._journal = journal
        self._commit = Commit(journal.file) if sync == "always" else None

    async def send(self, line: Line) -> None:
        """The line is about to be sent.

        Raises:
            LetGoError: nothing more may be sent.
            WriteError: the record could not be written.
        """
        if self.is_ending:
            raise LetGoError("the run is ending")
        if self._journal is not None:
            self._journal.sent(line.number)
        line.may_leave = False
        await self.commit()

    async def commit(self) -> None:
        """Return once the records would survive a power failure, if `--sync always` asks for that."""
        if self._commit is not None:
            await self._commit()

    def refuse(self, line: Line) -> None:
        """The line was refused: nothing ran."""
        if self._journal is not None:
            with suppress(
                WriteError
            ):  # Then the line counts as sent, which is safe, and the next one is not sent.
                self._journal.not_sent(line.number)
        self._may_leave(line)

    async def create(self, line: Line, execution: str) -> None:
        """The line has created an execution."""
        line.execution = execution
        if self._journal is not None:
            self._journal.execution(line.number, execution)
            await self.commit()
        self._may_leave(line)

    def _may_leave(self, line: Line) -> None:
        line.may_leave = True
        if self.is_ending:
            line.leave()

    def layer(self) -> Layer:
        """The layer, to be placed inside all others."""
        return Layer("journal", self._flow)

    def _flow(self, layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        line = line_of(request)
        if line is None:
            return (yield from layer.forward(request, attempt))
        yield Run(_only_async, lambda _: self.send(line))
        try:
            response = yield from layer.forward(request, attempt)
        except alike(httpx.TransportError) as error:
            if proves_nothing_ran(None, error):
                self.refuse(line)
            raise
        if proves_nothing_ran(response, None):
            self.refuse(line)
        return response


def _only_async(_: float) -> None:
    raise ConfigurationError("the journal of a batch needs an async stack: use build_async()")


def proves_nothing_ran(response: httpx.Response | None, error: Exception | None) -> bool:
    """Whether an attempt's outcome, a response or an error, proves that the server has not acted."""
    if response is not None:
        if response.status_code < 400:
            return False
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return True
    failure = _CLASSES.failure_of(response, error, _LONG_AGO)
    return failure is not None and not failure.acted


class Commit:
    """Waits until a file would survive a power failure; concurrent callers share the next fsync."""

    def __init__(self, file: AppendFile, sync: Callable[[], None] | None = None) -> None:
        self._file, self._sync = file, sync or file.sync
        self._safe = 0
        self._running: anyio.Event | None = None

    async def __call__(self) -> None:
        wanted = self._file.size
        while self._safe < wanted:
            if self._running is not None:
                await self._running.wait()
                continue
            self._running, reached = anyio.Event(), self._file.size
            try:
                await anyio.to_thread.run_sync(self._sync)
                self._safe = reached
            finally:
                self._running.set()
                self._running = None
