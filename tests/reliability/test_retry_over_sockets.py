"""Retry over real sockets: nothing lost, nothing corrupted, nothing left open, never earlier than the server asked."""

import io
import itertools
import math
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, RequestOptions, RetryPolicy
from stkai.testing import Answer, FakeClock, HangUp, QuotaServer, Reset

from ..support.ids import spelled
from ..support.world import World
from .hostile import hostile
from .stacks import NO_DELAY, busy_connections, client_of, transport_of, wire_of

pytestmark = pytest.mark.without_auth

MANY_BYTES = b"x" * 100_000
"""More than a socket buffers, so that an unread body stays where it is."""


async def test_faulty_calls_on_a_pool_of_one_leave_it_free_and_nothing_open(
    world: World, server: QuotaServer
) -> None:
    faults: Iterator[Answer | HangUp | Reset] = itertools.cycle(
        [
            *(Answer(503), Answer(429), Answer(502, body=MANY_BYTES), HangUp(announced=False)) * 8,
            *(Reset("start"), Reset("headers"), Reset("body"), Reset("body", framing="chunked")),
        ]
    )
    wire = wire_of(world)
    client = client_of(world, retry=RetryPolicy(), transport=wire, clock=FakeClock())
    calls = 80  # One that kept the only connection would stop the next.
    for number in range(calls):
        server.fail_with(next(faults), path="/")
        response = await world.call(client.post, server.url + "/echo", data=number, timeout=5)
        assert (response.status_code, response.json()["body"]) == (200, str(number))
    assert busy_connections(wire) == []
    assert server.count(status=200) >= calls
    await world.close(client)


async def test_the_last_response_can_be_read_and_then_releases_its_connection(
    world: World, server: QuotaServer
) -> None:
    wire = wire_of(world)
    client = client_of(world, retry=RetryPolicy(max_retries=1), transport=wire, clock=FakeClock())
    for _ in range(3):
        server.fail_with(Answer(503, body=MANY_BYTES), Answer(503, body=MANY_BYTES))
        response = await world.call(client.post, server.create_url(), timeout=5)
        assert (response.status_code, response.content) == (503, MANY_BYTES)
        assert response.extensions["stkai"].attempts == 2
    assert busy_connections(wire) == []
    await world.close(client)


# Connections that break


BREAKS = [
    Reset("start"),
    Reset("headers", after=5),
    Reset("body", after=3, framing="length"),
    Reset("body", after=3, framing="chunked"),
    Reset("body", after=3, framing="gzip"),
]


@pytest.mark.parametrize("fault", BREAKS, ids=str)
async def test_a_call_is_repeated_wherever_its_connection_breaks_and_its_answer_is_complete(
    world: World, server: QuotaServer, fault: Reset
) -> None:
    server.fail_with(fault, fault, path="/echo")
    client = client_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=FakeClock())
    response = await world.call(client.post, server.url + "/echo", data={"a": 1}, timeout=5)
    assert response.json()["body"] == '{"a":1}'
    assert response.extensions["stkai"].attempts == 3
    await world.close(client)


CHUNKS = b"4\r\nbody\r\n0\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize("size", range(len(CHUNKS)))
async def test_a_call_is_repeated_wherever_its_chunks_end_too_early(world: World, size: int) -> None:
    pieces = iter([CHUNKS[:size], CHUNKS])

    def talk(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + next(pieces))

    client = client_of(world, retry=NO_DELAY, transport=wire_of(world))
    with hostile(talk) as url:
        response = await world.call(client.post, url, timeout=5)
    assert response.content == b"body"
    assert response.extensions["stkai"].attempts == 2
    await world.close(client)


@pytest.mark.parametrize("fault", BREAKS, ids=str)
async def test_a_connection_that_always_breaks_raises_the_network_error_with_the_request(
    world: World, server: QuotaServer, fault: Reset
) -> None:
    server.fail_with(*[fault] * 3, path="/echo")
    wire = wire_of(world)
    client = client_of(world, retry=RetryPolicy(max_retries=2), transport=wire, clock=FakeClock())
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)) as caught:
        await world.call(client.post, server.url + "/echo", timeout=5)
    assert caught.value.request.url == server.url + "/echo"
    assert (server.faults_left, busy_connections(wire)) == (0, [])
    await world.close(client)


async def test_a_connection_that_breaks_after_the_last_byte_fails_neither_this_call_nor_the_next(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=FakeClock())
    for number in range(3):
        server.fail_with(Reset("end"), path="/echo")
        response = await world.call(client.post, server.url + "/echo", data=number, timeout=5)
        assert (response.status_code, response.json()["body"]) == (200, str(number))
    await world.close(client)


