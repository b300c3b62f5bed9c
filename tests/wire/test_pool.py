"""Connections side by side: the limits hold, connections are reused, and nothing is left behind."""

import gc
import threading
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from stkai import HttpConfig, SystemClock, _process
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai._wire.pool_queues import WaitingLoans
from stkai._wire.pool_state import Loan
from stkai.testing import QuotaServer
from stkai.transports._call import RESERVED

from ..support.world import NAMES, World
from .fakes import NO_PATIENCE, Body, Pool

pytestmark = pytest.mark.worlds(*NAMES)

# Which wire is used


async def test_concurrent_requests_use_a_wire_each_and_the_latest_is_reused_first(world: World) -> None:
    pool = Pool(world, 10, 10)
    for response in [await pool.open() for _ in range(2)]:
        await world.read(response)
    await pool.get()
    assert [len(wire.hosts) for wire in pool.made] == [1, 2]


async def test_a_wire_to_the_right_host_is_preferred(world: World) -> None:
    pool = Pool(world, 10, 10)
    for host in ("a", "b", "a", "b"):
        await pool.get(f"http://{host}/")
    assert [wire.hosts for wire in pool.made] == [["a", "a"], ["b", "b"]]


async def test_the_port_and_the_scheme_are_part_of_the_destination(world: World) -> None:
    pool = Pool(world, 10, 10)
    for url in ("http://a/", "http://a:81/", "https://a/", "http://a/"):
        await pool.get(url)
    assert [len(wire.hosts) for wire in pool.made] == [2, 1, 1]


async def test_at_the_limit_an_idle_wire_serves_another_host(world: World) -> None:
    pool = Pool(world, 1, 1)
    await pool.get("http://a/")
    await pool.get("http://b/")
    assert [wire.hosts for wire in pool.made] == [["a", "b"]]


@pytest.mark.no_cover
@pytest.mark.worlds("sync")
async def test_thousands_of_hosts_leave_at_most_the_idle_limit_behind(world: World) -> None:
    pool = Pool(world, 100, 20)
    for number in range(2_000):
        await pool.get(f"http://host-{number}/")
    assert sum(wire.closed for wire in pool.made) == len(pool.made) - 20
    assert len(pool.state.connections) == 20


@pytest.mark.worlds("sync")
async def test_those_that_had_a_wire_before_go_first_and_then_nine_normal_ones_for_each_low_one(
    world: World,
) -> None:
    pool, waiting = Pool(world, 1, 1), WaitingLoans()
    kinds = ["low"] * 2 + ["normal"] * 11 + ["first"] * 4
    loans = [Loan(pool.state, ("http", b"a"), kind) for kind in kinds]
    for loan in loans:
        waiting.add(loan)
    served = []
    while loan := waiting.next(()):
        served.append(loan.priority[0])
        waiting.remove(loan.number)
    assert "".join(served) == "f" * 4 + "n" * 9 + "l" + "n" * 2 + "l"


async def test_a_reserved_wire_serves_only_the_destination_and_the_pool_it_was_reserved_for(
    world: World,
) -> None:
    pool, other = Pool(world, 10, 10), Pool(world, 10, 10)
    request = httpx.Request("GET", "http://a/")
    for used, url in ((pool, "http://a/"), (pool, "http://b/"), (other, "http://a/")):
        reserved = [await world.call(pool.transport.reserve, request)]
        for _ in range(2):  # As two attempts in parallel would: only one may use it.
            await used.get(url, extensions={RESERVED: reserved})
    assert [wire.hosts for wire in pool.made] == [["a", "a"], ["b", "b"]]
    assert [wire.hosts for wire in other.made] == [["a", "a"]]


# Which wire is closed


async def test_idle_wires_beyond_the_limit_are_closed_oldest_first(world: World) -> None:
    pool = Pool(world, 10, 1)
    for response in [await pool.open() for _ in range(3)]:
        await world.read(response)
    assert [wire.closed for wire in pool.made] == [1, 1, 0]


