"""Reads `Retry-After` (RFC 9110, section 10.2.3) as servers really send it."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)


def retry_after(headers: httpx.Headers, now: datetime) -> float | None:
    """Seconds for which the server asks us to stay away, or None where it says nothing that can be understood.

    Takes seconds, with decimals too, and HTTP-dates. A date is measured against the response's own `Date`, so that a
    wrong clock on this side does no harm; `now` serves where there is none. A date in the past is 0. Of several values
    the longest counts. Negative and non-finite numbers and garbage are ignored.
    """
    values = headers.get_list("retry-after")
    if not values:
        return None
    found = [seconds for value in values for seconds in _read(value, headers, now)]
    return max(found, default=None)


def _read(value: str, headers: httpx.Headers, now: datetime) -> list[float]:
    date = _parse_date(value)
    if date is not None:
        sent = _parse_date(headers.get("date", "")) or now
        return [max(0.0, (date - sent).total_seconds())]
    parts = [part.strip() for part in value.split(",")]
    numbers = [float(part) for part in parts if _SECONDS.fullmatch(part)]
    return [number for number in numbers if number != float("inf")]


def _parse_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
