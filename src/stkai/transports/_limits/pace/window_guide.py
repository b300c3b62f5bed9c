"""Follows the fixed window that a server describes in its headers, and sets the rate while the window is trusted.

A `WindowGuide` is for one sender; a `GroupWindow` is what a member of a group adds to the guide in the group's state.
Servers announce resets with different meanings: the end of a window, the time until one more request, the time until
the whole quota is available. Only a window can be scheduled; unlike the other resets, its end does not move.
"""

import math
from typing import Any, Final, NamedTuple

import httpx

from ..limiter import Answer
from .headers import TOLERANCE, Reading
from .quota import KnownQuota

_STABLE_FOR: Final = 5.0  # Seconds for which a reset must not move before it is trusted.
_MAX_LATENCY: Final = 2.0  # Seconds; an answer that took longer is out of date.
_MAX_SILENCE: Final = 3.0  # Windows without a reading after which everything known is out of date.

# Within a window, the base is multiplied by a power of the ratio of remaining requests to remaining time. The bound of
# the ratio also applies to the total rate of all senders that share this guide, as a multiple of the quota's.
_RATIO_POWER: Final = 3
_MAX_RATIO: Final = 1.5
# At the end of a window, the base is multiplied by a power of the mean of that factor, and grows by a fraction of the
# quota. A window that was used up early does not show by how much the rate was too high, so the mean has a lower bound.
_MEAN_POWER: Final = 0.8
_MIN_MEAN: Final = 0.3
_INCREASE: Final = 0.02

_RESERVED_REQUESTS: Final = 1.0  # To leave unused at the end of a window: others may have some in flight.
_PRECISION: Final = 0.5  # Seconds; the precision of a rounded instant.
_MAX_NAME: Final = 32  # Characters of a quota's name to keep, because the state in a store is small.


class _End(NamedTuple):
    """The end of a window, as repeatedly announced."""

    since: float = -math.inf  # When it last moved.
    earliest: float = -math.inf  # The range of announced instants.
    latest: float = -math.inf
    first: float = -math.inf  # The first announced instant.
    before: float = -math.inf  # The end of the previous window.


