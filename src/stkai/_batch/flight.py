"""Sends many requests in tasks and yields their outcomes: the basis of `asend_all` and `stkai batch`."""

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from functools import partial

import anyio
import httpx

from .crew import new_crew
from .ledger import Ledger, open_ledger
from .outcome import Outcome
from .senders import AsyncSend, check_request

Path = str | os.PathLike[str]
Requests = Iterable[httpx.Request] | AsyncIterable[httpx.Request]


class Source:
    """Numbers the requests, and skips those whose outcome an earlier run handed out.

    Attributes:
        failure: the error that the iterable raised, to be raised once all outcomes so far are handed out.
        ended: no more requests will come.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._count = 0
        self.failure: Exception | None = None
        self.ended = False

    def end(self, failure: Exception | None = None) -> None:
        self.failure, self.ended = failure, True

    def take(self, requests: Iterator[httpx.Request]) -> tuple[int, httpx.Request, Outcome | None] | None:
        """The next request to send, or one whose outcome is already known; None at the end."""
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
        """The request with its number; None if an earlier run handed out its outcome."""
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


class _Flight:
    """The requests in flight, and the outcomes not handed out yet."""

    def __init__(self, send: AsyncSend, most: int, source: Source) -> None:
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
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._fail(error)
            return
        self._put(outcome)

    def _fail(self, error: BaseException) -> None:
        """Let the generator raise it, in the caller's task; a cancellation ends this one as well."""
        self.failure = error
        self._tell()
        if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit)):
            raise error

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
            BaseException: a call raised it, and it is not an Exception.
        """
        if not self.ready and self.failure is None:
            self._news = anyio.Event()
            await self._news.wait()
        if self.failure is not None:
            raise self.failure

    async def feed(self, requests: AsyncIterable[httpx.Request]) -> None:
        """Read an async iterable to its end, whenever there is room."""
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
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._fail(error)
        self._tell()

    def fill(self, requests: Iterator[httpx.Request]) -> None:
        """Start requests from an iterable while there is room."""
        while self.has_room and not self.source.ended:
            taken = self.source.take(requests)
            if taken is not None:
                self.start(*taken)


async def outcomes_of(
    send: AsyncSend, requests: Requests, most: int, journal: Path | None = None
) -> AsyncGenerator[Outcome, None]:
    """Do what `asend_all` does, with any coroutine function that sends."""
    with open_ledger(journal, most) as ledger:
        flight = _Flight(send, most, Source(ledger))
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
