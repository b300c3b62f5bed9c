"""Finds out what a refusal means: that the quota is used up, or that the server spaces requests out.

A server that spaces requests out, such as nginx's `limit_req` without a burst, refuses whatever comes too soon after
what it accepted, so most refusals are mere collisions of several senders. Two requests at one instant tell: a bucket or
a window that is not used up accepts both, such a server at most one.
"""

import math
from enum import Enum, auto

_TESTS = 3
"""Pairs of which just one request was accepted, in a row, that show a server that spaces requests out."""

_RATE, _SHARE = 0.5, 0.02
"""Requests per second, or a share of the quota, below which such a pair shows nothing: a slow bucket is nearly always
empty."""

_AGAIN, _SOONEST, _LATEST = 4.0, 0.5, 20.0
"""Requests until the next pair, doubled each time, and its bounds in seconds."""

_PROVEN = 600.0
"""Seconds until the next pair, once a pair was accepted."""

_REST = 5.0
"""Gaps before such a pair, so that a bucket that only seemed to be strict has something to give."""

_UNHEARD = 2
"""Pairs in a row, at a start, that may be refused altogether: several programs that start together collide."""


class Pair(Enum):
    """Which request of a pair, sent at one instant, a turn is."""

    FIRST = auto()
    SECOND = auto()


class Outcome(Enum):
    """What the answer to one of a pair says: nothing more, that both were accepted, or that both were refused."""

    NOTHING = auto()
    BOTH = auto()
    NEITHER = auto()


class PairTest:
    """Decides when two requests go at one instant, and concludes from their answers.

    Args:
        now: the present.
        ceiling: the quota's rate; infinite if it is unknown.
        is_bursty: whether two requests at one instant are known to have been accepted.

    Attributes:
        is_bursty: whether the server has accepted two requests at one instant.
        is_open: whether the second of a pair may go.
    """

    def __init__(self, now: float, ceiling: float, *, is_bursty: bool) -> None:
        self.is_bursty, self.is_open = is_bursty, False
        self._at = now + _PROVEN if is_bursty else -math.inf
        self._least = min(_RATE, _SHARE * ceiling)
        self._failed = self._unheard = 0
        self._answers: dict[Pair, bool] | None = None
        self._first, self._rate, self._has_rested = -math.inf, 0.0, False

    @property
    def is_strict(self) -> bool:
        """Whether the server spaces requests out."""
        return self._failed >= _TESTS

    @property
    def first(self) -> float:
        """When the first of the pair went."""
        return self._first

    def is_due(self, now: float) -> bool:
        """Whether the next two permits go as a pair."""
        return self._answers is None and now >= self._at and (self._has_rested or not self.is_strict)

    def take(self, now: float, gap: float) -> Pair | None:
        """The second of an open pair, unless it comes too late; the first of a pair that is due; or neither."""
        if self.is_open:
            self.is_open = False
            if now - self._first <= gap / 4:
                return Pair.SECOND
            self._answers = None
        if not self.is_due(now):
            return None
        self._first, self._rate, self.is_open, self._answers = now, 1 / gap, True, {}
        self._has_rested = False
        return Pair.FIRST

    def rest(self, now: float, gap: float) -> float:
        """Seconds for which to hold back before the next pair, if it is due."""
        if not self.is_strict or self._has_rested or self._answers is not None or now < self._at:
            return 0.0
        self._has_rested = True
        return _REST * gap

    def drop(self) -> None:
        """Forget the pair: one of its requests had no answer that says anything."""
        self._answers, self.is_open = None, False

    def hear(self, pair: Pair, now: float, *, accepted: bool, starting: bool) -> Outcome | None:
        """Note an answer to one of a pair; returns None if it belongs to none, or is like any other."""
        if self._answers is None:
            return None
        self._answers[pair] = accepted
        if len(self._answers) < len(Pair):
            return Outcome.NOTHING
        good, self._answers = sum(self._answers.values()), None
        self._unheard = 0 if good else self._unheard + 1
        if good == 2:
            self.is_bursty, self._failed, self._at = True, 0, now + _PROVEN
            return Outcome.BOTH
        if good == 1:
            self.is_bursty = False
            self._failed += self._rate >= self._least
            over = self._failed - _TESTS
            wait = min(_LATEST, max(_SOONEST, _AGAIN / self._rate) * 2.0 ** min(over, 9))
            self._at = -math.inf if over < 0 else now + wait
            return Outcome.NOTHING
        return Outcome.NEITHER if starting and self._unheard <= _UNHEARD else None
