"""Reads what a server says about its quota in units of cost: the tokens per minute of language models.

Such quotas are refilled evenly, so only what is left of them counts: OpenAI and Anthropic describe a token
bucket, and their reset is the time until it is full.
"""

import math
from typing import Final, NamedTuple

import httpx


class CostReading(NamedTuple):
    """What one answer says about a quota in units of cost.

    Attributes:
        limit: units per minute, or infinite if the answer names none.
        remaining: units that are left now.
    """

    limit: float
    remaining: float


_PAIRS: Final = (
    ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),
    ("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining"),
    ("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining"),
    ("anthropic-ratelimit-output-tokens-limit", "anthropic-ratelimit-output-tokens-remaining"),
    ("x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute"),
    ("x-ratelimitbysize-limit-minute", "x-ratelimitbysize-remaining-minute"),
    ("x-tokenlimit-limit", "x-tokenlimit-remaining"),
)
"""Limit and remaining: of OpenAI, Azure and Groq; of Anthropic, for all tokens and for each kind; of others."""


def read_cost_limit(headers: httpx.Headers) -> CostReading | None:
    """The tightest quota of tokens that the headers describe, or None if they describe none."""
    # Look for all names at once: every answer passes through here.
    names = b"\n".join([name for name, _ in headers.raw]).lower()
    if b"limit" not in names or headers.get("age", "0") != "0":
        return None
    readings = []
    for limit, remaining in _PAIRS:
        left, most = _number(headers.get(remaining)), _number(headers.get(limit))
        if left is not None:
            readings.append(CostReading(most or math.inf, left))
    if not readings:
        return None
    return CostReading(
        min(reading.limit for reading in readings), min(reading.remaining for reading in readings)
    )


def _number(text: str | None) -> float | None:
    if text is None or not text.strip().isascii() or not text.strip().isdecimal():
        return None
    return float(text)
