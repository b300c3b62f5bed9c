"""What a SOCKS5 proxy may do, and what it is told."""

import gc
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import httpx
import pytest

import stkai
from stkai import HttpConfig, RetryPolicy
from stkai._wire import AsyncDefaultWire, DefaultWire

from ..support.listening import listening
from ..support.secrecy import shown_by
from ..support.world import NAMES, World
from .raw import WHOLE

pytestmark = pytest.mark.worlds(*NAMES)

CONNECTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
CLOSES = b""


class Scripted:
    """A proxy that answers whatever it is told with these bytes, one answer for each message.

    Attributes:
        url: where it listens, with credentials.
        received: all that it has received.
        open: how many connections are open.
    """

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self.url = ""
        self.received: list[bytes] = []
        self.open = self.connections = 0

    def serve(self, client: socket.socket) -> None:
        self.open += 1
        self.connections += 1
        with client, suppress(OSError):
            for answer in self._answers:
                self.received.append(client.recv(65_536))
                if answer == CLOSES:
                    break
                client.sendall(answer)
            else:
                while client.recv(65_536):
                    pass
        self.open -= 1


Start = Callable[..., Scripted]


@pytest.fixture
def proxy() -> Iterator[Start]:
    """Starts proxies; meanwhile the garbage collector closes nothing."""
    with ExitStack() as started:

        def start(*answers: bytes) -> Scripted:
            scripted = Scripted(*answers)
            port = started.enter_context(listening(scripted.serve))
            scripted.url = f"socks5://me:secret@127.0.0.1:{port}"
            return scripted

        gc.disable()
        try:
            yield start
        finally:
            gc.enable()


def client_of(world: World, proxy: Scripted, timeout: float = 5.0) -> Any:
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    wire = make(HttpConfig(proxy=proxy.url))
    retry = RetryPolicy(1, initial_delay=0)
    return world.client(
        build(auth=None, rate_limit=None, retry=retry, listener=[], transport=wire), timeout=timeout
    )


async def test_a_proxy_that_connects_serves_several_requests_and_no_log_shows_its_password(
    world: World, proxy: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    scripted = proxy(b"\x05\x02", b"\x01\x00", CONNECTED, WHOLE, WHOLE)
    client = client_of(world, scripted)
    for _ in range(2):
        assert (await world.call(client.get, "http://upstream.example:81/")).content == b"body"
    assert scripted.received[1] == b"\x01\x02me\x06secret"
    assert scripted.received[2] == b"\x05\x01\x00\x03\x10upstream.example\x00\x51"
    assert scripted.connections == 1
    assert "auth=" in caplog.text
    assert "secret" not in caplog.text
    await world.close(client)
    await world.until(lambda: scripted.open == 0)


REFUSALS = {
    "no method": ((b"\x05\xff",), "NO ACCEPTABLE METHODS", 1),
    "a wrong login": ((b"\x05\x02", b"\x01\x01"), "Invalid username/password", 1),
    "a host that is down": (
        (b"\x05\x02", b"\x01\x00", b"\x05\x04\x00\x01" + bytes(6)),
        "Host unreachable",
        2,
    ),
    "another protocol": ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "Malformed", 2),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_is_a_proxy_error_that_says_why_and_leaves_nothing_open(
    world: World, proxy: Start, name: str
) -> None:
    answers, why, attempts = REFUSALS[name]
    scripted = proxy(*answers)
    client = client_of(world, scripted, timeout=5.0)
    with pytest.raises(httpx.ProxyError, match=why) as caught:
        await world.call(client.get, "https://upstream.example/")
    assert "secret" not in shown_by(caught.value, own=__file__)
    assert scripted.connections == attempts
    await world.until(lambda: scripted.open == 0)
    await world.close(client)


@pytest.mark.parametrize("answers", [(CLOSES,), (b"\x05\x02", CLOSES), (b"\x05\x02", b"\x01\x00", CLOSES)])
async def test_a_proxy_that_closes_instead_of_answering_is_a_connect_error_that_says_so(
    world: World, proxy: Start, answers: tuple[bytes, ...]
) -> None:
    scripted = proxy(*answers)
    client = client_of(world, scripted)
    with pytest.raises(httpx.ConnectError, match="the proxy closed the connection instead of answering"):
        await world.call(client.get, "https://upstream.example/")
    assert scripted.connections == 2
    await world.close(client)


@pytest.mark.real_time
async def test_a_proxy_that_says_nothing_has_as_long_as_the_connect_timeout(
    world: World, proxy: Start
) -> None:
    scripted = proxy()
    client = client_of(world, scripted)
    with pytest.raises(httpx.ConnectTimeout):
        await world.call(client.post, "http://upstream.example/", timeout=httpx.Timeout(None, connect=0.1))
    assert scripted.connections == 2, "nothing was sent"
    await world.until(lambda: scripted.open == 0)
    await world.close(client)


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_cancelled_while_it_waits_for_the_proxy_leaves_nothing_open(
    world: World, proxy: Start
) -> None:
    scripted = proxy(b"\x05\x02")
    client = client_of(world, scripted)
    async with anyio.create_task_group() as group:
        group.start_soon(client.get, "http://upstream.example/")
        await world.until(lambda: bool(scripted.received))
        group.cancel_scope.cancel()
    await world.until(lambda: scripted.open == 0)
    await world.close(client)
