"""What a stack tells its listener: for which call, when, and why."""

import dataclasses
import itertools
import logging
import pickle
import threading
from typing import Any

import anyio
import httpx
import pytest

import stkai
from stkai import (
    AimdLimiter,
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallInfo,
    CallStarted,
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
from stkai.testing import FakeClock
from stkai.transports import Context, adaptive, auth, retry, token_bucket

from .support.event_log import CALL, EventLog
from .support.interrupts import Interrupt, needs_opcodes
from .support.wire import Answer, Foreign
from .support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/v1/things?key=secret-key"

EVENTS = [
    CallStarted(call=CALL),
    AttemptStarted(call=CALL, resend_count=1),
    AttemptFinished(call=CALL, status=200, seconds=0.2),
    Waited(call=CALL, layer="token_bucket", seconds=1.5),
    RateChanged(call=CALL, old=2.0, new=1.0, reason="429 Too Many Requests"),
    RetryScheduled(call=CALL, attempt=1, delay=0.5, cause="503 Service Unavailable"),
    TokenRenewed(call=CALL, seconds=0.2, reason="none was valid"),
    Rejected(call=CALL, layer="adaptive", wait=60.0, limit=45.0),
    CallFinished(call=CALL, error="ReadTimeout", seconds=30.0),
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
        type(event)(*dataclasses.astuple(event))  # type: ignore[call-arg]
    with pytest.raises((AttributeError, TypeError)):
        setattr(event, "other", 1)  # noqa: B010
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - its own
    assert hash(event) == hash(dataclasses.replace(event))


async def test_a_listener_gets_every_event_with_its_reason(world: World) -> None:
    clock, log = FakeClock(), EventLog()
    bucket = TokenBucket(1, 10.0, burst=1)
    limiter = AimdLimiter(60, 60.0, penalty_factor=0.5)
    layers = [
        retry(RetryPolicy(initial_delay=1.0)),
        auth(Provider()),
        token_bucket(bucket),
        adaptive(limiter),
    ]
    stack = StackBuilder(layers, clock=clock, listener=log, random=lambda: 0.0)
    transport = world.build(stack, world.wire(503, 429, 200))
    await world.read(await world.send(transport, httpx.Request("POST", URL)))
    options = {"stkai": RequestOptions(retry=None, max_wait_time=1.0)}
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", URL, extensions=options))

    assert log.of(TokenRenewed) == [TokenRenewed(call=CALL, seconds=0.0, reason="none was valid")]
    assert log.of(RetryScheduled) == [
        RetryScheduled(call=CALL, attempt=1, delay=1.0, cause="503 Service Unavailable"),
        RetryScheduled(call=nth(2), attempt=2, delay=0.0, cause="429 Too Many Requests"),
    ]
    assert log.of(RateChanged)[0] == RateChanged(
        call=nth(2), old=1.0, new=0.5, reason="429 Too Many Requests"
    )
    first = log.of(Waited)[0]
    assert (first.layer, first.seconds, first.call) == ("token_bucket", pytest.approx(9.0), nth(2))
    (rejected,) = log.of(Rejected)
    assert (rejected.layer, rejected.limit) == ("token_bucket", 1.0)
    assert rejected.wait > 1.0


def nth(attempt: int) -> CallInfo:
    return dataclasses.replace(CALL, attempt=attempt)


async def test_events_report_a_call_from_start_to_end_with_each_attempt(world: World) -> None:
    clock, log = FakeClock(), EventLog()

    async def wire(_: httpx.Request) -> Answer:
        await world.sleep(clock, 2.0)
        return httpx.ConnectError("refused") if clock.monotonic() < 3 else 200

    stack = StackBuilder(
        [retry(RetryPolicy(initial_delay=1.0))], clock=clock, listener=log, random=lambda: 0.0
    )
    await world.send(world.build(stack, world.wire(wire)), httpx.Request("POST", URL))
    assert log.of(Event) == [
        CallStarted(call=CALL),
        AttemptStarted(call=CALL, resend_count=0),
        AttemptFinished(call=CALL, error="ConnectError", seconds=2.0),
        RetryScheduled(call=CALL, attempt=1, delay=1.0, cause="ConnectError: refused"),
        AttemptStarted(call=nth(2), resend_count=1),
        AttemptFinished(call=nth(2), status=200, seconds=2.0),
        CallFinished(call=nth(2), status=200, attempts=2, seconds=5.0),
    ]
    assert len({event.call.id for event in log.events}) == 1


@pytest.mark.parametrize(
    "outcome", [200, 503, httpx.ReadError("reset"), KeyboardInterrupt(), SystemExit()], ids=repr
)
async def test_every_call_has_exactly_one_start_and_one_end(world: World, outcome: Any) -> None:
    log = EventLog()

    def wire(_: httpx.Request) -> Answer:
        if isinstance(outcome, BaseException):
            raise outcome
        return int(outcome)

    stack = StackBuilder(
        [retry(), auth(Provider()), token_bucket(TokenBucket(10, 1.0))], clock=FakeClock(), listener=log
    )
    transport = world.build(stack, world.wire(wire))
    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)) as caught:
            await world.send(transport, httpx.Request("POST", URL))
        assert caught.value is outcome
    else:
        await world.send(transport, httpx.Request("POST", URL))
    (start,) = log.of(CallStarted)
    (end,) = log.of(CallFinished)
    assert start == CallStarted(call=CALL)
    assert log.events[-1].call.id == log.events[0].call.id
    if isinstance(outcome, int):
        assert (end.status, end.error) == (outcome, None)
    else:
        assert (end.status, end.error) == (None, type(outcome).__name__)


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancelled_call_also_reports_its_end(world: World) -> None:
    log = EventLog()

    async def wire(_: httpx.Request) -> Answer:
        group.cancel_scope.cancel()
        await anyio.Event().wait()
        return 200

    transport = world.build(StackBuilder([retry()], clock=FakeClock(), listener=log), world.wire(wire))
    async with anyio.create_task_group() as group:
        group.start_soon(world.send, transport, httpx.Request("POST", URL))
    name = anyio.get_cancelled_exc_class().__name__
    assert [type(event) for event in log.events] == [
        CallStarted,
        AttemptStarted,
        AttemptFinished,
        CallFinished,
    ]
    assert log.events[-1].error == name


