"""A time limit for calls to a store that have none of their own."""

from collections.abc import Callable
from typing import Any

from .._abandonable import Job, Worker
from .._process import begin_in_each_process


class TimeLimit:
    """Calls in another thread, which end or are given up within so many seconds.

    While a call is stuck, further calls fail at once, so that threads do not pile up.

    Args:
        seconds: for a call.
        who: what is called, in words.
    """

    def __init__(self, seconds: float, who: str) -> None:
        self.seconds, self._who = seconds, who
        begin_in_each_process(self, TimeLimit._begin)

    def _begin(self) -> None:
        """Begin anew in a forked child: its parent has the threads."""
        self._stuck: Job | None = None

    def run(self, work: Callable[[], Any], seconds: float | None = None) -> Any:
        """The result of `work`.

        Args:
            seconds: what is left of the time; all of it by default.

        Raises:
            TimeoutError: it takes too long, or an earlier call is still stuck.
        """
        if self._stuck is not None and not self._stuck.is_done:
            raise TimeoutError(f"{self._who} has not answered an earlier call yet")
        self._stuck = None
        job, worker = Job(work), Worker()
        worker.start(job)
        worker.release()
        if not job.wait(self.seconds if seconds is None else max(0.0, seconds)):
            self._stuck = job
            raise TimeoutError(f"{self._who} did not answer within {self.seconds:.3g} s")
        return job.result()
