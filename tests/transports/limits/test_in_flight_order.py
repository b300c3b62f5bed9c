"""A free slot in flight goes to the first that waits for it, and at once, whatever gave up before it."""

import random
import threading
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from stkai import InFlight, TokenBucket
from stkai.limiters import AllOf
from stkai.testing import FakeClock
from stkai.transports import Turn
from stkai.transports._limits import in_flight, queue

from ...support.threads import wait_until
from ...support.world import World


class Office:
    """Notes who came in which order, and for how long a slot was free while a turn waited."""

    def __init__(self, limiter: Any, n: int, clock: Any) -> None:
        self.limiter, self.n, self.clock = limiter, n, clock
        self.started: list[int] = []
        self.longest = 0.0
        self._busy = self._waiting = 0
        self._free_since: float | None = None

    async def visit(self, number: int, seconds: float) -> None:
        self._change(waiting=1)
        came = False
        try:
            async with self.limiter.permit(clock=self.clock):
                came = True
                self.started.append(number)
                self._change(waiting=-1, busy=1)
                await self.clock.asleep(seconds)
        finally:
            self._change(**({"busy": -1} if came else {"waiting": -1}))

    def _change(self, waiting: int = 0, busy: int = 0) -> None:
        now = self.clock.monotonic()
        if self._free_since is not None:
            self.longest = max(self.longest, now - self._free_since)
        self._busy, self._waiting = self._busy + busy, self._waiting + waiting
        self._free_since = now if self._waiting and self._busy < self.n else None


@pytest.mark.no_cover
async def test_slots_go_in_order_of_arrival_and_at_once_also_when_the_front_of_the_line_gives_up(
    event_loop: World,
) -> None:
    chance, clock = random.Random(0), FakeClock()  # noqa: S311
    policy = InFlight(4)
    office = Office(policy, 4, clock)
    async with anyio.create_task_group() as everybody, anyio.create_task_group() as front:
        for number in range(300):
            group = front if 4 <= number < 200 else everybody
            group.start_soon(office.visit, number, chance.choice([0.2, 0.5, 2.0]))
            await clock.asleep(0.001)
        await clock.asleep(3.0)
        front.cancel_scope.cancel()
    assert office.started == sorted(office.started)
    assert set(range(200, 300)) < set(office.started)
    assert office.longest < 1e-6
    assert (policy.busy, policy.waiting) == (0, 0)


@pytest.mark.no_cover
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_slot_is_used_at_once_beside_another_limit(event_loop: World, is_first: bool) -> None:
    clock = FakeClock()
    slots, bucket = InFlight(2), TokenBucket(200, 1)
    office = Office(AllOf(*((slots, bucket) if is_first else (bucket, slots))), 2, clock)
    async with anyio.create_task_group() as everybody, anyio.create_task_group() as front:
        for number in range(420):
            group = front if 50 <= number < 400 else everybody
            group.start_soon(office.visit, number, 0.05)
            await clock.asleep(0.0001)
        await clock.asleep(0.5)
        front.cancel_scope.cancel()
    assert office.started[-20:] == list(range(400, 420))
    assert office.longest < 1e-6


def test_the_first_is_woken_and_the_next_when_that_one_has_its_slot_or_gives_up() -> None:
    policy = InFlight(2)
    holders, waiters = [Turn() for _ in range(2)], [Turn() for _ in range(4)]
    woken: list[int] = []
    assert [policy.ask(turn, 0.0) for turn in holders] == [0.0, 0.0]
    for number, turn in enumerate(waiters):
        assert policy.ask(turn, 0.0) != 0.0
        turn.wake = lambda number=number: woken.append(number)
    for turn in holders:
        policy.end(turn, 5.0)
    assert woken == [0]
    assert policy.ask(waiters[1], 5.0) != 0.0, "it is awake by chance, and the first is about to ask"
    policy.leave(waiters[0], 5.0)
    assert woken == [0, 1]
    assert policy.ask(waiters[1], 5.0) == 0.0
    assert woken == [0, 1, 2]
    assert policy.ask(waiters[3], 5.1) == 0.0 or policy.busy == 1
    assert policy.ask(waiters[2], 5.1) == 0.0


