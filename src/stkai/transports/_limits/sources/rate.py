"""Permits that are released at a rate, constant or adaptive, up to a burst."""

import math
from typing import Final

from ..limiter import Answer, RateChange, Turn
from ..pace.adaptive import Adaptive
from .source import ROUNDING, TICK, Limits, Source, in_words

LATE: Final = 0.05
"""Seconds, beyond the burst, for which the permit of a waiter that wakes late is kept for it."""


class Rate(Source):
    """A bucket of permits: full at first, refilled at a constant rate.

    Args:
        rate: permits per second.
        burst: permits that it holds.
        limit: what it allows, in words.
        start: from when on it releases permits, and the credit it then has; by default it is full when first asked.

    Attributes:
        credit: permits that are there; below 1 while the next is not due.
        paused_until: nothing goes before this instant.
    """

    def __init__(
        self,
        rate: float,
        burst: float = 1.0,
        *,
        start: tuple[float, float] | None = None,
        limit: str = "",
    ) -> None:
        self.rate, self.burst, self.limit = rate, burst, limit or f"{rate:g} requests/s"
        self._at, self.credit = (-math.inf, 0.0) if start is None else start
        self.paused_until = -math.inf

    def _advance(self, now: float) -> None:
        """Release what is due since the last time."""
        start = self._at
        if now <= start:
            return
        self._at = now
        if start == -math.inf:
            self.credit = self.burst
            return
        credit, most = self._released(start, now), self.burst
        if credit > most:  # Waiters that wake late are owed more.
            credit = min(credit, most + min(self.waiting, self.rate * LATE)) if self.waiting else most
        self.credit = credit

    def _released(self, start: float, now: float) -> float:
        """The credit with what is released from `start` to `now`, whatever the burst is."""
        if start < self.paused_until:
            start = min(now, self.paused_until)
        return self.credit + self.rate * (now - start)

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        if now > self._at:
            self._advance(now)
        missing, until = ahead + 1 - self.credit, self.paused_until
        if missing <= ROUNDING and now >= until:
            return 0.0
        wait = missing / self.rate if missing > 0.0 else 0.0
        if now < until:
            wait += until - now
        return max(TICK, wait)

    def take(self, turn: Turn, now: float) -> None:
        self.credit -= 1.0

    def give_back(self, turn: Turn, now: float) -> None:
        """Take a permit back, unless the whole burst has been released since: many of them would go at once."""
        self._advance(now)
        if (now - turn.since) * self.rate < self.burst:
            self.credit = min(self.burst + 1, self.credit + 1)

    def soon(self, now: float, seconds: float) -> float:
        return max(0.0, self.credit) + self.rate * max(0.0, seconds)

    def pause(self, until: float) -> None:
        """Let nothing go before that instant."""
        self.paused_until = max(self.paused_until, until)

    def update(self, limits: Limits) -> None:
        self.limit = in_words(limits)
        if self._at > -math.inf:
            self.credit = self.credit + max(0.0, limits.at_once - self.burst)
        self.rate, self.burst = limits.rate, limits.at_once


class PacedRate(Rate):
    """A bucket whose rate and burst a pace moves."""

    def __init__(self, pace: Adaptive) -> None:
        super().__init__(pace.mode.rate, pace.mode.burst, limit="adaptive rate")
        self.pace = pace

    def _released(self, start: float, now: float) -> float:
        mode, waiting = self.pace.mode, False
        if self.waiting:
            # Those who wait may do so for the permits of another source.
            source = self.order.turns[0].held_by
            waiting = source is self or source is None or source.is_remote
        released = mode.release(start, now, waiting=waiting)
        if mode.rate != self.rate and waiting:
            self.pace.moved()
        self.rate, self.burst = mode.rate, mode.burst
        return self.credit + released if mode.credit is None else mode.credit

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        if now > self._at:
            self._advance(now)
        mode, missing = self.pace.mode, ahead + 1 - self.credit
        if missing <= ROUNDING and now >= self.paused_until and now >= mode.paused_until:
            return 0.0
        wait = mode.time_for(missing, now) if missing > 0.0 else 0.0
        wait = max(TICK, wait + max(0.0, self.paused_until - now, mode.paused_until - now))
        turn.nap = min(turn.nap, mode.nap(wait))
        return wait

    def take(self, turn: Turn, now: float) -> None:
        self.credit -= self.pace.mode.take(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        self._advance(now)
        self.pace.mode.give_back(turn)
        super().give_back(turn, now)

    def listens(self, now: float) -> bool:
        return now >= self.pace.ignores_successes_until

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        self._advance(answer.now)
        change, before = self.pace.learn(turn, answer), self.credit
        credit = self._released(answer.now, answer.now)
        self.credit = min(credit, max(before, self.burst))  # What an answer releases is owed to nobody.
        return change

    def update(self, limits: Limits) -> None:
        assert limits.max_requests is not None and limits.time_window is not None  # noqa: PT018
        self.pace.update(limits.max_requests, limits.time_window)
        self.rate, self.burst = self.pace.mode.rate, self.pace.mode.burst
