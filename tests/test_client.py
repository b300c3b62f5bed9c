"""The clients over scripted wires: what is sent, what comes back, and what is refused."""

import gzip
import inspect
import json
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

import stkai
from stkai import AimdLimiter, AsyncHttpClient, HttpClient, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import Context, adaptive, retry, token_bucket

from .wire import Wire
from .world import World

URL = "https://api.example.com/v1/things?page=1"


def client_of(world: World, transport: Any) -> Any:
    return world.pick(HttpClient, AsyncHttpClient)(transport)


def stack_of(world: World, wire: Wire, *layers: Any, clock: FakeClock | None = None) -> Any:
    """A client over the layers, in virtual time."""
    return client_of(world, world.build(StackBuilder(layers, clock=clock or FakeClock()), wire))


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Chunks, of which one may be an error; before each, something may be done."""

    def __init__(self, *chunks: bytes | Exception, before: Callable[[], object] = int) -> None:
        self._chunks = iter(chunks)
        self._before = before

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._before()
        chunk = next(self._chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None


async def arrivals(world: World, response: httpx.Response) -> tuple[list[bytes], Exception | None]:
    """The chunks that arrived, and the error by which they ended."""
    chunks: list[bytes] = []

    async def read() -> None:
        async for chunk in response.aiter_bytes():
            chunks.append(chunk)  # noqa: PERF401 - what arrived before an error counts

    def read_sync() -> None:
        for chunk in response.iter_bytes():
            chunks.append(chunk)  # noqa: PERF402

    try:
        await world.call(world.pick(read_sync, read))
    except httpx.TransportError as error:
        return chunks, error
    return chunks, None


BROKEN = httpx.RemoteProtocolError("peer closed connection without sending complete message body")

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


async def test_a_header_that_is_given_replaces_the_default_one(world: World) -> None:
    wire = world.wire(200)
    await world.call(client_of(world, wire).get, URL, headers={"USER-AGENT": "mine", "host": "other"})
    assert wire.requests[0].headers.get_list("user-agent") == ["mine"]
    assert wire.requests[0].headers.get_list("host") == ["other"]


async def test_the_timeout_counts_for_connecting_writing_reading_and_the_pool(world: World) -> None:
    wire = world.wire(200, 200)
    client = client_of(world, wire)
    await world.call(client.get, URL, timeout=2.5)
    await world.call(client.post, URL)
    timeouts = [request.extensions["timeout"] for request in wire.requests]
    assert timeouts == [dict.fromkeys(("connect", "read", "write", "pool"), seconds) for seconds in (2.5, 30)]


async def test_a_url_object_is_as_good_as_a_string(world: World) -> None:
    wire = world.wire(200)
    await world.call(client_of(world, wire).get, httpx.URL(URL))
    assert wire.requests[0].url == URL


# Bad input

RELATIVE = ("", "/v1/things", "api.example.com/v1", "ftp://example.com", "https://")
BROKEN_URLS = ("http://exa\x00mple.com", "http://example.com:port", "http://xn--/", None, 5, [URL])
NO_TIMES = (0, -1, float("nan"), float("inf"), None, "30", True, httpx.Timeout(5))

BAD_INPUT: list[dict[str, Any]] = [
    *({"url": url} for url in RELATIVE + BROKEN_URLS),
    *({"timeout": seconds} for seconds in NO_TIMES),
    *({"headers": headers} for headers in ({"X": "Zoë"}, {"X": 1}, "X: 1", 5)),
    *({"deadline": seconds} for seconds in (0, -1, "10")),
    {"max_wait_time": 0},
    {"retry": 3},
]


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=repr)
@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
async def test_a_bad_argument_is_an_error_that_names_it_and_nothing_is_sent(
    world: World, verb: str, arguments: dict[str, Any]
) -> None:
    wire = world.wire()
    (name,) = arguments
    with pytest.raises(stkai.InvalidArgumentError, match=name) as caught:
        await world.call(getattr(client_of(world, wire), verb), **{"url": URL, **arguments})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)
    assert wire.requests == []


def circle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def abyss() -> list[Any]:
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


@pytest.mark.parametrize(
    "data", [object(), {1, 2}, float("nan"), "\ud800", b"x", circle(), {("a",): 1}], ids=repr
)
@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_data_that_is_not_json_is_an_error_and_nothing_is_sent(
    world: World, verb: str, data: Any
) -> None:
    wire = world.wire()
    with pytest.raises(stkai.InvalidArgumentError, match="data must be JSON-serializable"):
        await world.call(getattr(client_of(world, wire), verb), URL, data=data)
    assert wire.requests == []


def test_data_that_is_nested_too_deep_for_json_is_an_error() -> None:
    with pytest.raises(stkai.InvalidArgumentError, match="data must be JSON-serializable"):
        HttpClient(Wire()).post(URL, data=abyss())


@pytest.mark.parametrize("transport", [None, 5, "https://example.com", httpx.HTTPTransport, httpx.Client])
@pytest.mark.parametrize("kind", [HttpClient, AsyncHttpClient])
def test_a_client_needs_a_transport(kind: Any, transport: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match="BaseTransport"):
        kind(transport)


def test_a_client_needs_a_transport_of_its_world() -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.BaseTransport"):
        HttpClient(httpx.AsyncHTTPTransport())  # type: ignore[arg-type]
    with pytest.raises(stkai.ConfigurationError, match=r"httpx\.AsyncBaseTransport"):
        AsyncHttpClient(httpx.HTTPTransport())  # type: ignore[arg-type]


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


async def test_the_record_tells_how_the_call_went(world: World) -> None:
    clock = FakeClock()
    limiter = TokenBucket(1, 10.0, burst=1)
    wire = world.wire(503, 200)
    client = stack_of(world, wire, retry(RetryPolicy(initial_delay=1.0)), token_bucket(limiter), clock=clock)
    response = await world.call(client.post, URL)
    record = response.extensions["stkai"]
    assert record.attempts == 2
    assert record.backed_off == pytest.approx(clock.sleeps[0])
    assert record.queued == pytest.approx(clock.sleeps[1])
    assert response.elapsed.total_seconds() == pytest.approx(sum(clock.sleeps))


async def test_an_error_names_the_callers_request(world: World) -> None:
    wire = world.wire(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError) as caught:
        await world.call(stack_of(world, wire, retry(RetryPolicy(0))).post, URL, data={"a": 1})
    assert (str(caught.value.request.url), caught.value.request.content) == (URL, b'{"a":1}')


async def test_the_request_of_a_response_can_be_sent_again_as_a_call_of_its_own(world: World) -> None:
    clock = FakeClock()
    wire = world.wire(503, 200, 503, 200)
    transport = world.build(StackBuilder([retry()], clock=clock), wire)
    first = await world.call(client_of(world, transport).get, URL, deadline=100.0)
    clock.advance(1000)
    again = await world.call(world.client(transport).send, first.request)
    assert (again.status_code, again.extensions["stkai"].attempts) == (200, 2)


async def test_the_request_of_an_error_can_be_sent_again_as_well(world: World) -> None:
    wire = world.wire(httpx.ReadError("broken"), 200)
    transport = world.build(StackBuilder([retry(RetryPolicy(0))], clock=FakeClock()), wire)
    with pytest.raises(httpx.ReadError) as caught:
        await world.call(client_of(world, transport).post_stream, URL, deadline=100.0)
    again = await world.call(world.client(transport).send, caught.value.request)
    assert again.extensions["stkai"].attempts == 1


async def test_an_ordinary_mock_transport_will_do(world: World) -> None:
    client = client_of(world, httpx.MockTransport(lambda request: httpx.Response(200, json=request.url.path)))
    assert (await world.call(client.get, URL)).json() == "/v1/things"
    streamed = await world.call(client.post_stream, URL)
    assert await world.read(streamed) == b'"/v1/things"'


# The body inside the attempt


@pytest.mark.parametrize("verb", ["get", "post"])
async def test_a_body_that_breaks_off_is_another_attempt(world: World, verb: str) -> None:
    wire = world.wire(
        httpx.Response(200, stream=Body(b"half", BROKEN)), httpx.Response(200, stream=Body(b"whole"))
    )
    response = await world.call(getattr(stack_of(world, wire, retry()), verb), URL)
    assert response.content == b"whole"
    assert response.extensions["stkai"].attempts == 2
    assert wire.open == 0


@pytest.mark.parametrize("verb", ["get", "post"])
async def test_without_a_retry_layer_a_body_that_breaks_off_is_an_error_that_names_the_request(
    world: World, verb: str
) -> None:
    wire = world.wire(httpx.Response(200, stream=Body(b"half", BROKEN)))
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await world.call(getattr(client_of(world, wire), verb), URL)
    assert caught.value.request.url == URL
    assert wire.open == 0


# Per call


async def test_retry_none_sends_once_and_another_policy_goes_by_its_own_numbers(world: World) -> None:
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


@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
async def test_a_deadline_bounds_the_timeouts_also_where_there_is_no_layer(world: World, verb: str) -> None:
    wire = world.wire(200)
    response = await world.call(getattr(client_of(world, wire), verb), URL, deadline=10.0)
    assert all(0 < seconds <= 10.0 for seconds in wire.requests[0].extensions["timeout"].values())
    assert response.request.extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), 30)
    await world.close(response)


@pytest.mark.parametrize("layers", [(), (retry(),)], ids=["no layer", "retry"])
@pytest.mark.parametrize("verb", ["get", "post"])
async def test_a_body_that_trickles_in_ends_with_the_deadline(
    world: World, verb: str, layers: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr("stkai._exchange._NO_CONTEXT", Context(clock=clock))

    trickle = Body(*[b"."] * 100, before=lambda: clock.advance(4.0))
    wire = world.wire(httpx.Response(200, stream=trickle))
    with pytest.raises(stkai.DeadlineExceededError) as caught:
        await world.call(getattr(stack_of(world, wire, *layers, clock=clock), verb), URL, deadline=10.0)
    assert clock.monotonic() == 12.0
    assert caught.value.request.url == URL
    assert wire.open == 0


@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_max_wait_time_bounds_the_wait_for_a_permit(world: World, verb: str) -> None:
    client = stack_of(world, world.wire(200, 200), token_bucket(TokenBucket(1, 60.0, max_wait_time=None)))
    await world.call(client.post, URL)
    with pytest.raises(stkai.TokenAcquisitionTimeoutError) as caught:
        await world.call(getattr(client, verb), URL, max_wait_time=5.0)
    assert (caught.value.max_wait_time, str(caught.value.request.url)) == (5.0, URL)


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
    clock = FakeClock()
    wire = world.wire(httpx.Response(200, headers={"X-A": "1"}, stream=Body(b"one", b"two")))
    response = await world.call(stack_of(world, wire, retry(), clock=clock).post_stream, URL)
    assert isinstance(response, stkai.StreamedResponse)
    assert (response.status_code, response.headers["x-a"], response.request.method) == (200, "1", "POST")
    assert response.extensions["stkai"].attempts == 1
    with pytest.raises(RuntimeError, match="elapsed"):
        response.elapsed  # noqa: B018
    clock.advance(3.0)
    if world.is_async:
        async with response as same:
            pass
    else:
        with response as same:
            pass
    assert same is response
    assert response.is_closed
    assert response.elapsed.total_seconds() == 3.0
    assert wire.open == 0
    clock.advance(3.0)
    await world.close(response)
    assert response.elapsed.total_seconds() == 3.0


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


async def test_a_failure_before_the_response_is_handed_up_is_retried(world: World) -> None:
    wire = world.wire(httpx.ConnectError("refused"), 503, httpx.Response(200, stream=Body(b"one")))
    response = await world.call(stack_of(world, wire, retry()).post_stream, URL)
    assert await world.chunks(response) == [b"one"]
    assert response.extensions["stkai"].attempts == 3
    assert wire.open == 0


async def test_a_response_that_a_layer_has_read_can_be_streamed_all_the_same(world: World) -> None:
    response = httpx.Response(200, stream=Body(b"one", b"two"))
    await world.read(response)
    streamed = await world.call(client_of(world, httpx.MockTransport(lambda _: response)).post_stream, URL)
    assert await world.read(streamed) == b"onetwo"


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_streamed_response_survives_pickling_whatever_its_clock(world: World, is_read: bool) -> None:
    wire = world.wire(httpx.Response(200, stream=Body(b"one")))
    client = stack_of(world, wire, retry(), clock=FakeClock())
    response = await world.call(client.post_stream, URL)
    if is_read:
        await world.read(response)
    copy = pickle.loads(pickle.dumps(response))  # noqa: S301 - its own
    assert (copy.status_code, copy.is_closed) == (200, True)
    assert not is_read or copy.content == b"one"
    await world.close(response)


# 429 under the adaptive limiter


def refusal() -> httpx.Response:
    return httpx.Response(429, headers={"Retry-After": "2"}, stream=Body(b'{"error":', b'"busy"}'))


@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_a_429_that_remains_under_the_adaptive_limiter_is_an_error_with_its_response(
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
async def test_a_429_that_a_retry_gets_over_is_none(world: World, verb: str) -> None:
    wire = world.wire(refusal(), 200)
    client = stack_of(world, wire, retry(), adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3)))
    response = await world.call(getattr(client, verb), URL)
    assert response.status_code == 200
    await world.close(response)


async def test_another_failure_after_a_429_is_itself(world: World) -> None:
    wire = world.wire(refusal(), 500)
    client = stack_of(
        world, wire, retry(RetryPolicy(1)), adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3))
    )
    assert (await world.call(client.post, URL)).status_code == 500


async def test_a_429_to_a_get_is_a_response_since_the_limiter_lets_it_pass(world: World) -> None:
    wire = world.wire(refusal())
    client = stack_of(world, wire, adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3)))
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


async def test_a_refusal_whose_body_breaks_off_is_that_error_and_is_closed(world: World) -> None:
    wire = world.wire(httpx.Response(429, stream=Body(b"half", BROKEN)))
    with pytest.raises(httpx.RemoteProtocolError):
        await world.call(
            stack_of(world, wire, adaptive(AimdLimiter(100, 60.0, penalty_factor=0.3))).post_stream, URL
        )
    assert wire.open == 0


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


async def test_the_transport_can_be_had_back(world: World) -> None:
    wire = world.wire()
    assert client_of(world, wire).transport is wire


def test_a_client_is_safe_to_share_between_threads() -> None:
    wire = Wire(lambda request: httpx.Response(200, json=json.loads(request.content)))
    client = HttpClient(StackBuilder([retry()], clock=FakeClock()).build(wire))
    answers: list[int] = []

    def work(number: int) -> None:
        answers.extend(client.post(URL, data=number).json() for _ in range(50))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(list(range(8)) * 50)


def test_both_clients_have_the_signatures_of_the_reference() -> None:
    for kind in (HttpClient, AsyncHttpClient):
        for verb, names in (("get", "url headers timeout"), ("post", "url data headers timeout")):
            parameters = inspect.signature(getattr(kind, verb)).parameters.values()
            positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert [p.name for p in positional] == ["self", *names.split()]
            assert {p.name: p.default for p in positional[2:]} == {
                name: 30 if name == "timeout" else None for name in names.split()[1:]
            }
        assert [*inspect.signature(kind.post).parameters] == [*inspect.signature(kind.post_stream).parameters]


# As a base class


class OwnVerbs(HttpClient):
    """As the API reference shows it: two verbs, and no call of `super().__init__`."""

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def get(self, url: str, headers: Any = None, timeout: float = 30, **_: Any) -> httpx.Response:
        return httpx.Response(200, text=url)

    def post(
        self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any
    ) -> httpx.Response:
        self.posted.append(data)
        return httpx.Response(201)


def test_a_subclass_that_overrides_get_and_post_needs_no_transport() -> None:
    with OwnVerbs() as client:
        assert client.get(URL).text == URL
        assert client.post(URL, {"a": 1}).status_code == 201
        assert client.posted == [{"a": 1}]


def test_a_subclass_without_streaming_of_its_own_does_not_stream() -> None:
    with pytest.raises(NotImplementedError, match="OwnVerbs"):
        OwnVerbs().post_stream(URL)


def test_a_subclass_without_a_transport_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"super\(\).__init__\(transport\)"):
        OwnVerbs().transport  # noqa: B018
    OwnVerbs().close()


def test_a_subclass_that_overrides_the_verbs_may_call_super_without_a_transport() -> None:
    class Polite(OwnVerbs):
        def __init__(self) -> None:
            HttpClient.__init__(self)
            super().__init__()

    assert Polite().get(URL).text == URL


def test_a_subclass_can_override_one_verb_and_leave_the_others_to_its_transport() -> None:
    class Loud(HttpClient):
        def get(self, url: str, *args: Any, **kwargs: Any) -> httpx.Response:
            return super().get(url + "&loud=1", *args, **kwargs)

    wire = Wire(200, 200)
    client = Loud(wire)
    client.get(URL)
    client.post(URL)
    assert [request.url.query for request in wire.requests] == [b"page=1&loud=1", b"page=1"]
