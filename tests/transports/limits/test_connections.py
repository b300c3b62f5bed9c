"""Permits while all connections are in use: a request takes its permit when it can be sent, and not before."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from aiohttp import web

import stkai
from stkai import AimdLimiter, AuthProvider, HttpConfig, InFlight, PerKey, StackBuilder, TokenBucket
from stkai._event_loops import running_loop
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Layer, auth, limiter

from ...support.servers import serve
from ...support.world import NAMES, World

pytestmark = pytest.mark.worlds(*NAMES)

Thunk = Callable[[], Awaitable[Any]]


class Gate:
    """A server that answers once it is opened; until then, requests wait in it."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.starts_open = False
        self._loop: Any = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._loop is None:
            self._loop, self._answers = asyncio.get_running_loop(), asyncio.Semaphore(0)
        self.paths.append(request.path)
        self.tokens.append(request.headers.get("authorization"))
        if not self.starts_open:
            await self._answers.acquire()
        return web.Response(text="{}")

    def open(self, requests: int = 1000) -> None:
        """Answer so many requests, those that wait first."""
        for _ in range(requests if self._loop is not None else 0):
            self._loop.call_soon_threadsafe(self._answers.release)


@pytest.fixture
def gate() -> Iterator[tuple[str, Gate]]:
    gate = Gate()
    with serve(gate.handle) as url:
        yield url, gate
        gate.open()


class Client:
    """A client with few connections, and what its calls return or raise."""

    def __init__(self, world: World, stack: StackBuilder, connections: int) -> None:
        self.world = world
        make: Any = world.pick(DefaultWire, AsyncDefaultWire)
        self.wire = make(HttpConfig(max_connections=connections))
        kind: Any = world.pick(stkai.HttpClient, stkai.AsyncHttpClient)
        self.client = kind(world.build(stack, self.wire))

    @property
    def queued(self) -> int:
        """How many requests wait for a connection."""
        ((pool,),) = [wires.values() for wires in self.wire._wires.values()]
        return len((pool._by_loop[running_loop()] if self.world.is_async else pool)._waiting)

    async def post(self, url: str, **options: Any) -> Any:
        return await self.world.call(self.client.post, url, {}, **options)

    async def beside(self, body: Thunk, *urls: str, **options: Any) -> list[Any]:
        """The outcomes of posts to these URLs, while the body runs beside them."""
        posts = [partial(self.post, url, **options) for url in urls]
        *outcomes, mine = await self.world.outcomes(*posts, body)
        if isinstance(mine, Exception):
            raise mine
        return outcomes


@asynccontextmanager
async def client_of(
    world: World, *limits: Any, clock: Any = None, connections: int = 2
) -> AsyncIterator[Client]:
    layers = [Layer(f"limiter {number}", *_both(limit)) for number, limit in enumerate(limits)]
    client = Client(world, StackBuilder(layers, clock=clock), connections)
    try:
        yield client
    finally:
        assert client.wire.full_pools == set()
        await world.close(client.client)


def by_path(**limits: Any) -> PerKey:
    """The named limits, for the paths of these names; many requests per second for others."""
    return PerKey(
        lambda request: request.url.path, lambda path: limits.get(path[1:]) or TokenBucket(100, 1.0)
    )


def _both(limit: Any) -> tuple[Any, Any]:
    layer = limiter(limit)
    return layer.sync, layer.asynchronous


