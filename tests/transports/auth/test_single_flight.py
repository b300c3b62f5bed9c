"""One fetch for everyone: who waits for it, for how long, and what happens to it when they leave."""

import asyncio
import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from itertools import count
from typing import Any

import anyio
import pytest
import trio

from stkai import AuthenticationError, AuthProvider, DeadlineExceededError, RequestOptions
from stkai.transports._auth import aget_token, get_token, single_flight
from stkai.transports._auth.single_flight import Fetch, in_background, is_running, join

from ...support.interrupts import Interrupt, needs_opcodes
from ...support.wire import Wire
from ...support.world import NAMES, World
from .bench import layer, post

pytestmark = [pytest.mark.real_time, pytest.mark.worlds(*NAMES)]


class Hanging(AuthProvider):
    """Provides no token until it is released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = 0

    def get_access_token(self) -> str:
        self.asked += 1
        self.go.wait(10)
        return f"token-{self.asked}"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    provider = Hanging()
    yield provider
    provider.go.set()
    for thread in background():
        thread.join(10)


def background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stkai-token"]


async def ask(world: World, provider: AuthProvider, seconds: float) -> str:
    token: str = await world.call(world.pick(get_token, aget_token), provider, seconds)
    return token


async def test_200_calls_with_a_deadline_leave_one_thread_while_the_endpoint_hangs(
    world: World, hanging: Hanging
) -> None:
    for _ in range(200):
        with pytest.raises(DeadlineExceededError, match="access token"):
            await ask(world, hanging, 0.0005)
        assert len(background()) <= 1
    assert hanging.asked == 1


async def test_the_error_of_a_call_whose_token_comes_too_late_blames_the_token_and_not_the_server(
    world: World, hanging: Hanging
) -> None:
    request = post(extensions={"stkai": RequestOptions(deadline=0.05)})
    with pytest.raises(DeadlineExceededError, match="while it waited for an access token"):
        await world.send(layer(world, Wire(200), hanging), request)


async def test_later_callers_get_the_token_that_earlier_callers_stopped_waiting_for(
    world: World, hanging: Hanging
) -> None:
    with pytest.raises(DeadlineExceededError):
        await ask(world, hanging, 0.01)
    hanging.go.set()
    assert await ask(world, hanging, 10.0) in {"token-1", "token-2"}


async def test_each_caller_waits_until_its_own_deadline(world: World, hanging: Hanging) -> None:
    async def impatient() -> str:
        with pytest.raises(DeadlineExceededError):
            await ask(world, hanging, 0.01)
        hanging.go.set()
        return "late"

    async def patient() -> str:
        return await ask(world, hanging, 1e12)

    first, late, second = await world.gather(patient, impatient, patient)
    assert late == "late"
    # A caller that arrives after a fetch has ended starts another one.
    assert {first, second} <= {"token-1", "token-2"}


async def test_a_caller_that_gives_up_leaves_the_list_of_waiters(world: World, hanging: Hanging) -> None:
    with pytest.raises(DeadlineExceededError):
        await ask(world, hanging, 0.01)
    assert not join(hanging.get_access_token)._waiting


async def test_a_caller_without_time_left_fetches_nothing(world: World, hanging: Hanging) -> None:
    with pytest.raises(DeadlineExceededError):
        await ask(world, hanging, 0.0)
    assert hanging.asked == 0


def test_a_program_that_gave_up_waiting_exits_at_once() -> None:
    program = """
        import threading, anyio, stkai
        from stkai.transports._auth import aget_token
        class Hanging(stkai.AuthProvider):
            def get_access_token(self):
                threading.Event().wait(60)
        async def main():
            try:
                await aget_token(Hanging(), 0.05)
            except stkai.DeadlineExceededError:
                print("gave up")
        anyio.run(main, backend="asyncio")
        anyio.run(main, backend="trio")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,  # Half the time that the provider would take.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "gave up\n" * 2


# Event loops


class Native(AuthProvider):
    """An async provider that waits for an event of the calling loop."""

    def __init__(self) -> None:
        self.asked = 0
        self.waits, self.go = asyncio.Event(), asyncio.Event()

    def get_access_token(self) -> str:
        raise NotImplementedError

    async def aget_access_token(self) -> str:
        self.asked += 1
        if self.asked == 1:
            self.waits.set()
            await self.go.wait()
        return f"native-{self.asked}"


