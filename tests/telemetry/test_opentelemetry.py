"""Spans and metrics of a stack, as the real OpenTelemetry SDK receives them."""

import contextvars
import itertools
import sys
import threading
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

import stkai
from stkai import (
    AimdLimiter,
    AttemptStarted,
    AuthProvider,
    CallFinished,
    CallInfo,
    CallStarted,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenBucket,
)
from stkai.telemetry import OpenTelemetryListener
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import adaptive, auth, retry, token_bucket

from ..support.threads import together
from ..support.wire import Answer
from ..support.world import World
from .conftest import Telemetry

URL = "https://api.example.com:8443/v1/things?key=secret"


class Provider(AuthProvider):
    def __init__(self) -> None:
        self._numbers = itertools.count()

    def get_access_token(self) -> str:
        return f"secret-token-{next(self._numbers)}"


def stack(telemetry: Telemetry, *layers: stkai.Layer) -> StackBuilder:
    return StackBuilder(layers, clock=FakeClock(), listener=[telemetry.listener], random=lambda: 0.0)


async def call(world: World, builder: StackBuilder, *script: Answer, method: str = "POST") -> httpx.Response:
    response = await world.send(world.build(builder, world.wire(*script)), httpx.Request(method, URL))
    await world.read(response)
    return response


async def test_two_listeners_leave_no_span_behind(world: World) -> None:
    others = Telemetry(), Telemetry()
    builder = StackBuilder([retry(RetryPolicy())], listener=[each.listener for each in others])
    for _ in range(2):
        await call(world, builder, 200)
    assert context.get_current() == {}
    assert [len(each.spans()) for each in others] == [4, 4]


@pytest.mark.worlds("asyncio", "trio")
async def test_calls_with_spans_of_their_own_share_a_token(world: World, telemetry: Telemetry) -> None:
    fetched = threading.Event()

    class Slow(Provider):
        def get_access_token(self) -> str:
            fetched.wait(0.1)
            return super().get_access_token()

    transport = world.build(stack(telemetry, auth(provider := Slow())), world.wire(*[200] * 5))
    await world.outcomes(*[partial(world.send, transport, httpx.Request("POST", URL))] * 5)
    assert provider.get_access_token() == "secret-token-1"


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_a_call_is_a_span_under_its_caller_with_a_client_span_for_its_only_attempt(
    world: World, telemetry: Telemetry
) -> None:
    with telemetry.traces.get_tracer("mine").start_as_current_span("mine") as mine:
        await call(world, stack(telemetry, retry()), 200)
    attempt, whole, _ = telemetry.spans()
    assert (attempt.name, attempt.kind, attempt.status.status_code) == (
        "POST",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert (whole.name, whole.kind, whole.status.status_code) == (
        "stkai POST",
        SpanKind.INTERNAL,
        StatusCode.UNSET,
    )
    assert attempt.parent == whole.context
    assert whole.parent == mine.get_span_context()
    assert attributes(attempt) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "api.example.com",
        "server.port": 8443,
    }
    assert attributes(whole) == {**attributes(attempt), "stkai.attempts": 1}


async def test_each_attempt_is_a_span_that_says_how_often_the_request_was_sent_before(
    world: World, telemetry: Telemetry
) -> None:
    await call(world, stack(telemetry, retry()), 503, httpx.ConnectError("refused"), 200)
    *attempts, whole = telemetry.spans()
    assert [attributes(span).get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [attributes(span).get("error.type") for span in attempts] == ["503", "ConnectError", None]
    assert [attributes(span).get("http.response.status_code") for span in attempts] == [503, None, 200]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR] * 2 + [StatusCode.UNSET]
    assert all(span.parent == whole.context for span in attempts)
    assert [event.name for event in whole.events] == ["retry scheduled"] * 2
    assert attributes(whole)["stkai.attempts"] == 3


async def test_a_request_that_is_sent_again_with_a_fresh_token_is_a_resend(
    world: World, telemetry: Telemetry
) -> None:
    await call(world, stack(telemetry, retry(), auth(Provider())), 401, 200)
    first, second, whole = telemetry.spans()
    assert "http.request.resend_count" not in attributes(first)
    assert attributes(second)["http.request.resend_count"] == 1
    assert "token renewed" in [event.name for event in whole.events]


