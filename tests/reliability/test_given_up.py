"""What a call has given up is never sent, and holds no connection: over real sockets."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

import stkai
from stkai import DeadlineExceededError, HttpConfig, RequestOptions, RetryPolicy, TokenBucket
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai._wire.pool import ConnectionPool
from stkai.stores import Ask, Lease, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Attempt, Flow, LayerBase, LayerTransport, Load

from ..support.clients import Body
from ..support.interrupts import ctrl_c
from ..support.threads import own_threads
from ..support.world import NAMES, World
from ..wire.raw import WHOLE, RawServer, raw_server
from .hostile import drip, hostile, read_request
from .stacks import NO_DELAY, ONE_CONNECTION, busy_connections, client_of, provider_of, transport_of, wire_of

pytestmark = [pytest.mark.real_time, pytest.mark.worlds(*NAMES)]

SHORT = 0.2
"""Seconds; the deadline of a call that is given up."""

SOON = 8.0
"""Seconds; far less than anything here would stall."""


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as running:
        yield running


def wires(world: World) -> dict[str, Callable[[], Any]]:
    """Wires with room for one connection."""
    config = HttpConfig(max_connections=1, max_keepalive_connections=1)
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    return {"stkai's": lambda: make(config), "httpx's": lambda: wire_of(world)}


# Nothing is sent


@pytest.mark.parametrize("kind", ["stkai's", "httpx's"])
async def test_a_post_that_waits_for_a_full_pool_is_not_sent_after_its_deadline(
    world: World, kind: str, server: RawServer
) -> None:
    wire = wires(world)[kind]()
    client = client_of(world, transport=wire)
    held = await world.call(client.post_stream, server.url, timeout=30)
    with pytest.raises((DeadlineExceededError, httpx.PoolTimeout)):
        await world.call(client.post, server.url, deadline=SHORT)
    # httpcore loses a place in its pool that becomes free at the moment of a pool timeout.
    await world.sleep(stkai.SystemClock(), 0.1)
    await world.close(held)
    await world.sleep(stkai.SystemClock(), 0.2)
    assert server.requests == 1
    assert (await world.call(client.post, server.url)).content == b"body", "the connection is free"
    assert server.requests == 2
    await world.close(client)


@pytest.mark.worlds("sync")
@pytest.mark.parametrize("kind", ["stkai's", "httpx's"])
async def test_a_post_whose_host_is_found_too_late_is_not_sent(
    world: World, kind: str, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, real = threading.Event(), socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        found.wait(SOON)
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    traced: list[str] = []
    client = client_of(world, transport=wires(world)[kind](), retry=NO_DELAY)
    request = httpx.Request(
        "POST",
        server.url,
        content=b"body",
        extensions={"stkai": RequestOptions(deadline=SHORT), "trace": lambda name, _: traced.append(name)},
    )
    with calls_in_progress() as calls:
        with pytest.raises(DeadlineExceededError):
            client.send(request)
        found.set()
        await world.until(lambda: calls() == [])
    assert server.requests == 0
    assert not any("send_request" in name for name in traced)
    assert "connection.connect_tcp.started" in traced, "the caller's own trace is called as well"
    client.close()


@contextmanager
def calls_in_progress() -> Iterator[Callable[[], list[str]]]:
    """Yields a function that names the threads that still make calls that this test has begun."""
    with own_threads() as running:
        yield lambda: [thread for thread in running() if thread.startswith("stkai-call: ")]


@pytest.mark.worlds("sync")
@pytest.mark.parametrize("kind", ["stkai's", "httpx's"])
async def test_ctrl_c_during_a_wait_for_a_full_pool_sends_nothing_later(
    world: World, kind: str, server: RawServer
) -> None:
    client = client_of(world, transport=wires(world)[kind]())
    with calls_in_progress() as calls:
        held = client.post_stream(server.url)
        with ctrl_c(calls):
            client.post(server.url, deadline=30)
        held.close()
        await world.until(lambda: calls() == [])
    assert server.requests == 1
    client.close()


# Connections are free


def stalling(
    status: int, arrived: list[int], *, answers: int = 1
) -> Callable[[socket.socket, threading.Event], None]:
    """The first answers announce a body that never comes; then all is well."""

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        arrived.append(len(arrived))
        if len(arrived) > answers:
            connection.sendall(WHOLE)
            return
        head = b"HTTP/1.1 %d No\r\nContent-Length: 100\r\n\r\nsorry" % status
        connection.sendall(head)
        stopped.wait(30)

    return talk


@pytest.mark.parametrize("kind", ["stkai's", "httpx's"])
async def test_refusals_whose_bodies_stall_free_their_connections_at_once(world: World, kind: str) -> None:
    """Without a read timeout, and with room for one connection."""
    arrived: list[int] = []
    with hostile(stalling(503, arrived, answers=3)) as url:
        transport = transport_of(world, retry=NO_DELAY, transport=wires(world)[kind]())
        client = world.client(transport, timeout=None)
        start = time.monotonic()
        assert (await world.call(client.post, url)).content == b"body"
        assert time.monotonic() - start < 2.9, "three times a tenth of a second, and not a whole one"
        assert len(arrived) == 4
        await world.close(client)


@pytest.mark.worlds("sync")
async def test_a_body_that_is_given_up_leaves_its_connection_to_a_request_that_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpcore wakes no other request if two threads close a body at the same moment."""
    monkeypatch.setattr("stkai._abandonable._ENDING", SOON)  # The machine may be busy.
    arrived, closing, closed = threading.Event(), threading.Event(), threading.Event()

    class Wire(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            body: Any = response.stream

            def close(finish: Callable[[], None] = body.close) -> None:
                closing.wait(SOON)
                finish()
                closed.set()

            body.close = close
            return response

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        if arrived.is_set():
            connection.sendall(WHOLE)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody")
            arrived.set()
            stopped.wait()

    def trace(name: str, _: Any) -> None:
        if name == "http11.response_closed.started":
            closing.set()
            closed.wait(0.02)

    with hostile(talk) as url, ThreadPoolExecutor(1) as pool:
        client = client_of(world, transport=Wire(limits=ONE_CONNECTION), retry=None)
        extensions = {"stkai": RequestOptions(deadline=SHORT), "trace": trace}

        def wait() -> Any:
            assert arrived.wait(SOON)
            return client.get(url, timeout=SOON).content

        waiting = pool.submit(wait)
        with pytest.raises(DeadlineExceededError):
            client.send(httpx.Request("GET", url, extensions=extensions))
        assert waiting.result() == b"body"
        client.close()


@pytest.mark.parametrize(
    ("kind", "is_kept"), [("stkai's", False), ("stkai's", True), ("httpx's", False)], ids=str
)
async def test_a_head_that_arrives_byte_by_byte_holds_no_connection_after_the_deadline(
    world: World, kind: str, is_kept: bool
) -> None:
    """Each byte begins the read timeout anew; the connection is new, or was kept open after another request."""
    connections = 0

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        nonlocal connections
        connections += 1
        if is_kept or connections > 1:
            connection.sendall(WHOLE)
            if connections > 1:
                return
            read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        drip(connection, stopped, bytes([120]) * 1000, SHORT / 4)

    with hostile(talk) as url, calls_in_progress() as calls:
        client = client_of(world, transport=wires(world)[kind](), retry=None)
        if is_kept:
            assert (await world.call(client.get, url)).content == b"body"
        with pytest.raises(DeadlineExceededError):
            await world.call(client.get, url, deadline=SHORT)
        await world.until(lambda: calls() == [])
        assert (await world.call(client.get, url)).content == b"body", "the only connection is free"
        assert connections == 2
        await world.close(client)


@pytest.mark.usefixtures("quick_drain")
@pytest.mark.worlds("sync")
async def test_a_401_whose_body_stalls_leaves_the_connection_to_the_renewal(world: World) -> None:
    """The API and the token endpoint share one connection, and there is no read timeout."""
    with stkai.testing.QuotaServer() as tokens:
        arrived: list[int] = []
        with hostile(stalling(401, arrived)) as url:
            wire = wire_of(world, limits=ONE_CONNECTION)
            transport = transport_of(world, auth=provider_of(tokens, transport=wire), transport=wire)
            client = world.client(transport, timeout=None)
            start = time.monotonic()
            assert (await world.call(client.post, url)).status_code == 200
            assert time.monotonic() - start < SOON
            assert tokens.token_requests == 2
            client.close()


@pytest.mark.usefixtures("quick_drain")
@pytest.mark.parametrize("deadline", [None, 10.0])
@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_a_final_429_whose_body_stalls_is_raised_at_once_with_what_has_arrived(
    world: World, verb: str, deadline: float | None
) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 500\r\n\r\n"
        connection.sendall(head + b"half")
        stopped.wait(30)

    with hostile(talk) as url:
        wire = wire_of(world)
        client = client_of(world, rate_limit="adaptive", transport=wire)
        start = time.monotonic()
        with pytest.raises(stkai.ServerSideRateLimitError) as caught:
            await world.call(getattr(client, verb), url, timeout=30, deadline=deadline)
        assert time.monotonic() - start < SOON
        response = caught.value.response
        assert (response.headers["retry-after"], response.content) == ("7", b"half")
        await world.until(lambda: not busy_connections(wire))
        await world.close(client)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 302 Found\r\nLocation: /there\r\n",
        b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm="a", nonce="b", qop="auth", algorithm=MD5\r\n',
    ],
    ids=["redirect", "challenge"],
)
async def test_the_body_of_a_redirect_counts_towards_the_deadline(world: World, head: bytes) -> None:
    """So does that of a challenge of httpx's own auth."""

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(head + b"Content-Length: 500\r\n\r\n")
        drip(connection, stopped, b"x" * 500, 0.02)

    with hostile(talk) as url:
        transport = transport_of(world, retry=RetryPolicy(), transport=wire_of(world))
        client = world.client(
            transport, follow_redirects=True, timeout=30, auth=httpx.DigestAuth("user", "password")
        )
        options = {"stkai": RequestOptions(deadline=SHORT)}
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await world.call(client.get, url, extensions=options)
        assert time.monotonic() - start < SOON
        await world.close(client)


