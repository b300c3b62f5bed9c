"""Nothing grows and nothing is lost: memory, file descriptors, threads, and every call."""

import asyncio
import gc
import pickle
import weakref
from typing import Any

import anyio
import httpx
import pytest
from benchmarks.soak import Footprint, soak

from stkai import AimdLimiter, RetryPolicy, TokenBucket
from stkai._wire import AsyncDefaultWire
from stkai.testing import FakeClock, Hang, QuotaServer

from ..support.forked import forkserver
from ..support.threads import own_threads
from ..support.wire import Wire
from ..support.world import World
from .stacks import client_of, provider_of, wire_of


@pytest.mark.real_time
def test_hundreds_of_calls_with_faults_are_all_accounted_for_and_nothing_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.get_context", forkserver)
    result = soak(requests=300, seconds=60.0)
    assert result.problems() == []
    assert result.ledger.begun == 300
    assert result.ledger.sent > 300, "faults were there"
    assert result.ledger.succeeded > 240


def test_a_closed_client_leaves_no_file_descriptor_thread_or_memory(server: QuotaServer) -> None:
    world = World("sync")

    def use() -> None:
        with client_of(world, auth=provider_of(server), rate_limit=TokenBucket(1000, 1.0)) as client:
            assert client.post(server.create_url(), deadline=30).status_code == 200

    use()
    with own_threads() as running:
        before = Footprint.now()
        for _ in range(20):
            use()
        after = Footprint.now()
        assert len(running()) <= 1, running()
    # The server takes a moment to close its ends.
    assert after.descriptors <= before.descriptors + 20
    assert after.memory - before.memory < 8 * 2**20


async def test_unused_objects_are_released(world: World) -> None:
    policy = AimdLimiter(1000, 1.0)
    wire = wire_of(world)
    default = client_of(world)
    client = client_of(world, rate_limit=policy, retry=RetryPolicy(), transport=wire)
    kept = [weakref.ref(thing) for thing in (policy, wire, client, client.transport, default.transport)]
    await world.close(client)
    await world.close(default)
    del policy, wire, client, default
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_calls_cancelled_on_the_wire_release_their_connections(server: QuotaServer) -> None:
    world = World("asyncio")
    server.fail_with(*[Hang(30)] * 1000, path="/v1/none")
    limits = httpx.Limits(max_connections=5)

    async def main() -> None:
        client: Any = client_of(world, retry=RetryPolicy(), transport=wire_of(world, limits=limits))
        await client.post(f"{server.url}/echo")
        before = Footprint.now()
        for _ in range(20):
            expected = len(server.requests) + 5
            tasks = [asyncio.create_task(client.post(f"{server.url}/v1/none")) for _ in range(5)]
            await world.until(lambda: len(server.requests) == expected)  # noqa: B023 - awaited right here
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (await client.post(f"{server.url}/echo", timeout=5)).status_code == 200
        await client.aclose()
        assert Footprint.now().descriptors <= before.descriptors + 20

    world.run(main())


@pytest.mark.worlds("asyncio", "trio")
async def test_a_stream_left_in_a_cancelled_scope_leaves_no_connection_open(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, transport=AsyncDefaultWire())
    with anyio.CancelScope() as scope:
        async with await world.call(client.post_stream, f"{server.url}/echo") as response:
            socket = response.extensions["network_stream"].get_extra_info("socket")
            assert socket.fileno() >= 0
            scope.cancel()
    assert socket.fileno() < 0
    await world.close(client)


async def test_a_million_seconds_of_traffic_leave_a_limiter_as_small_as_it_was(world: World) -> None:
    clock = FakeClock()
    policy = AimdLimiter(100, 60.0, max_wait_time=None)
    answers = [httpx.codes.OK] * 9 + [httpx.codes.TOO_MANY_REQUESTS]
    numbers = iter(range(1_000_000))
    wire = Wire(lambda _: answers[next(numbers) % 10])
    client = client_of(world, rate_limit=policy, transport=wire, clock=clock)
    for _ in range(100):
        (outcome,) = await world.outcomes(lambda: world.call(client.post, "https://api.example.com/"))
        assert isinstance(outcome, httpx.Response | httpx.HTTPError)
        clock.advance(10_000.0)
    assert len(pickle.dumps(policy._adaptive._windowed.history)) < 2000
    assert policy.waiting == 0
