"""The clients over scripted wires: what they send, and what they return."""

import gzip
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

import stkai
from stkai import AsyncHttpClient, HttpClient, InvalidArgumentError, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import retry, token_bucket

from .support.clients import BROKEN, URL, Body, client_of, stack_of
from .support.world import World

# What is sent


@pytest.mark.parametrize(
    ("verb", "arguments", "same"),
    [
        ("get", {}, {}),
        ("post", {}, {}),
        (
            "post",
            {"data": {"name": "Zoë", "values": [1.5, None]}},
            {"json": {"name": "Zoë", "values": [1.5, None]}},
        ),
        ("post", {"data": {}}, {"json": {}}),
        ("get", {"headers": {"X-One": "1"}}, {"headers": {"X-One": "1"}}),
        ("get", {"headers": {"accept": "text/html"}}, {"headers": {"accept": "text/html"}}),
        (
            "post",
            {"data": 1, "headers": {"content-TYPE": "a/b"}},
            {"json": 1, "headers": {"content-TYPE": "a/b"}},
        ),
    ],
)
async def test_a_client_sends_what_httpx_would_send(
    world: World, verb: str, arguments: dict[str, Any], same: dict[str, Any]
) -> None:
    ours, theirs = world.wire(200), world.wire(200)
    await world.call(getattr(client_of(world, ours), verb), URL, **arguments)
    await world.call(getattr(world.client(theirs), verb), URL, **same)
    assert (ours.requests[0].method, ours.requests[0].url) == (
        theirs.requests[0].method,
        theirs.requests[0].url,
    )
    assert ours.bodies == theirs.bodies
    assert ours.requests[0].headers == theirs.requests[0].headers
    assert ours.requests[0].content == theirs.requests[0].content


async def test_a_given_header_replaces_the_default_one(world: World) -> None:
    wire = world.wire(200)
    await world.call(client_of(world, wire).get, URL, headers={"USER-AGENT": "mine", "host": "other"})
    assert wire.requests[0].headers.get_list("user-agent") == ["mine"]
    assert wire.requests[0].headers.get_list("host") == ["other"]


async def test_the_timeout_applies_to_connecting_writing_reading_and_the_pool(world: World) -> None:
    wire = world.wire(200, 200)
    client = client_of(world, wire)
    await world.call(client.get, URL, timeout=2.5)
    await world.call(client.post, URL)
    timeouts = [request.extensions["timeout"] for request in wire.requests]
    assert timeouts == [dict.fromkeys(("connect", "read", "write", "pool"), seconds) for seconds in (2.5, 30)]


async def test_a_url_object_is_accepted_like_a_string(world: World) -> None:
    wire = world.wire(200)
    await world.call(client_of(world, wire).get, httpx.URL(URL))
    assert wire.requests[0].url == URL


# What comes back


async def test_the_response_is_complete(world: World) -> None:
    clock = FakeClock()

    async def answer(_: httpx.Request) -> httpx.Response:
        await world.sleep(clock, 0.25)
        return httpx.Response(
            200,
            headers=[("Content-Encoding", "gzip"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")],
            stream=Body(gzip.compress(b'{"name": "thing"}')),
            extensions={"http_version": b"HTTP/2", "reason_phrase": b"Fine"},
        )

    wire = world.wire(answer)
    response = await world.call(stack_of(world, wire, retry(), clock=clock).post, URL, data={"a": 1})
    assert type(response) is httpx.Response
    assert response.json() == {"name": "thing"}
    assert (response.is_closed, response.http_version, response.reason_phrase) == (True, "HTTP/2", "Fine")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.elapsed.total_seconds() == 0.25
    assert (response.request.method, str(response.url), response.request.content) == ("POST", URL, b'{"a":1}')
    assert response.raise_for_status() is response
    assert wire.open == 0


async def test_an_error_status_is_a_response(world: World) -> None:
    response = await world.call(client_of(world, world.wire(404)).get, URL)
    assert response.status_code == 404
    with pytest.raises(httpx.HTTPStatusError):
        response.raise_for_status()


async def test_the_record_says_how_the_call_went(world: World) -> None:
    clock = FakeClock()
    limiter = TokenBucket(1, 10.0, burst=1)
    wire = world.wire(503, 200)
    client = stack_of(world, wire, retry(RetryPolicy(initial_delay=1.0)), token_bucket(limiter), clock=clock)
    response = await world.call(client.post, URL)
    record = response.extensions["stkai"]
    assert record.attempts == 2
    assert record.backed_off == pytest.approx(clock.sleeps[0])
    assert record.queued == pytest.approx(sum(clock.sleeps[1:]))
    assert response.elapsed.total_seconds() == pytest.approx(sum(clock.sleeps))


async def test_the_request_of_a_response_can_be_sent_again_as_a_new_call(world: World) -> None:
    clock = FakeClock()
    wire = world.wire(503, 200, 503, 200)
    transport = world.build(StackBuilder([retry()], clock=clock), wire)
    first = await world.call(client_of(world, transport).get, URL, deadline=100.0)
    clock.advance(1000)
    again = await world.call(world.client(transport).send, first.request)
    assert (again.status_code, again.extensions["stkai"].attempts) == (200, 2)


async def test_the_request_of_an_error_can_be_sent_again(world: World) -> None:
    wire = world.wire(httpx.ReadError("broken"), 200)
    transport = world.build(StackBuilder([retry(RetryPolicy(0))], clock=FakeClock()), wire)
    with pytest.raises(httpx.ReadError) as caught:
        await world.call(client_of(world, transport).post_stream, URL, deadline=100.0)
    again = await world.call(world.client(transport).send, caught.value.request)
    assert again.extensions["stkai"].attempts == 1


# The body inside the attempt


@pytest.mark.parametrize("verb", ["get", "post"])
async def test_without_a_retry_layer_a_truncated_body_is_an_error_that_names_the_request(
    world: World, verb: str
) -> None:
    wire = world.wire(httpx.Response(200, stream=Body(b"half", BROKEN)))
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await world.call(getattr(client_of(world, wire), verb), URL)
    assert caught.value.request.url == URL
    assert wire.open == 0


# Per call


async def test_retry_none_sends_once_and_another_policy_applies_its_numbers(world: World) -> None:
    wire = world.wire(503, 503, 503, 200)
    client = stack_of(world, wire, retry(RetryPolicy(1)))
    assert (await world.call(client.get, URL, retry=None)).extensions["stkai"].attempts == 1
    assert (await world.call(client.get, URL, retry=RetryPolicy(5))).extensions["stkai"].attempts == 3


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
async def test_a_deadline_ends_the_call(world: World, verb: str) -> None:
    wire = world.wire(503, 503, 503)
    client = stack_of(world, wire, retry(RetryPolicy(9, initial_delay=4.0)))
    response = await world.call(getattr(client, verb), URL, deadline=10.0)
    assert response.status_code == 503
    assert response.extensions["stkai"].attempts == 2
    await world.close(response)


@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_max_wait_time_bounds_the_wait_for_a_permit(world: World, verb: str) -> None:
    client = stack_of(world, world.wire(200, 200), token_bucket(TokenBucket(1, 60.0, max_wait_time=None)))
    await world.call(client.post, URL)
    with pytest.raises(stkai.TokenAcquisitionTimeoutError) as caught:
        await world.call(getattr(client, verb), URL, max_wait_time=5.0)
    assert (caught.value.max_wait_time, str(caught.value.request.url)) == (5.0, URL)


# Life


async def test_closing_a_client_closes_its_transport(world: World) -> None:
    wires = [world.wire(), world.wire(), world.wire()]
    closed, managed, both = (client_of(world, wire) for wire in wires)
    await world.close(closed)
    await world.call(both.close)
    if world.is_async:
        async with managed as same:
            pass
    else:
        with managed as same:
            pass
    assert same is managed
    assert [wire.closed for wire in wires] == [True, True, True]


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
def test_both_clients_take_the_same_arguments(verb: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, verb)) for kind in (HttpClient, AsyncHttpClient))
    assert [*ours.parameters.values()] == [*theirs.parameters.values()]


