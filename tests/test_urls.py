"""The rules for URLs: which are accepted, what an origin is, and that no message shows a password."""

from collections.abc import Callable

import httpx
import pytest

from stkai._urls import PROXIES, absolute_url, is_this_machine, parse_url, request_url

PASSWORD = "hunter2"

WITH_PASSWORD = [
    f"https://me:{PASSWORD}@api.example.com/v1",
    f"https://{PASSWORD}@api.example.com/v1",
    f"https://me:{PASSWORD}@api.example.com:443/",
    f"https://me:{PASSWORD}/x@api.example.com/",
    f"ftp://me:{PASSWORD}@api.example.com/",
    f"https://me:{PASSWORD}@api.example.com:port/",
    f"me:{PASSWORD}@api.example.com",
    f"//me:{PASSWORD}@api.example.com",
]


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_a_request_with_credentials_in_its_url_is_refused_and_the_password_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="url must be an absolute URL") as caught:
        request_url(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in str(error)
        error = error.__cause__
    assert "credential" in str(caught.value)


def test_credentials_in_a_url_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="send credentials as a header"):
        request_url(WITH_PASSWORD[0])


@pytest.mark.parametrize(
    "url", ["https://api.example.com/v1?user=me@example.com", "http://localhost:8080", "https://x/@me"]
)
def test_an_at_sign_outside_credentials_is_accepted(url: str) -> None:
    assert request_url(url) == httpx.URL(url)


@pytest.mark.parametrize("url", ["", "/v1", "api.example.com/v1", "ftp://api.example.com", "https://"])
def test_a_url_that_is_not_absolute_is_refused_and_shown(url: str) -> None:
    with pytest.raises(ValueError, match="url must be an absolute URL") as caught:
        request_url(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    "check",
    [
        lambda url: parse_url(url, "token_url must be an absolute http(s) URL"),
        absolute_url,
        lambda url: absolute_url(url, PROXIES),
    ],
)
@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_no_url_check_shows_a_password(check: Callable[[str], object], url: str) -> None:
    said = ""
    try:
        check(url)
    except ValueError as error:
        said = f"{error} {error.__cause__}"
    assert PASSWORD not in said


@pytest.mark.parametrize("url", ["HTTPS://Host:443/x", "https://host/x"])
def test_a_default_port_is_dropped_whatever_the_case_of_the_scheme(url: str) -> None:
    assert str(absolute_url(url)) == "https://host/x"


def test_another_notation_of_a_loopback_address_is_still_this_machine() -> None:
    assert is_this_machine("::ffff:127.0.0.1")
    assert not is_this_machine("::ffff:10.0.0.1")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host:65536/", "its port is above 65535"),
        ("https://host:99999/", "its port is above 65535"),
        ("https://a..example.com/", "empty or longer than 63"),
        ("https://.example.com/", "empty or longer than 63"),
        (f"https://{'a' * 64}.example.com/", "empty or longer than 63"),
    ],
)
def test_an_address_that_no_connection_can_be_made_to_is_refused(url: str, says: str) -> None:
    checks: list[Callable[[str], object]] = [
        request_url,
        absolute_url,
        lambda given: parse_url(given, "token_url must be an absolute http(s) URL"),
    ]
    for check in checks:
        with pytest.raises(ValueError, match=says):
            check(url)


@pytest.mark.parametrize(
    "url",
    ["https://host:65535/", "https://host.:1/", "https://[::1]:8080/", f"https://{'a' * 63}.example.com/"],
)
def test_an_unusual_address_is_accepted(url: str) -> None:
    assert request_url(url) == httpx.URL(url)
