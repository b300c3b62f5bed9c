"""A free place in flight goes to the first that waits for it, and at once, whoever gave up before it."""

import random
import threading
import time
from typing import Any

import anyio
import pytest

from stkai import InFlight, SystemClock, TokenBucket
from stkai.limiters import AllOf
from stkai.testing import FakeClock
from stkai.transports import Turn

from ...support.world import World


class Office:
    """Notes who came in which order, and for how long a place was free while somebody waited."""

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


@pytest.mark.parametrize("seed", range(3))
async def test_places_go_in_order_of_arrival_and_at_once_also_when_the_front_of_the_line_gives_up(
    event_loop: World, seed: int
) -> None:
    chance, clock = random.Random(seed), FakeClock()  # noqa: S311
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


def test_the_first_is_woken_and_the_next_when_that_one_has_its_place_or_gives_up() -> None:
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


def test_more_places_wake_the_first_and_that_one_the_next() -> None:
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


def test_who_does_not_wake_holds_up_nobody_else() -> None:
    policy = InFlight(2)
    holders, stuck, other = [Turn() for _ in range(2)], Turn(), Turn()
    for turn in [*holders, stuck, other]:
        policy.ask(turn, 0.0)
    for turn in holders:
        policy.end(turn, 5.0)
    assert policy.ask(other, 5.01) != 0.0
    assert policy.ask(other, 5.06) == 0.0
    assert policy.ask(stuck, 60.0) == 0.0, "its own place was kept for it"


def test_a_place_that_its_first_cannot_use_for_another_limit_wakes_the_first_of_another_list() -> None:
    places = InFlight(1)
    slow, fast = AllOf(TokenBucket(1, 60), places), AllOf(TokenBucket(100, 60), places)
    holder, first, second = Turn(), Turn(), Turn()
    woken: list[str] = []
    assert slow.ask(holder, 0.0) == 0.0
    assert slow.ask(first, 0.0) != 0.0
    assert fast.ask(second, 0.0) != 0.0
    first.held_by, first.wake = places.sources[0], lambda: woken.append("first")
    second.wake = lambda: woken.append("second")
    slow.end(holder, 1.0)
    assert woken == ["first"]
    assert slow.ask(first, 1.0) == pytest.approx(59.0)
    assert woken == ["first", "second"]
    assert fast.ask(second, 1.0) == 0.0


@pytest.mark.real_time
def test_threads_get_a_place_at_once_and_in_order() -> None:
    policy, clock = InFlight(2), SystemClock()
    started: list[tuple[int, float]] = []
    release = threading.Semaphore(0)

    def visit(number: int) -> None:
        with policy.permit():
            started.append((number, clock.monotonic()))
            release.acquire()

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=visit, args=(number,)))
        threads[-1].start()
        until = time.monotonic() + 10
        while len(started) + policy.waiting <= number and time.monotonic() < until:
            time.sleep(0.001)
    time.sleep(0.3)
    freed = []
    for count in range(3, 9):
        freed.append(clock.monotonic())
        release.release()
        until = time.monotonic() + 10
        while len(started) < count and time.monotonic() < until:
            time.sleep(0.001)
    for _ in threads:
        release.release()
    for thread in threads:
        thread.join()
    assert [number for number, _ in started] == list(range(8))
    waits = sorted(began - free for free, (_, began) in zip(freed, started[2:], strict=True))
    assert waits[3] < 0.5, waits
    assert (policy.busy, policy.waiting) == (0, 0)
