"""Reads `Retry-After` (RFC 9110, section 10.2.3) as servers really send it."""

import re
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from .._headers import has_field

_SECONDS: Final = r"[0-9]+(\.[0-9]+)?"

_IN_MILLISECONDS: Final = (b"retry-after-ms", b"x-ms-retry-after-ms")
"""Headers that OpenAI and Azure send with, or instead of, `Retry-After`; their SDKs trust the milliseconds."""

_DAY: Final = 86400.0

MOST_VALUES: Final = 100
"""How many values of a header are read: 100 kB of them would occupy an event loop for a second."""

_LONGEST_DATE: Final = 100  # Characters.

_COMMA: Final = r"(?<![a-z]),"
"""A comma between values; the comma within a date follows the name of a day."""


def retry_after(headers: httpx.Headers, now: datetime) -> float | None:
    """Seconds that the server asks the client to wait, or None if it says nothing that can be understood.

    Takes seconds, with decimals too, and HTTP-dates in all three forms; `seconds_until` measures a date. Of several
    values the longest counts. A number too large for a float is the largest float; negative numbers and garbage are
    ignored. Milliseconds (`retry-after-ms`) take precedence: they state the same wait, not rounded to seconds.
    """
    # Most responses have none of these headers, and httpx decodes all headers to find one.
    if not has_field(headers, b"retry-after", *_IN_MILLISECONDS):
        return None
    names = [name.decode() for name in _IN_MILLISECONDS if has_field(headers, name)]
    values = [value for name in names for value in headers.get_list(name, split_commas=True)[:MOST_VALUES]]
    if exact := [float(value) / 1000 for value in values if re.fullmatch(_SECONDS, value)]:
        return min(max(exact), sys.float_info.max)
    values = re.split(_COMMA, headers.get("retry-after", ""), maxsplit=MOST_VALUES)[:MOST_VALUES]
    found = [_read(value.strip(), headers, now) for value in values]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _read(value: str, headers: httpx.Headers, now: datetime) -> float | None:
    if re.fullmatch(_SECONDS, value):
        return min(float(value), sys.float_info.max)
    date = parse_date(value)
    return None if date is None else seconds_until(date, headers, now)


def seconds_until(instant: datetime, headers: httpx.Headers, now: datetime) -> float:
    """Seconds until an instant that a response names; 0.0 if it is in the past.

    It is measured against the response's own `Date`, so that a wrong clock on this side does no harm, or against `now`
    if there is none. If the two are more than a day apart, one of them is wrong, and the one that makes the wait at
    most a day is used: a server whose clock says 1970 would otherwise make every client wait for decades.
    """
    by_clock = (instant - now).total_seconds()
    sent = parse_date(headers.get("date", ""))
    if sent is None:
        return max(0.0, by_clock)
    by_date = (instant - sent).total_seconds()
    if abs(by_date - by_clock) <= _DAY:
        return max(0.0, by_date)
    return min((wait for wait in (by_date, by_clock) if 0 <= wait <= _DAY), default=max(0.0, by_clock))


def parse_date(value: str) -> datetime | None:
    """The instant of an HTTP-date (RFC 9110, section 5.6.7), or None for anything else."""
    if len(value) > _LONGEST_DATE or not value.isascii():  # The parser accepts digits of any script.
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
