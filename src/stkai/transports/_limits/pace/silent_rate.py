"""The rate for silent servers, which refuse without saying how long to wait, as nginx does.

Permits are evenly spaced, `EqualRefusals` moves the rate, and `PairTest` finds out whether refusals are collisions.
This module decides when to send a refused request again, when to hold all requests back, and how to end an outage.
"""

import math
from typing import Final

from ..limiter import Answer, Turn
from .evidence import InFlightLimit, Unanswered
from .law import LEAST_CHANGE
from .pairs import PairTest
from .quota import KnownQuota
from .silent_servers import EqualRefusals, SilentWindow
from .start import Found

# While no rate is known, each success raises the rate as if it had grown since the last success by `_START_GROWTH` per
# second, or had doubled every `_START_DOUBLING` seconds if that is more.
_START_RATE: Final = 2.0  # Requests per second, if only a small burst was accepted before.
_START_GROWTH: Final = 4.0
_START_DOUBLING: Final = 1.0
_MAX_CREDITED: Final = 0.5  # Upper bound, in seconds, of the time since the last success.
_MIN_ACCEPTED: Final = 20  # Successes before the first refusal that show a rate; fewer may be a small bucket.

# An outage is a row of this many refusals, after which the rate falls no further, or a row of these seconds.
_REFUSALS_IN_OUTAGE: Final = 5
_REFUSALS_IN_STRICT_OUTAGE: Final = 10  # If refusals are collisions.
_OUTAGE_SECONDS: Final = 3.0
_REGAINED: Final = 0.9  # Fraction of the earlier rate at which the recovery ends.
_REGAINED_IN_WINDOW: Final = 0.95  # Instead, of the successes per second in the window that has ended.
_REGAIN_DOUBLING: Final = 0.5  # Seconds in which the rate doubles until then.

# After an outage of these seconds, and of this many gaps, all refusals are forgotten: they are not typical.
_LONG_OUTAGE: Final = 20.0
_LONG_OUTAGE_GAPS: Final = 8.0

# In a row that collisions do not explain, refusal n holds all requests back for 1.5 * 2^(n - 2) gaps.
_HOLD_GAPS: Final = 1.5
_MIN_HOLD: Final = 0.1  # Seconds, instead of 1.5 gaps.
_MAX_HOLD: Final = 2.1  # Seconds.
_LONG_ROW: Final = 6  # Refusals.
_MAX_LONG_HOLD: Final = 4.2  # Seconds, after more than `_LONG_ROW` refusals in a row.

_STRICT_CHANGE: Final = 0.3  # Replaces `LEAST_CHANGE` if refusals are collisions: the rate keeps moving.

# Seconds by which a request may be late and still keep its schedule, up to half a gap. Not for strict servers, which
# would refuse the shorter gap.
_MAX_LATENESS: Final = 0.05

_MAX_SILENCE: Final = 20.0  # Seconds without a success, after which the rate stops growing.
_MAX_STRICT_GROWTH: Final = 1.5  # Growth factor between successes of a strict server: patience may be short.
_MAX_GROWTH_STEP: Final = 1.0  # Seconds of growth at a time: in a longer step, the process was suspended.

# Seconds after a cut in which refusals cut no more, as at the end of a window; only if the rate is at least this.
_CUT_COVERS: Final = 1.0
_MIN_COVERED_RATE: Final = 6.0

# A sender is slow if fewer requests per second than this were accepted, over at least these seconds.
_SLOW_RATE: Final = 1.5
_JUDGED_AFTER: Final = 10.0

_PAIR_NAP: Final = 0.002  # Seconds after which the second of a pair asks again if it woke before the first.
_MIN_NAP: Final = 0.25  # Seconds that a waiter sleeps before it asks again: the rate may have grown.


