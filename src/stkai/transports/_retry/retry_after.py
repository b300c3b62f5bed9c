"""Reads `Retry-After` (RFC 9110, section 10.2.3) as servers really send it."""

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

# A comma between values; the one within a date follows the name of a day.
_COMMA = re.compile(r"(?<![a-z]),")


def retry_after(headers: httpx.Headers, now: datetime) -> float | None:
    """Seconds for which the server asks us to stay away, or None where it says nothing that can be understood.

    Takes seconds, with decimals too, and HTTP-dates in all three forms. A date is measured against the response's own
    `Date`, so that a wrong clock on this side does no harm; `now` serves where there is none. A date in the past is 0.
    Of several values the longest counts. Negative and non-finite numbers and garbage are ignored.
    """
    values = headers.get("retry-after")
    if values is None:
        return None
    sent = parse_date(headers.get("date", "")) or now
    found = [_read(value.strip(), sent) for value in _COMMA.split(values)]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _read(value: str, sent: datetime) -> float | None:
    if _SECONDS.fullmatch(value):
        seconds = float(value)
        return seconds if math.isfinite(seconds) else None
    date = parse_date(value)
    return None if date is None else max(0.0, (date - sent).total_seconds())


def parse_date(value: str) -> datetime | None:
    """The instant of an HTTP-date (RFC 9110, section 5.6.7), or None of anything else."""
    if not value.isascii():  # The parser takes digits of any script.
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
