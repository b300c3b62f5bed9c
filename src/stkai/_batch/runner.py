"""One run of a job: sends the lines that have no outcome yet, writes their outcomes, and decides when to halt."""

from collections.abc import AsyncGenerator
from contextlib import closing
from functools import partial
from typing import Any, Final
from uuid import uuid5

import anyio
import httpx

from .._clock import SystemClock
from .._errors import AuthenticationError, DeadlineExceededError, OutcomeUnknownError, visible
from .._families import alike
from ..transports._auth.bearer import ExposedTokenError
from ..transports._call import ATTEMPT
from .append_file import WriteError
from .batch_client import FAILURE, BatchClient, status_of
from .concurrency import Outcome, OutcomesInTasks
from .input_lines import ReadLine
from .job import BatchJob
from .journal import LineState
from .outputs import INVALID_LINE, UNKNOWN, Entry, LineFailure, body_of
from .request_formats import InvalidLineError, JsonValue
from .tracking import DroppedError, LineInFlight, track

HALTED: Final = 3
INTERRUPTED: Final = 130
"""Exit codes of runs that ended early."""

_POLL_INTERVAL: Final = 0.05  # Seconds between checks of an input that is still being copied.
_DONE_AT_ONCE: Final = 10_000  # Finished lines to pass over before signals and the progress get a turn.
_LAST_WRITES: Final = 1.0  # Seconds for what can still be written when a run is aborted.
_MAX_HELD: Final = 4  # Outcomes that may wait for an earlier line, per request in flight.

_SHOWS_URL: Final = frozenset({404, 405, 410})
_CODES: Final[dict[type, str]] = {
    InvalidLineError: INVALID_LINE,
    OutcomeUnknownError: UNKNOWN,
    DroppedError: UNKNOWN,
}
"""The codes of lines that are not sent, or given up; other errors have the names of their classes."""

_DEADLINE_OF_SETTINGS: Final = " (STKAI_RETRY_DEADLINE; to wait longer, pass --deadline SECONDS)"


