"""One limiter for each key of a request, such as its model."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import stkai
from stkai import ConfigurationError, InFlight, PerHost, PerKey, StackBuilder, TokenBucket
from stkai.costs import model_of
from stkai.testing import FakeClock
from stkai.transports import LimiterTransport, limiter

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
    transport = world.build(StackBuilder([limiter(PerKey(model_of, lambda _: made))]), world.wire())
    with pytest.raises(ConfigurationError) as caught:
        await world.send(transport, chat())
    assert "PerKey" in str(caught.value)


def test_beyond_max_keys_the_one_not_used_for_longest_is_dropped() -> None:
    made = list[str]()

    def make(model: str) -> InFlight:
        made.append(model)
        return InFlight(1)

    policy = PerKey(model_of, make, max_keys=2)
    for model in ("a", "b", "a", "c", "a", "b"):
        policy.limiter_for(chat(model))
    assert made == ["a", "b", "c", "b"]
    assert (len(policy), repr(policy)) == (2, "PerKey(2 keys)")


def test_a_limiter_in_use_is_not_made_anew() -> None:
    policy = PerKey(model_of, lambda _: [TokenBucket(1, 60), InFlight(1)], max_keys=1)
    used = policy.limiter_for(chat("a"))
    policy.limiter_for(chat("b"))
    assert policy.limiter_for(chat("a")) is used


@pytest.mark.parametrize(
    ("key", "make"), [(None, InFlight), (model_of, None), (7, 7), (model_of, InFlight(1))]
)
def test_both_arguments_are_functions(key: Any, make: Any) -> None:
    with pytest.raises(ConfigurationError, match="PerKey needs a function such as"):
        PerKey(key, make)


@pytest.mark.parametrize("most", [0, -1, True, 1.5, None, "3"])
def test_max_keys_is_a_positive_whole_number(most: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_keys must be a positive whole number"):
        PerKey(model_of, lambda _: InFlight(1), max_keys=most)


def test_a_key_per_tenant_and_one_per_host_are_the_same_mechanism() -> None:
    assert issubclass(PerHost, PerKey)
    policy = PerHost(lambda origin: TokenBucket(1, 60))
    assert policy.limiter_for(chat(url="https://A.example.com:443/x")) is policy.limiter_for(
        chat(url="https://a.example.com")
    )
    assert policy.limiter_for(chat(url="https://a.example.com:8443")) is not policy.limiter_for(
        chat(url="https://a.example.com")
    )


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


@pytest.mark.no_cover
def test_stacks_may_be_built_while_threads_make_limiters_and_drop_them() -> None:
    failed: list[Exception] = []
    policy = PerHost(lambda _: InFlight(1), max_origins=2)

    def send(number: int) -> None:
        for each in range(200):
            policy.limiter_for(chat(url=f"https://{number}.{each}.example.com"))

    def build(_: int) -> None:
        for _ in range(100):
            LimiterTransport(httpx.MockTransport(lambda _: httpx.Response(200)), policy)

    def run(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except RuntimeError as error:
            failed.append(error)

    threads = [
        threading.Thread(target=run, args=(work, number)) for work in (send, build) for number in range(4)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
