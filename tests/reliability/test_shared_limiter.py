"""One limiter under everything that real programs do: a caller that gives up returns its permit, and nothing stalls."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
import trio

import stkai
from stkai import AimdLimiter, RetryPolicy, TokenBucket
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import Turn

from ..support.interrupts import ctrl_c
from ..support.wire import Wire
from ..support.world import World
from .stacks import busy_connections, client_of, provider_of, wire_of

URL = "https://api.example.com/v1"


class Arrivals:
    """A scripted wire that records when each request arrived, on the stack's clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.instants: list[float] = []
        self.wire = Wire(self._answer)

    def _answer(self, _: httpx.Request) -> int:
        self.instants.append(self.clock.monotonic())
        return 200


# Leaving the queue


LIMITERS: dict[str, Callable[[], TokenBucket | AimdLimiter]] = {
    "bucket": lambda: TokenBucket(10, 1.0, burst=1, max_wait_time=None),
    "adaptive": lambda: AimdLimiter(600, 60.0, max_wait_time=None, penalty_factor=0.3),
}


@pytest.mark.parametrize("limiter", LIMITERS)
async def test_permits_of_cancelled_requests_go_to_later_ones(event_loop: World, limiter: str) -> None:
    policy, clock = LIMITERS[limiter](), FakeClock()
    arrivals = Arrivals(clock)
    client = client_of(
        event_loop,
        rate_limit=policy,
        retry=RetryPolicy(),
        transport=arrivals.wire,
        clock=clock,
        random=lambda: 0.5,
    )
    burst = int(policy.burst)

    async def post_within(scope: anyio.CancelScope) -> None:
        with scope:
            await client.post(URL)

    async with anyio.create_task_group() as group:
        for _ in range(burst):
            await client.post(URL)
        scopes = [anyio.CancelScope() for _ in range(20)]
        for scope in scopes:
            group.start_soon(post_within, scope)
        await event_loop.until(lambda: policy.waiting == 20)
        await clock.asleep(0.05)
        for scope in scopes[::2]:
            scope.cancel()
        await event_loop.until(lambda: policy.waiting == 10)
        for _ in range(10):
            group.start_soon(client.post, URL)
    assert len(arrivals.instants) == burst + 20
    assert policy.waiting == 0
    gaps = [number * 0.1 for number in range(1, 21)]
    assert arrivals.instants[burst:] == pytest.approx(gaps), "no permit is lost, and none is used twice"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
async def test_an_error_during_a_wait_returns_the_permit(world: World, error: BaseException) -> None:
    class Broken(FakeClock):
        broken = True

        def sleep(self, seconds: float) -> None:
            super().sleep(0.0 if self.broken else seconds)
            if self.broken:
                raise error

        async def asleep(self, seconds: float) -> None:
            self.sleep(seconds)

    clock, policy = Broken(), TokenBucket(1, 10.0)
    arrivals = Arrivals(clock)
    client = client_of(world, rate_limit=policy, retry=RetryPolicy(), transport=arrivals.wire, clock=clock)
    await world.call(client.post, URL)
    for _ in range(3):
        with pytest.raises(type(error)):
            await world.call(client.post, URL)
        assert policy.waiting == 0
    clock.broken = False
    await world.call(client.post, URL)
    assert arrivals.instants == [0.0, 10.0]