class Runner:
    """Sends the lines of a job, and writes their outcomes."""

    def __init__(self, job: BatchJob, client: BatchClient) -> None:
        self.stop_reason: tuple[int, str] | None = None  # The exit code, and a message with advice.
        self.in_flight: dict[int, LineInFlight] = {}  # By number.
        self._job, self._client, self._clock = job, client, SystemClock()
        self._options, self._outputs = job.options, job.outputs
        self._streak: tuple[str | None, int] = (None, 0)

    def stop(self, exit_code: int, message: str) -> None:
        """Stop sending, and drop lines that have not been sent; requests in flight continue to their end."""
        if self.stop_reason is None:
            self.stop_reason = exit_code, message
            self._job.ending.run()
            for line in list(self.in_flight.values()):
                line.end_with_run()

    async def run(self) -> None:
        """Send and write until every line has an outcome, or the run is stopped."""
        async with OutcomesInTasks(self._send, self._lines(), self._options.max_in_flight) as outcomes:
            async for outcome in outcomes:
                await self._write_outcome(outcome.index, self._entry(outcome))

    async def abort(self) -> None:
        """Write what is known of the lines in flight, since the process is about to end."""
        with anyio.move_on_after(_LAST_WRITES):
            if self._job.journal is None:
                for line in self.in_flight.values():
                    line.scope.cancel()
                await self._clock.asleep(_LAST_WRITES / 2)  # Usually, the run ends meanwhile.
            await self._outputs.write_held()

    # From a line to its request

    async def _lines(self) -> AsyncGenerator[tuple[int, ReadLine], None]:
        """The lines that have no outcome yet, until the run is stopped."""
        try:
            with closing(self._job.lines) as lines:
                for item in lines:
                    while (
                        self._outputs.held > _MAX_HELD * self._options.max_in_flight
                        and self.stop_reason is None
                    ):
                        await self._clock.asleep(_POLL_INTERVAL)
                    if self.stop_reason is not None:
                        return
                    if item is None:
                        await self._clock.asleep(_POLL_INTERVAL)
                    elif self._job.wants(item[0]):
                        self._outputs.expect(item[0])
                        self.in_flight[item[0]] = LineInFlight(self._job, item[0])
                        yield item
                    elif item[0] % _DONE_AT_ONCE == 0:
                        await self._clock.asleep(0)
        except OSError as error:
            what = f"{self._options.source} cannot be read: {error.strerror}"
            self.stop(HALTED, f"{what}; nothing more is sent")
        except WriteError as error:
            self.stop(HALTED, f"{error}; nothing more is sent")

    async def _send(self, number: int, read: ReadLine) -> httpx.Response:
        line = self.in_flight[number]
        request = self._request(line, read)
        with line.scope:
            return await self._client.send(line, request)
        raise DroppedError

    def _request(self, line: LineInFlight, read: ReadLine) -> httpx.Request:
        """The request for a line; raises an error if the line is invalid, or may have been sent before."""
        job, number = self._job, line.number
        values = read()
        line.custom_id = job.form.custom_id(values)
        target = job.form.target(values)
        line.execution = job.recovered.executions.pop(number, None)
        # If an earlier run may have executed the line, a refusal in this run does not prove that it did not run.
        line.may_have_acted = job.recovered.states[number] is LineState.SENT and line.execution is None
        if line.may_have_acted and self._options.unknown == "report":
            line.may_drop = False
            raise OutcomeUnknownError("this was in flight when an earlier run ended")
        extensions = {**self._client.extensions, ATTEMPT: partial(track, line)}
        key = str(uuid5(job.id, f"line-{number}"))
        return target.request(dict.fromkeys(self._client.key_headers, key), extensions)

    # From an outcome to its line in the outputs

    def _entry(self, outcome: Outcome) -> Entry | None:
        """The entry for a line; None if it was not sent, so that a resumed job sends it."""
        line, error, response = self.in_flight.pop(outcome.index), outcome.error, outcome.response
        if response is None:
            response = getattr(error, "response", None)
        is_dropped = True
        if isinstance(error, WriteError):
            self.stop(HALTED, f"{error}; nothing more is sent")
        elif isinstance(error, AuthenticationError) and not isinstance(error, ExposedTokenError):
            self._refuse(f"{visible(str(error))}; if this is due to the credentials,")
        elif (
            response is not None
            and response.status_code == httpx.codes.UNAUTHORIZED
            and self._options.halt_after
        ):
            self._refuse(
                f"the server answered 401 to line {line.number} (--halt-after 0 would report it as a failure):"
            )
        else:
            is_dropped = type(error) in _CODES and self.stop_reason is not None
        # Without a journal, no later run can tell that the server may have executed the line.
        if is_dropped and (line.may_drop or self._job.journal is not None):
            return None
        if response is not None:
            return self._answer(line, response, error)
        assert error is not None
        return self._failure(line, error)

    def _refuse(self, what: str) -> None:
        """Halt because there is no token, or the server refuses the credentials."""
        way = "leave out --no-auth, and set" if self._options.no_auth else "check"
        self.stop(
            HALTED,
            f"{what} {way} STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET (and STKAI_AUTH_TOKEN_URL), or"
            " STKAI_AUTH_TOKEN; nothing more is sent",
        )

    def _answer(self, line: LineInFlight, response: httpx.Response, error: Exception | None) -> Entry:
        failure = None
        try:
            body = body_of(response)
            self._job.usage = self._job.usage.plus(body.value, response.content)
            if response.status_code >= 300:
                failure = failure_from_answer(response, body)
                if response.status_code >= 500 or line.execution is not None:
                    failure = _may_have_acted(line, failure)
            elif self._options.quick_command is not None and status_of(response) == FAILURE:
                failure = LineFailure(
                    "execution_failed", "the execution of the quick command ended with FAILURE"
                )
            elif error is not None:
                failure = _may_have_acted(line, failure_from_error(error, self._client.timeouts))
            return Entry.of(line.number, line.custom_id, failure, response, body)
        except Exception as unreadable:  # noqa: BLE001 - whatever the server sends, the run continues
            return self._failure(line, unreadable)

    def _failure(self, line: LineInFlight, error: Exception) -> Entry:
        code = _CODES.get(type(error))
        if code is None:
            failure = failure_from_error(error, self._client.timeouts)
            is_from_settings = self._options.deadline is None and line.execution is None
            if is_from_settings and isinstance(error, DeadlineExceededError):
                failure = failure.plus(_DEADLINE_OF_SETTINGS)
        else:
            failure = LineFailure(code, f"{self._options.place(line.number)}: {error}")
        return Entry.of(line.number, line.custom_id, _may_have_acted(line, failure))

    async def _write_outcome(self, number: int, entry: Entry | None) -> None:
        """Write the outcome of a line, and halt after too many equal failures in a row."""
        await self._outputs.write_outcome(number, entry)
        if self._outputs.error is not None:
            self.stop(HALTED, f"{self._outputs.error}; nothing more is sent")
        if entry is None or entry.code == UNKNOWN:
            return
        code, failure = entry.code, entry.failure
        last, count = self._streak
        count = count + 1 if code == last else 1
        self._streak = (code, count)
        if failure is not None and count == self._options.halt_after:
            times = "a failure" if count == 1 else f"{count} failures in a row"
            self.stop(HALTED, f"{times} with the code {code}, the last one: {failure.message}")


