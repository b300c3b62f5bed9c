"""What code written for stkai 0.4 finds here, and which page lists the rest."""

import importlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

import stkai
from stkai import (
    ClientCredentialsAuthProvider,
    DeadlineExceededError,
    EnvironmentAwareHttpClient,
    StandaloneHttpClient,
    StaticToken,
    StkCLIHttpClient,
)
from stkai._http import ReferenceResponse
from stkai.testing import Answer, QuotaServer

from ..reliability.hostile import drip, hostile
from ..support import stand_in_cli

# `stkai.__all__` of 0.4.18.
NAMES = tuple(
    """
    AdaptiveRateLimitedHttpClient Agent AgentConfig AuthConfig AuthProvider AuthenticationError ChatRequest ChatResponse
    ChatResponseStream ChatStatus ClientCredentialsAuthProvider ClientSideRateLimitError ConfigEntry ConfigEnvVarError
    ConfigValidationError CongestionAwareHttpClient ConversationContext EnvironmentAwareHttpClient FileUploadConfig
    FileUploadOptions FileUploadRequest FileUploadResponse FileUploadStatus FileUploadTargetType FileUploader HttpClient
    MaxRetriesExceededError RateLimitConfig RateLimitStrategy RemoteQuickCommand RetryableError Retrying RqcConfig
    RqcExecutionStatus RqcOptions RqcRequest RqcResponse STKAI STKAIConfig SdkConfig ServerSideRateLimitError
    StandaloneHttpClient StkCLI StkCLIHttpClient TokenAcquisitionTimeoutError TokenBucketRateLimitedHttpClient
    UseConversation __version__ create_standalone_auth
""".split()  # noqa: SIM905 - it is read here
)

PATHS = {
    "stkai._http": ["EnvironmentAwareHttpClient", "HttpClient", "StandaloneHttpClient", "StkCLIHttpClient"],
    "stkai._auth": [
        "AuthProvider",
        "AuthenticationError",
        "ClientCredentialsAuthProvider",
        "create_standalone_auth",
    ],
    "stkai._rate_limit": [
        "AdaptiveRateLimitedHttpClient",
        "ClientSideRateLimitError",
        "HttpClient",
        "RetryableError",
        "ServerSideRateLimitError",
        "TokenAcquisitionTimeoutError",
        "TokenBucketRateLimitedHttpClient",
    ],
    "stkai._retry": ["MaxRetriesExceededError", "RetryableError", "Retrying"],
}

PAGE = Path(__file__).parent.parent.parent / "docs" / "migration.md"

REMOVED = sorted(set(NAMES) - set(stkai.__all__) - {"__version__"})


@pytest.mark.parametrize("path", PATHS)
def test_the_import_paths_of_the_reference_have_its_names(path: str) -> None:
    module = importlib.import_module(path)
    assert sorted(module.__all__) == sorted(PATHS[path])
    for name in PATHS[path]:
        assert getattr(module, name) is getattr(stkai, name)


def test_29_of_the_49_names_of_stkai_0_4_were_removed() -> None:
    assert len(NAMES) == 49
    assert len(REMOVED) == 29


def test_a_removed_name_is_missing_like_any_other() -> None:
    for name in REMOVED:
        with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'stkai'"):
            exec(f"from stkai import {name}")  # noqa: S102


def test_the_migration_page_lists_every_removed_name() -> None:
    page = PAGE.read_text()
    assert [name for name in REMOVED if f"`{name}`" not in page] == []


# The clients' responses


@pytest.fixture
def client(server: QuotaServer) -> Iterator[StandaloneHttpClient]:
    provider = ClientCredentialsAuthProvider(server.client_id, server.client_secret, server.token_url)
    with StandaloneHttpClient(provider) as client:
        yield client


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_redirects_of_a_get_are_followed(
    server: QuotaServer, client: StandaloneHttpClient, status: int
) -> None:
    server.fail_with(Answer(status, headers={"location": "/v1/second"}), path="/v1/first")
    server.fail_with(Answer(status, headers={"location": "/echo"}), path="/v1/second")
    response = client.get(f"{server.url}/v1/first", headers={"X-A": "1"})
    assert response.status_code == 200
    assert [hop.status_code for hop in response.history] == [status, status]
    assert str(response.url) == f"{server.url}/echo"
    assert [server.count(path=path) for path in ("/v1/first", "/v1/second", "/echo")] == [1, 1, 1]
    assert ["x-a", "1"] in [[name.lower(), value] for name, value in response.json()["headers"]]


def test_no_redirect_takes_the_token_to_another_origin(
    server: QuotaServer, client: StandaloneHttpClient
) -> None:
    with QuotaServer(auth_required=False) as stranger:
        server.fail_with(Answer(302, headers={"location": f"{stranger.url}/echo"}), path="/v1/first")
        assert client.get(f"{server.url}/v1/first").status_code == 200
        assert [record.authorization for record in stranger.requests] == [None]


@pytest.mark.real_time
def test_the_deadline_of_a_get_holds_in_the_body_behind_a_redirect(server: QuotaServer) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        drip(connection, stopped, b"x" * 500, 0.02)

    with hostile(talk) as url, StandaloneHttpClient(StaticToken("token")) as client:
        server.fail_with(Answer(302, headers={"location": url}), path="/v1/first")
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.get(f"{server.url}/v1/first", deadline=0.3)
        assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("location", ["https:elsewhere", "mailto:a@b.c", "http://user:password@127.0.0.1/"])
