"""Connections side by side: the limits hold, connections are used again, and who leaves leaves nothing behind."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from stkai import HttpConfig, SystemClock, _forks
from stkai._families import family_of_wire
from stkai._wire.default import default_async_wire, default_wire
from stkai._wire.pool import AsyncSideBySide, SideBySide, _Waiter
from stkai.testing import QuotaServer

from ..support.world import World

URL = "http://a.example.com/"
NO_PATIENCE: dict[str, object] = {"timeout": {"pool": 0.001}}


class Wire(httpx.BaseTransport):
    """Notes what it is asked; never two at a time."""

    def __init__(self, made: list["Wire"]) -> None:
        made.append(self)
        self.hosts: list[str] = []
        self.closed = 0
        self.error: Exception | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.hosts.append(request.url.host)
        if self.error is not None:
            raise self.error
        return httpx.Response(200, stream=httpx.ByteStream(b"body"))

    def close(self) -> None:
        self.closed += 1


class AsyncWire(httpx.AsyncBaseTransport):
    def __init__(self, made: list["AsyncWire"]) -> None:
        made.append(self)
        self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(b"body"))

    async def aclose(self) -> None:
        self.closed += 1


def limits(most: int | None, idle: int | None = None) -> httpx.Limits:
    return httpx.Limits(max_connections=most, max_keepalive_connections=idle)


def get(url: str = URL, extensions: dict[str, object] | None = None) -> httpx.Request:
    return httpx.Request("GET", url, extensions=extensions)


@pytest.fixture
def made() -> list[Wire]:
    return []


@pytest.fixture
def async_made() -> list[AsyncWire]:
    return []


def test_requests_one_after_the_other_use_one_wire(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(10, 10))
    for _ in range(5):
        side.handle_request(get()).close()
    assert len(made) == 1


def test_requests_at_once_use_a_wire_each_and_the_last_used_is_used_first(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(10, 10))
    first, second = side.handle_request(get()), side.handle_request(get())
    first.close()
    second.close()
    side.handle_request(get()).close()
    assert [len(wire.hosts) for wire in made] == [1, 2]


def test_a_wire_that_leads_to_the_host_is_preferred(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(10, 10))
    for host in ("a", "b", "a", "b"):
        side.handle_request(get(f"http://{host}/")).close()
    assert [wire.hosts for wire in made] == [["a", "a"], ["b", "b"]]


def test_at_the_limit_an_idle_wire_serves_another_host(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    side.handle_request(get("http://a/")).close()
    side.handle_request(get("http://b/")).close()
    assert [wire.hosts for wire in made] == [["a", "b"]]


def test_idle_wires_beyond_the_limit_are_closed_the_oldest_first(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(10, 1))
    responses = [side.handle_request(get()) for _ in range(3)]
    for response in responses:
        response.close()
    assert [wire.closed for wire in made] == [1, 1, 0]


def test_a_response_that_is_closed_twice_gives_its_wire_back_once(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    response = side.handle_request(get())
    response.close()
    response.stream.close()  # type: ignore[union-attr]
    side.handle_request(get())
    with pytest.raises(httpx.PoolTimeout):
        side.handle_request(get(extensions=NO_PATIENCE))


def test_a_failed_request_gives_its_wire_back(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    side.handle_request(get()).close()
    made[0].error = httpx.ConnectError("no")
    with pytest.raises(httpx.ConnectError):
        side.handle_request(get())
    made[0].error = None
    assert side.handle_request(get(extensions=NO_PATIENCE)).read() == b"body"


def test_who_finds_all_in_use_gets_the_first_that_comes_back(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    response = side.handle_request(get())
    served: list[bytes] = []
    thread = threading.Thread(target=lambda: served.append(side.handle_request(get()).read()))
    thread.start()
    while not side._shelf._waiting:
        pass
    response.close()
    thread.join()
    assert served == [b"body"]
    assert len(made) == 1


def test_a_wait_longer_than_the_pool_timeout_is_a_pool_timeout_and_leaves_the_line(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    response = side.handle_request(get())
    with pytest.raises(httpx.PoolTimeout, match="in use"):
        side.handle_request(get(extensions=NO_PATIENCE))
    response.close()
    side.handle_request(get(extensions=NO_PATIENCE)).close()


@pytest.mark.parametrize("given", [True, False])
def test_an_interrupted_waiter_leaves_the_line_and_passes_on_what_it_was_given(
    made: list[Wire], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    held = side.handle_request(get())

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if given:
                held.close()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            side.handle_request(get())
    held.close()
    side.handle_request(get(extensions=NO_PATIENCE)).close()


def test_a_wire_that_comes_back_just_before_somebody_stands_in_line_is_theirs(
    made: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    held, wait = side.handle_request(get()), side._wait

    def comes_back(*arguments: Any) -> Any:
        held.close()
        return wait(*arguments)

    monkeypatch.setattr(side, "_wait", comes_back)
    side.handle_request(get(extensions=NO_PATIENCE)).close()
    assert len(made) == 1


def test_closing_closes_all_wires(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(None))
    side.handle_request(get()).close()
    side.handle_request(get())
    side.close()
    assert [wire.closed for wire in made] == [1] * len(made)


def test_the_body_passes_as_it_comes(made: list[Wire]) -> None:
    class Streaming(Wire):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            def body() -> Iterator[bytes]:
                yield b"a"
                yield b"b"

            return httpx.Response(200, content=body())

    side = SideBySide(lambda: Streaming(made), limits(1, 1))
    assert list(side.handle_request(get()).iter_raw()) == [b"a", b"b"]
    side.handle_request(get(extensions=NO_PATIENCE)).close()


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_async_requests_use_wires_again_and_close_what_is_too_many(async_made: list[AsyncWire]) -> None:
    side = AsyncSideBySide(lambda: AsyncWire(async_made), limits(10, 1))
    responses = [await side.handle_async_request(get()) for _ in range(3)]
    for response in responses:
        await response.aread()
    await (await side.handle_async_request(get())).aclose()
    await side.aclose()
    assert [wire.closed for wire in async_made] == [1, 1, 1]


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_async_waiters_are_served_in_order(async_made: list[AsyncWire]) -> None:
    side = AsyncSideBySide(lambda: AsyncWire(async_made), limits(1, 1))
    held = await side.handle_async_request(get())
    served: list[int] = []

    async def send(number: int) -> None:
        response = await side.handle_async_request(get())
        served.append(number)
        await response.aclose()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(send, number)
            await anyio.wait_all_tasks_blocked()
        await held.aclose()
    assert served == [0, 1, 2, 3, 4]
    assert len(async_made) == 1


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_async_a_wait_longer_than_the_pool_timeout_is_a_pool_timeout(
    async_made: list[AsyncWire],
) -> None:
    side = AsyncSideBySide(lambda: AsyncWire(async_made), limits(1, 1))
    held = await side.handle_async_request(get())
    with pytest.raises(httpx.PoolTimeout):
        await side.handle_async_request(get(extensions=NO_PATIENCE))
    await held.aclose()
    await (await side.handle_async_request(get(extensions=NO_PATIENCE))).aclose()


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("given", [True, False])
async def test_a_cancelled_waiter_leaves_the_line_and_passes_on_what_it_was_given(
    async_made: list[AsyncWire], given: bool
) -> None:
    side = AsyncSideBySide(lambda: AsyncWire(async_made), limits(1, 1))
    held = await side.handle_async_request(get())

    async def send() -> None:
        await (await side.handle_async_request(get())).aclose()

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        if given:
            await held.aclose()  # The waiter, cancelled, has not run yet, and is the first in line.
    await held.aclose()
    await (await side.handle_async_request(get(extensions=NO_PATIENCE))).aclose()


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_an_async_body_passes_as_it_comes(async_made: list[AsyncWire]) -> None:
    class Streaming(AsyncWire):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            async def body() -> AsyncIterator[bytes]:
                yield b"a"
                yield b"b"

            return httpx.Response(200, content=body())

    side = AsyncSideBySide(lambda: Streaming(async_made), limits(1, 1))
    response = await side.handle_async_request(get())
    assert [chunk async for chunk in response.aiter_raw()] == [b"a", b"b"]
    await response.stream.aclose()  # type: ignore[union-attr]
    await (await side.handle_async_request(get(extensions=NO_PATIENCE))).aclose()


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_a_body_is_closed_to_its_end_also_by_somebody_who_is_cancelled(
    async_made: list[AsyncWire],
) -> None:
    closed: list[bool] = []

    class Body(httpx.AsyncByteStream):
        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    class Streaming(AsyncWire):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Body())

    side = AsyncSideBySide(lambda: Streaming(async_made), limits(1, 1))
    with anyio.CancelScope() as scope:
        response = await side.handle_async_request(get())
        scope.cancel()
        await response.aclose()
    assert closed == [True]


# Expiry, forks and packages


def test_a_wire_unused_for_too_long_is_closed_when_another_comes_back(
    made: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: now[0])
    side = SideBySide(lambda: Wire(made), httpx.Limits(keepalive_expiry=5.0))
    for response in [side.handle_request(get()) for _ in range(2)]:
        response.close()
    for now[0] in (5.0, 5.1):
        assert [wire.closed for wire in made] == [0, 0]
        side.handle_request(get()).close()
    assert [wire.closed for wire in made] == [1, 0]


def fork(side: object) -> None:
    """What happens to it in a forked child."""
    _forks._renewals[side](side)


def test_a_forked_child_has_no_wire_of_its_parent_no_lock_and_nobody_in_line(made: list[Wire]) -> None:
    side = SideBySide(lambda: Wire(made), limits(1, 1))
    held = side.handle_request(get())
    side._lock.acquire()
    side._shelf.join(_Waiter(pytest.fail))
    fork(side)
    side.handle_request(get(extensions=NO_PATIENCE)).close()
    held.close()
    assert [wire.closed for wire in made] == [1, 0], "the parent's wire is not kept"
    side.handle_request(get()).close()
    assert [len(wire.hosts) for wire in made] == [1, 2]


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.usefixtures("world")
async def test_an_async_wire_starts_anew_in_a_forked_child_as_well(async_made: list[AsyncWire]) -> None:
    side = AsyncSideBySide(lambda: AsyncWire(async_made), limits(1, 1))
    held = await side.handle_async_request(get())
    side._shelf.join(_Waiter(pytest.fail))
    fork(side)
    await (await side.handle_async_request(get(extensions=NO_PATIENCE))).aclose()
    await held.aclose()
    assert [wire.closed for wire in async_made] == [1, 0]


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
async def test_bodies_and_timeouts_are_those_of_the_package(world: World, name: str) -> None:
    module: Any = pytest.importorskip(name)
    config = HttpConfig(max_connections=1)
    with QuotaServer() as server:
        wire: Any = world.pick(default_wire, default_async_wire)(config, module)
        assert family_of_wire(wire) == module
        client = world.pick(module.Client, module.AsyncClient)(transport=wire)
        request = client.build_request("GET", server.url + "/echo")
        held = await world.call(client.send, request, stream=True)
        assert isinstance(held.stream, world.pick(module.SyncByteStream, module.AsyncByteStream))
        with pytest.raises(module.PoolTimeout) as caught:
            await world.call(client.get, server.url + "/echo", timeout=0.01)
        assert isinstance(caught.value.request, module.Request)
        await world.close(held)
        assert (await world.call(client.get, server.url + "/echo")).status_code == 200
        await world.close(client)


async def test_nothing_stays_open_when_the_wire_is_closed(world: World) -> None:
    with QuotaServer() as server:
        wire: Any = world.pick(default_wire, default_async_wire)()
        client = world.client(wire)
        held = [
            await world.call(client.send, client.build_request("GET", server.url + "/echo"), stream=True)
            for _ in range(3)
        ]
        for response in held[:2]:
            await world.close(response)
        await world.close(client)
        assert len(wire._shelf.wires) == 3
        assert [one._pool.connections for one in wire._shelf.wires] == [[]] * 3
        await world.close(held[2])