async def test_a_wire_unused_for_too_long_is_closed_when_another_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: now[0])
    pool = Pool(world, keepalive_expiry=5.0)
    for response in [await pool.open() for _ in range(2)]:
        await world.read(response)
    for now[0] in (5.0, 5.1):
        assert [wire.closed for wire in pool.made] == [0, 0]
        await pool.get()
    assert [wire.closed for wire in pool.made] == [1, 0]


ENDS: dict[str, Any] = {
    "Connection: close": lambda _: httpx.Response(200, headers={"Connection": "Close"}, stream=Body()),
    "among others": lambda _: httpx.Response(200, headers={"Connection": "TE, close"}, stream=Body()),
    "HTTP/1.0": lambda _: httpx.Response(200, extensions={"http_version": b"HTTP/1.0"}, stream=Body()),
    "101": lambda _: httpx.Response(101, stream=Body()),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_connection_that_its_response_closed_evicts_no_live_one(world: World, end: str) -> None:
    pool = Pool(world, 10, 1)
    await pool.get("http://live/")
    pool.answer = ENDS[end]
    await pool.get("http://ended/")
    assert [wire.closed for wire in pool.made] == [0, 1]
    assert pool.state.connections == pool.made[:1]


async def test_refused_connections_evict_no_live_one(world: World) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    pool = Pool(world, 3, 1)
    await pool.get("http://live/")
    pool.answer = refuse
    for number in range(5):
        with pytest.raises(httpx.ConnectError):
            await pool.get(f"http://refused-{number}/")
    assert pool.state.connections == pool.made[:1]
    assert [wire.closed for wire in pool.made] == [0] + [1] * 5


# A wire is returned however its request ends


async def test_a_response_that_is_closed_twice_returns_its_wire_once(world: World) -> None:
    pool = Pool(world, 1, 1)
    response = await pool.open()
    await world.close(response)
    await world.close(response.stream)
    held = await pool.open()
    with pytest.raises(httpx.PoolTimeout):
        await pool.hurry()
    await world.close(held)


async def test_a_response_closed_by_two_threads_does_not_affect_the_next_request(world: World) -> None:
    pool = Pool(world, 1, 1)
    first = await pool.open()
    loan = first.stream._ended.args[0]  # type: ignore[union-attr]
    await world.read(first)
    second = await pool.open()
    loan._over = False  # As the other thread saw it just before.
    loan.end(0.0)
    assert pool.made[0].closed == 0
    assert await world.read(second) == b"body"


async def test_a_response_not_read_to_its_end_loses_its_connection_but_frees_its_place(world: World) -> None:
    pool = Pool(world, 1, 1)
    await world.close(await pool.open())
    assert await pool.hurry() == b"body"
    assert [wire.closed for wire in pool.made] == [1, 0]


async def test_a_body_that_breaks_returns_its_wire_even_if_it_is_never_closed(world: World) -> None:
    pool = Pool(world, 1, 1)
    body = Body(b"bo", httpx.ReadError("broken"))
    pool.answer = lambda _: httpx.Response(200, stream=body)
    response = await pool.open()
    with pytest.raises(httpx.ReadError):
        await world.chunks(response)
    pool.answer = None
    assert await pool.hurry() == b"body"
    assert body.closed


async def test_a_body_that_fails_to_close_returns_its_wire(world: World) -> None:
    class Unclosable(Body):
        def close(self) -> None:
            raise httpx.CloseError("no")

    pool = Pool(world, 1, 1)
    pool.answer = lambda _: httpx.Response(200, stream=Unclosable())
    response = await pool.open()
    with pytest.raises(httpx.CloseError):
        await world.read(response)
    pool.answer = None
    assert await pool.hurry() == b"body"
    assert [wire.closed for wire in pool.made] == [1, 0]


async def test_an_unreferenced_response_returns_its_wire(world: World) -> None:
    pool = Pool(world, 1, 1)
    await pool.open()
    gc.collect()
    await _tick(world)
    assert await pool.hurry() == b"body"
    assert [wire.closed for wire in pool.made] == [1, 0]


async def test_a_response_dropped_in_another_thread_gives_its_wire_to_a_waiter(world: World) -> None:
    pool = Pool(world, 1, 1)
    held = [await pool.open()]

    def drop() -> None:
        while not pool.state._waiting:
            pass
        held.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    assert await pool.get() == b"body"
    thread.join()


async def _tick(world: World) -> None:
    """Let the loop run its pending callbacks."""
    if world.is_async:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()


# Waiting


async def test_a_request_that_finds_all_wires_in_use_gets_the_first_returned(world: World) -> None:
    pool = Pool(world, 1, 1)
    held = await pool.open()

    async def release() -> bytes:
        while not pool.state._waiting:
            await _tick(world)
        return await world.read(held)

    assert list(await world.gather(pool.get, release)) == [b"body"] * 2
    assert len(pool.made) == 1


async def test_a_failed_request_makes_room_for_a_waiter(world: World) -> None:
    pool = Pool(world, 1, 1)
    pool.answer = lambda _: httpx.Response(200, stream=Body(httpx.ReadError("broken")))
    held = await pool.open()
    pool.answer = None

    async def fail() -> bytes:
        while not pool.state._waiting:
            await _tick(world)
        with pytest.raises(httpx.ReadError):
            await world.read(held)
        return b""

    assert list(await world.gather(pool.get, fail)) == [b"body", b""]


@pytest.mark.worlds("asyncio", "trio")
async def test_waiters_are_served_in_order(world: World) -> None:
    pool = Pool(world, 1, 1)
    held = await pool.open()
    served: list[int] = []

    async def send(number: int) -> None:
        response = await pool.open()
        served.append(number)
        await world.read(response)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(send, number)
            await anyio.wait_all_tasks_blocked()
        await world.read(held)
    assert served == [0, 1, 2, 3, 4]
    assert len(pool.made) == 1


def test_threads_are_served_in_order() -> None:
    world = World("sync")
    pool = Pool(world, 1, 1)
    held = world.run(pool.open())
    served: list[int] = []

    def send(number: int) -> None:
        response = world.run(pool.open())
        served.append(number)
        response.read()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        while len(pool.state._waiting) < number:
            pass
    held.read()
    for thread in threads:
        thread.join()
    assert served == list(range(20))


async def test_a_wait_longer_than_the_pool_timeout_is_a_pool_timeout_and_leaves_the_line(
    world: World,
) -> None:
    pool = Pool(world, 1, 1)
    response = await pool.open()
    with pytest.raises(httpx.PoolTimeout, match=r"in use for 0\.001 s.*STKAI_HTTP_MAX_CONNECTIONS"):
        await pool.hurry()
    assert not pool.state._waiting
    await world.close(response)
    assert await pool.hurry() == b"body"


async def test_the_error_of_a_wait_that_a_deadline_ended_says_how_long_it_was(world: World) -> None:
    pool = Pool(world, 1, 1)
    response = await pool.open()
    request = httpx.Request("GET", "https://a.example/", extensions={"timeout": {"pool": 30}})
    with pytest.raises(httpx.PoolTimeout, match=r"in use for 0\.001 s"):
        await world.call(pool.state.reserve, request, 0.001)
    await world.close(response)


@pytest.mark.parametrize("patience", [0, -1, 0.0])
async def test_a_pool_timeout_of_zero_does_not_wait(world: World, patience: float) -> None:
    pool = Pool(world, 1, 1)
    await pool.get()
    held = await pool.open(extensions={"timeout": {"pool": patience}})
    with pytest.raises(httpx.PoolTimeout):
        await pool.open(extensions={"timeout": {"pool": patience}})
    await world.close(held)


@pytest.mark.parametrize("given", [True, False])
def test_an_interrupted_waiter_leaves_the_line_and_passes_its_wire_on(
    given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("sync")
    pool = Pool(world, 1, 1)
    held = world.run(pool.open())
    real = threading.Lock

    class Interrupted:
        def __init__(self) -> None:
            self._lock = real()
            self.release = self._lock.release

        def acquire(self, timeout: float | None = None) -> bool:
            if timeout is None:
                return self._lock.acquire()
            patch.undo()
            if given:
                held.read()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.run(pool.get())
    assert not pool.state._waiting
    held.close()
    assert world.run(pool.hurry()) == b"body"


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("given", [True, False])
async def test_a_cancelled_waiter_leaves_the_line_and_passes_its_wire_on(world: World, given: bool) -> None:
    pool = Pool(world, 1, 1)
    held = await pool.open()
    async with anyio.create_task_group() as group:
        group.start_soon(pool.get)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        if given:
            await world.read(held)  # The cancelled waiter has not run yet, and is first in line.
    assert not pool.state._waiting
    await world.close(held)
    assert await pool.hurry() == b"body"


async def test_a_wire_returned_as_a_waiter_begins_to_wait_goes_to_that_waiter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(world, 1, 1)
    held, wait = await pool.open(), pool.transport._wait

    def comes_back(*arguments: Any) -> Any:
        if not world.is_async:
            held.read()
            return wait(*arguments)

        async def asynchronously() -> None:
            await held.aread()
            await wait(*arguments)

        return asynchronously()

    monkeypatch.setattr(pool.transport, "_wait", comes_back)
    assert await pool.hurry() == b"body"
    assert len(pool.made) == 1


# Bodies


async def test_the_body_is_passed_on_as_it_arrives(world: World) -> None:
    pool = Pool(world, 1, 1)
    response = await pool.open()
    assert await world.chunks(response) == [b"bo", b"dy"]
    assert await pool.hurry() == b"body"


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_cancelled_while_closing_a_body_leaves_no_connection_open(world: World) -> None:
    class Slow(Body):
        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()

    pool = Pool(world, 1, 1)
    pool.answer = lambda _: httpx.Response(200, stream=Slow())
    with anyio.CancelScope() as scope:
        response = await pool.open()
        scope.cancel()
        await response.aread()
    assert [wire.closed for wire in pool.made] == [1]
    assert await pool.hurry() == b"body"


# Closing


async def test_closing_closes_all_wires_once_including_those_in_use(world: World) -> None:
    pool = Pool(world)
    held = await pool.open()
    await pool.get()
    for _ in range(2):
        await world.close(pool.transport)
    assert [wire.closed for wire in pool.made] == [1, 1]
    await world.close(held)
    assert pool.state.connections == []


async def test_a_closed_pool_refuses_requests(world: World) -> None:
    pool = Pool(world)
    await world.close(pool.transport)
    with pytest.raises(RuntimeError, match="closed"):
        await pool.get()
    assert pool.made == []


async def test_a_waiter_gets_an_error_when_the_pool_is_closed(world: World) -> None:
    pool = Pool(world, 1, 1)
    held = await pool.open()

    async def close() -> bytes:
        while not pool.state._waiting:
            await _tick(world)
        await world.close(pool.transport)
        return b""

    waiting, closing = await world.outcomes(pool.get, close)
    assert isinstance(waiting, RuntimeError)
    assert "closed" in str(waiting)
    assert closing == b""
    await world.close(held)
    assert pool.state.connections == []


# Forks and packages


async def test_a_forked_child_has_none_of_its_parents_wires_locks_or_waiters(world: World) -> None:
    pool = Pool(world, 1, 1)
    held = await pool.open()
    with pytest.raises(httpx.PoolTimeout):
        await pool.open(extensions=NO_PATIENCE)
    lock = pool.state._lock
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    _process._renewals[pool.state](pool.state)
    await pool.hurry()
    await world.read(held)
    assert [wire.closed for wire in pool.made] == [1, 0], "the parent's wire is not kept"
    await pool.get()
    assert [len(wire.hosts) for wire in pool.made] == [1, 2]


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
async def test_bodies_and_timeouts_are_those_of_the_package(world: World, name: str) -> None:
    module: Any = pytest.importorskip(name)
    config = HttpConfig(max_connections=1)
    with QuotaServer() as server:
        wire: Any = world.pick(DefaultWire, AsyncDefaultWire)(config)
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
