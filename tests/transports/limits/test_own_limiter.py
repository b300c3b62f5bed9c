"""A custom limiter of twenty lines works wherever one of ours does, sync and async."""

import math
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest

import stkai
from stkai import (
    AimdLimiter,
    ConfigurationError,
    InFlight,
    Limiter,
    RateChanged,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import Answer, AsyncLimiterTransport, LimiterTransport, Turn, limiter, retry

from ...support.event_log import CALL, EventLog
from ...support.gap_limiter import Gap
from ...support.ids import spelled
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/v1"


class Derived(Limiter):
    """The least that a class derived from the protocol must define."""

    methods = frozenset({"POST"})
    max_wait_time = None

    def ask(self, turn: Turn, now: float) -> float:
        return 0.0


OTHERS: list[Any] = [None, 7, "adaptive", Gap, object(), lambda turn, now: 0.0]


def builders(world: World) -> list[Any]:
    return [
        world.pick(stkai.build_client, stkai.build_async_client),
        world.pick(stkai.build_transport, stkai.build_async_transport),
    ]


async def test_every_function_that_builds_a_stack_accepts_it(world: World) -> None:
    for build in builders(world):
        clock = FakeClock()
        wire = Wire(lambda _: 200)
        built = build(auth=None, rate_limit=Gap(2.0), transport=wire, clock=clock)
        client = world.client(built) if hasattr(built, "inner") else built
        for _ in range(3):
            assert (await world.call(client.post, URL)).status_code == 200
        assert clock.monotonic() == pytest.approx(4.0)
        await world.close(client)


async def test_a_stack_builder_and_a_transport_accept_it(world: World) -> None:
    clock, policy = FakeClock(), Gap(2.0)
    first = world.build(StackBuilder((limiter(policy),), clock=clock), Wire(200, 200))
    kind: Any = world.pick(LimiterTransport, AsyncLimiterTransport)
    second = kind(Wire(200), policy, context=stkai.Context(clock=clock))
    for transport in (first, second, first):
        await world.send(transport, httpx.Request("POST", URL))
    assert clock.monotonic() == pytest.approx(4.0), "they share it"


def test_an_object_is_a_limiter_with_or_without_deriving_from_the_protocol() -> None:
    for policy in (Gap(1.0), Derived(), TokenBucket(1, 1), AimdLimiter(1, 1)):
        assert isinstance(policy, Limiter)


@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("name", ["ask", "learn", "end"])
async def test_a_method_that_a_derived_class_overrides_is_called_for_every_request(
    world: World, kind: Any, name: str
) -> None:
    seen: list[Turn] = []

    def method(self: Any, turn: Turn, *arguments: Any) -> Any:
        seen.append(turn)
        return getattr(kind, name)(self, turn, *arguments)

    derived = type("Derived", (kind,), {name: method})(1000, 1.0)
    transport = world.build(StackBuilder((limiter(derived),)), Wire(200, 200, 200))
    for _ in range(3):
        response = await world.send(transport, httpx.Request("POST", URL))
        await world.read(response)
    assert len(seen) == len(set(seen)) == 3


@pytest.mark.parametrize("other", OTHERS, ids=spelled)
def test_something_other_than_a_limiter_is_refused_with_what_is_accepted(other: Any) -> None:
    for make in (limiter, partial(LimiterTransport, Wire()), partial(AsyncLimiterTransport, Wire())):
        with pytest.raises(ConfigurationError, match=r"stkai\.TokenBucket, AimdLimiter or PerHost"):
            make(other)


async def test_the_listener_gets_what_it_learns(world: World) -> None:
    log, policy = EventLog(), Gap(1.0)
    stack = StackBuilder(
        (retry(RetryPolicy(initial_delay=0)), limiter(policy)), clock=FakeClock(), listener=log
    )
    await world.send(world.build(stack, Wire(429, 200)), httpx.Request("POST", URL))
    assert log.of(RateChanged) == [RateChanged(call=CALL, old=1.0, new=0.5, reason="too many requests")]
    assert policy.seconds == 2.0


async def test_other_methods_need_no_permit(world: World) -> None:
    clock = FakeClock()
    transport = world.build(StackBuilder((limiter(Gap(10.0)),), clock=clock), Wire(lambda _: 200))
    for _ in range(3):
        await world.send(transport, httpx.Request("GET", URL))
    assert clock.sleeps == []


@pytest.mark.parametrize("beside", [[], [InFlight(1)]], ids=["alone", "in a list"])
async def test_an_ask_may_return_a_number_of_numpy(world: World, beside: list[Any]) -> None:
    numpy = pytest.importorskip("numpy")

    class Short(Gap):
        def ask(self, turn: Turn, now: float) -> Any:
            return numpy.float32(super().ask(turn, now))

    policy, clock = Short(1.0), FakeClock()
    layer = limiter([policy, *beside] if beside else policy)
    transport = world.build(StackBuilder((layer,), clock=clock), Wire(200, 200))
    for _ in range(2):
        await world.send(transport, httpx.Request("POST", URL))
    assert clock.sleeps
    assert {type(seconds) for seconds in clock.sleeps} == {float}, "time.sleep takes no other numbers"


@pytest.mark.parametrize("beside", [[], [InFlight(1)]], ids=["alone", "in a list"])
@pytest.mark.parametrize("answer", [None, -1.0, math.nan, "soon", []], ids=spelled)
async def test_an_ask_that_returns_no_wait_is_an_error_and_nothing_is_sent(
    world: World, answer: Any, beside: list[Any]
) -> None:
    class Wrong(Gap):
        left = 0

        def ask(self, turn: Turn, now: float) -> float:
            wrong: float = answer
            return wrong

        def leave(self, turn: Turn, now: float) -> None:
            self.left += 1

    policy, wire = Wrong(1.0), Wire()
    layer = limiter([policy, *beside] if beside else policy)
    transport = world.build(StackBuilder((layer,), clock=FakeClock()), wire)
    with pytest.raises(ConfigurationError, match=r"Wrong\.ask must return 0\.0 to let a request go"):
        await world.send(transport, httpx.Request("POST", URL))
    assert (wire.requests, policy.left) == ([], 1)


async def test_a_derived_limiter_needs_no_more_than_ask(world: World) -> None:
    class Open(Limiter):
        def ask(self, turn: Turn, now: float) -> float:
            methods.append(turn.request.method if turn.request else "")
            return 0.0

    methods: list[str] = []
    for policy in (Open(), [Open(), TokenBucket(10, 60)]):
        transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), world.wire(200, 200))
        for method in ("GET", "POST"):
            await world.send(transport, httpx.Request(method, URL))
    assert methods == ["GET", "POST"] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
