"""`Retry-After` in every format: numbers and dates in, seconds or nothing out, and never an exception."""

import math
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stkai import RetryPolicy
from stkai.transports._failures import Failure
from stkai.transports._retry_after import retry_after

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def read(value: str | bytes, **others: str) -> float | None:
    raw = value if isinstance(value, bytes) else value.encode()
    headers = [(b"Retry-After", raw), *((name.encode(), text.encode()) for name, text in others.items())]
    return retry_after(httpx.Headers(headers), NOW)


def test_without_the_header_no_wait_is_asked_for() -> None:
    assert retry_after(httpx.Headers({"Date": "Tue, 01 Jan 2030 00:00:00 GMT"}), NOW) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("7", 7.0), ("0007", 7.0), ("1.5", 1.5), ("0.001", 0.001), (" 7 ", 7.0)],
)
def test_seconds_are_read_with_and_without_decimals(value: str, seconds: float) -> None:
    assert read(value) == seconds


@pytest.mark.parametrize("value", ["9" * 309, "9" * 5000, "9" * 400 + ".5", "5, " + "1" * 400])
def test_seconds_too_many_for_a_float_are_longer_than_any_limit(value: str) -> None:
    seconds = read(value)
    assert seconds is not None
    assert 1e300 < seconds < math.inf
    assert RetryPolicy(max_retry_after=1e300).delay(Failure("503", False, seconds), 1, math.inf) is None


@pytest.mark.parametrize(
    "value",
    [
        "Tue, 01 Jan 2030 00:01:30 GMT",  # IMF-fixdate
        "Tuesday, 01-Jan-30 00:01:30 GMT",  # RFC 850
        "Tue Jan  1 00:01:30 2030",  # asctime
        "Tue, 01 Jan 2030 00:01:30",  # without a zone: GMT, as all HTTP-dates
        "Tue, 01 Jan 2030 02:01:30 +0200",
    ],
)
def test_a_date_is_read_in_each_of_its_forms(value: str) -> None:
    assert read(value) == 90.0


@pytest.mark.parametrize("skew", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=400)])
def test_a_date_is_measured_against_the_responses_date_however_wrong_the_clocks(skew: timedelta) -> None:
    theirs = NOW + skew
    form = "%a, %d %b %Y %H:%M:%S GMT"
    assert read((theirs + timedelta(seconds=20)).strftime(form), date=theirs.strftime(form)) == 20.0


@pytest.mark.parametrize(
    "date",
    ["Thu, 01 Jan 1970 00:00:00 GMT", "Mon, 01 Jan 2035 00:00:00 GMT", "Fri, 01 Jan 0001 00:00:00 GMT"],
)
def test_a_date_of_the_response_that_is_years_off_is_not_believed(date: str) -> None:
    assert read("Tue, 01 Jan 2030 00:00:20 GMT", date=date) == 20.0


def test_a_long_wait_by_our_own_clock_is_kept_if_the_servers_date_is_absurd() -> None:
    assert read("Fri, 04 Jan 2030 00:00:00 GMT", date="Thu, 01 Jan 1970 00:00:00 GMT") == 3 * 86400.0


@pytest.mark.parametrize("date", ["", "yesterday", "0", "Tue, 99 Jan 2030 00:00:00 GMT"])
def test_our_own_clock_is_used_if_the_response_has_no_readable_date(date: str) -> None:
    assert read("Tue, 01 Jan 2030 00:00:20 GMT", date=date) == 20.0


def test_the_date_of_the_response_does_not_affect_seconds() -> None:
    assert read("20", date="Tue, 01 Jan 2030 01:00:00 GMT") == 20.0


@pytest.mark.parametrize("value", ["Mon, 31 Dec 2029 23:59:59 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"])
def test_a_date_in_the_past_asks_for_no_wait(value: str) -> None:
    assert read(value) == 0.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5, 10", 10.0),
        ("10,5", 10.0),
        ("-5, 10", 10.0),
        ("10, soon", 10.0),
        ("Tue, 01 Jan 2030 00:00:30 GMT, Tuesday, 01-Jan-30 00:00:40 GMT", 40.0),
        ("Tue, 01 Jan 2030 00:00:30 GMT, 20", 30.0),
        ("50, Tue Jan  1 00:00:30 2030", 50.0),
    ],
)
def test_of_several_values_the_longest_counts(value: str, seconds: float) -> None:
    assert read(value) == seconds


