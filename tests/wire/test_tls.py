"""What goes wrong with TLS: no connection stays open, and the error is one of httpx's that says what happened."""

import asyncio
import errno
import gc
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import httpcore
import httpx
import pytest

import stkai
from stkai import DeadlineExceededError, HttpConfig, RequestOptions, RetryPolicy
from stkai._abandonable import do_within
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai._wire.httpcore_fixes import AsyncNetwork, Network
from stkai._wire.single_connection import AsyncSingleConnection, SingleConnection, with_single_connection

from ..support.listening import Serve, listening, pump, speaks_plain_http
from ..support.servers import CERTIFICATE, KEY
from ..support.world import NAMES, World
from .raw import ENDLESS, WHOLE, raw_server

pytestmark = [pytest.mark.real_time, pytest.mark.worlds(*NAMES)]

AGAIN = RetryPolicy(1, initial_delay=0)


@contextmanager
def server(talk: Serve) -> Iterator[str]:
    """Runs `talk` for each connection; yields the URL."""
    with listening(talk) as port:
        yield f"https://127.0.0.1:{port}/"


def context(**options: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(CERTIFICATE, KEY)
    for name, value in options.items():
        setattr(made, name, value)
    return made


def wire(world: World, config: HttpConfig, kind: str) -> Any:
    if kind == "aiohttp":
        return stkai.wires.aiohttp(config)
    return (AsyncDefaultWire if world.is_async else DefaultWire)(config)


def client(world: World, config: HttpConfig, kind: str = "default", retry: RetryPolicy | None = AGAIN) -> Any:
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    stack = build(auth=None, rate_limit=None, retry=retry, listener=[], transport=wire(world, config, kind))
    return world.client(stack, timeout=5)


class Listener:
    """Accepts connections, and never answers a greeting.

    Attributes:
        greeted: set when a greeting has arrived.
        left: set when the client has closed.
    """

    def __init__(self) -> None:
        self.greeted, self.left = threading.Event(), threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        with suppress(ConnectionError):
            while connection.recv(65_536):
                self.greeted.set()
        self.left.set()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is closed by the garbage collector."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("no_collector")
async def test_a_task_cancelled_in_a_tls_handshake_leaves_no_connection_open(world: World) -> None:
    silent = Listener()
    with server(silent) as url:
        mine = client(world, HttpConfig(verify=False))
        async with anyio.create_task_group() as group:
            group.start_soon(mine.get, url)
            await world.until(silent.greeted.is_set)
            group.cancel_scope.cancel()
        await world.until(silent.left.is_set)
        await world.close(mine)


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("kind", ["default", "aiohttp"])
async def test_a_request_whose_client_is_closed_in_its_tls_handshake_is_not_sent(
    world: World, kind: str
) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        pytest.skip("aiohttp works on asyncio only")
    greeted, goes_on, over = threading.Event(), threading.Event(), threading.Event()
    arrived = list[bytes]()

    def talk(connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)
        greeted.set()
        goes_on.wait(10)
        with suppress(OSError), context().wrap_socket(connection, server_side=True) as secure:
            arrived.append(secure.recv(65_536))
        over.set()

    async def call() -> None:
        with pytest.raises(httpx.ConnectError, match="closed"):
            await world.call(mine.post, url)

    async def close() -> None:
        await world.until(greeted.is_set)
        await world.close(mine)
        goes_on.set()

    with server(talk) as url:
        mine = client(world, HttpConfig(verify=False), kind, retry=None)
        await world.gather(call, close)
        await world.until(over.is_set)
    assert b"".join(arrived) == b""


@pytest.mark.parametrize("body", [b"", b"x" * 20_000_000], ids=["waits", "writes"])
@pytest.mark.parametrize("kind", ["default", "aiohttp"])
async def test_closing_a_client_ends_a_call_that_waits_for_an_answer_or_is_written_over_tls(
    world: World, kind: str, body: bytes
) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        return
    arrived, over = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        with context().wrap_socket(connection, server_side=True) as secure:
            secure.recv(65_536)
            arrived.set()
            over.wait(30)

    async def close() -> None:
        await world.until(arrived.is_set)
        await world.close(mine)

    with server(talk) as url:
        mine = client(world, HttpConfig(verify=False), kind)
        error, _ = await world.outcomes(partial(world.call, mine.post, url, content=body), close)
        over.set()
    assert isinstance(error, httpx.ReadError)
    assert "the connection was closed on this side" in str(error)


@pytest.mark.worlds("sync")
@pytest.mark.usefixtures("no_collector")
@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_call_given_up_while_it_connects_closes_what_it_has_connected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects, real = threading.Event(), socket.create_connection

    def slow(*arguments: Any, **options: Any) -> Any:
        connects.wait(10)
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", slow)
    silent = Listener()
    kept: list[Any] = []
    with server(silent) as url:
        mine = client(world, HttpConfig(verify=False))
        options = {"stkai": RequestOptions(deadline=0.1), "trace": lambda _, info: kept.append(info)}
        with pytest.raises(DeadlineExceededError):
            mine.get(url, extensions=options)
        connects.set()
        await world.until(silent.left.is_set)
        assert not silent.greeted.is_set()
        mine.close()


def breaks_off(connection: socket.socket) -> None:
    """Answers something that is no TLS."""
    with context().wrap_socket(connection, server_side=True) as tls:
        tls.recv(65_536)
        os.write(tls.fileno(), b"no record of TLS, and longer than the head of one")
        with suppress(OSError):
            tls.recv(1)


def wants_a_certificate(connection: socket.socket) -> None:
    """In TLS 1.3 the client learns of the refusal when it reads the answer."""
    strict = context(verify_mode=ssl.CERT_REQUIRED)
    strict.load_verify_locations(CERTIFICATE)
    strict.wrap_socket(connection, server_side=True)


@pytest.mark.parametrize("kind", ["default", "http2", "aiohttp"])
@pytest.mark.parametrize("talk", [breaks_off, wants_a_certificate], ids=["a broken record", "an alert"])
async def test_an_error_of_tls_after_the_handshake_is_one_of_httpx(
    world: World, talk: Serve, kind: str
) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        return
    connections: list[int] = []

    def counted(connection: socket.socket) -> None:
        connections.append(1)
        talk(connection)

    with server(counted) as url:
        mine = client(world, HttpConfig(verify=False, http2=kind == "http2"), kind)
        with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)) as caught:
            await world.call(mine.get, url)
        assert str(caught.value), "it says what happened"
        # It is no use to try again without a certificate, if the alert arrives before the end of the connection.
        assert len(connections) in ({2} if talk is breaks_off else {1, 2})
        await world.close(mine)


