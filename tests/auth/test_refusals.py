"""What a provider remembers of a refusal, and what it does while the old token is still valid."""

import httpx
import pytest

from stkai import AuthenticationError, ClientCredentialsAuthProvider
from stkai.testing import FakeClock

from ..support.tokens import LIFETIME, MARGIN, Issuer, grant, in_threads, provider_over
from ..support.wire import Wire

# A refusal of the credentials is remembered


REFUSED = httpx.Response(401, json={"error": "invalid_client", "error_description": "wrong secret"})


def attempts(provider: ClientCredentialsAuthProvider, count: int) -> list[str]:
    """The errors of this many sequential calls."""
    said = []
    for _ in range(count):
        with pytest.raises(AuthenticationError) as caught:
            provider.get_access_token()
        assert caught.value.message == str(caught.value)
        said.append(caught.value.message)
    return said


def test_twenty_calls_with_a_wrong_secret_make_one_sign_in_and_the_errors_say_so() -> None:
    clock, wire = FakeClock(), Wire(REFUSED)
    provider = provider_over(wire, clock)
    first, *others = attempts(provider, 20)
    assert len(wire.requests) == 1
    assert first.endswith("answered 401: invalid_client: wrong secret; check client_id and client_secret")
    assert {message.startswith(first) for message in others} == {True}
    clock.advance(12.0)
    (late,) = attempts(provider, 1)
    assert "12 s ago" in late
    assert "not asked again for another 18 s" in late
    assert len(wire.requests) == 1


@pytest.mark.parametrize("error", ["Unauthorized", "invalid_credentials", {"code": 1}, "", None])
def test_any_401_is_a_refusal_of_the_credentials(error: object) -> None:
    clock, wire = FakeClock(), Wire(httpx.Response(401, json={"error": error}))
    attempts(provider_over(wire, clock), 20)
    assert len(wire.requests) == 1


def test_after_30_seconds_the_endpoint_is_asked_again() -> None:
    clock = FakeClock()
    wire = Wire(REFUSED, grant("token-1"))
    provider = provider_over(wire, clock)
    attempts(provider, 3)
    clock.advance(29.9)
    attempts(provider, 1)
    clock.advance(0.1)
    assert provider.get_access_token() == "token-1"
    assert len(wire.requests) == 2


def test_threads_that_start_together_with_a_wrong_secret_make_one_sign_in() -> None:
    wire = Wire(lambda _: REFUSED)
    provider = provider_over(wire)
    assert {type(error) for error in in_threads(20, provider.get_access_token)} == {AuthenticationError}
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("answer", "sign_ins"),
    [
        (httpx.Response(401), 1),
        (httpx.Response(400, json={"error": "invalid_client"}), 1),
        (httpx.Response(403, json={"error": "access_denied"}), 1),
        (httpx.Response(400, json={"error": "invalid_scope"}), 3),
        (httpx.Response(400, json={"error": {"code": 1}}), 3),
        (httpx.Response(403), 3),
        (httpx.Response(404, json={"error": "invalid_client"}), 3),
        (httpx.Response(200, json={"error": "invalid_client"}), 3),
    ],
)
def test_only_a_refusal_of_the_client_itself_is_remembered(answer: httpx.Response, sign_ins: int) -> None:
    wire = Wire(lambda _: answer)
    attempts(provider_over(wire), 3)
    assert len(wire.requests) == sign_ins


def test_a_refused_renewal_leaves_the_old_token_in_use_and_is_remembered_too() -> None:
    clock = FakeClock()
    wire = Wire(grant("token-1"), REFUSED, grant("token-2"))
    provider = provider_over(wire, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert [provider.get_access_token() for _ in range(3)] == ["token-1"] * 3
    provider.forget("token-1")
    attempts(provider, 3)
    assert len(wire.requests) == 2
    clock.advance(30.0)
    assert provider.get_access_token() == "token-2"


# An endpoint that asks to be left alone


@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_that_asks_to_be_left_alone_is_asked_again_when_the_time_is_over(status: int) -> None:
    clock = FakeClock()
    wire = Wire(httpx.Response(status, headers={"Retry-After": "60"}), grant("token-1"))
    provider = provider_over(wire, clock)
    first, *others = attempts(provider, 20)
    assert first.endswith(f"answered {status}")
    assert {message.startswith(first) for message in others} == {True}
    clock.advance(59.0)
    assert "not asked again for another 1 s: it asked for this" in attempts(provider, 1)[0]
    assert len(wire.requests) == 1
    clock.advance(1.0)
    assert provider.get_access_token() == "token-1"


def test_a_renewal_that_is_put_off_leaves_the_old_token_in_use() -> None:
    clock = FakeClock()
    wire = Wire(grant("token-1"), httpx.Response(429, headers={"Retry-After": "40"}), grant("token-2"))
    provider = provider_over(wire, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert [provider.get_access_token() for _ in range(5)] == ["token-1"] * 5
    clock.advance(39.9)
    assert provider.get_access_token() == "token-1"
    clock.advance(0.1)
    assert provider.get_access_token() == "token-2"
    assert len(wire.requests) == 3


def test_no_answer_puts_an_endpoint_off_for_more_than_an_hour() -> None:
    clock = FakeClock()
    wire = Wire(httpx.Response(429, headers={"Retry-After": "1000000"}), grant("token-1"))
    provider = provider_over(wire, clock)
    attempts(provider, 2)
    clock.advance(3600.0)
    assert provider.get_access_token() == "token-1"


# When a renewal fails while the old token is still valid


def test_a_token_that_cannot_be_renewed_is_used_until_it_expires(caplog: pytest.LogCaptureFixture) -> None:
    def fail_from_the_second(number: int) -> None:
        if number > 1:
            raise httpx.ReadError("broken")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_from_the_second), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert provider.get_access_token() == "token-1"
    assert "could not be renewed" in caplog.text
    clock.advance(MARGIN)
    with pytest.raises(AuthenticationError, match="ReadError: broken"):
        provider.get_access_token()


def test_while_the_endpoint_is_down_a_valid_token_does_not_delay_every_call() -> None:
    def fail_from_the_second(number: int) -> None:
        if number > 1:
            raise RuntimeError("down")

    clock = FakeClock()
    issuer = Issuer(fail_from_the_second)
    provider = provider_over(issuer, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    for _ in range(5):
        provider.get_access_token()
    assert issuer.fetches == 2
    clock.advance(10.0)
    provider.get_access_token()
    assert issuer.fetches == 3


def test_those_who_wait_for_a_failed_renewal_get_the_token_that_is_still_valid() -> None:
    def fail_the_second(number: int) -> None:
        if number == 2:
            raise RuntimeError("down")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_the_second), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert in_threads(16, provider.get_access_token) == ["token-1"] * 16
