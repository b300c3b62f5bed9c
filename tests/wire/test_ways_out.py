"""Rarely used routes: SOCKS and TLS proxies, HTTP/2, Unix sockets, a local address."""

import asyncio
import gc
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import httpx
import pytest
from hyperframe.frame import GoAwayFrame, PingFrame

import stkai
from stkai import HttpConfig, RequestOptions
from stkai._wire import AsyncDefaultWire, DefaultWire

from ..support import servers
from ..support.listening import listening, pump
from ..support.servers import CERTIFICATE, KEY, Proxy
from ..support.world import NAMES, World
from .raw import WHOLE, Http2Server, RawServer, raw_server

pytestmark = pytest.mark.worlds(*NAMES)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


def client_of(world: World, transport: Any = None, **config: Any) -> Any:
    """stkai's client over a whole stack, on the default wire or an httpx one."""
    build: Any = stkai.build_async_client if world.is_async else stkai.build_client
    stkai.STKAI.configure(http=config)
    return build(auth=None, rate_limit=None, transport=transport)


async def get(world: World, client: Any, url: str) -> bytes:
    content: bytes = (await world.call(client.get, url, timeout=5)).content
    return content


# SOCKS


class Socks:
    """A SOCKS5 proxy (RFC 1928) that connects every request to one server.

    Attributes:
        asked: the requested hosts and ports.
        logins: user names and passwords (RFC 1929).
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.asked: list[tuple[str, int]] = []
        self.logins: list[tuple[bytes, bytes]] = []

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            stream = client.makefile("rb")
            methods = stream.read(stream.read(2)[1])
            client.sendall(b"\x05\x02" if 2 in methods else b"\x05\x00")
            if 2 in methods:
                stream.read(1)
                user = stream.read(stream.read(1)[0])
                self.logins.append((user, stream.read(stream.read(1)[0])))
                client.sendall(b"\x01\x00")
            kind = stream.read(4)[3]
            host = stream.read(stream.read(1)[0]).decode() if kind == 3 else socket.inet_ntoa(stream.read(4))
            self.asked.append((host, int.from_bytes(stream.read(2), "big")))
            client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            with socket.create_connection(self.target) as upstream:
                threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
                pump(client, upstream)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_socks_proxy_in_the_settings_gets_the_host_by_name(
    world: World, server: RawServer, scheme: str
) -> None:
    pytest.importorskip("socksio")
    socks = Socks(("127.0.0.1", httpx.URL(server.url).port or 0))
    with listening(socks.serve) as port:
        client = client_of(world, proxy=f"{scheme}://me:secret@127.0.0.1:{port}")
        for _ in range(3):
            assert await get(world, client, "http://upstream.example:81/") == b"body"
        await world.close(client)
    assert socks.asked == [("upstream.example", 81)], "one connection serves them all"
    assert socks.logins == [(b"me", b"secret")]


# A proxy that speaks TLS


@pytest.fixture
def tls_proxy() -> Iterator[tuple[str, Proxy]]:
    log = Proxy()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    with servers.serve(log.handle, context) as url:
        yield url, log


async def test_the_settings_certificates_apply_to_a_tls_proxy(
    world: World, tls_proxy: tuple[str, Proxy]
) -> None:
    url, log = tls_proxy
    client = client_of(world, proxy=url, verify=str(CERTIFICATE))
    assert (await get(world, client, "http://service.example/x")).startswith(b"by proxy")
    assert log.asked == [("GET", "http://service.example/x")]
    await world.close(client)
    client = client_of(world, proxy=url, verify=True)
    with pytest.raises(httpx.ConnectError):
        await world.call(client.get, "http://service.example/x", retry=None)
    await world.close(client)


# HTTP/2


class Http2(Http2Server):
    """Answers once a given number of requests have arrived.

    Attributes:
        together: that number.
        goes_away: how many of the next answers follow a GOAWAY, and precede a PING.
        refuses: whether the next request gets a GOAWAY that accepts none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.together, self.goes_away = 1, 0
        self.refuses = False

    def talk(self, secure: ssl.SSLSocket, connection: h2.connection.H2Connection) -> None:
        secure.sendall(connection.data_to_send())
        waiting: list[int] = []
        while data := secure.recv(65536):
            head, tail = list[bytes](), list[bytes]()
            events = connection.receive_data(data)
            waiting += [event.stream_id for event in events if isinstance(event, h2.events.StreamEnded)]
            if waiting and self.refuses:
                self.refuses = False
                secure.sendall(GoAwayFrame().serialize())
                while secure.recv(65536):  # A close before all is read would cut off what was sent.
                    pass
                return
            if waiting and self.goes_away:
                self.goes_away -= 1
                head.append(GoAwayFrame(last_stream_id=waiting[-1]).serialize())
                tail.append(PingFrame(opaque_data=b"are you?").serialize())
            while waiting and len(waiting) >= self.together:
                for stream in waiting:
                    connection.send_headers(stream, [(":status", "200")])
                    connection.send_data(stream, b"by HTTP/2", end_stream=True)
                waiting.clear()
            secure.sendall(b"".join([*head, connection.data_to_send(), *tail]))