async def test_an_unreachable_server_is_a_connect_error_after_all_attempts(world: World) -> None:
    with QuotaServer() as server:
        url = server.create_url()
    clock = FakeClock()
    client = client_of(world, retry=RetryPolicy(max_retries=2), transport=wire_of(world), clock=clock)
    with pytest.raises(httpx.ConnectError):
        await world.call(client.post, url, timeout=5)
    assert len(clock.sleeps) == 2
    await world.close(client)


# Bodies


class Once:
    """A body that can be sent once: a generator in sync code, an async generator elsewhere."""

    def __init__(self, world: World, *pieces: bytes) -> None:
        self.world, self.pieces = world, pieces

    def body(self) -> Any:
        if not self.world.is_async:
            return iter(self.pieces)

        async def stream() -> Any:
            for piece in self.pieces:
                yield piece

        return stream()


@pytest.mark.parametrize("fault", [Answer(503), Answer(429, headers={"Retry-After": "1"})], ids=str)
async def test_a_one_shot_body_is_sent_once_and_the_real_response_is_returned(
    world: World, server: QuotaServer, fault: Answer
) -> None:
    server.fail_with(fault, path="/echo")
    clock = FakeClock()
    transport = transport_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=clock)
    client = world.client(transport)
    body = Once(world, b"one, ", b"two").body()
    response = await world.call(client.post, server.url + "/echo", content=body)
    assert response.status_code == fault.status
    assert [record.body for record in server.requests] == [b"one, two"]
    assert clock.sleeps == []
    await world.close(client)


async def test_a_one_shot_body_on_a_connection_that_breaks_raises_the_real_error(
    world: World, server: QuotaServer
) -> None:
    server.fail_with(Reset("start"), path="/echo")
    transport = transport_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=FakeClock())
    client = world.client(transport)
    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
        await world.call(client.post, server.url + "/echo", content=Once(world, b"once").body())
    assert [record.body for record in server.requests] == [b"once"]
    await world.close(client)


@pytest.mark.parametrize("upload", ["memory", "file"])
async def test_an_upload_arrives_completely_or_not_at_all_and_is_never_partly_repeated(
    world: World, server: QuotaServer, tmp_path: Path, upload: str
) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    server.fail_with(503, path="/echo")
    transport = transport_of(world, retry=NO_DELAY, transport=wire_of(world), clock=FakeClock())
    client = world.client(transport)
    with (tmp_path / "file").open("rb") as file:
        source = io.BytesIO(content) if upload == "memory" else file
        response = await world.call(client.post, server.url + "/echo", files={"file": source})
    assert response.status_code == 503, "a file may be used up, so it is sent once"
    (record,) = server.requests
    assert content in record.body
    assert len(record.body) == int(record.header("content-length") or 0)
    await world.close(client)


async def test_a_multipart_body_in_memory_is_resent_byte_for_byte(world: World, server: QuotaServer) -> None:
    transport = transport_of(world, retry=NO_DELAY, transport=wire_of(world), clock=FakeClock())
    client = world.client(transport)
    for fault in (Answer(503), Reset("start"), Reset("body", after=100)):
        server.fail_with(fault, path="/echo")
        files = {"file": ("name", bytes(range(256)) * 100)}
        request = client.build_request("POST", server.url + "/echo", files=files)
        request.read()
        if fault == Reset("body", after=100):
            with pytest.raises(httpx.TransportError):  # httpx already had the response.
                await world.call(client.send, request)
        assert (await world.call(client.send, request)).status_code == 200
        assert [record.body for record in server.requests] == [request.content] * 2
        server.forget_requests()
    await world.close(client)


# Retry-After


HOUR = timedelta(hours=1)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def dated(after: timedelta, skew: timedelta = timedelta()) -> list[tuple[str, str]]:
    """A date this far ahead, from a server whose clock is wrong by `skew`."""
    return [("Date", date(NOW + skew)), ("Retry-After", date(NOW + skew + after))]


def plain(*values: str) -> list[tuple[str, str]]:
    return [("Retry-After", value) for value in values]


HONOURED: dict[str, tuple[list[tuple[str, str]], float]] = {
    "a date by a clock an hour fast": (dated(timedelta(seconds=7), HOUR), 7),
    "two lines": (plain("9", "2"), 9),
    "exactly the cap": (plain("60"), 60),
    "milliseconds beside rounded seconds": ([("retry-after-ms", "8200"), *plain("9")], 8.2),
    "a garbled date": (plain("Fri, 99 Foo 2030 99:99:99 GMT"), 0),
}
"""Each of the ways to read it; tests/transports/test_retry_after.py has all its forms."""

