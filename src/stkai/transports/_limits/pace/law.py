"""How the adaptive limiter's rate changes, how long a refusal pauses the program, and what it knows about its past.

Of the three laws, the tuned one and textbook AIMD are here; the one for silent servers is in silent_servers.py. Rates
are in requests per second. No constant of the tuned law is in seconds: it scales with the window of the quota, and with
the number of requests in it. docs/research/adaptive.md explains the values.
"""

import math
from typing import Final, NamedTuple

# Windows over which requests are counted. In a single one, a small sender has only a few, which is mostly chance.
HISTORY: Final = 2.0
BURST: Final = 0.1  # Permits that may be taken at once after an idle period, as a fraction of a window's.
LEAST_CHANGE: Final = 0.1  # Fraction by which a rate must change before it is reported again.

_SLOPE: Final = 0.0035  # Fraction of the quota by which the rate grows per window at first.
# Windows after a cut at which growth accelerates: about the time between cuts of ten senders.
_PATIENCE: Final = 2.45
# Power of the acceleration. High: growth is slow while cuts are expected, and fast soon after.
_STEEPNESS: Final = 5

_REFERENCE: Final = 100.0  # Requests per window for which the other constants were tuned.
_MIN_STRETCH: Final = 0.3  # The lower bound of `TunedLaw.stretch`.
_SILENT_STRETCH: Final = 0.5  # Where refusals ask for no wait, each costs a second instead of half a window.

# Fraction of the rate that a cut leaves to one of many senders, and to one that has the whole quota: no other sender
# would use what it gives up.
_CUT_FACTOR: Final = 0.86
_CUT_FACTOR_ALONE: Final = 0.96
_FIRST_CUT: Final = 0.5  # Fraction left after the first refusal, because the last doubling was one too many.

# Fraction of the time with waiting requests above which a sender's goodput equals its part of the quota.
_MIN_HELD: Final = 0.98
_MIN_GOODPUT: Final = 0.9  # Goodput below this fraction of the rate means that the rest was refused.

# Multiple of its goodput that a sender with little to send keeps after a cut, up to a fraction of the quota: bursts may
# follow.
_DEMAND: Final = 3.0
_MAX_DEMAND: Final = 0.4

# With an unknown quota, a sender with this many requests per growth window grows like one of ten on `_REFERENCE`.
_TUNED_FOR: Final = 10.0
# The power of its own rate with which the sender then grows; below 1, so that rates converge: a small sender grows by a
# larger fraction than a large one, and is cut by the same.
_UNKNOWN_POWER: Final = 0.8

# Windows: the pause if a refusal asks for none, the upper bound of its jitter, and the shortest nap of a waiter.
LEAST_PAUSE: Final = 1 / 60
DEFAULT_PAUSE: Final = 1.0  # Seconds: the upper bound of this pause for a program that shares no store.
MAX_STREAK: Final = 3  # Refusals in a row up to which the pause doubles: the server may accept at any time.
PROBE_RATE: Final = 0.5  # After more refusals, requests per second that probe the server, besides the pauses.

# Seconds, or the window if that is longer: no answer pauses a program, or a group, for longer.
LONGEST_PAUSE: Final = 3600.0
# Seconds, or the window if that is longer, after which a server that asks for more than the longest pause is probed.
_PROBE_DELAY: Final = 120.0

# Seconds: for windows and waits up to this length, `Retry-After` in whole seconds is too coarse.
SHORT_WAIT: Final = 2.0


class Past(NamedTuple):
    """What a sender knows about its recent past when it is refused."""

    successes: float  # Requests that were sent recently and not refused.
    seconds: float  # The length of that time.
    held: float  # Fraction of the time, decaying over a window, during which requests were held back.
    cold: bool  # Whether this is the first refusal ever.


