"""Limits the time of calls that cannot limit it themselves: looking up a host, or a client with its own retries."""

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

_IDLE = 5.0
"""Seconds after which a thread without work ends."""

_Answers = SimpleQueue[tuple[Any, BaseException | None]]


class InTime:
    """Runs calls in threads, and stops waiting for a call after a time.

    While a call is stuck, further calls fail at once, so that threads do not pile up.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[tuple[Callable[[], Any], _Answers]]] = []
        self._stuck: _Answers | None = None

    def call(self, work: Callable[[], Any], timeout: float) -> Any:
        """The result of `work`.

        Raises:
            TimeoutError: the call takes more than so many seconds, or an earlier call is still running.
        """
        if self._pid != os.getpid():
            self._begin()  # The threads stay in the parent.
        if self._stuck is not None and self._stuck.empty():
            raise TimeoutError("the server has not answered an earlier call yet")
        self._stuck = None
        with self._lock:
            jobs = self._idle.pop() if self._idle else None
        if jobs is None:
            jobs = SimpleQueue()
            threading.Thread(target=self._serve, args=(jobs,), name="stkai-store-call", daemon=True).start()
        answers = _Answers()
        jobs.put((work, answers))
        try:
            result, error = answers.get(timeout=max(0.0, timeout))
        except Empty:
            self._stuck = answers
            raise TimeoutError(f"the server did not answer within {timeout:.3g} s") from None
        if error is not None:
            raise error
        return result

    def _serve(self, jobs: SimpleQueue[tuple[Callable[[], Any], _Answers]]) -> None:
        while True:
            try:
                work, answers = jobs.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if jobs in self._idle:
                        self._idle.remove(jobs)
                        return
                continue
            try:
                answers.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                answers.put((None, error))
            del work, answers
            with self._lock:
                self._idle.append(jobs)
