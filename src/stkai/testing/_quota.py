"""Three ways in which services count a quota of `max_requests` per `time_window` seconds, and the gate that asks them.

They read no clock: `admit(now)` takes the time, which must not go back. A refused request uses nothing.
`max_requests` may be changed at any time.
"""

import math
from collections import deque
from datetime import datetime
from email.utils import formatdate
from typing import Literal

from .._checks import SECONDS, SOME_SECONDS, at_least, check_choice, check_number
from .._errors import ConfigurationError
from ._requests_and_replies import Headers, Reply, error_reply

RetryAfter = Literal["true", "date"] | float | None
RateHeaders = Literal["ietf", "github", "openai"] | None

_EPSILON = 1e-9  # of a permit: a client that waits exactly as long as the 429 says is admitted, whatever the rounding


class ServerQuota:
    """One quota, shared by all clients of the server."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        check_number("max_requests", max_requests, at_least(1))
        check_number("time_window", time_window, SOME_SECONDS)
        self.max_requests, self.time_window = max_requests, time_window

    def admit(self, now: float) -> float:
        """Count a request that arrives at `now`: 0.0 if accepted, otherwise the seconds until one would be."""
        raise NotImplementedError


class FixedWindow(ServerQuota):
    """A counter per window; windows start at multiples of `time_window`."""

    _window, _used = -math.inf, 0

    def admit(self, now: float) -> float:
        self._enter_window(now)
        if self._used >= self.max_requests:
            return self.reset_in(now)
        self._used += 1
        return 0.0

    def remaining(self, now: float) -> int:
        """How many more requests the window of `now` accepts."""
        self._enter_window(now)
        return max(0, self.max_requests - self._used)

    def reset_in(self, now: float) -> float:
        """Seconds until the next window starts."""
        return self.time_window - now % self.time_window

    def _enter_window(self, now: float) -> None:
        window = now // self.time_window
        if window != self._window:
            self._window, self._used = window, 0


class SlidingWindow(ServerQuota):
    """A log of the accepted requests: no `time_window`, wherever it starts, ever holds more than `max_requests`."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        super().__init__(max_requests, time_window)
        self._expiries: deque[float] = deque()

    def admit(self, now: float) -> float:
        while self._expiries and self._expiries[0] <= now:
            self._expiries.popleft()
        if len(self._expiries) >= self.max_requests:
            return self._expiries[-self.max_requests] - now
        self._expiries.append(now + self.time_window)
        return 0.0


class Bucket(ServerQuota):
    """A token bucket: `depth` requests at once, refilled at `max_requests / time_window` per second; starts full."""

    def __init__(self, max_requests: int, time_window: float, *, depth: float = 10.0) -> None:
        super().__init__(max_requests, time_window)
        check_number("depth", depth, at_least(1))
        self.depth = depth
        self._level = depth
        self._updated = -math.inf

    def admit(self, now: float) -> float:
        rate = self.max_requests / self.time_window
        self._level = min(self.depth, self._level + (now - self._updated) * rate)
        self._updated = now
        if self._level >= 1 - _EPSILON:
            self._level -= 1
            return 0.0
        return (1 - self._level) / rate


class Gate:
    """Counts requests, and answers 429 Too Many Requests when there are too many.

    `QuotaServer` explains the arguments.
    """

    def __init__(self, quota: ServerQuota | None, *, retry_after: RetryAfter, headers: RateHeaders) -> None:
        if isinstance(retry_after, str):
            check_choice("retry_after, unless a number or None,", retry_after, "true", "date")
        if isinstance(retry_after, int | float):
            check_number("retry_after", retry_after, SECONDS)
        check_choice("headers", headers, "ietf", "github", "openai", None)
        if headers is not None and not isinstance(quota, FixedWindow):
            raise ConfigurationError(
                f'headers={headers!r} describe a fixed window: set max_requests and kind="fixed"'
            )
        self.quota = quota
        self._retry_after = retry_after
        self._headers = headers

    def refuse(self, now: float, utcnow: datetime) -> Reply | None:
        """The 429 for a request that arrives now; None if it may enter."""
        wait = 0.0 if self.quota is None else self.quota.admit(now)
        if not wait:
            return None
        headers = self._retry_after_header(wait, utcnow) + self.headers(now, utcnow)
        return error_reply(429, "too_many_requests", "the quota is used up; see Retry-After", headers)

    def headers(self, now: float, utcnow: datetime) -> Headers:
        """The rate limit headers of an answer to a counted request."""
        if self._headers is None or not isinstance(self.quota, FixedWindow):
            return ()
        return rate_headers(self._headers, self.quota, now, utcnow)

    def _retry_after_header(self, wait: float, utcnow: datetime) -> Headers:
        if self._retry_after is None:
            return ()
        if self._retry_after == "true":
            return (("retry-after", str(math.ceil(wait))),)
        if self._retry_after == "date":
            return (("retry-after", formatdate(math.ceil(utcnow.timestamp() + wait), usegmt=True)),)
        return (("retry-after", f"{self._retry_after:g}"),)


def rate_headers(style: str, quota: FixedWindow, now: float, utcnow: datetime) -> Headers:
    """`RateLimit` and `RateLimit-Policy` (the IETF draft), or `x-ratelimit-*` in GitHub's or OpenAI's format."""
    limit, remaining, reset_in = quota.max_requests, quota.remaining(now), quota.reset_in(now)
    if style == "ietf":
        return (
            ("ratelimit-policy", f'"default";q={limit};w={math.ceil(quota.time_window)}'),
            ("ratelimit", f'"default";r={remaining};t={math.ceil(reset_in)}'),
        )
    if style == "github":
        return (
            ("x-ratelimit-limit", str(limit)),
            ("x-ratelimit-remaining", str(remaining)),
            ("x-ratelimit-reset", str(math.ceil(utcnow.timestamp() + reset_in))),
        )
    return (
        ("x-ratelimit-limit-requests", str(limit)),
        ("x-ratelimit-remaining-requests", str(remaining)),
        ("x-ratelimit-reset-requests", _duration(reset_in)),
    )


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 20ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
