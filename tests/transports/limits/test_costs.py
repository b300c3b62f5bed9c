"""A queue that counts units of cost besides requests: numbers only."""

import gzip
import logging
import math
import tracemalloc
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import AimdLimiter, ConfigurationError, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import Answer, Turn, adaptive, token_bucket
from stkai.transports._limits.metering import MAX_BODY, MAX_DECODED_BODY
from stkai.transports._limits.queue import Queue
from stkai.transports._limits.sources.request_limits import Rate
from stkai.transports._limits.sources.units import Units

from ...support.clients import Body
from ...support.crowd import Waiter, drive, took
from ...support.world import World

gaps = st.sampled_from([0.0, 0.0, 0.1, 1.0, 5.0]) | st.floats(0, 10)
costs = st.sampled_from([0.0, 1.0, 50.0, 100.0, 250.0]) | st.floats(0.01, 100)
arrivals = st.lists(st.tuples(gaps, costs), min_size=1, max_size=40)

MOST, WINDOW = 100.0, 10.0
RATE = MOST / WINDOW


def bucket(max_requests: float = 1e6, **more: Any) -> TokenBucket:
    return TokenBucket(max_requests, WINDOW, max_cost=MOST, **more)


def crowd(coming: list[tuple[float, float]]) -> list[Waiter]:
    now, waiters = 0.0, []
    for gap, cost in coming:
        now += gap
        waiters.append(Waiter(now, cost=cost))
    return waiters


def earliest(waiters: list[Waiter], burst: float, rate: float) -> list[float]:
    """The earliest time at which each may go: two buckets, emptied in the order of arrival."""
    now, permits, units, instants = 0.0, burst, MOST, []
    for waiter in waiters:
        later = max(now, waiter.arrives)
        permits, units = min(burst, permits + rate * (later - now)), min(MOST, units + RATE * (later - now))
        needed = min(waiter.cost, MOST)
        wait = max(0.0, (1 - permits) / rate, (needed - units) / RATE if needed else 0.0)
        now = later + wait
        permits, units = min(burst, permits + rate * wait) - 1, min(MOST, units + RATE * wait) - waiter.cost
        instants.append(now)
    return instants


@given(arrivals, st.sampled_from([3.0, 10.0, 200.0, 1e6]), st.floats(1, 20))
def test_all_go_in_order_as_soon_as_both_are_available(
    coming: list[tuple[float, float]], max_requests: float, burst: float
) -> None:
    waiters = crowd(coming)
    drive(Queue(Rate(max_requests / WINDOW, burst), Units(MOST, WINDOW)), waiters)
    due = earliest(waiters, burst, max_requests / WINDOW)
    late = 0.05  # Seconds for which a permit is kept for a waiter that may only be late.
    for waiter, instant in zip(waiters, due, strict=True):
        assert instant - late * len(waiters) - 1e-3 <= waiter.went <= instant + 1e-3


@given(st.lists(st.tuples(gaps, st.floats(0, MOST)), min_size=1, max_size=40))
def test_no_window_of_time_gets_more_units_than_the_bucket_and_its_refill(
    coming: list[tuple[float, float]],
) -> None:
    gone = drive(bucket(), crowd(coming))
    lowest, taken = 0.0, 0.0
    for waiter in gone:
        lowest = min(lowest, taken - RATE * waiter.went)
        taken += waiter.cost
        assert taken - RATE * waiter.went - lowest <= MOST + 0.01


@given(arrivals, st.data())
def test_requests_that_leave_take_no_units_with_them(
    coming: list[tuple[float, float]], data: st.DataObject
) -> None:
    queue, waiters = bucket(), crowd(coming)
    for waiter in waiters:
        waiter.patience = data.draw(st.just(math.inf) | st.floats(0, 20))
    gone = drive(queue, waiters)
    assert {waiter for waiter in waiters if waiter.patience == math.inf} <= set(gone)
    assert queue.waiting == 0
    assert queue.ask(Turn(cost=MOST), 1e6) == 0
    assert queue.ask(Turn(cost=MOST / 2), 1e6) == pytest.approx(WINDOW / 2)
    went = sorted(gone, key=lambda waiter: waiter.went)
    excess, lowest, taken = 0.0, 0.0, 0.0
    for waiter in went:
        lowest = min(lowest, taken - RATE * waiter.went)
        if waiter.cost:
            excess = max(excess, taken - RATE * waiter.went - lowest)
        taken += waiter.cost
    assert excess <= MOST + 0.01


