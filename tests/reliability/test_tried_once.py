"""What would fail again, or may do twice what it did, is tried once: over real sockets."""

import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stkai import HttpConfig, StaticToken
from stkai._wire import AsyncDefaultWire, DefaultWire

from ..support.listening import listening, speaks_plain_http
from ..support.servers import tls_server
from ..support.world import World
from .hostile import hostile
from .stacks import NO_DELAY, transport_of, wire_of

pytestmark = pytest.mark.real_time


async def attempts(world: World, method: str, url: str, **wire: Any) -> tuple[int, object]:
    """How often the request was tried, and its status or error."""
    client = world.client(transport_of(world, retry=NO_DELAY, transport=wire_of(world, **wire)), timeout=10)
    (outcome,) = await world.outcomes(lambda: world.call(client.request, method, url))
    await world.close(client)
    if isinstance(outcome, httpx.Response):
        return outcome.extensions["stkai"].attempts, outcome.status_code
    (note,) = outcome.__notes__
    (times,) = re.findall(r": (\d+) attempt", note)
    return int(times), type(outcome)


ANSWERS: dict[str, tuple[bytes, object]] = {
    "a gateway's timeout": (
        b"HTTP/1.1 504 Gateway Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        504,
    ),
    "200 KB of headers": (
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n",
        httpx.RemoteProtocolError,
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", httpx.RemoteProtocolError),
}


def saying(text: bytes, arrived: list[int]) -> Callable[[socket.socket, threading.Event], None]:
    def talk(connection: socket.socket, _: threading.Event) -> None:
        arrived.append(1)
        connection.sendall(text)

    return talk


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("GET", 4)])
async def test_a_post_that_got_no_answer_is_sent_once_and_a_get_again(
    world: World, answer: str, method: str, times: int
) -> None:
    text, outcome = ANSWERS[answer]
    arrived: list[int] = []
    with hostile(saying(text, arrived)) as url:
        assert await attempts(world, method, url) == (times, outcome)
    assert len(arrived) == times


async def test_an_untrusted_certificate_is_tried_once(world: World) -> None:
    with tls_server() as url:
        assert await attempts(world, "GET", url) == (1, httpx.ConnectError)


async def test_credentials_that_a_proxy_rejects_are_tried_once(world: World) -> None:
    arrived: list[int] = []
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with hostile(saying(refusal, arrived)) as proxy:
        outcome = await attempts(world, "GET", "https://api.example.com/", proxy=proxy)
    assert outcome == (1, httpx.ProxyError)
    assert len(arrived) == 1


async def test_a_host_that_does_not_exist_is_looked_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert await attempts(world, "GET", "http://nowhere.example/") == (1, httpx.ConnectError)


@pytest.mark.parametrize("url", ["http://a..b/", f"http://{'a' * 64}.example/", "http://127.0.0.1:99999/"])
async def test_a_host_or_port_that_cannot_be_is_a_connect_error(world: World, url: str) -> None:
    """A redirect may lead there."""
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    stack = transport_of(world, retry=NO_DELAY, transport=make(HttpConfig()))
    client = world.client(stack, follow_redirects=True)
    redirect = saying(b"HTTP/1.1 302 Found\r\nLocation: %b\r\n\r\n" % url.encode(), [])
    with hostile(redirect) as start, pytest.raises(httpx.ConnectError) as caught:
        await world.call(client.get, start)
    if "a" in url.removeprefix("http"):
        assert ": 1 attempt" in caught.value.__notes__[0]
    await world.close(client)


async def test_https_to_a_port_without_tls_is_tried_once(world: World) -> None:
    with listening(speaks_plain_http) as port:
        assert await attempts(world, "GET", f"https://127.0.0.1:{port}/") == (1, httpx.ConnectError)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_plain_http_to_a_port_that_answers_with_a_tls_alert_is_tried_once(
    world: World, end: bytes
) -> None:
    arrived: list[int] = []
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    stack = transport_of(world, auth=StaticToken("t"), retry=NO_DELAY, transport=make(HttpConfig()))
    client = world.client(stack)
    with (
        hostile(saying(b"\x15\x03\x03\x00\x02\x02\x46" + end, arrived)) as url,
        pytest.raises(httpx.RemoteProtocolError, match=r"illegal status line: .*\\x15\\x03"),
    ):
        await world.call(client.get, url)
    await world.close(client)
    assert len(arrived) == 1
