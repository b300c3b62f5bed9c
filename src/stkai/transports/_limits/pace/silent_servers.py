"""What the refusals of silent servers show, and the law of equal refusals, by which a sender's rate follows them.

A silent server refuses without saying how long to wait. docs/research/adaptive.md explains the values.
"""

import math
from typing import Final

from .evidence import Refill, WindowTest
from .pairs import PairTest
from .quota import KnownQuota

# The rate grows by the fraction b per patience T, and a refusal cuts it by b.
_STEP: Final = 0.15  # b.
# The first cut. Cut n + 1 is _FIRST_STEP / (1 + n / _STEP_DECAY), or b if that is larger.
_FIRST_STEP: Final = 0.5
_STEP_DECAY: Final = 3

# T with an unknown quota is proportional to the rate, up to a bound, and grows with the square of the time that the
# server takes to allow one more request, which `Refill` estimates. The lower bound of the rate scales with it.
_PATIENCE: Final = 0.55  # Seconds per request per second, at a server that allows _MAX_REFILL.
_MIN_PATIENT_RATE: Final = 2.0  # Requests per second, at such a server.
_MAX_PATIENT_RATE: Final = 10.0
_MIN_REFILL: Final = 1.0  # Requests per second.
_MAX_REFILL: Final = 16.0  # Requests per second; also assumed until it is known.
# The server allows at least this multiple of what the sender itself got lately: other senders are there as well.
_GOODPUTS: Final = 2.0
_GOODPUT_MEMORY: Final = 10.0  # Seconds.

# This T also grows with a power of p, the fraction of the requests that is refused, if p is above this value.
_MANY_REFUSALS: Final = 0.15
_REFUSALS_POWER: Final = 5.0

# T with a known quota is proportional to the rate: for a sender with a quarter of the quota, it is the time in which
# the quota allows `_QUOTA_PATIENCE` requests, but at least `_MIN_QUOTA_PATIENCE` seconds.
_QUOTA_PATIENCE: Final = 57.0
_MIN_QUOTA_PATIENCE: Final = 2.0

# T shrinks in proportion to p below this value, as when a sender is alone, down to a quarter; at a strict server, below
# the usual value, and only with an unknown quota.
_FEW_REFUSALS: Final = 0.02
_MIN_PATIENCE_FACTOR: Final = 0.25

# If the server has a window, the rate gains at most this many requests per window in each window, times one plus the
# square of the windows since the last outage.
_GROWTH_PER_WINDOW: Final = 8.0

# Fraction by which a cut is smaller for a sender with the whole of a known quota: no other sender would use what it
# gives up. Scales with the square of the sender's fraction of the quota.
_MAX_RELIEF: Final = 0.85

# A strict server spaces requests out. There, T is _STRICT_PATIENCE spacings, times the fraction of the server's places
# that the sender uses: a larger sender is refused less often, but also waits longer.
_STRICT_STEP: Final = 0.08  # b.
_STRICT_PATIENCE: Final = 40.0
_MIN_STRICT_PATIENCE: Final = 0.4  # Gaps: the lower bound of T.

# A strict server that refuses a larger fraction than this may be an emptied bucket: the rate does not grow.
_MAX_COLLISIONS: Final = 0.7

_USUAL_REFUSALS: Final = 0.05  # The usual value of p.
# p is estimated over the time in which the rate allows _ANSWERS requests, within bounds in seconds.
_ANSWERS: Final = 32.0
_MIN_MEMORY: Final = 40.0
_MAX_MEMORY: Final = 80.0
_REFUSALS_PRIOR: Final = 24.0  # The number of answers that the usual value of p counts as.

# The first row of successes of this length shows that the refusals before it were the end of a short window: they are
# forgotten. Only with an unknown quota, and not below this rate: a slow quota refuses again and again.
_CLEAR_ROW: Final = 8
_MIN_CLEAR_RATE: Final = 0.7  # Requests per second.

# A window lasts from the end of one outage to the end of the next. Until one is known, a row of refusals must take this
# long to be the rest of a window.
_MIN_OUTAGE: Final = 8.0  # Seconds.
_MAX_WINDOW: Final = 75.0  # Seconds. Most windows are a minute.
_MIN_SUCCESSES: Final = 5  # Fewer successes in a window say too little.
_MIN_AVERAGED: Final = 8  # Fewer successes may all come from a bucket, and say nothing about its rate.
_EARLY_ROWS: Final = 2  # Consecutive rows that begin in the first half of a window: it is not a window.
_QUIET_WINDOWS: Final = 2.5  # Windows without a row of refusals, after which the window is forgotten.


