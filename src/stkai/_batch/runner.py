"""One run of a job: sends its lines and writes their outcomes, until the job is done or the run must end."""

import sys
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, Literal

import anyio
import httpx

from .._clock import Clock, SystemClock
from .._errors import AuthenticationError
from ..transports._auth.bearer import ExposedTokenError
from .batch_client import BatchClient, LineInFlight, line_of
from .engine import Outcome, outcomes_of
from .errors import DroppedError, WriteError
from .job import Job
from .json_text import Part
from .line_source import LineSource
from .output_lines import (
    UNKNOWN,
    Failure,
    body_of,
    failure_of_answer,
    failure_of_error,
    output_line,
    visible,
)
from .outputs import StdoutOutputs
from .quick_commands import FAILURE, QuickCommands, status_of

_REFUSED_LINES: Final = 3
"""So many different lines refused in a row, with no answer in between, mean that the credentials are refused."""

_REPORT: Final = " (--halt-after 0 would report them as failures)"

_MAY_HAVE_ACTED: Final = {
    "report": "; the server may have executed it, so it was not sent again: to send it, pass --retry-failed",
    "resend": "; the server may have executed it; to send it again, pass --retry-failed",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run ended early.

    Attributes:
        kind: "halted", or "interrupted" by a signal.
        message: what happened, and what to do.
    """

    kind: Literal["halted", "interrupted"]
    message: str


class Runner:
    """Sends new lines, and writes their outcomes.

    Attributes:
        ending: set when the run must end early.
        lines: the lines that are sent.
    """

    def __init__(self, job: Job, client: BatchClient, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        self.ending: Ending | None = None
        self.lines = LineSource(job, client, clock, self._write, self._flush)
        self._job, self._client, self._options, self._outputs = job, client, job.plan.options, job.outputs
        self._streak: tuple[str | None, int] = (None, 0)
        self._refused: list[tuple[LineInFlight, httpx.Response]] = []
        """Lines whose credentials were refused since the last other answer."""
        self._has_answers = False
        self._commands: QuickCommands | None = None
        if self._options.quick_command is not None:
            url = self._options.url_of_commands
            self._commands = QuickCommands(
                client, lambda name: url(f"callback/{name}"), clock, self._options.deadline
            )

    def end(self, kind: Literal["halted", "interrupted"], message: str) -> None:
        """Stop sending, and drop lines that were not sent; requests in flight finish."""
        if self.ending is None:
            self.ending = Ending(kind, message)
            self._client.is_ending = True
            for line in list(self.lines.in_flight.values()):
                line.drop()

    async def run(self) -> None:
        """Work until every line has an outcome, or the run must end."""
        requests, most = self.lines.requests(), self._options.max_in_flight
        async with aclosing(outcomes_of(self._send, requests, most)) as outcomes:
            async for outcome in outcomes:
                self._settle(outcome)
                await self._flush()
        self._settle_refused(is_last=True)
        await self._flush()

    async def _send(self, _: int, request: httpx.Request) -> httpx.Response:
        line = line_of(request)
        assert line is not None
        if self.ending is not None:
            raise DroppedError
        with anyio.CancelScope() as scope:
            line.started(scope.cancel)
            if self._commands is not None:
                return await self._commands.run(line, request)
            return await self._client.send(line, request)
        raise DroppedError

    def _settle(self, outcome: Outcome) -> None:
        line, error, response = line_of(outcome.request), outcome.error, outcome.response
        assert line is not None
        del self.lines.in_flight[line.number]
        if response is None:
            response = getattr(error, "response", None)
        if isinstance(error, DroppedError):
            self._drop(line)
        elif isinstance(error, WriteError):
            self._drop(line)
            self.end("halted", f"{error}; nothing more is sent")
        elif isinstance(error, AuthenticationError) and not isinstance(error, ExposedTokenError):
            self._drop(line)
            self._refuse(visible(str(error)))
        elif response is None:
            assert error is not None
            self._fail(line, error)
        elif response.status_code == httpx.codes.UNAUTHORIZED and self._options.halt_after:
            self._refused.append((line, response))
            if len(self._refused) == _REFUSED_LINES:
                self._refuse(f"the server answered 401 to {_REFUSED_LINES} lines in a row{_REPORT}")
                self._settle_refused()
        else:
            self._has_answers = True
            self._settle_refused()
            self._answer(line, response, error)

    def _settle_refused(self, *, is_last: bool = False) -> None:
        """Report the lines whose credentials were refused as failures; if the run is ending, they are new."""
        refused, self._refused = self._refused, []
        if is_last and len(refused) > 1 and not (self._has_answers or self._outputs.done or self.ending):
            self._refuse(f"the server answered 401 to all {len(refused)} lines{_REPORT}")
        for line, response in refused:
            if self.ending is None:
                self._answer(line, response, None)
            else:
                self._drop(line)

    def _refuse(self, what: str) -> None:
        """Halt because the credentials are refused."""
        way = "leave out --no-auth, and set" if self._options.no_auth else "check"
        self.end(
            "halted",
            f"{what}: {way} STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET, or STKAI_AUTH_TOKEN;"
            " nothing more is sent",
        )

    def _answer(self, line: LineInFlight, response: httpx.Response, error: Exception | None) -> None:
        try:
            body = body_of(response)
            self._job.usage.add(body.value)
            failure = self._failure(line, response, body, error)
            entry = output_line(line.number, line.custom_id, failure, response, body)
        except Exception as unreadable:  # noqa: BLE001 - whatever the server has sent, the run continues
            self._fail(line, unreadable)
        else:
            self._write(line.number, entry, failure)

    def _failure(
        self, line: LineInFlight, response: httpx.Response, body: Part, error: Exception | None
    ) -> Failure | None:
        """Why an answer is a failure; None if it is a success."""
        if response.status_code >= 300:
            code, message = failure_of_answer(response, body, response.request.url)
            may_have_acted = response.status_code >= 500 and not line.may_drop
            return code, message + (_MAY_HAVE_ACTED[self._options.unknown] if may_have_acted else "")
        if self._commands is not None and status_of(response) == FAILURE:
            return "execution_failed", "the execution of the quick command ended with FAILURE"
        return None if error is None else failure_of_error(error, self._client.timeouts)

    def _fail(self, line: LineInFlight, error: Exception) -> None:
        code, message = failure_of_error(error, self._client.timeouts)
        failure = code, message + ("" if line.may_drop else _MAY_HAVE_ACTED[self._options.unknown])
        self._write(line.number, output_line(line.number, line.custom_id, failure), failure)

    def _write(self, number: int, entry: bytes, failure: Failure | None) -> None:
        code, message = failure or (None, "")
        try:
            self._outputs.append(number, entry, code)
        except WriteError as error:
            self._halt_unwritten(error, [entry])
        if code == UNKNOWN:
            return
        last, count = self._streak
        self._streak = (code, count + 1 if code == last else 1)
        if code is not None and self._streak[1] == self._options.halt_after:
            times = "a failure" if count == 0 else f"{count + 1} failures in a row"
            self.end("halted", f"{times} with the code {code}, the last one: {message}")

    def _drop(self, line: LineInFlight) -> None:
        if isinstance(self._outputs, StdoutOutputs):
            self._outputs.drop(line.number)

    async def _flush(self) -> None:
        if not self._outputs.is_behind:
            return
        try:
            await self._outputs.flush()
        except WriteError as error:
            self._halt_unwritten(error, self._outputs.take_unwritten())

    def _halt_unwritten(self, error: WriteError, entries: list[bytes]) -> None:
        """Halt, and print outcomes that could not be written to stderr, so that they are not lost."""
        self.end("halted", f"{error}; nothing more is sent")
        with suppress(OSError, AttributeError):  # stderr may be closed.
            sys.stderr.buffer.writelines(entries)
            sys.stderr.buffer.flush()
