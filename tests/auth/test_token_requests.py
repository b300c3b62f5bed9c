"""How a token is requested, and which failures are retried."""

import base64
from typing import Any

import httpx
import pytest

from stkai import AuthenticationError, ClientCredentialsAuthProvider, HttpConfig
from stkai.testing import FakeClock

from ..support.tokens import ID, SECRET, TOKEN_URL, Issuer, grant, in_threads, provider_over
from ..support.wire import Wire

# How a token is requested


def test_a_token_is_requested_with_the_client_credentials_grant() -> None:
    issuer = Issuer()
    provider_over(issuer).get_access_token()
    (request,) = issuer.requests
    assert (request.method, str(request.url)) == ("POST", TOKEN_URL)
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert dict(form) == {"grant_type": "client_credentials", "client_id": ID, "client_secret": SECRET}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"]
    assert "authorization" not in request.headers
    assert max(request.extensions["timeout"].values()) <= 30


def test_a_scope_and_an_audience_are_requested() -> None:
    issuer = Issuer()
    provider_over(issuer, scope="read write", audience="https://api.example.com").get_access_token()
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert (form["scope"], form["audience"]) == ("read write", "https://api.example.com")


def test_the_credentials_can_be_sent_as_basic_authentication() -> None:
    issuer = Issuer()
    provider_over(issuer, client_auth="basic").get_access_token()
    (request,) = issuer.requests
    scheme, _, encoded = request.headers["authorization"].partition(" ")
    pair = base64.b64decode(encoded).decode()
    assert (scheme, pair) == ("Basic", f"{ID}:s3cret%2F%2B%26%3D%C3%A9")
    assert dict(httpx.QueryParams(issuer.bodies[0].decode())) == {"grant_type": "client_credentials"}


def test_basic_credentials_that_the_endpoint_repeats_are_not_shown() -> None:
    def repeat(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": f"bad header {request.headers['authorization']}"})

    with pytest.raises(AuthenticationError) as caught:
        provider_over(Wire(repeat), client_auth="basic").get_access_token()
    assert str(caught.value).endswith("answered 400: bad header Basic [secret]")


def test_white_space_around_the_credentials_is_removed() -> None:
    issuer = Issuer()
    provider = ClientCredentialsAuthProvider(f" {ID}\r\n", f"{SECRET}\n", TOKEN_URL, transport=issuer)
    provider.get_access_token()
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert (form["client_id"], form["client_secret"]) == (ID, SECRET)


def test_the_answer_is_closed_whether_it_is_a_token_or_not() -> None:
    for answer in (grant(), httpx.Response(400), httpx.Response(200, content=b"x" * 300_000)):
        wire = Wire(answer)
        provider = provider_over(wire)
        in_threads(1, provider.get_access_token)
        assert wire.open == 0


def test_only_the_default_wire_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Issuer()
    provider_over(mine).get_access_token()
    assert not mine.closed

    made, configs = Issuer(), []

    def wire_of(config: HttpConfig | None) -> httpx.BaseTransport:
        configs.append(config)
        return made

    monkeypatch.setattr("stkai._wire.DefaultWire", wire_of)
    http = HttpConfig(verify=False)
    provider = ClientCredentialsAuthProvider(ID, SECRET, TOKEN_URL, http=http, clock=FakeClock())
    provider.get_access_token()
    assert made.closed
    assert configs == [http]


# Transient failures are retried briefly


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_transient_status_is_retried(status: int) -> None:
    clock = FakeClock()
    wire = Wire(status, status, grant())
    assert provider_over(wire, clock).get_access_token() == "token-1"
    assert len(clock.sleeps) == 2
    assert sum(clock.sleeps) < 1.0
    assert wire.bodies[0] == wire.bodies[1] == wire.bodies[2]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut off")]
)
def test_a_broken_connection_is_retried(error: Exception) -> None:
    assert provider_over(Wire(error, error, grant())).get_access_token() == "token-1"


class Breaking(httpx.SyncByteStream):
    def __iter__(self) -> Any:
        yield b'{"access_'
        raise httpx.ReadError("cut off")


def test_a_truncated_answer_is_retried() -> None:
    wire = Wire(httpx.Response(200, stream=Breaking()), grant())
    assert provider_over(wire).get_access_token() == "token-1"
    assert wire.open == 0


def test_at_most_three_attempts_are_made() -> None:
    wire = Wire(503, 503, httpx.Response(503, json={"error": "temporarily_unavailable"}))
    with pytest.raises(AuthenticationError, match="answered 503: temporarily_unavailable"):
        provider_over(wire).get_access_token()


def test_a_short_retry_after_is_honoured() -> None:
    clock = FakeClock()
    provider_over(Wire(httpx.Response(503, headers={"Retry-After": "4"}), grant()), clock).get_access_token()
    assert clock.sleeps[0] >= 4.0
    with pytest.raises(AuthenticationError, match="answered 503"):
        provider_over(Wire(httpx.Response(503, headers={"Retry-After": "6"}))).get_access_token()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_a_refusal_is_final(status: int) -> None:
    with pytest.raises(AuthenticationError, match=f"answered {status}"):
        provider_over(Wire(status)).get_access_token()
