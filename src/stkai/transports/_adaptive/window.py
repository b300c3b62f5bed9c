"""Follows the fixed window that a server describes in its headers, and says how fast to send while it is believed.

The reset that servers announce has several meanings: the end of a window, the time until one more request, the time
until all is forgotten. Only a window can be shared out ahead; it is told from the rest by its end, which stands still.
"""

import math
from enum import Enum, auto

from .headers import Reading

_TOLERANCE = 1.6
"""Seconds by which one instant may seem to differ: it is rounded to whole seconds, and answers take their time."""

_STANDING = 5.0
"""Seconds for which a reset must stand still before it is believed."""

_SLOW = 2.0
"""Seconds; an answer that took longer says how things were."""

_PATIENCE = 3.0
"""Windows without a word, after which all that was known is out of date."""

_MOST_AHEAD = 1.5
_STEEPNESS = 3
_GAIN = 0.8
_ADDED = 0.02
_LEAST_MEAN = 0.3
"""However early a window was used up: how much too fast that was, it does not say."""

_RESERVE = 1.0
"""Requests that are left alone at the end of a window: others may have some under way."""

_COARSE = 0.5
"""Seconds; less than that is not known of an instant that is rounded."""


class _Move(Enum):
    """What an announced instant is to those before: the same, the next, an old one, or in contradiction to them."""

    SAME = auto()
    NEXT = auto()
    OLD = auto()
    WRONG = auto()


class _End:
    """The end of a window, as it is announced time after time.

    Attributes:
        since: from when on it has stood still.
        earliest, latest: the instants that were announced.
    """

    def __init__(self) -> None:
        self.since = self.earliest = self.latest = self._first = self._before = -math.inf

    @property
    def likely(self) -> float:
        """Nobody says whether it was rounded up or down."""
        return (self.earliest + self.latest) / 2

    def compare(self, now: float, instant: float, window: float) -> _Move:
        if abs(instant - self._first) <= _TOLERANCE:
            return _Move.SAME
        if abs(instant - self._before) <= _TOLERANCE:
            return _Move.OLD
        ended = now >= self._first - _TOLERANCE
        return _Move.NEXT if ended and instant >= self._first + window - _TOLERANCE else _Move.WRONG

    def confirm(self, instant: float) -> None:
        self.earliest, self.latest = min(self.earliest, instant), max(self.latest, instant)

    def move(self, now: float, instant: float) -> None:
        self._before = self._first
        self.since, self._first, self.earliest, self.latest = now, instant, instant, instant


