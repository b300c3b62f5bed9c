"""HTTP/2 servers that end connections and answers as they please."""

import io
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import h2.connection
import h2.events
import httpx
import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

import stkai
from stkai import HttpConfig
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai.limiters import InFlight

from ..support.listening import listening
from ..support.wire import finish
from ..support.world import NAMES, World
from .raw import Http2Server

pytestmark = pytest.mark.worlds(*NAMES)

Answer = Callable[[int], list[bytes]]
"""The pieces of an answer on a stream; the client has read each before it gets the next."""


class Server(Http2Server):
    """Gives each request the next answer, and then good ones.

    Attributes:
        bodies: of the requests that have arrived completely.
        on_data: what it sends when the first part of a body has arrived.
        goodbye: what it sends at the end of a connection, once that `is_idle`; None for connections that stay open.
    """

    on_data = b""
    goodbye: bytes | None = None

    def __init__(self) -> None:
        super().__init__()
        self.is_idle = threading.Event()
        self.answers: list[Answer] = []
        self.bodies: list[bytes] = []

    def talk(self, secure: ssl.SSLSocket, connection: h2.connection.H2Connection) -> None:
        body, pieces = b"", list[bytes]()
        secure.sendall(connection.data_to_send())
        while data := secure.recv(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                    secure.sendall(self.on_data)
                elif isinstance(event, h2.events.StreamEnded):
                    self.bodies.append(body)
                    pieces, body = (self.answers.pop(0) if self.answers else good)(event.stream_id), b""
                if isinstance(event, h2.events.StreamEnded | h2.events.PingAckReceived) and pieces:
                    secure.sendall(pieces.pop(0) + PingFrame(opaque_data=b"read it?").serialize())
                    if self.goodbye is not None and self.is_idle.wait(10):
                        self.is_idle.clear()
                        secure.sendall(self.goodbye)
                        return
            secure.sendall(connection.data_to_send())


def head(stream: int, *fields: tuple[str, str], status: str = "200", ends: bool = False) -> bytes:
    data = Encoder().encode([(":status", status), *fields])
    flags = ["END_HEADERS", "END_STREAM"] if ends else ["END_HEADERS"]
    return HeadersFrame(stream, data=data, flags=flags).serialize()


def end(stream: int, data: bytes = b"by HTTP/2") -> bytes:
    return DataFrame(stream, data=data, flags=["END_STREAM"]).serialize()


def good(stream: int) -> list[bytes]:
    return [head(stream) + end(stream)]


def goaway(last: int, code: int = 0) -> bytes:
    return GoAwayFrame(last_stream_id=last, error_code=code).serialize()


@pytest.fixture
def server() -> Iterator[Server]:
    """Its origin is in the attribute `url`."""
    server: Any = Server()
    with listening(server.serve) as port:
        server.url = f"https://127.0.0.1:{port}/"
        yield server


def client_of(world: World, retry: stkai.RetryPolicy | None, limiter: InFlight | None = None) -> Any:
    """An httpx client over the default wire."""
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    return world.client(build(**_stack(world, retry) | {"rate_limit": limiter}))


def own_client_of(world: World, retry: stkai.RetryPolicy | None) -> Any:
    """stkai's client, which reads the body of an answer within its attempts."""
    build: Any = stkai.build_async_client if world.is_async else stkai.build_client
    return build(**_stack(world, retry))


def _stack(world: World, retry: stkai.RetryPolicy | None) -> dict[str, Any]:
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    wire = make(HttpConfig(http2=True, verify=False))
    return {"auth": None, "rate_limit": None, "retry": retry, "listener": [], "transport": wire}


CAREFUL = stkai.RetryPolicy(1, initial_delay=0, retry_unknown=False)


@pytest.mark.no_cover
@pytest.mark.both_packages
@pytest.mark.parametrize("code", [0, 2])
async def test_an_upload_that_a_goaway_does_not_accept_is_never_repeated_without_its_body(
    world: World, server: Any, code: int
) -> None:
    client = client_of(world, CAREFUL)
    await world.call(client.post, server.url, content=b"first")
    server.answers.append(lambda _: [goaway(1, code)])
    upload = io.BytesIO(b"a file")
    content = upload if not world.is_async else _chunks(upload)
    with pytest.raises(httpx.ConnectError):
        await world.call(client.post, server.url, content=content)
    assert server.bodies == [b"first", b"a file"]
    server.answers += [good, lambda _: [goaway(1, code)]]
    answers = [await world.call(client.post, server.url, content=body) for body in (b"second", b"third")]
    assert [answer.content for answer in answers] == [b"by HTTP/2"] * 2
    assert server.bodies[2:] == [b"second", b"third", b"third"]
    await world.close(client)


async def _chunks(file: io.BytesIO) -> Any:
    yield file.read()


@pytest.mark.both_packages
async def test_a_goaway_that_takes_back_a_request_within_its_answer_is_a_protocol_error(
    world: World, server: Any
) -> None:
    client = client_of(world, None)
    await world.call(client.post, server.url)
    server.answers.append(lambda stream: [head(stream), goaway(1)])
    with pytest.raises(httpx.RemoteProtocolError):
        await world.call(client.post, server.url)
    assert (await world.call(client.post, server.url)).content == b"by HTTP/2"
    await world.close(client)


def reset(stream: int) -> bytes:
    """REFUSED_STREAM."""
    return RstStreamFrame(stream, error_code=7).serialize()


async def test_a_stream_that_the_server_refuses_is_a_request_that_was_not_sent(
    world: World, server: Any
) -> None:
    client = client_of(world, CAREFUL)
    server.answers.append(lambda stream: [reset(stream)])
    assert (await world.call(client.post, server.url, content=b"x")).content == b"by HTTP/2"
    server.answers.append(lambda stream: [head(stream), reset(stream)])
    with pytest.raises(httpx.RemoteProtocolError):
        await world.call(client.post, server.url, content=b"y")
    assert server.bodies == [b"x", b"x", b"y"]
    await world.close(client)


def trailers(stream: int) -> bytes:
    data = Encoder().encode([("x-checksum", "1")])
    return HeadersFrame(stream, data=data, flags=["END_HEADERS", "END_STREAM"]).serialize()


def announced(stream: int, length: int, *, ends: bool = False) -> bytes:
    return head(stream, ("content-length", str(length)), ends=ends)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "broken",
    [
        lambda stream: [announced(stream, 3), end(stream)],
        lambda stream: [announced(stream, 300), end(stream)],
        lambda stream: [announced(stream, 300, ends=True)],
        lambda stream: [announced(stream, 9), DataFrame(stream, data=b"cut").serialize(), trailers(stream)],
        lambda stream: [head(stream, status="two hundred"), end(stream)],
    ],
    ids=["long", "short", "empty", "cut", "status"],
)
async def test_an_answer_that_breaks_the_rules_is_sent_once_for_a_post_and_again_for_a_get(
    world: World, server: Any, broken: Answer
) -> None:
    client = own_client_of(world, stkai.RetryPolicy(1, initial_delay=0))
    server.answers += [broken, broken]
    with pytest.raises(httpx.RemoteProtocolError):
        await world.call(client.post, server.url, {})
    assert len(server.bodies) == 1
    assert (await world.call(client.get, server.url)).content == b"by HTTP/2"
    assert len(server.bodies) == 3
    await world.close(client)


