"""`send_all` and `asend_all`: many requests through one client, a few at a time, with outcomes as calls finish."""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

import httpx

from .._checks import POSITIVE_COUNT, check_number
from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError, OutcomeUnknownError
from .._exchange import TIMEOUT, check_request
from .._families import alike
from .._headers import SET_BY_CLIENTS
from .._log import logger
from .._urls import full_path
from .append_file import WriteError
from .concurrency import Outcome, OutcomesInTasks, outcomes_in_threads
from .journal import Journal, LineState, LineStates
from .tracking import RunState, Tracker, asend_tracked, send_tracked

T = TypeVar("T")

Requests = Iterable[httpx.Request] | AsyncIterable[httpx.Request]

JournalPath = str | os.PathLike[str]


def send_all(
    client: HttpClient | httpx.Client,
    requests: Iterable[httpx.Request],
    *,
    max_in_flight: int = 32,
    journal: JournalPath | None = None,
) -> Generator[Outcome, None, None]:
    """Send many requests through one client, in threads, and yield each outcome as its call finishes.

    A request without an answer yields an outcome with an `error`; an answer with a status such as 500 is a response.
    Neither stops the others. The iterable is read in the caller's thread, at most `max_in_flight` requests ahead of the
    outcomes yielded. If it raises, the loop raises that error after the outcomes of the requests read so far.
    `close()`, or Ctrl-C, stops sending and waits for the requests in flight:
    `with contextlib.closing(stkai.send_all(...)) as outcomes`.

    Args:
        client: any sync stkai or httpx client; it is not closed.
        requests: from `client.build_request(...)`, or `httpx.Request` objects.
        max_in_flight: the most requests in flight at once.
        journal: a file that records which requests were sent, so that a second run over the same requests, in the
            same order, skips those whose outcomes were yielded. It knows a request only by its number: other
            requests need another journal. A request that was in flight when the first run ended is not sent again:
            its outcome is an `OutcomeUnknownError`.

    Raises:
        ConfigurationError: the client is not a sync client, the journal is in use or not a journal, or a forked process
            continues its parent's loop.
        StkaiError: the journal can no longer be written, as when the disk is full.
        InvalidArgumentError: `max_in_flight` is not an integer of at least 1, or `requests` is not an iterable.
    """
    if not isinstance(client, alike(HttpClient, httpx.Client)):
        raise _unfit("send_all", client, "a stkai.HttpClient or an httpx.Client", "asend_all")
    _check(requests, max_in_flight, Iterable)
    send: Any = _send_by_verb if _overrides_sending(client) else send_tracked
    return _send_all(partial(send, client), requests, max_in_flight, journal)


