"""StackBuilder: layers in order, bound to a wire; and what it refuses."""

import inspect
from typing import Any

import httpx
import pytest

import stkai
from stkai import AimdLimiter, Layer, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import (
    AsyncLayerTransport,
    Attempt,
    Context,
    Flow,
    LayerBase,
    LayerTransport,
    adaptive,
    auth,
    retry,
    token_bucket,
)

from .support.ids import spelled
from .support.wire import Foreign, Wire
from .support.world import World

URL = "https://api.example.com/v1/things"


class Provider(stkai.AuthProvider):
    def __init__(self, refresh_margin: float = 60.0) -> None:
        self.refresh_margin = refresh_margin

    def get_access_token(self) -> str:
        return "the-token"


def standard_layers() -> tuple[Layer, ...]:
    return (retry(RetryPolicy()), auth(Provider()), adaptive(AimdLimiter(max_requests=100, time_window=60)))


def test_a_stack_prints_its_layers_outermost_first() -> None:
    stack = StackBuilder(standard_layers())
    assert str(stack) == "retry > auth > adaptive > wire"
    assert repr(stack) == "<StackBuilder retry > auth > adaptive > wire>"
    assert str(StackBuilder()) == "wire"


def test_a_built_transport_prints_like_its_stack() -> None:
    stack = StackBuilder(standard_layers())
    assert str(stack.build(Wire())) == str(stack)
    assert str(stack.build_async(Wire())) == str(stack)


def test_layers_can_be_added_anywhere_and_the_old_stack_is_unchanged() -> None:
    stack = StackBuilder([retry(), auth(Provider())])
    bucket = token_bucket(TokenBucket(1, 1))
    assert str(stack.layer(bucket)) == "retry > auth > token_bucket > wire"
    assert str(stack.outside("auth", bucket)) == "retry > token_bucket > auth > wire"
    assert str(stack.outside("retry", bucket)) == "token_bucket > retry > auth > wire"
    assert str(stack.inside("retry", bucket)) == "retry > token_bucket > auth > wire"
    assert str(stack.inside("auth", bucket)) == "retry > auth > token_bucket > wire"
    assert str(stack) == "retry > auth > wire"


