"""One run of a job: reads lines, sends requests and writes outcomes, until the job is done or the run is ended."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import anyio
import httpx

from .._clock import Clock, SystemClock
from .._errors import AuthenticationError
from ..transports._auth.bearer import ExposedTokenError
from ..transports._call import OPTIONS
from ..transports._options import UNSET, RequestOptions
from .entries import failure, success
from .errors import LetGoError, WriteError
from .fates import DONE, FAILED, NEW, SENT
from .flight import outcomes_of
from .formats import Format, InvalidLineError, Values, custom_id
from .intents import Intents
from .json_text import Part, body_of
from .line import Line, line_of, request_for
from .lines import Lines, Read
from .options import Options
from .outcome import Outcome
from .price import Usage
from .quick_commands import FAILURE, QuickCommands, status_of
from .replay import Replay
from .senders import AsyncSend
from .wording import failure_of, refusal_of_token

_PAUSE: Final = 0.05
"""Seconds between checks of an input that is still being copied."""

_HELD: Final = 4
"""Outcomes that may wait for an earlier one, per request in flight."""


class Outputs(Protocol):
    """Where outcomes go."""

    counts: dict[int, int]

    def append(self, fate: int, number: int, entry: bytes) -> None: ...
    def sync(self) -> None: ...


class Ordered(Protocol):
    """Outputs that keep the order of the input."""

    @property
    def held(self) -> int: ...
    def expect(self, number: int) -> None: ...
    def drop(self, number: int) -> None: ...


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
        lines_in_flight: the lines in flight, by number.
        unknown: how many lines were in flight when an earlier run was killed.
        usage: the tokens of this run's answers.
    """

    def __init__(
        self,
        options: Options,
        lines: Lines,
        form: Format,
        outputs: Outputs,
        known: Replay,
        intents: Intents,
        send: AsyncSend,
        *,
        key_of: Callable[[int], str],
        order: Ordered | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.options, self.lines, self.outputs, self.known = options, lines, outputs, known
        self.ending: Ending | None = None
        self.lines_in_flight: dict[int, Line] = {}
        self.unknown = 0
        self.usage = Usage()
        self._form, self._order, self._intents, self._send = form, order, intents, send
        self._clock = clock or SystemClock()
        self._key_of = key_of
        self._shard, self._shards = options.slice()
        self._streak: tuple[str, int] = ("", 0)
        deadline = UNSET if options.deadline is None else options.deadline
        self._extensions: dict[str, Any] = {
            OPTIONS: RequestOptions(deadline=deadline),
            "timeout": {"connect": 30.0, "read": 600.0, "write": 600.0, "pool": None},
        }
        self._commands: QuickCommands | None = None
        if options.quick_command is not None:
            self._commands = QuickCommands(
                send,
                lambda name: options.url_of_commands(f"callback/{name}"),
                intents,
                self._clock,
                options.deadline,
            )

    def end(self, kind: Literal["halted", "interrupted"], message: str) -> None:
        """Stop sending, and drop lines that were not sent; requests in flight finish."""
        if self.ending is None:
            self.ending = Ending(kind, message)
            self._intents.is_ending = True
            for line in list(self.lines_in_flight.values()):
                line.leave()

    async def run(self) -> None:
        """Work until every line has an outcome, or the run must end."""
        waits = self._order is not None or self.options.from_stdin
        requests = self._arriving() if waits else self._ready()
        async with aclosing(outcomes_of(self._fly, requests, self.options.max_in_flight)) as outcomes:
            async for outcome in outcomes:
                self._settle(outcome)

    # Lines in

    def _ready(self) -> Iterator[httpx.Request]:
        for item in self.lines:
            if self.ending is not None:
                return
            request = None if item is None else self._request(*item)
            if request is not None:
                yield request

    async def _arriving(self) -> AsyncIterator[httpx.Request]:
        for item in self.lines:
            while self.ending is None and (item is None or self._is_held_up()):
                await self._clock.asleep(_PAUSE)
                if item is None:
                    break
            if self.ending is not None:
                return
            request = None if item is None else self._request(*item)
            if request is not None:
                yield request

    def _is_held_up(self) -> bool:
        return self._order is not None and self._order.held > _HELD * self.options.max_in_flight

    def _request(self, number: int, read: Read) -> httpx.Request | None:
        """The request for a line; None if there is nothing to send."""
        if (number - 1) % self._shards != self._shard:
            return None
        fate = self.known.fates[number]
        if fate not in {NEW, SENT}:
            return None
        may_be_torn = self.known.torn.may_be(number)
        if self._order is not None:
            self._order.expect(number)
        try:
            return self._make(number, read, was_sent=fate == SENT or may_be_torn)
        except InvalidLineError as error:
            message = f"{self.options.source}, line {number}: {error}"
            self._fail(number, error.custom_id, "invalid_line", message)
        return None

    def _make(self, number: int, read: Read, *, was_sent: bool) -> httpx.Request | None:
        execution = self.known.executions.pop(number, None)
        if was_sent and execution is None:
            self.unknown += 1
            if self.options.unknown == "report" and not self.options.retry_failed:
                self._report(number, read)
                return None
        target = self._form.target(read())
        line = self.lines_in_flight[number] = Line(number, target.custom_id, execution)
        return request_for(line, target, self._key_of(number), self._extensions)

    def _report(self, number: int, read: Read) -> None:
        """Report a line whose outcome is unknown as a failure."""
        message = (
            f"{self.options.source}, line {number}: this was in flight when an earlier run was killed, so the"
            " server may have executed it; to send it again, pass --retry-failed"
        )
        values: Values | None = None
        own_id = "null"
        try:
            values = read()
            own_id = custom_id(values, self._form.id_name)
        except InvalidLineError as error:
            own_id = error.custom_id
        self._write(FAILED, number, failure(number, own_id, "unknown", message))

    # Requests out

    async def _fly(self, request: httpx.Request) -> httpx.Response:
        line = line_of(request)
        assert line is not None
        if self.ending is not None:
            raise LetGoError("the run is ending")
        with anyio.CancelScope() as scope:
            line.starts(scope.cancel)
            if self._commands is not None:
                return await self._commands.run(line, request)
            return await self._send(request)
        raise LetGoError("the run is ending")

    # Outcomes into the outputs

    def _settle(self, outcome: Outcome) -> None:
        line, error, response = line_of(outcome.request), outcome.error, outcome.response
        assert line is not None
        del self.lines_in_flight[line.number]
        if response is None:
            response = getattr(error, "response", None)
        if isinstance(error, ExposedTokenError):  # This concerns only this line's url.
            self._fail(line.number, line.custom_id, *failure_of(error, None, None))
        elif isinstance(error, LetGoError | WriteError | AuthenticationError):
            self._drop(line.number)
            if isinstance(error, WriteError):
                self.end("halted", f"{error}; nothing more is sent")
            elif isinstance(error, AuthenticationError):
                self.end("halted", refusal_of_token(str(error), no_auth=self.options.no_auth))
        elif response is None:
            self._fail(line.number, line.custom_id, *failure_of(error, None, None))
        elif response.status_code == httpx.codes.UNAUTHORIZED:
            self._drop(line.number)
            self.end("halted", refusal_of_token("the server answered 401", no_auth=self.options.no_auth))
        else:
            self._answer(line, response, error)

    def _answer(self, line: Line, response: httpx.Response, error: Exception | None) -> None:
        body = body_of(response)
        self.usage.add(body.value)
        has_failed = self._commands is not None and status_of(response) == FAILURE
        if response.status_code >= 400 or has_failed or error is not None:
            code, message = failure_of(error, response, body)
            self._fail(line.number, line.custom_id, code, message, response, body)
        else:
            self._streak = ("", 0)
            self._write(DONE, line.number, success(line.number, line.custom_id, response, body))

    def _fail(
        self,
        number: int,
        own_id: str,
        code: str,
        message: str,
        response: httpx.Response | None = None,
        body: Part | None = None,
    ) -> None:
        self._write(FAILED, number, failure(number, own_id, code, message, response, body))
        last, count = self._streak
        self._streak = (code, count + 1 if code == last else 1)
        if self._streak[1] == self.options.halt_after:
            times = f"{self.options.halt_after} failures" if self.options.halt_after > 1 else "a failure"
            in_a_row = " in a row" if self.options.halt_after > 1 else ""
            self.end("halted", f"{times}{in_a_row} with the code {code}, the last one: {message}")

    def _drop(self, number: int) -> None:
        if self._order is not None:
            self._order.drop(number)

    def _write(self, fate: int, number: int, entry: bytes) -> None:
        try:
            self.outputs.append(fate, number, entry)
        except WriteError as error:
            self.end("halted", f"{error}; nothing more is sent")
            with suppress(OSError, AttributeError):  # stderr may be closed.
                sys.stderr.buffer.write(entry)
                sys.stderr.buffer.flush()
