"""One limiter for each key of a request, such as its model or its host."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import httpx
import pytest

import stkai
from stkai import AimdLimiter, AllOf, ConfigurationError, InFlight, PerHost, PerKey, StackBuilder, TokenBucket
from stkai.costs import model_of
from stkai.testing import FakeClock
from stkai.transports import LimiterTransport, Turn, limiter
from stkai.transports._limits.waiting_turns import WaitingTurns

from ...support.gap_limiter import Gap
from ...support.threads import together
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/v1"


def chat(model: object = "a", url: str = URL) -> httpx.Request:
    return httpx.Request("POST", url, json={"model": model})


async def test_each_key_has_a_limiter_of_its_own(world: World) -> None:
    clock, made, sent = FakeClock(), list[str](), list[float]()

    def make(model: str) -> Any:
        made.append(model)
        return [TokenBucket(1, 10), InFlight(4)] if model == "b" else TokenBucket(2, 10)

    transport = world.build(
        StackBuilder([limiter(PerKey(model_of, make))], clock=clock), world.wire(*[200] * 9)
    )
    for model in ("a", "a", "b", "", "a", "b"):
        await world.send(transport, chat(model))
        sent.append(clock.monotonic())
    assert sent == [0, 0, 0, 0, 10, 10]
    assert made == ["a", "b", ""]


async def test_limiters_of_different_keys_may_share_one_in_common(world: World) -> None:
    clock, total, sent = FakeClock(), TokenBucket(3, 60), list[float]()
    policy = PerKey(model_of, lambda _: [TokenBucket(2, 60), total])
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(*[200] * 9))
    for model in ("a", "a", "b", "b"):
        await world.send(transport, chat(model))
        sent.append(clock.monotonic())
    assert sent == [0, 0, 0, 60]


async def test_a_wire_that_keeps_its_requests_keeps_no_limiter_of_a_dropped_key(world: World) -> None:
    made = list[str]()

    def make(model: str) -> TokenBucket:
        made.append(model)
        return TokenBucket(9, 1)

    wire = world.wire(200, 200, httpx.ConnectError("refused"), 200)
    transport = world.build(StackBuilder([limiter(PerKey(model_of, make, max_keys=1))]), wire)
    for model in "abca":
        with nullcontext() if model != "c" else pytest.raises(httpx.ConnectError):
            await world.send(transport, chat(model))
    assert made == ["a", "b", "c", "a"]


async def test_the_key_functions_own_error_reaches_the_caller_and_nothing_is_sent(world: World) -> None:
    def broken(request: httpx.Request) -> str:
        raise LookupError("no tenant")

    wire = world.wire()
    transport = world.build(
        StackBuilder([limiter(PerKey(broken, lambda _: InFlight(1)))], clock=FakeClock()), wire
    )
    with pytest.raises(LookupError, match="no tenant"):
        await world.send(transport, chat())
    assert wire.requests == []


@pytest.mark.parametrize("made", [None, 7, "adaptive", TokenBucket, [], [None]], ids=repr)
async def test_what_make_returns_is_checked(world: World, made: Any) -> None:
    wire = world.wire()
    transport = world.build(StackBuilder([limiter(PerKey(model_of, lambda _: made))]), wire)
    with pytest.raises(ConfigurationError) as caught:
        await world.send(transport, chat())
    assert "PerKey" in str(caught.value)
    assert isinstance(made, list) or "must return a limiter" in str(caught.value)
    assert wire.requests == []


async def test_each_key_may_have_a_limiter_per_host(world: World) -> None:
    policy = PerKey(model_of, lambda _: PerHost(lambda _: TokenBucket(1, 100)))
    clock = FakeClock()
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(200, 200, 200))
    for host in ("one", "two", "one"):
        await world.send(transport, httpx.Request("POST", f"https://{host}.test/", json={"model": "m"}))
    assert sum(clock.sleeps) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("of", [lambda per: per, lambda per: [InFlight(1), [per]], AllOf])
async def test_make_may_not_return_its_own_per_key(world: World, of: Callable[[PerKey], Any]) -> None:
    per = PerKey(model_of, lambda _: of(per))
    transport = world.build(StackBuilder([limiter(per)]), world.wire())
    with pytest.raises(ConfigurationError, match=r"a list of others; not .*PerKey"):
        await world.send(transport, chat())


async def nobody_waits(_: object) -> Any:
    """An async function in place of a plain one."""


@pytest.mark.parametrize(
    ("key", "make"),
    [
        (None, model_of),
        (model_of, None),
        (7, 7),
        (model_of, InFlight(1)),
        (nobody_waits, model_of),
        (model_of, nobody_waits),
        (model_of, InFlight),
        (model_of, AimdLimiter),
    ],
)
def test_both_arguments_are_functions(key: Any, make: Any) -> None:
    with pytest.raises(ConfigurationError, match="PerKey needs a function such as"):
        PerKey(key, make)
    if key is model_of:
        with pytest.raises(ConfigurationError, match="PerHost needs a function such as"):
            PerHost(make)


def test_the_error_says_which_function_is_wrong() -> None:
    key: Any = "model"
    with pytest.raises(ConfigurationError, match=r"such as stkai\.costs\.model_of as key, not 'model'"):
        PerKey(key, nobody_waits)
    with pytest.raises(
        ConfigurationError, match=r"such as lambda key: TokenBucket\(10, 60\) as make, not 'model'"
    ):
        PerKey(model_of, key)


@pytest.mark.parametrize("most", [0, -1, True, 1.5, None, "3"])
def test_max_keys_is_a_positive_whole_number(most: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_keys must be a positive whole number"):
        PerKey(model_of, lambda _: InFlight(1), max_keys=most)
    with pytest.raises(ConfigurationError, match="max_origins must be a positive whole number"):
        PerHost(lambda _: InFlight(1), max_origins=most)


def test_a_key_per_tenant_and_one_per_host_are_the_same_mechanism() -> None:
    assert issubclass(PerHost, PerKey)
    policy = PerHost(lambda origin: TokenBucket(1, 60))
    assert policy.limiter_for(chat(url="https://A.example.com:443/x")) is policy.limiter_for(
        chat(url="https://a.example.com")
    )
    assert policy.limiter_for(chat(url="https://a.example.com:8443")) is not policy.limiter_for(
        chat(url="https://a.example.com")
    )


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


def test_threads_that_see_a_new_origin_together_share_one_limiter() -> None:
    policy, request = PerHost(lambda _: Gap(1.0)), httpx.Request("POST", URL)
    found = together(*[lambda: policy.limiter_for(request)] * 16)
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
    assert (len(policy), repr(policy)) == (2, "PerHost(2 keys)")


@pytest.mark.no_cover
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


def keeps_one(made: list[str]) -> tuple[PerKey, Callable[[], None]]:
    """One limiter per model, of which one is kept; and what asks for a second model, and for the first again."""

    def make(model: str) -> TokenBucket:
        made.append(model)
        return TokenBucket(1, 10)

    policy = PerKey(model_of, make, max_keys=1)

    def look_at_others() -> None:
        for model in ("b", "a"):
            policy.limiter_for(chat(model))

    return policy, look_at_others


async def test_a_limiter_in_a_list_is_not_dropped_while_a_request_uses_it(world: World) -> None:
    made = list[str]()
    policy, look_at_others = keeps_one(made)

    def handle(_: httpx.Request) -> int:
        look_at_others()
        return 200

    transport = world.build(StackBuilder([limiter([policy, InFlight(16)])]), Wire(handle))
    await world.send(transport, chat("a"))
    assert made == ["a", "b"]


def test_a_limiter_in_a_list_that_is_asked_by_hand_is_not_dropped_while_it_is_in_use() -> None:
    made = list[str]()
    policy, look_at_others = keeps_one(made)
    both, turns = AllOf(policy, InFlight(16)), [Turn(chat("a")), Turn(chat("a"))]
    assert [both.ask(turn, 0.0) for turn in turns] == [0.0, 10.0]
    look_at_others()
    assert made == ["a", "b"]
    assert both.ask(turns[1], 10.0) == 0.0


def unread() -> Iterator[bytes]:
    yield json.dumps({"model": "generated"}).encode()


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ({"json": {"model": "gpt-x"}}, "gpt-x"),
        ({"json": {"messages": []}}, ""),
        ({"json": {"model": 7}}, ""),
        ({"json": {"model": None}}, ""),
        ({"json": ["model"]}, ""),
        ({"json": "model"}, ""),
        ({"content": b"\xff"}, ""),
        ({"content": b"[" * 100_000}, ""),
        ({"content": b""}, ""),
        ({"content": unread()}, ""),
        ({"files": {"model": b"x"}}, ""),
    ],
)
def test_model_of_reads_the_model_of_a_json_body(arguments: dict[str, Any], model: str) -> None:
    assert model_of(httpx.Request("POST", URL, **arguments)) == model
    assert stkai.costs.model_of is model_of


def test_model_of_leaves_a_generator_unread() -> None:
    request = httpx.Request("POST", URL, content=unread())
    assert model_of(request) == ""
    assert b"".join(request.stream) == b'{"model": "generated"}'  # type: ignore[arg-type]


class OneAtATime(OrderedDict[str, Any]):
    """Notes whether a thread changes or reads the order while another one changes it; without a GIL, that breaks it."""

    def __init__(self) -> None:
        super().__init__()
        self._is_busy, self.meetings = threading.Lock(), 0

    def _alone(self, step: Callable[..., Any], *arguments: Any) -> Any:
        if not self._is_busy.acquire(blocking=False):
            self.meetings += 1
            return step(*arguments)
        try:
            for _ in range(3):  # Meanwhile, the other threads run.
                time.sleep(0)
            return step(*arguments)
        finally:
            self._is_busy.release()

    def move_to_end(self, key: str, last: bool = True) -> None:
        self._alone(super().move_to_end, key, last)

    def __setitem__(self, key: str, limiter: Any) -> None:
        self._alone(super().__setitem__, key, limiter)

    def popitem(self, last: bool = True) -> tuple[str, Any]:
        found: tuple[str, Any] = self._alone(super().popitem, last)
        return found

    def values(self) -> Any:
        return self._alone(super().values)


def test_threads_change_the_order_of_the_keys_one_at_a_time() -> None:
    policy = PerKey(model_of, lambda _: InFlight(1), max_keys=4)
    limiters = policy._limiters = OneAtATime()
    layer = LimiterTransport(httpx.MockTransport(lambda _: httpx.Response(200)), InFlight(1))

    def use(start: int) -> None:
        for number in range(start, start + 40):
            policy.limiter_for(chat(str(number % 6)))
            policy.subscribe(layer)

    together(*[partial(use, start) for start in range(4)])
    assert (limiters.meetings, len(policy)) == (0, 4)


@pytest.mark.no_cover
def test_stacks_may_be_built_while_threads_make_limiters_and_drop_them() -> None:
    policy = PerHost(lambda _: InFlight(1), max_origins=2)

    def send(number: int) -> None:
        for each in range(200):
            policy.limiter_for(chat(url=f"https://{number}.{each}.example.com"))

    def build(_: int) -> None:
        for _ in range(100):
            LimiterTransport(httpx.MockTransport(lambda _: httpx.Response(200)), policy)

    together(*[partial(work, number) for work in (send, build) for number in range(4)], switching=1e-6)


def test_the_limits_of_thousands_of_keys_join_a_common_one_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absorb, joined = WaitingTurns.absorb, list[int]()

    def note(order: WaitingTurns, other: WaitingTurns) -> None:
        joined.append(len(other.members))
        absorb(order, other)

    monkeypatch.setattr(WaitingTurns, "absorb", note)
    both = AllOf(PerKey(lambda request: request.url.host, lambda _: InFlight(1)), TokenBucket(100, 1))
    for number in range(100):
        both.plan_for(chat(url=f"https://{number}.example.com"))
    assert joined == [1] * 100
