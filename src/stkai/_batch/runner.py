"""One run of a job: reads lines, sends requests and writes outcomes, until the job is done or the run is ended."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid5

import anyio
import httpx

from .._clock import Clock, SystemClock
from .._errors import AuthenticationError
from ..transports._auth.bearer import ExposedTokenError
from ..transports._call import OPTIONS
from ..transports._options import UNSET, RequestOptions
from .batch_client import LINE, BatchClient, LineInFlight, line_of
from .engine import Outcome, outcomes_of
from .errors import DroppedError, WriteError
from .input_lines import Read
from .job import Job
from .job_state import LineState
from .output_lines import TIMEOUTS, body_of, failure, failure_of_answer, failure_of_error, success, visible
from .outputs import StdoutOutputs
from .quick_commands import FAILURE, QuickCommands, status_of
from .request_formats import InvalidLineError, custom_id

_PAUSE: Final = 0.05
"""Seconds between checks of an input that is still being copied."""

_HELD: Final = 4
"""Outcomes that may wait for an earlier one, per request in flight."""

_REFUSED_LINES: Final = 3
"""So many different lines refused in a row, with no answer in between, mean that the credentials are refused."""

_COMPARED_IDS: Final = 20_000
"""How many ids are compared, which takes 2 MB; a dry run compares all."""

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
        in_flight: the lines in flight, by number.
        unknown: how many lines were in flight when an earlier run was killed.
        duplicates: lines of this run with the id of an earlier one, among the first 20,000.
    """

    def __init__(self, job: Job, client: BatchClient, clock: Clock | None = None) -> None:
        self.ending: Ending | None = None
        self.in_flight: dict[int, LineInFlight] = {}
        self.unknown = 0
        self.duplicates: list[int] = []
        self._ids: set[int] = set()
        self._job, self._client, self._clock = job, client, clock or SystemClock()
        self._options, self._outputs, self._form = job.plan.options, job.outputs, job.plan.form
        self._ordered = job.outputs if isinstance(job.outputs, StdoutOutputs) else None
        self._shard = self._options.slice()
        self._streak: tuple[str, int] = ("", 0)
        self._refused: list[tuple[LineInFlight, httpx.Response]] = []
        """Lines whose credentials were refused since the last other answer."""
        self._has_answers = False
        deadline = self._options.deadline
        self._timeouts = {**TIMEOUTS, "read": max(600.0, deadline or 0.0)}
        self._extensions: dict[str, Any] = {
            # A batch waits for its permits as long as it takes.
            OPTIONS: RequestOptions(deadline=UNSET if deadline is None else deadline, max_wait_time=None),
            "timeout": self._timeouts,
        }
        self._commands: QuickCommands | None = None
        if self._options.quick_command is not None:
            url = self._options.url_of_commands
            self._commands = QuickCommands(
                client, lambda name: url(f"callback/{name}"), self._clock, deadline
            )

    def end(self, kind: Literal["halted", "interrupted"], message: str) -> None:
        """Stop sending, and drop lines that were not sent; requests in flight finish."""
        if self.ending is None:
            self.ending = Ending(kind, message)
            self._client.is_ending = True
            for line in list(self.in_flight.values()):
                line.drop()

    async def run(self) -> None:
        """Work until every line has an outcome, or the run must end."""
        waits = self._options.to_stdout or self._options.from_stdin
        requests = self._arriving() if waits else self._ready()
        async with aclosing(outcomes_of(self._send, requests, self._options.max_in_flight)) as outcomes:
            async for outcome in outcomes:
                self._settle(outcome)
                if self._outputs.is_behind:
                    await self._flush()
        self._settle_refused(is_last=True)
        await self._flush()

    # Lines in

    def _ready(self) -> Iterator[httpx.Request]:
        for item in self._job.lines:
            if self.ending is not None:
                return
            request = None if item is None else self._request(*item)
            if request is not None:
                yield request

    async def _arriving(self) -> AsyncIterator[httpx.Request]:
        for item in self._job.lines:
            while self.ending is None and (item is None or self._is_held_up()):
                await self._clock.asleep(_PAUSE)
                if item is None:
                    break
            if self.ending is not None:
                return
            request = None if item is None else self._request(*item)
            if self._outputs.is_behind:
                await self._flush()
            if request is not None:
                yield request

    def _is_held_up(self) -> bool:
        return self._ordered is not None and self._ordered.held > _HELD * self._options.max_in_flight

    def _request(self, number: int, read: Read) -> httpx.Request | None:
        """The request for a line; None if there is nothing to send."""
        index, shards = self._shard
        if (number - 1) % shards != index:
            return None
        state = self._job.recovered.begin(number)
        if state is LineState.DONE or state is LineState.FAILED:
            return None
        if self._ordered is not None:
            self._ordered.expect(number)
        execution = self._job.recovered.executions.pop(number, None)
        if state is LineState.SENT and execution is None:
            self.unknown += 1
            if self._options.unknown == "report":
                self._report_unknown(number, read)
                return None
        try:
            target = self._form.target(read())
        except InvalidLineError as error:
            message = f"{self._options.source}, line {number}: {error}"
            self._fail(
                number, failure(number, error.custom_id, ("invalid_line", message)), "invalid_line", message
            )
            return None
        self._note_id(number, target.custom_id)
        line = self.in_flight[number] = LineInFlight(number, target.custom_id, execution)
        key = str(uuid5(self._job.id, f"line-{number}"))
        return target.request(key, {**self._extensions, LINE: line})

    def _note_id(self, number: int, own_id: str) -> None:
        if own_id != "null" and len(self._ids) < _COMPARED_IDS:
            known = len(self._ids)
            self._ids.add(hash(own_id))
            if len(self._ids) == known:
                self.duplicates.append(number)

    def _report_unknown(self, number: int, read: Read) -> None:
        """Report a line whose outcome is unknown as a failure."""
        message = (
            f"{self._options.source}, line {number}: this was in flight when an earlier run was killed, so the"
            " server may have executed it; to send it again, pass --retry-failed"
        )
        own_id = "null"
        try:
            own_id = custom_id(read(), self._form.id_name)
        except InvalidLineError as error:
            own_id = error.custom_id
        self._write(number, failure(number, own_id, ("unknown", message)), "unknown")

    # Requests out

    async def _send(self, _: int, request: httpx.Request) -> httpx.Response:
        line = line_of(request)
        assert line is not None
        if self.ending is not None:
            raise DroppedError
        with anyio.CancelScope() as scope:
            line.started(scope.cancel)
            if self._commands is not None:
                return await self._commands.run(line, request)
            return await self._client.send(request)
        raise DroppedError

    # Outcomes into the outputs

    def _settle(self, outcome: Outcome) -> None:
        line, error, response = line_of(outcome.request), outcome.error, outcome.response
        assert line is not None
        del self.in_flight[line.number]
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
            self._fail_without_answer(line, error)
        elif response.status_code == httpx.codes.UNAUTHORIZED and self._options.halt_after:
            self._refused.append((line, response))
            if len(self._refused) == _REFUSED_LINES:
                self._refuse(f"the server answered 401 to {_REFUSED_LINES} lines in a row")
                self._settle_refused()
        else:
            self._has_answers = True
            self._settle_refused()
            self._answer(line, response, error)

    def _settle_refused(self, *, is_last: bool = False) -> None:
        """Report the lines whose credentials were refused as failures; if the run is ending, they are new."""
        refused, self._refused = self._refused, []
        if is_last and len(refused) > 1 and not (self._has_answers or self._outputs.done or self.ending):
            self._refuse(f"the server answered 401 to all {len(refused)} lines")
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
            status = response.status_code
            code = message = None
            if status >= 300:
                code, message = failure_of_answer(response, body, response.request.url)
            elif self._commands is not None and status_of(response) == FAILURE:
                code, message = "execution_failed", "the execution of the quick command ended with FAILURE"
            elif error is not None:
                code, message = failure_of_error(error, self._timeouts)
            if code is None or message is None:
                entry = success(line.number, line.custom_id, response, body)
            else:
                if status >= 500 and not line.may_drop:
                    message += _MAY_HAVE_ACTED[self._options.unknown]
                entry = failure(line.number, line.custom_id, (code, message), response, body)
        except Exception as unreadable:  # noqa: BLE001 - whatever the server has sent, the run continues
            self._fail_without_answer(line, unreadable)
            return
        if code is None or message is None:
            self._streak = ("", 0)
            self._write(line.number, entry, None)
        else:
            self._fail(line.number, entry, code, message)

    def _fail_without_answer(self, line: LineInFlight, error: Exception) -> None:
        code, message = failure_of_error(error, self._timeouts)
        message += "" if line.may_drop else _MAY_HAVE_ACTED[self._options.unknown]
        self._fail(line.number, failure(line.number, line.custom_id, (code, message)), code, message)

    def _fail(self, number: int, entry: bytes, code: str, message: str) -> None:
        self._write(number, entry, code)
        last, count = self._streak
        self._streak = (code, count + 1 if code == last else 1)
        if self._streak[1] == self._options.halt_after:
            several = self._options.halt_after > 1
            times = f"{self._options.halt_after} failures in a row" if several else "a failure"
            self.end("halted", f"{times} with the code {code}, the last one: {message}")

    def _drop(self, line: LineInFlight) -> None:
        if self._ordered is not None:
            self._ordered.drop(line.number)

    def _write(self, number: int, entry: bytes, code: str | None) -> None:
        try:
            self._outputs.append(number, entry, code)
        except WriteError as error:
            self._halt_unwritten(error, [entry])

    async def _flush(self) -> None:
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