async def test_a_failed_call_says_what_failed(world: World, telemetry: Telemetry) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await call(world, stack(telemetry, retry(RetryPolicy(0))), httpx.ReadTimeout("slow"))
    attempt, whole = telemetry.spans()
    for span in (attempt, whole):
        assert attributes(span)["error.type"] == "ReadTimeout"
        assert span.status.status_code is StatusCode.ERROR


async def test_a_call_refused_before_it_is_sent_has_no_attempt(world: World, telemetry: Telemetry) -> None:
    limiter = TokenBucket(1, 60.0)
    builder = stack(telemetry, token_bucket(limiter))
    transport = world.build(builder, world.wire(200))
    await world.send(transport, httpx.Request("POST", URL))
    options = {"stkai": RequestOptions(max_wait_time=1.0)}
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await world.send(transport, httpx.Request("POST", URL, extensions=options))
    *_, refused = telemetry.spans()
    assert len(telemetry.spans()) == 3
    assert refused.kind is SpanKind.INTERNAL
    assert attributes(refused)["error.type"] == "TokenAcquisitionTimeoutError"
    assert attributes(refused)["stkai.attempts"] == 1  # It was about to be sent.
    assert [event.name for event in refused.events] == ["rejected"]
    (point,) = telemetry.points()["stkai.rejections"]
    assert (point.value, dict(point.attributes)) == (
        1,
        {"server.address": "api.example.com", "stkai.layer": "token_bucket"},
    )


async def test_requests_carry_the_context_of_their_attempt_and_the_callers_request_does_not(
    world: World, telemetry: Telemetry
) -> None:
    wire = world.wire(503, 200)
    request = httpx.Request("POST", URL)
    await world.send(world.build(stack(telemetry, retry()), wire), request)
    *attempts, _ = telemetry.spans()
    for sent, span in zip(wire.requests, attempts, strict=True):
        assert span.context is not None
        version, trace_id, span_id, _ = sent.headers["traceparent"].split("-")
        assert (version, int(trace_id, 16), int(span_id, 16)) == (
            "00",
            span.context.trace_id,
            span.context.span_id,
        )
    assert "traceparent" not in request.headers


async def test_events_during_a_call_are_inside_its_span(world: World, telemetry: Telemetry) -> None:
    def answer(request: httpx.Request) -> int:
        seen.append(trace.get_current_span().get_span_context())
        return 200

    seen: list[trace.SpanContext] = []
    before = context.get_current()
    await world.send(world.build(stack(telemetry, retry()), world.wire(answer)), httpx.Request("POST", URL))
    assert seen == [telemetry.spans()[0].context]
    assert context.get_current() == before


async def test_the_metrics_are_those_of_the_conventions_and_our_own(
    world: World, telemetry: Telemetry
) -> None:
    limiter = AimdLimiter(60, 60.0, penalty_factor=0.5)
    layers = [retry(), auth(Provider()), token_bucket(TokenBucket(1, 2.0)), adaptive(limiter)]
    await call(world, stack(telemetry, *layers), 429, httpx.ConnectError("refused"), 200)
    points = telemetry.points()
    host = {"server.address": "api.example.com"}
    requests = {
        (point.attributes.get("http.response.status_code"), point.attributes.get("error.type")): point
        for point in points["http.client.request.duration"]
    }
    assert set(requests) == {(429, "429"), (None, "ConnectError"), (200, None)}
    assert all(point.count == 1 for point in requests.values())
    assert requests[200, None].explicit_bounds[:3] == (0.005, 0.01, 0.025)
    assert requests[200, None].explicit_bounds[-1] == 120
    (whole,) = points["stkai.call.duration"]
    assert whole.attributes == {**host, "http.request.method": "POST", "http.response.status_code": 200}
    assert [point.value for point in points["stkai.calls.active"]] == [0]
    assert [point.value for point in points["stkai.permits"]] == [3]
    retries = {point.attributes["stkai.cause"]: point.value for point in points["stkai.retries"]}
    assert retries == {"429": 1, "ConnectError": 1}
    (rate,) = points["stkai.rate"]
    assert (rate.value, dict(rate.attributes)) == (0.5, host)
    waits = {point.attributes["stkai.layer"]: point for point in points["stkai.queue.duration"]}
    assert waits["token_bucket"].count == 1, "the permit of what was never sent came back"
    (renewals,) = points["stkai.token.renewal.duration"]
    assert (renewals.count >= 3, dict(renewals.attributes)) == (True, host)
    units = telemetry.units()
    assert units["http.client.request.duration"] == units["stkai.queue.duration"] == "s"
    assert all(name.startswith("stkai.") for name in units if name != "http.client.request.duration")
    assert "secret" not in repr(points)


