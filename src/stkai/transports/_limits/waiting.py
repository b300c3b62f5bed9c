"""The wait for a permit: asks the limiter, sleeps, and gives up what takes too long."""

from typing import Any, Final

from ..._clock import Clock
from ..._errors import ConfigurationError
from .._operations import Operation, Sleep, Steps
from .limiter import Limiter, Turn
from .queue import Queue
from .sources.source import TICK, Source

_REAL: Final = (int, float)

_LONGEST: Final = 3600.0
"""Seconds; a longer wait is slept in pieces: every system limits the length of a sleep."""


class TooLongError(Exception):
    """The wait would be longer than it may be; the turn has left the queue.

    Attributes:
        wait: seconds that it would still have had to wait.
        waited: seconds that it has waited.
        left: seconds that were left until the deadline.
    """

    def __init__(self, wait: float, waited: float, left: float) -> None:
        super().__init__(wait)
        self.wait, self.waited, self.left = wait, waited, left


class Waiting:
    """One request's wait for its permit.

    Args:
        limiter: the one to ask.
        turn: the request's turn.
        clock: tells the time.
        limit: seconds that it may wait.
        deadline: the instant at which the call must have ended.

    Attributes:
        start: when it began.
        now: the time when the limiter last answered.
        held: seconds for which each source held it up, if they have different limits.
    """

    def __init__(
        self, limiter: Limiter | Queue, turn: Turn, clock: Clock, limit: float, deadline: float
    ) -> None:
        self.limiter, self.turn, self.clock = limiter, turn, clock
        self.limit, self.deadline = limit, deadline
        self.start = self.now = 0.0
        has_several = len({source.limit for source in turn.sources}) > 1
        self.held: dict[Source | None, float] | None = {} if has_several else None

    def steps(self, wait: float | Operation, start: float) -> Steps[float]:
        """Wait, and return the instant at which the permit was taken; a wait that fails leaves the queue.

        Args:
            wait: what the limiter has said at `start`.

        Raises:
            TooLongError: it would take longer than it may.
        """
        self.start = self.now = now = start
        limiter, turn, clock = self.limiter, self.turn, self.clock
        try:
            while wait != 0:
                if isinstance(wait, Operation):
                    yield wait
                elif isinstance(wait, _REAL) and wait > 0:
                    yield Sleep(self._until_next(wait, now))
                else:
                    raise _no_answer(limiter, wait)
                self.now = clock.monotonic()
                if self.held is not None:
                    self.held[turn.held_by] = self.held.get(turn.held_by, 0.0) + self.now - now
                now = self.now
                wait = limiter.ask(turn, now)
        except BaseException:
            self.now = clock.monotonic()
            limiter.leave(turn, self.now)
            raise
        return now

    def _until_next(self, wait: float, now: float) -> float:
        """Seconds until the limiter is asked again."""
        turn, waited = self.turn, now - self.start
        left = min(self.deadline - now, self.limit - waited)
        if wait > left + TICK and not (turn.is_guess and left > TICK):
            raise TooLongError(wait, waited, self.deadline - now)
        return min(wait if not turn.is_guess else turn.nap, turn.nap, left, _LONGEST)

    @property
    def limit_in_words(self) -> str:
        """The limit that held it up for longest; empty if there is only one."""
        held = self.held
        if held is None:
            return ""
        source: Any = max(held, key=held.__getitem__, default=None)
        return "" if source is None else str(source.limit)


def _no_answer(limiter: object, wait: object) -> ConfigurationError:
    """The error for a faulty limiter of the user's own; one that returns nothing would let everything pass."""
    return ConfigurationError(
        f"{type(limiter).__name__}.ask must return 0.0 to let a request go, the seconds that it must wait, or an"
        f" operation; not {wait!r}"
    )
