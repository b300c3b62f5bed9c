"""The wire that sends through StackSpot CLI, with a stand-in for the CLI that really sends, through requests."""

import asyncio
import gzip
import io
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import httpx
import pytest
import requests
import urllib3
from aiohttp import web

import stkai
from stkai import HttpClient, StackBuilder
from stkai.testing import Answer, FakeClock, Hang, QuotaServer, Reset
from stkai.transports import StkCLITransport, retry
from stkai.transports._stk_cli import cli_is_available

from ..support import stand_in_cli
from ..support.listening import listening
from ..support.servers import CERTIFICATE, KEY, broken, serve


@pytest.fixture
def cli(server: QuotaServer) -> Iterator[Any]:
    """StackSpot CLI, installed and logged in to the server."""
    form = {
        "grant_type": "client_credentials",
        "client_id": server.client_id,
        "client_secret": server.client_secret,
    }
    with stand_in_cli.installed() as module:
        module.token = httpx.post(server.token_url, data=form).json()["access_token"]
        server.forget_requests()
        yield module


@pytest.fixture
def client(cli: Any) -> HttpClient:
    return HttpClient(StkCLITransport())


# What is sent


def test_a_post_goes_out_signed_by_the_cli_with_its_json_and_headers(
    server: QuotaServer, cli: Any, client: HttpClient
) -> None:
    response = client.post(server.create_url(), data={"input_data": "x"}, headers={"X-Mine": "1"}, timeout=7)
    assert response.status_code == 200
    (request,) = server.requests
    assert request.authorization == f"Bearer {cli.token}"
    assert json.loads(request.body) == {"input_data": "x"}
    assert request.header("x-mine") == "1"
    assert request.header("content-type") == "application/json"
    assert [value for name, value in request.headers if name == "host"] == [
        server.url.removeprefix("http://")
    ]
    assert (cli.calls[0]["timeout"], cli.calls[0]["body"]) == (7, {"input_data": "x"})


def test_a_get_goes_out_signed_and_bypasses_the_clis_cache(
    server: QuotaServer, cli: Any, client: HttpClient
) -> None:
    execution = client.post(server.create_url()).json()
    assert client.get(server.callback_url(execution), timeout=3).status_code == 200
    call = cli.calls[1]
    assert (call["function"], call["timeout"], call["use_cache"]) == ("get", 3, False)
    assert server.requests[1].authorization == f"Bearer {cli.token}"


def test_a_post_is_streamed_unless_the_caller_wants_the_whole_body(
    server: QuotaServer, cli: Any, client: HttpClient
) -> None:
    client.post(server.create_url())
    with client.post_stream(server.create_url()) as response:
        response.read()
    with httpx.Client(transport=StkCLITransport()) as mounted:
        mounted.post(server.create_url())
    assert [call.get("stream", False) for call in cli.calls] == [False, True, True]


def test_without_data_there_is_no_body(server: QuotaServer, cli: Any, client: HttpClient) -> None:
    client.post(server.create_url())
    assert server.requests[0].body == b""
    assert cli.calls[0]["body"] is None


def test_the_callers_own_authorization_does_not_reach_the_server(
    server: QuotaServer, cli: Any, client: HttpClient
) -> None:
    client.get(server.url + "/echo", headers={"Authorization": "Bearer other"})
    assert [value for name, value in server.requests[0].headers if name == "authorization"] == [
        f"Bearer {cli.token}"
    ]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("identity", "identity"),
        ("br", "identity"),
        ("br;q=1.0, gzip", "gzip"),
    ],
)
def test_only_codings_that_requests_and_httpx_both_support_are_requested(
    server: QuotaServer, client: HttpClient, asked: str, sent: str
) -> None:
    client.get(server.url + "/echo", headers={"Accept-Encoding": asked})
    assert server.requests[0].header("accept-encoding") == sent


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_a_method_that_the_cli_cannot_send_is_an_error_that_names_it(cli: Any, method: str) -> None:
    with (
        httpx.Client(transport=StkCLITransport()) as mounted,
        pytest.raises(httpx.UnsupportedProtocol, match=f"GET and POST only, not {method}"),
    ):
        mounted.request(method, "https://api.example.com")
    assert cli.calls == []


@pytest.mark.parametrize(
    "body",
    [
        {"content": b"plain text"},
        {"content": b"\xff\xfe"},
        {"data": {"a": "1"}},
        {"files": {"file": b"x"}},
        {"content": b"1", "headers": {"Content-Type": "text/plain"}},
    ],
    ids=repr,
)
def test_a_body_that_is_not_json_is_an_error_that_says_what_to_pass(cli: Any, body: dict[str, Any]) -> None:
    with (
        httpx.Client(transport=StkCLITransport()) as mounted,
        pytest.raises(httpx.UnsupportedProtocol, match="JSON bodies only; pass data= or json="),
    ):
        mounted.post("https://api.example.com", **body)
    assert cli.calls == []


