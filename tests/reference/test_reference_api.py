"""Every name in StackSpot's HTTP client API reference exists here, and does what the reference says.

`reference.json` holds the facts of the reference: names, parameters and defaults.
"""

import inspect
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import httpx
import pytest
import requests

import stkai
from stkai import (
    STKAI,
    AdaptiveRateLimitedHttpClient,
    AuthProvider,
    BearerAuth,
    ClientCredentialsAuthProvider,
    EnvironmentAwareHttpClient,
    HttpClient,
    RetryableError,
    Retrying,
    ServerSideRateLimitError,
    StandaloneHttpClient,
    StaticToken,
    StkCLIHttpClient,
    TokenAcquisitionTimeoutError,
    TokenBucketRateLimitedHttpClient,
)
from stkai.testing import Answer, FakeClock, QuotaServer

from ..support import stand_in_cli

FACTS: dict[str, dict[str, dict[str, str]]] = json.loads(
    Path(__file__).with_name("reference.json").read_text()
)
"""By class or function, by method, by parameter: the default as source text, or `required`."""


@pytest.fixture
def provider(server: QuotaServer) -> ClientCredentialsAuthProvider:
    return ClientCredentialsAuthProvider(server.client_id, server.client_secret, server.token_url)


class Mine(HttpClient):
    """A user's client, as in the reference: two verbs, no `super().__init__`."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses) or [200]
        self.calls: list[tuple[str, str, Any, Any, float]] = []

    def get(self, url: str, headers: Any = None, timeout: float = 30, **_: Any) -> httpx.Response:
        self.calls.append(("GET", url, None, headers, timeout))
        return httpx.Response(200, text="got")

    def post(
        self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any
    ) -> httpx.Response:
        self.calls.append(("POST", url, data, headers, timeout))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return httpx.Response(status, text="posted", headers={"retry-after": "7"} if status == 429 else {})


DECORATORS: list[Callable[..., HttpClient]] = [
    TokenBucketRateLimitedHttpClient,
    AdaptiveRateLimitedHttpClient,
]


# The names


@pytest.mark.parametrize("owner", FACTS)
def test_every_name_of_the_reference_is_public_with_its_methods(owner: str) -> None:
    assert owner in stkai.__all__
    for method in FACTS[owner]:
        assert method == owner or callable(getattr(getattr(stkai, owner), method))


@pytest.mark.parametrize("owner", FACTS)
def test_every_parameter_of_the_reference_has_its_name_place_and_default(owner: str) -> None:
    kind = getattr(stkai, owner)
    for method, parameters in FACTS[owner].items():
        signature = inspect.signature(kind if method == owner else getattr(kind, method)).parameters
        names = [name for name in signature if name != "self"]
        for place, (parameter, default) in enumerate(parameters.items()):
            ours = signature[parameter]
            assert names.index(parameter) == place, parameter
            assert ours.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            if default == "required":
                assert ours.default is inspect.Parameter.empty
            elif default.startswith("DEFAULT_"):
                assert ours.default == getattr(kind, default)
            else:
                assert repr(ours.default) == default, parameter


# HttpClient as a base class


@pytest.mark.parametrize("decorator", DECORATORS)
def test_any_client_can_be_wrapped_even_a_wrapped_one(decorator: Callable[..., HttpClient]) -> None:
    inner = Mine()
    client = decorator(TokenBucketRateLimitedHttpClient(inner, 100, 1.0), 100, 1.0)
    assert client.post("https://api.example/a", {"b": 1}, {"X-A": "1"}, 5).text == "posted"
    assert client.get("https://api.example/a", {"X-A": "2"}, 6).text == "got"
    assert inner.calls == [
        ("POST", "https://api.example/a", {"b": 1}, {"X-A": "1"}, 5),
        ("GET", "https://api.example/a", None, {"X-A": "2"}, 6),
    ]
    with pytest.raises(NotImplementedError):
        client.post_stream("https://api.example/a")


@pytest.mark.parametrize("decorator", DECORATORS)
def test_a_limiter_holds_back_post_but_not_get(decorator: Callable[..., HttpClient]) -> None:
    inner = Mine()
    client = decorator(inner, 1, 3600.0, max_wait_time=0.5)
    client.post("https://api.example")
    for _ in range(20):
        client.get("https://api.example")

    def post_until_refused() -> None:
        while len(inner.calls) < 40:
            client.post("https://api.example")

    with pytest.raises(TokenAcquisitionTimeoutError) as refused:
        post_until_refused()
    assert refused.value.max_wait_time == 0.5
    assert refused.value.waited == 0.0


def test_a_streamed_answer_passes_through_a_limiter(server: QuotaServer, provider: AuthProvider) -> None:
    for decorator in DECORATORS:
        with decorator(StandaloneHttpClient(provider), 100, 1.0) as client:
            response = client.post_stream(server.chat_url(), {"user_prompt": "a b c", "streaming": True})
            lines = [line for line in response.iter_lines() if line]
            response.close()
            assert len(lines) == 4


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize(
    "arguments",
    [(None, 10, 1.0), (HttpClient, 10, 1.0), (Mine(), 0, 1.0), (Mine(), 10, 0.0), (Mine(), 10, float("nan"))],
)
def test_a_wrong_argument_of_a_limiter_is_an_assertion_and_a_value_error(
    decorator: Callable[..., HttpClient], arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(AssertionError) as wrong:
        decorator(*arguments)
    assert isinstance(wrong.value, ValueError)


def test_argument_errors_are_raised_without_assertions_too() -> None:
    code = (
        "import stkai\n"
        "try: stkai.TokenBucketRateLimitedHttpClient(None, 1, 1.0)\n"
        "except AssertionError as error: print(type(error).__name__)\n"
        "try: stkai.HttpClient(stkai.transports.StkCLITransport.__new__(stkai.transports.StkCLITransport)).get('')\n"
        "except AssertionError as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["InvalidArgumentError"] * 2


# The adaptive client


def test_a_429_is_raised_with_its_readable_response_and_can_be_pickled() -> None:
    client = AdaptiveRateLimitedHttpClient(Mine(429), 100, 60.0, max_wait_time=5.0)
    with pytest.raises(ServerSideRateLimitError) as refused:
        client.post("https://api.example/a")
    with pytest.raises(TokenAcquisitionTimeoutError) as waiting:
        client.post("https://api.example/a")
    assert waiting.value.required >= 6.9, "as long as the server asked"
    assert isinstance(refused.value, RetryableError | httpx.TransportError)
    assert refused.value.response.headers["retry-after"] == "7"
    assert refused.value.response.text == "posted"
    assert str(refused.value.request.url) == "https://api.example/a"
    assert refused.value.__notes__ == ["stkai: POST api.example: 1 attempt"]
    again = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - what was pickled one line above
    assert again.response.status_code == 429


def test_a_streamed_429_is_raised_with_its_body_and_its_connection_is_returned(
    server: QuotaServer, provider: AuthProvider
) -> None:
    with AdaptiveRateLimitedHttpClient(StandaloneHttpClient(provider), 100, 1.0) as client:
        server.fail_with(Answer(429, body="too much"))
        with pytest.raises(ServerSideRateLimitError) as refused:
            client.post_stream(server.chat_url(), {"user_prompt": "a"})
        assert refused.value.response.text == "too much"
        assert refused.value.response.is_closed


# Standalone, and the choice by environment


@pytest.mark.parametrize(
    "mock", [partial(Mock), partial(create_autospec, instance=True)], ids=["mock", "autospec"]
)
def test_mocks_stand_in_for_providers_and_delegates(server: QuotaServer, mock: Callable[..., Any]) -> None:
    provider, delegate = mock(spec=AuthProvider), mock(spec=HttpClient)
    provider.get_auth_headers.return_value = {"Authorization": "Bearer mine"}
    with StandaloneHttpClient(provider) as client:
        headers = client.get(f"{server.url}/echo").json()["headers"]
    assert ["authorization", "Bearer mine"] in headers
    delegate.post.return_value = httpx.Response(200)
    for decorator in DECORATORS:
        assert decorator(delegate, 10, 60.0).post(server.url) is delegate.post.return_value


@pytest.mark.parametrize("kind", [httpx.Response, requests.Response, None])
@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
def test_mocks_stand_in_for_the_responses_of_delegates(kind: Any, verb: str) -> None:
    for decorator in DECORATORS:
        delegate, answer = Mock(spec=HttpClient), Mock(spec=kind, status_code=200)
        getattr(delegate, verb).return_value = answer
        assert getattr(decorator(delegate, 10, 60.0), verb)("https://api.example.com") is answer


def test_the_standalone_client_takes_the_origins_of_a_bearer(server: QuotaServer) -> None:
    bearer = BearerAuth(StaticToken("mine"), "https://api.example.com")
    with StandaloneHttpClient(bearer) as client:
        headers = client.get(f"{server.url}/echo").json()["headers"]
    assert "authorization" not in dict(headers)


def test_the_standalone_client_signs_and_keeps_its_connection(
    server: QuotaServer, provider: AuthProvider
) -> None:
    with StandaloneHttpClient(provider) as client:
        execution = client.post(server.create_url(), {"input_data": "x"}).json()
        for _ in range(3):
            answer = client.get(server.callback_url(execution)).json()
    assert answer["progress"]["status"] == "COMPLETED"
    assert server.token_requests == 1
    assert server.connections == 2, "one for the token, one for the rest"


@pytest.mark.parametrize("wrong", [None, "token", AuthProvider])
def test_the_standalone_client_refuses_anything_but_a_provider(wrong: Any) -> None:
    with pytest.raises(AssertionError, match=r"the provider must be an AuthProvider, .* not "):
        StandaloneHttpClient(wrong)


def use_credentials(server: QuotaServer) -> None:
    STKAI.configure(
        auth={
            "client_id": server.client_id,
            "client_secret": server.client_secret,
            "token_url": server.token_url,
        }
    )


def test_the_environment_is_read_on_the_first_request(server: QuotaServer) -> None:
    with EnvironmentAwareHttpClient() as client:
        use_credentials(server)
        assert client.post(server.create_url(), {}).status_code == 200


def test_without_cli_and_credentials_the_first_request_says_what_to_do(server: QuotaServer) -> None:
    client = EnvironmentAwareHttpClient()
    with pytest.raises(ValueError, match=r"STKAI_AUTH_CLIENT_ID") as missing:
        client.get(server.url)
    assert "stk login" in str(missing.value)
    assert "pip install" not in str(missing.value)
    use_credentials(server)
    assert client.post_stream(server.create_url(), {}).read()
    client.close()


def test_threads_make_the_choice_once(server: QuotaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(server)
    decided: list[object] = []
    decide = EnvironmentAwareHttpClient._decide
    gate = threading.Barrier(8)

    def counting(self: EnvironmentAwareHttpClient) -> httpx.BaseTransport:
        decided.append(self)
        return decide(self)

    monkeypatch.setattr(EnvironmentAwareHttpClient, "_decide", counting)
    with EnvironmentAwareHttpClient() as client, ThreadPoolExecutor(8) as pool:

        def send(_: int) -> int:
            gate.wait()
            return client.post(server.create_url(), {}).status_code

        assert list(pool.map(send, range(8))) == [200] * 8
    assert len(decided) == 1
    assert server.token_requests == 1


def test_the_rate_limit_of_the_settings_is_applied(server: QuotaServer) -> None:
    use_credentials(server)
    STKAI.configure(rate_limit={"enabled": True, "max_requests": 2, "time_window": 600, "max_wait_time": 1})
    with EnvironmentAwareHttpClient() as client:
        for _ in range(2):
            client.post(server.create_url(), {})
        with pytest.raises(TokenAcquisitionTimeoutError):
            client.post(server.create_url(), {})


def test_the_cli_comes_first_and_the_log_says_that_credentials_are_ignored(
    server: QuotaServer, caplog: pytest.LogCaptureFixture
) -> None:
    use_credentials(server)
    with stand_in_cli.installed(), caplog.at_level(logging.WARNING, "stkai"):
        for client in (EnvironmentAwareHttpClient(), StkCLIHttpClient()):
            transport: Any = client.transport
            while hasattr(transport, "inner"):
                transport = transport.inner
            assert isinstance(transport, stkai.transports.StkCLITransport)
    assert [record.message for record in caplog.records if "ignored" in record.message] == [
        "StackSpot CLI is installed and signs requests itself; the configured client credentials are ignored"
    ]


def test_the_cli_client_without_a_cli_says_so_at_once() -> None:
    with pytest.raises(stkai.ConfigurationError, match="stk login"):
        StkCLIHttpClient()


# The loop by hand


def test_retrying_retries_a_refused_call_until_it_succeeds() -> None:
    clock = FakeClock()
    client = Mine(429, 429, 200)
    for attempt in Retrying(max_retries=3, clock=clock):
        with attempt:
            # Each attempt gets its own limiter: a shared one's pause would be a real wait.
            response = AdaptiveRateLimitedHttpClient(client, 100, 60.0).post("https://api.example")
    assert response.status_code == 200
    assert len(clock.sleeps) == 2
    assert min(clock.sleeps) >= 7.0
