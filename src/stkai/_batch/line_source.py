"""The lines of a job that are still to be sent, as requests; invalid ones are reported at once."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final
from uuid import uuid5

import httpx

from .._clock import Clock
from .batch_client import BatchClient, LineInFlight
from .engine import Requests
from .input_lines import Read
from .job import Job
from .journal import LineState
from .output_lines import UNKNOWN, Failure, output_line
from .outputs import StdoutOutputs
from .request_formats import InvalidLineError, custom_id

_PAUSE: Final = 0.05
"""Seconds between checks of an input that is still being copied."""

_HELD: Final = 4
"""Outcomes that may wait for an earlier one, per request in flight."""

_COMPARED_IDS: Final = 20_000
"""How many ids are compared, which takes 2 MB; a dry run compares all."""


class LineSource:
    """Makes requests from the lines of a job that have no outcome yet, in their order.

    Args:
        client: says how requests are sent, and whether the run is ending.
        report: writes the failure of a line that is not sent.
        flush: waits until what was written has reached a slow reader of stdout.

    Attributes:
        in_flight: the lines in flight, by number.
        unknown: how many lines were in flight when an earlier run was killed.
        duplicates: lines of this run with the id of an earlier one, among the first 20,000, and these ids.
    """

    def __init__(
        self,
        job: Job,
        client: BatchClient,
        clock: Clock,
        report: Callable[[int, bytes, Failure], None],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self.in_flight: dict[int, LineInFlight] = {}
        self.unknown = 0
        self.duplicates: list[tuple[int, str]] = []
        self._ids: set[int] = set()
        self._job, self._client, self._clock, self._report, self._flush = job, client, clock, report, flush
        self._options, self._form, self._shard = job.plan.options, job.plan.form, job.plan.options.part
        self._ordered = job.outputs if isinstance(job.outputs, StdoutOutputs) else None

    def requests(self) -> Requests:
        """The requests, until the run is ending."""
        waits = self._options.to_stdout or self._options.from_stdin
        return self._arriving() if waits else self._ready()

    def _ready(self) -> Iterator[httpx.Request]:
        for item in self._job.lines:
            if self._client.is_ending:
                return
            request = None if item is None else self._request(*item)
            if request is not None:
                yield request

    async def _arriving(self) -> AsyncIterator[httpx.Request]:
        for item in self._job.lines:
            while not self._client.is_ending and (item is None or self._is_held_up()):
                await self._clock.asleep(_PAUSE)
                if item is None:
                    break
            if self._client.is_ending:
                return
            request = None if item is None else self._request(*item)
            await self._flush()
            if request is not None:
                yield request

    def _is_held_up(self) -> bool:
        return self._ordered is not None and self._ordered.held > _HELD * self._options.max_in_flight

    def _request(self, number: int, read: Read) -> httpx.Request | None:
        """The request for a line; None if there is nothing to send."""
        if not self._shard.has(number):
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
            failure = "invalid_line", f"{self._options.source}, line {number}: {error}"
            self._report(number, output_line(number, error.custom_id, failure), failure)
            return None
        self._note_id(number, target.custom_id)
        line = self.in_flight[number] = LineInFlight(self._client, number, target.custom_id, execution)
        key = str(uuid5(self._job.id, f"line-{number}"))
        return target.request(key, self._client.extensions(line))

    def _note_id(self, number: int, own_id: str) -> None:
        if own_id != "null" and len(self._ids) < _COMPARED_IDS:
            known = len(self._ids)
            self._ids.add(hash(own_id))
            if len(self._ids) == known:
                self.duplicates.append((number, own_id))

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
        failure = UNKNOWN, message
        self._report(number, output_line(number, own_id, failure), failure)