async def test_a_streamed_redirect_reaches_the_caller_before_its_body(world: World) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 20\r\n\r\n")
        drip(connection, stopped, b"x" * 20, 0.02)

    with hostile(talk) as url:
        client = client_of(world, retry=None)
        response = await world.call(client.post_stream, url, {}, deadline=SHORT)
        assert (response.status_code, len(await world.read(response))) == (302, 20)
        await world.close(client)


@pytest.mark.parametrize("kind", ["default", "aiohttp"])
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], ids=["head", "body"]
)
async def test_a_call_whose_client_is_closed_ends_at_once_with_an_error_that_says_so(
    world: World, answer: bytes, kind: str
) -> None:
    if kind == "aiohttp" and world.name != "asyncio":
        return
    arrived = threading.Event()

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(answer)
        arrived.set()
        stopped.wait(30)

    with hostile(talk) as url:
        wire = stkai.wires.aiohttp() if kind == "aiohttp" else None
        client = client_of(world, retry=RetryPolicy(), transport=wire)

        async def close() -> None:
            await world.until(arrived.is_set)
            await world.close(client)

        error, _ = await world.outcomes(partial(world.call, client.get, url), close)
    assert isinstance(error, httpx.ReadError)
    assert "the connection was closed on this side" in str(error)


async def test_a_redirect_that_is_not_followed_is_whole(world: World) -> None:
    body = b"x" * 300_000

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 300000\r\n\r\n" + body)
        stopped.wait(30)

    with hostile(talk) as url:
        client = world.client(transport_of(world, retry=None, transport=wire_of(world)))
        response = await world.call(client.get, url, extensions={"stkai": RequestOptions(deadline=30)})
        assert response.content == body
        await world.close(client)


