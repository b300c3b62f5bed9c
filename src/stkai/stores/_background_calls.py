"""Calls to stores: with a time limit; in daemon threads, for event loops or with a delay; at the end of the program."""

import atexit
import heapq
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final
from weakref import WeakValueDictionary

from .._abandonable import AbandonableWork, start_in_thread
from .._clock import SystemClock
from .._log import logger
from .._process import begin_in_each_process

# Seconds that a member's last report may take when its limiter is closed, or at the end of the program.
LAST_REPORT: Final = 0.25
# The maximum number of threads, for any number of shares, and of connections to a server that are kept open.
MAX_CALLS: Final = 16
# If no call begins for this many seconds although one is due, another thread is started: the others hang.
STUCK_AFTER: Final = 1.0
_IDLE_TIMEOUT: Final = 1.0  # Seconds after which a thread without a call ends.

Work = Callable[[], None]


class TimeLimit:
    """A time limit for calls that have none of their own: they run in another thread, abandoned after `seconds`.

    While an abandoned call is running, further calls fail at once: threads do not accumulate. `who` names the callee.
    """

    def __init__(self, seconds: float, who: str) -> None:
        self.seconds, self._who = seconds, who
        begin_in_each_process(self, TimeLimit._begin)

    def _begin(self) -> None:
        """Start over in a forked child, which does not have its parent's threads."""
        self._stuck: AbandonableWork | None = None

    def run(self, work: Callable[[], Any], seconds: float | None = None) -> Any:
        """The result of `work`; raises TimeoutError after `seconds`, by default those of the limit."""
        if self._stuck is not None and not self._stuck.is_done:
            raise TimeoutError(f"{self._who} has not answered an earlier call yet")
        self._stuck = None
        pending = AbandonableWork(work)
        start_in_thread(pending.run)
        if not pending.wait(self.seconds if seconds is None else max(0.0, seconds)):
            self._stuck = pending
            raise TimeoutError(f"{self._who} did not answer within {self.seconds:.3g} s")
        return pending.result()


class BackgroundCalls:
    """Runs calls in a few threads: those for event loops, and scheduled ones that no request makes."""

    def __init__(self) -> None:
        self._monotonic = SystemClock.monotonic
        begin_in_each_process(self, BackgroundCalls._begin)

    def _begin(self) -> None:
        # Entered directly: an interrupt in a Condition's methods, which are written in Python, could leave it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: list[tuple[float, int, Work]] = []
        self._numbers = itertools.count()
        self._threads, self._is_idle = 0, False
        self._moved_at = 0.0  # When a call last began, or a thread was started.

    def later(self, seconds: float, work: Work) -> bool:
        """Call `work` after `seconds`. Returns whether there is a thread for it."""
        with self._lock:
            now = self._monotonic()
            heapq.heappush(self._jobs, (now + seconds, next(self._numbers), work))
            self._changed.notify_all()  # All: an interrupted notification may have left another waiter asleep.
            starts = not self._is_idle and (self._threads < MAX_CALLS or now > self._moved_at + STUCK_AFTER)
            self._is_idle = self._is_idle and self._left() > 0
            if starts:
                self._threads, self._moved_at = self._threads + 1, now
        if starts:
            try:
                threading.Thread(target=self._run, name="stkai-store", daemon=True).start()
            except BaseException as error:  # No thread started, or an interrupt; the next call retries.
                with self._lock:
                    self._threads -= 1
                if not isinstance(error, RuntimeError):
                    raise
                return self._threads > 0
        return True

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # A store may be user code.
                logger.exception("a call to the store of a shared quota failed")
            except BaseException:  # This ends the thread.
                with self._lock:
                    self._threads -= 1
                raise
            del work

    def _left(self) -> float:
        """Seconds until the first call is due."""
        return self._jobs[0][0] - self._monotonic() if self._jobs else math.inf

    def _next(self) -> Work | None:
        """Wait for the next call until it is due; None if the thread should end: one idle thread is enough."""
        with self._lock:
            while (left := self._left()) > 0:
                if self._is_idle:
                    break
                self._is_idle = True
                self._changed.wait(left if self._jobs else _IDLE_TIMEOUT)
                self._is_idle = False
                if not self._jobs:
                    break
            else:
                self._moved_at = self._monotonic()
                return heapq.heappop(self._jobs)[2]
            self._threads -= 1
            return None


background: Final = BackgroundCalls()

_clients: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()


def close_at_exit(client: Any) -> None:
    """Call `client.close(seconds)` when this process ends; together, all clients have `LAST_REPORT` seconds."""
    _clients[id(client)] = client
    _close_all_at_exit(os.getpid())


@cache
def _close_all_at_exit(_pid: int) -> None:
    """Register `_close_all`; children of multiprocessing do not run `atexit` handlers."""
    atexit.register(_close_all)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _close_all, exitpriority=0)


def _close_all() -> None:
    until = SystemClock.monotonic() + LAST_REPORT
    for client in [known() for known in _clients.valuerefs()]:
        if client is not None and (left := until - SystemClock.monotonic()) > 0:
            client.close(left)