@pytest.mark.parametrize("name", ["put", "stream", "cookies", "timeout"])
def test_what_only_httpx_clients_have_is_an_error_that_says_how_to_get_one(name: str) -> None:
    with pytest.raises(
        AttributeError, match=rf"{name}.*httpx\.Client\(transport=stkai\.build_transport\(\)\)"
    ):
        getattr(HttpClient(httpx.MockTransport(lambda _: httpx.Response(200))), name)


async def test_a_client_in_place_of_a_transport_is_an_error_that_says_what_to_pass(world: World) -> None:
    client = world.pick(httpx.Client, httpx.AsyncClient)(transport=client_of(world, world.wire()))
    with pytest.raises(AttributeError, match=r"Client\(transport=stkai\.build_(async_)?transport\(\)\)"):
        await world.call(client.get, URL)
    await world.close(client)


# What a timeout says, and bodies of the other kind


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout, httpx.ConnectTimeout, httpx.WriteTimeout, httpx.PoolTimeout]
)
async def test_a_timeout_names_its_number_and_what_to_set(
    world: World, error: type[httpx.TimeoutException]
) -> None:
    client = client_of(world, world.wire(error("timed out"), error("")))
    message = r"^timed out, after timeout=30 seconds; pass a longer one to the call, such as .*timeout=600\)"
    with pytest.raises(error, match=message):
        await world.call(client.post, URL)
    with pytest.raises(error, match=r"^after timeout=1.5 seconds; pass"):
        await world.call(client.post_stream, URL, timeout=1.5)


async def test_a_timeout_that_a_mock_raises_again_and_again_says_so_once(world: World) -> None:
    error = httpx.ReadTimeout("timed out")
    client = client_of(world, world.wire(error, error, error))
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            await world.call(client.post, URL)
    assert str(error).count("timeout=30") == 1


async def test_a_timeout_while_the_body_arrives_names_its_number_too(world: World) -> None:
    stuck = httpx.Response(200, stream=Body(httpx.ReadTimeout("timed out")))
    client = client_of(world, world.wire(stuck))
    with pytest.raises(httpx.ReadTimeout, match="timed out, after timeout=5 seconds"):
        await world.call(client.get, URL, timeout=5)


async def test_a_complete_request_with_a_body_of_the_other_kind_is_refused_in_words(world: World) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"

    async def achunks() -> AsyncIterator[bytes]:
        yield b"a"

    kinds: list[Any] = [chunks, achunks]
    own, other = kinds if not world.is_async else kinds[::-1]
    client = client_of(world, world.wire(200))
    transport = world.build(stkai.StackBuilder([stkai.transports.retry()]), world.wire(200))
    needed = world.pick("a sync client sends bytes or a plain", "an async client sends bytes or an async")
    with pytest.raises(InvalidArgumentError, match=f"for the other kind of client: {needed} generator"):
        await world.call(client.send, httpx.Request("POST", URL, content=other()))
    with pytest.raises(InvalidArgumentError, match=f"for the other kind of client: {needed} generator"):
        await world.send(transport, httpx.Request("POST", URL, content=other()))
    assert (await world.call(client.send, httpx.Request("POST", URL, content=own()))).status_code == 200
