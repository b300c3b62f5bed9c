"""Finds out what a refusal means: that the quota is used up, or that the server spaces requests out.

Where it does, as nginx's `limit_req` without a burst, most refusals are mere collisions of several senders. Two
requests at one instant tell: a bucket or a window that is not used up accepts both, such a server at most one. Then
pairs with a distance narrow down the range in which the spacing lies.
"""

import math
from typing import NamedTuple

TOGETHER = 0.02
"""Seconds between two requests that go at one instant, as far as a server can tell that spaces requests out: threads
that may go at once are often ten milliseconds apart."""

_TESTS = 3  # Pairs of which just one request was accepted that show a strict server.

_SLOW, _SELDOM, _SLOW_TESTS = 2.0, 1.5, 6
"""Seconds between two requests, or on average between two that are accepted, above which a sender needs so many: it may
find a bucket empty each time. Where the quota is unknown, it also rests before each."""

_PAUSE = 5.0  # Seconds between two requests of which the average counts at most that many: the program may be idle.

_AGAIN, _SOONEST, _LATEST = 4.0, 0.5, 20.0
"""Requests until the next pair, doubled each time, and its bounds in seconds."""

_REST, _LONGEST_REST = 5.0, 5.0
"""Gaps before a pair that tests a verdict, so that a bucket has something to give, but not more seconds than that."""

_UNHEARD = 2
"""Pairs in a row, at a start, that may be refused altogether: several programs that start together collide."""

INSTANT = 0.009
"""Seconds: a server that accepts two requests so close together counts as one that does not space them out."""

_SHORTEST = 0.005  # Seconds, the least that is looked for: senders cannot keep to less.

_CLOSE = 1.5
"""The search ends when the shortest time that was accepted is at most this many times the longest that was refused."""

_REFUSED = 2
"""Pairs of which only the first request was accepted before a distance counts as too short: in one, another program's
request may have come between."""


class Paired(NamedTuple):
    """A request of a pair, sent at one instant."""

    number: int  # Which of the two: 0 or 1.
    answers: dict[int, bool]  # To the pair, as far as there are any; they tell one pair from another.


class Spacing:
    """Finds the least time between two requests that a server accepts, where it spaces requests out."""

    def __init__(self) -> None:
        self._found = 0.0
        self._least, self._most = _SHORTEST, math.inf
        self._refused = 0
        self._accepted_at = -math.inf

    def is_found(self, gap: float) -> bool:
        """Whether the range is narrow enough, for a sender whose requests are `gap` seconds apart."""
        return min(self._most, gap) <= _CLOSE * self._least

    def middle(self, gap: float) -> float:
        """Seconds between the next two requests of a search."""
        return math.sqrt(self._least * min(self._most, max(gap, 2 * self._least)))

    def seconds(self, gap: float) -> float:
        """The spacing; while it is sought, a quarter of the shortest time that was accepted."""
        return self._found or min(self._most, gap) / 4

    def accepted(self, sent: float, gap: float) -> None:
        """Note that a request sent at `sent` was accepted."""
        self.accepted_after(sent - self._accepted_at, gap)
        self._accepted_at = sent

    def accepted_after(self, seconds: float, gap: float) -> None:
        """Note that a request was accepted so many seconds after another one."""
        if INSTANT < seconds < self._most:
            # What was refused at a longer distance has collided with others.
            self._least = self._least if seconds > self._least else seconds / 2
            self._most, self._refused = seconds, 0
            self._conclude(gap)

    def refused_after(self, seconds: float, gap: float) -> None:
        """Note that a request was refused so many seconds after one that was accepted."""
        self._refused += 1
        if self._refused >= _REFUSED:
            self._least, self._refused = max(self._least, min(seconds, self._most)), 0
            self._conclude(gap)

    def doubt(self) -> None:
        """Search once more below what was found: it may be too long."""
        if self._found:
            self._least = max(_SHORTEST, self._least / 2)

    def _conclude(self, gap: float) -> None:
        if self.is_found(gap):
            self._found = min(self._most, gap)


