"""`send_all` and `asend_all`: many requests through one client, a few at a time, with outcomes as calls finish."""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

import httpx

from .._client import AsyncHttpClient, HttpClient
from .._errors import InvalidArgumentError
from .flight import Path, Requests, Source, outcomes_of
from .ledger import open_ledger
from .outcome import Outcome
from .senders import Send, async_sender, check_request, sender


def send_all(
    client: HttpClient | httpx.Client,
    requests: Iterable[httpx.Request],
    *,
    max_in_flight: int = 32,
    journal: Path | None = None,
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
            those whose outcomes were yielded. A request that was in flight when the first run was killed is not sent
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
    journal: Path | None = None,
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
    return outcomes_of(send, requests, max_in_flight, journal)


def _check(requests: object, max_in_flight: object, kinds: Any) -> None:
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
        msg = f"max_in_flight must be a whole number from 1 up, not {max_in_flight!r}"
        raise InvalidArgumentError(msg)
    if not isinstance(requests, kinds):
        msg = f"requests must be an iterable of httpx.Request objects, not {requests!r}"
        raise InvalidArgumentError(msg)


def _send_all(
    send: Send, requests: Iterable[httpx.Request], most: int, journal: Path | None
) -> Generator[Outcome, None, None]:
    ready: SimpleQueue[Outcome | BaseException] = SimpleQueue()

    def work(index: int, request: httpx.Request) -> None:
        try:
            check_request(request)
            outcome = Outcome(index, request, send(request), None)
        except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
            outcome = Outcome(index, request, None, error)
        except BaseException as error:  # noqa: BLE001 - raised by the generator, in the caller's thread
            ready.put(error)
            return
        ready.put(outcome)

    reading, pending = iter(requests), 0
    pool = ThreadPoolExecutor(most, thread_name_prefix="stkai.send_all")
    try:
        with open_ledger(journal, most) as ledger:
            source = Source(ledger)
            while True:
                while pending < most and not source.ended:
                    taken = source.take(reading)
                    if taken is None:
                        break
                    index, request, known = taken
                    pending += 1
                    if known is None:
                        pool.submit(copy_context().run, work, index, request)
                    else:
                        ready.put(known)
                if not pending:
                    break
                outcome = ready.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                pending -= 1
                with ledger.handing_out(outcome.index):
                    yield outcome
            if source.failure is not None:
                raise source.failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