@pytest.mark.no_cover
async def test_an_unusual_method_and_the_two_hundred_and_first_host_share_a_series(
    world: World, telemetry: Telemetry
) -> None:
    transport = world.build(stack(telemetry, retry()), world.wire(*[200] * 205))
    for number in range(205):
        await world.send(transport, httpx.Request("BREW", f"https://host{number}.example.com"))
    points = telemetry.points()["stkai.call.duration"]
    assert len(points) == 201
    assert {point.attributes["http.request.method"] for point in points} == {"_OTHER"}
    (rest,) = [point for point in points if point.attributes["server.address"] == "_OTHER"]
    assert rest.count == 5
    assert {span.name for span in telemetry.spans()} == {"HTTP", "stkai HTTP"}


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancelled_call_ends_its_spans(world: World, telemetry: Telemetry) -> None:
    async def hang(request: httpx.Request) -> int:
        await anyio.Event().wait()
        raise AssertionError

    transport = world.build(stack(telemetry, retry()), world.wire(hang))
    async with anyio.create_task_group() as group:
        group.start_soon(world.send, transport, httpx.Request("POST", URL))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    attempt, whole = telemetry.spans()
    assert attributes(attempt)["error.type"] == attributes(whole)["error.type"]
    assert telemetry.points()["stkai.calls.active"][0].value == 0


@pytest.mark.worlds("asyncio", "trio")
async def test_concurrent_calls_do_not_mix_up_their_spans(world: World, telemetry: Telemetry) -> None:
    async def answer(request: httpx.Request) -> int:
        await anyio.lowlevel.checkpoint()
        failed.append(request.url)
        return 503 if failed.count(request.url) == 1 else 200

    failed: list[httpx.URL] = []
    transport = world.build(stack(telemetry, retry()), world.wire(*[answer] * 20))
    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(
                world.send, transport, httpx.Request("POST", f"https://api.example.com/{number}")
            )
    spans = telemetry.spans()
    calls = {span.context.span_id for span in spans if span.kind is SpanKind.INTERNAL and span.context}
    attempts = [span.parent.span_id for span in spans if span.kind is SpanKind.CLIENT and span.parent]
    assert len(calls) == 10
    assert len(attempts) == 20
    assert set(attempts) == calls


@pytest.mark.worlds("sync", "asyncio")
@pytest.mark.parametrize("deadline", [None, 20.0])
async def test_with_httpxs_instrumentation_each_request_still_has_one_client_span(
    world: World, telemetry: Telemetry, deadline: float | None
) -> None:
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.traces, meter_provider=telemetry.meters)
    try:
        with QuotaServer(max_requests=100, time_window=1.0) as server:
            build: Any = world.pick(stkai.build_client, stkai.build_async_client)
            client = build(auth=None, listener=[telemetry.listener])
            options = {} if deadline is None else {"deadline": deadline}
            await world.call(client.post, server.url, data={}, **options)
            await world.call(client.close)
            plain = world.client()
            await world.call(plain.post, server.url)
            await world.call(plain.aclose if world.is_async else plain.close)
    finally:
        instrumentor.uninstrument()
    spans = [span for span in telemetry.spans() if span.kind is SpanKind.CLIENT]
    scopes = [span.instrumentation_scope.name for span in spans if span.instrumentation_scope]
    assert scopes == ["stkai", "opentelemetry.instrumentation.httpx"]
    (sent,) = telemetry.points()["http.client.request.duration"]
    assert sent.count == 1


