"""Rate limit headers in every shape give a reading or nothing, and never an exception."""

import math
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from benchmarks.adaptive.rate_headers import rate_headers
from hypothesis import example, given
from hypothesis import strategies as st

from stkai.testing._service import FixedWindow
from stkai.transports._limits.pace.headers import Reading, read_rate_limit

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EPOCH = int(NOW.timestamp())


def read(headers: dict[str, str] | list[tuple[str, str]], window: float = 60.0) -> Reading | None:
    return read_rate_limit(httpx.Headers(headers), NOW, window)


def triple(limit: str = "100", remaining: str = "50", reset: str = "30") -> dict[str, str]:
    return {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining, "X-RateLimit-Reset": reset}


def reset_of(text: str, **others: str) -> float:
    reading = read({**triple(reset=text), **others})
    return math.nan if reading is None else reading.reset


@pytest.mark.parametrize("headers", [{}, {"Date": "x", "Server": "y", "Retry-After": "7"}])
def test_an_answer_without_such_headers_says_nothing(headers: dict[str, str]) -> None:
    assert read(headers) is None


# The shapes


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ('"default";q=100;w=60', '"default";r=50;t=30'),  # drafts 8 to 11
        ("default;q=100;w=60", "default;r=50;t=30"),
        ('"default"; q=100; w=60; pk=:cHsdsRa894==:', '"default" ;r=50 ; t=30;pk=:cHsdsRa894==:'),
        ('"default";q=100;qu="requests";w=60;x;y=?1;z="a \\"b\\", ;c=1"', '"default";r=50;t=30;note=-1.5'),
    ],
)
def test_the_draft_names_its_quotas(policy: str, state: str) -> None:
    assert read({"RateLimit-Policy": policy, "RateLimit": state}, 1.0) == ("default", 100, 50, 30, 60)


@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": "limit=100, remaining=50, reset=30", "RateLimit-Policy": "10;w=1, 100;w=60"},  # draft 7
        {
            "RateLimit-Limit": "100",
            "RateLimit-Policy": "10;w=1, 100;w=60",
            "RateLimit-Remaining": "50",
            "RateLimit-Reset": "30",
        },
        {  # drafts 0 to 2
            "RateLimit-Limit": '100, 10;w=1;burst=1000, 100;w=60;comment="sliding window"',
            "RateLimit-Remaining": "50",
            "RateLimit-Reset": "30",
        },
        triple(limit="100, 10;w=1, 100;w=60"),
        triple(limit="100, 100;window=60, 10000;window=86400"),  # WHOOP
    ],
)
def test_in_older_drafts_the_window_of_the_limit_is_one_of_several(headers: dict[str, str]) -> None:
    assert read(headers, 1.0) == ("", 100, 50, 30, 60)


@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": "limit=100, remaining=50, reset=30"},
        {"RateLimit-Limit": "100", "RateLimit-Remaining": "50", "RateLimit-Reset": "30"},
        triple(reset=str(EPOCH + 30)),  # GitHub
        {  # Okta, and X
            "X-Rate-Limit-Limit": "100",
            "X-Rate-Limit-Remaining": "50",
            "X-Rate-Limit-Reset": str(EPOCH + 30),
        },
        {  # OpenAI
            "x-ratelimit-limit-requests": "100",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-requests": "50",
            "x-ratelimit-remaining-tokens": "7",
            "x-ratelimit-reset-requests": "30s",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        {  # Anthropic
            "anthropic-ratelimit-requests-limit": "100",
            "anthropic-ratelimit-requests-remaining": "50",
            "anthropic-ratelimit-requests-reset": "2030-01-01T00:00:30Z",
            "anthropic-ratelimit-tokens-limit": "80000",
            "anthropic-ratelimit-tokens-remaining": "7",
            "anthropic-ratelimit-tokens-reset": "2030-01-01T00:00:07Z",
        },
        {  # Both at once: the standard one counts.
            **triple(limit="7", remaining="1"),
            "RateLimit": '"a";r=50;t=30',
            "RateLimit-Policy": '"a";q=100',
        },
        {**triple(), "RateLimit": '"a";r=7;t=7'},  # No policy: seven are left, but out of how many?
        {**triple(), "Age": "0"},
    ],
)
def test_without_a_window_in_the_headers_the_known_one_is_used(headers: dict[str, str]) -> None:
    reading = read(headers, 45.0)
    assert reading is not None
    assert reading[1:] == (100, 50, 30, 45)


