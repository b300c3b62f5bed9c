"""The token bucket as a layer: which requests wait, how long, how often, and what happens when a wait fails."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio

from stkai import (
    DeadlineExceededError,
    Rejected,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
    Waited,
)
from stkai.testing import FakeClock
from stkai.transports import (
    AsyncTokenBucketTransport,
    Context,
    TokenBucketTransport,
    Turn,
    retry,
    token_bucket,
)

from ...support.crowd import took
from ...support.event_log import CALL, EventLog
from ...support.wire import Wire
from ...support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/"


def post(number: int = 0, **options: Any) -> httpx.Request:
    extensions = {"stkai": RequestOptions(**options)} if options else {}
    return httpx.Request("POST", f"{URL}{number}", extensions=extensions)


class Bench:
    """A token bucket around a wire that records when each request arrives, on a clock that moves by sleeping."""

    def __init__(self, world: World, policy: TokenBucket, clock: FakeClock | None = None) -> None:
        self.world, self.policy = world, policy
        self.clock = clock or FakeClock()
        self.log = EventLog()
        self.sent: list[tuple[float, int]] = []
        self.wire = world.wire(self._answer)
        context = Context(clock=self.clock, listener=self.log)
        self.transport = world.layer(token_bucket(policy), self.wire, context=context)

    def _answer(self, request: httpx.Request) -> int:
        self.sent.append((self.clock.monotonic(), int(request.url.path[1:] or 0)))
        return 200

    async def send(self, number: int = 0, **options: Any) -> httpx.Response:
        return await self.world.send(self.transport, post(number, **options))

    @property
    def instants(self) -> list[float]:
        return [instant for instant, _ in self.sent]


async def test_the_caller_learns_how_long_it_queued_and_the_listener_is_notified_of_waits_only(
    world: World,
) -> None:
    bench = Bench(world, TokenBucket(1, 2.0))
    records = [(await bench.send()).extensions["stkai"] for _ in range(2)]
    assert [record.queued for record in records] == [0.0, 2.0]
    waited = Waited(call=CALL, layer="token_bucket", seconds=2.0)
    assert bench.log.of(Waited, Rejected) == [waited]


async def test_only_the_methods_of_the_policy_need_a_permit(world: World) -> None:
    bench = Bench(world, TokenBucket(1, 40.0, methods={"post", "Put"}))
    for method in ("POST", "GET", "GET", "DELETE", "PUT"):
        await world.send(bench.transport, httpx.Request(method, URL))
    assert bench.instants == [0, 0, 0, 0, 40.0]
    assert [request.method for request in bench.wire.requests] == ["POST", "GET", "GET", "DELETE", "PUT"]


async def test_a_wait_beyond_the_limit_is_refused_at_once_and_takes_nothing(world: World) -> None:
    bench = Bench(world, TokenBucket(1, 10.0, max_wait_time=4.0))
    await bench.send()
    for _ in range(5):
        with pytest.raises(TokenAcquisitionTimeoutError) as caught:
            await bench.send()
    error = caught.value
    assert (error.waited, error.max_wait_time, error.required, error.retry_after) == (0.0, 4.0, 10.0, 6.0)
    assert error.request.url == f"{URL}0"
    assert "no permit within 4 s: it would have taken 10 s (waited 0 s); try again in 6 s" in str(error)
    assert bench.clock.sleeps == []
    refusal = Rejected(call=CALL, layer="token_bucket", wait=10.0, limit=4.0)
    assert bench.log.of(Waited, Rejected) == [refusal] * 5
    bench.clock.advance(error.retry_after)
    await bench.send()
    assert bench.instants == [0, 10.0]


async def test_a_wait_of_exactly_the_limit_is_allowed(world: World) -> None:
    bench = Bench(world, TokenBucket(10, 60.0, burst=1, max_wait_time=6.0))
    await bench.send()
    await bench.send()
    assert bench.instants == pytest.approx([0, 6.0])


@pytest.mark.parametrize(("own", "allowed"), [(1.0, False), (20.0, True), (None, True)])
async def test_a_request_may_bring_its_own_limit(world: World, own: float | None, allowed: bool) -> None:
    bench = Bench(world, TokenBucket(1, 10.0, max_wait_time=5.0))
    await bench.send()
    if allowed:
        await bench.send(max_wait_time=own)
        assert bench.instants == [0, 10.0]
    else:
        with pytest.raises(TokenAcquisitionTimeoutError) as caught:
            await bench.send(max_wait_time=own)
        assert caught.value.max_wait_time == own


@pytest.mark.parametrize("own", [None, 45.0])
async def test_the_deadline_of_the_call_bounds_the_wait_whatever_the_limit(
    world: World, own: float | None
) -> None:
    bench = Bench(world, TokenBucket(1, 10.0, max_wait_time=None))
    await bench.send()
    with pytest.raises(
        DeadlineExceededError, match="a permit takes 10 s, and the call's deadline leaves 3 s"
    ):
        await bench.send(deadline=3.0, max_wait_time=own)
    assert bench.clock.sleeps == []
    assert bench.log.of(Rejected) == [Rejected(call=CALL, layer="token_bucket", wait=10.0, limit=3.0)]
    await bench.send(deadline=10.5)
    assert bench.instants == [0, 10.0]


class Oversleeping(FakeClock):
    """Wakes half a second late."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds + 0.5)

    async def asleep(self, seconds: float) -> None:
        await super().asleep(seconds + 0.5)