def asend_all(
    client: AsyncHttpClient | httpx.AsyncClient,
    requests: Requests,
    *,
    max_in_flight: int = 32,
    journal: JournalPath | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Send many requests through one async client, in tasks, and yield each outcome as its call finishes.

    Works like `send_all`, with the same arguments and errors, on asyncio and trio: with an async stkai or httpx client,
    and an iterable or an async iterable of requests. `aclose()` cancels the requests in flight:
    `async with contextlib.aclosing(stkai.asend_all(...)) as outcomes`.
    """
    if not isinstance(client, alike(AsyncHttpClient, httpx.AsyncClient)):
        raise _unfit("asend_all", client, "a stkai.AsyncHttpClient or an httpx.AsyncClient", "send_all")
    _check(requests, max_in_flight, (Iterable, AsyncIterable))
    return _asend_all(partial(asend_tracked, client), requests, max_in_flight, journal)


def _check(requests: object, max_in_flight: int, kinds: Any) -> None:
    check_number("max_in_flight", max_in_flight, POSITIVE_COUNT, error=InvalidArgumentError)
    if not isinstance(requests, kinds):
        raise InvalidArgumentError(f"requests must be an iterable of httpx.Request objects, not {requests!r}")


class _OutcomeLog(RunState):
    """The state of the requests, by index; kept in a journal if there is one."""

    def open(self, path: JournalPath | None) -> None:
        if path is not None:
            self.journal = Journal(full_path(path, "journal"))
            if self.journal.header is None:
                self.journal.begin("send_all", {})
            elif self.journal.header.kind != "send_all":
                msg = f"{path} is the journal of `stkai batch`; choose another file for send_all"
                raise ConfigurationError(msg)
            self.recovered = self.journal.recover(LineStates())
            if done := self.recovered.states.count(LineState.DONE):
                logger.warning(
                    "not sent again: %d requests whose outcomes an earlier run with the journal %s has returned;"
                    " other requests need another journal",
                    done,
                    path,
                )

    def send(self, send: Callable[[httpx.Request, Tracker], T], index: int, request: httpx.Request) -> T:
        """Send a request; refuse one that may have been sent before, and anything that is not a request."""
        if self.recovered.states[index] is LineState.SENT:
            raise OutcomeUnknownError(
                f"request {index} was in flight when an earlier run ended: the server may have acted on it."
                " It was not sent again; to send it, pass it alone to another loop, without this journal"
            )
        check_request(request)
        return send(request, Tracker(self, index))

    @contextmanager
    def handing_out(self, outcome: Outcome) -> Iterator[None]:
        """Mark the outcome as handed out when the caller asks for the next one, or leaves the loop."""
        if isinstance(outcome.error, WriteError):
            raise outcome.error
        try:
            yield
        finally:
            self.record("d", outcome.index)

    def close(self) -> None:
        self.ending.run()
        if self.journal is not None:
            self.journal.close()


async def _wanted(requests: Requests, log: _OutcomeLog) -> AsyncGenerator[tuple[int, httpx.Request], None]:
    index = 0
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            if log.wants(index):
                yield index, request
            index += 1
    else:
        for index, request in enumerate(requests):
            if log.wants(index):
                yield index, request


async def _asend_all(
    send: Callable[[httpx.Request, Tracker], Awaitable[httpx.Response]],
    requests: Requests,
    limit: int,
    path: JournalPath | None,
) -> AsyncGenerator[Outcome, None]:
    with closing(_OutcomeLog()) as log:
        log.open(path)
        async with OutcomesInTasks(partial(log.send, send), _wanted(requests, log), limit) as outcomes:
            async for outcome in outcomes:
                with log.handing_out(outcome):
                    yield outcome


def _send_all(
    send: Callable[[httpx.Request, Tracker], httpx.Response],
    requests: Iterable[httpx.Request],
    limit: int,
    path: JournalPath | None,
) -> Generator[Outcome, None, None]:
    with closing(_OutcomeLog()) as log:
        log.open(path)
        wanted = (item for item in enumerate(requests) if log.wants(item[0]))
        sent = outcomes_in_threads(partial(log.send, send), wanted, limit, log.ending.run)
        with closing(sent) as outcomes:
            for outcome in outcomes:
                with log.handing_out(outcome):
                    yield outcome


def _overrides_sending(client: object) -> bool:
    """Whether it is a client of stkai that overrides how it sends; True for a mock of one."""
    ours = vars(HttpClient)
    return isinstance(client, HttpClient) and any(
        getattr(type(client), name, None) is not ours[name] for name in ("post", "send", "_send")
    )


def _send_by_verb(client: HttpClient, request: httpx.Request, tracker: Tracker) -> httpx.Response:
    """Send through a client that overrides the verbs, and takes JSON instead of a request.

    The client may pass the request to the wire at any time, so from now on it counts as sent.
    """
    tracker.about_to_send()
    headers = {name: value for name, value in request.headers.items() if name not in SET_BY_CLIENTS}
    timeout = request.extensions.get("timeout", {}).get("read") or TIMEOUT
    if request.method == "GET":
        return client.get(str(request.url), headers, timeout)
    if request.method != "POST":
        raise InvalidArgumentError(f"{type(client).__name__} sends GET and POST only, not {request.method}")
    content = request.read()
    try:
        data = json.loads(content) if content else None
    except ValueError as error:
        raise InvalidArgumentError(f"{type(client).__name__} sends JSON only: {error}") from error
    return client.post(str(request.url), data, headers, timeout)


def _unfit(function: str, client: object, wanted: str, other: str) -> ConfigurationError:
    hint = ""
    if isinstance(client, alike(HttpClient, httpx.Client, AsyncHttpClient, httpx.AsyncClient)):
        hint = f"; use stkai.{other} with this client"
    return ConfigurationError(f"{function} needs {wanted}, not {client!r}{hint}")
