"""No request is lost, repeated or held up: bugs that a hostile review of the first version found."""

import asyncio
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import stkai
from stkai import AimdLimiter, DeadlineExceededError, RequestOptions, RetryPolicy, TokenBucket
from stkai.testing import FakeClock

from ..support.clients import Body
from ..support.wire import Answer, Wire
from ..support.world import World
from .hostile import drip, hostile
from .stacks import NO_DELAY, client_of, transport_of, wire_of

URL = "https://api.example.com/v1"
SOON = 8.0
"""Seconds; far less than the servers here would take."""

HANGS = 60.0
"""Seconds that nothing takes, even on a busy machine."""


class Window:
    """A quota per fixed window, on its own clock."""

    def __init__(self, clock: FakeClock, max_requests: int, time_window: float) -> None:
        self.clock, self.max_requests, self.time_window = clock, max_requests, time_window
        self.used: dict[int, int] = {}

    def __call__(self, _: httpx.Request) -> Answer:
        now = self.clock.monotonic()
        window = int(now // self.time_window)
        if self.used.get(window, 0) >= self.max_requests:
            seconds = math.ceil((window + 1) * self.time_window - now)
            return httpx.Response(429, headers={"Retry-After": str(seconds)})
        self.used[window] = self.used.get(window, 0) + 1
        return 200


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("make", [AimdLimiter, TokenBucket])
async def test_hundreds_of_posts_at_once_are_all_answered(world: World, make: Any) -> None:
    clock = FakeClock()
    wire = Wire(Window(clock, 20, 4.0))
    client = client_of(
        world, rate_limit=make(20, 4.0), retry=RetryPolicy(), transport=wire, clock=clock, listener=[]
    )
    responses = await world.gather(*[lambda: world.call(client.post, URL)] * 200)
    assert {response.status_code for response in responses} == {200}
    assert wire.open == 0
    await world.close(client)


# What is sent again, and what is not


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("method", "policy", "arrivals"),
    [
        ("POST", NO_DELAY, 1),
        ("GET", NO_DELAY, 4),
        ("POST", RetryPolicy(initial_delay=0, retry_timeouts=True), 4),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_post_slower_than_its_timeout_is_executed_once_unless_retries_are_allowed(
    world: World, method: str, policy: RetryPolicy, arrivals: int
) -> None:
    arrived: list[str] = []

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        arrived.append(method)
        stopped.wait(30)

    with hostile(talk) as url:
        client = world.client(
            transport_of(world, retry=policy, transport=wire_of(world)),
            timeout=httpx.Timeout(HANGS, read=0.05),
        )
        with pytest.raises(httpx.ReadTimeout):
            await world.call(client.request, method, url)
        await world.close(client)
    assert len(arrived) == arrivals


async def test_a_failure_whose_body_cannot_be_decoded_is_retried(world: World) -> None:
    garbled = httpx.Response(
        503, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"this is no gzip")
    )
    wire = Wire(garbled, garbled, 200)
    client = client_of(world, retry=NO_DELAY, transport=wire, clock=FakeClock())
    response = await world.call(client.post, URL)
    assert (response.status_code, len(wire.requests), wire.open) == (200, 3, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("attempt", [1, 2])
async def test_an_interrupt_while_a_refused_body_is_read_ends_the_call(
    world: World, attempt: int, error: BaseException
) -> None:
    wire = Wire(*[503] * (attempt - 1), httpx.Response(503, stream=Body(b"sorry", error)), 200)
    client = client_of(world, retry=NO_DELAY, transport=wire, clock=FakeClock())
    with pytest.raises(type(error)) as caught:
        await world.call(client.post, URL)
    assert caught.value is error
    assert (len(wire.requests), wire.open) == (attempt, 0)


@pytest.mark.real_time
@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("status", [429, 503])
async def test_an_asyncio_timeout_ends_a_call_whose_refused_body_drips(world: World, status: int) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 %d Busy\r\nContent-Length: 1000\r\n\r\n" % status)
        drip(connection, stopped, b"x" * 1000, 0.02)

    with hostile(talk) as url:
        client = client_of(world, retry=NO_DELAY, transport=wire_of(world))
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.post(url)
        assert time.monotonic() - start < SOON
        await client.aclose()


# Connections


async def test_a_401_is_read_to_its_end_before_the_provider_is_asked(world: World) -> None:
    open_when_asked: list[int] = []

    class Provider(stkai.AuthProvider):
        def get_access_token(self) -> str:
            open_when_asked.append(wire.open)
            return f"token-{len(open_when_asked)}"

    wire = Wire(httpx.Response(401, content=b"who are you?"), 200)
    client = client_of(world, auth=Provider(), transport=wire, clock=FakeClock())
    assert (await world.call(client.post, URL)).status_code == 200
    assert open_when_asked == [0, 0]


# Signal handlers


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.real_time
@pytest.mark.parametrize("make", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("share", [None, "signals"])
def test_a_signal_handler_that_uses_the_client_it_interrupted_gets_an_error_and_no_deadlock(
    make: Any, share: str | None, tmp_path: Path
) -> None:
    """Hundreds of interrupts, at any line, some of them while a lock is held."""
    options: Any = {} if share is None else {"share": share, "store": f"file://{tmp_path}"}
    client = client_of(
        World("sync"),
        auth=stkai.StaticToken("token"),
        rate_limit=make(1e6, 1.0, **options),
        retry=RetryPolicy(budget=stkai.RetryBudget()),
        transport=httpx.MockTransport(lambda _: httpx.Response(200)),
        listener=[],
    )
    handled: list[int] = []
    refused: list[str] = []
    is_handling = False

    def handle(*_: object) -> None:
        nonlocal is_handling
        if not is_handling:
            is_handling = True
            try:
                handled.append(client.post("https://api.example.com/").status_code)
            except RuntimeError as error:
                refused.append(str(error))
            is_handling = False

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        while len(handled) + len(refused) < 300 or not refused:
            assert client.post("https://api.example.com/").status_code == 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert set(handled) <= {200}, "between two calls, it may send"
    assert {message.partition(":")[0] for message in refused} == {
        "a signal handler cannot use the client that it interrupted"
    }
    client.close()


# Deadlines and streams


def pause_after(head: bytes, seconds: float, rest: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(head)
        stopped.wait(seconds)
        connection.sendall(rest)

    return talk


@pytest.mark.real_time
async def test_a_deadline_does_not_shorten_the_read_timeout_of_a_returned_stream(world: World) -> None:
    talk = pause_after(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", 0.6, b"cd")
    with hostile(talk) as url:
        client = client_of(world, retry=RetryPolicy(), transport=wire_of(world))
        response = await world.call(client.post_stream, url, deadline=0.3, timeout=30)
        assert await world.read(response) == b"abcd"
        await world.close(client)


def flood(connection: socket.socket, stopped: threading.Event) -> None:
    while not stopped.is_set():
        connection.sendall(b"x" * 65_536)


REFUSALS: dict[str, Callable[[socket.socket, threading.Event], object]] = {
    "drips its body": lambda c, s: drip(c, s, b"x" * 1000, 0.02),
    "stalls in its body": lambda _, s: s.wait(30),
    "sends without end": flood,
}


@pytest.mark.real_time
@pytest.mark.parametrize("behaviour", REFUSALS)
@pytest.mark.parametrize("verb", ["post", "post_stream"])
async def test_an_endless_refusal_holds_no_call_beyond_its_deadline(
    world: World, behaviour: str, verb: str
) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 429 Too Many Requests\r\n\r\n")
        REFUSALS[behaviour](connection, stopped)

    with hostile(talk) as url:
        client = client_of(world, retry=NO_DELAY, transport=wire_of(world))
        start = time.monotonic()
        (outcome,) = await world.outcomes(lambda: world.call(getattr(client, verb), url, deadline=0.2))
        assert time.monotonic() - start < SOON
        if isinstance(outcome, httpx.Response):
            assert outcome.status_code == 429
            await world.close(outcome)
        else:
            assert isinstance(outcome, DeadlineExceededError)
        await world.close(client)


@pytest.mark.real_time
@pytest.mark.parametrize("behaviour", ["drips its body", "sends without end"])
async def test_an_endless_refusal_is_abandoned_after_a_time_and_size_limit(
    world: World, behaviour: str
) -> None:
    arrived: list[int] = []

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        arrived.append(1)
        if len(arrived) == 2:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        connection.sendall(b"HTTP/1.1 503 Busy\r\n\r\n")
        REFUSALS[behaviour](connection, stopped)

    with hostile(talk) as url:
        client = client_of(world, retry=NO_DELAY, transport=wire_of(world))
        start = time.monotonic()
        assert (await world.call(client.post, url)).content == b"ok"
        assert time.monotonic() - start < SOON
        await world.close(client)


async def test_a_deadline_spans_all_redirects(world: World) -> None:
    clock = FakeClock(1000.0)

    async def answer(request: httpx.Request) -> Answer:
        await world.sleep(clock, min(4.0, float(request.extensions["timeout"]["read"])))
        hop = int(request.url.path[1:])
        return httpx.Response(302, headers={"Location": f"/{hop + 1}"})

    wire = Wire(answer)
    transport = transport_of(world, retry=RetryPolicy(), transport=wire, clock=clock)
    client = world.client(transport, follow_redirects=True)
    options = {"stkai": RequestOptions(deadline=10.0)}
    with pytest.raises(DeadlineExceededError, match="deadline of 10 s"):
        await world.call(client.get, "https://api.example.com/1", extensions=options)
    assert clock.monotonic() <= 1010.0 + 1e-6
    assert len(wire.requests) == 3
    await world.close(client)


async def test_a_request_sent_twice_has_its_full_deadline_both_times(world: World) -> None:
    clock = FakeClock(1000.0)
    wire = Wire(lambda _: 200)
    client = world.client(transport_of(world, retry=RetryPolicy(), transport=wire, clock=clock))
    request = client.build_request("GET", URL, extensions={"stkai": RequestOptions(deadline=10.0)})
    for _ in range(2):
        assert (await world.call(client.send, request)).status_code == 200
        clock.advance(60.0)


# Errors that say what to do


@pytest.mark.worlds("sync")
async def test_a_stack_of_the_other_kind_says_which_one_is_needed(world: World) -> None:
    sync = stkai.build_transport(auth=None, rate_limit=None)
    wrong: Any = httpx.AsyncClient(transport=sync)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"stkai\.build_async_transport\(\)"):
        asyncio.run(wrong.get(URL))
    other: Any = httpx.Client(transport=stkai.build_async_transport(auth=None))  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"stkai\.build_transport\(\)"):
        other.get(URL)
    sync.close()


@pytest.mark.parametrize("attempts", [1, 3])
async def test_the_final_error_of_a_call_has_one_note_with_its_method_host_and_attempts(
    world: World, attempts: int
) -> None:
    errors = [httpx.ReadError("reset") for _ in range(attempts)]
    policy = RetryPolicy(max_retries=attempts - 1, initial_delay=0)
    transport = transport_of(world, retry=policy, transport=Wire(*errors), clock=FakeClock())
    client = world.client(transport)
    with pytest.raises(httpx.ReadError) as caught:
        await world.call(client.get, "https://user@api.example.com:8443/v1?key=secret")
    plural = "s" if attempts > 1 else ""
    assert caught.value.__notes__ == [f"stkai: GET api.example.com: {attempts} attempt{plural}"]


async def test_the_final_error_of_a_call_says_how_its_earlier_attempts_ended(world: World) -> None:
    wire = Wire(503, 503, httpx.ReadError("reset"), httpx.ReadTimeout("slow"))
    transport = transport_of(world, retry=RetryPolicy(3, initial_delay=0), transport=wire, clock=FakeClock())
    with pytest.raises(httpx.ReadTimeout) as caught:
        await world.call(world.client(transport).get, URL)
    attempts = "4 attempts; before: 503 Service Unavailable, ReadError: reset"
    assert caught.value.__notes__ == [f"stkai: GET api.example.com: {attempts}"]


async def test_a_call_that_cannot_meet_its_deadline_says_how_its_earlier_attempts_ended(world: World) -> None:
    transport = transport_of(
        world, retry=NO_DELAY, rate_limit=TokenBucket(1, 60), transport=Wire(503), clock=FakeClock()
    )
    with pytest.raises(DeadlineExceededError, match="a permit takes") as caught:
        await world.call(
            world.client(transport).get, URL, extensions={"stkai": RequestOptions(deadline=10.0)}
        )
    assert caught.value.__notes__ == [
        "stkai: GET api.example.com: 2 attempts; before: 503 Service Unavailable"
    ]