@pytest.mark.parametrize(
    "limits",
    [
        lambda _: [TokenBucket(2, 10.0)],
        lambda _: [[TokenBucket(2, 10.0), InFlight(8)]],
        lambda _: [TokenBucket(2, 10.0), TokenBucket(8, 10.0)],
    ],
    ids=["one limit", "a list", "two layers"],
)
async def test_what_waits_for_a_connection_does_not_burst_once_the_server_answers_again(
    limits: Callable[[Any], list[Any]], world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    clock = FakeClock(autojump=False)
    async with client_of(world, *limits(clock), clock=clock) as client:

        async def stall() -> None:
            await world.until(lambda: len(server.paths) == 2 and clock.sleepers == 6)
            for _ in range(3):  # Each time, two more permits are due.
                clock.advance(10.0)
            server.open()
            for done in (4, 6):
                await world.until(lambda done=done: (len(server.paths), clock.sleepers) == (done, 8 - done))  # type: ignore[misc]
                clock.advance(10.0)

        answers = await client.beside(stall, *[url] * 8)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(server.paths) == 8


@pytest.mark.real_time
async def test_a_call_that_gives_up_while_it_waits_for_a_connection_takes_no_permit(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    async with client_of(world, TokenBucket(5, 3600.0)) as client:

        async def give_up() -> None:
            await world.until(lambda: len(server.paths) == 2)
            late = await world.outcomes(*[partial(client.post, url, deadline=0.1)] * 3)
            assert {type(outcome) for outcome in late} == {stkai.DeadlineExceededError}
            if world.is_async:
                with anyio.move_on_after(0.1):
                    await client.post(url)
            timed_out = await world.outcomes(partial(client.post, url, timeout=0.1))
            assert {type(outcome) for outcome in timed_out} == {httpx.PoolTimeout}
            server.open()

        await client.beside(give_up, url, url)
        outcomes = await world.outcomes(*[partial(client.post, url, max_wait_time=0.01)] * 4)
    kinds = sorted(type(outcome).__name__ for outcome in outcomes)
    assert kinds == ["Response"] * 3 + ["TokenAcquisitionTimeoutError"]
    assert len(server.paths) == 5


@pytest.mark.real_time
async def test_a_queue_longer_than_the_pool_timeout_is_no_error_while_connections_become_free(
    world: World,
) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return web.Response(text="{}")

    with serve(answer) as url:
        async with client_of(world, TokenBucket(100, 1.0), connections=1) as client:
            answers = await world.outcomes(*[partial(client.post, url, timeout=0.5)] * 8)
    assert {type(answer) for answer in answers} == {httpx.Response}


async def test_requests_that_wait_long_for_a_permit_leave_the_connections_to_others(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    clock = FakeClock(autojump=False)
    async with client_of(world, by_path(slow=TokenBucket(1, 600.0)), clock=clock) as client:

        async def others() -> None:
            await world.until(lambda: len(server.paths) == 2)
            await client.beside(open_soon, *[f"{url}/slow"] * 3, *[f"{url}/fast"] * 4)

        async def open_soon() -> None:
            server.open()
            await world.until(lambda: server.paths.count("/fast") == 6 and clock.sleepers == 2)
            assert server.paths.count("/slow") == 1
            for done in (2, 3):
                clock.advance(600.0)
                await world.until(lambda done=done: server.paths.count("/slow") == done)  # type: ignore[misc]

        await client.beside(others, *[f"{url}/fast"] * 2)
    assert sorted(server.paths) == ["/fast"] * 6 + ["/slow"] * 3


async def test_a_request_that_left_its_connection_to_others_gets_the_next_one_when_its_permit_is_due(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    clock = FakeClock(autojump=False)
    async with client_of(world, by_path(slow=TokenBucket(1, 600.0)), clock=clock, connections=1) as client:

        async def slow_ones() -> None:
            await world.until(lambda: len(server.paths) == 1)
            answers = await client.beside(fast_ones, *[f"{url}/slow"] * 2)
            # While it waits for its connection, it does not wait for its permit.
            queued = sorted(stkai.record(answer).queued for answer in answers)
            assert queued == pytest.approx([0.0, 599.98])

        async def fast_ones() -> None:
            await world.until(lambda: client.queued == 2)
            await client.beside(answer, *[f"{url}/fast"] * 4)

        async def answer() -> None:
            await world.until(lambda: client.queued == 6)
            server.open(2)
            await world.until(lambda: len(server.paths) == 3 and client.queued == 3)
            clock.advance(599.97)
            await world.until(lambda: client.queued == 4)
            clock.advance(0.02)
            server.open()
            await world.until(lambda: client.queued == 3 and clock.sleepers == 1)
            clock.advance(0.01)

        await client.beside(slow_ones, f"{url}/fast")
    assert server.paths == ["/fast", "/slow", "/fast", "/slow", "/fast", "/fast", "/fast"]


@pytest.mark.real_time
async def test_requests_of_low_priority_leave_the_connections_to_normal_ones(
    world: World, gate: tuple[str, Gate]
) -> None:
    """All but every tenth, so that they get their turn as well."""
    url, server = gate
    async with client_of(world, TokenBucket(1000, 1.0), connections=1) as client:

        async def normal() -> None:
            await world.until(lambda: len(server.paths) == 1 and client.queued == 3)
            await client.beside(open_soon, *[f"{url}/normal"] * 12)

        async def open_soon() -> None:
            await world.until(lambda: client.queued == 15)
            server.open()

        await client.beside(normal, *[f"{url}/low"] * 4, priority="low")
    order = "".join(path[1] for path in server.paths)
    assert order == "l" + "n" * 9 + "l" + "n" * 3 + "l" * 2


async def test_a_wait_in_a_limiter_further_inside_leaves_the_connection_to_others(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    clock = FakeClock(autojump=False)
    async with client_of(
        world, TokenBucket(100, 1.0), by_path(slow=TokenBucket(1, 600.0)), clock=clock
    ) as client:

        async def others() -> None:
            await world.until(lambda: len(server.paths) == 2)
            await client.beside(open_soon, *[f"{url}/slow"] * 3, *[f"{url}/fast"] * 4)

        async def open_soon() -> None:
            server.open()
            await world.until(lambda: server.paths.count("/fast") == 5 and clock.sleepers == 3)
            for done in (2, 3, 4):
                clock.advance(600.0)
                await world.until(lambda done=done: server.paths.count("/slow") == done)  # type: ignore[misc]

        await client.beside(others, f"{url}/fast", f"{url}/slow")
    assert sorted(server.paths) == ["/fast"] * 5 + ["/slow"] * 4


@pytest.mark.real_time
async def test_a_request_that_is_refused_further_inside_keeps_no_connection(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    server.starts_open = True
    strict = TokenBucket(1, 3600.0, max_wait_time=0.01)
    async with client_of(world, TokenBucket(100, 1.0), by_path(strict=strict)) as client:
        await client.post(f"{url}/strict")
        open_ones = [await world.call(client.client.post_stream, url, {}) for _ in range(2)]

        async def end() -> None:
            await world.until(lambda: client.queued == 4)
            for response in open_ones:
                await world.close(response)

        refused = await client.beside(end, *[f"{url}/strict"] * 4)
        await client.post(url, timeout=5.0)  # Although the errors still refer to their requests.
    assert {type(error).__name__ for error in refused} == {"TokenAcquisitionTimeoutError"}


@pytest.mark.no_cover
@pytest.mark.real_time
@pytest.mark.parametrize(
    "limit",
    [
        lambda: TokenBucket(20, 0.2, share="team", store=MemoryStore(stkai.SystemClock())),
        lambda: AimdLimiter(40, 0.2),
        lambda: [AimdLimiter(), InFlight(1)],
    ],
    ids=["shared", "adaptive", "adaptive, in flight"],
)
async def test_every_request_gets_a_permit_and_a_connection_at_last(
    limit: Callable[[], Any], world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    async with client_of(world, limit(), connections=1) as client:

        async def open_soon() -> None:
            await world.until(lambda: len(server.paths) == 1)
            server.open()

        answers = await client.beside(open_soon, *[url] * 20)
    assert [answer.status_code for answer in answers] == [200] * 20


class Tokens(AuthProvider):
    """A token that changes."""

    token = "old"

    def get_access_token(self) -> str:
        return self.token

    def cached_access_token(self, *, renewing: bool = False) -> str:
        return self.token


async def test_a_token_that_expires_during_the_wait_for_a_connection_is_not_sent(
    world: World, gate: tuple[str, Gate]
) -> None:
    url, server = gate
    tokens = Tokens()
    stack = StackBuilder([auth(tokens), limiter(TokenBucket(5, 3600.0))])
    client = Client(world, stack, 1)

    async def renew() -> None:
        await world.until(lambda: len(server.tokens) == 1)
        await client.beside(open_soon, url)

    async def open_soon() -> None:
        await world.until(lambda: client.queued == 1)
        tokens.token = "new"
        server.open()

    await client.beside(renew, url)
    await world.close(client.client)
    assert server.tokens == ["Bearer old", "Bearer new"]


@pytest.mark.worlds("sync")
def test_a_loop_that_ends_without_closing_its_pool_leaves_none_full(gate: tuple[str, Gate]) -> None:
    url, server = gate
    server.starts_open = True
    wire = AsyncDefaultWire(HttpConfig(max_connections=1))
    client = stkai.AsyncHttpClient(wire)
    loop = asyncio.new_event_loop()
    response = loop.run_until_complete(client.post_stream(url))
    assert wire.full_pools
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()
        del response, loop
        asyncio.run(client.close())
        gc.collect()
    assert not wire.full_pools