def test_a_loop_does_not_wait_for_a_suspended_loop_of_the_same_thread() -> None:
    provider = Native()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    suspended = first.create_task(aget_token(provider, 60.0))

    first.run_until_complete(provider.waits.wait())
    assert second.run_until_complete(asyncio.wait_for(aget_token(provider, 60.0), 10)) == "native-2"
    provider.go.set()
    assert first.run_until_complete(suspended) == "native-2"
    first.close()
    second.close()


def test_a_fetch_outlives_the_event_loop_that_started_it(hanging: Hanging) -> None:
    async def give_up() -> None:
        with pytest.raises(DeadlineExceededError):
            await aget_token(hanging, 0.01)

    asyncio.run(give_up())
    hanging.go.set()
    assert asyncio.run(aget_token(hanging, 10.0)) in {"token-1", "token-2"}


def test_a_wake_up_for_a_loop_that_has_ended_is_dropped(hanging: Hanging) -> None:
    async def leave() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(join(hanging.get_access_token).await_)
            await anyio.wait_all_tasks_blocked()
            fetch.append(join(hanging.get_access_token))
            wakes.extend(fetch[0]._waiting.items())
            group.cancel_scope.cancel()

    fetch: list[Fetch] = []
    wakes: list[Any] = []
    asyncio.run(leave())
    trio.run(leave)
    for waiter, wake in wakes:
        wake(waiter)
    assert not fetch[0]._waiting


# Threads and contexts


def test_a_provider_that_asks_another_one_needs_no_second_thread() -> None:
    class Inner(AuthProvider):
        def get_access_token(self) -> str:
            threads.append(threading.current_thread())
            return "inner"

    class Outer(AuthProvider):
        def get_access_token(self) -> str:
            threads.append(threading.current_thread())
            return f"{get_token(inner, 10.0)} of outer"

    threads: list[threading.Thread] = []
    inner = Inner()
    assert get_token(Outer(), 10.0) == "inner of outer"
    assert len({id(thread) for thread in threads}) == 1
    assert threads[0] is not threading.main_thread()


def test_a_signal_handler_that_interrupts_the_start_of_a_fetch_gets_an_error_and_no_deadlock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Provider(AuthProvider):
        def get_access_token(self) -> str:
            return "token"

    provider, handled = Provider(), []
    start = single_flight._start

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(single_flight, "_start", start)
        with pytest.raises(AuthenticationError, match="a signal handler uses the client that it interrupted"):
            get_token(provider, 10.0)  # As a signal handler does, in this thread.
        handled.append(True)
        start(*arguments)

    monkeypatch.setattr(single_flight, "_start", interrupted)
    assert get_token(provider, 10.0) == "token"
    assert handled == [True]
    assert not is_running(provider.get_access_token)


def test_a_fetch_whose_start_was_interrupted_serves_those_who_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    start = single_flight._start

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(single_flight, "_start", start)
        raise KeyboardInterrupt

    monkeypatch.setattr(single_flight, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get_token(hanging, 10.0)
    assert is_running(hanging.get_access_token)
    hanging.go.set()
    assert get_token(hanging, 10.0) in {"token-1", "token-2"}


def test_the_caller_fetches_the_token_itself_if_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Provider(AuthProvider):
        def get_access_token(self) -> str:
            return "by myself" if threading.current_thread() is threading.main_thread() else "by a thread"

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert get_token(Provider(), 10.0) == "by myself"


async def test_a_provider_sees_the_context_of_a_caller_and_may_run_an_event_loop(world: World) -> None:
    class Provider(AuthProvider):
        def get_access_token(self) -> str:
            assert in_background()
            return anyio.run(self.fetch)

        async def fetch(self) -> str:
            return tenant.get()

    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("mine")
    assert await ask(world, Provider(), 10.0) == "mine"


@pytest.mark.no_cover
@needs_opcodes
@pytest.mark.parametrize("seconds", [10.0, math.inf])
def test_a_thread_can_get_a_token_after_an_interrupt_at_any_point(seconds: float) -> None:
    class Quick(AuthProvider):
        def get_access_token(self) -> str:
            return "token"

    def interrupted(interrupt: Interrupt) -> None:
        provider = Quick()
        with interrupt.during():
            get_token(provider, seconds)
        assert get_token(provider, seconds) == "token"

    for number in count(1):
        interrupt = Interrupt(number, "_auth")
        copy_context().run(interrupted, interrupt)
        if interrupt.left > 0:
            break
    assert number > 10, "there were interrupts"
