"""Limits the time of calls that cannot limit it themselves: looking up a host, or a client with its own retries."""

from collections.abc import Callable
from typing import Any

from .._abandonable import Job, Worker
from .._forks import after_fork


class InTime:
    """Runs calls in threads, and stops waiting for a call after a time.

    While a call is stuck, further calls fail at once, so that threads do not pile up.
    """

    def __init__(self) -> None:
        self._begin()
        after_fork(self, InTime._begin)  # The threads stay in the parent.

    def _begin(self) -> None:
        self._stuck: Job | None = None

    def call(self, work: Callable[[], Any], timeout: float) -> Any:
        """The result of `work`.

        Raises:
            TimeoutError: the call takes more than so many seconds, or an earlier call is still running.
        """
        if self._stuck is not None and not self._stuck.is_done:
            raise TimeoutError("the server has not answered an earlier call yet")
        self._stuck = None
        job, worker = Job(work), Worker()
        worker.start(job)
        worker.release()
        if not job.wait(max(0.0, timeout)):
            self._stuck = job
            raise TimeoutError(f"the server did not answer within {timeout:.3g} s")
        return job.result()