async def test_a_waiter_that_wakes_after_its_deadline_leaves_its_permit_to_others(world: World) -> None:
    bench = Bench(world, TokenBucket(1, 1.0, burst=1), Oversleeping())
    await bench.send()
    with pytest.raises(DeadlineExceededError):
        await bench.send(deadline=1.2)
    await bench.send()
    assert bench.instants == [0, 1.5]


class Busy(FakeClock):
    """Of a machine so busy that 10 ms pass between any two readings."""

    def monotonic(self) -> float:
        self.advance(0.01)
        return super().monotonic()


async def test_a_call_whose_deadline_is_over_may_wait_no_negative_time(world: World) -> None:
    bench = Bench(world, TokenBucket(1, 10.0), Busy())
    await bench.send()
    with pytest.raises(DeadlineExceededError, match="the call's deadline leaves 0 s"):
        await bench.send(deadline=0.001)
    assert [refusal.limit for refusal in bench.log.of(Rejected)] == [0.0]


class InterruptedOnce(FakeClock):
    """A connection that is lost ends the first sleep after half its time."""

    def sleep(self, seconds: float) -> None:
        if self.sleeps:
            super().sleep(seconds)
        else:
            super().sleep(seconds / 2)
            raise httpx.ConnectError("lost")

    async def asleep(self, seconds: float) -> None:
        if self.sleeps:
            await super().asleep(seconds)
        else:
            await super().asleep(seconds / 2)
            raise httpx.ConnectError("lost")


async def test_the_time_of_a_failed_wait_counts_as_queued(world: World) -> None:
    clock, policy = InterruptedOnce(), TokenBucket(1, 10.0)
    stack = StackBuilder(
        (retry(RetryPolicy(initial_delay=0.5)), token_bucket(policy)), clock=clock, random=lambda: 0.0
    )
    assert took(policy, 0.0)
    response = await world.send(world.build(stack, Wire(200)), post())
    record = response.extensions["stkai"]
    assert (record.queued, record.backed_off) == (5.0 + 4.5, 0.5)


@pytest.mark.parametrize(("kind", "instant"), [("ConnectError", 0.0), ("ReadError", 3.0)])
async def test_a_request_that_failed_uses_its_permit_if_it_was_sent(
    world: World, kind: str, instant: float
) -> None:
    clock, error = FakeClock(), getattr(httpx, kind)
    wire = world.wire(error("broken"), 200)
    transport = world.layer(token_bucket(TokenBucket(1, 3.0)), wire, context=Context(clock=clock))
    with pytest.raises(error):
        await world.send(transport, post())
    await world.send(transport, post())
    assert clock.monotonic() == instant