@pytest.mark.parametrize("method", ["ask", "learn"])
async def test_an_own_limiter_that_raises_holds_up_no_other_request(
    world: World, method: str, error: type[BaseException]
) -> None:
    raised: list[BaseException] = []

    class Raising(Limiter):
        def ask(self, turn: Turn, now: float) -> float:
            return self.once("ask")

        def learn(self, turn: Turn, answer: Answer) -> None:
            self.once("learn")

        def once(self, name: str) -> float:
            if name == method and not raised:
                raised.append(error(name))
                raise raised[0]
            return 0.0

    places = InFlight(1)
    stack = StackBuilder([limiter([places, Raising()])], clock=FakeClock())
    transport = world.build(stack, world.wire(200, 200))
    if method == "learn" and error is LookupError:  # It does not cost the caller the answer.
        await world.close(await world.send(transport, httpx.Request("POST", URL)))
    else:
        with pytest.raises(error):
            await world.send(transport, httpx.Request("POST", URL))
    response = await world.send(transport, httpx.Request("POST", URL))
    assert places.busy == 1
    await world.close(response)
    assert places.busy == 0


async def test_an_own_limiter_that_raises_at_the_end_of_an_answer_does_not_lose_that_answer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Limiter):
        def ask(self, turn: Turn, now: float) -> float:
            return 0.0

        def end(self, turn: Turn, now: float) -> None:
            raise LookupError("a bug")

    broken = httpx.ReadError("reset")
    for number, policy in enumerate((Raising(), [InFlight(1), Raising()]), start=1):
        transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), world.wire(200, broken))
        response = await world.send(transport, httpx.Request("POST", URL))
        assert await world.read(response) == b""
        with pytest.raises(httpx.ReadError):
            await world.send(transport, httpx.Request("POST", URL))
        assert caplog.text.count("LookupError: a bug") == 2 * number


@pytest.mark.parametrize("others", [[], [InFlight(1)]], ids=["alone", "in a list"])
async def test_an_own_limiter_that_raises_when_a_request_leaves_changes_nothing_for_that_and_the_next(
    world: World, others: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(Derived):
        asked = 0

        def ask(self, turn: Turn, now: float) -> float:
            self.asked += 1
            return 5.0 if self.asked == 1 else 0.0

        def leave(self, turn: Turn, now: float) -> None:
            raise LookupError("a bug")

    policy: Any = [Raising(), *others] if others else Raising()
    transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), world.wire(200))
    impatient = {"stkai": RequestOptions(max_wait_time=1.0)}
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", URL, extensions=impatient))
    await world.close(await world.send(transport, httpx.Request("POST", URL)))
    assert caplog.text.count("LookupError: a bug") == 1


@pytest.mark.parametrize("wrong", ["learn", "end"])
async def test_an_own_limiter_that_fails_on_an_answer_keeps_it_from_no_other(
    world: World, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Noting(Derived):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def learn(self, turn: Turn, answer: Answer) -> None:
            self.calls.append("learn")

        def end(self, turn: Turn, now: float) -> None:
            self.calls.append("end")

    class Raising(Noting):
        def __getattribute__(self, name: str) -> Any:
            return raising if name == wrong else super().__getattribute__(name)

    def raising(*_: Any) -> None:
        raise LookupError("a bug")

    others = Noting(), Noting()
    stack = StackBuilder([limiter([others[0], Raising(), others[1]])], clock=FakeClock())
    for outcome in (200, httpx.ReadError("reset")):
        sending = world.send(world.build(stack, world.wire(outcome)), httpx.Request("POST", URL))
        with suppress(httpx.ReadError):
            await world.close(await sending)
        assert [other.calls for other in others] == [["learn", "end"]] * 2
        for other in others:
            other.calls.clear()
    assert "Raising failed on an answer" in caplog.text


@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter, InFlight])
def test_the_error_about_a_subclass_that_does_not_call_its_base_class_says_so(kind: type) -> None:
    derived = type("Derived", (kind,), {"__init__": lambda self: None})()
    for policy in (derived, [derived]):
        with pytest.raises(ConfigurationError, match=r"not initialised: its __init__ must call super\(\)"):
            limiter(policy)


async def test_a_subclass_without_a_hash_counts_costs_among_other_limits(world: World) -> None:
    derived = type("Derived", (TokenBucket,), {"__eq__": lambda self, other: self is other})(
        10, 1.0, max_cost=5
    )
    transport = world.build(StackBuilder((limiter([derived, InFlight(3)]),)), Wire(200))
    request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(cost=1)})
    assert (await world.send(transport, request)).status_code == 200
