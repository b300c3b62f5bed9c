"""Permits at a rate that adapts to the server's answers, so that senders can share a quota.

Several processes use one quota, and none knows about the others. The server's answers decide which law is in force:
`WindowedRate` if they ask for a wait or describe the window, `SilentServerRate` if the server just refuses.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from ..._operations import Operation
from ..._retry_after import retry_after
from ..limiter import Answer, RateChange, Turn, was_admitted
from ..pace.headers import Reading
from ..pace.law import SHORT_WAIT, is_soft
from ..pace.quota import KnownQuota, LearnedRate
from ..pace.silent_rate import SilentServerRate
from ..pace.windowed import WindowedRate
from . import ROUNDING, TICK, Limits, Source, warning
from .request_limits import NEVER, Rate

_FIRST_REASON: Final = "429 Too Many Requests: a first estimate of the quota"

# Seconds after the first of consecutive refusals, and refusals per call, that use up no attempt: a window of a minute
# may be used up.
_EXCUSED_SECONDS: Final = 65.0
_MAX_EXCUSES: Final = 20

_UNAVAILABLE: Final = 503
_WARN_AFTER: Final = 20  # Answers 503 before a warning, if the server has never refused a request with 429.

_UNAVAILABLE_AGAIN: Final = (
    "%d answers were 503 and none was 429: the adaptive limiter does not treat 503 as a refusal, and does not slow"
    " down. If a quota is behind them, as by default in nginx, set limit_req_status to 429, or see 'Servers that"
    " refuse with another status' in docs/adaptive.md"
)

# Turns to search for one that waits only for this limit; all before it may have the same key, for instance.
_SEARCH_LIMIT: Final = 1000

Save = Callable[[LearnedRate, Answer, Any], Operation | None]
"""Records what was learned. Returns the given operation or, if saving is due, one that runs it and saves."""


class AdaptiveRate(Rate):
    """A bucket whose rate and burst follow what the server accepts."""

    limit = "adaptive rate"

    def __init__(
        self, quota: KnownQuota, *, learned: LearnedRate | None = None, save: Save | None = None
    ) -> None:
        self.quota, self._save = quota, save
        if learned is not None and learned.refused:
            quota.resume(learned.window)
        self._windowed = WindowedRate(quota)
        if learned is not None:
            self._windowed.resume(learned.rate, refused=learned.refused)
        self.mode: WindowedRate | SilentServerRate = self._windowed  # The law in force.
        self._reported, self._finding = self._windowed.rate, ""
        self.ignores_successes_until = -math.inf  # Until then, successes need not be reported.
        self._has_accepted, self._refused_since = False, math.inf
        # Answers 503; `_WARN_AFTER` or more once there was a 429 or a header, so as not to warn.
        self._unavailable = 0
        # While it is quiet, until a request waits or an answer arrives, the credit depends only on time and the rate.
        self._at, self.credit, self.paused_until, self._is_quiet = NEVER, 0.0, NEVER, False

    def __str__(self) -> str:
        return str(self.mode)

    @property
    def rate(self) -> float:  # type: ignore[override]
        return self.mode.rate

    @property
    def burst(self) -> float:  # type: ignore[override]
        return self.mode.burst

    def _advance(self, now: float) -> None:
        start, mode = self._at, self.mode
        self._at, self._is_quiet = now, False
        if start == NEVER:
            self.credit = mode.burst
        elif self.waiting:
            before, is_awaited = mode.rate, self._is_awaited()
            credit = mode.release(start, now, self.credit, waiting=is_awaited)
            if is_awaited and mode.rate != before and self._has_moved():  # The next success reports it.
                self.ignores_successes_until = -math.inf
            self.credit = self._kept(credit, mode.burst) if credit > mode.burst else credit
        else:
            credit, most = mode.release(start, now, self.credit, waiting=False), mode.burst
            self.credit = credit if credit < most else most  # noqa: FURB136 - a call takes longer
            if isinstance(mode, WindowedRate) and now >= mode.paused_until:
                self._is_quiet = not (mode.history.holds or mode.guide.in_force)

    def _is_awaited(self) -> bool:
        """Whether a turn waits for this source, and no earlier turn waits for another source of that turn."""
        order = self.order
        if not order.is_mixed:  # The same source holds up all turns.
            source = order.turns[0].held_by
            return source is self or source is None or source.is_remote
        others: set[Source] = set()
        for turn in islice(self.turns, _SEARCH_LIMIT):
            source = turn.held_by
            if source is None and others:
                continue  # It has just arrived.
            if others.isdisjoint(turn.sources):
                if source is self or source is None or source.is_remote:
                    return True
                others.add(source)
        return False

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        mode, seconds = self.mode, now - self._at
        if seconds > 0.0 and self._is_quiet and not self.waiting:
            # The same as `_advance`; most permits are released here.
            credit, most = self.credit + mode.rate * seconds, mode.burst
            self._at, self.credit = now, credit if credit < most else most  # noqa: FURB136
        elif seconds > 0.0:
            self._advance(now)
        missing = ahead + 1 - self.credit
        if missing <= ROUNDING and now >= self.paused_until and now >= mode.paused_until:
            return 0.0
        wait = mode.time_for(missing, now) if missing > 0.0 else 0.0
        if now < self.paused_until or now < mode.paused_until:
            wait += max(self.paused_until, mode.paused_until) - now
        wait = wait if wait > TICK else TICK  # noqa: FURB136
        turn.nap = min(turn.nap, mode.nap(wait))
        return wait

    def least_wait(self, seconds: float, ahead: int, now: float) -> float:
        pause = max(0.0, self.paused_until - now, self.mode.paused_until - now)
        return pause + self.mode.least_time_for(max(0.0, ahead + 1 - self.credit), now)

    def take(self, turn: Turn, now: float) -> None:
        self.credit -= self.mode.take(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        if now > self._at:
            self._advance(now)
        self.mode.give_back(turn)
        super().give_back(turn, now)

    def listens(self, now: float) -> bool:
        return now >= self.ignores_successes_until

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        now = answer.now
        if now > self._at:
            self._advance(now)
        self._is_quiet = False
        change, before = self._learn(turn, answer), self.credit
        mode = self.mode
        is_awaited = self.waiting > 0 and self._is_awaited()
        credit = mode.release(now, now, before, waiting=is_awaited)
        self.credit = min(credit, max(before, mode.burst))  # Permits that an answer releases do not add up.
        return change

    def update(self, limits: Limits) -> None:
        """Adapt to another quota from now on, and keep the same fraction of it."""
        if limits.max_requests is None or limits.time_window is None:  # The numbers are those of the units.
            return
        before = self.quota.ceiling
        self.quota.update(limits.max_requests, limits.time_window)
        for mode in {self._windowed, self.mode}:
            mode.update(self.quota.ceiling / before)

    # Answers of the server

    def _learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Adjust the rate to the answer: a 429 slows all requests down, and a success shows what the server accepts."""
        response, turn.paced = answer.response, answer.is_refusal
        if response is None or not (turn.paced or was_admitted(response)):
            self.mode.ignore(turn)
            if response is not None and response.status_code == _UNAVAILABLE:
                self._unavailable += 1
                if self._unavailable == _WARN_AFTER:
                    turn.errand = warning(_UNAVAILABLE_AGAIN, _WARN_AFTER)
            return None
        reading = None
        if self._windowed.listens(answer.now, refused=turn.paced):
            reading = self.quota.read(response, answer.date())
        if turn.paced:
            asked = retry_after(response.headers, answer.date())
            change = self._refused(turn, answer, asked, reading)
        else:
            change = self._accepted(turn, answer, reading)
        if change is not None and self._save is not None:
            rate, refused = self.mode.lasting, self._windowed.start.over
            learned = LearnedRate(rate, self.quota.window, refused, finding=self.mode.finding)
            turn.errand = self._save(learned, answer, turn.errand)
        return change

    def _accepted(self, turn: Turn, answer: Answer, reading: Reading | None) -> RateChange | None:
        """Record that the server accepted a request; `reading` is from its quota headers."""
        described = self._windowed.guide.in_force
        if reading is not None:
            self._follow(reading, answer)
            described = described or self._windowed.guide.in_force
        self.mode.accepted(turn, answer)
        self._has_accepted, self._refused_since = True, math.inf
        change = None
        if self._has_moved() or self.mode.finding not in ("", self._finding):
            change = self._report(self.mode.base, "rate limit headers" if described else "")
        self.ignores_successes_until = self.mode.ignores_successes_until
        return change

    def _refused(
        self, turn: Turn, answer: Answer, asked: float | None, reading: Reading | None
    ) -> RateChange | None:
        """Record a 429 that asks for a wait of `asked` seconds; None if it does not."""
        now = answer.now
        windowed, first = self._windowed, not self._windowed.start.over
        self._refused_since = min(self._refused_since, now)
        explained = self._follow(reading, answer)
        if (asked or 0.0) <= SHORT_WAIT and not explained and self.quota.plain is None:
            turn.excused = self._is_excused(turn, now)
        is_silent = asked is None or (not self.quota.was_asked and self._is_coarse(asked, now))
        if is_silent and reading is None and not explained and self._can_use_silent_law():
            if isinstance(self.mode, SilentServerRate):
                self.mode.refused(turn, answer, asked)
            else:
                self.mode = SilentServerRate(self.quota, windowed.found(now), now, asked=asked)
            if asked:  # Regardless of the rate, the refused request itself waits as asked.
                turn.not_before = now + asked
            is_news = self._has_moved()
        else:
            self._resume_windows(now)
            windowed.refused(turn, answer, asked, explained=explained)
            is_news = not explained and windowed.rate < self._reported
        self.ignores_successes_until = -math.inf
        if not is_news:
            return None
        found = first and windowed.start.over and not self.quota.is_given
        return self._report(self.rate, _FIRST_REASON if found else "")

    def _is_coarse(self, asked: float, now: float) -> bool:
        """Whether whole seconds are too coarse for this wait: 0 means a fraction, and 1 may span many gaps."""
        if asked == 0:
            return True
        is_slow = isinstance(self.mode, SilentServerRate) and self.mode.is_slow(now)
        return asked <= SHORT_WAIT and not (self.quota.is_given or is_slow)

    def _is_excused(self, turn: Turn, now: float) -> bool:
        """Whether a refusal uses up no attempt: a window used up by others may soon end."""
        accepts = self._has_accepted or isinstance(self.mode, SilentServerRate)
        return accepts and now - self._refused_since < _EXCUSED_SECONDS and turn.excuses < _MAX_EXCUSES

    def _can_use_silent_law(self) -> bool:
        """Whether `SilentServerRate` handles a silent server: not with plain AIMD or a given long window."""
        quota = self.quota
        return quota.plain is None and not (quota.is_given and not is_soft(quota.window))

    def _follow(self, reading: Reading | None, answer: Answer) -> bool:
        """Apply the quota headers; returns whether they explain a refusal."""
        self._unavailable = _WARN_AFTER
        windowed = self._windowed
        if windowed is not self.mode:
            windowed.rate = self.mode.rate
        explained = windowed.follow(reading, answer)
        if windowed.guide.in_force:
            self._resume_windows(answer.now)
        return explained

    def _resume_windows(self, now: float) -> None:
        """Return to the windowed law at the current rate: the server has given information about its quota."""
        if self.mode is not self._windowed:
            self._windowed.resume(self.mode.rate, refused=True)
            self._windowed.history.restart(now)
            self.mode = self._windowed

    def _has_moved(self) -> bool:
        return abs(self.mode.base - self._reported) > self.mode.least_change * self._reported

    def _report(self, rate: float, reason: str) -> RateChange:
        """Report the rate; by default, the reason is a refusal or the lack of refusals."""
        finding = self.mode.finding
        if not reason:
            reason = "no refusal since" if self.mode.base > self._reported else "429 Too Many Requests"
            reason += f": {finding}" if finding else ""
        change = RateChange(self._reported, rate, reason)
        self._reported, self._finding = rate, finding
        return change
