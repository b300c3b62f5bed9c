"""Permits at a rate that is found from the server's answers, at which a shared quota can be used.

Several processes share one quota, and none knows about the others. What a server says decides which law is in force:
`WindowedRate` where it asks for a wait or describes its window, `BlindRate` where it just refuses.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from ..._operations import Operation
from ..._retry_after import retry_after
from ..limiter import Answer, RateChange, Turn
from ..pace.blind import BlindRate
from ..pace.headers import Reading, is_accepted
from ..pace.law import SHORT_WAIT, is_soft
from ..pace.quota import KnownQuota, LearnedRate
from ..pace.windowed import WindowedRate
from .request_limits import NEVER, Rate
from .source import ROUNDING, TICK, Limits, Source

_FIRST_ESTIMATE = "429 Too Many Requests: a first estimate of the quota"

_EXCUSED_SECONDS, _MAX_EXCUSES = 65.0, 20
"""Seconds from the first of a row of refusals, and refusals of a call, that use up no attempt: a window of a minute may
be used up."""

_SEARCH_LIMIT: Final = 1000
"""How far to look for one that waits for this limit and for no other: all before it may be of one key, for instance."""

Save = Callable[[LearnedRate, Answer, Any], Operation | None]
"""Notes what was learned. If saving is due, returns an operation that saves after the given one; or else that one."""


class AdaptiveRate(Rate):
    """A bucket whose rate and burst follow what the server accepts. `plain`: the factors of AIMD instead of the law."""

    limit = "adaptive rate"

    def __init__(
        self,
        quota: KnownQuota,
        *,
        plain: tuple[float, float] | None = None,
        learned: LearnedRate | None = None,
        save: Save | None = None,
    ) -> None:
        self.quota, self._save = quota, save
        if learned is not None and learned.refused:
            quota.resume(learned.window)
        self._windowed = WindowedRate(quota, plain)
        if learned is not None:
            self._windowed.resume(learned.rate, refused=learned.refused)
        self._is_plain = plain is not None
        self.mode: WindowedRate | BlindRate = self._windowed  # The law in force.
        self._reported, self._finding = self._windowed.rate, ""
        self.ignores_successes_until = -math.inf  # Until then, a success need not be reported.
        self._has_accepted, self._refused_since = False, math.inf
        # Quiet: until a request waits or an answer comes, nothing but time and the rate moves the credit.
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
        """Whether anybody waits for permits of this source, and nobody before for those of another of its sources."""
        order = (self.stands_for or self).order
        if not order.is_mixed:  # What holds up one holds up all.
            source = order.turns[0].held_by
            return source is self or source is None or source.is_remote
        others: set[Source] = set()
        for turn in islice(self.turns, _SEARCH_LIMIT):
            source = turn.held_by
            if source is None and others:
                continue  # It has just come.
            if others.isdisjoint(turn.sources):
                if source is self or source is None or source.is_remote:
                    return True
                others.add(source)
        return False

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        mode, seconds = self.mode, now - self._at
        if seconds > 0.0 and self._is_quiet and not self.waiting:
            # What `_advance` would do: most permits are released here.
            credit, most = self.credit + mode.rate * seconds, mode.burst
            self._at, self.credit = now, credit if credit < most else most  # noqa: FURB136
        elif seconds > 0.0:
            self._advance(now)
        missing = ahead + 1 - self.credit
        if missing <= ROUNDING and now >= self.paused_until and now >= mode.paused_until:
            return 0.0
        wait = mode.time_for(missing, now) if missing > 0.0 else 0.0
        wait = max(TICK, wait + max(0.0, self.paused_until - now, mode.paused_until - now))
        turn.nap = min(turn.nap, mode.nap(wait))
        return wait

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
        self.credit = min(credit, max(before, mode.burst))  # What an answer releases is owed to nobody.
        return change

    def update(self, limits: Limits) -> None:
        """Adapt to another quota from now on, of which this sender gets the same share."""
        assert limits.max_requests is not None and limits.time_window is not None  # noqa: PT018
        before = self.quota.ceiling
        self.quota.update(limits.max_requests, limits.time_window)
        self._windowed.update(self.quota.ceiling / before)
        if isinstance(self.mode, BlindRate):
            self.mode.update(self.quota.ceiling / before)

    # What the server says.

    def _learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the answer move the rate: a 429 slows all requests down, and a success shows how much gets through."""
        turn.paced = answer.is_refusal
        if answer.response is None or not (turn.paced or is_accepted(answer)):
            self.mode.ignore(turn)
            return None
        reading = None
        if self._windowed.listens(answer.now, refused=turn.paced):
            reading = self.quota.read(answer.response, answer.date())
        if turn.paced:
            asked = retry_after(answer.response.headers, answer.date())
            change = self._refused(turn, answer, asked, reading)
        else:
            change = self._accepted(turn, answer, reading)
        if change is not None and self._save is not None:
            rate, refused = self.mode.lasting, self._windowed.start.over
            learned = LearnedRate(rate, self.quota.window, refused, finding=self.mode.finding)
            turn.errand = self._save(learned, answer, turn.errand)
        return change

    def _accepted(self, turn: Turn, answer: Answer, reading: Reading | None) -> RateChange | None:
        """Note that the server accepted a request, with `reading` from its quota headers."""
        if reading is not None:
            self._follow(reading, answer)
        self.mode.accepted(turn, answer.now, answer.sent)
        self._has_accepted, self._refused_since = True, math.inf
        change = None
        if self._has_moved() or self.mode.finding not in ("", self._finding):
            described = self._windowed.guide.in_force
            change = self._report(self.mode.base, "rate limit headers" if described else "")
        self.ignores_successes_until = self.mode.ignores_successes_until
        return change

    def _refused(
        self, turn: Turn, answer: Answer, asked: float | None, reading: Reading | None
    ) -> RateChange | None:
        """Note that the server answered 429, asking for a wait of `asked` seconds."""
        now, sent, chance = answer.now, answer.sent, answer.chance
        windowed, first = self._windowed, not self._windowed.start.over
        self._refused_since = min(self._refused_since, now)
        explained = self._follow(reading, answer)
        if (asked or 0.0) <= SHORT_WAIT and not (explained or self._is_plain):
            turn.excused = self._is_bad_luck(turn, now)
        is_silent = asked is None or (not self.quota.was_asked and self._is_coarse(asked, now))
        if is_silent and reading is None and not explained and self._can_be_blind():
            if isinstance(self.mode, BlindRate):
                self.mode.refused(turn, now, sent, chance, asked)
            else:
                self.mode = BlindRate(self.quota, windowed.found(now), now, asked=asked)
            if asked:  # The refused request itself waits as asked, whatever that says about the rate.
                turn.not_before = now + asked
            is_news = self._has_moved()
        else:
            self._resume_windows(now)
            windowed.refused(turn, now, sent, asked, chance, explained=explained)
            is_news = not explained and windowed.rate < self._reported
        self.ignores_successes_until = -math.inf
        if not is_news:
            return None
        found = first and windowed.start.over and not self.quota.is_given
        return self._report(self.rate, _FIRST_ESTIMATE if found else "")

    def _is_coarse(self, asked: float, now: float) -> bool:
        """Whether whole seconds are too coarse for this wait: 0 stands for a fraction, and 1 may span many gaps."""
        if asked == 0:
            return True
        is_slow = isinstance(self.mode, BlindRate) and self.mode.is_slow(now)
        return asked <= SHORT_WAIT and not (self.quota.is_given or is_slow)

    def _is_bad_luck(self, turn: Turn, now: float) -> bool:
        """Whether a refusal uses up no attempt: a window that others have used up may soon end."""
        accepts = self._has_accepted or isinstance(self.mode, BlindRate)
        return accepts and now - self._refused_since < _EXCUSED_SECONDS and turn.excuses < _MAX_EXCUSES

    def _can_be_blind(self) -> bool:
        """Whether `BlindRate` handles refusals that say nothing; if a long window was given, the windowed law does."""
        return not self._is_plain and not (self.quota.is_given and not is_soft(self.quota.window))

    def _follow(self, reading: Reading | None, answer: Answer) -> bool:
        """Take in the quota headers; returns whether they explain a refusal."""
        windowed = self._windowed
        if windowed is not self.mode:
            windowed.rate = self.mode.rate
        explained = windowed.follow(reading, answer.now, answer.sent, refused=answer.is_refusal)
        if windowed.guide.in_force:
            self._resume_windows(answer.now)
        return explained

    def _resume_windows(self, now: float) -> None:
        """Return to the windowed law at the present rate: the server has said something about its quota."""
        if self.mode is not self._windowed:
            self._windowed.resume(self.mode.rate, refused=True)
            self._windowed.history.restart(now)
            self.mode = self._windowed

    def _has_moved(self) -> bool:
        return abs(self.mode.base - self._reported) > self.mode.least_change * self._reported

    def _report(self, rate: float, reason: str) -> RateChange:
        """Report the rate; without another reason, it moved with the refusals."""
        finding = self.mode.finding
        if not reason:
            reason = "no refusal since" if self.mode.base > self._reported else "429 Too Many Requests"
            reason += f": {finding}" if finding else ""
        change = RateChange(self._reported, rate, reason)
        self._reported, self._finding = rate, finding
        return change
