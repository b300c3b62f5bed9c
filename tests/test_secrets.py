"""A mistake anywhere near a secret: neither the error, nor the variables of its frames, nor a pickle show it."""

import copy
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

import stkai
from stkai import (
    STKAI,
    AimdLimiter,
    AuthConfig,
    AuthenticationError,
    AuthProvider,
    BearerAuth,
    ClientCredentialsAuthProvider,
    ConfigurationError,
    HttpConfig,
    RateLimitConfig,
    Settings,
    StaticToken,
    TokenBucket,
)
from stkai._secrets import Secret
from stkai.stores import RedisStore

from .support.secrecy import shown_by
from .support.world import World

SECRET = "s3cr3t-value"
TOKEN_URL = "http://127.0.0.1:9/token"
ID = {"STKAI_AUTH_CLIENT_ID": "x"}


def assert_hidden(error: BaseException) -> None:
    text = shown_by(error, own=__file__)
    assert [line for line in text.splitlines() if SECRET in line] == []
    assert SECRET not in repr(getattr(error, "cause", None))


VARIABLES: dict[str, dict[str, str]] = {
    "another field": {**ID, "STKAI_AUTH_CLIENT_SECRET": SECRET, "STKAI_AUTH_REFRESH_MARGIN": "soon"},
    "another section": {**ID, "STKAI_AUTH_CLIENT_SECRET": SECRET, "STKAI_RETRY_MAX_RETRIES": "x"},
    "half of the pair": {"STKAI_AUTH_CLIENT_SECRET": SECRET},
    "a mistyped name": {"STKAI_AUTH_CLIENT_SECRETT": SECRET, "STKAI_RETRY_MAX_RETRIES": "x"},
    "an unencrypted endpoint": {
        **ID,
        "STKAI_AUTH_CLIENT_SECRET": SECRET,
        "STKAI_AUTH_TOKEN_URL": "http://example.com/token",
    },
    "a token with a space": {"STKAI_AUTH_TOKEN": f"{SECRET} x"},
    "bytes that are no text": {**ID, "STKAI_AUTH_CLIENT_SECRET": f"{SECRET}\udcff"},
    "a proxy's password with a slash": {
        "STKAI_AUTH_TOKEN": "t",
        "STKAI_HTTP_PROXY": f"http://u:{SECRET}/x@proxy:1",
    },
    "a proxy of another kind": {"STKAI_AUTH_TOKEN": "t", "STKAI_HTTP_PROXY": f"ftp://u:{SECRET}@proxy:1"},
    "a store's password": {"STKAI_RATE_LIMIT_STORE": f"redis://:{SECRET}@host:1/0"},
}


