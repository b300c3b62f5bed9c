"""Layers as their authors write them: against httpx, and run in httpx and in httpx2, with every mistake explained."""

import sys
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from typing import Any

import httpx
import pytest

from stkai import ConfigurationError, Context, InvalidArgumentError, Layer, RetryableError, StackBuilder
from stkai.testing import FakeClock
from stkai.transports import (
    AsyncLayerTransport,
    Attempt,
    Call,
    Close,
    Flow,
    LayerBase,
    LayerTransport,
    Run,
    Send,
    Sleep,
    alike,
    play,
    response_like,
    retry,
)

from ..support.wire import Wire
from ..support.world import World

URL = "https://api.example.com/v1"


def hold_back(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
    """Give a server that is starting up two seconds."""
    try:
        return (yield from layer.forward(request, attempt))
    except alike(httpx.ConnectError):
        yield Sleep(2.0)
        return (yield from layer.forward(request, attempt))


def cached(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
    """Answer without sending."""
    if request.url.path == "/cached":
        return response_like(request, 203, headers={"x-cache": "hit"}, json={"a": 1})
    return (yield from layer.forward(request, attempt))


class Counting(LayerBase):
    """A layer's flow in a class of its own, for both base transports."""

    name = "counting"
    passes = 0

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        self.passes += 1
        return (yield from self.forward(request, attempt))


class CountingTransport(Counting, LayerTransport):
    pass


class AsyncCountingTransport(Counting, AsyncLayerTransport):
    pass


def request_of(package: str, method: str = "GET", url: str = URL) -> Any:
    return import_module(package).Request(method, url)


async def send(world: World, package: str, transport: Any, **given: Any) -> Any:
    return await world.send(transport, request_of(package, **given))


# In both packages


async def test_alike_catches_the_errors_of_both_packages(world: World, package: str) -> None:
    error = import_module(package).ConnectError("refused")
    clock = FakeClock()
    transport = world.layer(Layer("own", hold_back), world.wire(error, 200), context=Context(clock=clock))
    assert (await send(world, package, transport)).status_code == 200
    assert clock.sleeps == [2.0]


async def test_a_layer_answers_with_a_response_of_the_requests_own_package(
    world: World, package: str
) -> None:
    transport = world.layer(Layer("own", cached), world.wire())
    module = import_module(package)
    kind = world.pick(module.Client, module.AsyncClient)
    response = await world.call(kind(transport=transport).get, "https://api.example.com/cached")
    assert isinstance(response, import_module(package).Response)
    assert (response.status_code, response.headers["x-cache"], response.json()) == (203, "hit", {"a": 1})


async def test_a_response_of_the_other_package_is_an_error_that_names_the_cure(
    world: World, package: str
) -> None:
    def answer(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        return httpx.Response(200)
        yield

    transport = world.layer(Layer("own", answer), world.wire())
    if package == "httpx":
        assert (await send(world, package, transport)).status_code == 200
        return
    with pytest.raises(
        ConfigurationError,
        match=r"'own' ended with a value of type Response instead of an httpx2.Response: .*response_like\(request",
    ):
        await send(world, package, transport)


async def test_what_a_layer_raises_is_retried_if_it_is_retryable(world: World, package: str) -> None:
    def refuse(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        if attempt.number == 1:
            raise RetryableError("not yet")
        return (yield from layer.forward(request, attempt))

    stack = StackBuilder([retry(), Layer("refuse", refuse)], clock=FakeClock())
    assert (await send(world, package, world.build(stack, world.wire(200)))).status_code == 200


async def test_a_flow_may_be_a_method_of_a_class_beside_the_transport(world: World, package: str) -> None:
    kind = world.pick(CountingTransport, AsyncCountingTransport)
    transport = kind(world.wire(200, 200))
    for _ in range(2):
        await send(world, package, transport)
    assert transport.passes == 2


async def test_a_plain_function_may_return_the_flow_of_the_next_layer(world: World, package: str) -> None:
    layer = Layer("own", lambda layer, request, attempt: layer.forward(request, attempt))
    assert (await send(world, package, world.layer(layer, world.wire(200)))).status_code == 200


# Mistakes that can be seen when the layer is made


async def coroutine(layer: Any, request: Any, attempt: Any) -> Any:
    return await layer.forward(request, attempt)


async def async_generator(layer: Any, request: Any, attempt: Any) -> AsyncIterator[Any]:
    yield layer.forward(request, attempt)


def too_few(request: Any) -> Flow:
    raise AssertionError
    yield


EARLY: dict[Any, str] = {
    coroutine: "is async, and nothing awaits it: .*yield from layer.forward",
    async_generator: "is async, and nothing awaits it: .*yield from layer.forward",
    too_few: r"cannot be called as flow\(layer, request, attempt\): too many positional arguments: a flow is",
}


@pytest.mark.parametrize("flow", EARLY, ids=lambda flow: flow.__name__)
def test_a_function_that_is_no_flow_is_refused_when_the_layer_is_made(flow: Any) -> None:
    message = f"the flow of the layer 'audit' {EARLY[flow]}"
    with pytest.raises(ConfigurationError, match=message):
        Layer("audit", flow)
    with pytest.raises(ConfigurationError, match=message):
        LayerTransport(httpx.MockTransport(lambda _: httpx.Response(200)), flow, name="audit")


def test_a_callable_that_shows_no_signature_is_taken() -> None:
    assert Layer(
        "own", type("Flow", (dict,), {"__call__": lambda self, *_: None, "__signature__": None})()
    ).name


@pytest.mark.skipif(sys.version_info < (3, 14), reason="such annotations are an error of the definition")
def test_annotations_of_a_flow_may_name_what_only_type_checkers_import() -> None:
    names: dict[str, Any] = {}
    exec("def flow(layer, request: Nowhere, attempt) -> Nowhere: yield", names)  # noqa: S102
    assert Layer("own", names["flow"]).name


# Mistakes that only a request shows


def plain(layer: Any, request: Any, attempt: Any) -> Any:
    return None


def plain_response(layer: Any, request: Any, attempt: Any) -> Any:
    return response_like(request, 200)


def hidden_coroutine(layer: Any, request: Any, attempt: Any) -> Any:
    return coroutine(layer, request, attempt)


def forgets_from(layer: Any, request: Any, attempt: Any) -> Any:
    response = yield layer.forward(request, attempt)
    return response


def forgets_yield(layer: Any, request: Any, attempt: Any) -> Any:
    response = layer.forward(request, attempt)
    if response.status_code == 503:
        yield Sleep(1.0)
    return response


def forgets_both(layer: Any, request: Any, attempt: Any) -> Any:
    response = layer.forward(request, attempt)
    return response if response.status_code == 200 else None


def returns_the_flow(layer: Any, request: Any, attempt: Any) -> Any:
    yield Sleep(0.0)
    return layer.forward(request, attempt)


def forgets_return(layer: Any, request: Any, attempt: Any) -> Any:
    yield from layer.forward(request, attempt)


def returns_a_number(layer: Any, request: Any, attempt: Any) -> Any:
    yield from layer.forward(request, attempt)
    return 200


FORM = "a flow is a generator function; .*yield from layer.forward"
LATE: dict[Any, str] = {
    plain: f"returned a value of type NoneType instead of a generator: {FORM}",
    plain_response: f"returned a value of type Response instead of a generator: {FORM}",
    hidden_coroutine: f"returned a value of type coroutine instead of a generator: {FORM}",
    forgets_from: f"yielded a value of type generator: {FORM}",
    forgets_yield: f"used a generator as a response .*has no attribute 'status_code'.*: {FORM}",
    forgets_both: f"used a generator as a response .*has no attribute 'status_code'.*: {FORM}",
    returns_the_flow: f"ended with a value of type generator instead of an httpx2?.Response: {FORM}",
    forgets_return: f"ended with a value of type NoneType instead of an httpx2?.Response: {FORM}",
    returns_a_number: f"ended with a value of type int instead of an httpx2?.Response: {FORM}",
}


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
@pytest.mark.parametrize("flow", LATE, ids=lambda flow: flow.__name__)
async def test_a_wrong_flow_is_an_error_that_names_the_layer_and_the_cure(
    world: World, package: str, flow: Callable[..., Any], nested: bool
) -> None:
    outer = [retry(), Layer("outer", hold_back)] if nested else []
    stack = StackBuilder([*outer, Layer("audit", flow)], clock=FakeClock())
    with pytest.raises(ConfigurationError, match=f"^the flow of the layer 'audit' {LATE[flow]}"):
        await send(world, package, world.build(stack, world.wire(200)))


@pytest.mark.worlds("sync")
@pytest.mark.parametrize("flow", LATE, ids=lambda flow: flow.__name__)
async def test_a_wrong_method_is_explained_like_a_wrong_function(
    world: World, package: str, flow: Callable[..., Any]
) -> None:
    mixin = type("Mixin", (), {"name": "audit", "flow": flow})
    kind = type("Audit", (mixin, world.pick(LayerTransport, AsyncLayerTransport)), {})
    with pytest.raises(ConfigurationError, match=f"^the flow of the layer 'audit' {LATE[flow]}"):
        await send(world, package, kind(world.wire(200)))


async def test_an_attribute_error_of_a_flow_itself_is_raised_unchanged(world: World, package: str) -> None:
    def mistaken(layer: Any, request: Any, attempt: Any) -> Flow:
        response: Any = yield from layer.forward(request, attempt)
        wrong: httpx.Response = response.nonsense
        return wrong

    with pytest.raises(AttributeError, match="nonsense"):
        await send(world, package, world.layer(Layer("own", mistaken), world.wire(200)))


# Playing a flow by hand


def flow_of(flow: Any, package: str = "httpx") -> Flow:
    request = request_of(package)
    return LayerTransport(Wire(), flow).flow(request, Attempt(Call.start(request, 0.0)))


def test_play_returns_the_operations_and_the_response() -> None:
    answer = httpx.Response(200)
    operations, response = play(flow_of(hold_back), httpx.ConnectError("refused"), None, answer)
    assert [type(each) for each in operations] == [Send, Sleep, Send]
    assert isinstance(operations[1], Sleep)
    assert operations[1].seconds == 2.0
    assert response is answer


def test_play_raises_what_the_flow_raises() -> None:
    with pytest.raises(httpx.ReadError, match="reset"):
        play(flow_of(hold_back), httpx.ReadError("reset"))


def test_play_answers_the_last_operations_with_none_unless_they_need_more() -> None:
    def closing(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        response = yield from layer.forward(request, attempt)
        yield Close(response)
        return response

    answer = httpx.Response(200)
    operations, _ = play(flow_of(closing), answer)
    assert [type(each) for each in operations] == [Send, Close]
    with pytest.raises(InvalidArgumentError, match="operation number 1 is a Send, and there are 0 outcomes"):
        play(flow_of(closing))
    with pytest.raises(InvalidArgumentError, match="ended after 2 operations, and there are 3 outcomes"):
        play(flow_of(closing), answer, None, None)


def test_play_gives_a_run_its_value() -> None:
    async def never(_: float) -> int:
        raise AssertionError

    def looking_up(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        status = yield Run(lambda _: 201, never)
        return response_like(request, status)

    assert play(flow_of(looking_up), 404)[1].status_code == 404


def test_play_refuses_a_flow_that_was_not_started() -> None:
    with pytest.raises(
        ConfigurationError, match=r"takes a running flow, such as layer.flow\(request, attempt\)"
    ):
        play(hold_back)  # type: ignore[arg-type]


def test_a_response_like_a_request_carries_it() -> None:
    request = httpx.Request("GET", URL)
    response = response_like(request, 404, headers={"a": "1"}, content="gone")
    assert (response.status_code, response.headers["a"], response.text) == (404, "1", "gone")
    with pytest.raises(httpx.HTTPStatusError):
        response.raise_for_status()


def test_the_error_about_a_layer_that_does_not_call_the_base_constructor_says_so() -> None:
    class Forgetful(LayerTransport):
        def __init__(self, inner: Any) -> None:
            self.mine = inner

    with pytest.raises(AttributeError, match=r"its __init__ must call super\(\).__init__\(inner\)"):
        Forgetful(Wire()).handle_request(httpx.Request("GET", URL))


@pytest.mark.parametrize("seconds", [float("nan"), None, "1"])
async def test_a_sleep_that_is_no_number_is_the_same_error_everywhere(
    world: World, package: str, seconds: Any
) -> None:
    def flow(layer: Any, request: Any, attempt: Any) -> Any:
        yield Sleep(seconds)
        return (yield from layer.forward(request, attempt))

    stack = StackBuilder([Layer("slow", flow)])
    with pytest.raises(ConfigurationError, match="Sleep takes a number of seconds"):
        await send(world, package, world.build(stack, world.wire(200)))


async def test_a_sleep_until_an_instant_in_the_past_is_none(world: World, package: str) -> None:
    def flow(layer: Any, request: Any, attempt: Any) -> Any:
        yield Sleep(-0.1)
        return (yield from layer.forward(request, attempt))

    answer = await send(world, package, world.build(StackBuilder([Layer("slow", flow)]), world.wire(200)))
    assert answer.status_code == 200
