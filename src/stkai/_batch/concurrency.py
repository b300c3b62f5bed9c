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

from .._abandonable import AbandonableWork, NoThreadError, start_in_thread
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
                    self._raise_in_caller(error)
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
            self._raise_in_caller(error)

    def _raise_in_caller(self, error: BaseException) -> None:
        """Raise the error in the caller's task; a cancellation ends this task too."""
        self._put(error)
        if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit)):
            raise error

    def _put(self, outcome: Outcome | BaseException | None) -> None:
        self._finished.append(outcome)
        self._arrivals.release()


class _CallsInThreads:
    """The calls in progress of one loop, each in a thread."""

    def __init__(self, send: Callable[[int, httpx.Request], httpx.Response]) -> None:
        self._send, self._process = send, os.getpid()
        self._finished: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self.begun: dict[int, AbandonableWork] = {}  # Without those whose outcome was returned.

    def start(self, index: int, request: httpx.Request) -> bool:
        """Start a call; False if the system allows no more threads, and others must end first."""
        work = AbandonableWork(partial(self._call, index, request))
        try:
            start_in_thread(work.run, "stkai.send_all")
        except NoThreadError:
            if not self.begun:
                raise
            return False
        self.begun[index] = work
        return True

    def _call(self, index: int, request: httpx.Request) -> None:
        try:
            self._finished.put(Outcome(index, request, self._send(index, request), None))
        except Exception as error:  # noqa: BLE001 - what the call raises is its outcome
            self._finished.put(Outcome(index, request, None, error))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._finished.put(error)

    def outcome(self) -> Outcome:
        """Wait for the outcome of any call."""
        if os.getpid() != self._process:  # The threads were not forked: nothing would ever arrive.
            raise ConfigurationError(
                "a forked process cannot continue its parent's send_all loop:"
                " leave it there, or fork outside the loop"
            )
        outcome = self._finished.get()
        if isinstance(outcome, BaseException):
            raise outcome
        del self.begun[outcome.index]
        return outcome

    def join(self) -> None:
        """Wait until all calls have ended, unless their threads do not run in this process, or no more."""
        if os.getpid() == self._process and not sys.is_finalizing():
            for work in self.begun.values():
                work.wait()


def outcomes_in_threads(
    send: Callable[[int, httpx.Request], httpx.Response],
    requests: Iterator[tuple[int, httpx.Request]],
    limit: int,
    end: Callable[[], object],
) -> Generator[Outcome, None, None]:
    """Like `OutcomesInTasks`, in threads; the caller's thread reads the requests. `end` drops those not sent yet."""
    calls, has_ended, failure = _CallsInThreads(send), False, None
    held: list[tuple[int, httpx.Request]] = []  # The next request, if no thread could be started for it.
    try:
        while True:
            while len(calls.begun) < limit and not has_ended:
                try:
                    item = held.pop() if held else next(requests)
                except StopIteration:
                    has_ended = True
                except Exception as error:  # noqa: BLE001 - the caller's iterable; raised after the outcomes
                    has_ended, failure = True, error
                else:
                    if not calls.start(*item):
                        held.append(item)
                        break
            if not calls.begun:
                break
            yield calls.outcome()
        if failure is not None:
            raise failure
    finally:
        end()
        calls.join()