def test_json_is_json_without_and_with_a_content_type(server: QuotaServer, cli: Any) -> None:
    with httpx.Client(transport=StkCLITransport()) as mounted:
        mounted.post(server.create_url(), content=b'{"a": 1}')
        mounted.post(
            server.create_url(), content=b"[1]", headers={"Content-Type": "application/vnd.api+json"}
        )
    assert [call["body"] for call in cli.calls] == [{"a": 1}, [1]]


# What comes back


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
def test_the_response_is_a_real_httpx_response(server: QuotaServer, client: HttpClient, verb: str) -> None:
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Odd", "caf\xe9")]
    server.fail_with(Answer(404, headers=headers, body='{"a": "Zoë"}'), path="/")
    response = getattr(client, verb)(server.url + "/things")
    response.read()
    assert isinstance(response, httpx.Response)
    assert (response.status_code, response.json()) == (404, {"a": "Zoë"})
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.reason_phrase == "Not Found"
    assert response.headers["x-odd"] in {"caf\xe9", "caf\xc3\xa9"}
    assert response.request.url == server.url + "/things"
    assert response.elapsed is not None
    assert response.extensions["stkai"].attempts == 1
    assert response.is_closed


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
def test_a_gzip_body_is_decoded_once(server: QuotaServer, client: HttpClient, verb: str) -> None:
    # Its text is gzip as well, so decoding it twice would show.
    inner = gzip.compress(b"text")
    server.fail_with(Answer(200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(inner)), path="/")
    response = getattr(client, verb)(server.url + "/things")
    assert response.read() == inner


def test_a_streamed_gzip_body_can_be_read_raw(server: QuotaServer, client: HttpClient) -> None:
    body = gzip.compress(b"text" * 100)
    server.fail_with(Answer(200, headers={"Content-Encoding": "gzip"}, body=body), path="/")
    with client.post_stream(server.url + "/things") as response:
        assert response.headers["content-encoding"] == "gzip"
        assert b"".join(response.iter_raw()) == body


def test_a_body_that_the_cli_has_read_has_matching_headers(server: QuotaServer, client: HttpClient) -> None:
    server.fail_with(
        Answer(200, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"text" * 100)), path="/"
    )
    response = client.get(server.url + "/things")
    assert "content-encoding" not in response.headers
    assert response.headers["content-length"] == "400"


@pytest.mark.parametrize("length", [None, 30], ids=["chunked", "by length"])
@pytest.mark.parametrize("old", [False, True], ids=["urllib3", "urllib3 1"])
def test_server_sent_events_arrive_one_by_one(
    cli: Any, client: HttpClient, length: int | None, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:  # urllib3 1 has no read1.
        monkeypatch.delattr(urllib3.HTTPResponse, "read1")
        monkeypatch.delattr(urllib3.response.BaseHTTPResponse, "read1")
    first, second = b"data: one\n\n", b"data: two and more\n"
    received = threading.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if length is None:
            response.enable_chunked_encoding()
        else:
            response.content_length = length
        await response.prepare(request)
        await response.write(first)
        # Nothing more is sent before the first event has been received.
        await asyncio.to_thread(received.wait, 5)
        await response.write(second)
        return response

    with serve(stream) as url, client.post_stream(url, data={}) as response:
        chunks = response.iter_raw()
        arrived = b""
        while len(arrived) < len(first):
            arrived += next(chunks)
        assert arrived == first
        assert not received.is_set()
        received.set()
        assert b"".join(chunks) == second


def test_leaving_a_stream_early_closes_its_connection(server: QuotaServer, client: HttpClient) -> None:
    prompt = {"user_prompt": "words " * 1000, "streaming": True}
    with client.post_stream(server.chat_url(), data=prompt) as response:
        next(response.iter_raw())
        stream: Any = response.stream
        answer = stream._answer
        assert not answer.raw.closed
    assert answer.raw.closed


@pytest.mark.parametrize("verb", ["post", "post_stream"])
@pytest.mark.parametrize(
    "raw", [None, io.BytesIO(b"text")], ids=["no raw body", "a raw body of another kind"]
)
def test_a_response_that_did_not_come_from_the_network_is_accepted(
    cli: Any, client: HttpClient, verb: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = requests.Response()
    answer.status_code, answer.raw = 200, raw
    answer.headers["X-A"] = "1"
    if raw is None:
        answer._content = b"text"
    else:
        raw.seek(0)
    monkeypatch.setattr(cli, "post_with_authorization", lambda **_: answer)
    response = getattr(client, verb)("https://api.example.com")
    assert (response.read(), response.headers["x-a"], response.reason_phrase) == (b"text", "1", "")


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(status_code=201, headers={"X-A": "1"}, content=b"text"),
        Mock(spec=requests.Response, status_code=201, headers={"X-A": "1"}, content=b"text"),
        MagicMock(status_code=201, headers={"X-A": "1"}, content=b"text"),
    ],
    ids=["an object", "a mock of a response", "a mock of anything"],
)
def test_a_substitute_for_a_response_needs_only_what_is_read(
    cli: Any, client: HttpClient, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "post_with_authorization", lambda **_: answer)
    response = client.post("https://api.example.com")
    assert (response.status_code, response.headers["x-a"], response.content) == (201, "1", b"text")
    monkeypatch.setattr(cli, "get_with_authorization", lambda **_: MagicMock())
    assert client.get("https://api.example.com").content == b""