async def test_a_retried_call_keeps_its_place_before_later_calls(event_loop: World) -> None:
    clock, sent = FakeClock(), []

    def answer(request: httpx.Request) -> int:
        sent.append((clock.monotonic(), request.url.path))
        return 503 if len(sent) == 1 else 200

    layers = (retry(RetryPolicy(initial_delay=0.1)), token_bucket(TokenBucket(1, 1.0)))
    transport = event_loop.build(StackBuilder(layers, clock=clock), Wire(answer))

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(event_loop.send, transport, post(number))
            while not sent:
                await anyio.lowlevel.checkpoint()
    assert sent[:2] == [(0.0, "/0"), (1.0, "/0")]
    assert [instant for instant, _ in sent] == pytest.approx([0, 1, 2, 3])


async def test_a_retried_call_does_not_wait_if_a_permit_is_free_while_others_sleep(world: World) -> None:
    clock, policy, log = FakeClock(), TokenBucket(10, 10.0, burst=5), EventLog()

    def answer(request: httpx.Request) -> int:
        if clock.monotonic():
            return 200
        while took(policy, 0.0):
            pass
        policy.ask(Turn(), 0.0)
        clock.advance(3.0)
        return 503

    layers = (retry(RetryPolicy(initial_delay=0)), token_bucket(policy))
    stack = StackBuilder(layers, clock=clock, listener=log)
    response = await world.send(world.build(stack, Wire(answer)), post())
    assert (response.status_code, response.extensions["stkai"].queued) == (200, 0.0)
    assert not log.of(Waited)
    assert policy.waiting == 1


def check_exactness(sent: list[float], sleeps: list[float], rate: float, burst: int) -> None:
    """Each permit on time, a few sleeps each, never more than the burst ahead, nor more than the rate in any second."""
    assert len(sleeps) <= 8 * len(sent)
    due: list[float] = []
    for number in range(len(sent)):
        evenly = max(0, number - burst + 1) / rate
        due.append(max(evenly, due[number - round(rate)] + 1.0) if number >= rate else evenly)
    assert sent == pytest.approx(due, abs=1e-3)


class Stepper:
    """Moves a clock from one sleeper's wake-up time to the next, once the last one has sent."""

    def __init__(self) -> None:
        self.clock = FakeClock(autojump=False)
        self.sent: list[tuple[float, int]] = []
        self._more = threading.Condition()

    def answer(self, request: httpx.Request) -> int:
        with self._more:
            self.sent.append((self.clock.monotonic(), int(request.url.path[1:])))
            self._more.notify_all()
        return 200

    def run_until(self, count: int) -> None:
        while len(self.sent) < count:
            before = len(self.sent)
            self.clock.advance_to_next()
            with self._more:
                assert self._more.wait_for(partial(self._sent_more_than, before), timeout=10)

    def _sent_more_than(self, count: int) -> bool:
        return len(self.sent) > count

    def start(self, run: Callable[[], object], asleep: int) -> threading.Thread:
        """Run something in a thread until this many sleep in total."""
        thread = threading.Thread(target=run)
        thread.start()
        self.clock.wait_for_sleepers(asleep)
        return thread


def test_one_policy_is_exact_across_threads_and_two_event_loops() -> None:
    stepper, policy = Stepper(), TokenBucket(50, 1.0, burst=1)
    context, wire = Context(clock=stepper.clock), Wire(stepper.answer)
    sync = TokenBucketTransport(wire, policy, context=context)
    asynchronous = AsyncTokenBucketTransport(wire, policy, context=context)

    async def tasks(first: int) -> None:
        async with anyio.create_task_group() as group:
            for number in range(first, first + 10):
                group.start_soon(asynchronous.handle_async_request, post(number))

    threads = [
        stepper.start(partial(sync.handle_request, post(number)), asleep=number) for number in range(10)
    ]
    threads.append(stepper.start(partial(asyncio.run, tasks(10)), asleep=19))
    threads.append(stepper.start(partial(trio.run, tasks, 20), asleep=29))
    threads += [
        stepper.start(partial(sync.handle_request, post(number)), asleep=number) for number in range(30, 40)
    ]
    stepper.run_until(40)
    for thread in threads:
        thread.join()
    check_exactness([instant for instant, _ in stepper.sent], stepper.clock.sleeps, 50.0, 1)
    sources = [number // 10 for _, number in stepper.sent]
    assert sources == sorted(sources)
