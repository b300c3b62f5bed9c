"""`send_all` and `asend_all`: many requests through one client, a few at a time, outcomes as they come."""

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from .._client import AsyncHttpClient, HttpClient
from .._errors import InvalidArgumentError
from .crew import new_crew
from .ledger import Ledger, open_ledger
from .outcome import Outcome
from .senders import AsyncSend, Send, async_sender, check_request, sender

if TYPE_CHECKING:
    Path = str | os.PathLike[str]
    Requests = Iterable[httpx.Request] | AsyncIterable[httpx.Request]


def send_all(
    client: HttpClient | httpx.Client,
    requests: Iterable[httpx.Request],
    *,
    max_in_flight: int = 32,
    journal: "Path | None" = None,
) -> Generator[Outcome, None, None]:
    """Send many requests through one client, in threads, and yield each outcome as it comes.

    A request that fails is an outcome with an `error`; it stops nothing. The iterable is read in the thread of the
    caller, and never more than `max_in_flight` requests beyond the outcomes that were handed out. What the iterable
    raises comes out of the loop, after the outcomes of the requests that were read. `close()` sends nothing more and
    waits for what is in flight: `with contextlib.closing(stkai.send_all(...)) as outcomes`.

    Args:
        client: any sync client of stkai's or httpx's. Outside a `with` block of its own, it stays open.
        requests: from `client.build_request(...)`, or `httpx.Request` objects.
        max_in_flight: how many requests are under way at once.
        journal: a file that remembers which requests were sent, so that a second run over the same requests skips
            those whose outcome was handed out. One that was in flight when the first run was killed is not sent
            again: its outcome is an `OutcomeUnknownError`.

    Raises:
        ConfigurationError: the client is not a sync one, or the journal is in use or not one.
        InvalidArgumentError: `max_in_flight` is not a whole number from 1 up, or `requests` is not an iterable.
    """
    send = sender(client)
    _check(requests, max_in_flight, Iterable)
    return _send_all(send, requests, max_in_flight, journal)


def asend_all(
    client: AsyncHttpClient | httpx.AsyncClient,
    requests: "Requests",
    *,
    max_in_flight: int = 32,
    journal: "Path | None" = None,
) -> AsyncGenerator[Outcome, None]:
    """Send many requests through one async client, in tasks, and yield each outcome as it comes.

    As `send_all`, on asyncio and trio. The iterable may be an async one. `aclose()` cancels what is in flight:
    `async with contextlib.aclosing(stkai.asend_all(...)) as outcomes`.

    Args:
        client: any async client of stkai's or httpx's.
        requests: an iterable or an async iterable of requests.
        max_in_flight: how many requests are under way at once.
        journal: as for `send_all`.

    Raises:
        ConfigurationError: the client is not an async one, or the journal is in use or not one.
        InvalidArgumentError: `max_in_flight` is not a whole number from 1 up, or `requests` is not an iterable.
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


class _Source:
    """The requests with their numbers, without those whose outcome is known from an earlier run.

    Attributes:
        failure: what the iterable raised, to be raised when the outcomes of all that was read are handed out.
        ended: nothing more will come.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._count = 0
        self.failure: Exception | None = None
        self.ended = False

    def end(self, failure: Exception | None = None) -> None:
        self.failure, self.ended = failure, True

    def take(self, requests: Iterator[httpx.Request]) -> tuple[int, httpx.Request, Outcome | None] | None:
        """The next request to send, or one whose outcome is there already; None at the end."""
        try:
            for request in requests:
                taken = self.number(request)
                if taken is not None:
                    return taken
            self.end()
        except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
            self.end(error)
        return None

    def number(self, request: httpx.Request) -> tuple[int, httpx.Request, Outcome | None] | None:
        """The request with its number; None where an earlier run handed out its outcome."""
        index = self._count
        self._count += 1
        fate = self._ledger.begin(index)
        if fate == "done":
            return None
        return (
            index,
            request,
            None if fate == "new" else Outcome(index, request, None, self._ledger.unknown(index)),
        )


def _send_all(
    send: Send, requests: Iterable[httpx.Request], most: int, journal: "Path | None"
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
            source = _Source(ledger)
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


class _Flight:
    """The requests under way in tasks, and the outcomes that nobody has taken yet."""

    def __init__(self, send: AsyncSend, most: int, source: _Source) -> None:
        self._send, self._most, self.source = send, most, source
        self.crew = new_crew()
        self.ready: deque[Outcome] = deque()
        self.failure: BaseException | None = None
        self.pending = 0
        self._news: anyio.Event | None = None
        self._room: anyio.Event | None = None

    @property
    def has_room(self) -> bool:
        return self.pending < self._most

    def start(self, index: int, request: httpx.Request, known: Outcome | None) -> None:
        self.pending += 1
        if known is None:
            self.crew.start(partial(self._work, index, request))
        else:
            self._put(known)

    async def _work(self, index: int, request: httpx.Request) -> None:
        try:
            check_request(request)
            outcome = Outcome(index, request, await self._send(request), None)
        except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
            outcome = Outcome(index, request, None, error)
        except (KeyboardInterrupt, SystemExit) as error:  # Raised by the generator, in the caller's task.
            self.failure = error
            self._tell()
            return
        self._put(outcome)

    def _put(self, outcome: Outcome) -> None:
        self.ready.append(outcome)
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    def take(self) -> Outcome:
        """An outcome to hand out, which makes room for another request."""
        self.pending -= 1
        if self._room is not None:
            self._room.set()
            self._room = None
        return self.ready.popleft()

    async def wait(self) -> None:
        """Wait until there is an outcome, or nothing left to wait for.

        Raises:
            KeyboardInterrupt, SystemExit: a call raised it.
        """
        if not self.ready and self.failure is None:
            self._news = anyio.Event()
            await self._news.wait()
        if self.failure is not None:
            raise self.failure

    async def feed(self, requests: AsyncIterable[httpx.Request]) -> None:
        """Read an async iterable to its end, as far as there is room."""
        reading = aiter(requests)
        try:
            while True:
                while not self.has_room:
                    self._room = anyio.Event()
                    await self._room.wait()
                try:
                    request = await anext(reading)
                except StopAsyncIteration:
                    break
                taken = self.source.number(request)
                if taken is not None:
                    self.start(*taken)
            self.source.end()
        except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
            self.source.end(error)
        except (KeyboardInterrupt, SystemExit) as error:
            self.failure = error
        self._tell()

    def fill(self, requests: Iterator[httpx.Request]) -> None:
        """Start requests of an iterable, as far as there is room."""
        while self.has_room and not self.source.ended:
            taken = self.source.take(requests)
            if taken is not None:
                self.start(*taken)


async def outcomes_of(
    send: AsyncSend, requests: "Requests", most: int, journal: "Path | None" = None
) -> AsyncGenerator[Outcome, None]:
    """What `asend_all` does, with any coroutine function that sends."""
    with open_ledger(journal, most) as ledger:
        flight = _Flight(send, most, _Source(ledger))
        fill: Callable[[], object] = bool
        if isinstance(requests, AsyncIterable):
            flight.crew.start(partial(flight.feed, requests))
        else:
            fill = partial(flight.fill, iter(requests))
        try:
            fill()
            while flight.pending or not flight.source.ended:
                await flight.wait()
                while flight.ready:
                    outcome = flight.take()
                    with ledger.handing_out(outcome.index):
                        yield outcome
                    fill()
            if flight.source.failure is not None:
                raise flight.source.failure
        finally:
            await flight.crew.close()
