"""After an interrupt or a cancellation at any operation, the flow cleans up and nothing else is done."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from stkai import StackBuilder
from stkai.testing import FakeClock
from stkai.transports import Attempt, Close, Context, Flow, Layer, Run, Sleep
from stkai.transports._body_end import BodyEnd, when_body_ends

from ...support.wire import of_streams
from ...support.world import NAMES, World
from .bench import STALLING, URL, Bench, Body

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["send", "read", "load", "run", "drain"])
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_after_an_interrupt_at_any_operation_the_flow_cleans_up_and_the_interrupt_is_raised(
    world: World, kind: str, interrupt: type[BaseException], deadline: float | None
) -> None:
    error = interrupt("now")
    bench = Bench(world, kind, error)
    with pytest.raises(interrupt) as caught:
        await bench.send(deadline=deadline)
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    bench.assert_cleaned_up(interrupt.__name__)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_after_an_interrupt_in_a_sleep_the_flow_cleans_up(
    world: World, interrupt: type[BaseException]
) -> None:
    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            raise interrupt

        async def asleep(self, seconds: float) -> None:
            raise interrupt

    bench = Bench(world, "sleep")
    bench.clock = Clock()
    with pytest.raises(interrupt):
        await bench.send()
    bench.assert_cleaned_up(interrupt.__name__)


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("kind", [*STALLING, "drain"])
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_after_a_cancellation_at_any_operation_the_flow_cleans_up(
    world: World, kind: str, deadline: float | None
) -> None:
    bench = Bench(world, kind)
    cancelled = anyio.get_cancelled_exc_class()
    outcome: list[type[BaseException]] = []

    async def send() -> None:
        try:
            await bench.send(deadline=deadline)
        except BaseException as error:
            outcome.append(type(error))
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await bench.stalled()
        group.cancel_scope.cancel()
    assert outcome == [cancelled]
    bench.assert_cleaned_up(cancelled.__name__)


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("kind", [*STALLING, "drain"])
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_after_a_native_asyncio_cancellation_the_flow_cleans_up(
    world: World, kind: str, deadline: float | None
) -> None:
    bench = Bench(world, kind)
    task = asyncio.create_task(bench.send(deadline=deadline))
    await bench.stalled()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert task.cancelled()
    bench.assert_cleaned_up("CancelledError")


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("kind", [*STALLING, "drain"])
async def test_an_asyncio_timeout_ends_the_call_with_its_own_error(world: World, kind: str) -> None:
    bench = Bench(world, kind)

    async def main() -> None:
        async with asyncio.timeout(None) as timeout:
            asyncio.get_running_loop().call_soon(timeout.reschedule, 0.0)
            await bench.send()

    with pytest.raises(TimeoutError):
        await main()
    bench.assert_cleaned_up("CancelledError")


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("kind", ["close", "clean-up run"])
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_clean_up_runs_to_completion_in_a_cancelled_scope(
    world: World, kind: str, deadline: float | None
) -> None:
    bench = Bench(world, kind)
    with anyio.CancelScope() as scope:
        scope.cancel()
        response = await bench.send(deadline=deadline)
    await world.close(response)
    assert bench.log == ["begun", "done"]
    assert bench.stalling.closed == (kind == "close")
    assert bench.given_back == (kind == "clean-up run")
    assert bench.body.closed
    assert bench.wire.open == 0


@pytest.mark.worlds("asyncio", "trio")
async def test_a_second_cancellation_does_not_interrupt_the_clean_up_of_the_first(world: World) -> None:
    closing, go_on = anyio.Event(), anyio.Event()

    class Slow(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b""

        async def aclose(self) -> None:
            closing.set()
            await go_on.wait()
            type(self).closed = True

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            yield Sleep(1e6)
        finally:
            yield Close(httpx.Response(200, stream=Slow()))
        raise AssertionError

    clock = FakeClock(autojump=False)
    transport = world.layer(Layer("own", flow), world.wire(), context=Context(clock=clock))
    async with anyio.create_task_group() as outer, anyio.create_task_group() as group:

        async def cancel_twice() -> None:
            while not clock.sleepers:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await closing.wait()
                outer.cancel_scope.cancel()
                await anyio.lowlevel.checkpoint()
                go_on.set()

        group.start_soon(world.send, transport, httpx.Request("GET", URL))
        group.start_soon(cancel_twice)
    assert Slow.closed


# Flows that answer a cancellation with something else


def keep_on(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
    """Sends again, whatever ended the first attempt."""
    try:
        response: httpx.Response = yield from layer.forward(request, attempt)
    except BaseException:
        response = yield from layer.forward(request, attempt)
    return response


def invent(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
    """Answers whatever ends the call with a response of its own."""
    try:
        response: httpx.Response = yield from layer.forward(request, attempt)
    except BaseException:
        return httpx.Response(503, stream=invented[-1])
    return response


invented: list[Any] = []


@pytest.mark.parametrize(("layer", "answer"), [(keep_on, "Send"), (invent, "an answer")])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_a_flow_that_swallows_an_interrupt_is_reported_and_the_interrupt_is_raised(
    world: World, layer: Any, answer: str, interrupt: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    invented.append(of_streams(Body)())
    arrived: list[httpx.Request] = []

    def wire(request: httpx.Request) -> int:
        arrived.append(request)
        raise interrupt

    transport = world.layer(Layer("own", layer), world.wire(wire), context=Context(clock=FakeClock()))
    with pytest.raises(interrupt) as caught, caplog.at_level(logging.ERROR, "stkai"):
        await world.send(transport, httpx.Request("GET", URL))
    bug = f"a layer answered {interrupt.__name__} with {answer}; it must clean up and re-raise it"
    assert caught.value.__notes__ == [f"stkai: {bug}"]
    assert caplog.messages == [bug]
    assert len(arrived) == 1, "it is not sent again"
    assert invented[-1].closed == (layer is invent), "what it answered with is closed"


@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("layer", [keep_on, invent])
async def test_a_flow_cannot_swallow_a_cancellation(world: World, layer: Any) -> None:
    invented.append(of_streams(Body)())
    bench = Bench(world, "send")
    transport = bench.transport(Layer("own", layer))
    outcome: list[object] = []

    async def send() -> None:
        outcome.append(await world.send(transport, httpx.Request("GET", URL)))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await bench.stalled()
        group.cancel_scope.cancel()
    assert outcome == []
    assert bench.log[-1] == "cleaned up"
    assert len(bench.wire.requests) == 1
    assert invented[-1].closed == (layer is invent)


async def test_the_layers_around_one_that_swallows_an_interrupt_clean_up_as_well(world: World) -> None:
    log: list[str] = []

    def outer(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        body = of_streams(Body)()
        try:
            response: httpx.Response = yield from layer.forward(request, attempt)
        except BaseException as error:
            yield Close(httpx.Response(200, stream=body))
            log.append(f"outer {type(error).__name__} {body.closed}")
            raise
        return response

    def wire(_: httpx.Request) -> int:
        raise KeyboardInterrupt

    stack = StackBuilder((Layer("outer", outer), Layer("inner", keep_on)), clock=FakeClock())
    with pytest.raises(KeyboardInterrupt):
        await world.send(world.build(stack, world.wire(wire)), httpx.Request("GET", URL))
    assert log == ["outer KeyboardInterrupt True"]


async def test_an_error_in_the_clean_up_does_not_hide_the_interrupt(world: World) -> None:
    def fail(_: float) -> None:
        raise OSError("the store is gone")

    async def afail(_: float) -> None:
        fail(0)

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            response: httpx.Response = yield from layer.forward(request, attempt)
        except BaseException:
            yield Run(fail, afail, cleans_up=True)
            yield Close(kept)
            raise KeyError("a bug of its own") from None
        return response

    def wire(_: httpx.Request) -> int:
        raise KeyboardInterrupt

    kept = httpx.Response(200, stream=of_streams(Body)())
    transport = world.layer(Layer("own", flow), world.wire(wire), context=Context(clock=FakeClock()))
    with pytest.raises(KeyboardInterrupt):
        await world.send(transport, httpx.Request("GET", URL))
    assert kept.is_closed


@pytest.mark.worlds("sync")
async def test_a_body_that_cannot_be_closed_after_an_interrupt_is_given_up_so_that_its_end_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over, ends = threading.Event(), list[BodyEnd]()

    class Stuck(Body):
        def close(self) -> None:
            is_over.wait(30)

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            response: httpx.Response = yield from layer.forward(request, attempt)
        except BaseException:
            yield Close(kept)
            raise
        return response

    def wire(_: httpx.Request) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("stkai.transports._driver.CLEAN_UP_LIMIT", 0.01)
    kept = httpx.Response(200, stream=of_streams(Stuck)())
    when_body_ends(kept, ends.append)
    transport = world.layer(Layer("own", flow), world.wire(wire), context=Context(clock=FakeClock()))
    try:
        with pytest.raises(KeyboardInterrupt):
            await world.send(transport, httpx.Request("GET", URL))
        assert ends == [BodyEnd.CLOSED]
    finally:
        is_over.set()