def test_rounding_does_not_make_a_free_request_wait_for_a_debt() -> None:
    coming = [(0.0, 1.0), (0.0, 78.0), (0.0, 250.0), (5.0, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.0)]
    refused = Waiter(5.5, limit=0.0, cost=6.922801260620558)
    waiters = crowd(coming)
    drive(bucket(), [*waiters, refused])
    assert [waiter.went for waiter in waiters[2:]] == pytest.approx([7.9] * 5)


@given(arrivals, st.data())
def test_a_request_that_is_refused_at_once_does_not_affect_the_others(
    coming: list[tuple[float, float]], data: st.DataObject
) -> None:
    waiters = crowd(coming)
    for waiter in waiters:
        waiter.limit = data.draw(st.just(math.inf) | st.floats(0, 5))
    drive(bucket(), waiters)
    gone = [waiter for waiter in waiters if not math.isnan(waiter.went)]
    alone = [Waiter(waiter.arrives, cost=waiter.cost) for waiter in gone]
    drive(bucket(), alone)
    assert [waiter.went for waiter in gone] == pytest.approx([waiter.went for waiter in alone], abs=1e-3)


def test_a_call_above_the_whole_limit_waits_until_the_bucket_is_full_and_is_paid_for_afterwards() -> None:
    queue = bucket()
    assert took(queue, 0.0, cost=20.0)
    large, small, free = Turn(cost=500.0), Turn(cost=30.0), Turn(cost=0.0)
    assert queue.ask(large, 0.0) == 2.0
    assert queue.ask(small, 0.0) == 2.0 + 40.0 + 3.0
    assert queue.ask(large, 2.0) == 0.0
    assert queue.ask(small, 2.0) == 43.0
    assert queue.ask(free, 2.0) == 43.0
    assert queue.ask(small, 45.0) == 0.0


def test_a_request_that_costs_nothing_pays_no_debt() -> None:
    queue = bucket()
    assert took(queue, 0.0, cost=500.0)
    assert took(queue, 0.0, cost=0.0)
    assert not took(queue, 0.0, cost=1.0)
    large, free = Turn(cost=500.0), Turn(cost=0.0)
    assert queue.ask(large, 0.0) == 50.0
    assert queue.ask(free, 0.0) == 50.0


def test_a_vacant_place_goes_only_to_a_request_that_takes_no_more_units() -> None:
    queue = bucket()
    assert took(queue, 0.0, cost=100.0)
    left, sleeper = Turn(cost=30.0), Turn(cost=10.0)
    assert [queue.ask(turn, 0.0) for turn in (left, sleeper)] == [3.0, 4.0]
    queue.leave(left, 1.0)
    small = Turn(cost=20.0)
    assert queue.ask(small, 1.0) == 1.0
    queue.leave(small, 1.0)
    large = Turn(cost=40.0)
    assert queue.ask(large, 1.0) == 4.0
    assert queue.ask(sleeper, 4.0) == 0.0


def test_an_overestimate_is_returned_and_an_underestimate_is_owed() -> None:
    queue = bucket()
    call, waiting = Turn(cost=100.0), Turn(cost=50.0)
    assert queue.ask(call, 0.0) == 0.0
    assert queue.ask(waiting, 0.0) == 5.0
    queue.settle(call, 70.0, 0.0)
    assert queue.ask(waiting, 0.0) == 2.0
    queue.settle(call, 130.0, 0.0)
    assert queue.ask(waiting, 0.0) == 8.0


def test_returned_units_never_overfill_the_bucket() -> None:
    queue = bucket()
    call = Turn(cost=100.0)
    assert queue.ask(call, 0.0) == 0.0
    queue.settle(call, 0.0, 1000.0)
    assert took(queue, 1000.0, cost=100.0)
    assert not took(queue, 1000.0, cost=1.0)


def test_an_unused_permit_is_returned_with_its_units() -> None:
    queue = bucket(10, burst=1)
    call, other, last = Turn(cost=100.0), Turn(cost=100.0), Turn(cost=0.0)
    assert queue.ask(call, 0.0) == 0.0
    queue.leave(call, 0.0)
    queue.leave(call, 0.0)
    assert queue.ask(other, 0.0) == 0.0
    assert queue.ask(last, 0.0) == 1.0


@pytest.mark.no_cover
@pytest.mark.parametrize("share", [0.9, 0.1])
def test_waiters_use_returned_units_without_being_woken(share: float) -> None:
    """Estimates are far too high, but the units actually used still reach the limit."""
    queue = TokenBucket(1e6, 1.0, max_cost=10_000.0)
    waiters = [Waiter(0.0, cost=400.0, used=400.0 * share, serving=0.2) for _ in range(int(200 / share))]
    gone = drive(queue, waiters)
    assert len(gone) == len(waiters)
    # The bucket starts full; after that, requests in progress must be paid for in advance.
    start, end = 5.0, gone[-1].went - 0.5
    used = sum(waiter.used or 0.0 for waiter in gone if start <= waiter.went < end)
    assert used == pytest.approx(10_000 * (end - start), rel=0.05)
    assert max(waiter.sleeps for waiter in waiters) <= 100


