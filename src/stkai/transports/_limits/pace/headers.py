"""Reads what the headers of an answer say about a quota.

`RateLimit` is read in all versions of its draft (draft-ietf-httpapi-ratelimit-headers), and so are services' own
headers. The draft's fields are structured fields (RFC 9651), so a malformed field is ignored as a whole. Quotas of
tokens, which only services' own headers describe, are read separately.
"""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

import httpx

from ..._retry_after import MOST_VALUES, seconds_until

# Seconds by which readings of one instant may differ, because of rounding and latency.
TOLERANCE: Final = 1.6


class Reading(NamedTuple):
    """A quota of requests, as described by one answer."""

    name: str  # The quota's name; empty if it has none.
    limit: float  # Requests per window.
    remaining: float  # Requests left in the window.
    reset: float  # Seconds until the reset; servers define it differently.
    window: float  # Seconds.


def read_rate_limit(headers: httpx.Headers, now: datetime, window: float) -> Reading | None:
    """The quota that the headers describe; None if there is none in a known format.

    Of several quotas, returns the tightest: the one with the fewest requests per second in the long run. `window` is
    used if the server does not state one. Instants are converted with `seconds_until`.
    """
    if not _mention_limits(headers):
        return None
    readings = list(_named(headers, window)) or list(_unnamed(headers, now, window))
    return min(readings, key=lambda reading: reading.limit / reading.window, default=None)


def _mention_limits(headers: httpx.Headers) -> bool:
    """Whether the name of a header contains "limit"; headers of a cached answer do not count."""
    # One search over all names: this runs for every answer, and most servers send none of these headers.
    return (
        b"limit" in b"\n".join([name for name, _ in headers.raw]).lower() and headers.get("age", "0") == "0"
    )


def _named(headers: httpx.Headers, window: float) -> Iterator[Reading]:
    """Since draft 8: `RateLimit: "default";r=50;t=30` and `RateLimit-Policy: "default";q=100;w=60`."""
    policies = {policy.value: policy.parameters for policy in _items(headers, "ratelimit-policy")}
    for _, name, state in _items(headers, "ratelimit"):
        policy = policies.get(name, {})
        reading = Reading(
            name,
            limit=_number(policy.get("q")),
            remaining=_number(state.get("r")),
            reset=_number(state.get("t")),
            window=_number(policy["w"]) if "w" in policy else window,
        )
        if policy.get("qu", "requests") == "requests" and _makes_sense(reading):
            yield reading


# Limit, remaining, reset: the drafts before 7, OpenAI, Anthropic, GitHub and many others, and Okta and X.
_TRIPLES: Final = (
    ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    (
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-reset"),
)


def _unnamed(headers: httpx.Headers, now: datetime, window: float) -> Iterator[Reading]:
    """One quota in three values: in one header since draft 7, in three headers before and elsewhere."""
    limits = _items(headers, "ratelimit-policy")
    said = {item.key: item.value for item in _items(headers, "ratelimit")}
    if "limit" in said:  # `RateLimit: limit=100, remaining=50, reset=30`, and `RateLimit-Policy: 100;w=60`.
        limit, remaining, reset = (said.get(key, "") for key in ("limit", "remaining", "reset"))
    else:
        names = next((names for names in _TRIPLES if all(name in headers for name in names)), None)
        if names is None:
            return
        # The limit may be followed by further policies: `100, 100;w=60, 1000;w=3600`.
        limits = _items(headers, names[0]) + limits
        limit = limits[0].value if limits else ""
        remaining, reset = (headers[name].strip() for name in names[1:])
    others = (other.parameters for other in limits if other.value == limit)
    windows = (_number(parameters.get("w", parameters.get("window"))) for parameters in others)
    reading = Reading(
        name="",
        limit=_number(limit),
        remaining=_number(remaining),
        reset=_seconds_until(reset, headers, now),
        window=next((seconds for seconds in windows if seconds > 0), window),
    )
    if _makes_sense(reading):
        yield reading


def _makes_sense(reading: Reading) -> bool:
    # Comparisons with NaN are false, so this also rejects values that are not numbers.
    _, limit, remaining, reset, window = reading
    return limit > 0 and limit >= remaining >= 0 and reset >= 0 and window > 0


class _Item(NamedTuple):
    """An item of a structured list or dictionary; in a list the key is empty, and strings have no quotes."""

    key: str
    value: str
    parameters: dict[str, str]


_KEY: Final = r"[a-z*][a-z0-9_.*-]*"
_VALUE: Final = (
    r'"(?:[^"\\]|\\["\\])*"'  # a string
    r"|-?[0-9]{1,15}(?:\.[0-9]{1,3})?"  # a number
    r"|[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"  # a token
    r"|:[A-Za-z0-9+/=]*:"  # bytes
    r"|\?[01]"  # a boolean
)
_PARAMETER: Final = re.compile(rf";[ \t]*({_KEY})(?:=({_VALUE}))?")
_ITEM: Final = re.compile(
    rf"(?:({_KEY})=)?({_VALUE})((?:[ \t]*;[ \t]*{_KEY}(?:=(?:{_VALUE}))?)*)[ \t]*(?:,[ \t]*(?!\Z)|\Z)"
)


def _items(headers: httpx.Headers, name: str) -> list[_Item]:
    """The items of a header; an empty list if any part of it is malformed, or if there are too many."""
    text = headers.get(name, "").strip()
    items: list[_Item] = []
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None or len(items) == MOST_VALUES:
            return []
        key, value, rest = match.groups(default="")
        parameters = {parameter: _text(given) for parameter, given in _PARAMETER.findall(rest)}
        items.append(_Item(key, _text(value), parameters))
        position = match.end()
    return items


def _text(value: str) -> str:
    return value[1:-1] if value.startswith('"') else value


_DIGITS: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]+)?")
_DURATION: Final = re.compile(r"(?:[0-9]{1,15}(?:\.[0-9]+)?(?:ms|[dhms]))+")
_PART: Final = re.compile(r"([0-9.]+)(ms|[dhms])")
_SECONDS_PER: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# From here on, a number is an instant since 1970, in seconds or milliseconds: no reset is thirty years away.
_FIRST_INSTANT: Final = 1e9
_FIRST_IN_MILLISECONDS: Final = 1e11


