"""Finds out what a refusal means: that the quota is used up, or that the server spaces requests out.

A server that spaces requests out, such as nginx's `limit_req` without a burst, refuses mostly because requests of
several senders collide. Two simultaneous requests settle it: a bucket or window with room accepts both; a server that
spaces requests out accepts at most one. Then pairs with a distance narrow down the range in which the spacing lies.
"""

import math
from typing import Final, NamedTuple

from .quota import KnownQuota

# Seconds: requests sent this close together count as simultaneous. Threads released together often send ten
# milliseconds apart.
_TOGETHER: Final = 0.02
# With a known quota, they must also lie within this fraction of the time in which it allows one more request, so that
# a server that spaces requests out cannot have accepted both; but never within less than `_INSTANT`.
_TOGETHER_FRACTION: Final = 0.7
# Seconds: a server that accepts two requests this close together, in a search for its spacing, has none.
_INSTANT: Final = 0.007

# Pairs of which just one request was accepted, before the server counts as strict. A slow sender needs more, since it
# may find a bucket empty each time. If the quota is unknown, it also rests before each pair.
_STRICT_PAIRS: Final = 3
_SLOW_STRICT_PAIRS: Final = 6
_SLOW_GAP: Final = 2.0  # Seconds between two requests, above which a sender is slow.
_SLOW_SUCCESSES: Final = 1.5  # Seconds on average between two successes; only if the quota is unknown.
# Seconds between two requests that this average counts, at the most: the program may be idle.
_MAX_ACTIVE_GAP: Final = 5.0

# A verdict is tested again after 4 gaps, and each time after twice as long.
_RETEST_GAPS: Final = 4.0
_MIN_RETEST: Final = 0.5  # Seconds, instead of 4 gaps.
_MAX_RETEST: Final = 20.0  # Seconds.
_REST_GAPS: Final = 5.0  # Gaps to rest before that, so that a bucket has permits.
_MAX_REST: Final = 5.0  # Seconds.

# Consecutive pairs of a start that may be refused completely: several programs that start together collide.
_MAX_LOST_PAIRS: Final = 2

_MIN_SPACING: Final = 0.005  # Seconds: the shortest spacing searched for; senders cannot time more finely.
_PRECISION: Final = 1.5  # The ratio of the range's bounds at which the search ends.
# Pairs of which only the first request was accepted, before their distance counts as too short: in one pair, another
# program's request may have come between.
_REFUSALS_NEEDED: Final = 2


def seconds_together(ceiling: float) -> float:
    """How far apart requests may be sent and count as simultaneous; `ceiling` is the quota, infinite if unknown."""
    if ceiling == math.inf:
        return _TOGETHER
    return min(_TOGETHER, max(_INSTANT, _TOGETHER_FRACTION / ceiling))


class Paired(NamedTuple):
    """A request of a pair."""

    number: int  # Which of the two: 0 or 1.
    answers: dict[int, bool]  # Whether they were accepted, once known; the dict also identifies the pair.


class Spacing:
    """Finds the shortest time between two requests that a strict server accepts."""

    def __init__(self) -> None:
        self._found = 0.0
        self._least, self._most = _MIN_SPACING, math.inf
        self._refused = 0

    def is_found(self, gap: float) -> bool:
        """Whether the range is narrow enough, for a sender whose requests are `gap` seconds apart."""
        return min(self._most, gap) <= _PRECISION * self._least

    def middle(self, gap: float) -> float:
        """Seconds between the next two requests of a search."""
        return math.sqrt(self._least * min(self._most, max(gap, 2 * self._least)))

    def seconds(self, gap: float) -> float:
        """The spacing; until it is found, a quarter of the shortest time that was accepted."""
        return self._found or min(self._most, gap) / 4

    def accepted_after(self, seconds: float, gap: float) -> None:
        """Record that a request was accepted that many seconds after another."""
        if _INSTANT < seconds < self._most:
            # Refusals at a longer distance were collisions with other senders.
            self._least = self._least if seconds > self._least else seconds / 2
            self._most, self._refused = seconds, 0
            self._conclude(gap)

    def refused_after(self, seconds: float, gap: float) -> None:
        """Record that a request was refused that many seconds after another was accepted."""
        self._refused += 1
        if self._refused >= _REFUSALS_NEEDED:
            self._least, self._refused = max(self._least, min(seconds, self._most)), 0
            self._conclude(gap)

    def doubt(self) -> None:
        """Search again below the spacing that was found: it may be too long."""
        if self._found:
            self._least = max(_MIN_SPACING, self._least / 2)

    def _conclude(self, gap: float) -> None:
        if self.is_found(gap):
            self._found = min(self._most, gap)