def closes(connection: socket.socket) -> None:
    connection.recv(65_536)


def needs_a_certificate_at_once(connection: socket.socket) -> None:
    strict = context(verify_mode=ssl.CERT_REQUIRED, maximum_version=ssl.TLSVersion.TLSv1_2)
    strict.load_verify_locations(CERTIFICATE)
    strict.wrap_socket(connection, server_side=True)


def presents_its_certificate(connection: socket.socket) -> None:
    context().wrap_socket(connection, server_side=True)


HANDSHAKES = {
    "an end": (closes, "(?i)reset|closed|EOF", 2),
    "an alert": (needs_a_certificate_at_once, "ALERT_HANDSHAKE_FAILURE", 2),
    "no TLS": (speaks_plain_http, "WRONG_VERSION_NUMBER", 1),
    "a certificate that nobody signed": (presents_its_certificate, "CERTIFICATE_VERIFY_FAILED", 1),
}


@pytest.mark.parametrize("kind", ["default", "aiohttp"])
@pytest.mark.parametrize("name", HANDSHAKES)
async def test_a_handshake_that_fails_is_a_connect_error_that_says_why(
    world: World, name: str, kind: str
) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        return
    talk, why, attempts = HANDSHAKES[name]
    with server(talk) as url:
        mine = client(world, HttpConfig(verify=name.startswith("a certificate")), kind)
        with pytest.raises(httpx.ConnectError, match=why) as caught:
            await world.call(mine.get, url)
        (note,) = caught.value.__notes__
        assert f": {attempts} attempt" in note
        assert ("verify= to HttpConfig" in note) == name.startswith("a certificate")
        await world.close(mine)


