"""What a driver sends back into a flow, and what it raises; it may be called by another transport."""

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
    drive,
    retry,
    token_bucket,
)

from ...support.clients import Body
from ...support.ids import spelled
from ...support.wire import Foreign, of_streams
from ...support.world import NAMES, World
from .bench import URL, Bench

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]


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
    message = r"'own' yielded .*: a flow is .*it yields operations of stkai.transports, such as Sleep\(1.0\)"
    with pytest.raises(ConfigurationError, match=message):
        await world.send(transport, httpx.Request("GET", URL, extensions=options))


async def test_an_error_while_closing_is_ignored(world: World) -> None:
    class Stuck(Body):
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

    for deadline in (None, 60.0):
        wire = world.wire(httpx.Response(200, stream=of_streams(Body)(b"12", b"34", b"56")))
        transport = world.layer(Layer("own", flow), wire, context=Context(clock=FakeClock()))
        request = httpx.Request("GET", URL, extensions={"stkai": RequestOptions(deadline=deadline)})
        response = await world.send(transport, request)
        assert await world.read(response) == {3: b"1234", 5: b"123456", 1000: b"123456"}[limit]


def test_one_driver_runs_all_layers_of_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[object] = []

    def counting(*arguments: Any) -> httpx.Response:
        driven.append(arguments)
        return drive(*arguments)

    monkeypatch.setattr("stkai.transports._layer_transport.drive", counting)
    layers = (retry(), token_bucket(TokenBucket(1, 1.0)), Layer("own", LayerTransport.forward))
    world = World("sync")
    transport = world.build(StackBuilder(layers, clock=FakeClock()), world.wire(200))
    transport.handle_request(httpx.Request("GET", URL))
    assert len(driven) == 1


# Other transports in between


async def test_one_call_passes_layers_on_both_sides_of_another_transport(world: World) -> None:
    clock = FakeClock()
    context = Context(clock=clock, random=lambda: 0.0)
    wire = world.wire(200, httpx.ConnectError("refused"), 503, 200)
    inner = world.layer(token_bucket(TokenBucket(1, 10.0)), wire, context=context)
    between = Foreign(inner)
    transport = world.layer(retry(RetryPolicy(initial_delay=1.0)), between, context=context)
    await world.send(transport, httpx.Request("POST", URL))
    response = await world.send(transport, httpx.Request("POST", URL))
    record = response.extensions["stkai"]
    assert record.attempts == 3
    assert record.backed_off + record.queued == pytest.approx(clock.monotonic())
    assert between.log == ["in", "out", "in", "in", "out", "in", "out"]
    assert wire.open == 2


async def test_the_deadline_holds_below_another_transport(world: World) -> None:
    clock = FakeClock()
    context = Context(clock=clock)
    inner = world.layer(token_bucket(TokenBucket(1, 10.0)), world.wire(200), context=context)
    transport = world.layer(retry(RetryPolicy(deadline=5.0)), Foreign(inner), context=context)
    await world.send(transport, httpx.Request("POST", URL))
    with pytest.raises(DeadlineExceededError, match="a permit takes 10 s"):
        await world.send(transport, httpx.Request("POST", URL))
    assert clock.sleeps == []


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancellation_passes_through_all_drivers_and_each_cleans_up(world: World) -> None:
    bench = Bench(world, "send")
    between = Foreign(bench.transport())
    policy = TokenBucket(1, 10.0)
    outer = world.layer(token_bucket(policy), between, context=Context(clock=bench.clock))
    async with anyio.create_task_group() as group:
        group.start_soon(world.send, outer, httpx.Request("POST", URL))
        await bench.stalled()
        group.cancel_scope.cancel()
    assert between.log == ["in"]
    bench.assert_cleaned_up(anyio.get_cancelled_exc_class().__name__)
    assert policy.waiting == 0