@pytest.mark.parametrize("style", ["ietf", "github", "openai"])
def test_the_headers_of_the_embedded_server_are_understood(style: str) -> None:
    quota = FixedWindow(100, 60.0)
    for _ in range(40):
        quota.admit(10.0)
    reading = read(list(rate_headers(style, quota, 10.0, NOW)))
    assert reading is not None
    assert reading[1:] == (100, 60, 50, 60)


# Which of several


def test_of_several_quotas_the_one_with_the_lowest_rate_counts() -> None:
    policies = '"burst";q=10;w=1, "hour";q=1000;w=3600, "minute";q=50;w=60'
    states = '"burst";r=0;t=1, "minute";r=5;t=50, "hour";r=900;t=1800'
    assert read({"RateLimit-Policy": policies, "RateLimit": states}) == ("hour", 1000, 900, 1800, 3600)


def test_a_list_may_be_spread_over_several_headers() -> None:
    lines = [
        ("RateLimit-Policy", '"a";q=100;w=60'),
        ("RateLimit-Policy", '"b";q=50;w=60'),
        ("RateLimit", '"a";r=9;t=9'),
        ("RateLimit", '"b";r=7;t=7'),
    ]
    assert read(lines) == ("b", 50, 7, 7, 60)


def test_quotas_of_anything_but_requests_are_ignored() -> None:
    policies = '"bytes";q=10;qu="content-bytes";w=60, "many";q=5;qu="concurrent-requests", "a";q=100;w=60'
    states = '"bytes";r=1;t=9, "many";r=1;t=9, "a";r=50;t=30'
    assert read({"RateLimit-Policy": policies, "RateLimit": states}) == ("a", 100, 50, 30, 60)


# The reset


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0.25", 0.25),
        ("  7 ", 7.0),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("1m500ms", 60.5),
        (f"{EPOCH + 42}", 42.0),
        (f"{EPOCH + 42}.5", 42.5),
        (f"{EPOCH - 42}", 0.0),
        (f"{EPOCH + 42}500", 42.5),  # milliseconds
        ("2030-01-01T00:00:42Z", 42.0),
        ("2030-01-01T02:00:42.500+02:00", 42.5),
        ("2029-12-31T23:59:00Z", 0.0),
    ],
)
def test_a_reset_is_read_in_all_its_spellings(text: str, seconds: float) -> None:
    assert reset_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("instant", [f"{EPOCH + 3600 + 30}", "2030-01-01T01:00:30Z"])
def test_an_instant_is_measured_against_the_date_of_the_answer_however_wrong_the_clocks(instant: str) -> None:
    theirs = NOW + timedelta(hours=1)
    assert reset_of(instant, Date=theirs.strftime("%a, %d %b %Y %H:%M:%S GMT")) == 30.0
    assert reset_of(instant, Date="yesterday") == 3630.0


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1", "nan", "inf", "1e3", "s", "1x", "1s2", "2030-01-01T00:00:42", "2030-13-01T00:00:00Z"],
)
def test_a_reset_that_cannot_be_read_makes_the_rest_worthless(text: str) -> None:
    assert math.isnan(reset_of(text))


# Garbage