def test_a_failure_is_retried_through_the_cli(server: QuotaServer, cli: Any) -> None:
    server.fail_with(503, None)
    server.fail_with(Reset())
    client = HttpClient(StackBuilder([retry()], clock=FakeClock()).build(StkCLITransport()))
    response = client.post(server.create_url(), data={"input_data": "x"})
    assert (response.status_code, response.extensions["stkai"].attempts) == (200, 2)
    assert server.count(method="POST") == 2


# Errors

UNCONNECTED = urllib3.exceptions.NewConnectionError(None, "refused")  # type: ignore[arg-type]
POOL: Any = urllib3.HTTPConnectionPool("api.example.com")

MAPPED: list[tuple[Exception, type[Exception]]] = [
    (requests.ConnectTimeout("x"), httpx.ConnectTimeout),
    (requests.ReadTimeout("x"), httpx.ReadTimeout),
    (requests.Timeout("x"), httpx.ReadTimeout),
    (requests.exceptions.ProxyError("x"), httpx.ProxyError),
    (requests.exceptions.SSLError("x"), httpx.ReadError),
    (requests.ConnectionError(urllib3.exceptions.MaxRetryError(POOL, "/", UNCONNECTED)), httpx.ConnectError),
    (requests.ConnectionError(UNCONNECTED), httpx.ConnectError),
    (requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted")), httpx.ReadError),
    (requests.ConnectionError(), httpx.ReadError),
    (requests.exceptions.ChunkedEncodingError("x"), httpx.RemoteProtocolError),
    (requests.exceptions.ContentDecodingError("x"), httpx.DecodingError),
    (requests.TooManyRedirects("x"), httpx.TooManyRedirects),
    (requests.exceptions.MissingSchema("x"), httpx.UnsupportedProtocol),
    (requests.exceptions.InvalidURL("x"), httpx.UnsupportedProtocol),
    (requests.RequestException("x"), httpx.TransportError),
    (urllib3.exceptions.ProtocolError("x"), httpx.RemoteProtocolError),
    (urllib3.exceptions.SSLError("x"), httpx.ReadError),
    (urllib3.exceptions.DecodeError("x"), httpx.DecodingError),
    (urllib3.exceptions.HTTPError("x"), httpx.TransportError),
]


@pytest.mark.parametrize(
    ("theirs", "ours"), MAPPED, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_an_error_of_requests_becomes_its_httpx_counterpart(
    cli: Any, client: HttpClient, theirs: Exception, ours: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise theirs

    monkeypatch.setattr(cli, "post_with_authorization", fail)
    with pytest.raises(httpx.RequestError) as caught:
        client.post("https://api.example.com/x")
    assert type(caught.value) is ours
    assert caught.value.__cause__ is theirs
    assert caught.value.request.url == "https://api.example.com/x"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (None, httpx.ConnectError),
        (b"", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", httpx.ReadError),
    ],
    ids=["in the handshake", "in the head", "in the body"],
)
@pytest.mark.parametrize("verb", ["post", "post_stream"])
def test_only_an_error_of_the_tls_handshake_proves_that_nothing_was_sent(
    cli: Any, monkeypatch: pytest.MonkeyPatch, verb: str, sent: bytes | None, error: type[Exception]
) -> None:
    connections: list[int] = []
    executed: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)

    def serve_tls(connection: socket.socket) -> None:
        connections.append(1)
        if sent is None:
            connection.sendall(b"\x15\x03\x03\x00\x02\x02\x50")  # The alert "internal_error".
            return
        with context.wrap_socket(connection, server_side=True) as tls:
            executed.append(tls.recv(65_536))
            tls.sendall(sent)
            os.write(tls.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)  # A record that cannot be decrypted.
            while tls.recv(65_536):  # Until the client closes.
                pass

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    careful = stkai.RetryPolicy(1, retry_unknown=False)
    client = HttpClient(StackBuilder([retry(careful)], clock=FakeClock()).build(StkCLITransport()))
    with listening(serve_tls) as port, pytest.raises(error):
        getattr(client, verb)(f"https://localhost:{port}/", {}).read()
    assert (len(connections), len(executed)) == ((2, 0) if sent is None else (1, 1))


def test_a_post_is_not_repeated_if_the_redirect_in_its_answer_leads_nowhere(
    cli: Any, server: QuotaServer
) -> None:
    server.fail_with(Answer(303, headers={"Location": "http://127.0.0.1:1/"}))
    careful = stkai.RetryPolicy(retry_unknown=False)
    client = HttpClient(StackBuilder([retry(careful)], clock=FakeClock()).build(StkCLITransport()))
    with pytest.raises(httpx.ReadError):
        client.post(server.create_url(), {})
    assert server.count(method="POST") == 1


def test_a_closed_port_is_a_connect_error(cli: Any, client: HttpClient) -> None:
    with pytest.raises(httpx.ConnectError):
        client.get("http://127.0.0.1:1/")


def test_a_slow_answer_is_a_read_timeout(server: QuotaServer, client: HttpClient) -> None:
    server.fail_with(Hang(1.0), path="/")
    with pytest.raises(httpx.ReadTimeout):
        client.get(server.url + "/echo", timeout=0.05)


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
@pytest.mark.parametrize("at", ["start", "headers", "body"])
def test_a_broken_connection_is_the_matching_httpx_error(
    server: QuotaServer, client: HttpClient, at: Any, verb: str
) -> None:
    server.fail_with(Reset(at, after=3), path="/")
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
        getattr(client, verb)(server.url + "/echo").read()


def test_a_body_shorter_than_promised_is_an_error(server: QuotaServer, client: HttpClient) -> None:
    with serve(broken) as url:
        with client.post_stream(url) as response, pytest.raises(httpx.RemoteProtocolError):
            response.read()
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(url)


def test_broken_gzip_is_a_decoding_error(server: QuotaServer, client: HttpClient) -> None:
    for _ in range(2):
        server.fail_with(Answer(200, headers={"Content-Encoding": "gzip"}, body=b"this is no gzip"), path="/")
    with pytest.raises(httpx.DecodingError):
        client.get(server.url + "/things")
    with client.post_stream(server.url + "/things") as response, pytest.raises(httpx.DecodingError):
        response.read()


def test_an_error_of_the_cli_itself_is_an_authentication_error_that_says_what_to_do(
    cli: Any, client: HttpClient
) -> None:
    cli.token = None
    with pytest.raises(
        stkai.AuthenticationError, match=r"NotLoggedIn: you are not logged in.*stk login"
    ) as caught:
        client.get("https://api.example.com")
    assert isinstance(caught.value.cause, cli.NotLoggedIn)
    assert isinstance(caught.value, httpx.TransportError)


def test_a_cli_that_exits_does_not_end_the_program(
    cli: Any, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(**_: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(cli, "get_with_authorization", leave)
    with pytest.raises(stkai.AuthenticationError, match="SystemExit"):
        client.get("https://api.example.com")


# Whether it is installed


def test_without_the_cli_the_error_says_what_to_do_and_recommends_no_package() -> None:
    assert not cli_is_available()
    with pytest.raises(stkai.ConfigurationError, match="stk login") as caught:
        StkCLITransport()
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        {"oscli/__init__.py": "def main(): ..."},
        {"oscli/__init__.py": "", "oscli/core/__init__.py": "", "oscli/core/http.py": "def get(): ..."},
        {
            "oscli/__init__.py": "",
            "oscli/core/__init__.py": "",
            "oscli/core/http.py": "post_with_authorization = 1",
        },
        {"oscli/__init__.py": "raise RuntimeError('subtitles need a key')"},
        {"oscli/__init__.py": "import sys; sys.exit(2)"},
        {"oscli.py": "download = print"},
    ],
    ids=["a subtitle tool", "another http module", "no functions", "fails", "exits", "a module"],
)
def test_another_package_named_oscli_is_not_mistaken_for_the_cli(
    files: dict[str, str], tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with stand_in_cli.installed(tmp_path):
        assert not cli_is_available()
        with pytest.raises(stkai.ConfigurationError):
            StkCLITransport()
        with pytest.raises(stkai.ConfigurationError, match="no authentication is configured"):
            stkai.build_client()


def test_the_wire_is_available_if_the_cli_is_installed(cli: Any) -> None:
    assert cli_is_available()
    assert repr(StkCLITransport()) == "StkCLITransport()"


def test_nothing_advises_installing_oscli_from_the_index() -> None:
    root = Path(__file__).parents[2]
    texts = [*(root / "src").rglob("*.py"), *(root / "docs").rglob("*.md"), *root.glob("*.md")]
    advice = re.compile(r"(pip|uv|pipx)\s+(install|add)\s+.*\boscli\b")
    assert [path for path in texts if advice.search(path.read_text())] == []