class SilentWindow:
    """Finds the window of a server that refuses everything until it is over, and never says when that is.

    A sender's successes from the end of one outage to the end of the next are its part of a window, whatever its rate.
    """

    def __init__(self, since: float, accepted: float) -> None:
        self.test = WindowTest(since)
        self._since, self._accepted, self._rows, self._early_rows = since, accepted, 0, 0
        self.growth = _GROWTH_PER_WINDOW  # Requests per window, in a window.
        self.seconds = 0.0  # The length of the window; 0 while none is known.

    @property
    def finding(self) -> str:
        """The window, in words; empty if none is known."""
        seconds = self.seconds
        return f"window of about {round(seconds, -1 if seconds > 20 else 0):.0f} s" if seconds else ""

    def average(self, now: float) -> float:
        """Requests per second that were accepted since the last outage ended; 0.0 if too few were."""
        return self._accepted / max(1.0, now - self._since) if self._accepted >= _MIN_AVERAGED else 0.0

    def accepted(self) -> None:
        self._accepted += 1

    def refused(self, now: float) -> None:
        """Record that a row of refusals begins."""
        self._rows += 1
        self._early_rows = self._early_rows + 1 if now - self._since < self.seconds / 2 else 0
        if self._early_rows >= _EARLY_ROWS:
            self.seconds = 0.0

    def advance(self, now: float) -> None:
        """Let growth accelerate; forget a window that has not refused anything for long."""
        windows = (now - self._since) / self.seconds if self.seconds else math.inf
        if windows > _QUIET_WINDOWS:
            self.seconds = windows = 0.0
        self.growth = _GROWTH_PER_WINDOW * (1 + windows * windows)

    def accepts_again(self, now: float, row_began: float) -> float:
        """Record the end of an outage, which may have been the rest of a window.

        Returns the sender's successes per second in that window; 0.0 if it was not a window.
        """
        seconds, rate = now - self._since, 0.0
        # Not every window refuses something.
        windows = max(1, round(seconds / self.seconds)) if self.seconds else 1
        is_window = self._accepted >= _MIN_SUCCESSES and (self.seconds or now - row_began > _MIN_OUTAGE)
        if self._rows == 1 and seconds <= windows * _MAX_WINDOW and (is_window or self.test.is_window):
            rate, self.seconds = self._accepted / seconds, seconds / windows
        self._since, self._accepted, self._rows = now, 0.0, 0
        return rate


class EqualRefusals:
    """The law of equal refusals: how a sender's rate follows from the fraction of its requests that is refused.

    The rate grows by the fraction b per patience T, and a refusal cuts it by b. T is proportional to the rate: all
    senders grow by the same amount and are cut by the same fraction, so their rates converge (Chiu and Jain, 1989).
    """

    def __init__(self, quota: KnownQuota, test: PairTest, window: SilentWindow) -> None:
        self._quota, self._test, self._window = quota, test, window
        self._cuts = 0
        self.refill = Refill()
        self._answers = self._refused = self._goodput = 0.0  # They decay.
        self.row = 0  # Consecutive successes; the refusal of one of a pair also ends the row.
        self._has_cleared = quota.is_given

    def note(self, rate: float, *, refused: bool) -> None:
        self.row = 0 if refused else self.row + 1
        if (
            self.row >= _CLEAR_ROW
            and rate >= _MIN_CLEAR_RATE
            and not (self._has_cleared or self._test.is_strict)
        ):
            self._has_cleared = True
            self.forget()
        self._answers += 1
        self._refused += refused
        self._goodput += (not refused) / _GOODPUT_MEMORY

    def fade(self, rate: float, seconds: float) -> None:
        fading = math.exp(-seconds / min(_MAX_MEMORY, max(_MIN_MEMORY, _ANSWERS / rate)))
        self._answers, self._refused = self._answers * fading, self._refused * fading
        self._goodput *= math.exp(-seconds / _GOODPUT_MEMORY)

    @property
    def refuses_most(self) -> bool:
        """Whether refusals are too frequent to be mere collisions of several senders."""
        return self._refused > _MAX_COLLISIONS * self._answers

    def forget(self) -> None:
        self._answers = self._refused = 0.0

    def grown(self, rate: float, seconds: float) -> float:
        """The rate after `seconds` in which requests waited."""
        is_strict = self._test.is_strict
        if is_strict and self.refuses_most:
            return rate  # It may be an emptied bucket.
        step = _STRICT_STEP if is_strict else _STEP
        # With a quota of 1e9 per second, patience may be nanoseconds. The ceiling bounds the rate in any case.
        return rate * math.exp(min(50.0, step / self.patience(rate) * seconds))

    def cut(self, rate: float) -> float:
        """The rate after a refusal."""
        if self._test.is_strict:
            return rate * (1 - _STRICT_STEP)
        step, fraction = max(_STEP, _FIRST_STEP / (1 + self._cuts / _STEP_DECAY)), rate / self._quota.ceiling
        return rate * (1 - step * (1 - _MAX_RELIEF * fraction * fraction))

    def count_cut(self) -> None:
        """Count a cut, by this law or another: later cuts are smaller."""
        self._cuts += 1

    def patience(self, rate: float) -> float:
        """Seconds between two refusals of a sender in balance."""
        refused = (self._refused + _USUAL_REFUSALS * _REFUSALS_PRIOR) / (self._answers + _REFUSALS_PRIOR)
        ceiling = self._quota.ceiling
        if self._test.is_strict:
            spacing, alone = 1 / ceiling, 1.0
            if ceiling == math.inf:
                spacing = self._test.spacing
                alone = max(_MIN_PATIENCE_FACTOR, min(1.0, refused / _USUAL_REFUSALS))
            return max(_MIN_STRICT_PATIENCE / rate, alone * _STRICT_PATIENCE * spacing * rate * spacing)
        alone = max(_MIN_PATIENCE_FACTOR, min(1.0, refused / _FEW_REFUSALS))
        if ceiling < math.inf:
            return alone * max(_MIN_QUOTA_PATIENCE, _QUOTA_PATIENCE / ceiling) * 4 * rate / ceiling
        is_window = self._window.test.is_window  # Then the refusals show nothing about C.
        allowed = max(_MAX_REFILL if is_window else _MIN_REFILL, self.refill.rate, _GOODPUTS * self._goodput)
        slowness = _MAX_REFILL / min(_MAX_REFILL, allowed)
        patience = _PATIENCE * alone * slowness**2
        patience *= min(_MAX_PATIENT_RATE, max(_MIN_PATIENT_RATE / slowness, rate))
        if refused > _MANY_REFUSALS:
            patience *= math.pow(refused / _MANY_REFUSALS, _REFUSALS_POWER)
        window = self._window.seconds
        return max(patience, _STEP * window * max(1.0, rate * window) / self._window.growth)
