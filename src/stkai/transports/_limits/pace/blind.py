"""The law for servers that refuse without saying how long to wait, as nginx does. Rates are in requests per second.

Permits are evenly spaced, the rate moves by `EqualRefusals`, and `PairTest` finds out whether refusals are collisions.
The law decides when a refused request is sent again, what holds others back, and how the rate returns after an outage.
"""

import math

from ..limiter import Answer, Turn
from .law import LEAST_CHANGE
from .pairs import PairTest
from .quota import KnownQuota
from .silent_servers import EqualRefusals, InFlightLimit, SilentWindow
from .start import Found

_START, _ADDED, _DOUBLING = 2.0, 4.0, 1.0
"""A start: 2 per second after a small burst. A success adds what 4 a second would have added, or doubling if that is
more."""

_OUTAGE, _LONG, _REGAIN, _REGAINED = 5, 3.0, 0.5, 0.9
"""Refusals in a row, or seconds, that are an outage: the rate stays, then doubles in 0.5 s, to 0.9 of the old one."""

_STRICT_OUTAGE = 10  # Refusals in a row that are an outage where refusals are collisions.

_LONGEST, _SHORTEST, _GAPS = 2.1, 0.1, 1.5
"""Seconds for which a second refusal in a row holds back: 1.5 gaps, doubled with each further one, and its bounds."""

_MANY, _LONGER = 6, 4.2  # Refusals in a row after which that is the longest time.

_FLOOR, _FLOOR_SHARE = 0.1, 0.05
"""Requests per second below which the rate never falls, but at most that share of the quota."""

_STRICT_CHANGE = 0.3  # For `LEAST_CHANGE` where refusals are collisions: the rate moves all the time.

_LATE = 0.05
"""Seconds of lateness to make up for, at most half a gap; only where a shorter gap does not collide with itself."""

_RECENT, _RECENT_GAPS = 20.0, 8.0
"""Seconds without a success after which the rate stops growing. If they are also eight gaps, refusals say nothing about
what is usual."""

_MOST_GROWTH = 1.5
"""How much the rate grows at most until the next success at a strict server: patience may be a fraction of a gap."""

_LONGEST_STEP = 1.0  # Seconds of growth at a time: in a longer step, the program stood still.

_COVERED, _FAST = 1.0, 6.0
"""Seconds after a cut in which refusals cut no more, as at the end of a window, and the lowest rate for that."""

_BURST = 20
"""Requests accepted before the first refusal that say something about the rate: fewer may be a small bucket."""

_SLOW, _JUDGED_AFTER = 1.5, 10.0
"""Accepted requests per second below which a wait of a second or two says something, and seconds until it shows."""

_PAIRED = 0.002  # Seconds after which the second of a pair asks again if it woke before the first.

_NAPS = 0.25, 1.0
"""Seconds for which a waiter sleeps at least and at most before it asks again: the rate may have grown."""


