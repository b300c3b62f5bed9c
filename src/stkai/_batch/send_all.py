"""`send_all` and `asend_all`: many requests through one client, a few at a time, with outcomes as calls finish."""

import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import httpx

from .._checks import POSITIVE_COUNT, check_number
from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError
from .._families import alike
from .client_senders import OnSend, async_sender, sender
from .engine import Outcome, Reader, Requests, outcomes_of
from .errors import OutcomeUnknownError, WriteError
from .job_state import LineState, LineStates
from .journal import Journal

JournalPath = str | os.PathLike[str]


def send_all(
    client: HttpClient | httpx.Client,
    requests: Iterable[httpx.Request],
    *,
    max_in_flight: int = 32,
    journal: JournalPath | None = None,
) -> Generator[Outcome, None, None]:
    """Send many requests through one client, in threads, and yield each outcome as its call finishes.

    A request that fails yields an outcome with an `error` and does not stop the others. The iterable is read in the
    caller's thread, at most `max_in_flight` requests ahead of the outcomes yielded. If the iterable raises, the loop
    raises that error after the outcomes of the requests read so far. `close()` stops sending and waits for the
    requests in flight: `with contextlib.closing(stkai.send_all(...)) as outcomes`.

    Args:
        client: any sync stkai or httpx client; it is not closed.
        requests: from `client.build_request(...)`, or `httpx.Request` objects.
        max_in_flight: the most requests in flight at once.
        journal: a file that records which requests were sent, so that a second run over the same requests skips
            those whose outcomes were yielded. A request that was in flight when the first run ended is not sent
            again: its outcome is an `OutcomeUnknownError`.

    Raises:
        ConfigurationError: the client is not a sync client, or the journal is in use or not a journal.
        InvalidArgumentError: `max_in_flight` is not an integer of at least 1, or `requests` is not an iterable.
    """
    send = sender(client)
    _check(requests, max_in_flight, Iterable)
    return _send_all(send, requests, max_in_flight, journal)


def asend_all(
    client: AsyncHttpClient | httpx.AsyncClient,
    requests: Requests,
    *,
    max_in_flight: int = 32,
    journal: JournalPath | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Send many requests through one async client, in tasks, and yield each outcome as its call finishes.

    Works like `send_all`, on asyncio and trio, and also takes async iterables. `aclose()` cancels the requests in
    flight: `async with contextlib.aclosing(stkai.asend_all(...)) as outcomes`.

    Args:
        client: any async stkai or httpx client; it is not closed.
        requests: an iterable or an async iterable of requests.
        max_in_flight: the most requests in flight at once.
        journal: as for `send_all`.

    Raises:
        ConfigurationError: the client is not an async client, or the journal is in use or not a journal.
        InvalidArgumentError: `max_in_flight` is not an integer of at least 1, or `requests` is not an iterable.
    """
    send = async_sender(client)
    _check(requests, max_in_flight, (Iterable, AsyncIterable))
    return _asend_all(send, requests, max_in_flight, journal)


def _check(requests: object, max_in_flight: int, kinds: Any) -> None:
    check_number("max_in_flight", max_in_flight, POSITIVE_COUNT, error=InvalidArgumentError)
    if not isinstance(requests, kinds):
        msg = f"requests must be an iterable of httpx.Request objects, not {requests!r}"
        raise InvalidArgumentError(msg)


class _RequestJournal:
    """Remembers in a journal which requests were sent and which outcomes were handed out, by index.

    Raises:
        ConfigurationError: another run uses it, or it is the journal of `stkai batch`, or not a journal at all.
    """

    def __init__(self, path: JournalPath, max_in_flight: int) -> None:
        self._journal = Journal.open(Path(path))
        self._unsent: set[int] = set()
        """Requests that are in the journal, and have not been sent yet."""
        try:
            if self._journal.header is None:
                self._journal.begin("send_all", {})
            elif self._journal.header.kind != "send_all":
                msg = f"{path} is the journal of `stkai batch`; choose another file for send_all"
                raise ConfigurationError(msg)
            self._recovered = self._journal.recover(LineStates())
            self._journal.limit(max_in_flight)
        except BaseException:
            self._journal.close()
            raise

    def begin(self, index: int) -> Exception | bool:
        """True if the outcome was handed out before, an error if it is unknown; a new one is about to be sent."""
        state = self._recovered.begin(index)
        if state is LineState.SENT:
            msg = (
                f"request {index} was in flight when an earlier run ended: the server may have acted on it."
                " It was not sent again; to send it, use a new journal"
            )
            return OutcomeUnknownError(msg)
        if state is LineState.NEW:
            self._journal.sent(index)
            self._unsent.add(index)
        return state is not LineState.NEW

    def sending(self, index: int, is_sent: bool) -> None:
        """Whether the request goes to the wire. For any thread."""
        if is_sent:
            self._unsent.discard(index)
        else:
            self._unsent.add(index)

    @contextmanager
    def handing_out(self, index: int) -> Iterator[None]:
        """The outcome counts as handed out when the caller asks for the next one, or leaves the loop."""
        try:
            yield
        finally:
            self._unsent.discard(index)
            self._journal.handed_out(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(WriteError):  # Then they count as sent, which is safe.
            self._journal.not_sent(*sorted(self._unsent))
        self._journal.close()


async def _asend_all(
    send: Callable[[httpx.Request, OnSend], Awaitable[httpx.Response]],
    requests: Requests,
    most: int,
    path: JournalPath | None,
) -> AsyncGenerator[Outcome, None]:
    with nullcontext() if path is None else _RequestJournal(path, most) as journal:

        async def work(index: int, request: httpx.Request) -> httpx.Response:
            _check_request(request)
            return await send(request, None if journal is None else partial(journal.sending, index))

        async with aclosing(outcomes_of(work, requests, most, journal)) as outcomes:
            async for outcome in outcomes:
                with nullcontext() if journal is None else journal.handing_out(outcome.index):
                    yield outcome


def _send_all(
    send: Callable[[httpx.Request, OnSend], httpx.Response],
    requests: Iterable[httpx.Request],
    most: int,
    path: JournalPath | None,
) -> Generator[Outcome, None, None]:
    ready: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    with nullcontext() if path is None else _RequestJournal(path, most) as journal:

        def work(index: int, request: httpx.Request) -> None:
            try:
                _check_request(request)
                on_send = None if journal is None else partial(journal.sending, index)
                outcome = Outcome(index, request, send(request, on_send), None)
            except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
                outcome = Outcome(index, request, None, error)
            except BaseException as error:  # noqa: BLE001 - raised by the generator, in the caller's thread
                ready.put(error)
                return
            ready.put(outcome)

        reading, pending, reader = iter(requests), 0, Reader(journal)
        pool = ThreadPoolExecutor(most, thread_name_prefix="stkai.send_all")
        try:
            while True:
                while pending < most and (taken := reader.take(reading)) is not None:
                    pending += 1
                    if taken.error is None:
                        pool.submit(copy_context().run, work, taken.index, taken.request)
                    else:
                        ready.put(taken)
                if not pending:
                    break
                outcome = ready.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                pending -= 1
                with nullcontext() if journal is None else journal.handing_out(outcome.index):
                    yield outcome
            if reader.failure is not None:
                raise reader.failure
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_request(request: object) -> None:
    if not isinstance(request, alike(httpx.Request)):
        msg = f"requests must be httpx.Request objects, as from client.build_request(...), not {request!r}"
        raise InvalidArgumentError(msg)