by_shape = pytest.mark.parametrize("shape", HONOURED)


@by_shape
def test_retry_after_is_honoured_in_every_form_and_ignored_if_meaningless(
    shape: str, server: QuotaServer
) -> None:
    headers, asked = HONOURED[shape]
    server.fail_with(Answer(503, headers=headers))
    clock = FakeClock(epoch=NOW)
    world = World("sync")
    client = client_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=clock)
    response = client.post(server.create_url())
    assert response.extensions["stkai"].attempts == 2
    (slept,) = clock.sleeps
    usual = 0.5
    assert max(asked, usual) <= slept <= max(asked, usual) + usual / 4 + 1e-9
    client.close()


@by_shape
def test_under_the_adaptive_limiter_no_request_is_sent_before_a_429_allows_it(shape: str) -> None:
    headers, asked = HONOURED[shape]
    clock = FakeClock(epoch=NOW)
    world = World("sync")
    with QuotaServer(auth_required=False, clock=clock) as server:
        server.fail_with(Answer(429, headers=headers))
        limiter = AimdLimiter(100, 60, max_wait_time=None)
        client = client_of(
            world, retry=RetryPolicy(), rate_limit=limiter, transport=wire_of(world), clock=clock
        )
        client.post(server.create_url())
        client.post(server.create_url())
        first, again, other = (record.time for record in server.requests)
        assert first + asked <= again <= other
        client.close()


@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_retry_after_counts_even_if_the_body_of_the_refusal_breaks_off(
    world: World, deadline: float | None
) -> None:
    answers = iter(
        [
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 20\r\nContent-Length: 100\r\n\r\nnot all",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
        ]
    )
    clock = FakeClock()
    policy = RetryPolicy(retry_unknown=False)
    client = client_of(world, retry=policy, transport=wire_of(world), clock=clock)
    with hostile(lambda connection, _: connection.sendall(next(answers))) as url:
        response = await world.call(client.post, url, deadline=deadline)
        assert (response.status_code, response.text) == (200, "whole")
        assert len(clock.sleeps) == 1
        assert clock.sleeps[0] >= 20.0
        await world.close(client)


@pytest.mark.parametrize(
    ("status", "headers", "deadline"),
    [(429, plain("1, 61"), None), (503, dated(timedelta(seconds=61), HOUR), None), (503, plain("9"), 5.0)],
    ids=str,
)
async def test_a_retry_after_beyond_the_cap_or_the_deadline_returns_the_response_at_once(
    world: World, server: QuotaServer, status: int, headers: Any, deadline: float | None
) -> None:
    server.fail_with(Answer(status, headers=headers, body="not now"))
    clock = FakeClock(epoch=NOW)
    client = client_of(world, retry=RetryPolicy(), transport=wire_of(world), clock=clock)
    response = await world.call(client.post, server.create_url(), deadline=deadline)
    assert (response.status_code, response.text) == (status, "not now")
    assert (len(server.requests), clock.sleeps) == (1, [])
    await world.close(client)


@pytest.mark.parametrize("options", [{"timeout": 1e300}, {"timeout": 1e300, "deadline": 1e300}], ids=spelled)
async def test_any_timeout_works_on_a_socket(
    world: World, server: QuotaServer, options: dict[str, float]
) -> None:
    client = client_of(world)
    response = await world.call(client.post, server.create_url(), **options)
    assert response.status_code == 200
    mounted = world.client(transport_of(world), timeout=None)
    extensions = {"stkai": RequestOptions(deadline=1e300)}
    for more in ({"extensions": extensions}, {"timeout": math.inf}):
        response = await world.call(mounted.post, server.create_url(), **more)
        assert response.status_code == 200
    await world.close(client)
    await world.close(mounted)


async def test_refusals_whose_bodies_stall_leave_some_of_the_deadline_to_the_last_attempt(
    world: World,
) -> None:
    stalls = b"HTTP/1.1 503 X\r\nContent-Length: 9\r\n\r\nhalf"
    answers = iter((stalls, stalls, stalls, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(next(answers))
        stopped.wait(20.0)

    with hostile(talk) as url:
        client = client_of(world, auth=None, retry=NO_DELAY)
        response = await world.call(client.post, url, {}, deadline=3.0)
        assert response.status_code == 200
        await world.close(client)