class BlindRate:
    """A rate that follows only which requests are accepted. It begins with a refusal, which may ask for 1 or 2 s."""

    burst = 1.0  # No two requests go at once.
    paused_until = -math.inf  # The credit takes pauses into account.
    ignores_successes_until = -math.inf  # Every success counts.

    def __init__(self, quota: KnownQuota, found: Found, now: float, *, asked: float | None = None) -> None:
        self._quota, self._starting, self._asks = quota, found.is_open, asked is not None
        is_small = found.is_open and not quota.is_given and found.accepted < _BURST
        rate = _START if is_small else found.rate
        self._test = PairTest(is_bursty=found.is_bursty, searches=not quota.is_given)
        self._in_flight = InFlightLimit(now)
        self._window = SilentWindow(found.since, found.accepted)
        self.law = EqualRefusals(quota, self._test, self._window)
        self.rate = self._bounded(rate)  # Requests per second.
        self.credit = 0.0  # 1.0 if the next permit is due; the part of it that has been released otherwise.
        self.row, self._was_awaited = 0, True  # Refusals in a row.
        self._row_at = self._hold = -math.inf
        # The rate before a row of refusals (0 in a start), and the target of a recovery.
        self._before, self._back = 0.0, math.inf
        # What was refused until now has been taken into account.
        self._cut_at = self._accepted_at = now
        self._covered_until = now + (asked or (_COVERED if found.accepted >= _BURST else 0.0))
        self._due = now + 1 / self.rate
        self._most = math.inf
        self._began, self._accepted = now, 0

    def __str__(self) -> str:
        numbers = f"{self._quota}, " if self._quota.is_given else "found: "
        return f"{numbers}{self.finding or ('short Retry-After' if self._asks else 'no Retry-After')}"

    def is_slow(self, now: float) -> bool:
        """Whether so little has been accepted that a wait of a second or two is not long."""
        seconds = now - self._began
        return seconds > _JUDGED_AFTER and self._accepted < _SLOW * seconds

    @property
    def _outage(self) -> int:
        return _STRICT_OUTAGE if self._test.is_strict else _OUTAGE

    @property
    def _is_refused_again(self) -> bool:
        """Whether more refusals in a row than collisions explain hold back the rate and the other requests."""
        return self.row > (_STRICT_OUTAGE if self._test.is_strict else 1)

    @property
    def finding(self) -> str:
        """What was found out about the server's refusals."""
        if self._test.is_strict:
            return "collisions, rate kept"
        if window := round(self._window.seconds, -1):
            return f"window of about {window:.0f} s"
        places = self._in_flight.places
        return f"in flight: {places}" if places else ""

    @property
    def least_change(self) -> float:
        """Share by which the rate must move before it is reported again."""
        return _STRICT_CHANGE if self._test.is_strict else LEAST_CHANGE

    @property
    def base(self) -> float:
        """The rate; it does not vary with windows."""
        return self.rate

    @property
    def lasting(self) -> float:
        """The rate; while the server accepts nothing, the rate from before."""
        return self._before or self.rate if self.row >= self._outage else self.rate

    def update(self, share: float) -> None:
        """Continue with the same share of another quota: `share` is the new quota divided by the old one."""
        self.rate = self._bounded(self.rate * share)
        self._most *= share

    # Permits

    def release(self, start: float, now: float, credit: float = 0.0, *, waiting: bool) -> float:
        """Let the rate grow from `start` to `now`, and find out whether the next permit is due: that is the credit."""
        self._was_awaited = self._was_awaited or waiting
        if now > start:
            self.law.fade(self.rate, now - start)
            self._window.forget_if_old(now)
            if waiting and now - self._accepted_at < _RECENT:  # What is not answered supports no growth.
                self._grow(min(now - start, _LONGEST_STEP))
        test = self._test
        due = test.second_due if test.is_open and now >= self._hold else max(self._due, self._hold)
        self.credit = 1.0 if now >= due else 1.0 - (due - now) * self.rate
        return self.credit

    def time_for(self, permits: float, now: float) -> float:
        """Seconds until this many more permits are released; those of a pair are due together, or nearly."""
        if permits > 1.5 - self.credit and self._test.is_due(now, self.row > 0):
            return max(_PAIRED, self._test.distance, (permits - 1) / self.rate)
        return permits / self.rate

    def take(self, turn: Turn, now: float) -> float:
        """Take the permit; returns the credit that it uses: the first of a pair uses that of the time to the second."""
        self._in_flight.sent(now, self._accepted_at)
        gap, test, was_open = 1 / self.rate, self._test, self._test.is_open
        paired = test.take(now, gap, self.row > 0)
        if paired is not None:
            turn.note(self, paired)
            if was_open:
                return 1.0
        self._due = max(self._due + gap, now + gap - min(gap / 2, _LATE) * test.is_bursty)
        if rest := test.rest(now):
            self._hold = max(self._hold, now + rest)
        return 1.0 if paired is None else (test.second_due - now) * self.rate

    def ignore(self, turn: Turn) -> None:
        """Note that a request was not sent, or its answer says nothing: if it was one of a pair, there is no pair."""
        self._in_flight.ended()
        if (paired := turn.noted(self)) is not None:
            self._test.drop(paired)

    give_back = ignore

    def nap(self, wait: float) -> float:
        """How much of a wait to sleep before asking again."""
        shortest, longest = _NAPS
        return min(wait, max(shortest, min(longest, wait / 2)))

    def _grow(self, seconds: float) -> None:
        if self._starting or self._is_refused_again:
            return
        if self._back < math.inf:
            self.rate = min(self._back, self.rate * 2 ** (seconds / _REGAIN))
            if self.rate >= self._back:
                self._back = math.inf
        else:
            grown = self.law.grown(self.rate, seconds)
            self.rate = min(max(self.rate, self._most), grown) if self._test.is_strict else grown
        self.rate = self._bounded(self.rate)

    # Answers

    def accepted(self, turn: Turn, answer: Answer) -> None:
        now, sent = answer.now, answer.sent
        self._in_flight.accepted(sent)
        self._accepted += 1
        self._test.accepted(sent)
        paired, starting = turn.noted(self), self._starting
        if paired is not None and self._test.observe(paired, now, accepted=True, starting=starting) == 2:
            self._due += 1 / self.rate
        if self._starting and self._was_awaited and self._test.is_clear:
            added = max(_ADDED, self.rate * math.log(2) / _DOUBLING)
            self.rate = self._bounded(self.rate + added * min(_REGAIN, now - self._accepted_at))
        self._accepted_at, self._was_awaited = now, False
        self._most = _MOST_GROWTH * self.rate
        self.law.note(self.rate, refused=False)
        self._window.accepted()
        is_outage = self.row >= self._outage or now - self._row_at > _LONG
        if self.row and (is_outage or self._window.seconds):
            self._recover(now)
        self.row = 0

    def _recover(self, now: float) -> None:
        """Return to most of the rate before the outage."""
        average, share = self._window.average(now), self._window.accepts_again(now, self._row_at)
        is_long = now - self._row_at > max(_RECENT, _RECENT_GAPS / self.rate)
        if self._test.is_strict and self.law.refuses_most and not is_long:
            self._test.doubt()  # Collisions hardly make an outage.
        if is_long or share:
            self.law.forget()
        if is_long and not (self._before or share):
            self._starting, self.rate = True, self._bounded(_START)
            self._due = self._hold = now + 1 / self.rate  # The gap of the rate before is longer.
            self._test.restart()
            return
        # The rate of a start says little; what was accepted since then, until now, says more.
        self._back = share or _REGAINED * (self._before or average)
        self.rate = self._bounded(min(self._back, max(self.rate, self._back / 2)))

    def refused(self, turn: Turn, answer: Answer, asked: float | None = None) -> None:
        """Note a refusal; it asks for a second or two, or for nothing."""
        now, sent, chance = answer.now, answer.sent, answer.chance
        self._in_flight.refused(now, sent)
        self.law.row = 0
        if (paired := turn.noted(self)) is not None:
            good = self._test.observe(paired, now, accepted=False, starting=self._starting)
            if good == 0:
                self._due = now + (0.5 + chance) / self.rate
            if good is not None:
                return
        self.law.note(self.rate, refused=True)
        if sent < self._cut_at and not self.row:
            return
        self.row += 1
        if self.row == 1:
            self._row_at = now
            self._window.refused(now)
            self._before = 0.0 if self._starting and not self._quota.is_given else self.rate
        if sent >= self._covered_until:
            is_fast = self.rate >= _FAST and not self._test.is_strict
            self._covered_until = now + (asked or (_COVERED if is_fast else 0.0))
            self._cut(now)
        # A strict server wants another phase; a bucket wants time to refill.
        self._due = now + (0.5 + 0.5 * chance if self._test.is_bursty else 0.3 * chance) / self.rate
        if self._is_refused_again:
            wait = (0.5 + chance) * 2.0 ** (min(self.row, 12) - 2) * max(_GAPS / self.rate, _SHORTEST)
            longest = _LONGEST if self.row <= _MANY else _LONGER
            self._hold = max(self._hold, now + min(longest, wait))

    def _cut(self, now: float) -> None:
        if self.row <= self._outage:
            self.rate = self._bounded(self.rate / 2 if self._starting else self.law.cut(self.rate))
            self._back = math.inf
        self.law.count_cut()
        self._starting, self._cut_at = False, now

    def _bounded(self, rate: float) -> float:
        quota = self._quota
        return min(quota.most, max(rate, quota.floor, min(_FLOOR, _FLOOR_SHARE * quota.ceiling)))
