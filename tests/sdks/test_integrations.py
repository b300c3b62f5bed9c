"""The examples of docs/integrations.md run as printed, against the embedded server, in virtual time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import stkai
from stkai.testing import FakeClock, QuotaServer

from .chat_server import ChatServer

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
TOKEN_PATH = httpx.URL(stkai.ClientCredentialsAuthProvider.DEFAULT_TOKEN_URL).path


@pytest.fixture
def server(clock: FakeClock) -> Iterator[QuotaServer]:
    """A service that takes any key."""
    with ChatServer(clock=clock, auth_required=False) as running:
        yield running


@pytest.fixture
def service(server: QuotaServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> QuotaServer:
    """Credentials in the environment; every host name leads to the embedded server."""

    def lead_home(package: Any, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def send(self: Any, request: Any) -> Any:
            path = request.url.raw_path.decode()
            home = server.url if path.startswith(("/v1/", TOKEN_PATH)) else f"{server.url}/v1"
            request.url = package.URL(server.token_url if path == TOKEN_PATH else home + path)
            return original(self, request)

        monkeypatch.setattr(owner, name, send)

    for package in (httpx, httpx2):
        lead_home(package, package.HTTPTransport, "handle_request")
        lead_home(package, package.AsyncHTTPTransport, "handle_async_request")
    for name, value in server.env().items():
        if name != "STKAI_AUTH_TOKEN_URL":
            monkeypatch.setenv(name, value)
    for name in ("monotonic", "utcnow", "sleep", "asleep"):
        monkeypatch.setattr(stkai.SystemClock, name, getattr(clock, name))
    return server


def test_the_examples_run_and_print_what_the_model_says(
    service: QuotaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Document.parse(str(PAGE), PythonCodeBlockParser())
    examples = list(document.examples())
    try:
        for example in examples:
            example.evaluate()
    finally:
        document.namespace["transport"].close()
    asking = sum("print(" in example.parsed for example in examples)
    inside_options = 1  # answers, and prints nothing
    assert capsys.readouterr().out.split() == ["Hello!"] * asking
    chats = [request for request in service.requests if request.path != service.token_path]
    assert [request.status for request in chats] == [200] * (asking + inside_options)
    assert {request.authorization for request in chats} <= {"Bearer sk-your-key", None}