@pytest.mark.parametrize("case", VARIABLES)
def test_a_mistake_in_the_environment_shows_no_secret(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES[case].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        stkai.build_client()
    assert_hidden(caught.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", "https://", "", "ftp://"])
@pytest.mark.parametrize("password", [f"{SECRET}/x", f"x/{SECRET}", f"{SECRET}?"])
def test_a_proxy_that_cannot_be_read_is_refused_without_its_password(
    variable: str, scheme: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{scheme}user:{password}@proxy:8080")
    with pytest.raises(ConfigurationError, match=r"a proxy .* cannot be used: .*") as caught:
        stkai.build_client(auth=None)
    assert_hidden(caught.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_an_error_of_a_proxy_shows_no_password(
    world: World, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://user:{SECRET}@127.0.0.1:1")
    build = stkai.build_async_client if world.is_async else stkai.build_client
    client: Any = build(auth=None, retry=None)
    with pytest.raises(httpx.ConnectError) as caught:
        await world.call(client.get, "http://a.example/")
    assert_hidden(caught.value)
    await world.close(client)


def test_an_env_file_that_is_no_text_is_refused_without_its_contents(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(f"STKAI_AUTH_CLIENT_SECRET={SECRET}".encode() + b"\xff\n")
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        STKAI.configure(env_file=path)
    assert_hidden(caught.value)


@pytest.mark.parametrize(
    ("variable", "name"),
    [("SSL_CERT_FILE", "missing.pem"), ("SSL_CERT_FILE", "empty.pem"), ("STKAI_HTTP_VERIFY", "empty.pem")],
)
def test_certificates_that_cannot_be_read_are_a_configuration_error(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv(variable, str(tmp_path / name))
    message = f"{variable}.* must name certificates in PEM form, and .*{re.escape(name)}' does not"
    with pytest.raises(ConfigurationError, match=message):
        stkai.build_client(auth=None)
    with pytest.raises(ConfigurationError, match=message):
        stkai.build_async_client(auth=None)


def own_unicode_error() -> None:
    class Own(AuthProvider):
        def get_access_token(self) -> str:
            return f"{SECRET}\u00e9".encode("ascii").decode()

    stkai.build_client(auth=Own()).get("https://api.example.com", retry=None)


PAIR: Any = {"client_id": "x", "client_secret": SECRET}
CALLS: dict[str, Callable[[], object]] = {
    "configure, another field": lambda: STKAI.configure(auth={**PAIR, "refresh_margin": "soon"}),
    "configure, another section": lambda: STKAI.configure(auth=PAIR, retry={"max_retries": -1}),
    "configure, a mistyped field": lambda: STKAI.configure(auth={"client_secrett": SECRET}),
    "configure, a mistyped section": lambda: STKAI.configure(auht=PAIR),
    "configure, no dict": lambda: STKAI.configure(auth=SECRET),  # type: ignore[arg-type]
    "configure, bytes": lambda: STKAI.configure(auth={"token": SECRET.encode() + b" "}),
    "configure, a dict": lambda: STKAI.configure(auth={"client_id": {"secret": SECRET}}),
    "configure, a list": lambda: STKAI.configure(auth={"client_id": "x", "client_secret": [SECRET]}),
    "configure, an origin": lambda: STKAI.configure(auth={"origins": [f"https://user:{SECRET}@host"]}),
    "configure, an endpoint": lambda: STKAI.configure(auth={"token_url": f"https://user:{SECRET}@host"}),
    "configure, another endpoint": lambda: STKAI.configure(auth={"token_url": f"ftp://user:{SECRET}@host"}),
    "configure, a store": lambda: STKAI.configure(rate_limit={"store": f"redis://:{SECRET}@host"}),
    "configure, another store": lambda: STKAI.configure(rate_limit={"store": f"mysql://:{SECRET}@host"}),
    "configure, a proxy": lambda: STKAI.configure(http={"proxy": f"ftp://user:{SECRET}@host"}),
    "configure, a proxy of no kind": lambda: STKAI.configure(http={"proxy": f"user:{SECRET}@host"}),
    "AuthConfig": lambda: AuthConfig(**PAIR, refresh_margin=-1),
    "Settings": lambda: Settings(auth=cast("Any", {**PAIR, "refresh_margin": -1})),
    "RateLimitConfig": lambda: RateLimitConfig(store=f"redis://:{SECRET}@host", max_requests=-1),
    "HttpConfig": lambda: HttpConfig(proxy=f"http://user:{SECRET}@proxy:1", max_connections=0),
    "a provider's margin": lambda: ClientCredentialsAuthProvider("x", SECRET, refresh_margin=-1),
    "a provider's endpoint": lambda: ClientCredentialsAuthProvider("x", SECRET, "http://example.com/token"),
    "a provider's bytes": lambda: ClientCredentialsAuthProvider("x", SECRET.encode()),  # type: ignore[arg-type]
    "a provider's surrogates": lambda: ClientCredentialsAuthProvider("x", f"{SECRET}\udcff"),
    "a provider's scope": lambda: ClientCredentialsAuthProvider("x", SECRET, scope=""),
    "StaticToken": lambda: StaticToken(f"{SECRET} x"),
    "a token as auth": lambda: stkai.build_client(auth=SECRET),  # type: ignore[arg-type]
    "a token in BearerAuth": lambda: BearerAuth(SECRET),  # type: ignore[arg-type]
    "an origin": lambda: BearerAuth(StaticToken(SECRET), "nonsense"),
    "a provider of one's own": own_unicode_error,
    "a bucket's store without a share": lambda: TokenBucket(1, 1, store=f"redis://:{SECRET}@host"),
    "an adaptive limiter's store without a share": lambda: AimdLimiter(1, 1, store=f"redis://:{SECRET}@host"),
    "a bucket's numbers": lambda: TokenBucket(-1, 1, share="a", store=f"redis://:{SECRET}@host"),
    "a bucket's store": lambda: TokenBucket(1, 1, share="a", store=f"redis://:{SECRET}#x@host:y"),
    "a store's URL": lambda: RedisStore(f"redis://:{SECRET}/x@host:y"),
    "a store's timeout": lambda: RedisStore(f"redis://:{SECRET}@host", timeout=-1),
    "a store's scheme": lambda: TokenBucket(1, 1, share="a", store=f"redisx://:{SECRET}@host"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_mistake_in_a_call_shows_no_secret(case: str) -> None:
    with pytest.raises((ConfigurationError, AuthenticationError)) as caught:
        CALLS[case]()
    assert_hidden(caught.value)


def test_an_error_that_holds_a_json_document_forgets_it() -> None:
    class Own(AuthProvider):
        def get_access_token(self) -> str:
            return str(httpx.Response(200, text=f"{{{SECRET}").json())

    with pytest.raises(AuthenticationError, match="JSONDecodeError") as caught:
        stkai.build_client(auth=Own()).get("https://api.example.com", retry=None)
    assert SECRET not in repr(vars(caught.value.cause)) + pickle.dumps(caught.value).decode("latin-1")


# Pickles and copies

HOLDERS: list[Callable[[], Any]] = [
    lambda: ClientCredentialsAuthProvider("x", SECRET),
    lambda: StaticToken(SECRET),
    lambda: BearerAuth(StaticToken(SECRET)),
    lambda: BearerAuth(StaticToken(SECRET)).token(SECRET),
    lambda: Secret(SECRET),
    lambda: AuthConfig(token=cast("Any", SECRET)),
    lambda: AuthConfig(**PAIR),
    lambda: Settings(auth=PAIR),
    lambda: HttpConfig(proxy=f"http://user:{SECRET}@proxy:1"),
    lambda: Settings(http=HttpConfig(proxy=f"http://user:{SECRET}@proxy:1")),
    lambda: RateLimitConfig(share="team", store=f"redis://:{SECRET}@host:1/0"),
]


@pytest.mark.parametrize("number", range(len(HOLDERS)))
def test_what_holds_a_secret_refuses_to_be_pickled_and_does_not_show_it(number: int) -> None:
    holder = HOLDERS[number]()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(
            TypeError, match=f"{type(holder).__name__} holds a secret, which must not be written"
        ):
            pickle.dumps(holder, protocol)
    assert SECRET not in f"{holder} {holder!r}"
    assert SECRET not in f"{copy.copy(holder)!r} {copy.deepcopy(holder)!r}"


def test_settings_without_a_secret_can_be_pickled() -> None:
    for config in (
        Settings(),
        AuthConfig(client_id=None),
        RateLimitConfig(share="team", store="redis://host:1/0"),
    ):
        assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - its own


def test_settings_that_hold_a_secret_can_be_copied_and_changed() -> None:
    settings = Settings(auth=PAIR)
    other = settings.model_copy(update={"auth": settings.auth.model_copy(update={"scope": "all"})})
    assert (other.auth.scope, settings.auth.scope) == ("all", None)
    assert copy.deepcopy(settings) == settings


def test_the_repr_of_a_provider_that_is_not_fully_constructed_does_not_raise() -> None:
    for kind in (ClientCredentialsAuthProvider, BearerAuth, StaticToken):
        assert kind.__name__ in repr(kind.__new__(kind))


@pytest.mark.skipif(os.name == "nt", reason="the environment of Windows holds text only")
def test_a_secret_that_is_no_text_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"STKAI_AUTH_CLIENT_SECRET", SECRET.encode() + b"\xff")
    monkeypatch.setenv("STKAI_AUTH_CLIENT_ID", "x")
    with pytest.raises(
        ConfigurationError, match="client_secret must be a non-empty string that can be sent as UTF-8"
    ):
        stkai.build_client()