class PairTest:
    """Decides when to send two requests as a pair, and draws conclusions from their answers.

    It searches for the spacing of a strict server, unless the spacing follows from a given quota.
    """

    def __init__(self, quota: KnownQuota, *, is_bursty: bool) -> None:
        self.is_bursty = is_bursty  # Whether the server has accepted two simultaneous requests.
        self.is_open = False  # Whether the second of a pair is yet to be sent.
        self._quota, self._spacing, self._searches = quota, Spacing(), not quota.is_given
        self._at = math.inf if is_bursty else -math.inf
        self._failed = self._lost = 0
        self._needed = _STRICT_PAIRS
        self._answers: dict[int, bool] | None = None
        self._first, self._distance, self._apart, self._gap = -math.inf, 0.0, 0.0, math.inf
        self._has_rested = False
        self._active, self._taken_at, self._accepted, self._rests_first = 0.0, math.inf, 0, False

    @property
    def is_strict(self) -> bool:
        """Whether the server counts as strict: it spaces requests out."""
        is_slow = self._rests_first or self._gap > _SLOW_GAP
        return self._failed >= (max(self._needed, _SLOW_STRICT_PAIRS) if is_slow else self._needed)

    @property
    def is_searching(self) -> bool:
        """Whether pairs search for the spacing of a strict server."""
        return self._searches and self.is_strict and not self._spacing.is_found(self._gap)

    @property
    def is_clear(self) -> bool:
        """Whether it is known if, and how far, the server spaces requests out."""
        return self.is_bursty or (self.is_strict and not self.is_searching)

    @property
    def spacing(self) -> float:
        """Seconds between two requests that a strict server accepts; an estimate until it is found."""
        return self._spacing.seconds(self._gap)

    @property
    def second_due(self) -> float:
        """When the second of an open pair is due."""
        return self._first + self._distance

    @property
    def distance(self) -> float:
        """Seconds between the two requests of the next pair."""
        return self._spacing.middle(self._gap) if self.is_searching and not self._has_rested else 0.0

    def is_due(self, now: float, is_refusing: bool) -> bool:
        """Whether the next two permits form a pair; not while the server `is_refusing`: a pair would show nothing."""
        if self._answers is not None:
            return False
        if now < self._at:
            return self.is_searching and not is_refusing
        return self._has_rested or not (is_refusing or self._failed >= _STRICT_PAIRS or self._rests_first)

    def take(self, now: float, gap: float, is_refusing: bool) -> Paired | None:
        """The second of an open pair, unless it is too late; the first of a pair that is due; or None."""
        self._active += min(_MAX_ACTIVE_GAP, max(0.0, now - self._taken_at))
        self._gap, self._taken_at = gap, now
        is_rare = self._active > _SLOW_SUCCESSES * (self._accepted + 1) and not self.is_strict
        self._rests_first = self._searches and (gap > _SLOW_GAP or is_rare)
        if self.is_open:
            self.is_open, self._apart = False, now - self._first
            if self._answers is not None and self._apart <= self._distance + gap / 4:
                return Paired(1, self._answers)
            self._answers = None
        if not self.is_due(now, is_refusing):
            return None
        self._first, self._distance, self.is_open, self._answers = now, self.distance, True, {}
        self._has_rested = False
        return Paired(0, self._answers)

    def rest(self, now: float) -> float:
        """Seconds for which to hold requests back before a pair that tests a verdict; 0.0 if none is due."""
        if self._has_rested or self._answers is not None or now < self._at:
            return 0.0
        if self._failed < _STRICT_PAIRS and not self._rests_first:
            return 0.0
        self._has_rested = True
        return min(_MAX_REST, _REST_GAPS * self._gap)

    def accepted(self) -> None:
        """Record that a request was accepted, whether it is one of a pair or not."""
        self._accepted += 1

    def doubt(self) -> None:
        """Withdraw the verdict until `_STRICT_PAIRS` more pairs confirm it."""
        self._needed = self._failed + _STRICT_PAIRS

    def restart(self) -> None:
        """Measure again how often requests are accepted, after an outage."""
        self._active, self._taken_at, self._accepted = 0.0, math.inf, 0

    def drop(self, paired: Paired) -> None:
        """Forget the pair: one of its requests got no meaningful answer."""
        if paired.answers is self._answers:
            self._answers, self.is_open = None, False

    def observe(self, paired: Paired | None, now: float, *, accepted: bool, starting: bool) -> int | None:
        """Record an answer to one of a pair. Returns how many of the two were accepted; 1 until both are answered.

        Returns None if there is no pair, or it was forgotten, or if the answer counts like any other refusal.
        """
        if paired is None or paired.answers is not self._answers:
            return None
        self._answers[paired.number] = accepted
        if len(self._answers) < 2:
            return 1
        answers, self._answers = self._answers, None
        good = sum(answers.values())
        self._lost = 0 if good else self._lost + 1
        if good == 2:
            if self._apart <= (_INSTANT if self._distance else seconds_together(self._quota.ceiling)):
                self.is_bursty, self._failed, self._at = True, 0, math.inf
            self._spacing.accepted_after(self._apart, self._gap)
        elif good and self._distance:
            if answers[0]:
                self._spacing.refused_after(self._apart, self._gap)
        elif good:
            self.is_bursty = False
            self._failed += 1
            over = self._failed - _STRICT_PAIRS
            wait = min(_MAX_RETEST, max(_MIN_RETEST, _RETEST_GAPS * self._gap) * 2.0 ** min(over, 9))
            self._at = -math.inf if over < 0 else now + wait
            self._spacing.doubt()
        elif not starting or self._lost > _MAX_LOST_PAIRS:
            return None
        return good
