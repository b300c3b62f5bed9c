"""The drivers, thoroughly: every operation, ended by an error, a cancellation, an interrupt or the deadline."""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from stkai import (
    ConfigurationError,
    DeadlineExceededError,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    SystemClock,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import (
    Attempt,
    Close,
    Context,
    Drain,
    Flow,
    Layer,
    LayerTransport,
    Load,
    Operation,
    Read,
    Run,
    Send,
    Sleep,
    Until,
    drive,
    retry,
    token_bucket,
)

from ..support.crowd import took
from ..support.ids import spelled
from ..support.wire import of_streams
from ..support.world import World

URL = "https://api.example.com/v1"
SHORT = 0.05
"""Seconds of real time; a deadline that passes soon."""

STALLING = ("send", "sleep", "read", "load", "run")
"""The operations that may take long and are not clean-up."""


class Stall:
    """Work that does not end by itself, in a task or a thread, or that raises at once."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.entered = False
        self.released = threading.Event()

    def sync(self, *_: Any) -> Any:
        self.entered = True
        if self.error is not None:
            raise self.error
        assert self.released.wait(10), "nobody gave up waiting"

    async def wait(self, *_: Any) -> Any:
        self.entered = True
        if self.error is not None:
            raise self.error
        await anyio.Event().wait()


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that stalls after its first bytes, and knows whether it was closed."""

    def __init__(self, stall: Stall | None = None) -> None:
        self.stall = stall
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"first"
        if self.stall:
            self.stall.sync()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"first"
        if self.stall:
            await self.stall.wait()

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()  # A cancellation here would leave it open.
        self.closed = True


class Bench:
    """One layer whose flow carries out one operation, and cleans up if that fails.

    Attributes:
        log: what the flow saw.
        kept: a response that it holds, and closes in its clean-up.
    """

    def __init__(self, world: World, kind: str, error: BaseException | None = None) -> None:
        self.world, self.kind = world, kind
        self.stall = Stall(error)
        self.clock: Any = FakeClock(autojump=False)
        self.log: list[str] = []
        self.body = of_streams(Body)()
        self.stalling = of_streams(Body)(self.stall)
        self.wire = world.wire(self._answer)
        self.given_back = 0

    def _answer(self, _: httpx.Request) -> Any:
        if self.kind != "send":
            return 200
        if self.world.is_async:
            return self._stalled()
        self.stall.sync()
        return 200

    async def _stalled(self) -> Any:
        await self.stall.wait()
        return 200

    def operation(self, layer: Any, request: httpx.Request, attempt: Attempt) -> Operation:
        stalled = httpx.Response(200, stream=self.stalling)
        operations: dict[str, Callable[[], Operation]] = {
            "send": lambda: Send(layer.inner, request, attempt),
            "sleep": lambda: Sleep(1e6),
            "read": lambda: Read(stalled),
            "load": lambda: Load(stalled, 1000),
            "run": lambda: Run(self.stall.sync, self.stall.wait),
            "drain": lambda: Drain(stalled),
            "clean-up run": lambda: Run(self._give_back, self._agive_back, cleans_up=True),
            "close": lambda: Close(stalled),
        }
        return operations[self.kind]()

    def flow(self, layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        kept = httpx.Response(200, stream=self.body)
        self.log.append("begun")
        try:
            yield self.operation(layer, request, attempt)
        except BaseException as error:
            self.log.append(type(error).__name__)
            yield Close(kept)
            yield Run(self._give_back, self._agive_back, cleans_up=True)
            self.log.append("cleaned up")
            raise
        self.log.append("done")
        yield Close(kept)
        response: httpx.Response = yield Send(layer.inner, request, attempt)
        return response

    def _give_back(self, _: float) -> None:
        self.given_back += 1

    async def _agive_back(self, _: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.given_back += 1

    def transport(self, *outer: Layer, **context: Any) -> Any:
        stack = StackBuilder((*outer, Layer("bench", self.flow)), **{"clock": self.clock, **context})
        return self.world.build(stack, self.wire)

    async def send(self, **options: Any) -> httpx.Response:
        extensions = {"stkai": RequestOptions(**options)} if options else {}
        return await self.world.send(self.transport(), httpx.Request("GET", URL, extensions=extensions))

    async def stalled(self) -> None:
        while not self.stall.entered and not self.clock.sleepers:
            await anyio.lowlevel.checkpoint()

    def assert_cleaned_up(self, error: str) -> None:
        assert self.log == ["begun", error, "cleaned up"]
        assert self.body.closed
        assert self.given_back == 1
        assert self.wire.open == 0
        if self.kind in {"read", "load", "drain"}:
            assert self.stalling.closed


# Results and errors


async def test_the_result_of_an_operation_is_sent_back_into_the_flow(world: World) -> None:
    seen: list[Any] = []

    async def later(left: float) -> str:
        return f"ran with {left:g}"

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        seen.append((yield Sleep(2.0)))
        seen.append((yield Run(lambda left: f"ran with {left:g}", later)))
        response: httpx.Response = yield Send(layer.inner, request, attempt)
        seen.append((yield Read(response)))
        seen.append(response.content)
        seen.append((yield Close(response)))
        return response

    clock = FakeClock()
    transport = world.layer(
        Layer("own", flow), world.wire(httpx.Response(200, content=b"body")), context=Context(clock=clock)
    )
    for deadline in (None, 60.0):
        seen.clear()
        transport = world.layer(
            Layer("own", flow),
            world.wire(httpx.Response(200, content=b"body")),
            context=Context(clock=FakeClock()),
        )
        request = httpx.Request("GET", URL, extensions={"stkai": RequestOptions(deadline=deadline)})
        await world.send(transport, request)
        left = "inf" if deadline is None else "58"
        assert seen == [None, f"ran with {left}", None, b"body", None]


@pytest.mark.parametrize("kind", ["send", "read", "load", "run"])
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_an_error_is_thrown_into_the_flow_and_raised_unchanged(
    world: World, kind: str, deadline: float | None
) -> None:
    error = httpx.ReadError("reset")
    bench = Bench(world, kind, error)
    with pytest.raises(httpx.ReadError) as caught:
        await bench.send(deadline=deadline)
    assert caught.value is error
    bench.assert_cleaned_up("ReadError")


async def test_a_flow_may_answer_an_error_with_another_attempt(world: World) -> None:
    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        try:
            response: httpx.Response = yield from layer.forward(request, attempt)
        except httpx.ConnectError:
            response = yield from layer.forward(request, attempt.again())
        return response

    wire = world.wire(httpx.ConnectError("refused"), 200)
    response = await world.send(world.layer(Layer("own", flow), wire), httpx.Request("GET", URL))
    assert (response.status_code, response.extensions["stkai"].attempts) == (200, 2)


async def test_an_error_of_the_flow_itself_is_raised_unchanged(world: World) -> None:
    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        yield Sleep(0.0)
        raise KeyError("a bug")

    transport = world.layer(Layer("own", flow), world.wire(), context=Context(clock=FakeClock()))
    with pytest.raises(KeyError, match="a bug"):
        await world.send(transport, httpx.Request("GET", URL))


@pytest.mark.parametrize("deadline", [None, 60.0])
@pytest.mark.parametrize("what", [None, 1.0, "sleep", Operation(), httpx.Request("GET", URL)], ids=spelled)
async def test_a_flow_that_yields_something_else_gets_an_error_that_names_the_layer(
    world: World, what: Any, deadline: float | None
) -> None:
    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        yield what
        raise AssertionError

    options = {"stkai": RequestOptions(deadline=deadline)}
    transport = world.layer(Layer("own", flow), world.wire(), context=Context(clock=FakeClock()))
    message = r"'own' yielded .*: it may yield operations of stkai.transports, such as Sleep\(1.0\)"
    with pytest.raises(ConfigurationError, match=message):
        await world.send(transport, httpx.Request("GET", URL, extensions=options))


async def test_an_error_while_closing_is_ignored(world: World) -> None:
    class Stuck(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b""

        def close(self) -> None:
            raise OSError("stuck")

        async def aclose(self) -> None:
            self.close()

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        yield Close(httpx.Response(200, stream=of_streams(Stuck)()))
        yield Drain(httpx.Response(200, stream=of_streams(Stuck)()))
        response: httpx.Response = yield from layer.forward(request, attempt)
        return response

    transport = world.layer(Layer("own", flow), world.wire(200), context=Context(clock=FakeClock()))
    assert (await world.send(transport, httpx.Request("GET", URL))).status_code == 200


# Interrupts and cancellations


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
    world: World,
    layer: Any,
    answer: str,
    interrupt: type[BaseException],
    caplog: pytest.LogCaptureFixture,
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


# Deadlines


@pytest.mark.real_time
@pytest.mark.parametrize("kind", STALLING)
async def test_at_the_deadline_any_operation_is_abandoned_and_the_flow_cleans_up(
    world: World, kind: str
) -> None:
    bench = Bench(world, kind)
    bench.clock = FakeClock() if kind == "sleep" else SystemClock()
    if kind == "run" and not world.is_async:
        # A thread cannot be cancelled: work in a thread is told how long it may take.
        bench.stall.sync = too_late  # type: ignore[method-assign]
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await bench.send(deadline=SHORT)
    finally:
        bench.stall.released.set()
    assert caught.value.request.url == URL
    assert bench.body.closed
    assert bench.log == ["begun", "DeadlineExceededError", "cleaned up"]
    assert bench.given_back == 1


def too_late(left: float) -> None:
    assert left <= SHORT
    raise DeadlineExceededError("not in time")


@pytest.mark.real_time
async def test_an_unwanted_body_is_abandoned_well_before_the_deadline(world: World) -> None:
    bench = Bench(world, "drain")
    bench.clock = SystemClock()
    try:
        await bench.send(deadline=1.0)
    finally:
        bench.stall.released.set()
    assert bench.log == ["begun", "done"]
    assert len(bench.wire.requests) == 1


@pytest.mark.parametrize("kind", [*STALLING, "drain", "close", "clean-up run"])
async def test_after_the_deadline_only_clean_up_starts(world: World, kind: str) -> None:
    bench = Bench(world, kind)

    def late(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        bench.clock.advance(2.0)
        response: httpx.Response = yield from layer.forward(request, attempt)
        return response

    request = httpx.Request("GET", URL, extensions={"stkai": RequestOptions(deadline=1.0)})
    with pytest.raises(DeadlineExceededError):
        await world.send(bench.transport(Layer("late", late)), request)
    assert not bench.stall.entered
    assert bench.wire.requests == []
    if kind in {"drain", "close", "clean-up run"}:
        assert bench.log == ["begun", "done"]
        assert bench.stalling.closed == (kind != "clean-up run")
    else:
        assert bench.log == ["begun", "DeadlineExceededError", "cleaned up"]
        assert bench.body.closed
        assert bench.given_back == 1


async def test_a_flow_may_set_an_earlier_deadline_but_never_a_later_one(world: World) -> None:
    left: list[float] = []

    async def later(seconds: float) -> None:
        left.append(seconds)

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        for deadline in (30.0, 10.0, 20.0):
            yield Until(deadline)
            yield Run(left.append, later)
        response: httpx.Response = yield from layer.forward(request, attempt)
        return response

    transport = world.layer(Layer("own", flow), world.wire(200, 200), context=Context(clock=FakeClock()))
    await world.send(transport, httpx.Request("GET", URL))
    options = {"stkai": RequestOptions(deadline=15.0)}
    await world.send(transport, httpx.Request("GET", URL, extensions=options))
    assert left == [30.0, 10.0, 10.0, 15.0, 10.0, 10.0]


async def test_a_timeout_error_of_a_wire_is_not_the_deadline(world: World) -> None:
    """Python's own TimeoutError, which a custom wire may raise."""
    error = TimeoutError("the tape is stuck")
    bench = Bench(world, "send", error)
    with pytest.raises(TimeoutError) as caught:
        await bench.send(deadline=60.0)
    assert caught.value is error


@pytest.mark.parametrize("limit", [3, 5, 1000])
async def test_a_body_can_be_loaded_in_part_and_read_afterwards(world: World, limit: int) -> None:
    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        response: httpx.Response = yield from layer.forward(request, attempt)
        yield Load(response, limit)
        assert wire.open == 0, "the connection is free"
        return response

    class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (b"12", b"34", b"56")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self:
                yield piece

    for deadline in (None, 60.0):
        wire = world.wire(httpx.Response(200, stream=of_streams(Pieces)()))
        transport = world.layer(Layer("own", flow), wire, context=Context(clock=FakeClock()))
        request = httpx.Request("GET", URL, extensions={"stkai": RequestOptions(deadline=deadline)})
        response = await world.send(transport, request)
        assert await world.read(response) == {3: b"1234", 5: b"123456", 1000: b"123456"}[limit]


# Other transports in between


def plain(world: World, inner: Any, log: list[str]) -> Any:
    """A transport of the package that is not a layer."""
    base: Any = world.pick(httpx.BaseTransport, httpx.AsyncBaseTransport)

    class Plain(base):  # type: ignore[misc]
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            log.append("in")
            response: httpx.Response = inner.handle_request(request)
            log.append("out")
            return response

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            log.append("in")
            response: httpx.Response = await inner.handle_async_request(request)
            log.append("out")
            return response

    return Plain()


async def test_one_call_passes_layers_on_both_sides_of_another_transport(world: World) -> None:
    log: list[str] = []
    clock = FakeClock()
    context = Context(clock=clock, random=lambda: 0.0)
    wire = world.wire(200, httpx.ConnectError("refused"), 503, 200)
    inner = world.layer(token_bucket(TokenBucket(1, 10.0)), wire, context=context)
    transport = world.layer(retry(RetryPolicy(initial_delay=1.0)), plain(world, inner, log), context=context)
    await world.send(transport, httpx.Request("POST", URL))
    response = await world.send(transport, httpx.Request("POST", URL))
    record = response.extensions["stkai"]
    assert record.attempts == 3
    assert record.backed_off + record.queued == pytest.approx(clock.monotonic())
    assert log == ["in", "out", "in", "in", "out", "in", "out"]
    assert wire.open == 2


async def test_the_deadline_holds_below_another_transport(world: World) -> None:
    clock = FakeClock()
    context = Context(clock=clock)
    inner = world.layer(token_bucket(TokenBucket(1, 10.0)), world.wire(200), context=context)
    transport = world.layer(retry(RetryPolicy(deadline=5.0)), plain(world, inner, []), context=context)
    await world.send(transport, httpx.Request("POST", URL))
    with pytest.raises(DeadlineExceededError, match="a permit takes 10 s"):
        await world.send(transport, httpx.Request("POST", URL))
    assert clock.sleeps == []


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancellation_passes_through_all_drivers_and_each_cleans_up(world: World) -> None:
    bench = Bench(world, "send")
    log: list[str] = []
    policy = TokenBucket(1, 10.0)
    outer = world.layer(
        token_bucket(policy), plain(world, bench.transport(), log), context=Context(clock=bench.clock)
    )
    async with anyio.create_task_group() as group:
        group.start_soon(world.send, outer, httpx.Request("POST", URL))
        await bench.stalled()
        group.cancel_scope.cancel()
    assert log == ["in"]
    bench.assert_cleaned_up(anyio.get_cancelled_exc_class().__name__)
    assert policy.waiting == 0


# Nothing is left behind


class Pause:
    """An awaitable that suspends its coroutine, without an event loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("kind", ["send", "run"])
@pytest.mark.parametrize("outer", [0, 2])
def test_a_coroutine_that_is_closed_ends_its_flow(world: World, kind: str, outer: int) -> None:
    """Whatever is outside it: `yield from` would close the flow inside, and not let it clean up."""
    bench = Bench(world, kind)
    through = [
        Layer(f"outer {number}", lambda layer, request, attempt: layer.forward(request, attempt))
        for number in range(outer)
    ]

    async def pause(*_: Any) -> Any:
        await Pause()

    bench.stall.wait = pause  # type: ignore[method-assign]
    coroutine = bench.transport(*through).handle_async_request(httpx.Request("GET", URL))
    coroutine.send(None)
    coroutine.close()
    assert bench.log == ["begun", "AbandonedCallError", "cleaned up"], "it cleans up what needs no waiting"


@pytest.mark.worlds("asyncio")
def test_a_call_that_is_dropped_while_queued_gives_up_its_place(world: World) -> None:
    policy = TokenBucket(1, 10.0)
    assert took(policy, 0.0)

    class Clock(FakeClock):
        async def asleep(self, seconds: float) -> None:
            await Pause()

    transport = world.layer(token_bucket(policy), world.wire(), context=Context(clock=Clock()))
    coroutine = transport.handle_async_request(httpx.Request("POST", URL))
    coroutine.send(None)
    assert policy.waiting == 1
    coroutine.close()
    assert policy.waiting == 0


OUTCOMES: dict[str, Callable[[], Any]] = {
    "an error": lambda: httpx.ReadError("reset"),
    "a final error": lambda: httpx.UnsupportedProtocol("ftp"),
    "an answer": lambda: 200,
    "a refusal": lambda: 503,
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_a_call_leaves_no_reference_cycle_behind(
    world: World, outcome: str, deadline: float | None
) -> None:
    layers = (retry(RetryPolicy(1)), token_bucket(TokenBucket(100, 1.0)))
    wire = httpx.MockTransport(lambda _: answer())
    transport = world.build(StackBuilder(layers, clock=FakeClock(), listener=[]), wire)

    made = OUTCOMES[outcome]

    def answer() -> httpx.Response:
        if "error" in outcome:
            raise made()
        return httpx.Response(made(), content=b"body")

    async def call() -> None:
        extensions = {"stkai": RequestOptions(deadline=deadline)}
        try:
            response = await world.send(transport, httpx.Request("GET", URL, extensions=extensions))
            await world.read(response)
        except httpx.TransportError:
            pass

    await call()  # Imports, caches.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        await call()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [thing for thing in gc.garbage if _is_ours(thing)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        if was_enabled:
            gc.enable()
    assert ours == []


def _is_ours(thing: object) -> bool:
    module = getattr(type(thing), "__module__", None) or ""
    return module.split(".")[0] in {"stkai", "httpx", "httpx2", "tenacity"} or isinstance(
        thing, BaseException
    )


def test_one_driver_runs_all_layers_of_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[object] = []

    def counting(*arguments: Any) -> httpx.Response:
        driven.append(arguments)
        return drive(*arguments)

    monkeypatch.setattr("stkai.transports._base.drive", counting)
    layers = (retry(), token_bucket(TokenBucket(1, 1.0)), Layer("own", LayerTransport.forward))
    world = World("sync")
    transport = world.build(StackBuilder(layers, clock=FakeClock()), world.wire(200))
    transport.handle_request(httpx.Request("GET", URL))
    assert len(driven) == 1
