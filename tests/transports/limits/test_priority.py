"""Low-priority and normal requests in one queue: numbers only."""

import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import AimdLimiter, TokenBucket
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Run, Turn

from ...support.crowd import Waiter, drive, most_in_excess

RATE = 10.0


def bucket(burst: float = 1.0) -> TokenBucket:
    return TokenBucket(RATE, 1.0, burst=burst)


def low(count: int, arrives: float = 0.0) -> list[Waiter]:
    return [Waiter(arrives, priority="low") for _ in range(count)]


def normal(count: int, arrives: float = 0.0) -> list[Waiter]:
    return [Waiter(arrives) for _ in range(count)]


def places(gone: list[Waiter], priority: Literal["normal", "low"]) -> list[int]:
    return [place for place, waiter in enumerate(gone, start=1) if waiter.priority == priority]


@pytest.mark.parametrize("first", ["normal", "low"])
def test_while_both_wait_every_tenth_permit_goes_to_low_priority(first: str) -> None:
    waiters = normal(100) + low(15) if first == "normal" else low(15) + normal(100)
    gone = drive(bucket(), waiters)
    steps = [later - earlier for earlier, later in itertools.pairwise(places(gone, "low")[1:])]
    assert steps[:9] == [10] * 9
    assert set(steps[11:]) <= {1}


@pytest.mark.no_cover
def test_an_endless_stream_of_normal_requests_does_not_starve_low_ones() -> None:
    waiters = low(20) + [Waiter(number / (2 * RATE)) for number in range(1000)]
    places_of_low = places(drive(bucket(), waiters), "low")
    assert max(later - earlier for earlier, later in itertools.pairwise(places_of_low)) <= 11
    assert places_of_low[0] <= 11


@pytest.mark.no_cover
def test_a_notebook_beside_a_batch_waits_for_one_turn_and_not_for_the_batch() -> None:
    notebook = [Waiter(number * 3.03) for number in range(1, 15)]
    gone = drive(bucket(), low(500) + notebook)
    assert len(gone) == 514
    assert max(waiter.went - waiter.arrives for waiter in notebook) <= 2 / RATE + 1e-9
    assert gone[-1].went == pytest.approx(513 / RATE, abs=3 / RATE)


@pytest.mark.no_cover
def test_a_low_request_after_a_crowd_that_gave_up_waits_for_few_normal_ones() -> None:
    crowd = [Waiter(0.0, patience=0.5, priority="low") for _ in range(100)]
    busy = [Waiter(100.0 + number / (2 * RATE)) for number in range(500)]
    late = Waiter(110.0, priority="low")
    drive(bucket(), [*crowd, *busy, late])
    assert late.went <= 110.0 + 11 / RATE


@pytest.mark.parametrize("admitted", [[99], [2, 3, 4, 5, 6, 7, 8, 1]], ids=str)
def test_low_requests_that_are_admitted_out_of_turn_keep_their_distance_from_normal_ones(
    admitted: list[int],
) -> None:
    clock = FakeClock()
    policy = TokenBucket(50, 1.0, burst=1, share="team", store=MemoryStore(clock))
    turns = [Turn(priority="low") for _ in range(100)]

    def goes(turn: Turn) -> None:
        while isinstance(wait := policy.ask(turn, clock.monotonic()), Run):
            wait.sync(1.0)
        assert not wait

    call = policy.ask(turns[0], clock.monotonic())
    assert isinstance(call, Run)
    for turn in turns[1:]:
        policy.ask(turn, clock.monotonic())
    call.sync(1.0)
    goes(turns[0])
    for number in admitted:  # The others sleep.
        clock.sleep(0.02)
        goes(turns[number])
    normal = Turn()
    policy.ask(normal, clock.monotonic())
    first_waiting = next(turn for turn in turns if not turn.granted)
    assert 0 < first_waiting.number - normal.number < 18


def test_low_requests_use_the_permits_of_normal_ones_that_left() -> None:
    crowd = [Waiter(0.0, patience=1.0) for _ in range(500)]
    waiters = low(100)
    gone = drive(bucket(), crowd + waiters)
    assert set(waiters) <= set(gone)
    # The first second belongs to the others; later, none sleeps on unused permits longer than it already slept.
    assert gone[-1].went <= 2 * (1 + 100 / RATE)


@given(
    st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from(["normal", "low"])), min_size=1, max_size=60),
    st.floats(1, 5),
)
def test_order_holds_within_a_priority_and_no_permit_is_duplicated_or_lost(
    coming: list[tuple[float, Literal["normal", "low"]]], burst: float
) -> None:
    now, waiters = 0.0, []
    for gap, priority in coming:
        now += gap
        waiters.append(Waiter(now, priority=priority))
    gone = drive(bucket(burst), waiters)
    assert len(gone) == len(waiters)
    for priority in ("normal", "low"):
        assert [waiter for waiter in gone if waiter.priority == priority] == [
            waiter for waiter in waiters if waiter.priority == priority
        ]
    assert most_in_excess([waiter.went for waiter in gone], RATE) <= burst + 0.25 * RATE + 0.001
    alone = drive(bucket(burst), [Waiter(waiter.arrives) for waiter in waiters])
    assert gone[-1].went <= alone[-1].went + 2 / RATE


def test_a_refused_low_request_comes_back_before_the_normal_ones_that_wait() -> None:
    queue = bucket()
    first, waiting = Turn(priority="low"), Turn()
    assert queue.ask(first, 0.0) == 0.0
    assert queue.ask(waiting, 0.0) == pytest.approx(0.1)
    again = Turn(number=first.number, priority="low")
    assert queue.ask(again, 0.0) == pytest.approx(0.1)
    assert queue.ask(waiting, 0.05) == pytest.approx(0.15)


def test_the_adaptive_limiter_knows_priorities_and_costs_too() -> None:
    limiter = AimdLimiter(600, 60.0, max_cost=60_000.0, penalty_factor=0.3)
    waiters = [Waiter(0.0, priority="low", cost=50.0) for _ in range(100)] + normal(100)
    gone = drive(limiter, waiters, chance=lambda: 0.5)
    assert len(gone) == 200
    burst = sum(waiter.went == 0 for waiter in gone)
    assert places(gone[burst:], "low")[:4] == [10, 20, 30, 40]