def _may_have_acted(line: LineInFlight, failure: LineFailure) -> LineFailure:
    """The failure, with a hint if the server may have executed the line, or has created an execution for it."""
    if line.execution is not None:
        hint = f"; the execution {line.execution} has been created"
        advice = ", and --retry-failed creates another one"
    elif not line.may_drop:
        hint, advice = "; the server may have executed it", ": to send it again, pass --retry-failed"
    else:
        return failure
    return failure.plus(hint if line.run.journal is None else hint + advice)


def failure_from_answer(response: httpx.Response, body: JsonValue) -> LineFailure:
    status = response.status_code
    message = f"the server answered {status} {visible(response.reason_phrase)}".rstrip()
    said = _error_text(body.value)
    message += f": {said}" if said else ""
    if 300 <= status < 400:
        message += f"; a batch follows no redirects{_redirect(response)}"
    if status in _SHOWS_URL:
        message += f"; the request was sent to {_shown(response.request.url)}"
    return LineFailure(f"http_{status}", message)


def failure_from_error(error: Exception, timeouts: dict[str, Any]) -> LineFailure:
    message = visible(str(error))
    if isinstance(error, alike(httpx.ReadTimeout, httpx.WriteTimeout)):
        message = f"no answer for {timeouts['read']:g} s: to wait longer, pass --deadline SECONDS"
    elif isinstance(error, alike(httpx.ConnectTimeout)):
        message = f"no connection within {timeouts['connect']:g} s: check the host and the network"
    return LineFailure(type(error).__name__, message or f"{type(error).__name__}, without a message")


def _error_text(body: Any) -> str:
    """The message in an error body, if it is where most servers put it."""
    for name in ("error", "message", "detail", "details"):
        body = body.get(name, body) if isinstance(body, dict) else body
    return visible(body) if isinstance(body, str) else ""


def _redirect(response: httpx.Response) -> str:
    location = response.headers.get("location", "")
    try:
        target = response.url.join(location)
    except (httpx.InvalidURL, ValueError, RuntimeError):
        return ""
    return f": use {_shown(target)} instead" if location else ""


def _shown(url: httpx.URL) -> str:
    return visible(str(url.copy_with(userinfo=b"", query=None, fragment=None)))