def _number(text: str | None) -> float:
    """The number in a text, or NaN."""
    return float(text) if text is not None and _DIGITS.fullmatch(text) else math.nan


def _seconds_until(text: str, headers: httpx.Headers, now: datetime) -> float:
    """Parse seconds, a duration such as `6m0s` or `20ms`, or an instant (since 1970, or RFC 3339); NaN otherwise."""
    number = _number(text)
    if number < _FIRST_INSTANT:
        return number
    if number >= _FIRST_IN_MILLISECONDS:  # OpenRouter
        number /= 1000
    if _DURATION.fullmatch(text):
        return sum(float(amount) * _SECONDS_PER[unit] for amount, unit in _PART.findall(text))
    try:
        instant = (
            datetime.fromtimestamp(number, UTC) if number >= _FIRST_INSTANT else datetime.fromisoformat(text)
        )
    except (ValueError, OverflowError, OSError):
        return math.nan
    return seconds_until(instant, headers, now) if instant.tzinfo else math.nan


class CostReading(NamedTuple):
    """A quota in units of cost, as described by one answer: the tokens per minute of language models.

    Such quotas are refilled evenly, so only the remaining units matter: OpenAI and Anthropic describe a token bucket,
    and their reset is the time until it is full.
    """

    limit: float  # Units per minute; infinite if the answer names none.
    remaining: float  # Units that are left now.


# Limit and remaining: OpenAI, Azure and Groq; Anthropic, for all tokens and for each kind; others.
_PAIRS: Final = (
    ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),
    ("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining"),
    ("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining"),
    ("anthropic-ratelimit-output-tokens-limit", "anthropic-ratelimit-output-tokens-remaining"),
    ("x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute"),
    ("x-ratelimitbysize-limit-minute", "x-ratelimitbysize-remaining-minute"),
    ("x-tokenlimit-limit", "x-tokenlimit-remaining"),
)


def read_cost_limit(headers: httpx.Headers, but: str = "none") -> CostReading | None:
    """The tightest quota of tokens that the headers describe, without one of `but` tokens; None if there is none."""
    if not _mention_limits(headers):
        return None
    names = [pair for pair in _PAIRS if f"-{but}-" not in pair[0]]
    pairs = [(_number(headers.get(limit)), _number(headers.get(remaining))) for limit, remaining in names]
    # Comparisons with NaN are false.
    readings = [(limit if limit > 0 else math.inf, left) for limit, left in pairs if left >= 0]
    return CostReading(*map(min, zip(*readings, strict=True))) if readings else None
