"""Work in another thread that its caller may give up waiting for.

A blocking call cannot be interrupted, but the wait for it can: by a deadline, by cancellation, by Ctrl-C. Work that has
been given up begins nothing new: before it sends, it asks whether it is `abandoned`. The threads are daemons, so that a
program can exit while a server hangs.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Final
from weakref import ref

import httpx

from ._clock import SystemClock
from ._errors import RetryableError
from ._event_loops import anyio, asyncio_loop, run_soon, running_loop


class _Current(threading.local):
    """The job that a thread is running, or None."""

    job: "Job | None" = None


_current: Final = _Current()


class GivenUpError(Exception):
    """The work was not done in time, and no caller waits for it any more."""


class NoThreadError(RetryableError, httpx.ConnectError):
    """No thread could be started for a call with a deadline; nothing was sent."""


class Job:
    """A piece of work for another thread; threads and tasks wait for its end, and may give it up.

    There are no locks here: each waiter brings its own lock or event, and shared state changes by single atomic steps.
    It has a copy of the caller's context variables, unless it gets others.
    """

    def __init__(self, work: Callable[[], Any], context: Context | None = None) -> None:
        self.is_done = self._is_abandoned = False
        self._outer = _current.job
        self._break_off: Callable[[], object] | None = None
        self._work: Callable[[], Any] | None = work
        self._context = context or copy_context()
        self._results: list[Any] = []
        self._error: BaseException | None = None
        self._waiting: dict[Any, Callable[[], object]] = {}  # How to wake each waiter.

    @property
    def is_abandoned(self) -> bool:
        """Whether it has been given up, or the job that it is a part of."""
        return self._is_abandoned or (self._outer is not None and self._outer.is_abandoned)

    def run(self) -> None:
        """Do the work in this thread, and wake everyone who waits for it."""
        work, self._work = self._work, None
        if work is None:  # It runs once.
            return
        before, _current.job = _current.job, self
        try:
            self._results.append(self._context.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self._error = error
        finally:
            _current.job = before
            self.is_done = True
            for wake in list(self._waiting.values()):
                wake()
            if self._is_abandoned:
                self._discard()

    @contextmanager
    def ending_also(self, other: "Job") -> Iterator[None]:
        """While in the block, run `other` as soon as this work has ended."""
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
        ended = threading.Lock()  # And no queue or event: thousands of threads may wait here.
        ended.acquire()
        try:
            if self._has_to_wait(ended, partial(_release, ended), sleeper) and seconds > 0:
                ended.acquire(True, min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._waiting.pop(ended, None)
        return self.is_done

    async def await_(self, seconds: float = math.inf, sleeper: Any = None) -> bool:
        """The same for a task."""
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
        # Thousands of tasks may wait here: on asyncio, nothing comes between a task and its timer.
        done = loop.create_future()
        timer = None if seconds == math.inf else loop.call_at(loop.time() + seconds, _settle, done)
        try:
            if self._has_to_wait(done, partial(run_soon, loop, _settle, done), sleeper):
                await done
        finally:
            self._waiting.pop(done, None)
            if timer is not None:
                timer.cancel()
        return self.is_done

    def _has_to_wait(self, waiter: Any, wake: Callable[[], object], sleeper: Any) -> bool:
        """Note how to end a wait; False if there is nothing to wait for."""
        self._waiting[waiter] = wake
        if sleeper is not None:
            # A queue would keep the task of a closed loop, which gives up its place when it is collected.
            known = ref(wake)
            sleeper.wake = lambda: (found := known()) and found()
        return not (self.is_done or (sleeper is not None and sleeper.is_woken))

    def result(self) -> Any:
        """What the work returned, for one caller, once it has ended; raises what it raised."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # Its traceback leads back here: the cycle would wait for the garbage collector.
        return self._results.pop()

    def sends(self, break_off: Callable[[], object]) -> None:
        """Note how to break off what it sends now, for those who give it up, or the job that it is a part of."""
        self._break_off = break_off
        if self._is_abandoned:  # It was given up before it came here.
            break_off()
        if self._outer is not None:
            self._outer.sends(break_off)

    def abandon(self) -> None:
        """Give it up: it begins nothing new, what it sends is broken off, and a response that it returns is closed."""
        self._is_abandoned = True
        if self._break_off is not None:
            self._break_off()
        if self.is_done:
            self._discard()

    def _discard(self) -> None:
        if self._results:  # Usually not: an error of `pop` would be in the context of the call's own.
            with suppress(Exception):
                self._results.pop().close()


def _release(ended: Any) -> None:
    with suppress(RuntimeError):  # It was woken already.
        ended.release()


def _settle(done: Any) -> None:
    if not done.done():
        done.set_result(None)


class Worker:
    """A thread that does the jobs of one call, one at a time. The first job starts it, `release` ends it."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Any] | None = None

    def start(self, job: Job) -> None:
        """Begin a job, or raise a NoThreadError."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            try:
                if sys.is_finalizing():  # Python 3.11 would wait forever for the thread to start.
                    raise RuntimeError("the interpreter is shutting down")
                # An interrupt may cut off `release`, but not the callback of a reference: it is a method of a C type.
                ends = ref(self, self._jobs.put)
                threading.Thread(
                    target=_serve, args=(self._jobs, ends), name="stkai-call", daemon=True
                ).start()
            except RuntimeError as error:
                self._jobs = None
                msg = f"nothing was sent: a call with a deadline needs a thread ({error})"
                raise NoThreadError(msg) from error
        self._jobs.put(job)

    def do(self, work: Callable[[], Any], left: Callable[[], float]) -> Any:
        """The result of `work`, if it is ready while `left()` is more than 0 seconds; otherwise a GivenUpError."""
        job = Job(work)
        try:
            self.start(job)
            # By the call's clock, which may differ from the system's: it is asked every millisecond at the most.
            while not job.is_done and (seconds := left()) > 0:
                job.wait(max(seconds, 0.001))
            if not job.is_done:
                raise GivenUpError
            return job.result()
        finally:
            if not job.is_done:
                self.release()
            job.abandon()

    def release(self) -> None:
        """Let the thread end when its job is done."""
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            jobs.put(None)


def _serve(jobs: "SimpleQueue[Any]", _ends: "ref[Worker]") -> None:
    while isinstance(job := jobs.get(), Job):
        job.run()
        del job


def do_within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work`, in another thread, or in this one if none can start; a GivenUpError when time is up."""
    worker, end = Worker(), SystemClock.monotonic() + seconds
    try:
        return worker.do(work, lambda: end - SystemClock.monotonic())
    except NoThreadError:
        return work()
    finally:
        worker.release()


def current_job() -> Job | None:
    return _current.job


def abandoned() -> bool:
    """Whether this thread is running a job that has been given up."""
    job = _current.job
    return job is not None and job.is_abandoned
