"""Runs short jobs later, in daemon threads: the reports of a share's member that no request makes."""

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Final

from ...._clock import SystemClock
from ...._forks import after_fork
from ...._log import logger

_MOST: Final = 4
"""Threads at once: a store that hangs must not hold up the others."""

_IDLE: Final = 2.0
"""Seconds after which an idle thread ends."""

Work = Callable[[], None]


class Errands:
    """Jobs in the order of the instants at which they are due."""

    def __init__(self) -> None:
        self._monotonic = SystemClock.monotonic
        self._begin()
        after_fork(self, Errands._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Work]] = []
        self._numbers = itertools.count()
        self._threads = self._idle = 0

    def later(self, seconds: float, work: Work) -> None:
        """Call `work` after so many seconds."""
        with self._changed:
            heapq.heappush(self._jobs, (self._monotonic() + seconds, next(self._numbers), work))
            self._changed.notify()
            starts = not self._idle and self._threads < _MOST
            self._threads += starts
        if starts:
            try:
                threading.Thread(target=self._run, name="stkai-store", daemon=True).start()
            except RuntimeError:  # No more threads, or the interpreter is ending; the next job tries again.
                with self._changed:
                    self._threads -= 1

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # noqa: BLE001 - a store may be user code
                logger.exception("an errand to the store of a shared quota failed")
            del work

    def _next(self) -> Work | None:
        """The next job when it is due; None after a while without any: the thread ends."""
        with self._changed:
            ends = self._monotonic() + _IDLE
            self._idle += 1
            try:
                while self._jobs or self._monotonic() < ends:
                    left = (self._jobs[0][0] if self._jobs else ends) - self._monotonic()
                    if self._jobs and left <= 0:
                        return heapq.heappop(self._jobs)[2]
                    self._changed.wait(left)
                self._threads -= 1
                return None
            finally:
                self._idle -= 1


errands = Errands()
"""Those of this process."""
