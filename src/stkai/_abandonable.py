"""Work in another thread whose caller may stop waiting for it.

A blocking call cannot be interrupted, but the wait for it can: by a deadline, by cancellation, by Ctrl-C. Work that has
been given up starts nothing new: before it sends, it checks whether it is `abandoned`. The threads are daemons, so that
a program can exit while a server hangs.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import ref

import httpx

from ._clock import SystemClock
from ._errors import RetryableError
from ._event_loops import anyio, asyncio_loop, run_soon, running_loop
from ._process import begin_in_each_process, is_interrupt

_ENDING: Final = 0.1
"""How long to wait, in seconds, for work to end after its connection was shut down."""

IDLE_TIMEOUT: Final = 0.1
"""Seconds after which a thread without work ends: only frequent calls notice what it takes to start one."""

_IDLE: Final = "stkai-idle"


class _Current(threading.local):
    """The work that a thread is doing, or None."""

    work: "AbandonableWork | None" = None


_current: Final = _Current()


class GivenUpError(Exception):
    """The work was not done in time, and no caller waits for it any more."""


class NoThreadError(RetryableError, httpx.ConnectError):
    """No thread could be started for a call; nothing was sent."""


class AbandonableWork:
    """Work for another thread; any number of threads and tasks can wait for its end, and abandon it.

    It takes no locks: each waiter brings its own lock or event, and shared state changes in single atomic steps.
    It runs in a copy of the caller's context variables, or in the given ones.
    """

    def __init__(self, work: Callable[[], Any] = lambda: None, context: Context | None = None) -> None:
        self.is_done = self._is_abandoned = False
        self._outer = _current.work
        self._break_off: Callable[[], bool] | None = None
        self._work = [work]
        self._context = context or copy_context()
        self._results: list[Any] = []
        self._error: BaseException | None = None
        self._waiting: dict[Any, Callable[[], object]] = {}  # How to wake each waiter.

    @property
    def is_abandoned(self) -> bool:
        """Whether this work, or the work that it is part of, has been given up."""
        return self._is_abandoned or (self._outer is not None and self._outer.is_abandoned)

    def run(self) -> None:
        """Do the work in this thread, and wake everything that waits for it."""
        try:
            work = self._work.pop()
        except IndexError:  # It has run, or is running.
            return
        before, _current.work = _current.work, self
        try:
            self._results.append(self._context.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self._error = error
        finally:
            _current.work = before
            self.is_done = True
            for wake in list(self._waiting.values()):
                wake()
            if self._is_abandoned:
                self._discard()

    @contextmanager
    def ending_also(self, other: "AbandonableWork") -> Iterator[None]:
        """Inside the block, run `other` as soon as this work has ended."""
        key = object()
        self._waiting[key] = other.run
        try:
            if self.is_done:
                other.run()
            yield
        finally:
            self._waiting.pop(key, None)

    def wait(self, seconds: float = math.inf, sleeper: Any = None) -> bool:
        """Block for at most this many seconds, or until `sleeper` is woken; returns whether the work has ended."""
        ended = threading.Lock()  # Cheaper than an Event: thousands of threads may wait here.
        ended.acquire()
        try:
            if self._has_to_wait(ended, partial(_release, ended), sleeper) and seconds > 0:
                ended.acquire(True, min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._waiting.pop(ended, None)
        return self.is_done

    async def await_(self, seconds: float = math.inf, sleeper: Any = None) -> bool:
        """Like `wait`, for a task."""
        loop = asyncio_loop()
        if loop is None:
            loop, event = running_loop(), anyio.Event()
            try:
                with anyio.move_on_after(seconds):
                    if self._has_to_wait(event, partial(run_soon, loop, event.set), sleeper):
                        await event.wait()
            finally:
                self._waiting.pop(event, None)
            return self.is_done
        # Thousands of tasks may wait here: on asyncio, with nothing but a future and a timer.
        done = loop.create_future()
        timer = None if seconds == math.inf else loop.call_at(loop.time() + seconds, _resolve, done)
        try:
            if self._has_to_wait(done, partial(run_soon, loop, _resolve, done), sleeper):
                await done
        finally:
            self._waiting.pop(done, None)
            if timer is not None:
                timer.cancel()
        return self.is_done

    def _has_to_wait(self, waiter: Any, wake: Callable[[], object], sleeper: Any) -> bool:
        """Register how to end a wait; False if there is nothing to wait for."""
        self._waiting[waiter] = wake
        if sleeper is not None:
            # Weak, so that a queue that holds the sleeper does not keep the task of a closed loop from being collected.
            known = ref(wake)
            sleeper.wake = lambda: (found := known()) and found()
        return not (self.is_done or (sleeper is not None and sleeper.is_woken))

    def result(self) -> Any:
        """Return what the work returned, or raise what it raised. Call it once, after the work has ended."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # Its traceback refers to this frame: such a cycle waits for the garbage collector.
        return self._results.pop()

    def sends(self, break_off: Callable[[], bool]) -> None:
        """Register how to break off the request being sent, if this work or the work that it is part of is given up."""
        self._break_off = break_off
        if self._is_abandoned:  # Before this was registered.
            break_off()
        if self._outer is not None:
            self._outer.sends(break_off)

    def abandon(self) -> bool:
        """Give the work up: it starts nothing new, the request being sent is broken off, and its response is closed.

        Returns whether something was broken off.
        """
        self._is_abandoned = True
        is_broken_off = self._break_off is not None and self._break_off()
        if self.is_done:
            self._discard()
        return is_broken_off

    def _discard(self) -> None:
        if self._results:  # Usually empty: an IndexError would become the context of the call's own error.
            with suppress(Exception):
                self._results.pop().close()


