"""The adaptive rate for servers that say how long to wait, on the scale of the quota's window.

The rate grows with time while requests are held back, and is cut once per congestion event (Chiu and Jain, 1989). While
the server describes its window in headers, the rate follows these instead.
"""

import math
from typing import Final

from ..limiter import Answer, Turn
from . import law
from .headers import Reading
from .quota import KnownQuota
from .start import ColdStart, Found
from .window_guide import WindowGuide

_NEGLIGIBLE: Final = 0.001  # Seconds; shorter delays do not matter.

# Fraction by which each gap varies, up or down: otherwise one sender can lock the others out of a bucket server. In a
# short window, the network alone varies gaps enough, and more jitter would make requests collide.
_JITTER: Final = 0.1
_SHORT_WINDOW_JITTER: Final = 0.03

# Seconds between checks of the headers while a server has sent no quota headers.
_HEADER_INTERVAL: Final = 1.0


class WindowedRate:
    """Combines the cold start, the law, the pauses, the history, and the window that a server describes.

    Plain AIMD starts at the whole quota, and reads no headers.
    """

    least_change = law.LEAST_CHANGE  # Fraction by which the rate must change before it is reported again.
    finding = ""  # The reasons of reports suffice.

    def __init__(self, quota: KnownQuota) -> None:
        self._quota, self.start, self.history = quota, ColdStart(quota), law.History()
        self._adopt()
        self.guide = WindowGuide(quota)  # Follows the window that the server describes.
        self.rate = max(quota.floor, self.start.rate)  # Requests per second in force now.
        self.burst = self.start.burst  # Permits that may be taken at once after an idle period.
        if quota.plain is not None:
            self.start.over, self.guide.listening = True, False
            self.set(quota.ceiling)
        self._congestion = law.Congestion()
        self._quiet = self._released = self._resumes_at = 0.0
        self.paused_until = self._held_until = self._listens_at = -math.inf

    def __str__(self) -> str:
        quota = self._quota
        if quota.is_given:
            return str(quota)
        if quota.requests < math.inf:
            return f"found: {quota}"
        return f"found: time_window={quota.window:g}" if self.start.over else "quota not found yet"

    @property
    def base(self) -> float:
        """The rate, without its variation within a window that the server describes."""
        return self.guide.base if self.guide.in_force else self.rate

    @property
    def lasting(self) -> float:
        """The same; while single requests probe the server, the rate before."""
        return self._resumes_at or self.base

    def set(self, rate: float) -> None:
        self.rate = rate
        self.burst = max(1.0, law.BURST * self._quota.window * rate)

    def resume(self, rate: float, *, refused: bool) -> None:
        """Continue at the rate of another program or law; if a request was `refused` there, the limit is known."""
        if refused:
            self.start.over = True
            self.set(self._quota.bounded(rate))
        else:
            # Start at a higher rate, but with the same caution.
            self.rate = max(self.rate, self._quota.bounded(rate))

    def update(self, factor: float) -> None:
        """Continue with the same fraction of another quota; `factor` is the new quota divided by the old one."""
        over, self.start = self.start.over, ColdStart(self._quota)
        self.start.over = over
        self._adopt()
        self.set(self._quota.bounded(self.rate * factor))

    # Permits

    def release(self, start: float, now: float, credit: float = 0.0, *, waiting: bool) -> float:
        """The credit including the permits released from `start` to `now`; `waiting` if requests waited for them.

        If both instants are the same, these are the permits that a success has just released.
        """
        if now <= start:
            released, self._released = self._released, 0.0
            return credit + released
        history = self.history
        if waiting is not history.holds or now < self._held_until:
            history.note(start, holds=waiting or now < self._held_until)
        seconds = now - start
        if start < self.paused_until:
            seconds = max(0.0, now - self.paused_until)
        if self.guide.in_force:
            released = self.guide.release(now - seconds, now)
            self.set(self.guide.rate)
        elif not waiting or self._resumes_at:
            released = self.rate * seconds
        elif self.rate >= self._quota.ceiling:
            released = self._quota.most * seconds
            self._quiet += seconds
        elif not self.start.over:
            self.rate, released = self.start.doubled(self.rate, seconds)
        else:
            released = self._grow(seconds)
        return credit + released

    def time_for(self, permits: float, now: float) -> float:
        """Seconds from `now`, or from the end of the pause, until this many more permits are released."""
        if self.guide.in_force:
            return self.guide.time_for(permits, max(now, self.paused_until))
        if self.rate >= self._quota.ceiling:
            return permits / self._quota.most
        return permits / self.rate if self.start.over else self.start.time_for(permits, self.rate)

    def least_time_for(self, permits: float, now: float) -> float:
        """A lower bound of `time_for`: successes may release permits, and the rate may grow."""
        if self.start.releases:
            permits = max(0.0, permits - self.start.early)
        seconds, ceiling = self.time_for(permits, now), self._quota.ceiling
        if not self.start.over or self.guide.in_force or not self.rate < ceiling < math.inf:
            return seconds
        return permits / min(ceiling, self.law.grown(self.rate, self._quiet, seconds))

    def take(self, turn: Turn, now: float) -> float:
        """Count a request that is admitted now; returns the permits that it takes: one, plus or minus some jitter."""
        history = self.history
        if 0.0 <= now - history.since < history.span:  # Nearly always.
            history.latest += 1.0
        else:
            history.add(now)
        if self.rate >= self._quota.ceiling:
            return 1.0
        return 1.0 + self._jitter * (2.0 * turn.chance - 1.0)

    def give_back(self, turn: Turn) -> None:
        """Take back a request that was counted but not sent."""
        self.history.add(turn.since, -1.0)

    def ignore(self, turn: Turn) -> None:
        """Ignore an answer that says nothing about the quota."""

    def nap(self, wait: float) -> float:
        """Half of a long wait, after which to ask again: the rate may have grown, unless it is at its ceiling."""
        if self.rate >= self._quota.ceiling and not self.guide.in_force:
            return wait
        return min(wait, max(min(1.0, law.LEAST_PAUSE * self._quota.window), wait / 2))

    # Answers

    def listens(self, now: float, *, refused: bool = False) -> bool:
        """Whether to read an answer's quota headers; once per second while no answer has had any."""
        guide = self.guide
        if not guide.listening or (guide.is_uninformed and now < self._listens_at and not refused):
            return False
        self._listens_at = now + _HEADER_INTERVAL
        return True

    @property
    def ignores_successes_until(self) -> float:
        """When a success may matter again: end a streak of refusals, release permits, or describe the quota."""
        # If the rate alone restores the whole burst immediately, permits released by a success make no difference.
        releases = self.start.releases and self.rate * _NEGLIGIBLE < self.burst
        searches = not (self.start.over or self.start.is_bursty or self._quota.is_given)
        if releases or searches or self._congestion.streak or not self._congestion.is_answered:
            return -math.inf
        if not self.guide.listening:
            return math.inf
        return self._listens_at if self.guide.is_uninformed else -math.inf

    def follow(self, reading: Reading | None, answer: Answer) -> bool:
        """Apply an answer's quota headers; returns whether they explain a refusal: the window is used up.

        Such a refusal is not a congestion event: the window's usage determines the rate in the next one.
        """
        guide, quota = self.guide, self._quota
        followed = guide.in_force
        explained = guide.observe(reading, answer.now, answer.sent, self.rate, refused=answer.is_refusal)
        described = reading if guide.in_force else None
        # Headers that are no longer believed may have described a window that is shorter, or none.
        if (described is not None or not guide.listening) and quota.stated(described):
            self._adopt()
        if followed or guide.in_force:
            self.start.over = True
            self.set(guide.rate)
            self.paused_until = max(self.paused_until, guide.paused_until)
        return explained

    def accepted(self, turn: Turn, answer: Answer) -> None:
        """Record that a request was accepted, which may release permits."""
        self.start.note(answer.sent)
        free = self.start.released_by_success()
        if free:
            self.burst = max(self.burst, self.start.burst)
            self._released += free
        if self._congestion.accepted(answer.sent) and self._resumes_at:
            # The request that probed the server was accepted.
            self.set(max(self.rate, self._resumes_at))
            self._resumes_at = 0.0

    def refused(self, turn: Turn, answer: Answer, asked: float | None, *, explained: bool) -> None:
        """Record a refusal, which asks for a wait of `asked` seconds."""
        self.history.add(answer.sent, -1.0)
        first = not self.start.over
        past = self.history.past(answer.now, cold=first)
        streak, event = self._congestion.streak, self._congestion.refused(answer.sent)
        cut = event and not explained
        if cut:
            self._cut(answer.now, asked or 0.0, past)
        self._quota.asked(asked)
        self._adopt()
        again = self._congestion.streak > max(streak, 1)
        self._stop(turn, answer, asked, explained=explained, severe=first or again)

    def found(self, now: float) -> Found:
        """What was learned before a refusal that did not say how long to wait."""
        return self.start.found(self.history.past(now, cold=not self.start.over), self.rate, now)

    def _adopt(self) -> None:
        """Adopt what is now known about the quota."""
        quota = self._quota
        self.law = quota.law()
        self.history.span, self.history.window = self.law.history, quota.window
        self._jitter = _SHORT_WINDOW_JITTER if quota.is_given and law.is_soft(quota.window) else _JITTER

    def _grow(self, seconds: float) -> float:
        """Let the rate grow by the law; returns the permits released during that time."""
        quota, before = self._quota, self.rate
        # No waiter sleeps longer than a window: in a longer step, the process was suspended. A ceiling bounds growth.
        counted = seconds if quota.requests < math.inf else min(seconds, quota.window)
        self.set(min(quota.ceiling, max(before, self.law.grown(before, self._quiet, counted))))
        self._quiet += counted
        return (before + self.rate) / 2 * seconds

    def _cut(self, now: float, asked: float, past: law.Past) -> None:
        if past.cold and self.start.excuses(past, self.rate, asked):
            if not past.successes:  # A refusal lowers the rate, unless it was of the program's own burst.
                self.rate = max(self._quota.floor, self.rate / 2)
            self.burst = 1.0
        else:
            longest = law.longest_pause(self._quota.window)
            if past.cold and self._quota.requests == math.inf and asked <= longest:
                # The server accepts nothing until the wait is over, and at least one request then.
                past = past._replace(successes=max(1.0, past.successes), seconds=past.seconds + asked)
            self.set(max(self._quota.floor, self.law.cut(self.rate, past)))
            self.start.over = True
        self._congestion.cut(now)
        self._quiet = 0.0

    def _stop(
        self, turn: Turn, answer: Answer, asked: float | None, *, explained: bool, severe: bool
    ) -> None:
        """Pause all requests, or, in a short window, only the refused one, unless the refusal is severe."""
        now, chance = answer.now, answer.chance
        window, streak = self._quota.window, self._congestion.streak
        probes, floor = False, self._quota.floor
        if asked is None:
            asked = min(law.DEFAULT_PAUSE, law.LEAST_PAUSE * window)
            # The server may refuse everything for an hour, and may accept again at any time.
            most = law.MAX_STREAK
            probes, streak, floor = streak > most, min(streak, most), max(floor, law.PROBE_RATE)
        if explained or not law.is_soft(window, asked):
            stop = law.full_pause(asked, streak, window, self.rate, chance)
            probes = probes or asked > law.longest_pause(window)
        else:
            # The other requests pause for up to a window after the very first refusal, because the rate has just
            # doubled, and after two consecutive refusals.
            stop = chance * window if severe else 0.0
            turn.not_before = now + asked
            self._held_until = max(self._held_until, turn.not_before)
        if probes and not self._resumes_at:
            # One request at a time probes the server, and its answer decides.
            self._resumes_at = self.rate
            self.set(min(floor, self.rate))
        if stop > window:
            # Over such a long pause, the measured goodput would be zero.
            self.history.restart(now + stop)
        self.paused_until = max(self.paused_until, now + stop)
