"""Sends many requests concurrently, in tasks or in threads, and yields their outcomes as calls finish."""

import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Self

import anyio
import httpx

from .._abandonable import Worker
from .._errors import ConfigurationError
from .._event_loops import asyncio_loop

AsyncSend = Callable[[int, Any], Awaitable[httpx.Response]]
"""Sends the request with this index; the sender decides what its second argument is."""


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


async def _acquire(semaphore: anyio.Semaphore) -> None:
    """Acquire a semaphore, if possible without letting other tasks run."""
    try:
        semaphore.acquire_nowait()
    except anyio.WouldBlock:
        await semaphore.acquire()


class OutcomesInTasks:
    """Sends indexed requests, at most `limit` at a time, in an `async with` block; iterate over it for the outcomes.

    Not an async generator: asyncio closes all of them at once when its loop ends, which fails for nested ones. The work
    runs in a task of the event loop, on asyncio and trio. A task group would stay open while the async generator around
    it is suspended, and its cancel scope would then enclose the caller's code.
    """

    def __init__(self, send: AsyncSend, requests: AsyncGenerator[tuple[int, Any], None], limit: int) -> None:
        self._send, self._requests = send, requests
        self._slots = anyio.Semaphore(limit)
        """Acquired for each request that is read, and released when its outcome is handed out."""
        self._finished: deque[Outcome | BaseException | None] = deque()
        self._arrivals = anyio.Semaphore(0)
        self._new: dict[int, Coroutine[Any, Any, None]] = {}  # The work of tasks that have not started yet.
        self._scope, self._has_ended = anyio.CancelScope(), anyio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio_loop()
        if loop is not None:
            self._task = loop.create_task(self._run())
        else:
            trio: Any = sys.modules["trio"]
            trio.lowlevel.spawn_system_task(self._run, context=copy_context())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._has_ended.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        await _acquire(self._arrivals)
        outcome = self._finished.popleft()
        if outcome is None:
            raise StopAsyncIteration
        if isinstance(outcome, BaseException):
            raise outcome
        self._slots.release()
        return outcome

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._feed()
        finally:
            self._has_ended.set()

    async def _feed(self) -> None:
        """Read all requests, start each once there is a free slot, and wait until all have ended."""
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                try:
                    await _acquire(self._slots)
                    async with aclosing(self._requests) as requests:
                        async for index, request in requests:
                            self._new[index] = self._work(index, request)
                            group.start_soon(self._new.__getitem__, index)
                            await _acquire(self._slots)
                except Exception as error:  # noqa: BLE001 - the caller's iterable; raised after the outcomes
                    failure = error
                except BaseException as error:  # noqa: BLE001 - raised in the caller's task
                    self._crash(error)
        finally:
            for work in self._new.values():
                # The loop has ended, and cancelled these tasks before they started.
                work.close()
        self._put(failure)

    async def _work(self, index: int, request: Any) -> None:
        del self._new[index]
        try:
            self._put(Outcome(index, request, await self._send(index, request), None))
        except Exception as error:  # noqa: BLE001 - what the call raises is its outcome
            self._put(Outcome(index, request, None, error))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's task
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """Raise the error in the caller's task; a cancellation ends this task too."""
        self._put(error)
        if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit)):
            raise error

    def _put(self, outcome: Outcome | BaseException | None) -> None:
        self._finished.append(outcome)
        self._arrivals.release()


def outcomes_in_threads(
    send: Callable[[int, httpx.Request], httpx.Response],
    requests: Iterator[tuple[int, httpx.Request]],
    limit: int,
    end: Callable[[], object],
) -> Generator[Outcome, None, None]:
    """Like `OutcomesInTasks`, in threads; the caller's thread reads the requests. `end` drops those not sent yet."""
    finished: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    threads, pending, has_ended, failure = Worker("stkai.send_all"), 0, False, None
    process = os.getpid()

    def finish(index: int, request: httpx.Request) -> None:
        try:
            finished.put(Outcome(index, request, send(index, request), None))
        except Exception as error:  # noqa: BLE001 - what the call raises is its outcome
            finished.put(Outcome(index, request, None, error))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            finished.put(error)

    try:
        while True:
            while pending < limit and not has_ended:
                try:
                    index, request = next(requests)
                except StopIteration:
                    has_ended = True
                except Exception as error:  # noqa: BLE001 - the caller's iterable; raised after the outcomes
                    has_ended, failure = True, error
                else:
                    work = partial(copy_context().run, finish, index, request)
                    threads.start(work, pending - finished.qsize())
                    pending += 1
            if not pending:
                break
            if os.getpid() != process:  # The threads were not forked: nothing would ever arrive.
                raise ConfigurationError(
                    "a forked process cannot continue its parent's send_all loop:"
                    " leave it there, or fork outside the loop"
                )
            outcome = finished.get()
            pending -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
        if failure is not None:
            raise failure
    finally:
        end()
        threads.join()