class Latch(AbandonableWork):
    """A one-shot event that threads and tasks can wait for; `run` sets it."""


def _release(ended: Any) -> None:
    with suppress(RuntimeError):  # Already released.
        ended.release()


def _resolve(done: Any) -> None:
    if not done.done():
        done.set_result(None)


class _Worker:
    """A daemon thread that does one piece of work at a time, until nothing refers to this object any more.

    Unlike a `ThreadPoolExecutor`, it starts work after the end of the main thread, and a program need not wait for it.
    """

    def __init__(self, idle: "list[_Worker]") -> None:
        queue = self._queue = SimpleQueue[Any]()
        # An interrupt may cut off a call that has taken an idle worker, but not the callback, a method of a C type.
        known = ref(self, queue.put)
        threading.Thread(target=_serve, args=(queue, known, idle), name=_IDLE, daemon=True).start()

    def begin(self, name: str, work: Callable[[], object]) -> None:
        self._queue.put((self, name, work))


class _IdleWorkers:
    """The workers without work; those that get none for a while end."""

    def __init__(self) -> None:
        begin_in_each_process(self, _IdleWorkers.drop)

    def drop(self) -> None:
        self.workers: list[_Worker] = []

    def take(self) -> _Worker:
        if sys.is_finalizing():  # Threads no longer run, and Python 3.11 would wait forever for one to start.
            raise RuntimeError("the interpreter is shutting down")
        while self.workers:
            with suppress(IndexError):  # Another thread was faster.
                return self.workers.pop()
        return _Worker(self.workers)


def _serve(queue: "SimpleQueue[Any]", known: "ref[_Worker]", idle: list[_Worker]) -> None:
    thread = threading.current_thread()
    while True:
        try:
            item = queue.get(timeout=IDLE_TIMEOUT)
        except Empty:
            try:
                idle.remove(known())  # type: ignore[arg-type]
            except ValueError:  # It was taken, or was never idle.
                continue
            return
        if item is known:
            return
        worker, thread.name, work = item
        work()
        idle.append(worker)
        del item, work, worker
        thread.name = _IDLE


idle_workers: Final = _IdleWorkers()


def start_in_thread(work: Callable[[], object], name: str = "stkai-call") -> None:
    """Start work in a thread of this name, or raise a NoThreadError."""
    handled = sys.exc_info()[1]
    try:
        worker = idle_workers.take()
    except (RuntimeError, KeyError) as error:
        if (cause := error.__context__) is not None and cause is not handled and is_interrupt(cause):
            raise cause from None  # It broke `Thread.start`, whose own clean-up failed then.
        raise NoThreadError(f"nothing was sent: no thread could be started ({error})") from error
    worker.begin(name, work)


def do_in_thread(work: Callable[[], Any], left: Callable[[], float]) -> Any:
    """Return the result of `work`, or raise a GivenUpError once `left()` is 0 seconds or less."""
    pending = AbandonableWork(work)
    try:
        start_in_thread(pending.run)
        # The call's clock may differ from the system's, so it is read again, at most every millisecond.
        while not pending.is_done and (seconds := left()) > 0:
            pending.wait(max(seconds, 0.001))
        if not pending.is_done:
            raise GivenUpError
        return pending.result()
    finally:
        if pending.abandon():
            # The work closes its connection. The caller may close it too, but httpcore cannot handle both at once.
            pending.wait(_ENDING)


def do_within(seconds: float, work: Callable[[], Any]) -> Any:
    """Run `work` in another thread, or in this one if none can start; raises a GivenUpError when time is up."""
    end = SystemClock.monotonic() + seconds
    try:
        return do_in_thread(work, lambda: end - SystemClock.monotonic())
    except NoThreadError:
        return work()


def current_work() -> AbandonableWork | None:
    return _current.work


def abandoned() -> bool:
    """Whether this thread is doing work that has been given up."""
    work = _current.work
    return work is not None and work.is_abandoned
