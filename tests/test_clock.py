"""The system's clock, and the random numbers."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import get_type_hints

import pytest
import trio

from stkai import Clock, SystemClock
from stkai._clock import uniform, unique_key
from stkai.testing import FakeClock


def test_the_system_clock_reads_the_machines_clocks() -> None:
    clock: Clock = SystemClock()
    assert clock.monotonic() == pytest.approx(time.monotonic(), abs=5)
    assert clock.utcnow().tzinfo is UTC
    assert abs(clock.utcnow() - datetime.now(UTC)) < timedelta(seconds=5)
    assert repr(clock) == "SystemClock()"


def test_type_checkers_accept_the_system_clock_as_a_clock() -> None:
    """Pyright takes the result of an `async def` in a protocol for a narrower type than `Coroutine`."""
    assert get_type_hints(Clock.asleep) == get_type_hints(SystemClock.asleep)


def test_a_clock_is_an_instance_of_the_protocol() -> None:
    assert isinstance(SystemClock(), Clock)
    assert isinstance(FakeClock(), Clock)
    assert not isinstance(object(), Clock)


@pytest.mark.real_time
def test_the_clock_sleeps_in_a_thread_on_asyncio_and_on_trio() -> None:
    clock = SystemClock()
    sleeps: tuple[Callable[[], None], ...] = (
        lambda: clock.sleep(0.02),
        lambda: asyncio.run(clock.asleep(0.02)),
        lambda: trio.run(clock.asleep, 0.02),
    )
    for sleep in sleeps:
        start = time.monotonic()
        sleep()
        assert time.monotonic() - start >= 0.02


@pytest.mark.real_time
def test_trio_as_a_guest_of_asyncio_sleeps_with_trio() -> None:
    woken: list[str] = []

    async def guest() -> None:
        await SystemClock().asleep(0.01)
        woken.append(sniffed())

    async def host() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda _: done.set(),
        )
        await asyncio.gather(done.wait(), SystemClock().asleep(0.01))

    asyncio.run(asyncio.wait_for(host(), 30))
    assert woken == ["trio"]


@pytest.mark.real_time
def test_trio_run_inside_an_asyncio_task_sleeps_with_trio() -> None:
    async def cell() -> None:
        trio.run(SystemClock().asleep, 0.01)
        await SystemClock().asleep(0.01)

    asyncio.run(cell())


def sniffed() -> str:
    """The library whose task is running."""
    return "trio" if trio.lowlevel.in_trio_task() else "asyncio"


def test_random_numbers_lie_between_zero_and_one() -> None:
    numbers = [uniform() for _ in range(1000)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 990


def test_keys_are_unique_whatever_the_seed() -> None:
    keys = []
    state = random.getstate()
    try:
        for _ in range(100):
            random.seed(7)
            keys.append(unique_key())
    finally:
        random.setstate(state)
    assert len(set(keys)) == 100
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