async def test_layers_on_both_sides_of_another_transport_report_one_call(world: World) -> None:
    log = EventLog()
    context = Context(clock=FakeClock(), listener=log)
    inner = world.layer(token_bucket(TokenBucket(1, 2.0)), world.wire(503, 200), context=context)
    transport = world.layer(retry(), Foreign(inner), context=context)
    response = await world.send(transport, httpx.Request("POST", URL))
    assert response.extensions["stkai"].attempts == 2
    assert response.extensions["stkai"].queued == pytest.approx(1.5, abs=0.2)
    assert len(log.of(CallStarted)) == len(log.of(CallFinished)) == 1
    assert len({event.call.id for event in log.events}) == 1


async def test_tokens_and_query_strings_appear_in_no_event_and_no_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    clock, log = FakeClock(), EventLog()
    wire_script = (httpx.ConnectError("refused"), 401, 503, 429, 200)
    for listener in (log, None):
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
    assert len(log.events) >= 4
    assert len(caplog.records) >= 4
    assert "secret" not in caplog.text + repr(log.events)


@pytest.mark.parametrize(
    "outcome",
    [
        httpx.Response(503, extensions={"reason_phrase": b"\x1b[31m\r\n" + b"busy" * 10_000}),
        httpx.RemoteProtocolError("illegal: \x1b[31m\n" + "busy" * 10_000),
    ],
    ids=["status line", "error"],
)
async def test_the_words_of_a_server_are_one_short_line_that_no_terminal_interprets(
    world: World, caplog: pytest.LogCaptureFixture, outcome: Any
) -> None:
    caplog.set_level(logging.INFO, "stkai")
    transport = world.build(StackBuilder([retry()], clock=FakeClock()), world.wire(outcome, 200))
    await world.send(transport, httpx.Request("GET", URL))
    line = next(message for message in caplog.messages if "retrying" in message)
    assert "[31m" in line
    assert line.isprintable()
    assert len(line) < 700


