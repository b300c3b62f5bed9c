"""Sends many requests in tasks, a few at a time, and yields their outcomes: for `asend_all` and `stkai batch`."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import anyio
import httpx

AsyncSend = Callable[[int, httpx.Request], Awaitable[httpx.Response]]
"""Sends the request with this index."""

Requests = Iterable[httpx.Request] | AsyncIterable[httpx.Request]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request of `send_all` or `asend_all`: a response or an error, never both.

    Attributes:
        index: the position of the request in the iterable, from 0.
        request: the request from the iterable.
        response: the answer, with its body read; this includes statuses such as 404 and 500.
        error: the exception that the call raised.
    """

    index: int
    request: httpx.Request
    response: httpx.Response | None
    error: Exception | None


class RequestJournal(Protocol):
    """What earlier runs have left behind."""

    def known(self, index: int) -> Exception | bool:
        """True if the outcome was handed out before; an error if that is to be the outcome."""
        ...


class Reader:
    """Numbers the requests of an iterable, and skips those whose outcome was handed out before.

    Attributes:
        failure: the error that the iterable raised, to be raised once all outcomes so far are handed out.
        has_ended: no more requests will come.
    """

    def __init__(self, journal: RequestJournal | None = None) -> None:
        self._journal = journal
        self._count = 0
        self.failure: Exception | None = None
        self.has_ended = False

    def end(self, failure: Exception | None = None) -> None:
        self.failure, self.has_ended = failure, True

    def take(self, requests: Iterator[httpx.Request]) -> Outcome | None:
        """The next request, as an outcome that may have an error already; None at the end."""
        if self.has_ended:
            return None
        try:
            for request in requests:
                taken = self.number(request)
                if taken is not None:
                    return taken
            self.end()
        except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
            self.end(error)
        return None

    def number(self, request: httpx.Request) -> Outcome | None:
        """The request with its index; None if its outcome was handed out before."""
        index = self._count
        self._count += 1
        known = False if self._journal is None else self._journal.known(index)
        return None if known is True else Outcome(index, request, None, known or None)


class BackgroundTasks:
    """Tasks owned by an async generator, cancelled when it closes, on asyncio and trio.

    A task group inside an async generator would stay open while the generator is suspended, and its cancel scope would
    then enclose the caller's code. These tasks belong to the event loop instead. They must raise nothing but the
    cancellation.
    """

    def __init__(self) -> None:
        trio: Any = sys.modules.get("trio")
        self._trio = trio if trio is not None and trio.lowlevel.in_trio_task() else None
        self._running: set[Any] = set()
        self._is_closed = False
        self._have_ended = anyio.Event()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in a task of its own, unless they are being closed."""
        if self._is_closed:
            return
        if self._trio is None:
            task = asyncio.get_running_loop().create_task(work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        else:
            scope = self._trio.CancelScope()
            self._running.add(scope)
            self._trio.lowlevel.spawn_system_task(self._run, work, scope, context=copy_context())

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]], scope: Any) -> None:
        try:
            with scope:
                await work()
        finally:
            self._running.discard(scope)
            if self._is_closed and not self._running:
                self._have_ended.set()

    async def close(self) -> None:
        """Cancel what runs, and return when it has ended."""
        self._is_closed = True
        running = list(self._running)
        for each in running:
            each.cancel()
        with anyio.CancelScope(shield=True):
            if running and self._trio is None:
                await asyncio.wait(running)
            elif running:
                await self._have_ended.wait()


class _InFlight:
    """The requests in flight, and the outcomes not handed out yet."""

    def __init__(self, send: AsyncSend, most: int, reader: Reader) -> None:
        self._send, self._most, self.reader = send, most, reader
        self.tasks = BackgroundTasks()
        self.ready: deque[Outcome] = deque()
        self.failure: BaseException | None = None
        self.pending = 0
        self._changed: anyio.Event | None = None
        self._has_room: anyio.Event | None = None

    def start(self, taken: Outcome) -> None:
        self.pending += 1
        if taken.error is None:
            self.tasks.start(partial(self._work, taken.index, taken.request))
        else:
            self._put(taken)

    async def _work(self, index: int, request: httpx.Request) -> None:
        try:
            outcome = Outcome(index, request, await self._send(index, request), None)
        except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
            outcome = Outcome(index, request, None, error)
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._fail(error)
            return
        self._put(outcome)

    def _fail(self, error: BaseException) -> None:
        """Let the generator raise it, in the caller's task; a cancellation ends this one as well."""
        self.failure = error
        self._notify()
        if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit)):
            raise error

    def _put(self, outcome: Outcome) -> None:
        self.ready.append(outcome)
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def take(self) -> Outcome:
        """An outcome to hand out, which makes room for another request."""
        self.pending -= 1
        if self._has_room is not None:
            self._has_room.set()
            self._has_room = None
        return self.ready.popleft()

    async def wait(self) -> None:
        """Wait until there is an outcome, or nothing left to wait for.

        Raises:
            BaseException: a call raised it, and it is not an Exception.
        """
        if not self.ready and self.failure is None:
            self._changed = anyio.Event()
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure

    async def feed(self, requests: AsyncIterable[httpx.Request]) -> None:
        """Read an async iterable to its end, whenever there is room."""
        reading = aiter(requests)
        try:
            while True:
                while self.pending >= self._most:
                    self._has_room = anyio.Event()
                    await self._has_room.wait()
                try:
                    request = await anext(reading)
                except StopAsyncIteration:
                    break
                taken = self.reader.number(request)
                if taken is not None:
                    self.start(taken)
            self.reader.end()
        except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
            self.reader.end(error)
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._fail(error)
        self._notify()

    def fill(self, requests: Iterator[httpx.Request]) -> None:
        """Start requests from an iterable while there is room."""
        while self.pending < self._most and (taken := self.reader.take(requests)) is not None:
            self.start(taken)


async def outcomes_of(
    send: AsyncSend, requests: Requests, most: int, journal: RequestJournal | None = None
) -> AsyncGenerator[Outcome, None]:
    """Send all requests, at most that many at a time, and yield each outcome as its call finishes."""
    in_flight = _InFlight(send, most, Reader(journal))
    fill: Callable[[], object] = bool
    if isinstance(requests, AsyncIterable):
        in_flight.tasks.start(partial(in_flight.feed, requests))
    else:
        fill = partial(in_flight.fill, iter(requests))
    try:
        fill()
        while in_flight.pending or not in_flight.reader.has_ended:
            await in_flight.wait()
            while in_flight.ready:
                yield in_flight.take()
                fill()
        if in_flight.reader.failure is not None:
            raise in_flight.reader.failure
    finally:
        await in_flight.tasks.close()
