"""What a stack tells its listener, and what reaches the log where there is none."""

import dataclasses
import logging
import pickle
import threading

import httpx
import pytest

import stkai
from stkai import (
    AimdLimiter,
    Event,
    RateChanged,
    Rejected,
    RequestOptions,
    RetryPolicy,
    RetryScheduled,
    StackBuilder,
    TokenBucket,
    TokenRenewed,
    Waited,
)
from stkai._log import log_event
from stkai.testing import FakeClock
from stkai.transports import Context, adaptive, auth, retry, token_bucket

from .support.world import World

URL = "https://api.example.com/v1/things?key=secret-key"

EVENTS = [
    Waited(layer="token_bucket", seconds=1.5),
    RateChanged(old=2.0, new=1.0, reason="429 Too Many Requests"),
    RetryScheduled(attempt=1, delay=0.5, cause="503 Service Unavailable"),
    TokenRenewed(seconds=0.2, reason="none was valid"),
    Rejected(layer="adaptive", wait=60.0, limit=45.0),
]


class Provider(stkai.AuthProvider):
    def get_access_token(self) -> str:
        return "secret-token"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_a_frozen_dataclass_with_named_fields_only(event: Event) -> None:
    assert isinstance(event, Event)
    assert dataclasses.is_dataclass(event)
    name = dataclasses.fields(event)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, None)
    with pytest.raises(TypeError):
        type(event)(*dataclasses.astuple(event))
    with pytest.raises((AttributeError, TypeError)):
        setattr(event, "other", 1)  # noqa: B010
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - its own
    assert hash(event) == hash(dataclasses.replace(event))


@pytest.mark.parametrize(
    ("event", "level"),
    list(zip(EVENTS, ["DEBUG", "INFO", "INFO", "DEBUG", "WARNING"], strict=True)),
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_default_listener_logs_an_event_under_stkai(
    event: Event, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "stkai"):
        log_event(event)
    assert caplog.record_tuples == [("stkai", getattr(logging, level), repr(event))]


async def test_without_a_listener_a_wait_is_in_the_log_of_who_wants_details(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    stack = StackBuilder([token_bucket(TokenBucket(1, 2.0))], clock=FakeClock())
    transport = world.build(stack, world.wire(200, 200, 200))
    for level, told in (
        ("INFO", []),
        ("INFO", []),
        ("DEBUG", [repr(Waited(layer="token_bucket", seconds=2.0))]),
    ):
        with caplog.at_level(level, "stkai"):
            await world.read(await world.send(transport, httpx.Request("POST", URL)))
        assert caplog.messages == told


async def test_a_listener_hears_all_that_happens_with_its_reasons(world: World) -> None:
    clock, heard = FakeClock(), list[Event]()
    bucket = TokenBucket(1, 10.0, burst=1, max_wait_time=None)
    limiter = AimdLimiter(60, 60.0, penalty_factor=0.5)
    layers = [
        retry(RetryPolicy(initial_delay=1.0)),
        auth(Provider()),
        token_bucket(bucket),
        adaptive(limiter),
    ]
    stack = StackBuilder(layers, clock=clock, listener=heard.append, random=lambda: 0.0)
    wire = world.wire(503, 429, 200)
    transport = world.build(stack, wire)
    await world.read(await world.send(transport, httpx.Request("POST", URL)))
    options = {"stkai": RequestOptions(retry=None, max_wait_time=1.0)}
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", URL, extensions=options))

    def of(kind: type[Event]) -> list[Event]:
        return [event for event in heard if type(event) is kind]

    assert of(TokenRenewed) == [TokenRenewed(seconds=0.0, reason="none was valid")]
    first, second = of(RetryScheduled)
    assert first == RetryScheduled(attempt=1, delay=1.0, cause="503 Service Unavailable")
    assert second == RetryScheduled(attempt=2, delay=0.0, cause="429 Too Many Requests")
    assert of(RateChanged)[0] == RateChanged(old=1.0, new=0.5, reason="429 Too Many Requests")
    waits = [event.seconds for event in heard if isinstance(event, Waited) and event.layer == "token_bucket"]
    assert waits[0] == pytest.approx(9.0)
    (rejected,) = of(Rejected)
    assert isinstance(rejected, Rejected)
    assert (rejected.layer, rejected.limit) == ("token_bucket", 1.0)
    assert rejected.wait > 1.0


async def test_neither_tokens_nor_query_strings_are_heard_or_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    clock, heard = FakeClock(), list[Event]()
    wire_script = (httpx.ConnectError("refused"), 401, 503, 429, 200)
    for listener in (heard.append, None):
        layers = [
            retry(RetryPolicy(5)),
            auth(Provider()),
            adaptive(AimdLimiter(60, 60.0, penalty_factor=0.5)),
        ]
        transport = world.build(
            StackBuilder(layers, clock=clock, listener=listener), world.wire(*wire_script)
        )
        with caplog.at_level(logging.DEBUG, "stkai"):
            for _ in range(2):
                await world.read(await world.send(transport, httpx.Request("POST", URL)))
    assert len(heard) >= 4
    assert len(caplog.records) >= 4
    assert "secret" not in caplog.text + repr(heard)


async def test_a_quiet_call_tells_nothing(world: World) -> None:
    heard: list[Event] = []
    layers = [retry(), token_bucket(TokenBucket(10, 1.0)), adaptive(AimdLimiter(100, 1.0))]
    transport = world.build(StackBuilder(layers, clock=FakeClock(), listener=heard.append), world.wire(200))
    await world.send(transport, httpx.Request("POST", URL))
    assert heard == []


async def test_a_listener_that_raises_is_logged_and_does_not_fail_the_request(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def listener(event: Event) -> None:
        raise RuntimeError("the listener is broken")

    stack = StackBuilder([retry()], clock=FakeClock(), listener=listener)
    response = await world.send(world.build(stack, world.wire(503, 200)), httpx.Request("GET", URL))
    assert response.status_code == 200
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("stkai", "ERROR")
    assert "the listener failed on RetryScheduled(" in record.message
    assert "the listener is broken" in caplog.text


async def test_an_interrupt_in_a_listener_is_not_swallowed(world: World) -> None:
    def listener(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Context(listener=listener).emit(EVENTS[0])


async def test_a_listener_runs_in_the_thread_of_its_request(world: World) -> None:
    threads: list[threading.Thread] = []

    def listener(event: Event) -> None:
        threads.append(threading.current_thread())

    stack = StackBuilder([retry()], clock=FakeClock(), listener=listener)
    await world.send(world.build(stack, world.wire(503, 200)), httpx.Request("GET", URL))
    assert threads == [threading.current_thread()]