async def test_an_uneventful_call_reports_only_its_start_attempt_and_end(world: World) -> None:
    log = EventLog()
    layers = [retry(), token_bucket(TokenBucket(10, 1.0)), adaptive(AimdLimiter(100, 1.0))]
    transport = world.build(StackBuilder(layers, clock=FakeClock(), listener=log), world.wire(200))
    await world.send(transport, httpx.Request("POST", URL))
    assert log.of(Event) == [
        CallStarted(call=CALL),
        AttemptStarted(call=CALL),
        AttemptFinished(call=CALL, status=200, seconds=0.0),
        CallFinished(call=CALL, status=200, seconds=0.0),
    ]


async def test_a_listener_that_raises_is_logged_and_does_not_fail_the_request(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def listener(event: Event) -> None:
        raise RuntimeError("the listener is broken")

    stack = StackBuilder([retry()], clock=FakeClock(), listener=listener)
    response = await world.send(world.build(stack, world.wire(503, 200)), httpx.Request("GET", URL))
    assert response.status_code == 200
    assert {(record.name, record.levelname) for record in caplog.records} == {("stkai", "ERROR")}
    assert any("the listener failed on #" in message and "retrying" in message for message in caplog.messages)
    assert "the listener is broken" in caplog.text


@pytest.mark.parametrize("value", ["café", "two\nlines", 5], ids=repr)
async def test_a_header_of_a_listener_that_cannot_be_sent_is_logged_and_left_out(
    world: World, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    def listener(event: Event) -> None:
        if isinstance(event, AttemptStarted):
            event.headers["baggage"] = value

    wire = world.wire(200)
    stack = StackBuilder([retry()], clock=FakeClock(), listener=listener)
    await world.send(world.build(stack, wire), httpx.Request("GET", URL))
    assert "baggage" not in wire.requests[0].headers
    assert "headers that cannot be sent" in caplog.text


@pytest.mark.worlds("sync", "asyncio")
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("kind", [CallStarted, AttemptStarted, AttemptFinished, RetryScheduled, CallFinished])
async def test_an_interrupt_in_a_listener_leaves_nothing_open_and_every_start_has_an_end(
    world: World, kind: type[Event], is_first: bool
) -> None:
    log = EventLog()

    def interrupt(event: Event) -> None:
        if isinstance(event, kind):
            raise KeyboardInterrupt

    wire = world.wire(503, 200)
    stack = StackBuilder(
        [retry()], clock=FakeClock(), listener=[interrupt, log] if is_first else [log, interrupt]
    )
    with pytest.raises(KeyboardInterrupt):
        await world.send(world.build(stack, wire), httpx.Request("GET", URL))
    assert wire.open == 0
    assert len(log.of(CallStarted)) == len(log.of(CallFinished)) == 1
    assert len(log.of(AttemptStarted)) == len(log.of(AttemptFinished))


@pytest.mark.worlds("sync", "asyncio")
async def test_a_call_has_an_end_if_an_interrupt_comes_while_its_error_is_described(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: BaseException) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("stkai.transports._context.advice_on", interrupt)
    log = EventLog()
    layer = world.build(
        StackBuilder([retry(RetryPolicy(0))], listener=[log]), world.wire(httpx.ReadError(""))
    )
    with pytest.raises(KeyboardInterrupt):
        await world.send(layer, httpx.Request("GET", URL))
    assert [event.error for event in log.of(CallFinished)] == ["ReadError"]


@needs_opcodes
@pytest.mark.no_cover
@pytest.mark.worlds("sync")
async def test_every_start_has_an_end_after_an_interrupt_before_or_after_the_flow(world: World) -> None:
    for number in itertools.count(1):
        log, wire = EventLog(), world.wire(503, 200)
        layer = world.build(StackBuilder([retry()], clock=FakeClock(), listener=log), wire)
        interrupt = Interrupt(number, "_layer_transport.py", "_context.py", "_call.py")
        with interrupt.during():
            await world.send(layer, httpx.Request("GET", URL))
        assert len(log.of(CallStarted)) == len(log.of(CallFinished)), number
        if interrupt.left > 0:
            break
    assert number > 50, "there were interrupts"


async def test_a_listener_runs_in_the_thread_of_its_request(world: World) -> None:
    threads: set[threading.Thread] = set()

    def listener(event: Event) -> None:
        threads.add(threading.current_thread())

    stack = StackBuilder([retry()], clock=FakeClock(), listener=listener)
    await world.send(world.build(stack, world.wire(503, 200)), httpx.Request("GET", URL))
    assert threads == {threading.current_thread()}
