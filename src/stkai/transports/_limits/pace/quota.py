"""What is known about the quota: from given numbers, from the server's headers, or from estimates."""

import math
from collections import deque
from datetime import datetime
from typing import Final, NamedTuple

import httpx

from .headers import TOLERANCE, Reading, read_rate_limit
from .law import PlainLaw, TunedLaw, longest_pause

MAX_RATE_AGE: Final = 86400.0  # Seconds after which a saved rate is out of date.

_DEFAULT_WINDOW: Final = 60.0  # Seconds, until something is known: most quotas are per minute.
# Seconds: a bucket asks for the time until one more request, which says nothing about a window.
_MIN_ESTIMATE: Final = 30.0
_MIN_GROWTH_WINDOW: Final = 7.0  # Seconds: the rate grows as for a window of at least this length.
# Recent waits, of which the longest counts; a wrong one is dropped after that many others.
_WAITS_KEPT: Final = 8

# Seconds. A reset lies within its window, so the shortest common window that contains it is chosen.
_COMMON_WINDOWS: Final = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)

# Requests per window below which no rate falls; if a quota is given, this fraction of it if that is less: 30 senders
# may share ten requests.
_FLOOR_REQUESTS: Final = 0.5
_FLOOR_FRACTION: Final = 0.02
# At a server that only refuses: requests per second, or this fraction of the quota if that is less.
_SILENT_FLOOR: Final = 0.1
_SILENT_FLOOR_FRACTION: Final = 0.05

# Fraction of the quota that a sender leaves to others, up to a number of requests per second. At the exact rate of a
# bucket, it would take each permit at once: others would be refused, and it never would.
_RESERVE: Final = 0.02
_MAX_RESERVE: Final = 0.1


class LearnedRate(NamedTuple):
    rate: float  # Requests per second.
    window: float  # The quota's window in seconds, or its estimate.
    refused: bool = True  # Whether a refusal, or a server's headers, have shown the limit.
    age: float = 0.0  # Seconds since it was saved.
    finding: str = ""  # What the refusals of a silent server mean, if known, such as "in flight: 8".


class KnownQuota:
    """The quota of all senders together, in requests per window; None for an unknown number."""

    def __init__(
        self,
        max_requests: float | None,
        time_window: float | None,
        floor_fraction: float = 0.0,  # A sender's lowest rate, as a fraction of the quota.
        *,
        plain: tuple[float, float] | None = None,  # Plain AIMD with this penalty and recovery factor.
        leaves_some: bool = False,  # Whether a sender leaves a little of the quota to others.
    ) -> None:
        self.plain, self._leaves_some = plain, leaves_some
        self.is_given = max_requests is not None and time_window is not None
        self._set(math.inf if max_requests is None else max_requests, time_window or _DEFAULT_WINDOW)
        self._floor_fraction = floor_fraction
        self._growth_window = _MIN_GROWTH_WINDOW
        self._waits: deque[float] = deque(maxlen=_WAITS_KEPT)
        # The longest reset, and the shortest time between announced ends of windows, in seconds.
        self._reset, self._between, self._end_moved = 0.0, math.inf, False
        self._is_silent = False

    def _set(self, requests: float, window: float) -> None:
        self.requests = requests  # Per window; infinite while unknown.
        self.window = window  # Seconds; an estimate if it was not given.
        # Requests per second of the whole quota, and of one sender at most. Not properties: every permit reads them.
        self.ceiling = requests / window
        self.most = self.ceiling - min(_RESERVE * self.ceiling, _MAX_RESERVE) * self._leaves_some

    @property
    def floor(self) -> float:
        """Requests per second below which the rate of a sender never falls."""
        least = _FLOOR_REQUESTS / self.window
        if not self.is_given:
            return least
        return max(self._floor_fraction * self.ceiling, min(least, _FLOOR_FRACTION * self.ceiling))

    @property
    def silent_floor(self) -> float:
        """The same at a server that only refuses."""
        return max(self.floor, min(_SILENT_FLOOR, _SILENT_FLOOR_FRACTION * self.ceiling))

    def __str__(self) -> str:
        return f"{self.requests:g}, {self.window:g}"

    def bounded(self, rate: float) -> float:
        return min(self.ceiling, max(self.floor, rate))

    def law(self) -> TunedLaw | PlainLaw:
        """The tuned law for what is known, or plain AIMD."""
        if self.plain is not None:
            return PlainLaw(self.ceiling, self.window, *self.plain)
        growth_window = self._growth_window if self.requests == math.inf else 0.0
        return TunedLaw(self.ceiling, self.window, growth_window, self._is_silent)

    def asked(self, seconds: float | None) -> None:
        """Record the wait that a refusal asks for, in seconds; None if it does not."""
        self._is_silent, seconds = seconds is None, seconds or 0.0
        if seconds <= longest_pause(0.0) and self.requests == math.inf:
            self._waits.append(seconds)
            self._set(self.requests, max(_MIN_ESTIMATE, *self._waits))
            self._growth_window = max(_MIN_GROWTH_WINDOW, *self._waits)

    @property
    def was_asked(self) -> bool:
        return any(self._waits)

    def read(self, response: httpx.Response, now: datetime) -> Reading | None:
        """The quota that the headers describe, if its window is short enough to schedule."""
        reading = read_rate_limit(response.headers, now, self.window if self.is_given else math.inf)
        if reading is not None and reading.window == math.inf:
            reading = self._completed(reading)
        return None if reading is None or reading.window > longest_pause(self.window) else reading

    def _completed(self, reading: Reading) -> Reading:
        """The reading with a window: the shortest common one that contains the server's resets, or one seen."""
        self._reset = max(self._reset, reading.reset)
        fitting = (window for window in _COMMON_WINDOWS if self._reset <= window + TOLERANCE)
        window, between = next(fitting, reading.window), self._between
        if self._reset - 2 * TOLERANCE <= between < window - TOLERANCE:
            # Whole seconds make the longest reset too long, and the shortest time between two ends too short.
            window = float(round(max(between, (between + self._reset) / 2)))
        return reading._replace(window=window)

    def ended(self, seconds: float, left: float) -> None:
        """Record the time between the announced ends of two windows, when `left` seconds of the first were left."""
        if left <= 2 * TOLERANCE and seconds > 0.0:
            self._between = min(self._between, seconds)
        else:
            self._end_moved = True  # Another server may have answered, with a quota of its own.

    def stated(self, reading: Reading | None) -> bool:
        """Adopt a quota that the server describes, unless one was given; returns whether it has changed.

        None if its headers are no longer believed. Then the quota remains, with the longest reset as its window if that
        is shorter, unless an end has moved before the window was over.
        """
        if self.is_given:
            return False
        before = self.requests, self.window
        if reading is not None:
            self._set(reading.limit, reading.window)
        elif self.requests < math.inf and self._end_moved:
            self._set(math.inf, _DEFAULT_WINDOW)
        elif self.requests < math.inf and 0.0 < self._reset < self.window:
            self._set(self.requests, self._reset)
        return (self.requests, self.window) != before

    def resume(self, window: float) -> None:
        """Adopt another program's estimate of the window, unless the quota was given."""
        if not self.is_given:
            self._set(self.requests, min(window, longest_pause(0.0)))

    def update(self, max_requests: float, time_window: float) -> None:
        self.is_given = True
        self._set(max_requests, time_window)