def test_of_several_header_lines_the_longest_counts() -> None:
    headers = httpx.Headers([("Retry-After", "3"), ("Retry-After", "9"), ("Retry-After", "never")])
    assert retry_after(headers, NOW) == 9.0


@pytest.mark.parametrize("name", ["retry-after-ms", "X-MS-Retry-After-MS"])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [("350", 0.35), ("0", 0.0), ("1.5", 0.0015), (" 20 ", 0.02), ("20, 350", 0.35), ("soon, 350", 0.35)],
)
def test_milliseconds_are_the_same_wait_not_rounded_and_go_first(
    name: str, value: str, seconds: float
) -> None:
    assert retry_after(httpx.Headers({name: value}), NOW) == seconds
    assert read("1", **{name: value}) == seconds


def test_of_several_milliseconds_the_longest_counts() -> None:
    headers = httpx.Headers([("retry-after-ms", "300"), ("retry-after-ms", "900"), ("Retry-After", "1")])
    assert retry_after(headers, NOW) == 0.9


@pytest.mark.parametrize(
    "value", ["", "-5", "nan", "inf", "1e3", "soon", "350ms", "Tue, 01 Jan 2030 00:01:30 GMT"]
)
def test_milliseconds_that_are_no_number_leave_the_seconds_in_force(value: str) -> None:
    assert read("7", **{"retry-after-ms": value}) == 7.0


def test_milliseconds_too_many_for_a_float_are_longer_than_any_limit() -> None:
    seconds = retry_after(httpx.Headers({"retry-after-ms": "9" * 5000}), NOW)
    assert seconds is not None
    assert 1e300 < seconds < math.inf


@pytest.mark.parametrize(
    "value",
    [
        "", " ", ",", "nan", "NaN", "inf", "-inf", "Infinity", "-5", "-0", "+5", "1e400", "1e3", ".5", "5.",
        "1.2.3", "0x10", "1_000", "5s", "5 seconds", "soon", "\u0667", "\uff17", "\u00b2", "1\u0660",
        "2030-01-01T00:01:30Z", "1 Jan", "Jan", "Tue, 01 Jan 2030 25:00:00 GMT", "Tue, 01 Foo 2030 00:00:00 GMT",
        "Tue, \u0660\u0661 Jan 2030 00:01:30 GMT",
    ],
)  # fmt: skip
def test_anything_but_seconds_and_dates_is_ignored(value: str) -> None:
    assert read(value) is None


@pytest.mark.parametrize("name", ["Retry-After", "retry-after-ms"])
def test_of_thousands_of_values_only_the_first_hundred_are_read(name: str) -> None:
    """They would occupy the event loop for seconds."""
    asked = retry_after(httpx.Headers({name: ",".join(["1"] * 99 + ["2"] * 50_000)}), NOW)
    assert asked == (2.0 if name == "Retry-After" else 0.002)
    assert retry_after(httpx.Headers({name: "," * 100_000 + "1"}), NOW) is None
    date = "Tue, 01 Jan 2030 00:00:10" + " GMT" * 20_000
    assert read("Tue, 01 Jan 2030 00:00:20 GMT", date=date) == 20.0


WORDS = """Tue, Tue Tuesday, 01 1 Jan Jan, 01-Jan-30 2030 0000 00:00:30 25:61:99 1.2.3 GMT +0000 -2400 +9999
    , : - \u00b2 \u0661 1_0 nan"""
PIECES = st.sampled_from([*WORDS.split(), " ", "9" * 30, "9" * 5000])
VALUES = st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join)).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@given(VALUES | st.binary(), VALUES | st.binary())
@example(b"Mon, 01 Jan 0001 00:00:00 +2359", b"Fri, 31 Dec 9999 23:59:59 -2359")
@example(b"Fri, 31 Dec 9999 23:59:59 -2359", b"Mon, 01 Jan 0001 00:00:00 +2359")
def test_no_server_header_raises_or_gives_a_negative_wait(value: bytes, date: bytes) -> None:
    for name in (b"Retry-After", b"retry-after-ms"):
        seconds = retry_after(httpx.Headers([(name, value), (b"Date", date)]), NOW)
        assert seconds is None or 0.0 <= seconds < math.inf
