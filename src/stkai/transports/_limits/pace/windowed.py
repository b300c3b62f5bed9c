"""A rate that moves with the windows of the quota: for servers that say how long to wait.

It connects the cold start, the law, the pauses, and what a sender remembers.
"""

import math

from ..limiter import Turn
from . import pause
from .history import History
from .law import Past, RateLaw
from .quota import KnownQuota
from .start import ColdStart

_BURST = 0.1
"""Windows' worth of permits that may be taken at once after a quiet time."""

_AT_ONCE = 0.001
"""Seconds that no request notices."""


class WindowedRate:
    """Grows while requests are held back, is cut once per congestion event, and pauses as long as the server asks.

    Args:
        quota: what is known about the quota.
        law: how the rate moves, if it does not follow from the quota.

    Attributes:
        rate: requests per second in force now.
        burst: permits that may be taken at once after a quiet time.
        paused_until: when the present pause ends.
        law: how the rate moves.
        start: the cold start, until it is over.
        history: what is remembered.
    """

    def __init__(self, quota: KnownQuota, law: RateLaw | None = None) -> None:
        self._quota = quota
        self.law = law or quota.law()
        self.start = ColdStart(quota)
        self.history = History(self.law.history, quota)
        self.rate, self.burst = max(quota.floor, self.start.rate), self.start.burst
        if law is not None:
            self.start.over = True
            self.set(quota.ceiling)
        self.paused_until = self._held_until = -math.inf
        self._congestion = pause.Congestion()
        self._quiet = self._resumes_at = 0.0

    @property
    def lasting(self) -> float:
        """The rate, or that from before the pause while a single request probes."""
        return self._resumes_at or self.rate

    @property
    def awaits_success(self) -> bool:
        """Whether a success would end a row of refusals, or release more permits."""
        # If the rate alone brings back the whole burst at once, what a success adds makes no difference.
        releases = self.start.releases and self.rate * _AT_ONCE < self.burst
        return releases or not self._congestion.is_answered or self._congestion.row > 0

    def set(self, rate: float) -> None:
        """Continue at this rate."""
        self.rate = rate
        self.burst = max(1.0, _BURST * self._quota.window * rate)

    def update(self, law: RateLaw, share: float) -> None:
        """Continue with another quota, of which it gets the same share: `share` is the new quota by the old one."""
        over, self.start = self.start.over, ColdStart(self._quota)
        self.start.over = over
        self.adopt(law)
        self.set(self._quota.bounded(self.rate * share))

    def resume(self, rate: float, *, refused: bool) -> None:
        """Start at the rate of another program, of which a request was refused or not."""
        if refused:
            self.start.over = True
            self.set(self._quota.bounded(rate))
        else:
            # The limit is still unknown: start at a higher rate, but just as carefully.
            self.rate = max(self.rate, self._quota.bounded(rate))

    def adopt(self, law: RateLaw) -> None:
        """Switch to another law, because more is known about the quota."""
        self.law = law
        self.history.resize(law.history)

    def note(self, start: float, now: float, *, waiting: bool) -> None:
        """Note whether requests have been held back from `start` to `now`."""
        self.history.note(start, holds=waiting or now < self._held_until)

    def release(self, seconds: float) -> float:
        """Permits released in so many seconds while requests wait for them."""
        if not self.start.over:
            self.rate, released = self.start.doubled(self.rate, seconds)
            return released
        quota, before = self._quota, self.rate
        # No waiter sleeps for longer than a window: in a longer step the program stood still, and no ceiling bounds it.
        counted = seconds if quota.requests < math.inf else min(seconds, quota.window)
        self.set(min(quota.ceiling, max(before, self.law.grown(before, self._quiet, counted))))
        self._quiet += counted
        return (before + self.rate) / 2 * seconds

    def found(self, now: float) -> tuple[float, bool]:
        """The rate that was found when the server first refused a request, and whether it is still to be found."""
        past = self.history.past(now, cold=not self.start.over)
        if not past.cold:
            return self.rate, False
        self.start.over = True
        if self.start.excuses(past.successes, self.rate, past.seconds) or self._quota.requests == math.inf:
            return min(self.rate, past.successes / max(1.0, past.seconds)) / 2, True
        return self.rate / 2, False

    def time_for(self, permits: float) -> float:
        """Seconds until this many more permits are released."""
        return permits / self.rate if self.start.over else self.start.time_for(permits, self.rate)

    def accepted(self, sent: float) -> float:
        """Note that a request sent at `sent` was accepted; returns the permits that this releases at once."""
        free = self.start.released_by_success()
        if free:
            self.burst = max(self.burst, self.start.burst)
        if self._congestion.accepted(sent) and self._resumes_at:
            # The request that probed after an implausible pause got through.
            self.set(max(self.rate, self._resumes_at))
            self._resumes_at = 0.0
        return free

    def refused(
        self, turn: Turn, now: float, sent: float, asked: float | None, chance: float, *, explained: bool
    ) -> None:
        """Note the refusal of a request sent at `sent`, which asks for a wait of `asked` seconds.

        The rate is cut once per congestion event: a refusal of a request sent before the last cut says nothing about
        the current rate. A window that is known to be used up is not an event.
        """
        self.history.add(sent, -1.0)
        first = not self.start.over
        past = self.history.past(now, cold=first)
        fresh, event = self._congestion.is_fresh(sent), self._congestion.refused(sent)
        cut = event and not explained
        if cut:
            self._cut(now, asked or 0.0, past)
        if self._quota.asked(asked or 0.0, self.rate) and cut:
            self.adopt(self._quota.law())
        again = fresh and self._congestion.row > 1
        self._stop(turn, now, asked, chance, explained=explained, severe=first or again)

    def _cut(self, now: float, asked: float, past: Past) -> None:
        if past.cold and self.start.excuses(past.successes, self.rate, past.seconds):
            self.burst = 1.0
        else:
            # Without a quota, this is the first estimate: the requests accepted so far, until the server accepts more.
            if past.cold and self._quota.requests == math.inf and asked <= pause.longest(self._quota.window):
                past = past._replace(seconds=past.seconds + asked)
            self.set(max(self._quota.floor, self.law.cut(self.rate, past)))
            self.start.over = True
        self._congestion.cut(now)
        self._quiet = 0.0

    def _stop(
        self, turn: Turn, now: float, asked: float | None, chance: float, *, explained: bool, severe: bool
    ) -> None:
        """Hold back all requests, or in a short window only the refused one, unless the refusal is a severe one."""
        window = self._quota.window
        seconds = pause.LEAST * window if asked is None else asked
        if explained or not pause.is_soft(window, seconds):
            stop = pause.hard(seconds, self._congestion.row, window, self.rate, chance)
            if seconds > pause.longest(window) and not self._resumes_at:
                # Then one request probes, and its answer decides.
                self._resumes_at = self.rate
                self.set(self._quota.floor)
        else:
            stop = pause.soft_stop(window, chance) if severe else 0.0
            turn.not_before = now + pause.soft(seconds, window, chance)
            self._held_until = max(self._held_until, turn.not_before)
        if stop > window:
            # Over such a long pause, the goodput would be zero.
            self.history.restart(now + stop)
        self.paused_until = max(self.paused_until, now + stop)
