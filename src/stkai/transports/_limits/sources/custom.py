"""A custom limiter among others."""

import math
from collections import deque
from typing import Any, Final

from ...._checks import REAL
from ..._operations import Operation
from ..limiter import Limiter, Turn, notify
from . import ASK_INTERVAL, MAX_OVERSLEEP, Source

# Seconds. While the limiter is asked about another turn, a turn with n others ahead polls every n + 1 intervals.
_POLL_INTERVAL: Final = 0.005


class CustomSource(Source):
    """A custom limiter among others: asked last, about one turn at a time, and without holding the lock.

    It gets a separate turn in place of each of ours.
    """

    counts_units = True
    is_exact = False

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.max_cost: float | None = getattr(limiter, "max_cost", None)
        self.cost = getattr(limiter, "cost", None)
        self.limit = type(limiter).__name__
        self._asking: Turn | None = None
        self._is_running = False  # Whether an operation of the limiter runs for that turn.
        self._stuck: deque[Turn] = deque()  # Turns of the limiter whose tasks do not wake up any more.

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where a turn's `costs` are set."""
        return (self,)

    def listens(self, now: float) -> bool:
        return True

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        asking = self._asking
        if asking is not None and asking is not turn and self._is_stuck(asking, now):
            self._stuck.append(self.inner(asking))
            asking.note(self, None)
            asking = self._asking = None
        if asking is turn or (asking is None and not ahead):
            return 0.0
        due = now if asking is None else asking.due_at
        return max(_POLL_INTERVAL * (1 + ahead), due - now)

    def _is_stuck(self, asking: Turn, now: float) -> bool:
        """Whether the turn has not woken up, as its event loop is stuck or closed: it no longer delays the others."""
        return asking.loop_has_ended() or (not self._is_running and asking.due_at + MAX_OVERSLEEP < now)

    def reserve(self, turn: Turn) -> None:
        """Record that all other sources have a permit for the turn, so that the limiter is asked about it next."""
        self._asking, self._is_running = turn, True

    def take(self, turn: Turn, now: float) -> None:
        self._asking = None

    def forked(self) -> None:
        self._asking = None

    def inner(self, turn: Turn) -> Turn:
        """The turn that the limiter gets in place of ours."""
        inner: Turn | None = turn.noted(self)
        if inner is None:
            inner = Turn(turn.request, 0, turn.chance, self.cost_of(turn), turn.priority)
            turn.note(self, inner)
        return inner

    def ask(self, turn: Turn, now: float) -> float | Operation:
        """Ask the limiter; sets `turn.nap`, the seconds after which to ask again."""
        while self._stuck:
            notify(self.limiter, "leave", self._stuck.popleft(), now)
        inner = self.inner(turn)
        inner.nap, inner.call, inner.is_known = math.inf, turn.call, True
        wait = self.limiter.ask(inner, now)
        turn.nap = min(inner.nap, ASK_INTERVAL)
        self._is_running = not isinstance(wait, REAL)
        return wait

    def leave(self, turn: Turn, now: float) -> bool:
        """Leave the limiter's queue or return its permit, if the limiter knows the turn; returns whether it does."""
        inner: Turn | None = turn.noted(self)
        if inner is None or not inner.is_known:
            return False
        inner.is_known = False
        notify(self.limiter, "leave", inner, now)
        return True

    def give_up(self, turn: Turn, now: float) -> None:
        """Leave the limiter, and let it be asked about another turn."""
        try:
            if self.leave(turn, now):
                turn.note(self, None)
        finally:  # Even if interrupted.
            if self._asking is turn:
                self._asking = None

    def notify(self, method: str, turn: Turn, *news: Any) -> Any:
        """Call any method but `ask`, if the limiter has it."""
        return notify(self.limiter, method, self.inner(turn), *news)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self.notify("settle", turn, cost, now)