@pytest.mark.parametrize(
    "headers",
    [
        triple(limit=""),
        triple(limit="0"),
        triple(limit="many"),
        triple(limit="100 requests"),
        triple(remaining="-1"),
        triple(remaining="101"),
        triple(remaining="50, 50"),
        {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "50"},
        {"X-RateLimit-Limit-Tokens": "100"},
        {**triple(), "Age": "17"},  # It comes from a cache.
        {"RateLimit": "limit=100, remaining=50"},
        {"RateLimit": '"a";r=50;t=30'},
        {"RateLimit": '"a";r=50', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a";t=30', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a";r=50;t=30', "RateLimit-Policy": '"b";q=100;w=60'},
        {"RateLimit": '"a";r=50;t=30', "RateLimit-Policy": '"a";w=60'},
        {"RateLimit": '"a";r=50;t=30', "RateLimit-Policy": '"a";q=100;w=0'},
        {"RateLimit": '"a";r=50;t=30', "RateLimit-Policy": ",".join(['"a";q=100;w=60'] * 101)},
        {"RateLimit": '"a";r=50;t=30,', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a;r=50;t=30', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a";r=50;t=30, (1 2)', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a";r=50;t=30', "RateLimit-Policy": '"a";q=100;w=60 "b"'},
        {"RateLimit": '"a";R=50;t=30', "RateLimit-Policy": '"a";q=100;w=60'},
        {"RateLimit": '"a";r="many";t=30', "RateLimit-Policy": '"a";q=100;w=60'},
    ],
)
def test_what_is_malformed_or_incomplete_is_ignored(headers: dict[str, str]) -> None:
    assert read(headers) is None


NAMES = st.sampled_from(
    [
        "RateLimit",
        "RateLimit-Policy",
        *(
            f"{prefix}{part}"
            for prefix in ("RateLimit-", "X-RateLimit-")
            for part in ("Limit", "Remaining", "Reset")
        ),
        *(f"X-RateLimit-{part}-Requests" for part in ("Limit", "Remaining", "Reset")),
        *(f"Anthropic-RateLimit-Requests-{part}" for part in ("Limit", "Remaining", "Reset")),
        "Date",
        "Age",
    ]
)
PIECES = st.sampled_from(
    [
        '"',
        "a",
        "limit=",
        "remaining=",
        "reset=",
        ";r=",
        ";t=",
        ";q=",
        ";w=",
        ",",
        " ",
        "\\",
        "=",
        "-",
        ".",
        "*",
    ]
)
NUMBERS = st.integers(0, 10**20).map(str) | st.floats().map(str)
TEXTS = (
    st.text(max_size=30)
    | st.lists(PIECES | NUMBERS, max_size=12).map("".join)
    | st.datetimes(timezones=st.none() | st.timezones()).map(datetime.isoformat)
)


@given(st.lists(st.tuples(NAMES, TEXTS.map(str.encode)), max_size=8))
@example([("X-RateLimit-Limit", b"1"), ("X-RateLimit-Remaining", b"1"), ("X-RateLimit-Reset", b"\xff\x00")])
@example(
    [("X-RateLimit-Limit", b"1"), ("X-RateLimit-Remaining", b"1"), ("X-RateLimit-Reset", "\u0663".encode())]
)
def test_whatever_is_sent_there_is_a_reading_that_makes_sense_or_none(lines: list[tuple[str, bytes]]) -> None:
    headers = httpx.Headers([(name.encode(), value) for name, value in lines])
    reading = read_rate_limit(headers, NOW, 60.0)
    if reading is not None:
        assert 0 <= reading.remaining <= reading.limit < math.inf
        assert reading.limit > 0
        assert 0 <= reading.reset < math.inf
        assert 0 < reading.window < math.inf


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(1, 10**6))
def test_well_formed_headers_are_read_correctly(limit: int, used: int, reset: int, window: int) -> None:
    remaining = max(0, limit - used)
    sent = {"RateLimit": f'"a";r={remaining};t={reset}', "RateLimit-Policy": f'"a";q={limit};w={window}'}
    assert read(sent) == ("a", limit, remaining, reset, window)
    assert read(triple(str(limit), str(remaining), str(reset)), window) == (
        "",
        limit,
        remaining,
        reset,
        window,
    )
