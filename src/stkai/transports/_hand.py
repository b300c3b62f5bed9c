"""A thread that works for one call with a deadline, so that the call can stop waiting for it."""

import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any


class TooLateError(Exception):
    """The time was up before the work was done."""


class Hand:
    """Does blocking work, one piece at a time, in a thread. The first piece starts the thread, `release` ends it."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], Any], left: Callable[[], float]) -> Any:
        """The result of `work`, if it is ready while `left()` is more than 0 seconds.

        Raises:
            TooLateError: it is not ready. A response that comes later is closed; the next piece gets another thread.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._jobs,), daemon=True)
            self._thread.start()
        job = _Job(work, copy_context())
        self._jobs.put(job)
        try:
            # By the call's clock, which may differ from the lock's.
            while (seconds := left()) > 0 and not job.done.wait(_waitable(seconds)):
                pass
            if not job.done.is_set():
                raise TooLateError
            return job.take()
        finally:
            if not job.done.is_set():
                self.release()
                self._jobs, self._thread = SimpleQueue(), None
            job.abandon()

    def release(self) -> None:
        """Let the thread end when its work is done."""
        if self._thread is not None:
            self._jobs.put(None)


def _waitable(seconds: float) -> float:
    return min(max(seconds, 1e-3), threading.TIMEOUT_MAX)


def _serve(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job


class _Job:
    """One piece of work; `done` is set when it has ended."""

    def __init__(self, work: Callable[[], Any], context: Context) -> None:
        self.done = threading.Event()
        self._work: Callable[[], Any] | None = work
        self._context = context
        self._lock = threading.RLock()
        self._abandoned = False
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        work, self._work = self._work, None
        try:
            assert work is not None
            value = self._context.run(work)
            with self._lock:
                self._value = value
                abandoned = self._abandoned
            if abandoned:
                self.abandon()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self._error = error
        finally:
            self.done.set()

    def take(self) -> Any:
        """The result of the work, once it is done."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback leads back here: a reference cycle that would last until the garbage collector runs.
                del error
        value, self._value = self._value, None
        return value

    def abandon(self) -> None:
        """Close the response if nobody took it, now or when it arrives."""
        with self._lock:
            self._abandoned = True
            value, self._value = self._value, None
        if value is not None and hasattr(value, "close"):
            value.close()
