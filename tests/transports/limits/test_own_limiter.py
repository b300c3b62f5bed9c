"""A custom limiter of twenty lines works wherever one of ours does, sync and async."""

import math
import threading
from collections.abc import Collection
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import stkai
from stkai import (
    AimdLimiter,
    ConfigurationError,
    DeadlineExceededError,
    InFlight,
    Limiter,
    PerHost,
    RateChanged,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import Answer, AsyncLimiterTransport, LimiterTransport, RateChange, Turn, limiter, retry

from ...support.heard import CALL, Heard
from ...support.ids import spelled
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/v1"


class Gap:
    """From the documentation: leaves a gap between two requests, and doubles it after a 429."""

    methods: Collection[str] = frozenset({"POST"})

    def __init__(self, seconds: float, max_wait_time: float | None = None) -> None:
        self.seconds, self.max_wait_time = seconds, max_wait_time
        self.last, self.due = -seconds, dict[Turn, float]()
        self.lock = threading.Lock()

    def ask(self, turn: Turn, now: float) -> float:
        with self.lock:
            if turn not in self.due:
                self.last = self.due[turn] = max(now, self.last + self.seconds)
            wait = self.due[turn] - now
            if wait <= 0:
                del self.due[turn]
            return max(0.0, wait)

    def leave(self, turn: Turn, now: float) -> None:
        with self.lock:
            self.due.pop(turn, None)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        if not answer.is_refusal:
            return None
        self.seconds *= 2
        return RateChange(2 / self.seconds, 1 / self.seconds, "too many requests")

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        pass


class Derived(Limiter):
    """The least that a class derived from the protocol must define."""

    methods = frozenset({"POST"})
    max_wait_time = None

    def ask(self, turn: Turn, now: float) -> float:
        return 0.0


OTHERS: list[Any] = [
    None,
    7,
    "adaptive",
    Gap,
    object(),
    lambda turn, now: 0.0,
]


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


async def test_a_derived_class_only_needs_ask(world: World) -> None:
    transport = world.build(StackBuilder((limiter(Derived()),)), Wire(200, 500, httpx.ReadError("reset")))
    for _ in range(2):
        await world.send(transport, httpx.Request("POST", URL))
    with pytest.raises(httpx.ReadError):
        await world.send(transport, httpx.Request("POST", URL))


@pytest.mark.parametrize("other", OTHERS, ids=spelled)
def test_something_other_than_a_limiter_is_refused_with_what_is_accepted(other: Any) -> None:
    for make in (limiter, partial(LimiterTransport, Wire()), partial(AsyncLimiterTransport, Wire())):
        with pytest.raises(ConfigurationError, match=r"stkai\.TokenBucket, AimdLimiter or PerHost"):
            make(other)


@pytest.mark.parametrize("other", [7, Gap, object(), "fast"], ids=spelled)
def test_the_builders_say_what_rate_limit_accepts(other: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stkai.build_client(auth=None, rate_limit=other)
    for word in ("rate_limit", "Limiter", "'token_bucket'"):
        assert word in str(caught.value)


async def test_its_own_limit_the_calls_limit_and_the_deadline_bound_the_wait(world: World) -> None:
    clock = FakeClock()
    transport = world.build(
        StackBuilder((limiter(Gap(10.0, max_wait_time=5.0)),), clock=clock), Wire(200, 200)
    )

    async def send(**options: Any) -> httpx.Response:
        return await world.send(
            transport, httpx.Request("POST", URL, extensions={"stkai": RequestOptions(**options)})
        )

    await send()
    for options, error in (
        ({}, TokenAcquisitionTimeoutError),
        ({"max_wait_time": 1.0}, TokenAcquisitionTimeoutError),
        ({"max_wait_time": None, "deadline": 2.0}, DeadlineExceededError),
    ):
        with pytest.raises(error):
            await send(**options)
    assert clock.sleeps == []
    clock.advance(60.0)
    await send()


async def test_the_listener_hears_what_it_learns(world: World) -> None:
    heard, policy = Heard(), Gap(1.0)
    stack = StackBuilder(
        (retry(RetryPolicy(initial_delay=0)), limiter(policy)), clock=FakeClock(), listener=heard
    )
    await world.send(world.build(stack, Wire(429, 200)), httpx.Request("POST", URL))
    assert heard.of(RateChanged) == [RateChanged(call=CALL, old=1.0, new=0.5, reason="too many requests")]
    assert policy.seconds == 2.0


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancelled_request_leaves_its_queue(world: World) -> None:
    clock, policy = FakeClock(autojump=False), Gap(10.0)
    transport = world.build(StackBuilder((limiter(policy),), clock=clock), Wire(200))
    await world.send(transport, httpx.Request("POST", URL))
    async with anyio.create_task_group() as group:
        group.start_soon(world.send, transport, httpx.Request("POST", URL))
        while not clock.sleepers:
            await anyio.lowlevel.checkpoint()
        assert len(policy.due) == 1
        group.cancel_scope.cancel()
    assert policy.due == {}


async def test_other_methods_need_no_permit(world: World) -> None:
    clock = FakeClock()
    transport = world.build(StackBuilder((limiter(Gap(10.0)),), clock=clock), Wire(lambda _: 200))
    for _ in range(3):
        await world.send(transport, httpx.Request("GET", URL))
    assert clock.sleeps == []


@pytest.mark.parametrize("answer", [None, -1.0, math.nan, "soon", []], ids=spelled)
async def test_an_ask_that_returns_no_wait_is_an_error_and_nothing_is_sent(world: World, answer: Any) -> None:
    class Wrong(Gap):
        left = 0

        def ask(self, turn: Turn, now: float) -> float:
            wrong: float = answer
            return wrong

        def leave(self, turn: Turn, now: float) -> None:
            self.left += 1

    policy, wire = Wrong(1.0), Wire()
    transport = world.build(StackBuilder((limiter(policy),), clock=FakeClock()), wire)
    with pytest.raises(ConfigurationError, match=r"Wrong\.ask must return 0\.0 to let a request go"):
        await world.send(transport, httpx.Request("POST", URL))
    assert (wire.requests, policy.left) == ([], 1)


# One per host


async def test_each_origin_gets_its_own_limiter_when_it_is_first_seen(world: World) -> None:
    made: list[str] = []

    def make(origin: str) -> Gap:
        made.append(origin)
        return Gap(10.0)

    clock, policy = FakeClock(), PerHost(make)
    transport = world.build(StackBuilder((limiter(policy),), clock=clock), Wire(lambda _: 200))
    assert (made, len(policy)) == ([], 0)
    urls = [
        "https://api.example.com/v1",
        "https://API.example.com:443/v2?key=secret",
        "https://other.example.com",
        "http://api.example.com/",
        "https://api.example.com:8443/",
    ]
    for url in urls:
        await world.send(transport, httpx.Request("POST", url))
    assert made == [
        "https://api.example.com",
        "https://other.example.com",
        "http://api.example.com",
        "https://api.example.com:8443",
    ]
    assert len(policy) == 4
    assert clock.sleeps == [10.0], "only the second waits for the first"


async def test_the_builders_accept_it(world: World) -> None:
    for build in builders(world):
        policy = PerHost(lambda _: TokenBucket(10, 1.0))
        built = build(auth=None, rate_limit=policy, transport=Wire(lambda _: 200), clock=FakeClock())
        client = world.client(built) if hasattr(built, "inner") else built
        await world.call(client.post, URL)
        assert len(policy) == 1
        await world.close(client)


async def test_its_limiters_have_their_own_rates_and_limits(world: World) -> None:
    clock = FakeClock()
    policy = PerHost(lambda origin: TokenBucket(1, 10.0, max_wait_time=None if "patient" in origin else 1.0))
    transport = world.build(StackBuilder((limiter(policy),), clock=clock), Wire(lambda _: 200))
    for host in ("patient", "patient", "hasty"):
        await world.send(transport, httpx.Request("POST", f"https://{host}.example.com/"))
    with pytest.raises(TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", "https://hasty.example.com/"))


@pytest.mark.parametrize("make", [None, 7, TokenBucket(1, 1), "adaptive"], ids=spelled)
def test_something_other_than_a_limiter_factory_is_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="PerHost needs a function such as"):
        PerHost(make)


@pytest.mark.parametrize("made", [None, 7, Gap, "adaptive"], ids=spelled)
async def test_a_made_limiter_is_checked_before_anything_is_sent(world: World, made: Any) -> None:
    wire = Wire()
    transport = world.build(StackBuilder((limiter(PerHost(lambda _: made)),)), wire)
    with pytest.raises(ConfigurationError, match="must return a limiter"):
        await world.send(transport, httpx.Request("POST", URL))
    assert wire.requests == []


def test_threads_that_see_a_new_origin_together_share_one_limiter() -> None:
    policy, url, together = PerHost(lambda _: Gap(1.0)), httpx.URL(URL), threading.Barrier(16)
    found: list[object] = []

    def look() -> None:
        together.wait(10)
        found.append(policy.limiter_for(httpx.Request("POST", url)))

    threads = [threading.Thread(target=look) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def origin(number: int) -> httpx.URL:
    return httpx.URL(f"https://host-{number}.example.com/")


def test_of_too_many_origins_the_least_recently_used_one_is_dropped() -> None:
    made: list[str] = []

    def make(origin: str) -> Gap:
        made.append(origin)
        return Gap(1.0)

    policy = PerHost(make, max_origins=2)
    for number in (1, 2, 1, 3, 1, 2):
        policy.limiter_for(httpx.Request("POST", origin(number)))
    assert [name[13] for name in made] == ["1", "2", "3", "2"]
    assert len(policy) == 2


def test_a_thousand_origins_are_kept_by_default() -> None:
    policy = PerHost(lambda _: Gap(1.0))
    for number in range(1100):
        policy.limiter_for(httpx.Request("POST", origin(number)))
    assert len(policy) == 1000


async def test_a_limiter_that_requests_wait_for_is_never_dropped(world: World) -> None:
    clock, sent = FakeClock(), list[str]()
    policy = PerHost(lambda _: Gap(10.0), max_origins=1)

    def handle(request: httpx.Request) -> int:
        sent.append(request.url.host)
        return 200

    transport = world.build(StackBuilder((limiter(policy),), clock=clock), Wire(handle))
    first = policy.limiter_for(httpx.Request("POST", origin(1)))
    for number in (2, 3, 1):
        policy.limiter_for(httpx.Request("POST", origin(number)))
    assert policy.limiter_for(httpx.Request("POST", origin(1))) is first
    for number in (1, 2, 1):
        await world.send(transport, httpx.Request("POST", origin(number)))
    assert clock.sleeps == [10.0], "the second request to the first host waits for the first one"


def test_a_limiter_that_cannot_be_watched_is_kept() -> None:
    class Bare:
        __slots__ = ()
        methods = frozenset({"POST"})
        max_wait_time = None
        ask = leave = learn = settle = lambda *_: 0.0

    kind: Any = Bare
    policy = PerHost(lambda _: kind(), max_origins=1)
    first = policy.limiter_for(httpx.Request("POST", origin(1)))
    policy.limiter_for(httpx.Request("POST", origin(2)))
    assert policy.limiter_for(httpx.Request("POST", origin(1))) is first


@pytest.mark.parametrize("count", [0, -1, True, 1.5, None, "3"], ids=spelled)
def test_an_invalid_number_of_origins_is_refused(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_origins must be a positive whole number"):
        PerHost(lambda _: Gap(1.0), max_origins=count)


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
    with pytest.raises(error):
        await world.send(transport, httpx.Request("POST", URL))
    response = await world.send(transport, httpx.Request("POST", URL))
    assert places.busy == 1
    await world.close(response)
    assert places.busy == 0