def test_a_span_may_end_in_another_context_than_it_started_in(telemetry: Telemetry) -> None:
    call = CallInfo(id=1, method="POST", host="api.example.com")
    elsewhere = contextvars.copy_context()
    elsewhere.run(telemetry.listener, CallStarted(call=call))
    before = context.get_current()
    telemetry.listener(CallFinished(call=call, status=200, seconds=1.0))
    assert context.get_current() is before
    assert len(telemetry.spans()) == 1


def test_an_end_without_a_start_gives_no_span(telemetry: Telemetry) -> None:
    call = CallInfo(id=1, method="POST", host="api.example.com")
    telemetry.listener(CallFinished(call=call, status=200, seconds=1.0))
    telemetry.listener(stkai.AttemptFinished(call=call, status=200, seconds=1.0))
    telemetry.listener(stkai.Waited(call=call, layer="adaptive", seconds=1.0))
    assert telemetry.spans() == ()


def test_an_attempt_outside_any_call_is_a_child_of_the_current_span(telemetry: Telemetry) -> None:
    call = CallInfo(id=1, method="POST", host="api.example.com", attempt=2)
    with telemetry.traces.get_tracer("mine").start_as_current_span("mine") as mine:
        telemetry.listener(AttemptStarted(call=call, resend_count=1))
        telemetry.listener(stkai.AttemptFinished(call=call, status=200, seconds=1.0))
    attempt, _ = telemetry.spans()
    assert attempt.parent == mine.get_span_context()
    assert attributes(attempt)["http.request.resend_count"] == 1


def test_one_listener_serves_several_threads(telemetry: Telemetry) -> None:
    def work(number: int) -> None:
        for step in range(50):
            call = CallInfo(id=100 * number + step, method="POST", host="api.example.com")
            telemetry.listener(CallStarted(call=call))
            telemetry.listener(CallFinished(call=call, status=200, seconds=1.0))

    together(*[partial(work, number) for number in range(4)])
    assert len(telemetry.spans()) == 200
    assert all(span.parent is None for span in telemetry.spans())


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stkai.telemetry._opentelemetry", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(
        stkai.ConfigurationError, match=r'OpenTelemetryListener needs .*: pip install "stkai\[otel\]"'
    ):
        OpenTelemetryListener()


def test_trouble_with_a_shared_quota_is_counted_for_each_share(telemetry: Telemetry) -> None:
    call = CallInfo(id=0, method="", host="")
    for share in ("team", "team", "other"):
        telemetry.listener(stkai.StoreLost(call=call, share=share, store="10.0.0.1:6379", reason="refused"))
    telemetry.listener(stkai.StoreRestored(call=call, share="team", store="10.0.0.1:6379"))
    telemetry.listener(stkai.QuotaDisagreement(call=call, share="team", mine=1.0, theirs=2.0))
    counted = {
        (name, point.attributes["stkai.share"]): point.value
        for name, points in telemetry.points().items()
        for point in points
    }
    assert counted == {
        ("stkai.store.losses", "team"): 2,
        ("stkai.store.losses", "other"): 1,
        ("stkai.store.restorations", "team"): 1,
        ("stkai.store.outages", "team"): 0,
        ("stkai.store.outages", "other"): 1,
        ("stkai.quota.disagreements", "team"): 1,
    }
    assert telemetry.spans() == ()


async def test_a_stack_whose_store_cannot_be_reached_counts_one_loss(
    world: World, telemetry: Telemetry
) -> None:
    bucket = TokenBucket(1000, 1, share="team", store="redis://127.0.0.1:1/0")
    builder = stack(telemetry, token_bucket(bucket))
    for _ in range(2):
        assert (await call(world, builder, 200)).status_code == 200
    (point,) = telemetry.points()["stkai.store.losses"]
    assert (point.value, dict(point.attributes)) == (1, {"stkai.share": "team"})
