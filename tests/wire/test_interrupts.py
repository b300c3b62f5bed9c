"""Interrupts, signal handlers and finalizers come at any moment: no wire is lost, and no thread locks itself out."""

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import httpcore._synchronization
import httpx
import pytest

from stkai._process import IN_HANDLER
from stkai._wire import pool as pool_module
from stkai._wire import pool_queues as queues_module
from stkai._wire import pool_state as state_module
from stkai._wire.single_connection import with_single_connection
from stkai.transports import _body_end as body_module

from ..support.world import World
from .fakes import Body, Pool
from .raw import raw_server

FILES = {module.__file__ for module in (queues_module, pool_module, state_module, body_module)}


@contextlib.contextmanager
def at_line(number: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """Act before the nth line that runs in the modules under test; yields where that was."""
    lines = iter(range(1, sys.maxsize))
    places: list[str] = []
    tracer = sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES or places:
            return None
        # No interrupt can come while a `finally` resets a flag: CPython checks for them after calls.
        if event == "line" and not _is_safe(frame) and next(lines) == number:
            places.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            sys.settrace(None)
            act()
        return trace

    sys.settrace(trace)
    try:
        yield places
    finally:
        sys.settrace(tracer)


def _is_safe(frame: FrameType) -> bool:
    return frame.f_code.co_filename == state_module.__file__ and frame.f_lineno in _FLAG_LINES


def _flag_lines() -> set[int]:
    with open(state_module.__file__) as source:  # noqa: PTH123
        return {number for number, line in enumerate(source, 1) if line.strip() == "self._busy = False"}


_FLAG_LINES = _flag_lines()


def every_line(run: Callable[[int], list[str]]) -> None:
    """Run with 1, 2, 3 and so on, until there are no more lines."""
    number = 1
    while run(number):
        number += 1
    assert number > 40, "the trace saw the rooms under test"


def interrupt() -> None:
    raise KeyboardInterrupt


def usual(pool: Pool, world: World) -> None:
    world.run(pool.get())
    world.run(pool.get("http://elsewhere/"))
    world.run(pool.open()).close()


def failing(pool: Pool, world: World) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        is_broken = request.url.host == "broken"
        return httpx.Response(200, stream=Body(b"bo", httpx.ReadError("broken")) if is_broken else Body())

    pool.answer = answer
    response = world.run(pool.open("http://broken/"))
    pool.answer = None
    with contextlib.suppress(httpx.ReadError):
        response.read()


def crowded(pool: Pool, world: World) -> None:
    held = world.run(pool.open())
    with contextlib.suppress(httpx.PoolTimeout):
        world.run(pool.hurry())
    held.read()


@pytest.mark.no_cover
@pytest.mark.parametrize("use", [usual, failing, crowded], ids=lambda use: use.__name__)
def test_an_interrupt_before_any_line_loses_no_wire(
    use: Callable[[Pool, World], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("sync")
    monkeypatch.setattr(
        sys, "unraisablehook", lambda _: None
    )  # That of pytest keeps what a finalizer finalizes.

    def run(number: int) -> list[str]:
        pool = Pool(world, 1, 1)
        with at_line(number, interrupt) as places, contextlib.suppress(KeyboardInterrupt):
            use(pool, world)
        gc.collect(0)
        pool.answer = None
        assert world.run(pool.hurry()) == b"body", places
        assert len(pool.state.connections) == 1, places
        assert not pool.state._waiting, places
        assert max(wire.closed for wire in pool.made) <= 1, places
        return places

    every_line(run)


@pytest.mark.no_cover
@pytest.mark.parametrize("use", [usual, failing, crowded], ids=lambda use: use.__name__)
def test_a_signal_handler_before_any_line_is_served_or_gets_an_error_and_nothing_is_lost(
    use: Callable[[Pool, World], None],
) -> None:
    world = World("sync")

    def run(number: int) -> list[str]:
        pool = Pool(world, 3, 3)  # The handler cannot wait for something that the interrupted call holds.
        served: list[bytes | str] = []

        def handle(*_: object) -> None:
            try:
                served.append(world.run(pool.get("http://from-a-handler/")))
            except RuntimeError as error:
                served.append(str(error))

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with at_line(number, lambda: signal.raise_signal(signal.SIGUSR1)) as places:
                use(pool, world)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert served in ([b"body"] * len(places), [IN_HANDLER]), places
        assert world.run(pool.hurry()) == b"body", places
        assert len(pool.state.connections) <= 3, places
        assert not pool.state._waiting, places
        return places

    every_line(run)


@pytest.mark.parametrize("held", [True, False])
def test_an_interrupt_before_any_line_of_a_finalizer_loses_no_wire(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("sync")
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # That of pytest keeps the loan.

    def run(number: int) -> list[str]:
        pool = Pool(world, 1, 1)
        response: httpx.Response | None = world.run(pool.open())
        if held and response is not None:
            response.cycle = response  # type: ignore[attr-defined]
        with at_line(number, interrupt) as places, contextlib.suppress(KeyboardInterrupt):
            del response
            gc.collect(0)
        assert world.run(pool.hurry()) == b"body", places
        return places

    number = 1
    while run(number):
        number += 1
    assert number > 5, "the trace saw the finalizer"


def test_a_signal_handler_can_close_the_pool_before_any_line() -> None:
    world = World("sync")

    def run(number: int) -> list[str]:
        pool = Pool(world, 2, 2)
        with at_line(number, pool.transport.close) as places, contextlib.suppress(RuntimeError):
            usual(pool, world)
        assert places == [] or pool.state.connections == [], places
        assert not places or all(wire.closed for wire in pool.made), places
        return places

    every_line(run)


@pytest.mark.no_cover
def test_an_interrupt_in_a_lock_of_httpcore_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FILES", {httpcore._synchronization.__file__})
    interrupted: list[list[str]] = []

    def request(number: int) -> None:
        with (
            contextlib.suppress(KeyboardInterrupt),
            contextlib.closing(with_single_connection(httpx.HTTPTransport())) as transport,
            at_line(number, interrupt) as places,
        ):
            interrupted.append(places)
            transport.handle_request(httpx.Request("GET", server.url)).read()

    with raw_server() as server:
        while not interrupted or interrupted[-1]:
            thread = threading.Thread(target=request, args=(len(interrupted) + 1,), daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive(), interrupted[-1]
    assert len(interrupted) > 5


def test_a_response_that_a_handler_closes_wakes_the_interrupted_thread_itself() -> None:
    world = World("sync")

    def run(number: int) -> list[str]:
        pool = Pool(world, 1, 1)
        held = world.run(pool.open())
        with at_line(number, held.read) as places, contextlib.suppress(httpx.PoolTimeout):
            world.run(pool.hurry())
        held.read()
        assert world.run(pool.hurry()) == b"body", places
        assert len(pool.made) == 1, places
        return places

    number = 1
    while run(number):
        number += 1


def test_a_finalizer_in_the_middle_of_the_pools_own_work_does_not_lock_it() -> None:
    world = World("sync")
    pool = Pool(world, 2, 2)
    make = pool.transport._make

    def collect() -> Any:
        gc.collect()
        return make()

    pool.transport._make = collect
    response: Any = world.run(pool.open())
    response.cycle = response
    del response
    assert world.run(pool.get("http://other/")) == b"body"
    assert [wire.closed for wire in pool.made] == [1, 0]


@pytest.mark.no_cover
def test_a_thousand_threads_on_ten_connections_all_get_their_turn() -> None:
    world = World("sync")
    pool = Pool(world, 10, 10)
    at_once, most, lock = 0, 0, threading.Lock()
    served: list[bytes] = []

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)

        class Counted(Body):
            def close(self) -> None:
                nonlocal at_once
                with lock:
                    at_once -= 1

        return httpx.Response(200, stream=Counted())

    pool.answer = answer
    threads = [threading.Thread(target=lambda: served.append(world.run(pool.get()))) for _ in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == [b"body"] * 1000
    assert most <= 10
    assert len(pool.made) <= 10
    assert not pool.state._waiting


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancellation_at_any_await_loses_no_wire(world: World) -> None:
    class Slow(Body):
        async def __aiter__(self) -> Any:
            for chunk in self.chunks:
                await anyio.lowlevel.checkpoint()
                yield chunk

        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()

    pool = Pool(world, 1, 1)
    pool.answer = lambda _: httpx.Response(200, stream=Slow())
    steps, finished = 0, False
    while not finished:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_after, scope, steps)
                await pool.get()
                await pool.get("http://other/")
                finished = True
                group.cancel_scope.cancel()
        steps += 1
        assert await pool.hurry() == b"body"
        assert len(pool.state.connections) == 1
    assert steps > 3, "trio runs the tasks of a turn in random order"


async def _cancel_after(scope: anyio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()