def test_a_redirect_to_what_cannot_be_requested_is_an_error_of_the_server(
    server: QuotaServer, client: StandaloneHttpClient, location: str
) -> None:
    server.fail_with(Answer(302, headers={"location": location}), path="/v1/first")
    with pytest.raises(httpx.RemoteProtocolError, match="the server redirects to a URL") as caught:
        client.get(f"{server.url}/v1/first")
    assert "password" not in str(caught.value).replace("user name or password", "")


@pytest.mark.parametrize("kind", [StkCLIHttpClient, EnvironmentAwareHttpClient])
def test_a_redirect_that_stackspot_cli_does_not_follow_is_returned(
    server: QuotaServer, kind: type[StkCLIHttpClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(url: str, timeout: float, headers: dict[str, str], **_: object) -> requests.Response:
        signed = {**headers, "Authorization": "Bearer mine"}
        return requests.get(url, timeout=timeout, headers=signed, allow_redirects=False)

    with QuotaServer() as stranger, stand_in_cli.installed() as cli, kind() as client:
        monkeypatch.setattr(cli, "get_with_authorization", get)
        server.fail_with(Answer(302, headers={"location": f"{stranger.url}/echo"}), path="/v1/first")
        assert client.get(f"{server.url}/v1/first").status_code == 302
        assert not stranger.requests


def test_endless_redirects_are_an_error(server: QuotaServer, client: StandaloneHttpClient) -> None:
    server.fail_with(*[Answer(302, headers={"location": "/v1/first"})] * 50, path="/v1/first")
    with pytest.raises(httpx.TooManyRedirects):
        client.get(f"{server.url}/v1/first")
    assert server.count(path="/v1/first") == 31


def test_a_redirect_of_a_post_is_returned_not_followed(
    server: QuotaServer, client: StandaloneHttpClient
) -> None:
    server.fail_with(Answer(307, headers={"location": "/echo"}))
    assert client.post(server.create_url(), {}).status_code == 307


def test_one_deadline_holds_for_all_hops(server: QuotaServer, client: StandaloneHttpClient) -> None:
    server.fail_with(Answer(302, headers={"location": "/v1/second"}), path="/v1/first")
    response = client.get(f"{server.url}/v1/first", deadline=60.0)
    assert response.request.extensions["stkai"].deadline == 60.0
    assert len(response.history) == 1


def test_iter_lines_takes_the_arguments_of_requests(
    server: QuotaServer, client: StandaloneHttpClient
) -> None:
    def lines(**options: Any) -> list[Any]:
        with client.post_stream(server.chat_url(), {"user_prompt": "a b c", "streaming": True}) as response:
            return [line for line in response.iter_lines(**options) if line]

    text = lines()
    assert all(isinstance(line, str) for line in text)
    assert len(lines(decode_unicode=True)) == len(text) == 4
    assert all(isinstance(line, bytes) for line in lines(decode_unicode=False))
    assert len(lines(chunk_size=1, decode_unicode=True)) == 4


def test_an_unread_stream_has_its_body_as_text(server: QuotaServer, client: StandaloneHttpClient) -> None:
    server.fail_with(Answer(400, body='{"error": "no such agent"}'), path="/v1/agent/")
    refused = client.post_stream(server.chat_url("none"), {})
    assert refused.text == '{"error": "no such agent"}'
    assert refused.json() == {"error": "no such agent"}
    assert refused.is_closed
    begun = client.post_stream(server.chat_url(), {"user_prompt": "a b c", "streaming": True})
    next(begun.iter_lines())
    with pytest.raises(httpx.StreamConsumed):
        _ = begun.text


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_lines_of_bytes_are_those_of_requests(size: int) -> None:
    body = b"caf\xc3\xa9\xff\ndata: a\xe2\x80\xa8b\x0bc\r\n\r\nd\re"
    response: Any = httpx.Response(
        200,
        headers={"Content-Type": "text/plain; charset=us-ascii"},
        content=(body[start : start + size] for start in range(0, len(body), size)),
    )
    response.__class__ = ReferenceResponse
    assert list(response.iter_lines(decode_unicode=False)) == body.splitlines()


def test_a_response_has_ok_reason_and_iter_content_and_is_false_after_an_error_like_those_of_requests(
    server: QuotaServer, client: StandaloneHttpClient
) -> None:
    fine: Any = client.post(server.create_url(), {})
    assert fine.ok
    assert b"".join(fine.iter_content(4)) == fine.content
    assert "".join(fine.iter_content(None, decode_unicode=True)) == fine.text
    missing: Any = client.get(f"{server.url}/none")
    assert not missing.ok
    assert (bool(fine), bool(missing)) == (True, False)
    assert (fine.reason, missing.reason) == ("OK", "Not Found")
    assert isinstance(missing, httpx.Response)


def test_a_long_line_of_bytes_is_not_copied_for_each_piece_of_it() -> None:
    pieces = 5_000
    response: Any = httpx.Response(200, content=iter([b"x" * 1024] * pieces))
    response.__class__ = ReferenceResponse
    before = time.process_time()
    assert [len(line) for line in response.iter_lines(decode_unicode=False)] == [1024 * pieces]
    assert time.process_time() - before < 0.5
