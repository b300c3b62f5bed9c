"""What the default log writes, and at which level."""

import logging
from collections import Counter
from typing import Any

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
    RetryScheduled,
    StackBuilder,
    StoreLost,
    StoreRestored,
    SystemClock,
    TokenAcquisitionTimeoutError,
    TokenBucket,
    TokenRenewed,
    Waited,
    _log,
    log_events,
)
from stkai.telemetry import PrometheusListener
from stkai.testing import FakeClock
from stkai.transports import adaptive, retry, token_bucket

from .support.world import World

CALL = CallInfo(id=7, method="POST", host="api.example.com", attempt=2)

LINES = [
    (CallStarted(call=CALL), "DEBUG", "#7 POST api.example.com: started"),
    (AttemptStarted(call=CALL, resend_count=1), "DEBUG", "#7 POST api.example.com: attempt 2 sent"),
    (
        AttemptFinished(call=CALL, status=503, seconds=0.25),
        "DEBUG",
        "#7 POST api.example.com: attempt 2: 503 in 0.25 s",
    ),
    (
        AttemptFinished(call=CALL, error="ReadTimeout", seconds=30.0),
        "DEBUG",
        "#7 POST api.example.com: attempt 2: ReadTimeout after 30 s",
    ),
    (
        RetryScheduled(call=CALL, attempt=2, delay=0.5, cause="503 Service Unavailable"),
        "INFO",
        "#7 POST api.example.com: attempt 2 failed (503 Service Unavailable); retrying in 0.5 s",
    ),
    (
        RetryScheduled(call=CALL, attempt=2, delay=0.0, cause="429 Too Many Requests"),
        "INFO",
        "#7 POST api.example.com: attempt 2 failed (429 Too Many Requests); retrying as soon as the limiter permits",
    ),
    (
        Waited(call=CALL, layer="adaptive", seconds=1.0),
        "DEBUG",
        "#7 POST api.example.com: waited 1 s for a permit of adaptive",
    ),
    (
        Waited(call=CALL, layer="adaptive", seconds=1.5),
        "INFO",
        "#7 POST api.example.com: waited 1.5 s for a permit of adaptive",
    ),
    (
        RateChanged(call=CALL, old=2.0, new=1.0, reason="429 Too Many Requests"),
        "DEBUG",
        "api.example.com: rate changed from 2/s to 1/s (429 Too Many Requests)",
    ),
    (
        StoreLost(call=CALL, share="team", store="the store", reason="it does not answer"),
        "WARNING",
        "the quota 'team' continues with this process's own part: the store cannot be reached (it does not answer)",
    ),
    (
        StoreRestored(call=CALL, share="team", store="the store"),
        "WARNING",
        "the quota 'team' is shared again: the store answers",
    ),
    (
        TokenRenewed(call=CALL, seconds=0.2, reason="none was valid"),
        "DEBUG",
        "#7 POST api.example.com: fetched a token in 0.2 s (none was valid)",
    ),
    (
        Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0),
        "WARNING",
        "#7 POST api.example.com: refused by token_bucket: a permit takes 60 s, and the call may wait 45 s",
    ),
    (
        CallFinished(call=CALL, status=200, attempts=1, seconds=0.125),
        "INFO",
        "#7 POST api.example.com: 200 in 0.125 s",
    ),
    (
        CallFinished(call=CALL, error="ConnectTimeout", attempts=3, seconds=12.0),
        "INFO",
        "#7 POST api.example.com: ConnectTimeout after 12 s (3 attempts)",
    ),
]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(SystemClock, "monotonic", clock.monotonic)
    monkeypatch.setattr(_log, "_rejections", {})
    return clock


@pytest.mark.parametrize(("event", "level", "line"), LINES, ids=lambda value: type(value).__name__)
def test_each_event_is_one_line_at_its_level(
    event: Event, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "stkai"):
        log_events(event)
    assert caplog.record_tuples == [("stkai", getattr(logging, level), line)]