class WindowGuide:
    """The rate of one of several senders that share a window. Each knows how many requests are left for all of them.

    Within a window, the rate is a base times the cube of the ratio of remaining requests to remaining time. At its end,
    the base is multiplied by a power of the mean of that factor and grows by a fixed amount, which makes the bases of
    all senders converge (Chiu and Jain, 1989). Rates are in requests per second.
    """

    def __init__(self, quota: KnownQuota) -> None:
        self._quota = quota
        self.listening = True  # Whether headers are read: until they have contradicted themselves twice.
        self.paused_until = -math.inf  # The end of a window that is used up.
        self.senders = 1  # The number of senders that follow this guide.
        self.base = quota.floor  # The rate, without its variation within a window.
        self._initial = 0.0  # The rate before, until a second window has followed the first.
        self._doubted = False
        self._forget()

    def _forget(self) -> None:
        self.in_force = False  # Whether the window is trusted, and `rate` must be followed.
        self._name = ""
        self._window = self._tightness = math.inf
        self.seen_at = -math.inf  # When the last answer described the window.
        self._end = _End()
        self._over = True
        self._account_from(-math.inf)

    @property
    def is_uninformed(self) -> bool:
        """Whether no answer has described a window recently."""
        return self.seen_at == -math.inf

    @property
    def rate(self) -> float:
        if not self.in_force:
            return self.base
        # Together, senders that share the quota may exceed its rate for a while to use what is left.
        most = self._quota.ceiling * min(self.senders, _MAX_RATIO)
        return max(self._quota.floor, min(most, self.base * self._factor))

    def observe(
        self, reading: Reading | None, now: float, sent: float, rate: float, *, refused: bool = False
    ) -> bool:
        """Apply the answer to a request sent at `sent`; `rate` is the initial rate.

        Returns whether it is a refusal that the window explains because it is used up.
        """
        if not self.listening:
            return False
        self.advance(now)
        used_up = False
        if reading is not None and self._is_followed(reading):
            used_up = reading.remaining < 1
            if now - sent > _MAX_LATENCY or reading.reset > reading.window + TOLERANCE:
                self._doubt()
            else:
                self._locate(reading, now, rate)
        if refused and not used_up and self.in_force:
            self._doubt()
        return refused and used_up and self.in_force

    def advance(self, now: float) -> None:
        """Advance to `now`; the window may end in the meantime."""
        if now - self.seen_at > _MAX_SILENCE * self._window:
            self._forget()
        elif not self._over and now >= self._end.latest:
            self._finish()

    def release(self, start: float, end: float) -> float:
        """The permits released between two instants; after that, `rate` is the rate at the second one."""
        before = end - start if self._over else max(0.0, min(end, self._end.latest) - start)
        released = self.rate * before
        self.advance(end)
        return released + self.rate * (end - start - before)

    def time_for(self, permits: float, start: float) -> float:
        """Estimated seconds from `start` until this many more permits are released."""
        rate = self.rate
        before = math.inf if self._over else max(0.0, self._end.latest - start)
        if permits <= rate * before:
            return permits / rate
        return before + (permits - rate * before) / self.base

    def state(self, now: float) -> tuple[Any, ...]:
        """Everything that the guide knows, for `resume`; instants are relative to `now`."""
        flags = [int(flag) for flag in (self.listening, self._doubted, self.in_force, self._over)]
        sums = self._factor, self._sum, self._weight
        numbers = self._window, self._tightness, self.base, self._initial, *sums, self._readings
        instants = (self.paused_until, self.seen_at, self._accounted, *self._end)
        return (self._name, *flags, *numbers, *(instant - now for instant in instants))

    def resume(self, state: tuple[Any, ...], now: float) -> None:
        """Continue from a `state`, with instants relative to `now`; raises ValueError or TypeError if it is invalid."""
        name, listening, doubted, in_force, over, *numbers = state
        self._name, self.listening, self._doubted = str(name), bool(listening), bool(doubted)
        self.in_force, self._over = bool(in_force), bool(over)
        self._window, self._tightness, base, initial, *sums, readings = map(float, numbers[:8])
        self.base, self._initial = self._quota.bounded(base), self._quota.bounded(initial)
        self._factor, self._sum, self._weight, self._readings = *sums, int(readings)
        self.paused_until, self.seen_at, self._accounted, *end = (float(each) + now for each in numbers[8:])
        self._end = _End(*end)

    def _is_followed(self, reading: Reading) -> bool:
        """Whether the reading is about the quota that is followed; a tighter quota replaces it."""
        tightness = reading.limit / reading.window
        if (reading.name, reading.window) != (self._name, self._window):
            if reading.name != self._name and tightness >= self._tightness:
                return False
            self._forget()
            self._name, self._window = reading.name, reading.window
        self._tightness = tightness
        return True

    def _locate(self, reading: Reading, now: float, rate: float) -> None:
        """Determine the window to which the answer belongs."""
        end, known = now + reading.reset, self._end
        is_same = abs(end - known.first) <= TOLERANCE
        is_old = not is_same and abs(end - known.before) <= TOLERANCE
        if is_old or (is_same and self._over):
            return  # The request was in flight when the window ended.
        if is_same:
            self._end = known._replace(earliest=min(known.earliest, end), latest=max(known.latest, end))
        else:
            has_ended = now >= known.first - TOLERANCE
            self._quota.ended(end - known.first, known.first - now)
            if not (has_ended and end >= known.first + self._window - TOLERANCE):
                self.in_force, self.base = False, max(self.base, self._initial)  # A contradiction.
                self._doubt()
            self._initial = 0.0
            if not self._over:
                self._finish()
            self._end = _End(now, end, end, end, before=known.first)
            self._over = False
            self._account_from(end - self._window)
        self.seen_at = now
        if not self.in_force and self.listening and now - self._end.since >= _STABLE_FOR:
            self.in_force = True
            self.base, self._initial = self._quota.bounded(min(rate, self._tightness)), rate
            self._account_from(now)
        if self.in_force:
            self._learn(reading, now)

    def _learn(self, reading: Reading, now: float) -> None:
        end = (self._end.earliest + self._end.latest) / 2  # Servers may round up or down.
        left = max(_PRECISION, end - now) / self._window
        ahead = max(0.0, reading.remaining - _RESERVED_REQUESTS) / reading.limit / left
        # Assume that the current factor has applied since the previous answer.
        self._factor = min(ahead, _MAX_RATIO) ** _RATIO_POWER
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
        """Weight the factor by its duration and the time left then, because the end of a window is mostly chance."""
        end = self._end.latest
        weight = (end - self._accounted) ** 2 - (end - now) ** 2
        self._sum += weight * self._factor
        self._weight += weight
        self._accounted = now

    def _finish(self) -> None:
        self._over = True
        if self.in_force and self._readings:
            self._account(self._end.latest)
            mean = max(_MIN_MEAN, self._sum / self._weight)
            # The fewer answers a sender received, the more they depend on chance.
            gain = _MEAN_POWER * self._readings / (self._readings + 1)
            self.base = self._quota.bounded(
                self.base * mean**gain + self.senders * _INCREASE * self._quota.ceiling
            )
        self._account_from(self._end.latest)

    def _doubt(self) -> None:
        if self._doubted:
            self.listening = self.in_force = False
        self._doubted = True