@pytest.mark.no_cover
def test_without_corrections_each_waiter_sleeps_a_few_times() -> None:
    waiters = [Waiter(0.0, cost=10.0) for _ in range(250)]
    drive(bucket(), waiters)
    assert max(waiter.sleeps - waiter.went for waiter in waiters) <= 30, "besides asking once per second"


def test_a_queue_without_max_cost_ignores_costs() -> None:
    queue = TokenBucket(10, 1.0)
    assert queue.max_cost is None
    turn = Turn(cost=1e9)
    assert took(queue, 0.0, cost=1e9)
    assert queue.ask(turn, 0.0) == 0.0
    queue.settle(turn, 5.0, 0.0)
    queue.leave(turn, 0.0)


def test_a_forked_child_has_no_waiters_for_units() -> None:
    queue = bucket()
    assert took(queue, 0.0, cost=100.0)
    queue.ask(Turn(cost=90.0), 0.0)
    queue.sources[0].order.forget()
    first, second = Turn(cost=10.0), Turn(cost=10.0)
    assert queue.ask(first, 0.0) == 1.0
    assert queue.ask(second, 0.0) == 2.0


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "10"])
def test_an_invalid_limit_is_refused_by_name(value: float) -> None:
    message = "^max_cost must be a positive, finite number, or None to count requests only, not "
    with pytest.raises(ConfigurationError, match=message):
        TokenBucket(10, 1, max_cost=value)


def test_its_repr_shows_the_limit() -> None:
    assert repr(TokenBucket(60, 60, max_cost=1000)) == "TokenBucket(60, 60, max_cost=1000, burst=60)"


URL = "https://api.example.com/v1/chat"


def used(response: httpx.Response) -> float:
    """The body says what the call cost."""
    return float(response.content)


def says(cost: float) -> httpx.Response:
    return httpx.Response(200, text=str(cost))


def cost_stack(limiter: TokenBucket, clock: FakeClock) -> StackBuilder:
    layer = token_bucket(limiter, cost=lambda request: float(request.headers["cost"]), settle=used)
    return StackBuilder([layer], clock=clock)


def post(cost: float) -> httpx.Request:
    return httpx.Request("POST", URL, headers={"cost": str(cost)})


async def test_a_call_waits_for_its_units_and_the_wait_is_in_its_record(world: World) -> None:
    clock, limiter = FakeClock(), bucket()
    transport = world.build(cost_stack(limiter, clock), world.wire(says(80), says(20)))
    await world.read(await world.send(transport, post(100)))
    response = await world.send(transport, post(50))
    assert response.extensions["stkai"].queued == pytest.approx(3.0)


async def test_a_request_that_the_server_may_have_read_costs_its_estimate(world: World) -> None:
    clock, limiter = FakeClock(), bucket()
    transport = world.build(cost_stack(limiter, clock), world.wire(httpx.ReadTimeout("slow"), says(20)))
    with pytest.raises(httpx.ReadTimeout):
        await world.send(transport, post(100))
    response = await world.send(transport, post(100))
    assert response.extensions["stkai"].queued == pytest.approx(10.0)


@pytest.mark.no_cover
def test_waits_for_units_do_not_make_the_adaptive_limiter_admit_more_requests() -> None:
    limiter = AimdLimiter(6000, 60.0, max_cost=600.0)
    for now, status in ((0.0, 429), (1.0, 200), (2.0, 429)):  # The second refusal ends the start.
        turn = Turn(cost=0.0)
        limiter.ask(turn, now)
        response = httpx.Response(status, headers={"retry-after": "0"})
        limiter.learn(turn, Answer(now, now, response, None, lambda: datetime.now(UTC), 0.0))
    before = limiter.rate
    drive(limiter, [Waiter(3.0, cost=20.0) for _ in range(150)])
    assert limiter.rate <= 1.1 * before


HOUR = 3600.0


@pytest.mark.no_cover
async def test_no_reported_token_quota_stops_a_program_for_more_than_an_hour(world: World) -> None:
    clock = FakeClock()
    headers = {"x-ratelimit-limit-tokens": "1", "x-ratelimit-remaining-tokens": "0"}
    wire = world.wire(httpx.Response(200, headers=headers), 200)
    limiter = AimdLimiter(100, 60.0, max_cost=1000)
    transport = world.build(StackBuilder([adaptive(limiter, cost=lambda _: 1000)], clock=clock), wire)
    for _ in range(2):
        await world.read(await world.send(transport, httpx.Request("POST", "https://api.example.com")))
    assert clock.monotonic() <= HOUR + 1