def test_a_slot_goes_to_the_first_also_behind_a_crowd_that_waits_for_another_limit() -> None:
    slots, slow, whole = InFlight(1), TokenBucket(1, 60), TokenBucket(999, 60)
    mine, others = AllOf(slots, whole), AllOf(slow, whole)
    holder, waiter, woken = Turn(), Turn(), list[Turn]()
    assert mine.ask(holder, 0.0) == 0.0
    assert [others.ask(Turn(), 0.0) for _ in range(99)][:2] == [0.0, 60.0]
    assert mine.ask(waiter, 0.0) != 0.0
    waiter.wake = lambda: woken.append(waiter)
    mine.end(holder, 5.0)
    assert woken == [waiter]
    assert mine.ask(Turn(), 5.0) != 0.0
    assert mine.ask(waiter, 5.0) == 0.0


def test_a_slot_goes_to_the_first_that_can_use_it_behind_a_crowd_that_also_waits_for_another_limit() -> None:
    slots, slow = InFlight(1), TokenBucket(1, 60)
    crowd, mine = AllOf(slow, slots), AllOf(TokenBucket(9, 60), slots)
    holder, waiter, woken = Turn(), Turn(), list[Turn]()
    assert slow.ask(Turn(), 0.0) == mine.ask(holder, 0.0) == 0.0
    assert {crowd.ask(Turn(), 0.0) for _ in range(99)} >= {60.0}
    assert mine.ask(waiter, 0.0) != 0.0
    waiter.wake = lambda: woken.append(waiter)
    mine.end(holder, 5.0)
    assert woken == [waiter]
    assert mine.ask(waiter, 5.0) == 0.0


def test_a_crowd_whose_first_has_to_wait_for_another_limit_leaves_its_slot_to_others() -> None:
    slots, slow = InFlight(1), TokenBucket(1, 600)
    crowd, mine, others = (AllOf(each, slots) for each in (TokenBucket(1, 60), TokenBucket(9, 60), slow))
    holder, waiter, first, second, third = (Turn() for _ in range(5))
    woken: list[Turn] = []
    assert slow.ask(Turn(), 0.0) == mine.ask(holder, 0.0) == 0.0
    assert others.ask(Turn(), 0.0) == 600.0
    for turn in (first, second, third):
        assert crowd.ask(turn, 0.0) not in (0.0, 60.0), "it expects a slot, and a permit of its own limit"
    assert mine.ask(waiter, 0.0) != 0.0
    for turn in (first, second, third, waiter):
        turn.wake = partial(woken.append, turn)
    mine.end(holder, 1.0)
    assert crowd.ask(first, 1.0) == 0.0
    crowd.end(first, 2.0)
    assert woken == [first, second]
    assert crowd.ask(second, 2.0) == pytest.approx(59.0)
    assert woken == [first, second, waiter]
    assert mine.ask(waiter, 5.0) == 0.0
    mine.end(waiter, 6.0)
    assert crowd.ask(second, 61.0) == 0.0
    crowd.end(second, 62.0)
    assert woken == [first, second, waiter, third]


@pytest.mark.no_cover
@pytest.mark.parametrize("n", [1, 4])
async def test_each_tenant_gets_its_quota_beside_the_crowd_of_another(event_loop: World, n: int) -> None:
    clock, went = FakeClock(), dict[str, list[float]]()
    slots, own = InFlight(n), {tenant: TokenBucket(5, 1, burst=1) for tenant in ("busy", "small")}

    async def visit(tenant: str) -> None:
        async with AllOf(own[tenant], slots).permit(clock=clock):
            went.setdefault(tenant, []).append(clock.monotonic())
            await clock.asleep(0.09)

    async with anyio.create_task_group() as tasks:
        for _ in range(120):
            tasks.start_soon(visit, "busy")
        await clock.asleep(1.0)
        for _ in range(20):
            tasks.start_soon(visit, "small")
    assert len(went["small"]) == 20
    assert went["small"][-1] < 1.0 + 20 / 5 + 0.5
    assert went["busy"][-1] < 120 / 5 + 0.5


def test_more_slots_wake_the_first_and_that_one_the_next() -> None:
    policy, waiters = InFlight(1), [Turn() for _ in range(3)]
    woken: list[int] = []
    assert policy.ask(Turn(), 0.0) == 0.0
    for number, turn in enumerate(waiters):
        assert policy.ask(turn, 0.0) != 0.0
        turn.wake = lambda number=number: woken.append(number)
    policy.update(n=3)
    for number in range(2):
        assert woken == list(range(number + 1))
        assert policy.ask(waiters[number], 20.0) == 0.0
    assert woken == [0, 1]


