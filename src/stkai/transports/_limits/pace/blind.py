"""The law for servers that refuse without saying how long to wait, as nginx does. Rates are in requests per second.

Permits are evenly spaced. The rate grows by a share per time, and is cut by a share per refusal, so that every sender
has the same number of refusals per second; and since all see the same share of their requests refused, all get equal
rates. A server that spaces requests out refuses what merely collides: pairs of requests find that out, and there the
rate grows faster.
"""

import math
from enum import Enum, auto

from ..limiter import Turn
from .quota import KnownQuota

_PATIENCE = 4.0
"""Seconds between two refusals of one sender in equilibrium: it grows by `_STEP` in that time, a refusal takes it."""

_SLOW, _SLOWNESS = 2.5, 0.8
"""Below so many requests per second, the patience grows by this power: a slow quota has few answers to spare."""

_TOLD = 60.0
"""With a known quota, the patience is the time in which it allows so many requests: the same for all that share it."""

_STEP = 0.15
_FIRST_STEP, _STEPS = 0.5, 3
"""A refusal takes a larger share at first: 0.5 / (1 + refusals / 3), until that is `_STEP`."""

_FLOOR, _FLOOR_SHARE = 0.1, 0.05
"""Requests per second below which the rate never falls, but at most that share of the quota."""

_START, _ADDED, _DOUBLING = 2.0, 4.0, 1.0
"""A start: so many requests per second, growing by 4 per second each second, or doubling if that is more."""

_TESTS = 3
"""Pairs of requests of which just one was accepted, in a row, that show a server that spaces requests out."""

_TEST_RATE = 0.5
"""Requests per second below which such a pair shows nothing: a slow bucket is nearly always empty."""

_TEST_AGAIN, _TEST_LONGEST, _TEST_PROVEN = 4.0, 20.0, 600.0
"""Requests, and at most seconds, until the next pair; seconds, once a pair was accepted."""

_STRICT_PATIENCE, _STRICT_RATE, _STRICT_LEAST, _STRICT_SLOW = 0.4, 2.5, 0.5, 0.5
_STRICT_MOST, _STRICT_MEMORY = 0.55, 0.02
"""On a strict server: patience 0.4 s at 2.5 per second, in proportion to the rate; no growth beyond 55 % refused."""

_HALVED = 3
"""Refusals in a row after which each further one halves the rate: the quota has shrunk, or is used up."""

_OUTAGE = 5
"""Refusals in a row after which the rate stays: the server accepts nothing for now."""

_REGAINED, _REGAIN = 0.75, 0.5
"""After an outage, the rate doubles in half a second up to 0.75 of what it was."""

_NEWS, _STRICT_NEWS = 0.1, 0.3
"""Share by which the rate must move before it is reported again; where it moves all the time, more."""

_LONGEST = 3.5
"""Seconds between two probes, at most."""

_LATE = 0.05
"""Seconds of lateness that are made up for, if they are at most half a gap."""

_LONGEST_STEP = 1.0
"""Seconds of growth at a time: in a longer step, the program stood still."""

_NAPS = 0.25, 1.0
"""Seconds for which a waiter sleeps at least and at most before it asks again: the rate may have grown."""


class Pair(Enum):
    """Which request of a pair, sent at one instant, a turn is."""

    FIRST = auto()
    SECOND = auto()


