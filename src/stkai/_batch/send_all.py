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
from contextlib import aclosing, contextmanager
from contextvars import copy_context
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import httpx

from .._checks import POSITIVE_COUNT, check_number
from .._client import AsyncHttpClient, HttpClient
from .._errors import ConfigurationError, InvalidArgumentError, OutcomeUnknownError
from .._families import alike
from .append_file import WriteError
from .engine import Outcome, Requests, outcomes_of, unknown_so_far
from .journal import Journal, LineState, LineStates, Recovered
from .senders import RunState, Watch, async_sender, sender

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
        raise InvalidArgumentError(f"requests must be an iterable of httpx.Request objects, not {requests!r}")


class _RequestLog(RunState):
    """What is known about the requests by index; kept in a journal, if there is one.

    Raises:
        ConfigurationError: another run uses the journal, or it is that of `stkai batch`, or not a journal at all.
    """

    def __init__(self, path: JournalPath | None, max_in_flight: int) -> None:
        super().__init__(None if path is None else Journal.open(Path(path)))
        self._recovered = Recovered()
        if self.journal is not None:
            try:
                self._recovered = _recovered(self.journal)
                self.journal.limit(max_in_flight)
            except BaseException:
                self.journal.close()
                raise

    def begin(self, index: int, request: httpx.Request) -> Outcome | None:
        """The outcome of a request before it is sent, an error if it may have been sent before; None if it is done."""
        state = self._recovered.begin(index)
        if state is LineState.SENT:
            msg = (
                f"request {index} was in flight when an earlier run ended: the server may have acted on it."
                " It was not sent again; to send it, use a new journal"
            )
            return Outcome(index, request, None, OutcomeUnknownError(msg))
        return unknown_so_far(index, request) if state is LineState.NEW else None

    @contextmanager
    def handing_out(self, outcome: Outcome) -> Iterator[None]:
        """The outcome counts as handed out when the caller asks for the next one, or leaves the loop.

        Raises:
            WriteError: the request was not sent, because the journal could not be written.
        """
        if isinstance(outcome.error, WriteError):
            raise outcome.error
        try:
            yield
        finally:
            if self.journal is not None:
                self.journal.handed_out(outcome.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal is not None:
            self.journal.close()


def _recovered(journal: Journal) -> Recovered:
    if journal.header is None:
        journal.begin("send_all", {})
    elif journal.header.kind != "send_all":
        msg = f"{journal.file.path} is the journal of `stkai batch`; choose another file for send_all"
        raise ConfigurationError(msg)
    return journal.recover(LineStates())


async def _asend_all(
    send: Callable[[httpx.Request, Watch], Awaitable[httpx.Response]],
    requests: Requests,
    most: int,
    path: JournalPath | None,
) -> AsyncGenerator[Outcome, None]:
    with _RequestLog(path, most) as log:

        async def work(index: int, request: httpx.Request) -> httpx.Response:
            _check_request(request)
            return await send(request, Watch(log, index))

        async with aclosing(outcomes_of(work, requests, most, log.begin)) as outcomes:
            async for outcome in outcomes:
                with log.handing_out(outcome):
                    yield outcome


def _send_all(
    send: Callable[[httpx.Request, Watch], httpx.Response],
    requests: Iterable[httpx.Request],
    most: int,
    path: JournalPath | None,
) -> Generator[Outcome, None, None]:
    ready: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    with _RequestLog(path, most) as log:

        def work(index: int, request: httpx.Request) -> None:
            try:
                _check_request(request)
                outcome = Outcome(index, request, send(request, Watch(log, index)), None)
            except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
                outcome = Outcome(index, request, None, error)
            except BaseException as error:  # noqa: BLE001 - raised by the generator, in the caller's thread
                ready.put(error)
                return
            ready.put(outcome)

        reading = filter(None, map(log.begin, count(), requests))
        pending, has_ended, failure = 0, False, None
        pool = ThreadPoolExecutor(most, thread_name_prefix="stkai.send_all")
        try:
            while True:
                while pending < most and not has_ended:
                    try:
                        taken = next(reading, None)
                    except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
                        taken, failure = None, error
                    if taken is None:
                        has_ended = True
                    elif taken.error is None:
                        pending += 1
                        pool.submit(copy_context().run, work, taken.index, taken.request)
                    else:
                        pending += 1
                        ready.put(taken)
                if not pending:
                    break
                outcome = ready.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                pending -= 1
                with log.handing_out(outcome):
                    yield outcome
            if failure is not None:
                raise failure
        finally:
            log.ending.run()
            pool.shutdown(wait=True, cancel_futures=True)


def _check_request(request: object) -> None:
    if not isinstance(request, alike(httpx.Request)):
        msg = f"requests must be httpx.Request objects, as from client.build_request(...), not {request!r}"
        raise InvalidArgumentError(msg)
