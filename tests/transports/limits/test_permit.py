"""Permits for other work than requests of httpx: in threads, on asyncio and on trio."""

import subprocess
import sys
import threading
from typing import Any

import anyio
import httpx
import pytest

from stkai import (
    AimdLimiter,
    AllOf,
    ConfigurationError,
    InFlight,
    InvalidArgumentError,
    NotSent,
    StackBuilder,
    StkaiError,
    TokenAcquisitionTimeoutError,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import Turn, limiter
from stkai.transports._limits import flow, permit
from stkai.transports._limits.queue import Queue
from stkai.transports._limits.sources.units import Units

from ...support.crowd import took
from ...support.threads import together
from ...support.world import World


class Block:
    """A block that is entered and left as this world does it."""

    def __init__(self, world: World, permit: Any) -> None:
        self.world, self.permit = world, permit

    async def __aenter__(self) -> Any:
        return await self.world.call(self.permit.__aenter__ if self.world.is_async else self.permit.__enter__)

    async def __aexit__(self, *error: object) -> None:
        leave = self.permit.__aexit__ if self.world.is_async else self.permit.__exit__
        await self.world.call(leave, *error)


class Unsent(NotSent):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenBucket(2, 60),
        lambda: AimdLimiter(120, 60),
        lambda: InFlight(2),
        lambda: AllOf(TokenBucket(5, 60), InFlight(3)),
    ],
)
async def test_all_limiters_give_permits(world: World, make: Any) -> None:
    policy, clock = make(), FakeClock()
    for _ in range(2):
        async with Block(world, policy.permit(clock=clock)) as permit:
            assert "Permit of" in repr(permit)
    assert policy.waiting == 0


async def test_a_permit_waits_for_its_turn(world: World) -> None:
    policy, clock, entered = TokenBucket(2, 60), FakeClock(), []
    for _ in range(5):
        async with Block(world, policy.permit(clock=clock)):
            entered.append(clock.monotonic())
    assert entered == pytest.approx([0, 0, 60, 60, 120])


async def test_leaving_with_not_sent_gives_everything_back_and_any_other_way_uses_it(world: World) -> None:
    policy, places, clock = TokenBucket(1, 60, max_cost=100), InFlight(1), FakeClock()

    async def work(error: Exception) -> None:
        async with Block(world, AllOf(policy, places).permit(cost=100, clock=clock)):
            assert places.busy == 1
            raise error

    errors = [(Unsent("no"), 0.0), (KeyError("a bug"), 60.0), (httpx.ConnectError("refused"), 60.0)]
    for number, (error, wait) in enumerate(errors):
        now = 1000.0 * number
        clock.advance(now - clock.monotonic())
        with pytest.raises(type(error)):
            await work(error)
        assert places.busy == 0
        turn = Turn(cost=100.0)
        assert policy.ask(turn, now) == pytest.approx(wait)
        policy.leave(turn, now)
    assert issubclass(NotSent, StkaiError)


async def test_a_permit_is_settled_to_what_the_work_has_cost(world: World) -> None:
    policy, clock = TokenBucket(None, 60, max_cost=1000), FakeClock()
    async with Block(world, policy.permit(cost=1000, clock=clock)) as permit:
        permit.settle(400)
        with pytest.raises(InvalidArgumentError, match="cost must be"):
            permit.settle(-1)
    assert policy.ask(Turn(cost=600.0), 0.0) == 0
    assert policy.ask(Turn(cost=60.0), 0.0) == pytest.approx(3.6)