@pytest.mark.real_time
@pytest.mark.parametrize("how", ["asyncio.timeout", "asyncio.wait_for", "Task.cancel", "trio", "anyio"])
def test_a_timeout_around_a_call_waiting_for_a_permit_leaves_nothing_behind(how: str) -> None:
    policy = TokenBucket(1, 30.0)
    world = World("trio" if how == "trio" else "asyncio")
    with QuotaServer() as server:

        async def main() -> None:
            wire = wire_of(world)
            client = client_of(
                world, auth=provider_of(server), rate_limit=policy, retry=RetryPolicy(), transport=wire
            )
            await client.post(server.create_url())
            await give_up(lambda: client.post(server.create_url()))
            assert (policy.waiting, busy_connections(wire)) == (0, [])
            await client.aclose()

        async def give_up(call: Callable[[], Any]) -> None:
            if how == "asyncio.timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await call()
            elif how == "asyncio.wait_for":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call(), 0.05)
            elif how == "Task.cancel":
                task = asyncio.create_task(call())
                await world.until(lambda: policy.waiting == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "trio":
                with trio.move_on_after(0.05):
                    await call()
            else:
                with anyio.move_on_after(0.05):
                    await call()

        world.run(main())
        assert server.count(method="POST", path="/v1") == 1


@pytest.mark.real_time
def test_a_keyboard_interrupt_ends_a_real_wait_and_returns_the_permit() -> None:
    policy = TokenBucket(1, 30.0)
    client = client_of(World("sync"), rate_limit=policy, transport=Wire(lambda _: 200))
    client.post(URL)
    with ctrl_c(lambda: policy.waiting):
        client.post(URL)
    assert policy.waiting == 0


# Sharing


@pytest.mark.real_time
def test_threads_event_loops_and_a_sync_client_share_one_rate_and_lose_no_request() -> None:
    rate, burst, each = 200.0, 10, 40
    policy = TokenBucket(rate, 1.0, burst=burst)
    failures: list[BaseException] = []

    def guarded(run: Callable[[], object]) -> threading.Thread:
        def target() -> None:
            try:
                run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        return thread

    with QuotaServer() as server:
        provider = provider_of(server)
        limits = httpx.Limits(max_connections=4)

        def client(world: World) -> Any:
            wire = wire_of(world, limits=limits)
            return client_of(world, auth=provider, rate_limit=policy, transport=wire)

        def in_threads() -> None:
            with client(World("sync")) as shared:
                workers = [guarded(lambda: post(shared, each // 4)) for _ in range(4)]
                for worker in workers:
                    worker.join()

        def post(shared: stkai.HttpClient, count: int) -> None:
            for _ in range(count):
                assert shared.post(server.create_url()).status_code == 200

        def in_loop(world: World) -> None:
            async def main() -> None:
                async with client(world) as shared, anyio.create_task_group() as group:
                    for _ in range(each):
                        group.start_soon(shared.post, server.create_url())

            world.run(main())

        start = time.monotonic()
        threads = [
            guarded(in_threads),
            guarded(lambda: in_loop(World("asyncio"))),
            guarded(lambda: in_loop(World("trio"))),
        ]
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - start
        assert failures == []
        assert server.count(method="POST", path="/v1", status=200) == 3 * each
        assert server.token_requests <= 3, "one for each world that starts before there is a token, at most"
    assert 3 * each <= burst + rate * seconds + 1, "never above the rate"
    assert policy.waiting == 0


# Time


@pytest.mark.parametrize("jump", [1.0, 3600.0, 30 * 86_400.0])
async def test_after_a_suspend_waiters_neither_burst_nor_stall(event_loop: World, jump: float) -> None:
    clock, policy = FakeClock(), TokenBucket(10, 1.0, burst=2, max_wait_time=None)
    arrivals = Arrivals(clock)
    client = client_of(event_loop, rate_limit=policy, transport=arrivals.wire, clock=clock)

    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(client.post, URL)
        await event_loop.until(lambda: policy.waiting == 38)
        clock.advance(jump)
    assert len(arrivals.instants) == 40
    at_once = [instant for instant in arrivals.instants if instant == jump]
    assert len(at_once) <= 2 + 10 * 0.25 + 1, "the burst, and what a quarter of a second is worth"
    assert arrivals.instants[-1] <= jump + 4.0, "and then as before"


async def test_a_clock_that_goes_back_delays_requests_by_no_more_than_that(event_loop: World) -> None:
    class Swinging(FakeClock):
        back = 0.0

        def monotonic(self) -> float:
            return super().monotonic() - self.back

    clock, policy = Swinging(start=1000.0), TokenBucket(10, 1.0, burst=1)
    arrivals = Arrivals(clock)
    client = client_of(event_loop, rate_limit=policy, transport=arrivals.wire, clock=clock)

    await client.post(URL)
    await client.post(URL)
    clock.back = 5.0
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(client.post, URL)
    assert len(arrivals.instants) == 5
    assert clock.monotonic() <= 1000.0 + 5.0 + 0.5


# Numbers


def test_two_thousand_waiting_tasks_go_in_order() -> None:
    count = 2_000
    clock, policy = FakeClock(), TokenBucket(1000, 1.0, burst=1, max_wait_time=None)
    order: list[int] = []
    world = World("asyncio")

    def answer(request: httpx.Request) -> int:
        order.append(int(request.url.path[1:]))
        return 200

    client = client_of(world, rate_limit=policy, retry=RetryPolicy(), transport=Wire(answer), clock=clock)

    async def main() -> None:
        await asyncio.gather(*(client.post(f"https://api.example.com/{number}") for number in range(count)))

    world.run(main())
    assert order == list(range(count))
    assert clock.monotonic() == pytest.approx((count - 1) / 1000)
    assert len(clock.sleeps) <= 6 * count, "two seconds of waiting take a few sleeps each"
    assert policy.waiting == 0


def test_two_thousand_cancelled_tasks_leave_an_empty_queue() -> None:
    clock, policy = FakeClock(autojump=False), TokenBucket(1, 1.0, max_wait_time=None)
    world = World("asyncio")
    client = client_of(world, rate_limit=policy, transport=Wire(lambda _: 200), clock=clock)

    async def main() -> None:
        tasks = [asyncio.create_task(client.post(URL)) for _ in range(2_000)]
        await world.until(lambda: policy.waiting == 1_999)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    world.run(main())
    assert policy.waiting == 0
    assert policy.ask(Turn(), clock.monotonic() + 1.0) == 0, "the next permit is for the next turn"