class BlindRate:
    """A rate that finds its way by what gets through alone.

    Args:
        quota: the ceiling, if it is known.
        found: the rate to begin with, after the first refusal; and whether the rate is still to be found, because no
            more than a burst was refused.
        now: when that came.

    Attributes:
        rate: requests per second.
        burst: 1: no two requests go at once.
        credit: 1.0 if the next permit is due; the part of it that has been released otherwise.
        paused_until: -inf: the credit takes pauses into account.
        ignores_successes_until: -inf: every success counts.
        row: refusals in a row.
    """

    burst = 1.0
    paused_until = ignores_successes_until = -math.inf

    def __init__(self, quota: KnownQuota, found: tuple[float, bool], now: float) -> None:
        self._quota = quota
        rate, self._starting = found
        if self._starting and not quota.is_given:
            rate = max(_START, rate)
        self.rate, self.credit = self._bounded(rate), 0.0
        self._outage, self.row, self._refusals = False, 0, 0
        # The rate that was last refused, that before a row of refusals, and the target of a recovery; inf for none.
        self._bad, self._before, self._back = math.inf, 0.0, math.inf
        self._hold = self._test_at = -math.inf
        # What was refused until now has been taken into account.
        self._cut_at, self._due = now, now + 1 / self.rate
        self._refused_share = 0.0
        self._proven, self._failed, self._none = False, 0, 0
        self._pair: dict[Pair, bool] | None = None
        self._first, self._second, self._pair_rate = -math.inf, False, 0.0

    def __str__(self) -> str:
        numbers = f"{self._quota}, " if self._quota.is_given else "found: "
        return f"{numbers}{self.finding or 'no Retry-After'}"

    @property
    def is_strict(self) -> bool:
        """Whether the server spaces requests out: what it refuses are collisions."""
        return self._failed >= _TESTS

    @property
    def finding(self) -> str:
        """What was found out about the server's refusals."""
        return "collisions, rate kept" if self.is_strict else ""

    def reason(self, before: float) -> str:
        """Why the rate is not `before` any more."""
        why = "no refusal since" if self.rate > before else "429 Too Many Requests"
        return f"{why}: {self.finding}" if self.finding else why

    @property
    def news(self) -> float:
        """Share by which the rate must move before it is reported again."""
        return _STRICT_NEWS if self.is_strict else _NEWS

    @property
    def base(self) -> float:
        """The rate; it does not vary with windows."""
        return self.rate

    @property
    def lasting(self) -> float:
        """The rate; while the server accepts nothing, that from before."""
        return self._before if self._outage else self.rate

    def update(self, share: float) -> None:
        """Continue with another quota, of which it gets the same share: `share` is the new quota by the old one."""
        self.rate = self._bounded(self.rate * share)
        self._bad = max(self._bad, self.rate)

    # Permits

    def release(self, start: float, now: float, *, waiting: bool) -> float:
        """Let the rate grow from `start` to `now`, and find out whether the next permit is due."""
        if waiting and now > start:
            self._grow(min(now - start, _LONGEST_STEP))
        due = self._first if self._second and now >= self._hold else max(self._due, self._hold)
        self.credit = 1.0 if now >= due else 1.0 - (due - now) * self.rate
        return 0.0

    def time_for(self, permits: float, now: float) -> float:
        """Seconds until this many more permits are released."""
        return permits / self.rate

    def take(self, turn: Turn, now: float) -> float:
        """Take the permit; returns what it takes. The first of a pair takes none, so that the second can go at once."""
        gap = 1 / self.rate
        if self._second:
            self._second = False
            if now - self._first <= gap / 4:
                turn.mark = Pair.SECOND
                return 1.0
            self._pair = None
        self._due = max(self._due + gap, now + gap - min(gap / 2, _LATE))
        if self.row:
            self._due = min(self._due, now + _LONGEST)
        if self._pair is None and now >= self._test_at and not self.row:
            self._first, self._second, self._pair, self._pair_rate = now, True, {}, self.rate
            turn.mark = Pair.FIRST
            return 0.0
        return 1.0

    def give_back(self, turn: Turn) -> None:
        """Forget a request that was not sent."""
        self.ignore(turn)

    def ignore(self, turn: Turn) -> None:
        """Note that an answer says nothing: if its request was one of a pair, there is no pair."""
        if turn.mark is not None:
            self._pair, self._second = None, False

    def nap(self, wait: float) -> float:
        """How much of a wait to sleep before asking again."""
        shortest, longest = _NAPS
        return min(wait, max(shortest, min(longest, wait / 2)))

    def _grow(self, seconds: float) -> None:
        if self.row > _OUTAGE or (self.row > 1 and not self.is_strict):
            return
        if self._starting:
            if self._proven or self.is_strict:
                self.rate += max(_ADDED, self.rate * math.log(2) / _DOUBLING) * seconds
        elif self._back < math.inf:
            self.rate = min(self._back, self.rate * 2 ** (seconds / _REGAIN))
            if self.rate >= self._back:
                self._back = math.inf
        else:
            below = math.log(self._bad / self.rate)
            haste = min(6.0, 1 + 1.5 * (below - 0.4) / _STEP) if below > 0.4 and not self.is_strict else 1.0
            self.rate *= math.exp(haste * _STEP / self._patience() * seconds)
            self._bad = max(self._bad, self.rate)
        self.rate = self._bounded(self.rate)

    # Answers

    def accepted(self, turn: Turn, now: float, sent: float) -> None:
        """Note that a request was accepted."""
        if turn.mark is not None:
            self._test(turn.mark, now, 0.0, accepted=True)
        self._refused_share *= 1 - _STRICT_MEMORY
        if self._outage:
            self._outage, self._back = False, _REGAINED * self._before
            self.rate = self._bounded(min(self._back, max(self.rate, self._back / 2)))
        self.row = 0

    def refused(self, turn: Turn, now: float, sent: float, chance: float) -> None:
        """Note that a request sent at `sent` was refused."""
        if turn.mark is not None and self._test(turn.mark, now, chance, accepted=False):
            return
        self._refused_share += _STRICT_MEMORY * (1 - self._refused_share)
        if sent < self._cut_at and not self.row:
            return
        self.row += 1
        if self.row == 1:
            self._bad, self._before = self.rate, self.rate / 8 if self._starting else self.rate
        if self.row <= _OUTAGE:
            step = _STEP if self.is_strict else max(_STEP, _FIRST_STEP / (1 + self._refusals / _STEPS))
            halved = self._starting or (self.row > _HALVED and not self.is_strict)
            self.rate = self._bounded(self.rate * (0.5 if halved else 1 - step))
            self._back = math.inf
        self._refusals += 1
        self._outage = self.row >= _OUTAGE
        self._starting, self._cut_at = False, now
        # A strict server wants another phase; a bucket wants time to refill.
        self._due = now + (0.5 + 0.5 * chance if self._proven else 0.3 * chance) / self.rate
        if self.row > 1 and not (self.is_strict and self.row <= _OUTAGE):
            wait = (0.5 + chance) * 2.0 ** (min(self.row, 12) - 2) * max(1.5 / self.rate, 0.1)
            self._hold = max(self._hold, now + min(_LONGEST, wait))

    def _bounded(self, rate: float) -> float:
        quota = self._quota
        return min(quota.ceiling, max(rate, quota.floor, min(_FLOOR, _FLOOR_SHARE * quota.ceiling)))

    def _patience(self) -> float:
        if self.is_strict:
            if self._refused_share > _STRICT_MOST:
                return math.inf
            share = max(_STRICT_LEAST, self.rate / _STRICT_RATE)
            return max(_STRICT_SLOW / self.rate, _STRICT_PATIENCE * share)
        if self._quota.ceiling < math.inf:
            return max(_PATIENCE, _TOLD / self._quota.ceiling)
        return _PATIENCE * max(1.0, _SLOW / self.rate) ** _SLOWNESS

    def _test(self, pair: Pair, now: float, chance: float, *, accepted: bool) -> bool:
        """Note an answer to one of a pair; returns whether it says nothing beyond that."""
        if self._pair is None:
            return False
        self._pair[pair] = accepted
        if len(self._pair) < len(Pair):
            return True
        good, self._pair = sum(self._pair.values()), None
        self._none = 0 if good else self._none + 1
        if good == 2:
            self._due += 1 / self.rate
            self._proven, self._failed, self._test_at = True, 0, now + _TEST_PROVEN
        elif good == 1:
            self._proven = False
            self._failed += self._pair_rate >= _TEST_RATE
            over = self._failed - _TESTS
            wait = min(_TEST_LONGEST, max(0.5, _TEST_AGAIN / self.rate) * 2.0 ** min(over, 9))
            self._test_at = -math.inf if over < 0 else now + wait
        elif self._starting and self._none <= 2:
            self._due = now + (0.5 + chance) / self.rate
            return True
        return good > 0
