"""The worlds and the guard that the other tests rely on."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import anyio
import httpx
import pytest
import trio
import trio.testing

from stkai import SystemClock

from ..support.world import NAMES, World

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]


def anywhere() -> httpx.Request:
    return httpx.Request("POST", "https://api.example.com/", content=b"hello")


async def test_the_scripted_wire_counts_open_responses(world: World) -> None:
    wire = world.wire(lambda request: 200)
    first, second = await world.send(wire, anywhere()), await world.send(wire, anywhere())
    assert wire.open == 2
    await world.close(first)
    await world.read(second)
    assert wire.open == 0


async def test_a_request_beyond_the_script_fails(world: World) -> None:
    with pytest.raises(AssertionError, match="request number 1 has no answer"):
        await world.send(world.wire(), anywhere())


async def test_an_error_in_one_body_is_raised_after_all_have_ended(world: World) -> None:
    done = []

    async def body(number: int) -> None:
        done.append(number)
        if number == 0:
            raise LookupError

    with pytest.raises(LookupError):
        await world.gather(*[lambda number=number: body(number) for number in range(3)])
    assert sorted(done) == [0, 1, 2]


def test_the_sync_world_reports_a_body_that_needs_an_event_loop() -> None:
    with pytest.raises(AssertionError, match="through `world`"):
        World("sync").run(asyncio.sleep(0))


def test_a_real_sleep_fails_wherever_it_is_called() -> None:
    async def asynchronous() -> None:
        await anyio.sleep(0.001)

    sleeps: list[Callable[[], None]] = [
        lambda: time.sleep(0.001),
        lambda: SystemClock().sleep(0.001),
        lambda: asyncio.run(asyncio.sleep(0.001)),
        lambda: asyncio.run(asynchronous()),
        lambda: asyncio.run(SystemClock().asleep(0.001)),
        lambda: trio.run(trio.sleep, 0.001),
    ]
    for sleep in sleeps:
        with pytest.raises(pytest.fail.Exception, match="FakeClock as clock="):
            sleep()


def test_a_sleep_that_does_not_block_the_test_is_allowed() -> None:
    time.sleep(0)
    trio.run(trio.sleep, 1000, clock=trio.testing.MockClock(autojump_threshold=0))
    subprocess.run([sys.executable, "-c", ""], check=True, timeout=10)


@pytest.mark.real_time
def test_a_test_marked_real_time_may_sleep() -> None:
    sleeper = threading.Thread(target=time.sleep, args=(0.001,))
    sleeper.start()
    sleeper.join()