async def test_an_answer_without_a_body_may_announce_a_length(world: World, server: Any) -> None:
    client = client_of(world, None)
    server.answers += [lambda stream: [announced(stream, 9, ends=True)]] * 2
    server.answers.append(lambda stream: [head(stream, ("content-length", "9"), status="304", ends=True)])
    for method, status in ((client.head, 200), (client.head, 200), (client.get, 304)):
        assert (await world.call(method, server.url)).status_code == status
    assert server.connections == 1
    await world.close(client)


@pytest.mark.no_cover
@pytest.mark.both_packages
@pytest.mark.parametrize(
    "goodbye", [b"", goaway(1), goaway(1) + bytes(30_000)], ids=["none", "goaway", "long"]
)
async def test_a_connection_that_ends_while_it_is_idle_costs_no_request(
    world: World, server: Any, goodbye: bytes
) -> None:
    client = client_of(world, None)
    server.goodbye = goodbye
    for connections in (1, 2, 3):
        upload = io.BytesIO(b"a file")
        answer = await world.call(
            client.post, server.url, content=_chunks(upload) if world.is_async else upload
        )
        assert (answer.content, server.connections) == (b"by HTTP/2", connections)
        server.is_idle.set()
        await world.until(lambda: server.open == 0)
    assert server.bodies == [b"a file"] * 3
    await world.close(client)