class WindowGuide:
    """The pace of one of several senders that share a window. Each sees what is left for all, and knows of no other.

    Within a window, the pace is a base times the cube of how far the requests that are left are ahead of the time that
    is left. At its end, the base moves by the mean of that, and grows by a fixed amount, which makes the bases of all
    senders equal in the end (Chiu and Jain, 1989). Rates are requests per second.

    Attributes:
        listening: False once the headers have contradicted themselves twice: nobody needs to read them any more.
        in_force: whether the window is believed, and `rate` to be followed.
        paused_until: the end of a window that is used up.
        ceiling: the rate of the whole quota.
    """

    def __init__(self, ceiling: float, floor: float) -> None:
        self.listening = True
        self.paused_until = -math.inf
        self.ceiling, self._floor = ceiling, floor
        self._base = floor
        self._doubted = False
        self._forget()

    def _forget(self) -> None:
        self.in_force = False
        self._name = ""
        self._window = self._tightness = math.inf
        self._heard_at = -math.inf
        self._end = _End()
        self._over = True
        self._account_from(-math.inf)

    @property
    def has_heard_nothing(self) -> bool:
        """Whether nobody has described a window, or not for long."""
        return self._heard_at == -math.inf

    @property
    def base(self) -> float:
        """The rate, apart from what happens within a window."""
        return self._base

    @property
    def rate(self) -> float:
        """The rate now."""
        return self._bounded(self._base * self._factor) if self.in_force else self._base

    def hear(
        self, reading: Reading | None, now: float, sent: float, rate: float, *, refused: bool = False
    ) -> bool:
        """Take in the answer to a request that was sent at `sent`; `rate` is that with which to begin.

        Returns whether it is a refusal that the window explains: it is used up.
        """
        if not self.listening:
            return False
        self.advance(now)
        used_up = False
        if reading is not None and self._is_followed(reading):
            used_up = reading.remaining < 1
            if now - sent > _SLOW or reading.reset > reading.window + _TOLERANCE:
                self._doubt()
            else:
                self._place(reading, now, rate)
        if refused and not used_up and self.in_force:
            self._doubt()
        return refused and used_up and self.in_force

    def advance(self, now: float) -> None:
        """Let time pass; the window may end meanwhile."""
        if now - self._heard_at > _PATIENCE * self._window:
            self._forget()
        elif not self._over and now >= self._end.latest:
            self._finish()

    def release(self, start: float, end: float) -> float:
        """The permits of the time between two instants; `rate` is that of the second afterwards."""
        before = end - start if self._over else max(0.0, min(end, self._end.latest) - start)
        released = self.rate * before
        self.advance(end)
        return released + self.rate * (end - start - before)

    def time_for(self, permits: float, start: float) -> float:
        """Seconds from `start` until there are so many more permits, as far as one can see."""
        rate = self.rate
        before = math.inf if self._over else max(0.0, self._end.latest - start)
        if permits <= rate * before:
            return permits / rate
        return before + (permits - rate * before) / self._base

    def _is_followed(self, reading: Reading) -> bool:
        """Whether it is about the quota that is followed; a tighter one takes its place."""
        tightness = reading.limit / reading.window
        if (reading.name, reading.window) != (self._name, self._window):
            if reading.name != self._name and tightness >= self._tightness:
                return False
            self._forget()
            self._name, self._window = reading.name, reading.window
        self._tightness = tightness
        return True

    def _place(self, reading: Reading, now: float, rate: float) -> None:
        """Find out in which window the answer was written."""
        end = now + reading.reset
        move = self._end.compare(now, end, self._window)
        if move is _Move.OLD or (move is _Move.SAME and self._over):
            return  # It was under way when the window ended.
        if move is _Move.WRONG:
            self.in_force = False
            self._doubt()
        if move is _Move.SAME:
            self._end.confirm(end)
        else:
            if not self._over:
                self._finish()
            self._end.move(now, end)
            self._over = False
            self._account_from(end - self._window)
        self._heard_at = now
        if not self.in_force and self.listening and now - self._end.since >= _STANDING:
            self.in_force = True
            self._base = self._bounded(rate)
            self._account_from(now)
        if self.in_force:
            self._learn(reading, now)

    def _learn(self, reading: Reading, now: float) -> None:
        left = max(_COARSE, self._end.likely - now) / self._window
        ahead = max(0.0, reading.remaining - _RESERVE) / reading.limit / left
        # What is seen now has been so, more or less, since the answer before.
        self._factor = min(ahead, _MOST_AHEAD) ** _STEEPNESS
        self._readings += 1
        self._account(now)
        if reading.remaining < 1:
            self.paused_until = self._end.latest

    def _account_from(self, instant: float) -> None:
        self._accounted = instant
        self._factor = 1.0
        self._sum = self._weight = 0.0
        self._readings = 0

    def _account(self, now: float) -> None:
        """Weigh the factor by its time, and that by the time then left: the end of a window is all chance."""
        end = self._end.latest
        weight = (end - self._accounted) ** 2 - (end - now) ** 2
        self._sum += weight * self._factor
        self._weight += weight
        self._accounted = now

    def _finish(self) -> None:
        """The window has ended."""
        self._over = True
        if self.in_force and self._readings:
            self._account(self._end.latest)
            mean = max(_LEAST_MEAN, self._sum / self._weight)
            # The fewer answers a sender had, the more they are chance.
            gain = _GAIN * self._readings / (self._readings + 1)
            self._base = self._bounded(self._base * mean**gain + _ADDED * self.ceiling)
        self._account_from(self._end.latest)

    def _doubt(self) -> None:
        if self._doubted:
            self.listening = self.in_force = False
        self._doubted = True

    def _bounded(self, rate: float) -> float:
        return max(self._floor, min(self.ceiling, rate))