class SilentServerRate:
    """A rate that follows only which requests are accepted. Begins with a refusal, which may ask for up to 2 s."""

    burst = 1.0  # Requests are spaced out.
    paused_until = -math.inf  # The credit takes pauses into account.
    ignores_successes_until = -math.inf  # Every success counts.

    def __init__(self, quota: KnownQuota, found: Found, now: float, *, asked: float | None = None) -> None:
        self._quota, self._starting, self._asks = quota, found.is_open, asked is not None
        is_small = found.is_open and not quota.is_given and found.accepted < _MIN_ACCEPTED
        self._test = PairTest(quota, is_bursty=found.is_bursty)
        self._in_flight, self._unanswered = InFlightLimit(now), Unanswered()
        self._window = SilentWindow(found.since, found.accepted)
        self.law = EqualRefusals(quota, self._test, self._window)
        self.rate = self._bounded(_START_RATE if is_small else found.rate)  # Requests per second.
        self.credit = 0.0  # 1.0 once the next permit is due; less until then.
        self.row, self._was_awaited = 0, True  # Refusals in a row.
        self._row_at = self._hold = self._refused_sent = -math.inf
        # The rate before a row of refusals (0 while it is to be found), and the target of a recovery.
        self._before, self._back = 0.0, math.inf
        # Refusals of requests sent until now have been taken into account.
        self._cut_at = self._accepted_at = now
        self._covered_until = now + (asked or (_CUT_COVERS if found.accepted >= _MIN_ACCEPTED else 0.0))
        self._due, self._most = now + 1 / self.rate, math.inf
        self._began, self._accepted = now, 0

    def __str__(self) -> str:
        numbers = f"{self._quota}, " if self._quota.is_given else "found: "
        return f"{numbers}{self.finding or ('short Retry-After' if self._asks else 'no Retry-After')}"

    def is_slow(self, now: float) -> bool:
        """Whether so few requests are accepted that a wait of a second or two is short."""
        seconds = now - self._began
        return seconds > _JUDGED_AFTER and self._accepted < _SLOW_RATE * seconds

    @property
    def _outage(self) -> int:
        return _REFUSALS_IN_STRICT_OUTAGE if self._test.is_strict else _REFUSALS_IN_OUTAGE

    @property
    def _is_refused_again(self) -> bool:
        """Whether growth and all requests are held back, by more refusals in a row than collisions explain."""
        may_collide = self._test.is_strict or (self._quota.is_given and not self._test.is_bursty)
        return self.row > (self._outage if may_collide else 1)

    @property
    def finding(self) -> str:
        """What the server's refusals mean, if that was found out."""
        if self._test.is_strict:
            return "collisions, rate kept"
        return self._window.finding or self._in_flight.finding

    @property
    def least_change(self) -> float:
        return _STRICT_CHANGE if self._test.is_strict else LEAST_CHANGE

    @property
    def base(self) -> float:
        return self.rate

    @property
    def lasting(self) -> float:
        """The rate; during an outage, the rate before it."""
        return self._before or self.rate if self.row >= self._outage else self.rate

    def update(self, factor: float) -> None:
        self.rate = self._bounded(self.rate * factor)
        self._most *= factor

    def release(self, start: float, now: float, credit: float = 0.0, *, waiting: bool) -> float:
        """Let the rate grow from `start` to `now`. Returns the credit, which is 1.0 once the next permit is due."""
        self._was_awaited = self._was_awaited or waiting
        for turn, sent in self._unanswered.accepted(now):
            self._count_success(turn, now, sent)
        if now > start:
            self.law.fade(self.rate, now - start)
            self._window.advance(now)
            # Without successes, nothing supports growth.
            if waiting and now - self._accepted_at < _MAX_SILENCE:
                self._grow(min(now - start, _MAX_GROWTH_STEP))
        test = self._test
        due = test.second_due if test.is_open and now >= self._hold else max(self._due, self._hold)
        self.credit = 1.0 if now >= due else 1.0 - (due - now) * self.rate
        return self.credit

    def time_for(self, permits: float, now: float) -> float:
        """Seconds until this many more permits are released; the two permits of a pair fall due (almost) together."""
        if permits > 1.5 - self.credit and self._test.is_due(now, self.row > 0):
            return max(_PAIR_NAP, self._test.distance, (permits - 1) / self.rate)
        return permits / self.rate

    def least_time_for(self, permits: float, now: float) -> float:
        """A lower bound of `time_for`: the rate may grow, and by any factor while it is to be found or regained."""
        if self._starting or self._back < math.inf:
            return 0.0
        return permits / self.law.grown(self.rate, permits / self.rate)

    def take(self, turn: Turn, now: float) -> float:
        """Take the permit. Returns the credit it uses; for the first of a pair, that of the time until the second."""
        self._in_flight.sent(now)
        self._unanswered.sent(turn, now)
        self.law.refill.sent(now)
        self._window.test.sent(turn, now)
        gap, test, was_open = 1 / self.rate, self._test, self._test.is_open
        paired = test.take(now, gap, self.row > 0)
        if paired is not None:
            turn.note(self, paired)
            if was_open:
                return 1.0
        self._due = max(self._due + gap, now + gap - min(gap / 2, _MAX_LATENESS) * test.is_bursty)
        self._hold = max(self._hold, now + test.rest(now))
        return 1.0 if paired is None else (test.second_due - now) * self.rate

    def ignore(self, turn: Turn) -> None:
        """Record that a request was not sent, or that its answer says nothing; drop the pair that it belongs to."""
        self._in_flight.ended()
        self._unanswered.ended(turn)
        if (paired := turn.noted(self)) is not None:
            self._test.drop(paired)

    give_back = ignore

    def nap(self, wait: float) -> float:
        """Seconds to sleep before asking again."""
        return min(wait, max(_MIN_NAP, wait / 2))

    def _grow(self, seconds: float) -> None:
        if self._starting or self._is_refused_again:
            return
        if self._back < math.inf:
            self.rate = min(self._back, self.rate * 2 ** (seconds / _REGAIN_DOUBLING))
            if self.rate >= self._back:
                self._back = math.inf
        else:
            grown = self.law.grown(self.rate, seconds)
            self.rate = min(max(self.rate, self._most), grown) if self._test.is_strict else grown
        self.rate = self._bounded(self.rate)

    def accepted(self, turn: Turn, answer: Answer) -> None:
        self._in_flight.accepted(answer.now, answer.sent)
        if self._unanswered.answered(turn, answer.now):
            self._count_success(turn, answer.now, answer.sent)

    def _count_success(self, turn: Turn, now: float, sent: float) -> None:
        """Count a request that was accepted, whether it has been answered or not."""
        self.law.refill.answered(sent, accepted=True)
        self._accepted += 1
        self._test.accepted()
        if self._test.observe(turn.noted(self), now, accepted=True, starting=self._starting) == 2:
            self._due += 1 / self.rate
        if self._starting and self._was_awaited and self._test.is_clear:
            added = max(_START_GROWTH, self.rate * math.log(2) / _START_DOUBLING)
            self.rate = self._bounded(self.rate + added * min(_MAX_CREDITED, now - self._accepted_at))
        self._accepted_at, self._was_awaited = now, False
        self._most = _MAX_STRICT_GROWTH * self.rate
        self.law.note(self.rate, refused=False)
        window = self._window
        window.accepted()
        sends_test = window.test.accepted(turn)
        if self.row and sent >= self._refused_sent:  # An earlier request says nothing about the time since.
            is_outage = self.row >= self._outage or now - self._row_at > _OUTAGE_SECONDS
            if is_outage or window.seconds or window.test.is_window:
                self._recover(now)
            self.row = 0
            if self._test.is_bursty and not (self._starting or self._quota.is_given):
                sends_test = window.test.row_ended(now, self.law.refill.rate)
        if sends_test and not self.row:
            self._due = self._hold = now

    def _recover(self, now: float) -> None:
        """Return to most of the rate before the outage."""
        average, in_window = self._window.average(now), self._window.accepts_again(now, self._row_at)
        is_long = now - self._row_at > max(_LONG_OUTAGE, _LONG_OUTAGE_GAPS / self.rate)
        if self._test.is_strict and self.law.refuses_most and not is_long:
            self._test.doubt()  # Mere collisions rarely cause an outage.
        if is_long or in_window:
            self.law.forget()
        if is_long and not (self._before or in_window):
            self._starting, self.rate = True, self._bounded(_START_RATE)
            self._due = self._hold = now + 1 / self.rate  # The gap of the earlier rate is longer.
            self._test.restart()
            return
        # The rate of a start says little; the requests accepted since then say more.
        if back := _REGAINED_IN_WINDOW * in_window or _REGAINED * (self._before or average):
            self._back = back
            self.rate = self._bounded(min(back, max(self.rate, back / 2)))

    def refused(self, turn: Turn, answer: Answer, asked: float | None = None) -> None:
        """Record a refusal that asks for a wait of `asked` seconds, up to 2 s; None if it does not."""
        now, sent, chance = answer.now, answer.sent, answer.chance
        self._in_flight.refused(now, sent)
        self._unanswered.refused(turn, now, sent)
        self.law.row = 0
        was_test = self._window.test.refused(turn, sent)
        self.law.refill.answered(sent, accepted=False, in_row=self.row > 0 or was_test)
        good = self._test.observe(turn.noted(self), now, accepted=False, starting=self._starting)
        if good == 0 or was_test:
            self._due = now + (0.5 + chance) / self.rate
        if good is not None or was_test:
            return
        self.law.note(self.rate, refused=True)
        if sent < self._cut_at and not self.row:
            return
        self.row, self._refused_sent = self.row + 1, sent
        if self.row == 1:
            self._row_at = now
            self._window.refused(now)
            self._before = 0.0 if self._starting and not self._quota.is_given else self.rate
        if sent >= self._covered_until:
            self._cut(now, asked)
        # A bucket needs time to refill; a strict server needs another phase.
        self._due = now + (0.5 + 0.5 * chance if self._test.is_bursty else 0.3 * chance) / self.rate
        is_telling = self.row == 1 and self._test.is_bursty and not self._in_flight.is_suspected
        if is_telling and not self._quota.is_given:
            self._due = min(self._due, sent + self.law.refill.retry_after(chance))
        if self._is_refused_again:
            wait = (0.5 + chance) * 2.0 ** (min(self.row, 12) - 2) * max(_HOLD_GAPS / self.rate, _MIN_HOLD)
            longest = _MAX_HOLD if self.row <= _LONG_ROW else _MAX_LONG_HOLD
            self._hold = max(self._hold, now + min(longest, wait))

    def _cut(self, now: float, asked: float | None) -> None:
        """Cut the rate; for a while, all refusals are of the same event."""
        is_fast = self.rate >= _MIN_COVERED_RATE and not self._test.is_strict
        self._covered_until = now + (asked or (_CUT_COVERS if is_fast else 0.0))
        if self.row <= self._outage:
            self.rate = self._bounded(self.rate / 2 if self._starting else self.law.cut(self.rate))
            self._back = math.inf
        self.law.count_cut()
        self._starting, self._cut_at = False, now

    def _bounded(self, rate: float) -> float:
        return min(self._quota.most, max(rate, self._quota.silent_floor))
