"""How long a token is kept, and when it is renewed."""

from typing import Any

import httpx
import pytest

from stkai.testing import FakeClock

from ..support.tokens import LIFETIME, MARGIN, Issuer, provider_over
from ..support.wire import Wire


def test_a_token_is_fetched_once_and_kept() -> None:
    issuer = Issuer()
    provider = provider_over(issuer)
    assert provider.cached_access_token() is None
    assert [provider.get_access_token() for _ in range(3)] == ["token-1"] * 3
    assert provider.cached_access_token() == "token-1"
    assert provider.get_auth_headers() == {"Authorization": "Bearer token-1"}
    assert issuer.fetches == 1


@pytest.mark.parametrize(
    ("lifetime", "options", "until"),
    [
        (LIFETIME, {}, LIFETIME - MARGIN),
        (100, {"refresh_margin": 60.0}, 50),
        (100, {"refresh_margin": 1e9}, 50),
        (100, {"refresh_margin": 0}, 100),
    ],
    ids=["the usual margin", "more than half of the lifetime", "more than the lifetime", "no margin"],
)
def test_a_token_is_renewed_when_its_margin_begins_and_not_before(
    lifetime: float, options: dict[str, Any], until: float
) -> None:
    issuer, clock = Issuer(expires_in=lifetime), FakeClock()
    provider = provider_over(issuer, clock, **options)
    provider.get_access_token()
    clock.advance(until - 0.001)
    assert provider.get_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token() is None
    assert provider.get_access_token() == "token-2"


def test_a_token_in_its_margin_is_used_while_it_is_being_renewed() -> None:
    clock = FakeClock()
    provider = provider_over(Issuer(), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - 0.001)
    assert provider.cached_access_token(renewing=True) == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token(renewing=True) is None


def test_the_lifetime_of_a_token_begins_when_it_is_requested_not_when_it_arrives() -> None:
    clock = FakeClock()
    provider = provider_over(Issuer(lambda _: clock.sleep(20.0), expires_in=100), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(79.999)
    assert provider.cached_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token() is None


def test_the_lifetime_of_a_token_begins_before_it_is_asked_for() -> None:
    def fail_first(number: int) -> None:
        clock.sleep(10.0)
        if number == 1:
            raise httpx.ConnectError("refused")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_first, expires_in=100), clock, refresh_margin=0)
    provider.get_access_token()
    asked = clock.monotonic()
    clock.advance(100 - asked - 0.1)
    assert provider.cached_access_token() == "token-2"
    clock.advance(0.2)
    assert provider.cached_access_token() is None


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (300, 300.0),
        (0.5, 0.5),
        ("300", 300.0),
        (..., 1199.0),
        (None, 1199.0),
        (0, 1199.0),
        (-1, 1199.0),
        (-1e400, 1199.0),
        (True, 1199.0),
        ("soon", 1199.0),
        ("nan", 1199.0),
        ("", 1199.0),
        ([], 1199.0),
        ({"seconds": 5}, 1199.0),
        (10**400, 1199.0),
        (86_401, 86_400.0),
        (1e18, 86_400.0),
        (1e400, 86_400.0),
    ],
    ids=str,
)
def test_the_lifetime_is_what_the_endpoint_says_if_that_is_valid(expires_in: object, life: float) -> None:
    content = {"access_token": "token", "expires_in": expires_in}
    clock = FakeClock()
    body = stdlib_json({name: value for name, value in content.items() if value is not ...})
    provider = provider_over(Wire(lambda _: httpx.Response(200, content=body)), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(life * 0.999)
    assert provider.cached_access_token() == "token"
    clock.advance(life * 0.001 + 1e-6)
    assert provider.cached_access_token() is None


def stdlib_json(content: object) -> str:
    """JSON with Infinity, which httpx refuses to write and servers do not."""
    import json

    return json.dumps(content)


def test_forgetting_drops_only_the_token_in_use() -> None:
    issuer = Issuer()
    provider = provider_over(issuer)
    provider.get_access_token()
    provider.forget("token-0")
    assert provider.cached_access_token() == "token-1"
    provider.forget("token-1")
    assert provider.cached_access_token(renewing=True) is None
    assert provider.get_access_token() == "token-2"
    provider.forget("token-1")
    assert provider.cached_access_token() == "token-2"
    assert issuer.fetches == 2
