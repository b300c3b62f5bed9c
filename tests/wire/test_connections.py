"""One connection in the place of httpcore's pool: used as long as it serves, opened anew where it does not."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest

from stkai._connections import with_one_connection
from stkai.testing import QuotaServer

from ..support.world import World


class Connection:
    """Notes what it is asked; `available` and `expired` are what it answers."""

    def __init__(self, origin: httpcore.Origin) -> None:
        self.origin = origin
        self.available, self.expired, self.closed = True, False, 0
        self.requests = self.looks = 0
        self.goes = False

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self.origin

    def is_available(self) -> bool:
        return self.available

    def has_expired(self) -> bool:
        self.looks += 1
        return self.expired

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        if self.goes:
            self.available = False
            raise httpcore.ConnectionNotAvailable
        self.requests += 1
        return httpcore.Response(200, content=b"body")

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        return self.handle_request(request)

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


def transport_of(world: World) -> Any:
    """One of httpx's own."""
    return httpx.AsyncHTTPTransport() if world.is_async else httpx.HTTPTransport()


class Bench:
    """A transport with one connection, over connections that do nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: list[Connection] = []
        self.transport = transport_of(world)
        self.transport._pool.create_connection = self.make
        assert with_one_connection(self.transport) is self.transport

    def make(self, origin: httpcore.Origin) -> Connection:
        self.made.append(Connection(origin))
        return self.made[-1]

    async def get(self, url: str = "http://a.example.com/") -> httpx.Response:
        return await self.world.send(self.transport, httpx.Request("GET", url))


async def test_one_connection_is_used_again_and_asked_once_each_time_whether_it_still_stands(
    world: World,
) -> None:
    bench = Bench(world)
    for _ in range(5):
        assert (await bench.get()).status_code == 200
    [connection] = bench.made
    assert (connection.requests, connection.looks, connection.closed) == (5, 4, 0)


@pytest.mark.parametrize(
    "end",
    [{"available": False}, {"expired": True}, {"origin": None}, {"goes": True}],
    ids=["broken", "expired", "elsewhere", "gone as the request begins"],
)
async def test_a_connection_of_no_more_use_is_closed_and_another_opened(
    world: World, end: dict[str, object]
) -> None:
    bench = Bench(world)
    await bench.get()
    vars(bench.made[0]).update(end)
    assert (await bench.get()).status_code == 200
    assert [(connection.requests, connection.closed) for connection in bench.made] == [(1, 1), (1, 0)]


async def test_what_else_a_connection_raises_goes_through(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> httpcore.Response:
        raise httpcore.ReadError("torn")

    monkeypatch.setattr(Connection, "handle_request", fail)
    bench = Bench(world)
    with pytest.raises(httpx.ReadError, match="torn"):
        await bench.get()
    assert len(bench.made) == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_a_connection_of_no_more_use_is_closed_to_its_end_also_by_somebody_who_is_cancelled(
    world: World,
) -> None:
    bench = Bench(world)
    await bench.get()
    bench.made[0].expired = True
    with anyio.CancelScope() as scope:
        scope.cancel()
        await bench.get()
    assert bench.made[0].closed == 1


async def test_a_method_that_a_recorder_of_traffic_put_into_the_pool_is_called(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = with_one_connection(transport_of(world))
    pool, name = world.pick(
        (httpcore.ConnectionPool, "handle_request"), (httpcore.AsyncConnectionPool, "handle_async_request")
    )
    original, recorded = getattr(pool, name), list[bytes]()

    @wraps(original)
    def record(self: Any, request: httpcore.Request) -> Any:
        recorded.append(request.url.target)
        return original(self, request)

    async def get(url: str) -> None:
        await world.read(await world.send(transport, httpx.Request("GET", url)))

    with QuotaServer() as server:
        with monkeypatch.context() as patch:
            patch.setattr(pool, name, record)
            await get(server.url + "/echo?1")
        await get(server.url + "/echo?2")
    assert recorded == [b"/echo?1"]
    assert len(transport._pool._pool.connections) == 1
    await world.close(transport)
    assert transport._pool._pool.connections == []


async def test_closing_the_transport_closes_the_connection_once(world: World) -> None:
    bench = Bench(world)
    await bench.get()
    await world.close(bench.transport)
    await world.close(bench.transport)
    assert [connection.closed for connection in bench.made] == [1]
    assert bench.transport._pool.connection is None


@pytest.mark.parametrize("url", ["ftp://a.example.com/", "//a.example.com/"])
async def test_a_url_that_is_not_one_of_http_opens_nothing(world: World, url: str) -> None:
    bench = Bench(world)
    with pytest.raises(httpx.UnsupportedProtocol):
        await bench.get(url)
    assert bench.made == []


async def test_a_transport_that_keeps_its_pool_elsewhere_stays_as_it_is(world: World) -> None:
    transport = transport_of(world)
    pool = transport.__dict__.pop("_pool")
    assert with_one_connection(transport).__dict__ == {}
    transport._pool = pool
    await world.close(transport)


@contextmanager
def hanging_up() -> Iterator[str]:
    """A server that says it keeps connections open, and closes them after each answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


async def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used_again(world: World) -> None:
    transport = with_one_connection(transport_of(world))
    with hanging_up() as url:
        for _ in range(3):
            response = await world.send(transport, httpx.Request("GET", url))
            assert await world.read(response) == b""
            while not transport._pool.connection.has_expired():
                pass
    await world.close(transport)


async def test_a_server_that_cannot_be_reached_is_a_connect_error_and_the_next_request_tries_anew(
    world: World,
) -> None:
    transport = with_one_connection(transport_of(world))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(httpx.ConnectError):
            await world.send(transport, httpx.Request("GET", f"http://127.0.0.1:{port}/"))
    with QuotaServer() as server:
        response = await world.send(transport, httpx.Request("GET", server.url + "/echo"))
        assert response.status_code == 200
        await world.close(response)
    await world.close(transport)