class _Described(NamedTuple):
    """An answer's headers, when it arrived, and when its request was sent."""

    reading: Reading
    now: float
    sent: float


class GroupWindow:
    """What this member knows about the window, and has to report to the group. The caller holds a lock.

    Each member counts as one of the senders that share the window, so that a group gets its share beside other clients.
    """

    def __init__(self, quota: KnownQuota) -> None:
        self._quota = quota
        self._guide = WindowGuide(quota)
        self._known_at = -math.inf
        self._latest: _Described | None = None
        self._moved_by: _Described | None = None
        self._doubts = self._moved_doubts = 0  # Refusals that the window does not explain.

    def note(self, response: httpx.Response, answer: Answer) -> float | None:
        """Apply an answer. Returns the seconds until the window ends if it is trusted and used up; None otherwise."""
        reading, now, sent = None, answer.now, answer.sent
        if self._quota.plain is None and self._guide.listening:  # Plain AIMD reads no headers.
            reading = self._quota.read(response, answer.date())
        self._doubts += answer.is_refusal and (reading is None or reading.remaining >= 1)
        if reading is None:
            return None
        reading = reading._replace(name=reading.name[:_MAX_NAME])
        if self._latest is None or now > self._latest.now:
            self._latest = _Described(reading, now, sent)
        if reading.remaining >= 1:
            return None
        guide = self._guide  # A local copy; the group's guide is updated in its next step.
        guide.observe(reading, now, sent, guide.base)
        left = guide.paused_until - now
        return left if guide.in_force and left > 0 else None

    def move(
        self, state: tuple[Any, ...], written: float, now: float, rate: float, members: int
    ) -> WindowGuide:
        """The group's guide at `now`, from its state as of `written` and this member's later answers."""
        guide = WindowGuide(self._quota)
        if state:
            try:
                guide.resume(state, written)
            except (ValueError, TypeError):  # Another version wrote it.
                guide = WindowGuide(self._quota)
        guide.senders = members
        self._known_at, self._moved_doubts = guide.seen_at, self._doubts
        latest = self._moved_by = self._latest
        if latest is not None and latest.now > guide.seen_at:
            guide.observe(latest.reading, latest.now, latest.sent, rate)
        if self._doubts:
            guide.observe(None, now, now, rate, refused=True)
        guide.advance(now)
        self._guide = guide
        return guide

    def has_news(self, recent: float) -> bool:
        """Whether this member received a description of the window, and the group got none since `recent`."""
        return self._known_at <= recent and self._latest is not None and self._latest.now > self._known_at

    def reported(self) -> None:
        """Record that the group's state now includes this member's answers."""
        self._doubts -= self._moved_doubts
        if self._latest is self._moved_by:
            self._latest = None
