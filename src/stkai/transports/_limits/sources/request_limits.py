"""Limits on requests: a constant rate, and a maximum number in any window of time."""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from typing import Final

from ..limiter import Answer, RateChange, Turn
from . import ROUNDING, TICK, Limits, Source, in_words, warning

NEVER: Final = -math.inf

# Seconds for which the permit of a waiter that wakes late is kept for it, in addition to the burst.
WAKE_TOLERANCE: Final = 0.05
# Seconds by which a timer may be late; in a window shorter than a second, this fraction of the window.
_SLACK: Final = 0.001

_REFUSES_MANY: Final = (
    "the server refuses many requests, although the limiter sends at most %s: others use the quota, it is"
    " smaller, or the server accepts no bursts. burst=1 spaces requests evenly; an AimdLimiter adapts"
)

# Seconds, at least, in which the refusals of a quarter of the permits, at least ten, are worth a warning.
_WARN_WITHIN: Final = 10.0


class Rate(Source):
    """A bucket of `burst` permits, refilled at a constant rate; `start`: an instant and the credit at it, else full."""

    def __init__(
        self, rate: float, burst: float = 1.0, *, start: tuple[float, float] | None = None, limit: str = ""
    ) -> None:
        self.rate, self.burst, self.limit = rate, burst, limit or f"{rate:g} requests/s"
        # The credit is less than 1 until the next permit is due.
        self._at, self.credit = (NEVER, 0.0) if start is None else start
        self.paused_until = NEVER

    def _advance(self, now: float) -> None:
        """Release the permits that became due since the last call, which was before `now`."""
        start = self._at
        self._at = now
        if start == NEVER:
            self.credit = self.burst
            return
        if start < self.paused_until:
            start = min(now, self.paused_until)
        credit, most = self.credit + self.rate * (now - start), self.burst
        self.credit = self._kept(credit, most) if credit > most else credit

    def _kept(self, credit: float, most: float) -> float:
        """The part that the bucket keeps of a credit that exceeds it: waiters that wake late still need some."""
        return min(credit, most + min(self.waiting, self.rate * WAKE_TOLERANCE)) if self.waiting else most

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        if now > self._at:
            self._advance(now)
        missing, until = ahead + 1 - self.credit, self.paused_until
        if missing <= ROUNDING and now >= until:
            return 0.0
        wait = missing / self.rate if missing > 0.0 else 0.0
        if now < until:
            wait += until - now
        return wait if wait > TICK else TICK  # noqa: FURB136 - a call takes longer

    def take(self, turn: Turn, now: float) -> None:
        self.credit -= 1.0

    def give_back(self, turn: Turn, now: float) -> None:
        """Take a permit back, unless the whole burst was released since: too many requests would be sent at once."""
        if now > self._at:
            self._advance(now)
        if (now - turn.since) * self.rate < self.burst:
            self.credit = min(self.burst + 1, self.credit + 1)

    def available(self, now: float, seconds: float) -> float:
        return max(0.0, self.credit) + self.rate * max(0.0, seconds)

    def pause(self, until: float) -> None:
        """Admit no request before `until`."""
        self.paused_until = max(self.paused_until, until)

    def update(self, limits: Limits) -> None:
        self.limit, self.rate = in_words(limits), limits.rate


class Window(Source):
    """At most `most` requests in any `seconds`. A window is half open: a request sent `seconds` ago is not in it."""

    def __init__(self, max_requests: float, time_window: float) -> None:
        self._instants: deque[float] = deque()  # When the requests of the last window were sent.
        self._left = -math.inf  # When the last of those was sent that have left the window.
        self._refused, self._refused_since = 0, NEVER
        self._set(max_requests, time_window)

    def _set(self, max_requests: float, time_window: float) -> None:
        # Less than one request per window means one in a longer window.
        self.most = max(1, math.floor(max_requests))
        self.seconds = time_window / min(1.0, max_requests)
        self._slack = _SLACK * min(1.0, self.seconds)
        self.limit = in_words(Limits(self.most, self.seconds))

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        instants, most, seconds = self._instants, self.most, self.seconds
        start = now - seconds
        while instants and instants[0] <= start + TICK:
            self._left = instants.popleft()
        if len(instants) + ahead < most:
            return 0.0
        # Wait until the request whose place it takes has left the window: it was sent, or it is one of those ahead.
        windows = ahead // most
        first = len(instants) + ahead - (windows + 1) * most
        if first >= 0:
            start = instants[first]
        if windows:  # The requests whose places it takes, one per window, will be late.
            turn.slack = max(turn.slack, windows * self._slack)
        return max(TICK, start + (windows + 1) * seconds - now)

    def take(self, turn: Turn, now: float) -> None:
        instants = self._instants
        if instants and now < instants[-1]:
            now = instants[-1]  # Another thread read the clock a moment later.
        instants.append(now)

    def give_back(self, turn: Turn, now: float) -> None:
        place = bisect_left(self._instants, turn.since)
        # Compared with the last that left, since the window may have become longer.
        if turn.since > self._left and place < len(self._instants):
            del self._instants[place]

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Warn once if the server refuses many of the requests that it should allow."""
        if answer.is_refusal and self._refused_since < math.inf:
            span = max(self.seconds, _WARN_WITHIN)
            if answer.now - self._refused_since >= span:
                self._refused, self._refused_since = 0, answer.now
            self._refused += 1
            if self._refused >= max(10, self.most * span / self.seconds / 4):
                self._refused_since = math.inf
                turn.errand = warning(_REFUSES_MANY, self.limit)
        return None

    def available(self, now: float, seconds: float) -> float:
        windows, rest = divmod(max(0.0, seconds), self.seconds)
        left = bisect_right(self._instants, now + rest - self.seconds + TICK)
        return self.most * (1 + windows) - len(self._instants) + left

    def update(self, limits: Limits) -> None:
        assert limits.max_requests is not None and limits.time_window is not None  # noqa: PT018
        self._set(limits.max_requests, limits.time_window)
