"""What goes wrong before a proxy has connected is an error of connecting: nothing of the request was sent."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

import stkai
from stkai import HttpConfig, RetryPolicy
from stkai._wire import AsyncDefaultWire, DefaultWire

from ..support.listening import listening
from ..support.servers import CERTIFICATE, KEY
from ..support.world import NAMES, World

pytestmark = [pytest.mark.worlds(*NAMES), pytest.mark.real_time]

SHORT = httpx.Timeout(0.2)
SHORT_READ = httpx.Timeout(10, read=0.2)
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def in_tls(connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    return context.wrap_socket(connection, server_side=True)


def silent(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def silent_in_tls(connection: socket.socket) -> None:
    with in_tls(connection) as secure:
        silent(secure)


def closes(connection: socket.socket) -> None:
    connection.recv(65_536)


def resets(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def half_an_answer(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(CONNECTED[:20])


def connects_and_closes_in_tls(connection: socket.socket) -> None:
    with in_tls(connection) as secure:
        secure.recv(65_536)
        secure.sendall(CONNECTED)
        secure.unwrap()


def connects_and_goes_on(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(CONNECTED + b"more")
    connection.recv(65_536)


def silent_behind_the_tunnel(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(CONNECTED)
    silent_in_tls(connection)


class Proxies:
    """Starts proxies.

    Attributes:
        connections: how many there have been.
        open: how many are open.
    """

    def __init__(self, started: ExitStack) -> None:
        self._started = started
        self.connections = self.open = 0

    def start(self, talk: Callable[[socket.socket], None]) -> int:
        """A port on which each connection is a call of `talk`."""

        def serve(connection: socket.socket) -> None:
            self.connections += 1
            self.open += 1
            with suppress(OSError), connection:
                talk(connection)
            self.open -= 1

        return self._started.enter_context(listening(serve))


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with ExitStack() as started:
        yield Proxies(started)


def client_of(world: World, wire: Any) -> Any:
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    retry = RetryPolicy(1, initial_delay=0, retry_unknown=False)
    return world.client(build(auth=None, rate_limit=None, retry=retry, listener=[], transport=wire))


def wire_of(world: World, proxy: str) -> Any:
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    return make(HttpConfig(proxy=proxy, verify=False))


async def error_of(
    world: World, proxies: Proxies, wire: Any, url: str = "https://upstream.example/", **options: Any
) -> Exception:
    client = client_of(world, wire)
    with pytest.raises(httpx.TransportError) as caught:
        await world.call(client.post, url, **{"timeout": SHORT, **options})
    await world.until(lambda: proxies.open == 0)
    await world.close(client)
    return caught.value


UNSENT: list[tuple[str, Callable[[socket.socket], None], type[Exception]]] = [
    ("http", silent, httpx.ConnectTimeout),
    ("https", silent_in_tls, httpx.ConnectTimeout),
    ("socks5", silent, httpx.ConnectTimeout),
    ("http", closes, httpx.ConnectError),
    ("http", resets, httpx.ConnectError),
    ("socks5", resets, httpx.ConnectError),
    ("http", half_an_answer, httpx.ConnectError),
    ("https", connects_and_closes_in_tls, httpx.ConnectError),
    ("http", connects_and_goes_on, httpx.ConnectError),
]


def patience(kind: type[Exception]) -> httpx.Timeout:
    return SHORT if kind is httpx.ConnectTimeout else httpx.Timeout(10)


@pytest.mark.parametrize(("scheme", "talk", "kind"), UNSENT)
async def test_a_proxy_that_fails_before_it_has_connected_has_been_sent_nothing(
    world: World, proxies: Proxies, scheme: str, talk: Callable[[socket.socket], None], kind: type[Exception]
) -> None:
    wire = wire_of(world, f"{scheme}://127.0.0.1:{proxies.start(talk)}")
    error = await error_of(world, proxies, wire, timeout=patience(kind))
    assert type(error) is kind
    assert "through the proxy" in str(error)
    assert proxies.connections == 2, "a POST is sent again although retry_unknown=False"


@pytest.mark.parametrize("timeout", [httpx.Timeout(None, connect=0.1), httpx.Timeout(None, read=0.1)])
async def test_a_silent_proxy_is_given_up_at_the_connect_or_the_read_timeout(
    world: World, proxies: Proxies, timeout: httpx.Timeout
) -> None:
    wire = wire_of(world, f"http://127.0.0.1:{proxies.start(silent)}")
    error = await error_of(world, proxies, wire, timeout=timeout)
    assert type(error) is httpx.ConnectTimeout


@pytest.mark.parametrize(
    ("url", "talk"),
    [("http://upstream.example/", silent), ("https://upstream.example/", silent_behind_the_tunnel)],
)
async def test_a_silent_server_behind_a_proxy_may_have_acted(
    world: World, proxies: Proxies, url: str, talk: Callable[[socket.socket], None]
) -> None:
    wire = wire_of(world, f"http://127.0.0.1:{proxies.start(talk)}")
    assert type(await error_of(world, proxies, wire, url, timeout=SHORT_READ)) is httpx.ReadTimeout
    assert proxies.connections == 1


@pytest.mark.parametrize("content", [b"CONNECT a:1 HTTP/1.1", b"\x05\x01"])
async def test_a_body_that_looks_like_a_question_to_the_proxy_is_none(
    world: World, proxies: Proxies, content: bytes
) -> None:
    wire = wire_of(world, f"http://127.0.0.1:{proxies.start(silent)}")
    error = await error_of(
        world, proxies, wire, "http://upstream.example/", content=content, timeout=SHORT_READ
    )
    assert type(error) is httpx.ReadTimeout
    assert proxies.connections == 1


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize(("scheme", "talk", "kind"), [each for each in UNSENT if each[0] != "socks5"])
async def test_the_wire_over_aiohttp_says_the_same(
    world: World, proxies: Proxies, scheme: str, talk: Callable[[socket.socket], None], kind: type[Exception]
) -> None:
    config = HttpConfig(proxy=f"{scheme}://127.0.0.1:{proxies.start(talk)}", verify=False)
    error = await error_of(world, proxies, stkai.wires.aiohttp(config), timeout=patience(kind))
    assert type(error) is kind
    assert proxies.connections == 2


@pytest.mark.worlds("asyncio")
async def test_over_aiohttp_a_silent_proxy_is_given_up_at_the_read_timeout(
    world: World, proxies: Proxies
) -> None:
    config = HttpConfig(proxy=f"http://127.0.0.1:{proxies.start(silent)}", verify=False)
    error = await error_of(world, proxies, stkai.wires.aiohttp(config), timeout=httpx.Timeout(None, read=0.1))
    assert type(error) is httpx.ConnectTimeout