class PairTest:
    """Decides when two requests go at one instant, and concludes from their answers.

    It `searches` for the spacing of a server that spaces requests out, unless a quota is given, which says it.
    """

    def __init__(self, *, is_bursty: bool, searches: bool = True) -> None:
        self.is_bursty = is_bursty  # Whether the server has accepted two requests at one instant.
        self.is_open = False  # Whether the second of a pair may go.
        self._spacing, self._searches = Spacing(), searches
        self._at = math.inf if is_bursty else -math.inf
        self._failed = self._unheard = 0
        self._needed = _TESTS
        self._answers: dict[int, bool] | None = None
        self._first, self._distance, self._apart, self._gap = -math.inf, 0.0, 0.0, math.inf
        self._has_rested = False
        self._active, self._taken_at, self._accepted, self._rests_first = 0.0, math.inf, 0, False

    @property
    def is_strict(self) -> bool:
        """Whether the server spaces requests out."""
        is_slow = self._rests_first or self._gap > _SLOW
        return self._failed >= (max(self._needed, _SLOW_TESTS) if is_slow else self._needed)

    @property
    def is_searching(self) -> bool:
        """Whether pairs look for the spacing of a strict server: a slow sender has too few to spare."""
        is_able = self._searches and self._gap <= _SLOW
        return is_able and self.is_strict and not self._spacing.is_found(self._gap)

    @property
    def is_clear(self) -> bool:
        """Whether it is known if the server spaces requests out, and by how much."""
        return self.is_bursty or (self.is_strict and not self.is_searching)

    @property
    def spacing(self) -> float:
        """Seconds between two requests that a strict server accepts, as far as it was found."""
        return self._spacing.seconds(self._gap)

    @property
    def second_due(self) -> float:
        """When the second of an open pair is due."""
        return self._first + self._distance

    @property
    def distance(self) -> float:
        """Seconds between the two requests of the next pair."""
        return self._spacing.middle(self._gap) if self.is_searching and not self._has_rested else 0.0

    def is_due(self, now: float, is_busy: bool) -> bool:
        """Whether the next two permits go as a pair; not while the server `is_busy`: a pair would show nothing."""
        if self._answers is not None:
            return False
        if now < self._at:
            return self.is_searching and not is_busy
        return self._has_rested or not (is_busy or self._failed >= _TESTS or self._rests_first)

    def take(self, now: float, gap: float, is_busy: bool) -> Paired | None:
        """The second of an open pair, unless it comes too late; the first of a pair that is due; or neither."""
        self._active += min(_PAUSE, max(0.0, now - self._taken_at))
        self._gap, self._taken_at = gap, now
        is_rare = self._active > _SELDOM * (self._accepted + 1) and not self.is_strict
        self._rests_first = self._searches and (gap > _SLOW or is_rare)
        if self.is_open:
            self.is_open, self._apart = False, now - self._first
            if self._answers is not None and self._apart <= self._distance + gap / 4:
                return Paired(1, self._answers)
            self._answers = None
        if not self.is_due(now, is_busy):
            return None
        self._first, self._distance, self.is_open, self._answers = now, self.distance, True, {}
        self._has_rested = False
        return Paired(0, self._answers)

    def rest(self, now: float) -> float:
        """Seconds for which to hold back before a pair that tests a verdict, if it is due."""
        if self._has_rested or self._answers is not None or now < self._at:
            return 0.0
        if self._failed < _TESTS and not self._rests_first:
            return 0.0
        self._has_rested = True
        return min(_LONGEST_REST, _REST * self._gap)

    def accepted(self, sent: float) -> None:
        """Note that a request sent at `sent` was accepted, one of a pair or not."""
        self._accepted += 1
        self._spacing.accepted(sent, self._gap)

    def doubt(self) -> None:
        """Take the verdict back until as many more pairs confirm it."""
        self._needed = self._failed + _TESTS

    def restart(self) -> None:
        """Measure anew how often requests are accepted: after an outage."""
        self._active, self._taken_at, self._accepted = 0.0, math.inf, 0

    def drop(self, paired: Paired) -> None:
        """Forget the pair: one of its requests had no answer that says anything."""
        if paired.answers is self._answers:
            self._answers, self.is_open = None, False

    def observe(self, paired: Paired, now: float, *, accepted: bool, starting: bool) -> int | None:
        """Note an answer to one of a pair; returns how many of the pair were accepted, and 1 as long as that is open.

        None if the pair was forgotten, or the answer is like any other.
        """
        if paired.answers is not self._answers:
            return None
        self._answers[paired.number] = accepted
        if len(self._answers) < 2:
            return 1
        answers, self._answers = self._answers, None
        good = sum(answers.values())
        self._unheard = 0 if good else self._unheard + 1
        if good == 2:
            if self._apart <= (INSTANT if self._distance else TOGETHER):
                self.is_bursty, self._failed, self._at = True, 0, math.inf
            self._spacing.accepted_after(self._apart, self._gap)
        elif good and self._distance:
            if answers[0]:
                self._spacing.refused_after(self._apart, self._gap)
        elif good:
            self.is_bursty = False
            self._failed += 1
            over = self._failed - _TESTS
            wait = min(_LATEST, max(_SOONEST, _AGAIN * self._gap) * 2.0 ** min(over, 9))
            self._at = -math.inf if over < 0 else now + wait
            self._spacing.doubt()
        elif not starting or self._unheard > _UNHEARD:
            return None
        return good