async def test_each_http2_connection_carries_one_request_at_a_time(world: World) -> None:
    http2 = Http2()
    with listening(http2.serve) as port:
        client = client_of(world, http2=True, verify=False)
        url = f"https://127.0.0.1:{port}/"
        for number in (1, 3, 3):
            answers = await world.gather(*[lambda: get(world, client, url)] * number)
            assert list(answers) == [b"by HTTP/2"] * number
        assert http2.connections <= 3
        await world.close(client)
        await world.until(lambda: http2.open == 0)


async def test_an_answer_that_follows_a_goaway_is_received_and_the_next_request_takes_another_connection(
    world: World,
) -> None:
    """nginx sends a GOAWAY after a thousand requests, in front of the answers that are still to come."""
    http2 = Http2()
    http2.goes_away = 2
    with listening(http2.serve) as port:
        client = client_of(world, http2=True, verify=False)
        for connections in (1, 2, 3, 3):
            answer = await world.call(client.post, f"https://127.0.0.1:{port}/", {}, retry=None)
            assert answer.content == b"by HTTP/2"
            assert http2.connections == connections
        await world.close(client)


@pytest.mark.real_time
async def test_a_goaway_that_accepts_no_request_lets_a_post_be_sent_again(world: World) -> None:
    """nginx sends it when it is reloaded while a new connection is made."""
    http2 = Http2()
    http2.refuses = True
    with listening(http2.serve) as port:
        client = client_of(world, http2=True, verify=False)
        policy = stkai.RetryPolicy(retry_unknown=False, initial_delay=0.001)
        answer = await world.call(client.post, f"https://127.0.0.1:{port}/", {}, retry=policy)
        assert (answer.content, http2.connections) == (b"by HTTP/2", 2)
        await world.close(client)


@pytest.mark.parametrize("way", ["times out", "is closed unread"])
async def test_a_request_that_is_given_up_leaves_no_http2_stream_open(world: World, way: str) -> None:
    http2 = Http2()
    with listening(http2.serve) as port:
        client = client_of(world, http2=True, verify=False)
        url = f"https://127.0.0.1:{port}/"
        if way == "times out":
            http2.together = 2
            timeout = httpx.Timeout(10, read=0.1).as_dict()
            request = httpx.Request(
                "GET", url, extensions={"timeout": timeout, "stkai": RequestOptions(retry=None)}
            )
            with pytest.raises(httpx.ReadTimeout):
                await world.call(client.send, request)
            http2.together = 1
        else:
            await world.close(await world.call(client.post_stream, url, data={}))
        for _ in range(2):
            assert await get(world, client, url) == b"by HTTP/2"
        assert http2.connections == 2
        await world.until(lambda: http2.open == 1)
        await world.close(client)
        await world.until(lambda: http2.open == 0)