@pytest.mark.no_cover
async def test_no_reported_cost_stops_a_program_for_more_than_an_hour(world: World) -> None:
    clock = FakeClock()
    layer = token_bucket(bucket(), cost=lambda _: 1.0, settle=lambda _: 1e15)
    transport = world.build(StackBuilder([layer], clock=clock), world.wire(200, 200))
    for _ in range(2):
        await world.read(await world.send(transport, httpx.Request("POST", "https://api.example.com")))
    assert clock.monotonic() == pytest.approx(HOUR, abs=WINDOW)


async def test_settle_sees_the_request_also_of_an_answer_that_its_wire_has_read(world: World) -> None:
    seen = list[str]()

    def settle(response: httpx.Response) -> None:
        seen.append(response.request.method)

    wire = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    layer = token_bucket(bucket(), cost=lambda _: 1.0, settle=settle)
    await world.send(world.build(StackBuilder([layer]), wire), post(1))
    assert seen == ["POST"]


async def settled(world: World, response: httpx.Response) -> list[int]:
    """The lengths of the bodies that `settle` is called with when the caller reads the response as it arrives."""
    seen: list[int] = []
    layer = token_bucket(bucket(), cost=lambda _: 1.0, settle=lambda answer: seen.append(len(answer.content)))
    transport = world.build(StackBuilder([layer], clock=FakeClock()), world.wire(response))
    answer = await world.send(transport, httpx.Request("POST", URL))
    await world.chunks(answer)
    return seen


async def test_a_packed_answer_is_unpacked_for_settle(world: World) -> None:
    text = gzip.compress(b"hello" * 1000)
    headers = {"content-encoding": "gzip"}
    assert await settled(world, httpx.Response(200, headers=headers, stream=Body(text[:9], text[9:]))) == [
        5000
    ]


async def test_an_answer_that_cannot_be_unpacked_keeps_its_estimate_and_warns(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"content-encoding": "gzip"}
    assert await settled(world, httpx.Response(200, headers=headers, stream=Body(b"this is no gzip"))) == []
    assert "a call keeps its estimated cost: the body cannot be read: DecodingError" in caplog.text


@cache
def bomb() -> bytes:
    return gzip.compress(bytes(MAX_DECODED_BODY + 1), 1)


async def test_an_answer_that_unpacks_to_gigabytes_is_not_unpacked_for_settle(world: World) -> None:
    headers = {"content-encoding": "gzip"}
    assert await settled(world, httpx.Response(200, headers=headers, stream=Body(bomb()))) == []


async def test_a_long_answer_is_not_kept_for_settle(world: World) -> None:
    chunk = bytes(MAX_BODY // 16)
    assert await settled(world, httpx.Response(200, stream=Body(*[chunk] * 16))) == [MAX_BODY]
    tracemalloc.start()
    try:
        assert await settled(world, httpx.Response(200, stream=Body(*[chunk] * 160))) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_BODY


def broken(response: httpx.Response) -> float:
    raise KeyError("usage")


@pytest.mark.parametrize(
    ("settle", "reason"),
    [
        (broken, "settle raised KeyError('usage')"),
        (lambda _: -1.0, "cost must be a finite number of at least 0, not -1.0"),
    ],
)
async def test_a_settle_that_always_fails_warns_once_for_each_stack(
    world: World, caplog: pytest.LogCaptureFixture, settle: Any, reason: str
) -> None:
    layer = token_bucket(bucket(), cost=lambda _: 1.0, settle=settle)
    transport = world.build(StackBuilder([layer], clock=FakeClock()), world.wire(*[200] * 5))
    for _ in range(5):
        response = await world.send(transport, httpx.Request("POST", URL))
        await world.read(response)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"a call keeps its estimated cost: {reason}"]


def test_a_long_line_is_not_asked_for_its_costs_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def cost_of(units: Units, turn: Turn) -> float:
        nonlocal asked
        asked += 1
        return turn.cost

    monkeypatch.setattr(Units, "cost_of", cost_of)
    limiter = TokenBucket(None, WINDOW, max_cost=MOST)
    turns = [Turn(None, cost=MOST) for _ in range(500)]
    for now in (1.0, 2.0):
        for turn in turns:
            limiter.ask(turn, now)
    assert asked < 10 * 2 * len(turns)
