"""What the default log writes, and at which level."""

import logging

import pytest

from stkai import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallInfo,
    CallStarted,
    Event,
    RateChanged,
    Rejected,
    RetryScheduled,
    SystemClock,
    TokenRenewed,
    Waited,
    _log,
    log_events,
)
from stkai.testing import FakeClock

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
        "INFO",
        "api.example.com: rate changed from 2/s to 1/s (429 Too Many Requests)",
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
    monkeypatch.setattr(_log, "_refusals", _log._Refusals())
    return clock


@pytest.mark.parametrize(("event", "level", "line"), LINES, ids=lambda value: type(value).__name__)
def test_an_event_is_one_line_at_the_level_of_its_weight(
    event: Event, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "stkai"):
        log_events(event)
    assert caplog.record_tuples == [("stkai", getattr(logging, level), line)]


def test_a_crowd_that_is_refused_gives_one_warning_per_interval_which_counts_the_others(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "stkai"):
        for _ in range(1300):
            log_events(Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0))
            clock.advance(1 / 64)
    first, *others = caplog.messages
    assert first.endswith("the call may wait 45 s")
    assert [line.partition("; ")[2] for line in others] == ["639 more were refused before it"] * 2


def test_each_layer_has_an_interval_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    for layer in ("token_bucket", "adaptive", "token_bucket"):
        log_events(Rejected(call=CALL, layer=layer, wait=60.0, limit=45.0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_refusals_that_get_no_warning_are_there_for_those_who_read_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, "stkai"):
        for _ in range(3):
            log_events(Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_a_program_that_sets_up_no_logging_sees_nothing_on_its_screen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_events(Rejected(call=CALL, layer="token_bucket", wait=60.0, limit=45.0))
    assert capfd.readouterr() == ("", "")
