"""However a stream is left, its place in the pool is freed: over real sockets, with room for one connection."""

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing, suppress
from functools import partial, partialmethod
from importlib import import_module
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest

import stkai
from stkai import HttpConfig
from stkai._wire import AsyncDefaultWire, DefaultWire, WirePerLoop

from ..support.listening import listening
from ..support.threads import together, wait_until
from ..support.world import NAMES, World
from .raw import ENDLESS, WHOLE, RawServer, raw_server

pytestmark = pytest.mark.worlds(*NAMES)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


def wire_of(world: World, most: int = 1) -> Any:
    return world.pick(DefaultWire, AsyncDefaultWire)(HttpConfig(max_connections=most, verify=False))


Open = Callable[[], Awaitable[Any]]


async def read_to_the_end(world: World, open_: Open) -> None:
    assert len(await world.chunks(await open_())) >= 1


async def close_unread(world: World, open_: Open) -> None:
    await world.close(await open_())


async def leave_a_with_block(world: World, open_: Open) -> None:
    response = await open_()
    if world.is_async:
        async with aclosing(response):
            async for _ in response.aiter_raw():
                return
    else:
        with closing(response):
            for _ in response.iter_raw():
                return


async def leave_a_loop(world: World, open_: Open) -> None:
    response = await open_()
    if world.is_async:
        async for _ in response.aiter_text():
            break
    else:
        for _ in response.iter_text():
            break


async def raise_in_a_loop(world: World, open_: Open) -> None:
    response = await open_()
    with suppress(ZeroDivisionError):
        if world.is_async:
            async for _ in response.aiter_raw():
                raise ZeroDivisionError
        else:
            for _ in response.iter_raw():
                raise ZeroDivisionError


async def drop_it(world: World, open_: Open) -> None:
    await open_()


async def drop_it_half_read(world: World, open_: Open) -> None:
    response = await open_()
    if world.is_async:
        await anext(response.aiter_raw())
    else:
        next(response.iter_raw())


async def drop_it_in_a_cycle(world: World, open_: Open) -> None:
    response = await open_()
    response.cycle = response


async def time_out_in_it(world: World, open_: Open) -> None:
    with pytest.raises(httpx.TimeoutException):  # On a busy machine, connecting may take too long as well.
        await world.chunks(await open_())


async def be_cancelled_in_it(world: World, open_: Open) -> None:
    response = await open_()
    with anyio.move_on_after(0.05):
        async for _ in response.aiter_raw():
            await anyio.lowlevel.checkpoint()


WAYS = [
    read_to_the_end,
    close_unread,
    leave_a_with_block,
    leave_a_loop,
    raise_in_a_loop,
    drop_it,
    drop_it_half_read,
    drop_it_in_a_cycle,
    time_out_in_it,
    be_cancelled_in_it,
]
LEFT_TO_THE_COLLECTOR = (drop_it, drop_it_half_read, drop_it_in_a_cycle)


@pytest.mark.no_cover
@pytest.mark.real_time
@pytest.mark.parametrize("kind", ["httpx", "stkai"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning"
)  # trio's advice about abandoned generators
async def test_however_a_stream_is_left_the_next_request_has_a_connection(
    world: World, server: RawServer, way: Any, kind: str
) -> None:
    if way is be_cancelled_in_it and not world.is_async:
        return
    client = _client(world, kind, wire_of(world))
    server.answer = lambda _: (WHOLE if way is read_to_the_end else ENDLESS, True)

    async def open_() -> Any:
        timeout = 0.05 if way is time_out_in_it else 5
        if kind == "stkai":
            return await world.call(client.post_stream, server.url, timeout=timeout)
        return await world.call(
            client.send, client.build_request("POST", server.url, timeout=timeout), stream=True
        )

    for _ in range(3):
        await way(world, open_)
        if way in LEFT_TO_THE_COLLECTOR:
            gc.collect()
    server.answer = lambda _: (WHOLE, True)
    assert await _get(world, client, server.url) == b"body"
    await world.close(client)
    await world.until(lambda: server.open == 0)


@pytest.mark.parametrize("kind", ["httpx", "stkai"])
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_stream_that_breaks_returns_its_connection(
    world: World, server: RawServer, kind: str
) -> None:
    client = _client(world, kind, wire_of(world))
    server.answer = lambda number: (ENDLESS, False) if number < 4 else (WHOLE, True)
    for _ in range(3):
        request: Any = httpx.Request("POST", server.url)
        if kind == "stkai":
            response = await world.call(client.post_stream, server.url)
        else:
            response = await world.call(client.send, request, stream=True)
        with pytest.raises(httpx.RemoteProtocolError):
            await world.chunks(response)
    assert await _get(world, client, server.url) == b"body"
    await world.close(client)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["httpx", "stkai"])
