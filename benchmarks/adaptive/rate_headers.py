"""The headers with which servers describe a fixed window."""

import math
from datetime import datetime
from typing import Literal

from stkai.testing._service import FixedWindow

RateHeaders = Literal["ietf", "github", "openai"]


def rate_headers(style: str, quota: FixedWindow, now: float, utcnow: datetime) -> tuple[tuple[str, str], ...]:
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
