"""One shared fetch for all threads and tasks, also when the one that leads it fails or is cancelled."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from stkai import AuthenticationError, BearerAuth, TokenRenewed
from stkai.testing import FakeClock
from stkai.transports import AsyncAuthTransport, AuthTransport, Context

from ...support.event_log import EventLog
from ...support.tokens import LIFETIME, MARGIN, Crowd, Issuer, provider_over
from ...support.wire import Wire
from ...support.world import NAMES, World
from .bench import URL, Native, Static, bearer, layer, post

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]


@pytest.mark.no_cover
async def test_callers_that_start_together_fetch_one_token(world: World) -> None:
    count = 64
    crowd, log = Crowd(count), EventLog()
    issuer, wire = Issuer(lambda _: crowd.wait()), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer), context=Context(listener=log))

    async def call() -> None:
        crowd.arrive()
        await world.send(transport, post())

    await world.gather(*[call] * count)
    assert issuer.fetches == 1
    assert {bearer(request) for request in wire.requests} == {"Bearer token-1"}
    assert len(wire.requests) == count
    assert len(log.of(TokenRenewed)) == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_a_sync_only_provider_never_blocks_the_event_loop(world: World) -> None:
    go = threading.Event()

    class Blocking(Static):
        def get_access_token(self) -> str:
            assert go.wait(10), "the loop stood still"
            return super().get_access_token()

    transport = layer(world, world.wire(200), Blocking("t"))

    async def call() -> None:
        await world.send(transport, post())

    async def elsewhere() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        go.set()

    await world.gather(call, elsewhere)


@pytest.mark.worlds("asyncio", "trio")
async def test_a_token_is_fetched_even_if_all_the_programs_worker_threads_are_busy(world: World) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    try:
        async with limiter:
            response = await world.send(layer(world, world.wire(200), Static("t")), post())
    finally:
        limiter.total_tokens = 40
    assert response.status_code == 200


async def test_while_one_caller_renews_the_others_use_the_expiring_token(world: World) -> None:
    clock, others_done = FakeClock(), threading.Event()

    def wait_for_the_others(number: int) -> None:
        if number == 2:
            assert others_done.wait(10), "the others were held up"

    issuer, wire = Issuer(wait_for_the_others), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer, clock), context=Context(clock=clock))
    await world.send(transport, post())
    clock.advance(LIFETIME - MARGIN)
    renewing = threading.Event()

    async def one() -> None:
        renewing.set()
        await world.send(transport, post())

    async def others() -> None:
        if world.is_async:
            while issuer.fetches < 2:
                await anyio.lowlevel.checkpoint()
        else:
            while issuer.fetches < 2:
                renewing.wait(10)
        for _ in range(5):
            await world.send(transport, post())
        others_done.set()

    await world.gather(one, others)
    tokens = [bearer(request) for request in wire.requests]
    assert tokens == ["Bearer token-1"] * 6 + ["Bearer token-2"]
    assert issuer.fetches == 2


async def test_a_failed_fetch_fails_all_waiters_with_their_own_request_and_the_next_caller_tries_again(
    world: World,
) -> None:
    crowd = Crowd(50)

    class Failing(Static):
        def get_access_token(self) -> str:
            crowd.wait()
            return super().get_access_token()

    provider = Failing(*[AuthenticationError("no token", OSError("down"))] * 50)
    transport = layer(world, Wire(200), provider)

    def call(number: int) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            crowd.arrive()
            await world.send(transport, httpx.Request("GET", f"{URL}/{number}"))

        return body

    errors: list[Any] = await world.outcomes(*map(call, range(50)))
    assert {str(error) for error in errors} == {"no token"}
    assert {str(error.cause) for error in errors} == {"down"}
    if world.is_async:
        assert [error.request.url.path for error in errors] == [f"/v1/chat/{n}" for n in range(50)]
        assert provider.asked == 1
    provider.tokens = iter(["later"])
    assert (await world.send(transport, post())).status_code == 200


# Async providers, and cancelled leaders


@pytest.mark.worlds("asyncio", "trio")
async def test_an_async_provider_is_awaited(world: World) -> None:
    provider, wire = Native(), Wire(lambda _: 200)
    transport = layer(world, wire, provider)

    async def call() -> None:
        await world.send(transport, post())

    await world.gather(*[call] * 20)
    assert provider.asked == 1
    assert {bearer(request) for request in wire.requests} == {"Bearer native-1"}


async def cancel_the_leader(
    world: World, transport: Any, leading: Callable[[], bool], then: Callable[[], object] = lambda: None
) -> None:
    """Ten requests wait for the renewal of an eleventh, which is cancelled."""

    async def call() -> None:
        await world.send(transport, post())

    async def leader(scope: anyio.CancelScope) -> None:
        with scope:
            await call()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(leader, scope)
        while not leading():
            await anyio.lowlevel.checkpoint()
        for _ in range(10):
            group.start_soon(call)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        then()


@pytest.mark.worlds("asyncio", "trio")
async def test_when_the_leading_task_is_cancelled_another_takes_over_and_all_get_the_token(
    world: World,
) -> None:
    provider, wire = Native(), Wire(lambda _: 200)
    provider.stuck = 1
    transport = layer(world, wire, provider)
    await cancel_the_leader(world, transport, lambda: provider.asked == 1)
    assert [bearer(request) for request in wire.requests] == ["Bearer native-2"] * 10
    assert provider.asked == 2


@pytest.mark.worlds("asyncio", "trio")
async def test_the_fetch_of_a_cancelled_leader_serves_those_who_waited(world: World) -> None:
    go = threading.Event()
    issuer, wire = Issuer(lambda _: go.wait(10)), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer))
    await cancel_the_leader(world, transport, lambda: issuer.fetches == 1, then=go.set)
    assert [bearer(request) for request in wire.requests] == ["Bearer token-1"] * 10
    assert issuer.fetches == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_that_is_cancelled_while_it_waits_does_not_affect_others(world: World) -> None:
    go = threading.Event()
    issuer, wire = Issuer(lambda _: go.wait(10)), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer))

    async def call() -> None:
        await world.send(transport, post())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        while issuer.fetches < 1:
            await anyio.lowlevel.checkpoint()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        go.set()
    assert len(wire.requests) == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_threads_tasks_and_stacks_share_one_fetch_per_provider(world: World) -> None:
    crowd = Crowd(20)
    issuer, wire = Issuer(lambda _: crowd.wait()), Wire(lambda _: 200)
    provider = provider_over(issuer)
    transports = [AsyncAuthTransport(wire, provider), AsyncAuthTransport(wire, BearerAuth(provider))]
    sync = AuthTransport(wire, provider)

    def task(number: int) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            crowd.arrive()
            await world.send(transports[number % 2], post())

        return body

    async def thread() -> None:
        crowd.arrive()
        await anyio.to_thread.run_sync(sync.handle_request, post())

    await world.gather(*map(task, range(10)), *[thread] * 10)
    assert issuer.fetches == 1
    assert len(wire.requests) == 20
