"""What calls cost: who says so, when it is settled, and what a stream without a usage costs."""

import json
import logging
from typing import Any

import httpx
import pytest

import stkai
from stkai import (
    AllOf,
    ConfigurationError,
    InFlight,
    InvalidArgumentError,
    Limiter,
    PerHost,
    PerKey,
    RequestOptions,
    StackBuilder,
    TokenBucket,
)
from stkai.costs import llm_tokens
from stkai.testing import FakeClock
from stkai.transports import Turn, limiter

from ...support.clients import Body
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/v1"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 500}


def post(body: object = CHAT, **options: Any) -> httpx.Request:
    extensions = {"stkai": RequestOptions(**options)} if options else {}
    return httpx.Request("POST", URL, json=body, extensions=extensions)


def events(*messages: object) -> httpx.Response:
    chunks = [f"data: {json.dumps(message)}\n\n".encode() for message in messages] + [b"data: [DONE]\n\n"]
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(*chunks))


def deltas(*texts: str) -> list[dict[str, Any]]:
    return [{"choices": [{"delta": {"content": text}}]} for text in texts]


def left(policy: Any) -> float:
    """The units that are there now, at the time 0 of a fake clock."""
    (source,) = [source for source in policy.sources if hasattr(source, "level")]
    level: float = source.level
    return level


def bucket(cost: Any = None, most: float = 10_000) -> TokenBucket:
    return TokenBucket(None, 60, max_cost=most, cost=cost)


async def sent(
    world: World, policy: Any, *answers: Any, request: httpx.Request | None = None, **stack: Any
) -> Any:
    """Send one request for each answer, read to the end."""
    layers = [limiter(policy, **stack)]
    transport = world.build(StackBuilder(layers, clock=FakeClock()), Wire(*answers))
    for _ in answers:
        await world.chunks(await world.send(transport, request or post()))
    return transport


async def test_a_limiters_own_cost_goes_before_the_stacks_and_the_calls_before_both(world: World) -> None:
    for options, own, taken in (
        ({}, lambda _: 3.0, 3.0),
        ({"cost": 4.0}, lambda _: 3.0, 4.0),
        ({}, None, 5.0),
    ):
        policy = bucket(own)
        await sent(world, policy, 200, request=post(**options), cost=lambda _: 5.0)
        assert left(policy) == 10_000 - taken


async def test_the_stacks_settle_is_for_limits_without_a_cost_of_their_own(world: World) -> None:
    own, other, pricing = bucket(lambda _: 3.0), bucket(), bucket(llm_tokens())
    calls = list[httpx.Response]()

    def settle(response: httpx.Response) -> float:
        calls.append(response)
        return 7.0

    answer = httpx.Response(200, json={"usage": {"total_tokens": 11}})
    await sent(world, [own, other, pricing], answer, cost=lambda _: 5.0, settle=settle)
    assert [10_000 - left(policy) for policy in (own, other, pricing)] == [3.0, 7.0, 11.0]
    assert len(calls) == 1, "once for each answer"
    assert calls[0].content == answer.content


async def test_input_and_output_are_limited_apart(world: World) -> None:
    into, out = bucket(llm_tokens("input")), bucket(llm_tokens("output"))
    await sent(world, [into, out], 200)
    assert [10_000 - left(policy) for policy in (into, out)] == [100, 500]
    usage = {"usage": {"input_tokens": 40, "cache_creation_input_tokens": 2, "output_tokens": 30}}
    await sent(world, [into, out], httpx.Response(200, json=usage))
    assert [10_000 - left(policy) for policy in (into, out)] == [142, 530]


async def test_an_estimate_is_at_most_the_whole_limit_and_a_calls_own_cost_is_paid_in_full(
    world: World,
) -> None:
    small, large = bucket(llm_tokens(), most=100), bucket(llm_tokens(), most=1e12)
    await sent(world, [small, large], 500, request=post({"max_tokens": 10**9}))
    assert (left(small), left(large)) == (0, 1e12 - 10**9)
    policy = bucket(llm_tokens(), most=100)
    await sent(world, policy, 500, request=post(cost=500.0))
    assert left(policy) == -400


