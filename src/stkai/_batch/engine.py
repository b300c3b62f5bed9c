"""Sends many requests in tasks, a few at a time, and yields their outcomes: for `asend_all` and `stkai batch`."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import httpx

AsyncSend = Callable[[int, httpx.Request], Awaitable[httpx.Response]]
"""Sends the request with this index."""

_END: Final[Any] = object()

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


Known = Callable[[int], Exception | bool]
"""True if the outcome of this index was handed out before; an error if that is to be its outcome."""


def pending_outcome(index: int, request: httpx.Request, known: Known) -> Outcome | None:
    """The outcome of a request before it is sent, which may be an error; None if it was handed out before."""
    found = known(index)
    return None if found is True else Outcome(index, request, None, found or None)


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


async def _acquire(semaphore: anyio.Semaphore) -> None:
    """Acquire it without letting other tasks run if that is possible."""
    try:
        semaphore.acquire_nowait()
    except anyio.WouldBlock:
        await semaphore.acquire()


class _InFlight:
    """The requests in flight, and the outcomes not handed out yet.

    Attributes:
        places: one is taken for each request that is read, and given back when its outcome is handed out.
        failure: what the iterable raised, to be raised once all outcomes so far are handed out.
    """

    def __init__(self, send: AsyncSend, most: int) -> None:
        self.tasks = BackgroundTasks()
        self.places = anyio.Semaphore(most)
        self.failure: Exception | None = None
        self._send, self._most = send, most
        self._finished: deque[Outcome | BaseException | None] = deque()
        self._arrivals = anyio.Semaphore(0)

    async def feed(self, requests: Requests, known: Known) -> None:
        """Read the requests to their end, and start each once there is a place."""
        try:
            await self._start_all(requests, known)
        except Exception as error:  # noqa: BLE001 - the caller's iterable; raised when its time comes
            self.failure = error
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._crash(error)
        for _ in range(self._most - 1):
            await _acquire(self.places)
        self._put(None)

    async def _start_all(self, requests: Requests, known: Known) -> None:
        """Returns, or raises what the iterable raises, with a place that no request has taken."""
        await _acquire(self.places)
        reading = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        index = 0
        while True:
            request = next(reading, _END) if isinstance(reading, Iterator) else await anext(reading, _END)
            if request is _END:
                return
            taken = pending_outcome(index, request, known)
            index += 1
            if taken is None:
                continue
            if taken.error is None:
                self.tasks.start(partial(self._work, taken.index, taken.request))
            else:
                self._put(taken)
            await _acquire(self.places)

    async def _work(self, index: int, request: httpx.Request) -> None:
        try:
            outcome = Outcome(index, request, await self._send(index, request), None)
        except Exception as error:  # noqa: BLE001 - whatever the call raises is its outcome
            outcome = Outcome(index, request, None, error)
        except BaseException as error:  # noqa: BLE001 - raised by the generator
            self._crash(error)
            return
        self._put(outcome)

    def _crash(self, error: BaseException) -> None:
        """Let the generator raise it, in the caller's task; a cancellation ends this one as well."""
        self._put(error)
        if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit)):
            raise error

    def _put(self, outcome: Outcome | BaseException | None) -> None:
        self._finished.append(outcome)
        self._arrivals.release()

    async def next(self) -> Outcome | None:
        """The next outcome to hand out, which makes room for another request; None when there are no more.

        Raises:
            BaseException: a call raised it, and it is not an Exception.
        """
        await _acquire(self._arrivals)
        outcome = self._finished.popleft()
        if isinstance(outcome, BaseException):
            raise outcome
        self.places.release()
        return outcome


async def outcomes_of(
    send: AsyncSend, requests: Requests, most: int, known: Known = lambda _: False
) -> AsyncGenerator[Outcome, None]:
    """Send all requests, at most that many at a time, and yield each outcome as its call finishes."""
    in_flight = _InFlight(send, most)
    in_flight.tasks.start(partial(in_flight.feed, requests, known))
    try:
        while (outcome := await in_flight.next()) is not None:
            yield outcome
        if in_flight.failure is not None:
            raise in_flight.failure
    finally:
        await in_flight.tasks.close()
