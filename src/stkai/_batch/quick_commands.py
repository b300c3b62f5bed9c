"""Executions of quick commands: created once, then polled until they end."""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx

from .._clock import Clock
from .._errors import DeadlineExceededError, StkaiError
from .._families import alike
from .._headers import default_headers
from ..transports._call import OPTIONS
from ..transports._options import UNSET, RequestOptions
from ..transports._retry.retry_after import retry_after
from .batch_client import BatchClient, LineInFlight

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 5.0
_GROWTH: Final = 1.5
_LONGEST_ASKED: Final = 60.0
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})

COMPLETED: Final = "COMPLETED"
FAILURE: Final = "FAILURE"


class NoExecutionError(StkaiError):
    """A quick command was started, but the answer contains no execution id.

    Attributes:
        response: the answer.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        super().__init__("the answer contains no execution id, so the execution cannot be polled")


class QuickCommands:
    """Creates an execution and polls it. The polls need no permit.

    Args:
        url: returns the url at which to poll an execution id.
        deadline: seconds for the creation and all polls, or None.
    """

    def __init__(
        self, client: BatchClient, url: Callable[[str], str], clock: Clock, deadline: float | None
    ) -> None:
        self._client, self._url, self._clock, self._deadline = client, url, clock, deadline

    async def run(self, line: LineInFlight, request: httpx.Request) -> httpx.Response:
        """The last callback, or the answer to the creation if that was refused.

        Raises:
            NoExecutionError: the creation succeeded but returned no execution id.
            DeadlineExceededError: the execution took too long.
        """
        end = None if self._deadline is None else self._clock.monotonic() + self._deadline
        if line.execution is None:
            created = await self._client.send(line, request)
            if created.status_code >= 300:
                return created
            await line.created(_execution_of(created))
        return await self._poll(line.execution or "", end)

    async def _poll(self, execution: str, end: float | None) -> httpx.Response:
        url, pause = self._url(quote(execution, safe="")), _FIRST_PAUSE
        while True:
            await self._sleep(pause, end, execution)
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)
            response = await self._ask(url, end)
            if response is None:
                continue
            if response.status_code in _AGAIN:
                asked = retry_after(response.headers, self._clock.utcnow()) or 0.0
                pause = max(pause, min(asked, _LONGEST_ASKED))
            elif response.status_code >= 300 or status_of(response) in {COMPLETED, FAILURE}:
                return response

    async def _sleep(self, seconds: float, end: float | None, execution: str) -> None:
        if end is not None and self._clock.monotonic() + seconds >= end:
            msg = f"the execution {execution} did not end within {self._deadline:g} s; a resumed job does not poll it"
            raise DeadlineExceededError(msg)
        await self._clock.asleep(seconds)

    async def _ask(self, url: str, end: float | None) -> httpx.Response | None:
        """The answer to one poll; None if there was no readable answer."""
        left = UNSET if end is None else max(end - self._clock.monotonic(), 0.001)
        options = {OPTIONS: RequestOptions(deadline=left)}
        request = httpx.Request("GET", url, headers=default_headers(), extensions=options)
        try:
            return await self._client.poll(request)
        except alike(httpx.TimeoutException, httpx.NetworkError, httpx.ProtocolError, httpx.DecodingError):
            return None


def status_of(response: httpx.Response) -> str:
    """The status in a callback; empty if there is none."""
    progress = _json(response).get("progress")
    status = progress.get("status") if isinstance(progress, dict) else None
    return status.upper() if isinstance(status, str) else ""


def _execution_of(response: httpx.Response) -> str:
    """The id in the answer to a creation: a JSON string."""
    try:
        name = response.json()
    except (ValueError, RecursionError):
        name = None
    if not isinstance(name, str) or not name or not name.isprintable():
        raise NoExecutionError(response)
    return name


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
