"""The promise that no window of time has more requests than its quota, also from a cold start."""

import heapq
import math
import random
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import AllOf, StackBuilder, SystemClock, TokenBucket, _clock
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Attempt, Call, Context, Sleep, Turn, token_bucket

from ...support.crowd import arrivals, drive, took
from ...support.shares import wait_for
from ...support.world import World

gaps = st.lists(st.sampled_from([0.0, 0.0, 0.01, 1.0, 7.0]) | st.floats(0, 20), min_size=1, max_size=30)


def most_in(instants: list[float], window: float) -> int:
    """The most of these times in any half-open window."""
    return max(
        (sum(start <= instant < start + window - 2e-6 for instant in instants) for start in instants),
        default=0,
    )


@given(gaps, st.floats(1, 12), st.floats(0.5, 20), st.none() | st.floats(1, 20))
def test_no_window_has_more_than_its_quota(
    gaps: list[float], quota: float, window: float, burst: float | None
) -> None:
    waiters = arrivals(gaps)
    drive(TokenBucket(quota, window, burst=burst), waiters)
    instants = [waiter.went for waiter in waiters]
    assert instants == sorted(instants), "no turn goes before one that came earlier"
    assert most_in(instants, window) <= math.floor(quota)


@given(gaps, st.integers(1, 12), st.floats(0.5, 20))
def test_no_request_waits_longer_than_the_promise_needs(gaps: list[float], quota: int, window: float) -> None:
    sent: list[float] = []
    for waiter in drive(TokenBucket(quota, window), arrivals(gaps)):
        due = waiter.arrives if len(sent) < quota else max(waiter.arrives, sent[-quota] + window)
        assert waiter.went == pytest.approx(due, abs=1e-3)
        assert waiter.promised == pytest.approx(due, abs=1e-3), "as announced when it comes"
        sent.append(waiter.went)


@pytest.mark.parametrize(
    ("arguments", "instants"),
    [
        ({"max_requests": 3, "time_window": 10}, [0, 0, 0, 10, 10, 10, 20]),
        ({"max_requests": 6, "time_window": 12, "burst": 2}, [0, 0, 2, 4, 6, 8, 12, 12, 14, 16, 18, 20, 24]),
        ({"max_requests": 2, "time_window": 10, "burst": 50}, [0, 0, 10, 10, 20]),
        ({"max_requests": 2.9, "time_window": 10}, [0, 0, 10, 10]),
        ({"max_requests": 0.5, "time_window": 10}, [0, 20, 40]),
    ],
)
async def test_a_burst_goes_at_once_and_the_others_when_the_window_allows(
    world: World, arguments: dict[str, Any], instants: list[float]
) -> None:
    clock, sent = FakeClock(), list[float]()

    def answer(request: httpx.Request) -> int:
        sent.append(clock.monotonic())
        return 200

    stack = StackBuilder([token_bucket(TokenBucket(**arguments))], clock=clock)
    transport = world.build(stack, world.wire(answer))
    for _ in instants:
        await world.send(transport, httpx.Request("POST", "https://api.example.com"))
    assert sent == pytest.approx(instants, abs=1e-3)


@pytest.mark.parametrize("kind", ["ConnectError", "ConnectTimeout", "PoolTimeout"])
async def test_what_was_never_sent_is_in_no_window(world: World, kind: str) -> None:
    clock = FakeClock()
    stack = StackBuilder([token_bucket(TokenBucket(2, 60))], clock=clock)
    errors = [getattr(httpx, kind)("no") for _ in range(5)]
    transport = world.build(stack, world.wire(*errors, 200, 429, 200))
    for _ in errors:
        with pytest.raises(getattr(httpx, kind)):
            await world.send(transport, httpx.Request("POST", "https://api.example.com"))
    for instant in (0.0, 0.0, 60.0):  # A refusal stays in the window.
        await world.send(transport, httpx.Request("POST", "https://api.example.com"))
        assert clock.monotonic() == pytest.approx(instant)


def test_permits_that_were_given_up_are_in_no_window() -> None:
    queue = TokenBucket(3, 60)
    turns = [Turn() for _ in range(3)]
    assert [queue.ask(turn, float(instant)) for instant, turn in enumerate(turns)] == [0, 0, 0]
    queue.leave(turns[1], 30.0)
    assert took(queue, 30.0)
    assert not took(queue, 59.9)
    assert took(queue, 60.0)
    queue.leave(turns[0], 61.0)
    assert not took(queue, 61.0), "it left the window before it was given up"