# No thread to be had


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> Iterator[None]:
    """No more than so many threads can be started."""
    start, started = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        if thread.name.startswith("stkai"):
            if started >= after:
                raise RuntimeError("can't start new thread")
            started += 1
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        yield


@pytest.mark.worlds("sync")
async def test_without_a_thread_a_call_with_a_deadline_is_retried_and_then_says_that_nothing_was_sent(
    world: World, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(
        world, retry=RetryPolicy(2, initial_delay=0, retry_unknown=False), transport=wire_of(world)
    )
    with no_threads(monkeypatch), pytest.raises(httpx.ConnectError, match="can't start new thread") as caught:
        client.post(server.url, deadline=30)
    assert caught.value.__notes__ == ["stkai: POST 127.0.0.1: 3 attempts"]
    assert server.requests == 0
    assert client.post(server.url, deadline=30).content == b"body"
    client.close()


@pytest.mark.worlds("sync")
async def test_without_a_thread_a_refusal_is_closed_and_the_call_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[int] = []
    with hostile(stalling(503, arrived)) as url:
        client = client_of(world, retry=NO_DELAY, transport=wire_of(world))
        with no_threads(monkeypatch):
            assert client.post(url).content == b"body"
        client.close()
    assert len(arrived) == 2


@pytest.mark.usefixtures("quick_drain")
@pytest.mark.worlds("sync")
async def test_without_a_thread_a_refusal_that_drips_is_cut_off_where_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 1000\r\n\r\n")
        drip(connection, stopped, b"x" * 1000, 0.05)

    def loading(layer: LayerBase, request: httpx.Request, attempt: Attempt) -> Flow:
        response = yield from layer.forward(request, attempt)
        yield Load(response, 1000, brief=True)
        return response

    with hostile(talk) as url, no_threads(monkeypatch), LayerTransport(wire_of(world), loading) as stack:
        response = stack.handle_request(httpx.Request("GET", url))
    assert response.status_code == 401
    assert 0 < len(response.read()) < 1000


# Closing


async def test_closing_a_client_wakes_the_calls_that_wait_for_a_permit(world: World) -> None:
    limiter = TokenBucket(1, 3600.0)
    client = client_of(
        world,
        rate_limit=limiter,
        retry=RetryPolicy(),
        transport=httpx.MockTransport(lambda _: httpx.Response(200)),
    )
    await world.call(client.post, "http://a.example/")

    async def close() -> None:
        await world.until(lambda: limiter.waiting == 2)
        await world.close(client)

    post = lambda: world.call(client.post, "http://a.example/")  # noqa: E731
    start = time.monotonic()
    outcomes = await world.outcomes(post, post, close)
    assert time.monotonic() - start < SOON
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError, type(None)]
    assert "has been closed" in str(outcomes[0])
    assert limiter.waiting == 0