async def test_a_refusal_and_what_was_never_sent_cost_nothing(world: World) -> None:
    policy, seen = bucket(lambda _: 100.0), list[int]()
    await sent(world, policy, 429, 400, 503, settle=lambda answer: seen.append(answer.status_code))
    assert left(policy) == 10_000 - 200
    with pytest.raises(httpx.ConnectError):
        await sent(world, policy, httpx.ConnectError("no"))
    assert left(policy) == 10_000 - 200


@pytest.mark.parametrize("reads", [True, False])
async def test_after_a_refused_estimate_of_the_whole_limit_the_next_call_does_not_wait(
    world: World, reads: bool
) -> None:
    clock, policy = FakeClock(), bucket(llm_tokens())
    wire = Wire(
        httpx.Response(400, stream=Body(b'{"error": ', b'"max_tokens is too large"}')), httpx.Response(200)
    )
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), wire)
    refused = await world.send(transport, post({**CHAT, "max_tokens": 10**9}))
    # A stream is often closed unread: `with client.stream(...) as response: response.raise_for_status()`.
    await (world.read(refused) if reads else world.close(refused))
    await world.send(transport, post({**CHAT, "max_tokens": 9_000}))
    assert clock.monotonic() == 0.0


TOOL_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "a" * 39}}


@pytest.mark.parametrize(
    ("count", "messages", "cost"),
    [
        ("total", deltas("a" * 40, "b" * 40), 100 + 20),
        ("input", deltas("a" * 40), 100),
        ("output", deltas("a" * 40, "b" * 8), 12),
        ("output", [{"type": "response.output_text.delta", "delta": "a" * 40}], 10),
        ("output", [{"type": "response.function_call_arguments.delta", "delta": "a" * 40}], 10),
        ("output", [{"type": "response.created"}, {"type": "response.audio.delta", "delta": "a" * 40}], 0),
        ("output", [{"type": "content_block_delta", "delta": {"citation": {"cited_text": "a" * 40}}}], 0),
        ("output", [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a" * 40}}], 10),
        ("output", [{"type": "content-delta", "delta": {"message": {"content": {"text": "a" * 40}}}}], 10),
        (
            "output",
            [
                {
                    "type": "content_block_delta",
                    "delta": {"type": "input_json_delta", "partial_json": "a" * 40},
                }
            ],
            10,
        ),
        (
            "output",
            [{"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "a" * 40}}],
            10,
        ),
        (
            "output",
            [{"choices": [{"delta": {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}}]}],
            10,
        ),
        ("output", [{"choices": [{"delta": {"content": "", "reasoning_content": "a" * 40}}]}], 10),
        ("total", [*deltas("a" * 40), {"choices": [], "usage": {"total_tokens": 7}}], 7),
    ],
)
async def test_a_stream_without_a_usage_costs_what_arrived(
    world: World, count: Any, messages: list[Any], cost: float
) -> None:
    policy = bucket(llm_tokens(count))
    await sent(world, policy, events(*messages))
    assert left(policy) == pytest.approx(10_000 - cost)


async def test_one_warning_per_stack_says_how_a_stream_reports_its_usage(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        await sent(world, bucket(llm_tokens()), *[events(*deltas("hello")) for _ in range(3)])
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert 'stream_options={"include_usage": True}' in warnings[0]
    caplog.clear()
    asked = post(CHAT | {"stream": True, "stream_options": {"include_usage": True}})
    await sent(world, bucket(llm_tokens()), events(*deltas("hello")), request=asked)
    unasked = {"type": "response.output_text.delta", "delta": "hello"}
    await sent(world, bucket(llm_tokens()), events({"type": "response.created"}, unasked))
    assert not caplog.records


@pytest.mark.parametrize(("chunks", "cost", "warnings"), [(3, 130, 0), (9, 190, 0), (10, 190, 1)])
@pytest.mark.worlds("sync", "asyncio")  # trio warns of the generator that the reader leaves unfinished
async def test_a_stream_that_is_closed_early_costs_what_arrived(
    world: World, chunks: int, cost: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    policy, answer = bucket(llm_tokens()), events(*deltas(*["a" * 40] * 9))
    answer.headers["content-type"] = "Text/Event-Stream"  # Case does not matter; RFC 9110, section 8.3.1.
    transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), Wire(answer))
    response = await world.send(transport, post())
    pieces: Any = response.aiter_raw() if world.is_async else response.iter_raw()
    for _ in range(chunks):
        await (anext(pieces) if world.is_async else _now(next(pieces)))
    await world.close(response)
    if world.is_async:
        await pieces.aclose()
    assert left(policy) == 10_000 - cost
    # Mistral's streams report their usage at the end, unasked; an SDK stops reading at [DONE].
    assert len(caplog.records) == warnings


async def _now(value: object) -> object:
    return value


async def test_an_anthropic_stream_that_is_closed_early_costs_its_input_and_what_arrived(
    world: World,
) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 50, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a" * 80}}
    end = {"type": "message_delta", "usage": {"output_tokens": 33}}
    silent = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    for messages, cost in (([start, text], 70), ([start, text, end], 83), ([start, text, silent], 70)):
        policy = bucket(llm_tokens())
        await sent(world, policy, events(*messages))
        assert left(policy) == 10_000 - cost


async def test_another_body_that_is_closed_early_keeps_its_estimate(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    policy, body = bucket(lambda _: 5.0), httpx.Response(200, stream=Body(b'{"usage"', b":1}"))
    layers = [limiter([policy, bucket(llm_tokens())])]
    transport = world.build(StackBuilder(layers, clock=FakeClock()), Wire(body))
    await world.close(await world.send(transport, post()))
    assert left(policy) == 10_000 - 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_call_without_a_cost_is_refused_and_nothing_is_sent(world: World) -> None:
    for policy in (bucket(), [InFlight(3), bucket()], PerKey(lambda _: "", lambda _: bucket())):
        wire = Wire()
        transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), wire)
        with pytest.raises(InvalidArgumentError, match="cost"):
            await world.send(transport, post())
        assert wire.requests == []


@pytest.mark.parametrize(
    "result",
    [None, -1.0, float("nan"), "3", True, 10**400, RuntimeError("no")],
    ids=lambda given: str(given)[:9],
)
async def test_an_estimate_that_is_none_is_refused_by_name(world: World, result: Any) -> None:
    def broken(request: httpx.Request) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    class Pricing:
        estimate = staticmethod(broken)

        def settle(self, response: httpx.Response) -> None: ...

    for cost in (broken, Pricing()):
        with pytest.raises(InvalidArgumentError, match="cost"):
            await sent(world, [bucket(cost), places := InFlight(1)], 200)
        assert places.busy == 0


@pytest.mark.parametrize("cost", [5, "llm-tokens", object(), TokenBucket, 0.0])
def test_what_cannot_say_a_cost_is_refused(cost: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^cost must be"):
        bucket(cost)


def test_a_limiters_cost_needs_max_cost() -> None:
    with pytest.raises(ConfigurationError, match="max_cost"):
        TokenBucket(5, 60, cost=llm_tokens())
    with pytest.raises(ConfigurationError, match="max_cost"):
        TokenBucket(None, 60)


class Mine(Limiter):
    methods = None
    max_wait_time = None

    def ask(self, turn: Turn, now: float) -> float:
        return 0.0


BUILDERS = [stkai.build_client, stkai.build_async_client, stkai.build_transport, stkai.build_async_transport]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("given", [{"cost": lambda _: 1.0}, {"settle": lambda _: 1.0}])
def test_a_stacks_cost_needs_a_limit_that_counts(build: Any, given: dict[str, Any]) -> None:
    for rate_limit in (
        None,
        TokenBucket(5, 60),
        [TokenBucket(5, 60), InFlight(2)],
        AllOf(InFlight(2)),
        "adaptive",
    ):
        with pytest.raises(ConfigurationError, match="max_cost"):
            build(auth=None, rate_limit=rate_limit, **given)
    for accepted in (
        bucket(),
        [InFlight(2), bucket()],
        PerHost(lambda _: bucket()),
        Mine(),
        [Mine(), InFlight(2)],
    ):
        build(auth=None, rate_limit=accepted, **given)


async def test_a_calls_cost_where_nothing_counts_is_ignored(world: World) -> None:
    await sent(world, TokenBucket(5, 60), 200, request=post(cost=5.0))


async def test_a_success_that_teaches_nothing_takes_no_second_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr(TokenBucket, "learn", lambda *given: asked.append("learn"))
    monkeypatch.setattr(TokenBucket, "end", lambda *given: asked.append("end"))
    await sent(world, TokenBucket(5, 60), 200, 500)
    assert asked == []
    await sent(world, TokenBucket(5, 60), 429)
    assert asked == ["learn"]
