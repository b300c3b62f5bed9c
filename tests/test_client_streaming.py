"""`post_stream`: a body that arrives while it is read, and a 429 that is raised instead."""

import gzip
import pickle
from typing import Any

import httpx
import pytest

import stkai
from stkai import AimdLimiter, RetryPolicy, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import adaptive, retry, token_bucket

from .support.clients import BROKEN, URL, Body, arrivals, client_of, stack_of
from .support.world import World

# Streaming


async def test_a_streamed_body_arrives_while_it_is_read(world: World) -> None:
    wire = world.wire(httpx.Response(200, stream=Body(b"one", b"two", BROKEN)))
    response = await world.call(stack_of(world, wire, retry()).post_stream, URL, data={"a": 1})
    arrived, error = await arrivals(world, response)
    assert arrived == [b"one", b"two"]
    assert isinstance(error, httpx.RemoteProtocolError)
    assert error.request.url == URL
    assert len(wire.requests) == 1, "what has been handed up is not sent again"
    await world.close(response)
    assert wire.open == 0


async def test_a_streamed_response_is_complete_and_closes_with_its_block(world: World) -> None:
    wire = world.wire(httpx.Response(200, headers={"X-A": "1"}, stream=Body(b"one", b"two")))
    response = await world.call(stack_of(world, wire, retry()).post_stream, URL)
    assert isinstance(response, stkai.StreamedResponse)
    assert (response.status_code, response.headers["x-a"], response.request.method) == (200, "1", "POST")
    assert response.extensions["stkai"].attempts == 1
    if world.is_async:
        async with response as same:
            pass
    else:
        with response as same:
            pass
    assert same is response
    assert response.is_closed
    assert wire.open == 0
    await world.close(response)


async def test_the_elapsed_time_of_a_streamed_response_ends_with_its_head(world: World) -> None:
    clock = FakeClock()
    wire = world.wire(503, httpx.Response(200, stream=Body(b"one", b"two")))
    response = await world.call(stack_of(world, wire, retry(), clock=clock).post_stream, URL)
    clock.advance(3.0)
    assert await world.read(response) == b"onetwo"
    assert response.elapsed.total_seconds() == pytest.approx(sum(clock.sleeps))


async def test_reading_a_streamed_response_to_its_end_closes_it(world: World) -> None:
    body = gzip.compress(b"text")
    wire = world.wire(
        httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Body(body[:5], body[5:]))
    )
    response = await world.call(client_of(world, wire).post_stream, URL)
    assert await world.read(response) == b"text"
    assert response.text == "text"
    assert wire.open == 0
    assert response.elapsed is not None


async def test_a_failure_before_the_response_is_returned_is_retried(world: World) -> None:
    wire = world.wire(httpx.ConnectError("refused"), 503, httpx.Response(200, stream=Body(b"one")))
    response = await world.call(stack_of(world, wire, retry()).post_stream, URL)
    assert await world.chunks(response) == [b"one"]
    assert response.extensions["stkai"].attempts == 3
    assert wire.open == 0


async def test_a_response_that_a_layer_has_read_can_still_be_streamed(world: World) -> None:
    response = httpx.Response(200, stream=Body(b"one", b"two"))
    await world.read(response)
    streamed = await world.call(client_of(world, httpx.MockTransport(lambda _: response)).post_stream, URL)
    assert await world.read(streamed) == b"onetwo"


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_streamed_response_can_be_pickled_whatever_its_clock(world: World, is_read: bool) -> None:
    wire = world.wire(httpx.Response(200, stream=Body(b"one")))
    client = stack_of(world, wire, retry(), clock=FakeClock())
    response = await world.call(client.post_stream, URL)
    if is_read:
        await world.read(response)
    copy = pickle.loads(pickle.dumps(response))  # noqa: S301 - its own
    assert (copy.status_code, copy.is_closed) == (200, True)
    assert not is_read or copy.content == b"one"
    await world.close(copy)
    await world.close(response)


# 429 under the adaptive limiter


def refusal() -> httpx.Response:
    return httpx.Response(429, headers={"Retry-After": "2"}, stream=Body(b'{"error":', b'"busy"}'))


@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_a_final_429_under_the_adaptive_limiter_is_an_error_with_its_response(
    world: World, verb: str
) -> None:
    wire = world.wire(lambda _: refusal())
    client = stack_of(
        world, wire, retry(RetryPolicy(2)), adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3))
    )
    with pytest.raises(stkai.ServerSideRateLimitError) as caught:
        await world.call(getattr(client, verb), URL)
    response = caught.value.response
    assert (response.status_code, response.json()) == (429, {"error": "busy"})
    assert response.headers["retry-after"] == "2"
    assert response.extensions["stkai"].attempts == 3
    assert response.elapsed is not None
    assert caught.value.request is response.request
    assert isinstance(caught.value, httpx.TransportError)
    assert wire.open == 0


@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_a_429_that_a_retry_overcomes_raises_nothing(world: World, verb: str) -> None:
    wire = world.wire(refusal(), 200)
    client = stack_of(world, wire, retry(), adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3)))
    response = await world.call(getattr(client, verb), URL)
    assert response.status_code == 200
    await world.close(response)


async def test_another_failure_after_a_429_is_raised_itself(world: World) -> None:
    wire = world.wire(refusal(), 500)
    client = stack_of(
        world, wire, retry(RetryPolicy(1)), adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3))
    )
    assert (await world.call(client.post, URL)).status_code == 500


async def test_a_429_to_a_get_is_a_response_because_the_limiter_lets_it_pass(world: World) -> None:
    wire = world.wire(refusal())
    limiter = AimdLimiter(100, 60.0, penalty_factor=0.3, methods={"POST"})
    client = stack_of(world, wire, adaptive(limiter))
    assert (await world.call(client.get, URL)).status_code == 429


@pytest.mark.parametrize(
    "layers", [(), (token_bucket(TokenBucket(100, 60.0)),)], ids=["none", "token bucket"]
)
@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_without_the_adaptive_limiter_a_429_is_a_response(
    world: World, verb: str, layers: tuple[Any, ...]
) -> None:
    response = await world.call(getattr(stack_of(world, world.wire(refusal()), *layers), verb), URL)
    assert response.status_code == 429
    assert await world.read(response) == b'{"error":"busy"}'


@pytest.mark.parametrize("verb", ["post", "post_stream"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, (b"half", BROKEN)),
        ({}, (httpx.ReadTimeout("slow"),)),
        ({"Content-Encoding": "gzip"}, (b"no gzip",)),
    ],
    ids=["breaks off", "stalls", "cannot be decoded"],
)
async def test_a_429_whose_body_cannot_be_read_is_still_that_error_and_is_closed(
    world: World, verb: str, headers: dict[str, str], body: tuple[Any, ...]
) -> None:
    headers = {"Retry-After": "7", **headers}
    wire = world.wire(httpx.Response(429, headers=headers, stream=Body(*body)))
    client = stack_of(world, wire, adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3)))
    with pytest.raises(stkai.ServerSideRateLimitError) as caught:
        await world.call(getattr(client, verb), URL)
    response = caught.value.response
    assert (response.headers["retry-after"], response.content) == ("7", b"")
    assert response.extensions["stkai"].attempts == 1
    assert wire.open == 0