@pytest.mark.no_cover
def test_many_refusals_log_one_warning_per_interval_that_counts_the_others(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "stkai"):
        for _ in range(1300):
            log_events(Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0))
            clock.advance(1 / 64)
    assert Counter(record.levelname for record in caplog.records) == {"WARNING": 3, "DEBUG": 1297}
    first, *others = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert first.endswith("the call may wait 45 s")
    assert [line.partition("; ")[2] for line in others] == ["639 more were refused before it"] * 2


def test_each_layer_has_its_own_interval(caplog: pytest.LogCaptureFixture) -> None:
    for layer in ("token_bucket", "adaptive", "token_bucket"):
        log_events(Rejected(call=CALL, layer=layer, wait=60.0, limit=45.0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_without_logging_set_up_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_events(Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.no_cover
async def test_hundreds_of_mostly_refused_calls_log_a_line_each_and_few_warnings(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = TokenBucket(140, 3600.0, max_wait_time=1.0)
    stack = StackBuilder([retry(), token_bucket(bucket)], clock=FakeClock())
    transport = world.build(stack, world.wire(*[200] * 140))
    refused = 0
    with caplog.at_level(logging.INFO, "stkai"):
        for _ in range(400):
            try:
                await world.read(
                    await world.send(transport, httpx.Request("POST", "https://api.example.com"))
                )
            except TokenAcquisitionTimeoutError:
                refused += 1
    assert refused == 260
    levels = Counter(record.levelname for record in caplog.records)
    assert levels["INFO"] == 400
    assert levels["WARNING"] <= 20
    assert sum("TokenAcquisitionTimeoutError" in line for line in caplog.messages) == 260


@pytest.mark.parametrize("listener", [None, log_events, [log_events]], ids=["default", "named", "listed"])
def test_the_default_log_has_each_line_once(listener: Any, caplog: pytest.LogCaptureFixture) -> None:
    transport = StackBuilder([retry()], listener=listener).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    with caplog.at_level(logging.INFO, "stkai"):
        transport.handle_request(httpx.Request("GET", "https://api.example.com"))
    assert len(caplog.messages) == 1


async def test_a_call_that_is_retried_and_waits_logs_three_lines(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    stack = StackBuilder([retry(), token_bucket(TokenBucket(1, 10.0))], clock=FakeClock(), random=lambda: 0.0)
    transport = world.build(stack, world.wire(503, 200))
    with caplog.at_level(logging.INFO, "stkai"):
        await world.read(
            await world.send(transport, httpx.Request("POST", "https://api.example.com/secret?key=secret"))
        )
    lines = [line.partition(" ")[2] for line in caplog.messages]
    assert lines == [
        "POST api.example.com: attempt 1 failed (503 Service Unavailable); retrying in 0.5 s",
        "POST api.example.com: waited 9.5 s for a permit of token_bucket",
        "POST api.example.com: 200 in 10 s (2 attempts)",
    ]


def test_calls_that_the_server_refuses_give_one_line_each_under_the_adaptive_limiter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wire = httpx.MockTransport(lambda _: httpx.Response(429))
    transport = StackBuilder([adaptive(AimdLimiter(1000, 1))], clock=FakeClock()).build(wire)
    with caplog.at_level(logging.INFO, "stkai"):
        for _ in range(10):
            transport.handle_request(httpx.Request("POST", "https://api.example.com"))
    lines = [line for line in caplog.messages if "waited" not in line]
    assert len(lines) == 10
    assert all(": 429 in " in line for line in lines)


@pytest.mark.parametrize("listener", [PrometheusListener, [stkai.log_events, PrometheusListener]])
def test_a_class_is_no_listener(listener: Any) -> None:
    with pytest.raises(stkai.ConfigurationError, match=r"such as PrometheusListener\(\), not the class"):
        stkai.build_client(auth=None, listener=listener)


def test_a_context_takes_one_function() -> None:
    listeners: Any = [print]
    with pytest.raises(stkai.ConfigurationError, match="listener must be one function"):
        stkai.Context(listener=listeners)