@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_closing_a_client_ends_the_calls_that_wait_for_a_token(
    world: World, deadline: float | None
) -> None:
    asked = threading.Event()

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        asked.set()
        stopped.wait(30)

    with hostile(talk) as url:
        provider = stkai.ClientCredentialsAuthProvider("id", "secret", url)
        client = client_of(world, auth=provider, retry=RetryPolicy(), transport=wires(world)["stkai's"]())

        async def close() -> None:
            await world.until(asked.is_set)
            await world.close(client)

        get = lambda: world.call(client.get, url, timeout=30, deadline=deadline)  # noqa: E731
        start = time.monotonic()
        outcomes = await world.outcomes(get, close)
        assert time.monotonic() - start < SOON
    assert isinstance(outcomes[0], RuntimeError)
    assert "has been closed" in str(outcomes[0])


# Exceptions of signal handlers


class SoftTimeLimit(Exception):  # noqa: N818 - as Celery names it
    """As Celery raises it."""


@contextmanager
def alarm(seconds: float, error: type[Exception]) -> Iterator[None]:
    def expire(*_: object) -> None:
        raise error("the time of this task is up")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("error", [TimeoutError, SoftTimeLimit, OSError])
@pytest.mark.parametrize("deadline", [None, 60.0])
@pytest.mark.worlds("sync")
async def test_an_exception_of_a_signal_handler_ends_a_call_and_is_not_retried(
    world: World, error: type[Exception], deadline: float | None
) -> None:
    arrived: list[int] = []

    def talk(_: socket.socket, stopped: threading.Event) -> None:
        arrived.append(1)
        stopped.wait(30)

    with hostile(talk) as url:
        client = client_of(world, retry=NO_DELAY, transport=wires(world)["stkai's"]())
        with alarm(0.2, error), pytest.raises(error, match="the time of this task is up") as caught:
            client.get(url, deadline=deadline)
        assert type(caught.value) is error
        assert len(arrived) == 1
        client.close()


class _AskedEachTime(stkai.AuthProvider):
    def get_access_token(self) -> str:
        return "token"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("status", [401, 503])
