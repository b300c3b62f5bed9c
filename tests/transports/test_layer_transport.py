"""The two base transports of every layer, their context, and which wires they believe."""

import weakref
from typing import Any, Self

import httpx
import pytest

import stkai
from stkai import (
    CallRecord,
    ConfigurationError,
    Context,
    Layer,
    RetryPolicy,
    RetryScheduled,
    StaticToken,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import (
    AsyncAuthTransport,
    AsyncLayerTransport,
    AsyncRetryTransport,
    AsyncTokenBucketTransport,
    Attempt,
    AuthTransport,
    Call,
    Flow,
    LayerBase,
    LayerTransport,
    RetryTransport,
    TokenBucketTransport,
)
from stkai.transports._call import ATTEMPT
from stkai.transports._options import OPTIONS

from ..support.event_log import CALL, EventLog
from ..support.ids import spelled
from ..support.wire import Foreign, Wire
from ..support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/v1?key=hidden"
# The context


def test_by_default_events_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    event = RetryScheduled(call=CALL, attempt=1, delay=0.5, cause="503")
    with caplog.at_level("INFO", logger="stkai"):
        Context().emit(event)
    assert caplog.messages == [str(event)]


# The transports


def mark(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
    """A custom layer, written as the documentation says."""
    seen.append(attempt)
    response: httpx.Response = yield from layer.forward(request, attempt)
    return response


class Marking(LayerTransport):
    """The same as a class."""

    name = "marking"
    flow = mark


class AsyncMarking(AsyncLayerTransport):
    """The same for the async world."""

    name = "marking"
    flow = mark


seen: list[Attempt] = []
LAYER = Layer("marking", mark)
PLAIN = Layer("layer", LayerTransport, AsyncLayerTransport)


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


async def test_a_layer_that_does_nothing_passes_everything_on(world: World) -> None:
    wire = world.wire(httpx.Response(201, headers={"A": "1"}, content=b"body"))
    request = httpx.Request("POST", URL, headers={"B": "2"}, content=b"sent", extensions={"x": 1})
    response = await world.send(world.layer(PLAIN, wire), request)
    assert (response.status_code, response.headers["A"], await world.read(response)) == (201, "1", b"body")
    (sent,) = wire.requests
    assert (sent.method, str(sent.url), sent.headers) == ("POST", URL, request.headers)
    assert sent.extensions["x"] == 1
    assert wire.bodies == [b"sent"]


class Outer(LayerTransport):
    """A layer that does its work in httpx's own method."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.headers["X-Passed"] = str(len(seen))
        return response


class AsyncOuter(AsyncLayerTransport):
    """The same for the async world."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.headers["X-Passed"] = str(len(seen))
        return response


async def test_a_layer_that_overrides_httpxs_own_method_is_not_bypassed(world: World) -> None:
    stack = stkai.StackBuilder(
        (LAYER, Layer("other", Outer, AsyncOuter), Layer("inner", Marking, AsyncMarking))
    )
    request = httpx.Request("GET", URL, extensions={"x": 1})
    response = await world.send(world.build(stack, world.wire(200)), request)
    assert response.headers["X-Passed"] == "2"
    assert len(seen) == 2
    assert seen[0] is seen[1], "it is still one call"
    assert request.extensions == {"x": 1}


def note(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
    """An own `forward`, which ends in the one of the base class."""
    seen.append(attempt)
    response: httpx.Response = yield from super(type(layer), layer).forward(request, attempt)
    return response


class Noting(LayerTransport):
    """A layer that overrides how it sends inward."""

    forward = note


class AsyncNoting(AsyncLayerTransport):
    """The same for the async world."""

    forward = note


async def test_a_layer_that_overrides_forward_is_not_bypassed(world: World) -> None:
    noting: Any = world.pick(Noting, AsyncNoting)
    transport = noting(world.layer(LAYER, noting(world.wire(200))))
    assert (await world.send(transport, httpx.Request("GET", URL))).status_code == 200
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_all_layers_of_a_stack_see_one_call_and_its_record_is_on_the_response(world: World) -> None:
    clock = FakeClock(100.0)

    async def wire(request: httpx.Request) -> int:
        await world.sleep(clock, 2.5)
        return 200

    context = Context(clock=clock)
    inner = world.layer(LAYER, world.wire(wire), context=context)
    response = await world.send(world.layer(LAYER, inner, context=context), httpx.Request("GET", URL))
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert response.extensions[OPTIONS] is seen[0].record
    assert response.extensions[OPTIONS] == CallRecord(attempts=1, on_wire=2.5)


async def test_the_callers_request_is_not_changed(world: World) -> None:
    request = httpx.Request("POST", URL, content=b"body", extensions={"timeout": {"read": 5.0}})
    before = {**request.__dict__, "headers": request.headers.copy(), "extensions": {"timeout": {"read": 5.0}}}
    await world.send(world.layer(LAYER, world.wire(200)), request)
    assert request.__dict__ == before


async def test_each_call_through_a_stack_is_a_new_one(world: World) -> None:
    transport = world.layer(LAYER, world.wire(200, 200))
    request = httpx.Request("GET", URL)
    await world.send(transport, request)
    await world.send(transport, request)
    assert seen[0] is not seen[1]


async def test_an_attempt_continues_in_a_stack_below_another_transport(world: World) -> None:
    log = EventLog()
    request = httpx.Request("GET", URL)
    attempt = request.extensions[ATTEMPT] = Attempt(Call.start(request, 0.0, buffered=True))
    transport = world.layer(LAYER, world.wire(200), context=Context(listener=log))
    response = await world.send(transport, request)
    assert seen == [attempt]
    assert OPTIONS not in response.extensions, "the layer that began the call finishes it"
    assert [type(event).__name__ for event in log.events] == ["AttemptStarted", "AttemptFinished"]


async def test_a_subclass_of_any_layer_that_overrides_forward_sees_every_request(world: World) -> None:
    passed: list[str] = []

    class Seen(LayerBase):
        def forward(self, request: httpx.Request, attempt: Attempt) -> Flow:
            passed.append(self.name)
            return (yield from super().forward(request, attempt))

    def seen_by(kind: Any, inner: Any, policy: Any) -> Any:
        return type("Mine", (Seen, kind), {})(inner, policy)

    limiting = seen_by(
        world.pick(TokenBucketTransport, AsyncTokenBucketTransport), world.wire(200), TokenBucket(9, 1.0)
    )
    signing = seen_by(world.pick(AuthTransport, AsyncAuthTransport), limiting, StaticToken("token"))
    transport = seen_by(world.pick(RetryTransport, AsyncRetryTransport), signing, RetryPolicy())
    assert (await world.send(transport, httpx.Request("GET", URL))).status_code == 200
    assert passed == ["retry", "auth", "token_bucket"]
    gone = weakref.ref(limiting)
    del limiting, signing, transport
    assert gone() is None, "a layer does not refer to itself"


async def test_a_layer_is_one_function_or_one_method(world: World) -> None:
    kind: Any = world.pick(LayerTransport, AsyncLayerTransport)
    own: Any = world.pick(Marking, AsyncMarking)
    transport = own(kind(world.layer(LAYER, world.wire(200)), mark, name="third"))
    assert (await world.send(transport, httpx.Request("GET", URL))).status_code == 200
    assert len(seen) == 3
    assert str(transport) == "marking > third > marking > wire"


@pytest.mark.parametrize("flow", [None, "flow", 7])
def test_a_layer_without_a_flow_is_refused_by_name(flow: Any) -> None:
    with pytest.raises(ConfigurationError, match="'audit' needs one flow"):
        Layer("audit", flow)
    if flow is not None:
        with pytest.raises(ConfigurationError, match="'audit' needs one flow"):
            Layer("audit", mark, flow)
    with pytest.raises(ConfigurationError, match="needs a name"):
        Layer("", mark)
    if flow is not None:
        with pytest.raises(ConfigurationError, match=f"'layer' is {flow!r}: a flow is a generator function"):
            LayerTransport(Wire(), flow)


async def test_the_inner_transport_of_a_layer_cannot_be_replaced(world: World) -> None:
    transport = world.layer(PLAIN, wire := world.wire())
    with pytest.raises(AttributeError, match="inner"):
        transport.inner = world.wire()
    assert transport.inner is wire


async def test_a_stack_enters_and_leaves_its_wire(world: World) -> None:
    calls: list[str] = []

    class Own(Wire):
        def __enter__(self) -> Self:
            calls.append("enter")
            return self

        def __exit__(self, *exc_info: object) -> None:
            calls.append(f"exit {exc_info[0]}")

        async def __aenter__(self) -> Self:
            return self.__enter__()

        async def __aexit__(self, *exc_info: object) -> None:
            self.__exit__(*exc_info)

    transport = world.layer(LAYER, world.layer(LAYER, Own(200)))
    client = world.client(transport)
    enter, leave = world.pick(("__enter__", "__exit__"), ("__aenter__", "__aexit__"))
    await world.call(getattr(client, enter))
    assert (await world.call(client.get, URL)).status_code == 200
    await world.call(getattr(client, leave), None, None, None)
    assert calls == ["enter", "exit None"]


@pytest.mark.parametrize(
    ("kind", "inner", "words"),
    [
        (LayerTransport, httpx.AsyncHTTPTransport(), "BaseTransport inside, not <httpx.AsyncHTTPTransport"),
        (AsyncLayerTransport, httpx.HTTPTransport(), "AsyncBaseTransport inside, not <httpx.HTTPTransport"),
        (LayerTransport, AsyncMarking(Wire()), "not <AsyncMarking marking"),
        (LayerTransport, httpx.HTTPTransport, "not <class 'httpx.HTTPTransport'>"),
        (AsyncLayerTransport, None, "not None"),
        (RetryTransport, RetryPolicy(), "not RetryPolicy"),
        (LayerTransport, httpx.Client(), "not <httpx.Client"),
    ],
    ids=spelled,
)
def test_a_layer_around_something_other_than_a_transport_of_its_kind_is_refused(
    kind: Any, inner: Any, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        kind(inner)


# Which wires raise a ConnectError only if nothing was sent


class Renamed(httpx.HTTPTransport):
    """Sends as its base class does."""


class Sending(httpx.HTTPTransport):
    """Sends in its own way."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return super().handle_request(request)


class Observing(LayerTransport):
    """A layer that must see every request at httpx's own method."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return super().handle_request(request)


class OtherwiseAsync(httpx.MockTransport):
    """Sends in its own way, but only for async clients."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError


def hello(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200)


@pytest.mark.parametrize(
    ("wire", "is_sound"),
    [
        (httpx.HTTPTransport(), True),
        (httpx.MockTransport(hello), True),
        (httpx.WSGITransport(lambda *_: []), True),
        (Renamed(), True),
        (OtherwiseAsync(hello), True),
        (Sending(), False),
        (Foreign(), False),
        (Foreign(httpx.HTTPTransport()), False),
        (Foreign(stkai.build_transport(auth=None)), False),
        (stkai.build_transport(auth=None), True),
        (LayerTransport(Foreign()), False),
        (LayerTransport(LayerTransport(httpx.MockTransport(hello))), True),
        (Observing(httpx.MockTransport(hello)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, httpx.BaseTransport) else None,
)
def test_connection_errors_are_believed_of_known_wires_only(
    wire: httpx.BaseTransport, is_sound: bool
) -> None:
    assert RetryTransport(wire).wire_is_sound is is_sound
    if isinstance(wire, OtherwiseAsync):
        assert not AsyncRetryTransport(wire).wire_is_sound


@pytest.mark.parametrize(
    ("wire", "policy", "attempts"),
    [
        (httpx.MockTransport, {}, 4),
        (httpx.MockTransport, {"retry_unknown": False}, 4),
        (Foreign, {}, 4),
        (Foreign, {"retry_unknown": False}, 1),
        (Foreign, {"retry_unknown": False, "trust_connect_errors": True}, 4),
    ],
)
def test_after_a_connection_error_of_an_unknown_wire_a_post_is_sent_once_if_it_must_not_be_repeated(
    wire: Any, policy: dict[str, Any], attempts: int
) -> None:
    sent: list[httpx.Request] = []

    def drop(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        raise httpx.ConnectTimeout("the connection dropped after the request was read")

    inner = httpx.MockTransport(drop)
    transport = RetryTransport(
        inner if wire is httpx.MockTransport else wire(inner),
        RetryPolicy(initial_delay=0, **policy),
        context=Context(clock=FakeClock()),
    )
    with pytest.raises(httpx.ConnectTimeout):
        transport.handle_request(httpx.Request("POST", URL))
    assert len(sent) == attempts
