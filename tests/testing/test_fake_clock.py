"""FakeClock: who sleeps, who wakes, in what order, and what the clock shows then."""

import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import pytest

from stkai import Clock
from stkai._abandonable import Latch
from stkai._errors import ConfigurationError
from stkai.testing import FakeClock

from ..support.world import NAMES, World

pytestmark = pytest.mark.worlds(*NAMES)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def sleep_often(clock: FakeClock, seconds: float, times: int) -> None:
    for _ in range(times):
        clock.sleep(seconds)


def test_a_fake_clock_starts_at_the_given_instant_and_stands_still() -> None:
    clock: Clock = FakeClock(5.0)
    assert clock.monotonic() == clock.monotonic() == 5.0
    assert clock.utcnow() == datetime(2030, 1, 1, tzinfo=UTC)
    assert repr(clock) == "FakeClock(now=5, autojump=True, sleepers=0)"


def test_the_wall_clock_moves_with_it_from_its_epoch() -> None:
    epoch = datetime(2024, 2, 29, 12, tzinfo=UTC)
    clock = FakeClock(5.0, epoch=epoch)
    clock.advance(90.0)
    assert clock.monotonic() == 95.0
    assert clock.utcnow() == epoch + timedelta(seconds=90)


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_an_invalid_start_is_refused(start: float) -> None:
    with pytest.raises(ConfigurationError, match="start must be a finite number"):
        FakeClock(start)