async def test_a_certificate_that_only_newer_pythons_reject_is_an_error_that_says_what_to_do(
    world: World,
) -> None:
    def handle(_: httpx.Request) -> httpx.Response:
        rejected = ssl.SSLCertVerificationError(1, "CA cert does not include key usage extension")
        rejected.verify_code = 92
        raise httpx.ConnectError("certificate verify failed") from rejected

    mine = world.client(
        world.build(stkai.StackBuilder([stkai.transports.retry(AGAIN)]), httpx.MockTransport(handle))
    )
    with pytest.raises(httpx.ConnectError) as caught:
        await world.call(mine.get, "https://service.example/")
    (note,) = caught.value.__notes__
    assert ": 1 attempt; since Python 3.13" in note
    assert "ssl.VERIFY_X509_STRICT" in note
    await world.close(mine)


def tunnel(talk: Serve, secure: bool) -> Serve:
    """A proxy, reached over TLS if it is `secure`, that opens a tunnel to `talk`."""

    def serve(connection: socket.socket) -> None:
        outer = context().wrap_socket(connection, server_side=True) if secure else connection
        outer.recv(65_536)
        outer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        near, far = socket.socketpair()
        with outer, near, far:
            ways = [
                threading.Thread(target=pump, args=(*way, socket.SHUT_RDWR), daemon=True)
                for way in ((outer, near), (near, outer))
            ]
            for way in ways:
                way.start()
            with suppress(OSError):
                talk(far)
            far.close()
            for way in ways:
                way.join(10)

    return serve


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "over TLS"])
@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_that_fails_in_a_tunnel_over_aiohttp_is_a_connect_error_that_says_why(
    name: str, secure: bool, loop: str
) -> None:
    talk, why, attempts = HANDSHAKES[name]
    complaints: list[dict[str, Any]] = []

    async def call(proxy: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        verify = str(CERTIFICATE) if name.startswith("a certificate") else False  # It is not for this host.
        config = HttpConfig(verify=verify, proxy=proxy)
        stack = stkai.build_async_transport(
            auth=None, rate_limit=None, retry=AGAIN, listener=[], transport=stkai.wires.aiohttp(config)
        )
        async with httpx.AsyncClient(transport=stack, timeout=5) as mine:
            with pytest.raises(httpx.ConnectError, match=why) as caught:
                await mine.get("https://service.example/")
        assert f": {attempts} attempt" in caught.value.__notes__[0]

    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with listening(tunnel(talk, secure)) as port, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(call(f"http{'s' * secure}://127.0.0.1:{port}"))
    assert complaints == []


@pytest.mark.worlds("asyncio")
async def test_a_break_that_anyio_does_not_explain_is_an_error_with_a_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object) -> bytes:
        raise httpcore.ReadError from anyio.BrokenResourceError()

    monkeypatch.setattr("httpcore._backends.anyio.AnyIOStream.read", read)
    with listening(closes) as port:
        mine = client(world, HttpConfig(), retry=None)
        with pytest.raises(httpx.ReadError, match="the connection broke"):
            await mine.get(f"http://127.0.0.1:{port}/")
        await world.close(mine)


