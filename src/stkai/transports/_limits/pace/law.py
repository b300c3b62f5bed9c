"""How the adaptive limiter's rate changes, and how long a refusal pauses the program. Numbers in, numbers out.

There are two laws: the tuned one and textbook AIMD. Rates are in requests per second. No constant of the tuned law is
in seconds: it scales with the window of the quota, and with the number of requests in it. docs/research/adaptive.md
explains the values.
"""

import math
from typing import NamedTuple

HISTORY = 2.0
"""Windows over which requests are counted. Over one window, a small sender has only a few, which is mostly chance."""

BURST = 0.1
"""Permits that may be taken at once after an idle period, as a fraction of a window's."""

LEAST_CHANGE = 0.1
"""Fraction by which a rate must change before it is reported again."""

_SLOPE = 0.0035  # Fraction of the quota by which the rate grows per window at first.

_PATIENCE = 2.45
"""Windows after a cut at which growth accelerates: about the time between two cuts with ten senders."""

_STEEPNESS = 5
"""Power of that acceleration. It is high, so that growth is slow while cuts are expected, and fast soon after."""

_REFERENCE = 100.0  # Requests per window for which the other constants were tuned.

_MIN_STRETCH = 0.3

_CUT_FACTOR, _CUT_FACTOR_ALONE = 0.86, 0.96
"""Fraction of the rate that a cut leaves to one of many senders, and to one that has the whole quota: no other sender
would use what it gives up."""

_MIN_HELD = 0.98
"""Fraction of the time with waiting requests above which a sender's goodput equals its share of the quota."""

_MIN_GOODPUT = 0.9  # Goodput below this fraction of the rate means that the rest was refused.

_DEMAND, _DEMAND_LIMIT = 3.0, 0.4
"""Multiple of its goodput that a sender with little to send keeps after a cut, and the maximum as a fraction of the
quota: bursts may follow."""

_FIRST_CUT = 0.5
"""Fraction of the rate left after the first refusal, because the last doubling was one too many."""

_TUNED_FOR = 10.0
"""Requests per growth window at which growth with an unknown quota equals that of one of ten on `_REFERENCE`."""

_UNKNOWN_POWER = 0.8
"""The power of its own rate with which a sender grows if the quota is unknown; below 1, so that rates converge: a small
sender grows by a larger fraction than a large one, and is cut by the same."""

LEAST_PAUSE = 1 / 60
"""Windows: the minimum jitter of a pause, and the shortest nap of a waiter."""

DEFAULT_PAUSE = 1.0
"""Seconds for which the first 429 without `Retry-After` pauses a program; in short windows, it is `LEAST_PAUSE`."""

MAX_STREAK = 3
"""Consecutive refusals up to which a pause without `Retry-After` doubles: no retry policy waits for longer."""

PROBE_RATE = 0.5
"""After more than these refusals, requests per second that probe the server, in addition to the pauses."""

LONGEST_PAUSE = 3600.0
"""Seconds, or the window if that is longer: no answer pauses a program, or a group, for longer."""

_PROBE_DELAY = 120.0
"""Seconds, or the window if longer, after which a server that asks for more than the longest pause is probed."""

SHORT_WAIT = 2.0
"""Seconds: for windows and waits up to this length, `Retry-After` in whole seconds is too coarse."""


class Past(NamedTuple):
    """What a sender knows about its recent past when it is refused."""

    successes: float  # How many requests were sent recently and not refused.
    seconds: float  # The length of that time.
    held: float  # Fraction of the time, decaying over a window, during which requests were held back.
    cold: bool  # Whether this is the first refusal ever.