async def test_wherever_a_server_closes_the_next_request_has_a_connection(
    world: World, server: RawServer, kind: str
) -> None:
    client = _client(world, kind, wire_of(world))
    answer = ENDLESS + b"0\r\n\r\n"
    for end in range(len(answer) + 1):
        server.answer = lambda _, end=end: (answer[:end], False)  # type: ignore[misc]
        if end < len(answer):
            with pytest.raises(httpx.TransportError):
                await _get(world, client, server.url)
        else:
            assert await _get(world, client, server.url) == b"body"
    await world.until(lambda: server.open == 0)  # A request that crosses the server's close cannot be saved.
    server.answer = lambda _: (WHOLE, True)
    assert await _get(world, client, server.url) == b"body"
    await world.close(client)
    await world.until(lambda: server.open == 0)


ANOTHER = WHOLE.replace(b"body", b"evil")
"""An answer that nobody has asked for."""

LONGER = {
    "with a length": WHOLE,
    "in chunks": ENDLESS + b"0\r\n\r\n",
    "without a body": b"HTTP/1.1 204 No Content\r\nContent-Length: %d\r\n\r\n" % len(ANOTHER),
}


@pytest.mark.parametrize("answer", LONGER.values(), ids=LONGER)
async def test_what_arrives_behind_an_answer_is_not_taken_for_the_next_one(
    world: World, server: RawServer, answer: bytes
) -> None:
    config = HttpConfig(verify=False)
    client = _client(world, "httpx", world.pick(DefaultWire, AsyncDefaultWire)(config))
    server.answer = lambda number: (answer + ANOTHER if number % 2 else WHOLE, True)
    for _ in range(2):
        assert await _get(world, client, server.url) in {b"body", b""}
        assert await _get(world, client, server.url) == b"body"
    await world.close(client)
    await world.until(lambda: server.open == 0)


@pytest.mark.no_cover
@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_call_cancelled_at_any_point_leaves_at_most_one_connection(
    world: World, server: RawServer
) -> None:
    client = _client(world, "stkai", wire_of(world))
    turns = [*range(40), *range(40, 400, 20)]
    for number in turns:
        async with anyio.create_task_group() as group:
            group.start_soon(_get, world, client, server.url)
            for _ in range(number):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert await _get(world, client, server.url) == b"body"
        await world.until(lambda: server.open <= 1)
    await world.close(client)
    await world.until(lambda: server.open == 0)


async def test_connections_that_a_server_closes_while_they_are_idle_cost_no_request(
    world: World, server: RawServer
) -> None:
    client = _client(world, "httpx", wire_of(world, most=3))
    for number in range(1, 11):
        assert await _get(world, client, server.url) == b"body"
        assert server.connections == number
        server.hang_up()
    await world.close(client)


class PieceServer(RawServer):
    """Answers once a body ends with an exclamation mark, and records what it receives at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def _talk(self, client: socket.socket) -> None:
        while piece := client.recv(1_000_000):
            self.pieces.append(piece)
            if piece.endswith(b"!"):
                client.sendall(WHOLE)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What httpcore's connections write, piece by piece."""
    pieces: list[bytes] = []

    def recording(write: Callable[..., Any], stream: Any, buffer: bytes, timeout: float | None) -> Any:
        if buffer:
            pieces.append(buffer)
        return write(stream, buffer, timeout)

    for module, name in (("sync", "SyncStream"), ("anyio", "AnyIOStream"), ("trio", "TrioStream")):
        kind = getattr(import_module(f"httpcore._backends.{module}"), name)
        monkeypatch.setattr(kind, "write", partialmethod(partial(recording, kind.write)))
    return pieces


async def test_on_a_kept_connection_a_body_at_hand_leaves_together_with_its_head(
    world: World, written: list[bytes]
) -> None:
    server = PieceServer()
    with listening(server.serve) as port:
        client = _client(world, "httpx", wire_of(world))
        for body in (b"first!", b"second!", b"0" * 65_535 + b"!", b"0" * 65_536 + b"!", b"last!"):
            response = await world.call(client.post, f"http://127.0.0.1:{port}/", content=body, timeout=5)
            assert response.content == b"body"
        await world.close(client)
    bodies = [piece.partition(b"\r\n\r\n")[2] if piece.startswith(b"POST") else piece for piece in written]
    assert [len(body) for body in bodies] == [0, 6, 7, 65_536, 0, 65_537, 5]