@pytest.mark.parametrize("make", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("correct", [lambda permit: permit.settle(0), lambda permit: permit.refused()])
async def test_the_units_of_a_permit_that_was_not_used_come_back_once(
    world: World, make: Any, correct: Any
) -> None:
    policy, clock = make(6000, 60, max_cost=100), FakeClock()
    units = policy.sources[-1]
    async with Block(world, policy.permit(cost=50, clock=clock)):
        pass
    returned = policy.permit(cost=30, clock=clock)
    with pytest.raises(NotSent):
        async with Block(world, returned):
            raise NotSent
    refused = policy.permit(cost=90, max_wait_time=1, clock=clock)
    with pytest.raises(TokenAcquisitionTimeoutError):
        await Block(world, refused).__aenter__()
    before = units.level
    for unused in (returned, refused):
        correct(unused)
        assert units.level == before < 60
    for cost in (7, 3):
        returned.settle(cost)
        assert units.level == before - cost


def test_units_come_back_although_a_permit_is_left_while_the_lock_is_held() -> None:
    policy = TokenBucket(None, 60, max_cost=100)
    (units,) = policy.sources
    assert isinstance(units, Units)
    left = policy.permit(cost=30, clock=FakeClock())
    left.__enter__()
    with Queue.lock:  # As in a finalizer, or a signal handler.
        left.__exit__(NotSent, NotSent(), None)
    left.settle(10)
    assert units.level == 90


async def test_a_refusal_slows_an_adaptive_limiter_down_and_no_other(world: World) -> None:
    adaptive, bucket, clock = AimdLimiter(600, 60), TokenBucket(5, 60), FakeClock()
    async with Block(world, AllOf(adaptive, bucket, InFlight(2)).permit(clock=clock)) as permit:
        permit.refused(retry_after=30.0)
    async with Block(world, adaptive.permit(clock=clock)):
        assert clock.monotonic() >= 30.0
    async with Block(world, bucket.permit(clock=clock)) as permit:
        permit.refused()
        permit.refused(2.5)
    assert took(bucket, clock.monotonic())
    with pytest.raises(InvalidArgumentError, match="retry_after"):
        permit.refused(-1.0)


async def test_a_wait_that_would_be_too_long_is_refused(world: World) -> None:
    policy, clock = TokenBucket(1, 60, max_wait_time=50.0), FakeClock()
    async with Block(world, policy.permit(clock=clock)):
        pass
    options: list[tuple[dict[str, Any], int]] = [({}, 50), ({"max_wait_time": 5.0}, 5)]
    for given, seconds in options:
        with pytest.raises(TokenAcquisitionTimeoutError, match=f"no permit within {seconds} s"):
            async with Block(world, policy.permit(clock=clock, **given)):
                pass
    async with Block(world, policy.permit(clock=clock, max_wait_time=None)):
        assert clock.monotonic() == 60.0
    assert policy.waiting == 0


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "cost"),
        ({"cost": -1}, "cost"),
        ({"cost": float("nan")}, "cost"),
        ({"cost": 10**400}, "cost"),
        ({"cost": 1, "priority": "high"}, "priority"),
        ({"cost": 1, "max_wait_time": 0}, "max_wait_time"),
    ],
)
def test_bad_arguments_are_refused_by_name(given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        TokenBucket(None, 60, max_cost=10).permit(**given)


async def test_a_permit_can_be_used_again_but_only_by_one_block_at_a_time(world: World) -> None:
    places, clock = InFlight(2), FakeClock()
    permit = places.permit(clock=clock)
    for _ in range(2):
        async with Block(world, permit):
            with pytest.raises(RuntimeError, match=r"take one for each block, with limiter\.permit\(\)"):
                async with Block(world, permit):
                    pass
            assert places.busy == 1
        assert places.busy == 0


async def test_a_permit_that_waits_for_its_turn_cannot_be_entered_again(event_loop: World) -> None:
    places, clock = InFlight(1), FakeClock()
    waits = places.permit(clock=clock)
    async with anyio.create_task_group() as group, places.permit(clock=clock):
        group.start_soon(event_loop.call, waits.__aenter__)
        await clock.asleep(3.0)
        with pytest.raises(RuntimeError, match="this permit is in use"):
            await event_loop.call(waits.__aenter__)
    assert places.busy == 1
    await event_loop.call(waits.__aexit__, None, None, None)
    assert (places.busy, places.waiting) == (0, 0)


def test_a_permit_that_was_refused_can_be_entered_again() -> None:
    policy, clock = TokenBucket(1, 60), FakeClock()
    took(policy, clock.monotonic())
    permit = policy.permit(max_wait_time=1.0, clock=clock)
    with pytest.raises(TokenAcquisitionTimeoutError), permit:
        pass
    clock.advance(60)
    with permit:
        assert policy.waiting == 0


def test_a_permit_that_was_not_entered_has_nothing_to_settle() -> None:
    with pytest.raises(RuntimeError, match=r"with limiter\.permit"):
        TokenBucket(None, 60, max_cost=10).permit(cost=1).settle(5)


def test_a_limiter_that_counts_by_request_needs_no_cost_without_max_cost() -> None:
    with TokenBucket(5, 60).permit(clock=FakeClock()), TokenBucket(5, 60).permit(cost=5, clock=FakeClock()):
        pass


async def test_cancelled_permits_leave_the_line(event_loop: World) -> None:
    policy, clock = InFlight(1), FakeClock()

    async with policy.permit(clock=clock):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(event_loop.call, policy.permit(clock=clock).__aenter__)
            await clock.asleep(3.0)
            group.cancel_scope.cancel()
        assert (policy.busy, policy.waiting) == (1, 0)
    assert (policy.busy, policy.waiting) == (0, 0)


@pytest.mark.real_time
async def test_an_interrupt_before_a_permit_is_waited_for_leaves_the_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, clock = TokenBucket(1, 60), FakeClock()
    took(policy, clock.monotonic())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire())
    with monkeypatch.context() as patch:
        for module in (flow, permit):
            patch.setattr(module, "wait_for_permit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            async with Block(world, policy.permit(clock=clock)):
                pass
        with pytest.raises(KeyboardInterrupt):
            await world.send(transport, httpx.Request("GET", "http://test"))
    assert policy.waiting == 0


def test_permits_that_are_waited_for_when_the_program_ends_leave_no_traceback() -> None:
    program = """if True:
        import asyncio, stkai

        limiter = stkai.InFlight(1)

        async def work():
            async with limiter.permit():
                await asyncio.sleep(60)

        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(work()) for _ in range(2)]
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
    """
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "Traceback" not in ended.stderr


def test_threads_share_the_slots() -> None:
    policy, most, lock, now = InFlight(3), 0, threading.Lock(), 0

    def work() -> None:
        nonlocal most, now
        for _ in range(10):
            with policy.permit():
                with lock:
                    now += 1
                    most = max(most, now)
                with lock:
                    now -= 1

    together(*[work] * 8)
    assert most <= 3
    assert policy.busy == 0


def test_a_limiter_by_request_has_no_permits_without_one() -> None:
    with pytest.raises(ConfigurationError, match="request"):
        AllOf(TokenBucket(1, 1), _per_host()).permit()


def _per_host() -> Any:
    from stkai import PerHost

    return PerHost(lambda _: InFlight(1))