class History:
    """Counts the recent requests that were not refused, and measures the time in which requests were held back.

    A request counts as soon as it is sent and is subtracted if it is refused, so slow answers do not make the count lag
    behind the rate. Requests are counted in spans: the current one, and enough of the previous one for a whole span.
    The fraction of the time in which requests were held back decays over the quota's window.
    """

    def __init__(self) -> None:
        # Seconds of a span, and of the quota's window; the owner sets both.
        self.span = self.window = math.inf
        self.restart(math.inf)
        # The fraction of the time, when it was updated, and whether requests have been held back since then.
        self._held, self._held_at, self.holds = 1.0, -math.inf, True

    def restart(self, instant: float) -> None:
        """Forget all requests, and count the time from `instant` on; if that is infinite, from the first request on."""
        # `since` is when the current span began, and `latest` the number of requests in it.
        self._began = self.since = instant
        self.latest = self._before = 0.0

    def add(self, sent: float, count: float = 1.0) -> None:
        """Count a request sent at `sent` (seconds of the clock), or subtract one with -1."""
        if sent - self.since >= self.span:
            self._advance(sent)
        if sent >= self.since:
            self.latest += count
        elif self._began == math.inf:
            self._began = self.since = sent
            self.latest += count
        elif sent >= max(self._began, self.since - self.span):
            self._before += count

    def note(self, start: float, *, holds: bool) -> None:
        """Record whether requests are held back from `start` on."""
        if holds != self.holds:
            self._fade(start)
            self.holds = holds

    def past(self, now: float, *, cold: bool) -> Past:
        """The past as of a refusal at `now`."""
        self._fade(now)
        if now - self.since >= self.span:
            self._advance(now)
        still = 1.0 - max(0.0, now - self.since) / self.span
        count = max(0.0, self.latest + still * self._before)
        return Past(count, min(now - self._began, self.span), self._held, cold)

    def _advance(self, now: float) -> None:
        passed = (now - self.since) // self.span
        self._before, self.latest = self.latest if passed < 2 else 0.0, 0.0
        self.since += passed * self.span

    def _fade(self, now: float) -> None:
        if self._held_at > -math.inf and now > self._held_at:
            fading = math.exp((self._held_at - now) / self.window)
            self._held = 1 - (1 - self._held) * fading if self.holds else self._held * fading
        self._held_at = max(self._held_at, now)


class TunedLaw(NamedTuple):
    """The law that shared a quota best in our measurements."""

    ceiling: float  # The rate of the quota; infinite if it is unknown.
    window: float  # Seconds; an estimate if the quota is unknown.
    growth_window: float = 0.0  # Seconds; replaces the window in the slope if the quota is unknown.
    is_silent: bool = False  # Whether refusals do not say how long to wait. Only for a known quota.

    @property
    def stretch(self) -> float:
        """How much slower the law is than with `_REFERENCE` requests per window.

        With fewer requests per window, each refusal costs a larger fraction of it. Only for a known quota.
        """
        return max(_MIN_STRETCH, math.sqrt(_REFERENCE / (self.ceiling * self.window)))

    @property
    def history(self) -> float:
        """Seconds over which to count requests."""
        return HISTORY * max(1.0, self.stretch) * self.window

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        """The rate after `seconds` in which requests were held back, starting `quiet` seconds after the last cut."""
        if self.ceiling < math.inf:
            unit = self.stretch * self.window * (_SILENT_STRETCH if self.is_silent else 1.0)
            return rate + _SLOPE * self.ceiling * _growth(quiet, seconds, unit)
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
            # It sends all that it has, and less than it may, so its goodput says nothing about its part.
            return min(rate, max(eased, min(_DEMAND * goodput, _MAX_DEMAND * self.ceiling)))
        if past.seconds < self.history / HISTORY:
            # It is too early to know the goodput, but one window allows at least the requests accepted so far.
            return max(_FIRST_CUT * rate, min(eased, past.successes / self.window)) if past.cold else eased
        if is_soft(self.window):
            # The few requests of a short window say too little about goodput, and a refusal may be a mere collision.
            return eased
        return min(eased, goodput) if goodput < _MIN_GOODPUT * rate else eased


def _growth(quiet: float, seconds: float, unit: float) -> float:
    """The integral of 1 + (t / _PATIENCE)^_STEEPNESS over these `seconds`, with t in units of `unit` seconds."""
    start, end, power = quiet / unit, (quiet + seconds) / unit, _STEEPNESS + 1
    return end - start + (end**power - start**power) / (power * _PATIENCE**_STEEPNESS)


class PlainLaw(NamedTuple):
    """Textbook AIMD: an event cuts the rate by `penalty_factor`; a window adds `recovery_factor` of the quota."""

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

    Never less than a plausible wait that the server asked for, and from the third refusal on twice that: if the server
    begins the wait anew with each refusal, senders that keep to it would hold up each other forever. Doubles with each
    refusal, up to a window.
    """
    doubled = 2.0 ** max(0, min(streak, 32) - 1)
    bound = longest_pause(window)
    if asked > bound:
        return min(bound, max(window, _PROBE_DELAY) * doubled)
    jitter = chance * min(1 / rate, asked / 2 + LEAST_PAUSE * window)
    least = asked * (2.0 if streak > 2 else 1.0)
    return min(bound, max(least, min(asked * doubled, window)) + jitter)


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