def test_http2_serves_successive_event_loops() -> None:
    http2 = Http2()
    with listening(http2.serve) as port:
        client = client_of(World("asyncio"), http2=True, verify=False)

        async def use() -> None:
            for _ in range(3):
                assert (await client.get(f"https://127.0.0.1:{port}/", timeout=5)).content == b"by HTTP/2"

        for _ in range(3):
            asyncio.run(use())
        assert http2.connections == 3


# httpx transports with options that have no setting


async def test_a_unix_socket_is_reached_through_an_httpx_transport(world: World, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with raw_server(path) as server:
        transport = world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)(uds=path)
        client = client_of(world, transport)
        assert await get(world, client, "http://service.example/") == b"body"
        await world.close(client)
        assert server.requests == 1


async def test_a_local_address_is_set_through_an_httpx_transport(world: World, server: RawServer) -> None:
    transport = world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)(local_address="127.0.0.1")
    client = client_of(world, transport)
    assert await get(world, client, server.url) == b"body"
    await world.close(client)


# Other event loops and threads


def test_uvloop_serves_successive_runs_and_abandoned_streams(server: RawServer) -> None:
    uvloop = pytest.importorskip("uvloop")
    client = stkai.AsyncHttpClient(AsyncDefaultWire(HttpConfig(max_connections=2, verify=False)))

    async def use() -> None:
        for _ in range(5):
            response = await client.post_stream(server.url)
            async for _ in response.aiter_raw():
                break
            await asyncio.sleep(0)
        answers = await asyncio.gather(*[client.post(server.url, timeout=5) for _ in range(50)])
        assert {answer.content for answer in answers} == {b"body"}

    for _ in range(3):
        uvloop.run(use())


def test_a_program_whose_loop_leaves_its_generators_behind_ends_without_a_traceback(
    server: RawServer,
) -> None:
    clients = [stkai.AsyncHttpClient(AsyncDefaultWire(HttpConfig(verify=False)))]

    async def use() -> None:
        sys.set_asyncgen_hooks(None, None)  # As in a run that nest_asyncio has nested in another.
        await clients[0].post(server.url)

    asyncio.run(use())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Of the socket, as with httpx.
        clients.clear()
        gc.collect()


GREEN = """
from gevent import monkey
monkey.patch_all()
import gevent, stkai
from stkai._wire import DefaultWire

client = stkai.HttpClient(DefaultWire(stkai.HttpConfig(max_connections=5, verify=False)))
work = lambda: client.post({url!r}, timeout=30).content
jobs = [gevent.spawn(work) for _ in range(100)]
gevent.sleep(0.001)
for job in jobs[::3]:
    job.kill()
gevent.joinall(jobs)
assert {{job.value for job in jobs if job.successful() and isinstance(job.value, bytes)}} == {{b"body"}}
assert [work() for _ in range(5)] == [b"body"] * 5
client.close()
"""

LEFT_OPEN = """
from gevent import monkey
monkey.patch_all()
import httpx, stkai

class Body(httpx.SyncByteStream):
    def __iter__(self):
        yield from (b"a", b"b")

wire = httpx.MockTransport(lambda request: httpx.Response(200, stream=Body()))
client = httpx.Client(transport=stkai.build_transport(auth=None, rate_limit=stkai.InFlight(1), transport=wire))
left = client.send(client.build_request("GET", "http://127.0.0.1/"), stream=True)
pieces = left.iter_raw()
next(pieces)
"""


def test_a_program_with_greenlets_that_ends_in_a_stream_prints_nothing() -> None:
    import subprocess

    pytest.importorskip("gevent")
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_greenlets_share_a_client_and_may_be_killed(server: RawServer) -> None:
    import subprocess

    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", GREEN.format(url=server.url)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.no_cover
def test_threads_share_a_client(server: RawServer) -> None:
    server.answer = lambda _: (WHOLE, True)
    with stkai.HttpClient(DefaultWire(HttpConfig(max_connections=10, verify=False))) as client:
        world = World("sync")

        async def work() -> list[bytes]:
            return [client.post(server.url, timeout=30).content for _ in range(5)]

        for answers in world.run(world.gather(*[work] * 100)):
            assert answers == [b"body"] * 5
    assert server.connections == 10