@pytest.mark.no_cover
def test_a_burst_of_a_large_quota_is_out_of_the_window_when_it_ends() -> None:
    queue = TokenBucket(10_000, 86_400)
    for _ in range(10_000):
        assert took(queue, 5.0)
    waiting = Turn()
    assert queue.ask(waiting, 5.0) == pytest.approx(86_400)
    assert queue.ask(waiting, 86_404.0) == pytest.approx(1.0)
    assert queue.ask(waiting, 86_405.0) == 0.0


@pytest.mark.parametrize("window", [1e-9, 1e-6, 1e-3])
def test_a_window_may_be_shorter_than_a_tick_of_the_clock(window: float) -> None:
    bucket = TokenBucket(1e9, window)
    assert all(took(bucket, 100.0 + number * 1e-10) for number in range(10))


def test_turns_far_back_in_the_line_wait_for_later_windows() -> None:
    queue = TokenBucket(2, 10)
    turns = [Turn() for _ in range(7)]
    assert [queue.ask(turn, 0.0) for turn in turns] == [0, 0, 10, 10, 20, 20, 30]


def test_a_member_of_a_share_counts_what_it_sent_and_nothing_else() -> None:
    """Not what was given up, nor what was sent before the share was reset."""
    clock = FakeClock()
    store = MemoryStore(clock)
    policy = TokenBucket(3, 60, share="team", store=store)
    for _ in range(5):
        turn = Turn()
        assert wait_for(policy, clock, turn) == 0.0
        policy.leave(turn, clock.monotonic())
    for wait in (0.0, 20.0, 20.0):
        assert wait_for(policy, clock) == pytest.approx(wait)
    store.reset("team")
    assert wait_for(policy, clock) == 0.0


@pytest.mark.no_cover
def test_those_who_wait_for_several_windows_sleep_once_although_timers_are_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, sleeps, chance = 0.0, 0, random.Random(1)  # noqa: S311 - no secret
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: now)
    monkeypatch.setattr(_clock, "_SLEEPS", (SystemClock.sleep, SystemClock.asleep))  # Tests watch both.
    wire, context = httpx.MockTransport(lambda _: httpx.Response(200)), Context(listener=lambda _: None)
    layer: Any = token_bucket(TokenBucket(200, 1.0, burst=1)).sync(wire, context=context)
    request, sent, queue = httpx.Request("GET", "https://api.test/"), list[float](), list[Any]()
    for number in range(800):
        attempt = Attempt(Call.start(request, 0.0), is_observed=False)
        heapq.heappush(queue, (0.0, number, layer.flow(request, attempt)))
    while queue:
        wakes, number, flow = heapq.heappop(queue)
        now = max(now, wakes)
        operation = flow.send(None)
        if isinstance(operation, Sleep):
            late = chance.uniform(0.0001, 0.001)
            heapq.heappush(queue, (now + operation.seconds + late, number, flow))
            sleeps += number >= 200  # The others ask once per second.
        else:
            sent.append(now)
    assert sleeps <= 1.05 * 600
    assert most_in(sent, 1.0) <= 200
    assert sent[-1] <= 4.01


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)])
def test_the_lateness_of_those_ahead_is_allowed_for_in_whatever_order_the_limits_are(
    sizes: tuple[int, int],
) -> None:
    both = AllOf(*(TokenBucket(size, 1.0) for size in sizes))
    turns = [Turn() for _ in range(9)]
    for turn in turns:
        both.ask(turn, 0.0)
    last = turns[-1]
    assert last.slack == pytest.approx(3 * 0.001), "those of three windows of two are ahead"


async def _refused(world: World, limiter: TokenBucket, accepted: int, count: int) -> None:
    """Send `count` requests, of which the server accepts so many in each second and refuses the others."""
    clock, in_second = FakeClock(), Counter[int]()

    def answer(request: httpx.Request) -> int:
        second = int(clock.monotonic())
        in_second[second] += 1
        return 200 if in_second[second] <= accepted else 429

    transport = world.layer(token_bucket(limiter), world.wire(answer), context=Context(clock=clock))
    for _ in range(count):
        await world.send(transport, httpx.Request("POST", "https://api.example.com/"))


@pytest.mark.parametrize("quota", [(100, 60), (40, 1), (4, 1)])
async def test_one_warning_says_what_to_do_if_the_server_refuses_the_requests_of_a_window(
    world: World, quota: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    await _refused(world, TokenBucket(*quota), accepted=1, count=300)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"sends at most {quota[0]} requests per {quota[1]} s: others" in caplog.text
    assert "burst=1 spaces requests evenly" in caplog.text


async def test_there_is_no_warning_of_a_few_refusals(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await _refused(world, TokenBucket(100, 60), accepted=80, count=300)
    await _refused(world, TokenBucket(4, 1), accepted=4, count=300)
    await _refused(world, TokenBucket(100, 60, burst=1), accepted=2, count=300)
    assert not caplog.records
