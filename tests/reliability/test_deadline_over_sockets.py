"""The deadline of a call on real sockets: no server holds a call longer, however slowly it sends.

These tests wait in real time, and a stuck call would wait for minutes: what they assert leaves a busy machine seconds.
"""

import gzip
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import httpx
import pytest

import stkai
from stkai import RetryPolicy, TokenBucket
from stkai.testing import Answer, Hang, QuotaServer

from ..support.threads import own_threads, wait_until
from ..support.world import NAMES, World
from .hostile import drip, hostile
from .stacks import busy_connections, client_of, provider_of, wire_of

pytestmark = [pytest.mark.real_time, pytest.mark.worlds(*NAMES)]

DEADLINE = 0.1
SOON = 5.0
"""Seconds; far less than any server here would take, and far more than it takes to notice a deadline."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/plain\r\n\r\n"
GZIP = gzip.compress(bytes(range(256)) * 4)

Talk = Callable[[socket.socket, threading.Event], object]


def say(text: bytes, then: bytes = b"") -> Talk:
    """Send `text` at once and `then` byte by byte, as slowly as you like."""

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(text)
        drip(connection, stopped, then + b"." * 1000, 0.02)

    return talk


SLOW: dict[str, Talk] = {
    "says nothing": lambda _, stopped: stopped.wait(60),
    "drips the status line": say(b"", HEAD),
    "drips the headers": say(HEAD[:20], b"X-Pad: " + b"x" * 1000),
    "drips a body of known length": say(HEAD, b"x" * 1000),
    "drips chunks": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 200),
    "drips a compressed body": say(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (len(GZIP) + 1000), GZIP
    ),
    "drips a body that ends with the connection": say(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
}


class Watch:
    """The seconds that a block took."""

    def __enter__(self) -> Self:
        self.start = time.monotonic()
        self.seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.start


@pytest.mark.parametrize("behaviour", SLOW)
async def test_a_server_that_is_slow_anywhere_holds_no_call_beyond_its_deadline(
    world: World, behaviour: str
) -> None:
    wire = wire_of(world)
    client = client_of(world, retry=RetryPolicy(), transport=wire)
    with hostile(SLOW[behaviour]) as url:
        with Watch() as watch, pytest.raises(stkai.DeadlineExceededError) as caught:
            await world.call(client.post, url, data={}, deadline=DEADLINE)
        assert DEADLINE <= watch.seconds < SOON
        assert caught.value.request.url == url
    await no_connection_is_busy(world, wire)
    await world.close(client)


@pytest.mark.parametrize("behaviour", ["says nothing", "drips the headers", "drips chunks"])
async def test_the_deadline_also_holds_for_a_client_without_layers(world: World, behaviour: str) -> None:
    wire = wire_of(world)
    client = world.pick(stkai.HttpClient, stkai.AsyncHttpClient)(wire)
    with hostile(SLOW[behaviour]) as url:
        with Watch() as watch, pytest.raises(stkai.DeadlineExceededError):
            await world.call(client.get, url, deadline=DEADLINE)
        assert DEADLINE <= watch.seconds < SOON
    await no_connection_is_busy(world, wire)
    await world.close(client)


@pytest.mark.parametrize("behaviour", ["says nothing", "drips the headers"])
async def test_the_deadline_of_a_streamed_call_holds_until_its_response_arrives(
    world: World, behaviour: str
) -> None:
    client = client_of(world, retry=RetryPolicy(), transport=wire_of(world))
    with hostile(SLOW[behaviour]) as url:
        with Watch() as watch, pytest.raises(stkai.DeadlineExceededError):
            await world.call(client.post_stream, url, deadline=DEADLINE)
        assert DEADLINE <= watch.seconds < SOON
    await world.close(client)


async def test_a_response_after_the_deadline_releases_its_connection(world: World) -> None:
    late = threading.Event()

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        late.wait(10)
        connection.sendall(HEAD + b"x" * 1000)

    wire = wire_of(world)
    client = client_of(world, retry=RetryPolicy(), transport=wire)
    with hostile(talk) as url:
        for verb in (client.post, client.post_stream):
            with pytest.raises(stkai.DeadlineExceededError):
                await world.call(verb, url, deadline=DEADLINE, timeout=10)
        late.set()
        response = await world.call(client.post, url, timeout=10)
        assert response.status_code == 200
    await no_connection_is_busy(world, wire)
    await world.close(client)


async def test_a_hanging_token_endpoint_holds_no_call_beyond_its_deadline(world: World) -> None:
    with QuotaServer() as server:
        server.fail_with(Hang(30), path=server.token_path)
        client = client_of(world, auth=provider_of(server), retry=RetryPolicy(), transport=wire_of(world))
        with Watch() as watch, pytest.raises(stkai.DeadlineExceededError) as caught:
            await world.call(client.post, server.create_url(), deadline=DEADLINE)
        assert DEADLINE <= watch.seconds < SOON
        assert caught.value.request.url == server.create_url()
        assert server.count(path="/v1") == 0
        await world.close(client)


async def test_waits_for_tokens_permits_and_retries_all_count_towards_the_deadline(world: World) -> None:
    with QuotaServer() as server:
        server.fail_with(Hang(0.15), path=server.token_path)
        server.fail_with(Answer(503, headers={"Retry-After": "30"}))
        bucket = TokenBucket(1, 30, burst=1)
        client = client_of(
            world, auth=provider_of(server), rate_limit=bucket, retry=RetryPolicy(), transport=wire_of(world)
        )
        with Watch() as watch:
            response = await world.call(client.post, server.create_url(), deadline=20.0)
            with pytest.raises(stkai.DeadlineExceededError, match="a permit takes"):
                await world.call(client.post, server.create_url(), deadline=20.0)
        assert response.status_code == 503, "to wait for 30 s would be too late"
        assert watch.seconds < SOON, "what cannot be in time is known at once"
        await world.close(client)


async def test_slow_failing_attempts_share_one_deadline(world: World) -> None:
    with QuotaServer(auth_required=False, latency=0.05) as server:
        server.fail_with(*[503] * 100)
        retry = RetryPolicy(max_retries=1000, initial_delay=0.05, max_delay=0.05)
        client = client_of(world, retry=retry, transport=wire_of(world))
        with Watch() as watch:
            (outcome,) = await world.outcomes(
                lambda: world.call(client.post, server.create_url(), deadline=0.35)
            )
        last = outcome if isinstance(outcome, Exception) else outcome.status_code
        assert last == 503 or isinstance(last, stkai.DeadlineExceededError)
        assert watch.seconds < SOON
        assert server.count(status=503) <= 4
        await world.close(client)


def test_threads_that_wait_for_a_slow_server_end_when_it_answers() -> None:
    world = World("sync")
    client = client_of(world, transport=wire_of(world, limits=httpx.Limits(max_connections=4)))
    with own_threads() as running:
        with hostile(SLOW["drips the headers"]) as url:
            for _ in range(8):
                with pytest.raises((stkai.DeadlineExceededError, httpx.PoolTimeout)):
                    client.post(url, deadline=0.05)
            # A request with a connection continues; one that waits for a connection has a timeout.
            assert len(running()) <= 8 + 4 + 1
        client.close()
        wait_until(lambda: running() == [], running)


async def no_connection_is_busy(world: World, wire: Any) -> None:
    if world.is_async:  # The cancelled work has been cleaned up.
        assert busy_connections(wire) == []
    else:
        wait_until(lambda: busy_connections(wire) == [])