def test_an_exception_of_a_signal_handler_is_not_lost_while_a_refused_body_is_read(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    arrived: list[int] = []

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        arrived.append(1)
        connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 9\r\n\r\n" % status)
        stopped.wait(30)

    with hostile(talk) as url:
        client = client_of(World("sync"), auth=_AskedEachTime(), retry=RetryPolicy(initial_delay=1))
        with alarm(0.3, SoftTimeLimit), pytest.raises(SoftTimeLimit):
            client.get(url)
        assert len(arrived) == 1
        assert "a layer answered" not in caplog.text
        client.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.worlds("sync", "asyncio")
async def test_an_exception_of_a_signal_handler_is_not_lost_while_a_response_is_closed(world: World) -> None:
    bodies: list[object] = []

    class Ringing(Body):
        def close(self) -> None:
            ring()

        async def aclose(self) -> None:
            ring()

    def answer(_: httpx.Request) -> httpx.Response:
        bodies.append(body := Ringing())
        return httpx.Response(503, headers={"Content-Length": "99999"}, stream=body)

    client = client_of(world, retry=NO_DELAY, transport=httpx.MockTransport(answer))
    with alarm(SOON, SoftTimeLimit), pytest.raises(SoftTimeLimit):
        await world.call(client.get, "http://a.example/")
    assert len(bodies) == 1
    await world.close(client)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_exception_of_a_signal_handler_is_not_lost_in_a_listener() -> None:
    events: list[object] = []

    def listen(event: object) -> None:
        events.append(event)
        if len(events) == 1:
            time.sleep(SOON)

    client = client_of(
        World("sync"), transport=httpx.MockTransport(lambda _: httpx.Response(200)), listener=[listen]
    )
    with alarm(0.1, SoftTimeLimit), pytest.raises(SoftTimeLimit):
        client.get("http://a.example/")
    client.close()


def ring(*_: object) -> float:
    """User code that a signal interrupts."""
    signal.raise_signal(signal.SIGALRM)
    return 1.0


class _Ringing(MemoryStore):
    """A store whose call is interrupted."""

    def lease(self, ask: Ask) -> Lease:
        ring()
        raise AssertionError


class _Lost(MemoryStore):
    """A store that cannot be reached."""

    def lease(self, ask: Ask) -> Lease:
        raise ConnectionError("unreachable")


def _ring_when_lost(event: object) -> None:
    if isinstance(event, stkai.events.StoreLost):
        ring()


def _counting(**functions: Any) -> dict[str, Any]:
    return {"rate_limit": TokenBucket(9, 1, max_cost=99), **functions}


def _sharing(store: Any) -> Any:
    return TokenBucket(9, 1, share="alarm", store=store(FakeClock()))


INTERRUPTED: dict[str, Callable[[], dict[str, Any]]] = {
    "cost": lambda: _counting(cost=ring),
    "tokenizer": lambda: _counting(**stkai.costs.llm_tokens(tokenizer=ring)),
    "settle": lambda: _counting(cost=lambda _: 1, settle=ring),
    "store": lambda: {"rate_limit": _sharing(_Ringing)},
    "listener of a lost store": lambda: {"rate_limit": _sharing(_Lost), "listener": [_ring_when_lost]},
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("error", [TimeoutError, SoftTimeLimit, OSError])
@pytest.mark.parametrize("where", INTERRUPTED)
@pytest.mark.worlds("sync", "asyncio")
async def test_an_exception_of_a_signal_handler_is_not_lost_in_code_of_the_user(
    world: World, where: str, error: type[Exception]
) -> None:
    client = client_of(world, retry=NO_DELAY, transport=world.wire(*[200] * 4), **INTERRUPTED[where]())
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    with alarm(SOON, error), pytest.raises(error, match="the time of this task is up") as caught:
        await world.call(client.post, "http://a.example/", chat)
    assert type(caught.value) is error
    await world.close(client)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_exception_of_a_signal_handler_comes_out_of_a_body_that_an_httpx_client_reads() -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        stopped.wait(30)

    world = World("sync")
    with hostile(talk) as url:
        client = world.client(transport_of(world, transport=wires(world)["stkai's"]()), timeout=30)
        with alarm(0.2, TimeoutError), pytest.raises(TimeoutError) as caught:
            client.get(url)
        assert type(caught.value) is TimeoutError
        client.close()


@pytest.mark.parametrize("interrupted", ["reading", "closing"])
def test_a_cleanup_never_waits_for_a_lock_that_an_interrupt_left_taken(
    interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt between the two lines of httpcore's `ThreadLock.__enter__` leaves it taken."""
    monkeypatch.setattr("stkai.transports._body_end.CLEAN_UP_LIMIT", 0.1)
    taken = threading.Lock()

    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"begun"
            if interrupted == "reading":
                taken.acquire()
                raise KeyboardInterrupt

        def close(self) -> None:
            taken.acquire()
            raise KeyboardInterrupt

    class Stuck(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            is_stuck = request.url.path == "/stuck"
            return httpx.Response(200, stream=Body() if is_stuck else httpx.ByteStream(b"body"))

    client = client_of(World("sync"), transport=ConnectionPool(Stuck, httpx.Limits(max_connections=1)))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.get("http://a.example/stuck")
    assert time.monotonic() - start < SOON
    assert client.get("http://a.example/", timeout=SOON).status_code == 200, "the place is free"
    taken.release()
    client.close()


def test_a_call_with_a_deadline_at_the_end_of_the_interpreter_fails_instead_of_hanging() -> None:
    program = """if True:
        import httpx, stkai

        class Last:
            client = stkai.build_client(auth=None, transport=httpx.MockTransport(lambda _: httpx.Response(200)))

            def __del__(self):
                try:
                    self.client.get("http://service.example", deadline=30)
                except httpx.ConnectError as error:
                    print(error)

        last = Last()
        last.client.get("http://service.example", deadline=30)
    """
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.startswith("nothing was sent: no thread could be started")