class TunedLaw(NamedTuple):
    """The law that shared a quota best in our measurements."""

    ceiling: float  # The rate of the quota; infinite if it is unknown.
    window: float  # Seconds; an estimate if the quota is unknown.
    growth_window: float = 0.0  # Seconds; replaces the window in the slope if the quota is unknown.

    @property
    def stretch(self) -> float:
        """How much slower the law is than with `_REFERENCE` requests per window.

        With fewer requests per window, each refusal costs a larger fraction of it.
        """
        if self.ceiling == math.inf:
            return 1.0
        return max(_MIN_STRETCH, math.sqrt(_REFERENCE / (self.ceiling * self.window)))

    @property
    def history(self) -> float:
        """Seconds over which to count requests."""
        return HISTORY * max(1.0, self.stretch) * self.window

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        """The rate after `seconds` in which requests were held back, starting `quiet` seconds after the last cut."""
        if self.ceiling < math.inf:
            return rate + _SLOPE * self.ceiling * _growth(quiet, seconds, self.stretch * self.window)
        # dr = factor * r^power * dg, so that r^(1 - power) grows by factor * (1 - power) * dg.
        unit = max(self.growth_window, self.window)  # A saved window may be short.
        factor = _SLOPE * _REFERENCE * unit / self.growth_window / math.sqrt(_TUNED_FOR * self.growth_window)
        rest = 1 - _UNKNOWN_POWER
        return math.pow(math.pow(rate, rest) + factor * rest * _growth(quiet, seconds, unit), 1 / rest)

    def cut(self, rate: float, past: Past) -> float:
        goodput = past.successes / max(past.seconds, self.window / 60)
        fraction = min(1.0, goodput / self.ceiling)
        eased = rate * (_CUT_FACTOR + (_CUT_FACTOR_ALONE - _CUT_FACTOR) * fraction)
        if past.cold and self.ceiling == math.inf:
            return min(rate, goodput)
        if past.held < _MIN_HELD:
            # It sends all that it has, and less than it may, so its goodput says nothing about its share.
            return min(rate, max(eased, min(_DEMAND * goodput, _DEMAND_LIMIT * self.ceiling)))
        if past.seconds < self.history / HISTORY:
            # It is too early to know the goodput, but one window allows at least the requests accepted so far.
            return max(_FIRST_CUT * rate, min(eased, past.successes / self.window)) if past.cold else eased
        if is_soft(self.window):
            # The few requests of a short window say too little about goodput, and a refusal may be a mere collision.
            return eased
        return min(eased, goodput) if goodput < _MIN_GOODPUT * rate else eased


def _growth(quiet: float, seconds: float, unit: float) -> float:
    """The integral of 1 + (t / patience)^steepness over that time, in units of `unit` seconds."""
    start, end, power = quiet / unit, (quiet + seconds) / unit, _STEEPNESS + 1
    return end - start + (end**power - start**power) / (power * _PATIENCE**_STEEPNESS)


class PlainLaw(NamedTuple):
    """Textbook AIMD: an event cuts the rate by `penalty_factor`, a window adds `recovery_factor` of the quota."""

    ceiling: float
    window: float
    penalty_factor: float
    recovery_factor: float

    @property
    def history(self) -> float:
        return HISTORY * self.window

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        return rate + self.recovery_factor * self.ceiling * seconds / self.window

    def cut(self, rate: float, past: Past) -> float:
        return rate * (1 - self.penalty_factor)


def longest_pause(window: float) -> float:
    return max(window, LONGEST_PAUSE)


def is_soft(window: float, asked: float = 0.0) -> bool:
    """Whether only the refused request waits as asked, while the others continue at the reduced rate."""
    return window <= SHORT_WAIT and asked <= SHORT_WAIT


def full_pause(asked: float, streak: int, window: float, rate: float, chance: float) -> float:
    """Seconds for which all requests pause after `streak` consecutive refusals.

    Never less than a plausible wait that the server asked for. Doubles with each refusal, up to a window.
    """
    doubled = 2.0 ** max(0, min(streak, 32) - 1)
    bound = longest_pause(window)
    if asked > bound:
        return min(bound, max(window, _PROBE_DELAY) * doubled)
    jitter = chance * min(1 / rate, asked / 2 + LEAST_PAUSE * window)
    return min(bound, max(asked, min(asked * doubled, window)) + jitter)


class Congestion:
    """Separates congestion events: all refusals of one event count once.

    Refusals of requests sent before the last cut do not count, and neither do any until the server accepts one again.
    """

    def __init__(self) -> None:
        self.streak = 0  # Consecutive refusals of requests sent after the last cut.
        self.is_answered = True  # Whether the server has accepted a request since the last cut.
        self._cut_at = -math.inf

    def refused(self, sent: float) -> bool:
        """Record the refusal of a request sent at `sent`; returns whether it begins a new congestion event."""
        fresh = sent > self._cut_at
        self.streak += fresh
        return fresh and self.is_answered

    def accepted(self, sent: float) -> bool:
        """Record that a request sent at `sent` was accepted; returns whether it was sent after the last cut."""
        if sent <= self._cut_at:
            return False
        self.is_answered = True
        self.streak = 0
        return True

    def cut(self, now: float) -> None:
        self._cut_at = now
        self.is_answered = False
