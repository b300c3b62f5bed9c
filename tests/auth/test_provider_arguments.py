"""What a provider is made from: arguments, settings, and what of them is shown."""

import logging
from typing import Any

import httpx
import pytest

import stkai
from stkai import AuthConfig, AuthenticationError, ClientCredentialsAuthProvider, HttpConfig
from stkai._errors import ConfigurationError
from stkai.testing import FakeClock

from ..support.tokens import ID, SECRET, TOKEN_URL, Issuer, grant, provider_over
from ..support.wire import Wire

# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client_id": ""}, "client_id must be"),
        ({"transport": "socks5://proxy"}, "transport must be an httpx.BaseTransport"),
        ({"http": {"verify": False}}, "http must be a stkai.HttpConfig or None, not a value of type dict"),
        ({"client_id": None}, "client_id must be"),
        ({"client_secret": ""}, "client_secret must be"),
        ({"client_secret": 7}, "client_secret must be"),
        ({"client_secret": " \n"}, "client_secret must be"),
        ({"scope": ""}, "scope must be"),
        ({"audience": 7}, "audience must be"),
        ({"client_auth": "header"}, "client_auth must be 'body' or 'basic'"),
        ({"token_url": ""}, "token_url must be"),
        ({"token_url": "/token"}, "token_url must be an absolute"),
        ({"token_url": "idm.example.com/token"}, "token_url must be an absolute"),
        ({"token_url": "ftp://idm.example.com/token"}, "token_url must be an absolute"),
        ({"token_url": "https://"}, "token_url must be an absolute"),
        ({"token_url": "https://idm.example.com:port/"}, "port is not a number"),
        ({"token_url": "https://me:hunter2@idm.example.com/"}, "without a user name or password"),
        ({"token_url": "http://idm.example.com/token"}, "client secret unencrypted: use https://"),
        ({"token_url": "http://localhost.example.com/"}, "unencrypted"),
        ({"token_url": "http://127.0.0.1.example.com/"}, "unencrypted"),
        ({"token_url": "http://10.0.0.1/"}, "unencrypted"),
        ({"refresh_margin": -1}, "refresh_margin must be"),
        ({"refresh_margin": float("nan")}, "refresh_margin must be"),
        ({"refresh_margin": float("inf")}, "refresh_margin must be"),
        ({"refresh_margin": "60"}, "refresh_margin must be"),
        ({"allow_http": "false"}, "allow_http must be True or False"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_by_the_constructor(arguments: dict[str, Any], message: str) -> None:
    good = {"client_id": ID, "client_secret": SECRET, "token_url": TOKEN_URL}
    with pytest.raises(ConfigurationError, match=message) as caught:
        ClientCredentialsAuthProvider(**{**good, **arguments})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [
        ("https://idm.example.com/token", False),
        ("HTTPS://idm.example.com:443/token", False),
        ("http://localhost/token", False),
        ("http://LOCALHOST:8080/token", False),
        ("http://127.0.0.1:8080/token", False),
        ("http://127.8.9.1/token", False),
        ("http://[::1]:8080/token", False),
        ("http://[0:0:0:0:0:0:0:1]/token", False),
        ("http://idm.example.com/token", True),
    ],
)
def test_the_secret_is_sent_only_over_a_private_connection_unless_allowed(url: str, allow_http: bool) -> None:
    issuer = Issuer()
    provider = provider_over(issuer, token_url=url, allow_http=allow_http)
    assert provider.get_access_token() == "token-1"
    assert issuer.requests[0].url == httpx.URL(url.replace(":443", ""))


def test_the_query_of_a_token_url_is_sent_and_not_shown() -> None:
    wire = Wire(400)
    with pytest.raises(AuthenticationError) as caught:
        provider_over(wire, token_url="https://id.example.com/token?key=hunter2").get_access_token()
    assert wire.requests[0].url.query == b"key=hunter2"
    assert "https://id.example.com/token answered 400" in str(caught.value)


def test_the_defaults_are_those_of_the_reference() -> None:
    provider = ClientCredentialsAuthProvider(ID, SECRET)
    assert provider.token_url == ClientCredentialsAuthProvider.DEFAULT_TOKEN_URL
    assert provider.refresh_margin == ClientCredentialsAuthProvider.DEFAULT_REFRESH_MARGIN == 60


# The provider from the settings


def test_create_standalone_auth_takes_everything_from_its_config() -> None:
    config = AuthConfig(
        client_id=ID,
        client_secret=SECRET,  # Type checkers accept the text as well as a SecretStr.
        token_url="http://id.example.com/",
        refresh_margin=5,
        allow_http=True,
        scope="read",
        audience="api",
        client_auth="basic",
    )
    provider = stkai.create_standalone_auth(config)
    assert provider.client_id == ID
    assert provider.token_url == "http://id.example.com/"
    assert provider.refresh_margin == 5


def test_create_standalone_auth_shows_nothing_of_what_is_no_config() -> None:
    with pytest.raises(ConfigurationError, match="not a str") as caught:
        stkai.create_standalone_auth("a-secret")  # type: ignore[arg-type]
    assert "a-secret" not in str(caught.value)


def test_create_standalone_auth_without_a_config_uses_the_process_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def wire_of(config: HttpConfig | None) -> httpx.BaseTransport:
        made.append(config)
        return Issuer()

    monkeypatch.setattr("stkai._wire.DefaultWire", wire_of)
    stkai.STKAI.configure(auth={"client_id": ID, "client_secret": SECRET}, http={"verify": False})
    provider = stkai.create_standalone_auth(clock=FakeClock())
    assert provider.get_access_token() == "token-1"
    assert made == [stkai.STKAI.config.http]


@pytest.mark.parametrize("config", [None, AuthConfig()])
def test_create_standalone_auth_without_credentials_says_what_to_set(config: AuthConfig | None) -> None:
    with pytest.raises(ValueError, match="STKAI_AUTH_CLIENT_ID"):
        stkai.create_standalone_auth(config)


# Secrecy


def test_a_secret_of_the_settings_is_refused_with_what_to_pass_instead() -> None:
    config: Any = AuthConfig(client_id="id", client_secret="hidden")
    for make in (
        lambda: ClientCredentialsAuthProvider("id", config.client_secret),
        lambda: stkai.StaticToken(config.client_secret),
    ):
        with pytest.raises(ConfigurationError, match=r"pass its \.get_secret_value\(\)") as refused:
            make()
        assert "hidden" not in str(refused.value)


def test_neither_secret_nor_token_is_in_any_representation_or_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    provider = provider_over(Wire(503, grant("the-token")))
    provider.get_access_token()
    texts = [repr(provider), str(provider), caplog.text, repr(vars(provider))]
    assert ID in texts[0]
    for text in texts:
        assert SECRET not in text
        assert "the-token" not in text