async def test_a_head_does_not_wait_for_a_body_that_is_still_being_made(world: World) -> None:
    server = PieceServer()

    def is_waiting() -> bool:
        return server.pieces[-1].startswith(b"POST") and not server.pieces[-1].endswith(b"!")

    def body() -> Iterator[bytes]:
        world.run(world.until(is_waiting))
        yield b"!"

    async def async_body() -> AsyncIterator[bytes]:
        await world.until(is_waiting)
        yield b"!"

    with listening(server.serve) as port:
        client = _client(world, "httpx", wire_of(world))
        for content, length in (
            (b"first!", 6),
            (world.pick(body, async_body)(), 1),
            (b"x" * 99_999 + b"!", 100_000),
        ):
            headers = {"Content-Length": str(length)}
            response = await world.call(
                client.post, f"http://127.0.0.1:{port}/", content=content, headers=headers, timeout=5
            )
            assert response.content == b"body"
        await world.close(client)


def _client(world: World, kind: str, wire: Any) -> Any:
    if kind == "httpx":
        return world.client(wire)
    return world.pick(stkai.HttpClient, stkai.AsyncHttpClient)(wire)


async def _get(world: World, client: Any, url: str) -> bytes:
    response = await world.call(client.get, url, timeout=5)
    content: bytes = response.content
    return content


# Event loops that end


@pytest.mark.no_cover
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("held", [False, True], ids=["idle", "with a stream in use"])
def test_one_client_serves_successive_event_loops(server: RawServer, held: bool) -> None:
    client = stkai.AsyncHttpClient(AsyncDefaultWire(HttpConfig(verify=False)))
    streams: list[Any] = []

    async def use(*, close: bool = False) -> None:
        for stream in streams[:-1]:
            await stream.aclose()
        for _ in range(3):
            assert (await client.post(server.url)).content == b"body"
        if held:
            streams.append(await client.post_stream(server.url))
        if close:
            await client.aclose()

    for number in range(6):
        World("trio" if number % 3 == 2 else "asyncio").run(use(close=number == 5))
        gc.collect()
    streams.clear()
    gc.collect()
    assert server.connections == 6
    wait_until(lambda: server.open == 0)


@pytest.mark.parametrize("number", [1, 2])
def test_connections_of_a_loop_that_ends_without_a_goodbye_are_dropped(
    server: RawServer, number: int
) -> None:
    """asyncio then warns about the sockets, which nobody could close; the call itself works."""
    client = stkai.AsyncHttpClient(AsyncDefaultWire(HttpConfig(verify=False)))

    async def use() -> bytes:
        return (await client.post(server.url)).content

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(1 + number):
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(use()) == b"body"
            loop.close()
        assert asyncio.run(use()) == b"body"
        del loop
        gc.collect()
    assert server.connections == 2 + number


def test_two_concurrent_event_loops_do_not_interfere(server: RawServer) -> None:
    client = stkai.AsyncHttpClient(AsyncDefaultWire(HttpConfig(verify=False)))
    answers: list[bytes] = []
    both = threading.Barrier(2, timeout=10)

    async def use() -> None:
        answers.extend([(await client.post(server.url)).content for _ in range(20)])
        both.wait()
        answers.append((await client.post(server.url)).content)

    together(*[partial(World(name).run, use()) for name in ("asyncio", "trio")])
    assert answers == [b"body"] * 42
    assert server.connections == 2
    wait_until(lambda: server.open == 0)


@pytest.mark.no_cover
def test_many_event_loops_may_begin_and_end_at_the_same_moment() -> None:
    made: list[object] = []

    class Wire(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200)

    def make() -> Wire:
        made.append(1)
        return Wire()

    transport = WirePerLoop(make)

    async def call() -> None:
        await transport.handle_async_request(httpx.Request("GET", "http://a/"))

    def run() -> None:
        for _ in range(10):
            asyncio.run(call())

    together(*[run] * 24, switching=1e-6)
    assert len(made) == 24 * 10


@pytest.mark.real_time
@pytest.mark.worlds("sync", "asyncio")
async def test_a_request_on_an_open_connection_is_one_write_and_one_look_at_whether_it_is_still_open(
    world: World, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: Any = vars(httpcore)["_backends"]
    kind = world.pick(backends.sync.SyncStream, backends.anyio.AnyIOStream)
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def method(self: Any, *args: Any, **options: Any) -> Any:
            if args[0]:  # An empty write sends nothing.
                done.append(name if name == "write" else args[0])
            return real(self, *args, **options)

        return method

    for name in ("write", "get_extra_info"):
        monkeypatch.setattr(kind, name, counted(name, getattr(kind, name)))
    wire = wire_of(world)
    for _ in range(2):
        done.clear()
        await world.read(await world.send(wire, httpx.Request("POST", server.url, content=b"body")))
    assert sorted(done) == ["is_readable", "write"]
    await world.close(wire)