@pytest.mark.real_time
async def test_frames_that_go_on_arriving_hold_no_connection_after_the_deadline(
    world: World, server: Any
) -> None:
    """A server may ask whether the client is alive while it works on its answer."""
    client = own_client_of(world, None)
    server.answers.append(lambda _: [b""] * 100_000)
    with pytest.raises(stkai.DeadlineExceededError):
        await world.call(client.get, server.url, deadline=0.1)
    await world.until(lambda: server.open == 0)
    await world.close(client)


@pytest.mark.real_time
@pytest.mark.both_packages
async def test_a_refusal_whose_body_stalls_leaves_its_slot_to_the_next_attempt(
    world: World, server: Any
) -> None:
    client = client_of(world, CAREFUL, InFlight(1))
    half = DataFrame(1, data=b"half").serialize()
    server.answers.append(lambda stream: [head(stream, status="503") + half])
    patient = {"stkai": stkai.RequestOptions(deadline=10)}
    answer = await world.call(client.post, server.url, content=b"x", timeout=None, extensions=patient)
    assert answer.content == b"by HTTP/2"
    assert server.bodies == [b"x", b"x"]
    await world.close(client)


async def test_closing_a_client_ends_a_call_that_waits_for_an_answer(world: World, server: Any) -> None:
    client = client_of(world, CAREFUL)
    server.answers.append(lambda _: [])

    async def close() -> None:
        await world.until(lambda: bool(server.bodies))
        await world.close(client)

    error, _ = await world.outcomes(partial(world.call, client.get, server.url), close)
    assert isinstance(error, httpx.ReadError)
    assert "the connection was closed on this side" in str(error)


async def test_closing_a_client_before_its_connection_has_begun_is_an_error_that_says_so(
    world: World, server: Any
) -> None:
    client = client_of(world, None)

    async def aclose(step: str, info: Any) -> None:
        if step == "http2.send_connection_init.started":
            await world.close(client)

    def close(step: str, info: Any) -> None:
        finish(aclose(step, info))

    with pytest.raises(httpx.ReadError, match="the connection was closed on this side"):
        await world.call(client.get, server.url, extensions={"trace": world.pick(close, aclose)})


async def test_a_server_that_allows_no_more_requests_on_a_connection_gets_the_next_one_on_another(
    world: World, server: Any
) -> None:
    client = client_of(world, None)
    none = SettingsFrame(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0}).serialize()
    server.answers.append(lambda stream: [head(stream) + none + end(stream)])
    for connections in (1, 2, 2):
        assert (await world.call(client.post, server.url)).content == b"by HTTP/2"
        assert server.connections == connections
    await world.close(client)


async def test_an_upload_fails_if_the_server_allows_less_than_was_already_sent(
    world: World, server: Any
) -> None:
    """httpcore begins before it has read the server's settings."""
    client = own_client_of(world, None)
    server.on_data = SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 16_384}).serialize()
    with pytest.raises(httpx.RemoteProtocolError, match="use HTTP"):
        await world.call(client.post, server.url, "x" * 70_000, deadline=10)
    await world.close(client)