def test_a_turn_that_does_not_wake_delays_no_other() -> None:
    policy = InFlight(2)
    holders, stuck, other = [Turn() for _ in range(2)], Turn(), Turn()
    for turn in [*holders, stuck, other]:
        policy.ask(turn, 0.0)
    for turn in holders:
        policy.end(turn, 5.0)
    assert policy.ask(other, 5.01) != 0.0
    assert policy.ask(other, 5.06) == 0.0
    assert policy.ask(stuck, 60.0) == 0.0, "its own slot was kept for it"


def test_a_turn_that_does_not_wake_after_a_crowd_has_left_delays_no_other() -> None:
    policy, turns, now = InFlight(1), [Turn() for _ in range(53)], 0.0
    for _ in range(30):
        turn = Turn()
        assert policy.ask(turn, now) == 0
        policy.end(turn, now := now + 10.0)
    for turn in turns:  # All but the first would have to wait for minutes.
        policy.ask(turn, now)
    for turn in turns[1:51]:
        policy.leave(turn, now)
    policy.end(turns[0], now)
    end, last = now + 10.0, turns[52]
    while policy.ask(last, now) != 0 and now < end:
        now += last.nap
    assert now < end


def test_a_slot_that_its_first_cannot_use_for_another_limit_wakes_the_first_of_another_list() -> None:
    slots = InFlight(1)
    slow, fast = AllOf(TokenBucket(1, 60), slots), AllOf(TokenBucket(100, 60), slots)
    holder, first, second = Turn(), Turn(), Turn()
    woken: list[str] = []
    assert slow.ask(holder, 0.0) == 0.0
    assert slow.ask(first, 0.0) != 0.0
    assert fast.ask(second, 0.0) != 0.0
    first.held_by, first.wake = slots.sources[0], lambda: woken.append("first")
    second.wake = lambda: woken.append("second")
    slow.end(holder, 1.0)
    assert woken == ["first"]
    assert slow.ask(first, 1.0) == pytest.approx(59.0)
    assert woken == ["first", "second"]
    assert fast.ask(second, 1.0) == 0.0


@pytest.fixture
def long_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleep until woken."""
    for name in ("_FIRST_ESTIMATE", "_SEARCH_INTERVAL", "_MIN_NAP"):
        monkeypatch.setattr(in_flight, name, 30.0)
    monkeypatch.setattr(queue, "ASK_INTERVAL", 30.0)


@pytest.mark.real_time
@pytest.mark.usefixtures("long_sleeps")
def test_threads_get_a_slot_at_once_and_in_order() -> None:
    policy = InFlight(2)
    started: list[int] = []
    release = threading.Semaphore(0)

    def visit(number: int) -> None:
        with policy.permit(max_wait_time=20.0):
            started.append(number)
            release.acquire()

    def expect(count: int, waiting: int) -> None:
        wait_until(lambda: (len(started), policy.waiting) == (count, waiting))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for number, thread in enumerate(threads):
        thread.start()
        expect(min(number + 1, 2), max(number - 1, 0))
    for count in range(3, 9):
        release.release()
        expect(count, 8 - count)
    for _ in threads:
        release.release()
    for thread in threads:
        thread.join()
    assert started == list(range(8))
    assert (policy.busy, policy.waiting) == (0, 0)


@pytest.mark.real_time
@pytest.mark.usefixtures("long_sleeps")
async def test_tasks_get_a_slot_at_once_also_from_a_thread(event_loop: World) -> None:
    policy = InFlight(1)
    held = policy.permit()
    held.__enter__()
    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as tasks:

            async def visit() -> None:
                async with policy.permit():
                    pass

            for _ in range(3):
                tasks.start_soon(visit)
            while policy.waiting < 3:
                await anyio.lowlevel.checkpoint()
            await anyio.to_thread.run_sync(held.__exit__, None, None, None)
    assert (policy.busy, policy.waiting) == (0, 0)


@pytest.mark.real_time
async def test_a_turn_that_will_be_woken_does_not_ask_again_and_again_when_requests_take_longer_than_before(
    event_loop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, asks, ask = InFlight(20), 0, InFlight.ask

    def count(self: InFlight, turn: Turn, now: float) -> Any:
        nonlocal asks
        asks += 1
        return ask(self, turn, now)

    for _ in range(100):  # Short ones, so that a slot seems to be free soon.
        async with policy.permit():
            pass
    monkeypatch.setattr(InFlight, "ask", count)

    async def visit(seconds: float) -> None:
        async with policy.permit():
            await anyio.sleep(seconds)

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as tasks:
            for number in range(120):
                tasks.start_soon(visit, 0.4 if number < 20 else 0.0)
    assert asks < 120 * 4