async def test_a_layer_can_be_added_to_the_standard_stack_and_its_arguments(world: World) -> None:
    seen: list[str] = []

    def mine(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        seen.append(f"{request.method} {attempt.number}")
        return (yield from layer.forward(request, attempt))

    bucket, clock = TokenBucket(5, 60), FakeClock()
    stack = StackBuilder.standard(
        auth=None, rate_limit=bucket, retry=RetryPolicy(1), clock=clock, listener=[], random=lambda: 0.0
    ).inside("retry", Layer("mine", mine))
    assert str(stack) == "retry > mine > token_bucket > wire"
    assert (stack.context.clock, stack.context.random()) == (clock, 0.0)
    response = await world.send(world.build(stack, world.wire(503, 200)), httpx.Request("POST", URL))
    assert response.status_code == 200
    assert seen == ["POST 1", "POST 2"]
    assert clock.sleeps == [0.5]


BUILDERS: list[Any] = [
    stkai.build_client,
    stkai.build_async_client,
    stkai.build_transport,
    stkai.build_async_transport,
    StackBuilder.standard,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_an_argument_that_belongs_elsewhere_is_a_type_error_that_says_where(build: Any) -> None:
    with pytest.raises(
        TypeError,
        match=r"'timeout': it belongs to each call, .*timeout=60\), or .*httpx\.Client\(.*timeout=60",
    ):
        build(auth=None, timeout=60)
    with pytest.raises(
        TypeError, match=r"'base_url': it belongs to an httpx client .*httpx\.Client\(.*base_url=\.\.\.\)$"
    ):
        build(auth=None, base_url="https://api.example.com")
    with pytest.raises(
        TypeError, match=r"'verify': it belongs to the wire: .*HTTPTransport\(verify=\.\.\.\)"
    ):
        build(auth=None, verify=False)
    with pytest.raises(
        TypeError, match=r"'retries': pass a policy, such as retry=stkai\.RetryPolicy\(max_retries=3\)$"
    ):
        build(retries=3)
    with pytest.raises(
        TypeError, match=r"'max_retries': it belongs to the policy: .*RetryPolicy\(max_retries="
    ):
        build(auth=None, max_retries=3)
    with pytest.raises(
        TypeError, match=r"'max_requests': it belongs to a limiter, .*TokenBucket\(.*max_requests="
    ):
        build(auth=None, max_requests=100)
    with pytest.raises(
        TypeError,
        match=rf"{build.__name__}\(\) got an unexpected keyword argument 'ratelimit'; .* auth, rate_limit, retry",
    ):
        build(ratelimit=None)


def test_a_builder_takes_its_wire_when_it_builds() -> None:
    with pytest.raises(TypeError, match=r"'transport': it belongs to build\(transport\) or build_async"):
        StackBuilder.standard(transport=Wire())  # type: ignore[call-arg]


def test_a_standard_stack_whose_settings_are_none_says_how_to_pass_the_rest() -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"not a str; .* rate_limit='adaptive'"):
        StackBuilder.standard("adaptive")  # type: ignore[arg-type]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_signature_and_help_show_every_argument_in_plain_types(build: Any) -> None:
    shown = f"{inspect.signature(build)}\n{build.__doc__}"
    for name in ("auth", "rate_limit", "retry", "listener", "clock", "random", "cost", "settle"):
        assert inspect.signature(build).parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n    {name}: " in build.__doc__
    assert ("transport" in inspect.signature(build).parameters) == ("    transport: " in build.__doc__)
    assert "retry: 'RetryPolicy | None' = ..." in shown
    assert [word for word in ("ForwardRef", "_Unset", "UNSET") if word in shown] == []


def test_an_extended_stack_keeps_its_clock_listener_and_randomness() -> None:
    clock, events = FakeClock(), list[stkai.Event]()
    stack = StackBuilder([retry()], clock=clock, listener=[events.append], random=lambda: 0.5)
    transport: Any = stack.layer(token_bucket(TokenBucket(1, 1))).build(Wire())
    for layer in (transport, transport.inner):
        context: Context = layer.context
        assert (context.clock, context.listener, context.random()) == (clock, events.append, 0.5)


def test_extending_a_subclass_yields_that_subclass() -> None:
    class Mine(StackBuilder):
        pass

    assert type(Mine().layer(retry())) is Mine


@pytest.mark.parametrize("change", ["outside", "inside"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(change: str) -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"no layer 'limiter'.*it has: retry, auth"):
        getattr(StackBuilder([retry(), auth(Provider())]), change)("limiter", retry())
    with pytest.raises(stkai.ConfigurationError, match="it has: none"):
        getattr(StackBuilder(), change)("retry", retry())


def test_two_layers_with_the_same_name_are_an_error() -> None:
    with pytest.raises(stkai.ConfigurationError, match="two layers named 'retry'"):
        StackBuilder([retry(), retry()])
    stack = StackBuilder([retry(), auth(Provider())])
    for change in (
        stack.layer,
        lambda layer: stack.outside("auth", layer),
        lambda layer: stack.inside("auth", layer),
    ):
        with pytest.raises(stkai.ConfigurationError, match=r"two layers named 'retry'.*rename it"):
            change(retry())


@pytest.mark.parametrize("layers", [[RetryPolicy()], ["retry"], [retry], retry(), 5], ids=spelled)
def test_something_other_than_a_layer_is_an_error_that_shows_one(layers: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"such as \[?stkai\.transports\.retry"):
        StackBuilder(layers)


def test_a_wire_of_the_other_kind_is_an_error_that_says_what_to_call() -> None:
    stack = StackBuilder(standard_layers())
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.BaseTransport.*build_async\(\)"):
        stack.build(httpx.AsyncHTTPTransport())  # type: ignore[arg-type]
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.AsyncBaseTransport.*build\(\)"):
        stack.build_async(httpx.HTTPTransport())  # type: ignore[arg-type]
    with pytest.raises(stkai.ConfigurationError, match=r"or build_async_client\(\)"):
        stkai.build_client(auth=None, transport=httpx.AsyncHTTPTransport())  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", [httpx.Client(), httpx.HTTPTransport, "https://example.com"], ids=spelled)
def test_something_other_than_a_transport_is_an_error(wire: Any) -> None:
    for build in (StackBuilder().build, StackBuilder().build_async):
        with pytest.raises(stkai.ConfigurationError, match="the wire must be an httpx"):
            build(wire)


async def test_a_stack_sends_through_its_layers_in_order(world: World) -> None:
    seen: list[str] = []

    def named(name: str) -> Layer:
        def flow(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
            seen.append(name)
            return (yield from layer.forward(request, attempt))

        return Layer(name, flow)

    wire = world.wire(200)
    transport = world.build(StackBuilder([named("a"), named("b"), named("c")]), wire)
    await world.send(transport, httpx.Request("GET", URL))
    assert seen == ["a", "b", "c"]
    await world.close(transport)
    assert wire.closed


async def test_a_stack_without_layers_is_its_wire(world: World) -> None:
    wire = world.wire()
    assert world.build(StackBuilder(), wire) is wire


# Custom layers


@pytest.mark.parametrize("place", ["outside", "inside"])
async def test_any_httpx_transport_can_be_a_layer(world: World, place: str) -> None:
    wire = world.wire(503, 200)
    stack = StackBuilder([retry()], clock=FakeClock())
    made: list[Foreign] = []

    def foreign(inner: Any, *, context: Context) -> Foreign:
        made.append(Foreign(inner))
        return made[0]

    stack = getattr(stack, place)("retry", Layer("foreign", foreign, foreign))
    response = await world.send(world.build(stack, wire), httpx.Request("GET", URL))
    assert response.status_code == 200
    assert made[0].log == ["in", "out"] * (1 if place == "outside" else 2)
    assert response.extensions["stkai"].attempts == 2


async def test_a_layer_that_does_not_make_a_transport_is_an_error_that_names_the_layer(world: World) -> None:
    layer = Layer("mine", lambda inner, context: None, lambda inner, context: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(stkai.ConfigurationError, match="what the layer 'mine' makes"):
        world.build(StackBuilder([layer]), world.wire())


async def test_a_layer_of_the_other_kind_is_an_error_that_names_the_layer(world: World) -> None:
    layer = Layer("mine", AsyncLayerTransport, LayerTransport)  # type: ignore[arg-type]
    wire: Any = httpx.AsyncHTTPTransport() if world.is_async else httpx.HTTPTransport()
    with pytest.raises(stkai.ConfigurationError, match=r"LayerTransport needs an httpx\.\w+ inside"):
        world.build(StackBuilder([layer]), wire)


async def test_a_context_of_another_kind_is_refused(world: World) -> None:
    make: Any = world.pick(LayerTransport, AsyncLayerTransport)
    with pytest.raises(stkai.ConfigurationError, match=r"context must be a stkai\.Context"):
        make(world.wire(), context=stkai.SystemClock())