@pytest.mark.parametrize("several", [False, True])
async def test_a_refused_connection_is_an_error_that_says_so(
    world: World, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: object, port: Any, *_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    if several:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
    mine = client(world, HttpConfig(), retry=None)
    with pytest.raises(httpx.ConnectError, match=rf"Errno {errno.ECONNREFUSED}"):
        await world.call(mine.get, f"http://{'service.example' if several else '127.0.0.1'}:{port}/")
    await world.close(mine)


def answers_twice(connection: socket.socket) -> None:
    """Each answer is a record of its own, and both arrive together."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(received, sent, server_side=True)
    while data := connection.recv(65_536):
        received.write(data)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            while tls.read(65_536):
                tls.write(WHOLE)
                tls.write(WHOLE.replace(b"body", b"evil"))
        connection.sendall(sent.read())


@pytest.mark.parametrize("kind", ["default", "aiohttp"])
async def test_a_second_answer_over_tls_is_not_taken_for_the_next_one(world: World, kind: str) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        pytest.skip("aiohttp works on asyncio only")
    with server(answers_twice) as url:
        mine = client(world, HttpConfig(verify=False), kind)
        for _ in range(3):
            assert (await world.call(mine.get, url)).content == b"body"
        await world.close(mine)


def ends_tls_but_not_the_connection(connection: socket.socket) -> None:
    """The body ends with TLS (close_notify); the server then waits for the client to close the connection."""
    with suppress(OSError), context().wrap_socket(connection, server_side=True) as secure:
        secure.recv(65_536)
        secure.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody")
        secure.unwrap()


@pytest.mark.parametrize("kind", ["default", "aiohttp"])
async def test_a_connection_whose_tls_has_ended_is_not_used_again(world: World, kind: str) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        pytest.skip("aiohttp works on asyncio only")
    with server(ends_tls_but_not_the_connection) as url:
        mine = client(world, HttpConfig(verify=False), kind, retry=None)
        for _ in range(2):
            assert (await world.call(mine.get, url)).content == b"body"
        await world.close(mine)


def answers_nonsense(ended: threading.Event, connection: socket.socket) -> None:
    """What follows the nonsense may arrive while the client closes TLS, which the server does not answer."""
    with context().wrap_socket(connection, server_side=True) as secure:
        secure.recv(65_536)
        secure.sendall(b"SSH-2.0-x\r\n\r\nmore\r\n\r\nand more")
        with suppress(ConnectionError):
            while socket.socket.recv(secure, 65_536):
                pass
        ended.set()


@pytest.mark.parametrize("kind", ["default", "aiohttp"])
async def test_an_answer_that_is_not_http_closes_the_connection_at_once(world: World, kind: str) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        pytest.skip("aiohttp works on asyncio only")
    ended = threading.Event()
    with server(partial(answers_nonsense, ended)) as url:
        mine = client(world, HttpConfig(verify=False), kind, retry=None)
        with pytest.raises(httpx.RemoteProtocolError):
            await world.call(mine.get, url)
        await world.until(ended.is_set)
        await world.close(mine)


class Unknown:
    """A transport of a later httpx, whose private parts have other names."""


class Renamed(Unknown):
    """The same with a pool of another kind."""

    _pool = Unknown()


@pytest.mark.worlds("sync")
@pytest.mark.parametrize("transport", [Unknown(), Renamed()], ids=["no pool", "another pool"])
async def test_a_transport_with_other_private_parts_is_left_as_it_is(world: World, transport: Any) -> None:
    assert with_single_connection(transport) is transport
    assert "_network_backend" not in vars(getattr(transport, "_pool", transport))


@pytest.mark.worlds("sync", "asyncio")
async def test_the_private_parts_of_httpx_that_are_mended_exist(world: World) -> None:
    plain: Any = world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)()
    connection = with_single_connection(plain)._pool
    assert isinstance(connection, world.pick(SingleConnection, AsyncSingleConnection))
    assert isinstance(connection.pool._network_backend, world.pick(Network, AsyncNetwork))
    await world.close(plain)


async def test_a_connection_that_is_made_after_its_client_was_closed_is_closed_too(world: World) -> None:
    plain: Any = world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)(verify=False)
    transport = with_single_connection(plain)
    network = transport._pool.network
    connected: list[socket.socket] = []

    class Backend:
        """Connects while another thread closes the client."""

        def connect_tcp(self, *args: Any, **options: Any) -> Any:
            stream = real.connect_tcp(*args, **options)
            transport.close()
            connected.append(stream.get_extra_info("socket"))
            return stream

    class AsyncBackend:
        async def connect_tcp(self, *args: Any, **options: Any) -> Any:
            stream = await real.connect_tcp(*args, **options)
            await transport.aclose()
            connected.append(stream.get_extra_info("socket"))
            return stream

    real, network._backend = network._backend, world.pick(Backend, AsyncBackend)()
    with server(lambda connection: connection.recv(1)) as url:
        request = httpx.Request("GET", url)
        with pytest.raises(httpx.ConnectError, match="closed while it connected"):
            await world.send(transport, request)
    assert [each.fileno() for each in connected] == [-1]


@pytest.mark.worlds("sync")
async def test_a_connection_is_closed_although_an_interrupt_has_left_its_locks_taken(world: World) -> None:
    with raw_server() as there:
        there.answer = lambda _: (ENDLESS, True)
        transport: Any = with_single_connection(httpx.HTTPTransport())
        response = await world.send(transport, httpx.Request("GET", there.url))
        held = transport._pool.held
        with held._request_lock, held._connection._state_lock:
            do_within(5.0, transport.close)
            await world.until(lambda: not there.open)
        response.close()