def test_an_epoch_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"add tzinfo=datetime\.UTC"):
        FakeClock(epoch=datetime(2030, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("autojump", [True, False])
def test_an_impossible_duration_is_refused(seconds: float, autojump: bool) -> None:
    clock = FakeClock(autojump=autojump)
    with pytest.raises(ValueError, match="seconds must be a non-negative number"):
        clock.advance(seconds)
    with pytest.raises(ValueError, match="seconds must be a non-negative number"):
        clock.sleep(seconds)
    with pytest.raises(ValueError, match="seconds must be a non-negative number"):
        World("trio").run(clock.asleep(seconds))
    assert clock.sleeps == []


async def test_sleeping_moves_the_clock_and_is_recorded(world: World) -> None:
    clock = FakeClock()
    for seconds in (1.5, 0.0, 2.0):
        await world.sleep(clock, seconds)
    assert clock.monotonic() == 3.5
    assert clock.sleeps == [1.5, 0.0, 2.0]


def test_threads_that_sleep_together_lose_no_time() -> None:
    clock = FakeClock()
    threads = [in_thread(partial(sleep_often, clock, 0.5, 50)) for _ in range(8)]
    for thread in threads:
        thread.join(5)
    assert clock.monotonic() == 200.0
    assert clock.sleeps == [0.5] * 400


@pytest.mark.no_cover
async def test_a_thousand_concurrent_sleepers_wake_by_time_then_by_arrival(event_loop: World) -> None:
    clock = FakeClock()
    arrived: list[int] = []
    woken: list[tuple[float, int]] = []

    async def task(number: int) -> None:
        seconds = float(number * 7919 % 100 + 1)
        arrived.append(number)
        await clock.asleep(seconds)
        assert clock.monotonic() == seconds
        woken.append((seconds, number))

    async with anyio.create_task_group() as group:
        for number in range(1_000):
            group.start_soon(task, number)
    place = {number: index for index, number in enumerate(arrived)}
    assert woken == sorted(woken, key=lambda item: (item[0], place[item[1]]))
    assert len(woken) == len(clock.sleeps) == 1_000
    assert clock.monotonic() == 100.0


async def test_a_later_sleeper_with_an_earlier_instant_wakes_first(event_loop: World) -> None:
    clock = FakeClock()
    woken: list[str] = []

    async def task(name: str, *delays: float, hurdles: int = 0) -> None:
        for _ in range(hurdles):
            await anyio.lowlevel.checkpoint()
        for seconds in delays:
            await clock.asleep(seconds)
            woken.append(f"{name} {clock.monotonic():g}")

    async with anyio.create_task_group() as group:
        group.start_soon(task, "late", 5.0)
        group.start_soon(task, "quick", 1.0, 1.0, 3.5)
        group.start_soon(lambda: task("slow to start", 0.5, hurdles=40))
    assert woken == ["slow to start 0.5", "quick 1", "quick 2", "late 5", "quick 5.5"]


async def test_the_clock_waits_for_tasks_that_queue_for_a_lock(event_loop: World) -> None:
    clock = FakeClock()
    starts: list[float] = []

    async def task(lock: anyio.Lock) -> None:
        async with lock:
            await anyio.lowlevel.checkpoint()
        starts.append(clock.monotonic())
        await clock.asleep(1.0)

    lock = anyio.Lock()
    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(task, lock)
    assert starts == [0.0] * 100
    assert clock.monotonic() == 1.0


async def test_cancelled_sleepers_are_forgotten(event_loop: World) -> None:
    clock = FakeClock()

    async with anyio.create_task_group() as group:
        for seconds in (1.0, 2.0, 3.0):
            group.start_soon(clock.asleep, seconds)
        group.cancel_scope.cancel()
    assert clock.monotonic() == 0.0
    assert clock.sleepers == 0


def test_a_woken_sleeper_may_cancel_the_next_and_the_one_after_wakes(event_loop: World) -> None:
    async def main() -> None:
        clock = FakeClock()
        victims = anyio.CancelScope()

        async def victim() -> None:
            with victims:
                await clock.asleep(1.0)
                pytest.fail("the clock moved on before the other task had done its work")

        async def killer() -> None:
            await clock.asleep(0.5)
            victims.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(victim)
            group.start_soon(killer)
            group.start_soon(clock.asleep, 7.0)
        assert clock.monotonic() == 7.0
        assert clock.sleepers == 0

    for _ in range(20):  # trio runs its tasks in any order
        event_loop.run(main())


def test_a_task_that_never_sleeps_does_not_stop_the_clock() -> None:
    clock = FakeClock()

    async def main() -> None:
        done = False

        async def spin() -> None:
            while not done:
                await clock.asleep(0)

        async with anyio.create_task_group() as group:
            group.start_soon(spin)
            await clock.asleep(1.0)
            done = True

    World("asyncio").run(main())
    assert clock.monotonic() == 1.0


@pytest.mark.no_cover
def test_an_event_loop_without_a_visible_queue_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stkai.testing._fake_clock.getattr", lambda *_: None, raising=False)
    world = World("asyncio")
    world.run(test_a_thousand_concurrent_sleepers_wake_by_time_then_by_arrival(world))


async def test_a_thread_that_sleeps_wakes_the_tasks_it_passes(event_loop: World) -> None:
    clock = FakeClock()

    async with anyio.create_task_group() as group:
        for seconds in (1.0, 2.0):
            group.start_soon(clock.asleep, seconds)
        clock.sleep(10.0)
    assert clock.monotonic() == 12.0  # the thread had slept before the tasks began
    clock.advance(1.0)
    assert clock.monotonic() == 13.0


def test_without_autojump_threads_sleep_until_the_clock_is_moved_past_them() -> None:
    clock = FakeClock(autojump=False)
    woken: list[float] = []

    def sleeper(seconds: float) -> None:
        clock.sleep(seconds)
        woken.append(seconds)

    threads = [in_thread(partial(sleeper, seconds)) for seconds in (1.0, 2.0, 3.0)]
    clock.wait_for_sleepers(3)
    clock.advance(0.5)
    assert clock.sleepers == 3
    clock.advance(1.5)
    assert clock.sleepers == 1
    for thread in threads[:2]:
        thread.join(5)
    assert sorted(woken) == [1.0, 2.0]
    assert clock.advance_to_next() == 1.0
    threads[2].join(5)
    assert woken[2] == clock.monotonic() == 3.0


def test_without_autojump_many_threads_can_be_stepped() -> None:
    clock = FakeClock(autojump=False)
    threads = [in_thread(partial(sleep_often, clock, 1.0, 3)) for _ in range(64)]
    for step in (1.0, 2.0, 3.0):
        clock.wait_for_sleepers(64)
        assert clock.advance_to_next() == 1.0
        assert clock.monotonic() == step
    for thread in threads:
        thread.join(5)
    assert clock.sleeps == [1.0] * 192


async def test_without_autojump_tasks_can_be_woken_from_their_own_loop_and_from_a_thread(
    event_loop: World,
) -> None:
    clock = FakeClock(autojump=False)
    woken: list[float] = []

    async def task(seconds: float) -> None:
        await clock.asleep(seconds)
        woken.append(seconds)

    def from_a_thread() -> None:
        clock.wait_for_sleepers(3)
        clock.advance_to_next()

    async with anyio.create_task_group() as group:
        for seconds in (3.0, 1.0, 2.0):
            group.start_soon(task, seconds)
        await anyio.to_thread.run_sync(from_a_thread)
        while len(woken) < 1:
            await anyio.lowlevel.checkpoint()
        assert clock.sleepers == 2
        clock.advance(2.0)
    assert woken == [1.0, 2.0, 3.0]


def test_without_autojump_a_sleep_of_zero_returns_at_once(event_loop: World) -> None:
    clock = FakeClock(autojump=False)
    clock.sleep(0.0)
    event_loop.run(clock.asleep(0.0))
    assert clock.sleeps == [0.0, 0.0]


def test_an_interrupted_thread_does_not_count_as_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(autojump=False)

    def interrupted(latch: Latch) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Latch, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clock.sleep(1.0)
    assert clock.sleepers == 0


def test_there_is_no_next_instant_without_sleepers() -> None:
    with pytest.raises(RuntimeError, match="there is no sleeper"):
        FakeClock(autojump=False).advance_to_next()


def test_waiting_in_vain_for_sleepers_reports_how_many_there_are() -> None:
    with pytest.raises(TimeoutError, match=r"0 asleep, not 2, after 0\.01 s of real time"):
        FakeClock(autojump=False).wait_for_sleepers(2, timeout=0.01)
