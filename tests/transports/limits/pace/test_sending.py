"""How permits are spaced and reported: jitter, bursts, naps, and events about the rate."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai.transports import Turn

from ....support.crowd import Waiter, drive
from ....support.sender import QUOTA, answered, plain, sender

SEEDED = st.integers(0, 2**32).map(Random)


@given(st.floats(0, 1, exclude_max=True))
def test_each_gap_varies_by_a_tenth_and_never_more(chance: float) -> None:
    one = plain(penalty=0.5, recovery=1e-9)
    for number in range(8):
        one.settle(float(number))
    first, second = Turn(chance=chance), Turn()
    now = 1000.0
    while one.take(now):
        pass
    wait = one.wait(now, first)
    assert one.wait(now + wait, first) == 0.0
    gap = 1 / one.rate
    later = one.wait(now + wait, second)
    assert later == pytest.approx(gap * (1 + 0.1 * (2 * chance - 1)), rel=0.01)


def test_a_permit_that_is_free_at_once_costs_a_gap_of_the_same_kind() -> None:
    often = []
    for chance in (0.0, 0.5, 1.0):
        one = plain(penalty=1e-9)
        one.settle()
        often.append(sum(bool(one.take(1000.0, chance)) for _ in range(20)))
    assert often == [11, 10, 9]


@given(SEEDED, st.integers(2, 60))
def test_at_the_whole_quota_each_request_sleeps_once(random: Random, count: int) -> None:
    one = plain()
    while one.take(0.0):
        pass
    crowd = [Waiter(0.0) for _ in range(count)]
    assert drive(one.queue, crowd, random.random) == crowd
    assert all(waiter.went == pytest.approx(waiter.promised, abs=1e-5) for waiter in crowd)
    gaps = [(later.went - earlier.went) * QUOTA for earlier, later in pairwise(crowd)]
    assert all(gap == pytest.approx(1.0, abs=1e-3) for gap in gaps)


@given(SEEDED, st.lists(st.floats(0, 60), min_size=2, max_size=40))
def test_leaving_a_queue_of_uneven_gaps_neither_strands_nor_hurries_the_others(
    random: Random, patience: list[float]
) -> None:
    one = plain(penalty=1e-9, recovery=1e-9)
    one.settle()
    while one.take(0.0):
        pass
    leavers = [Waiter(number / 10, patience=seconds) for number, seconds in enumerate(patience)]
    staying = [Waiter(number / 10 + 0.05) for number in range(len(patience))]
    gone = drive(one.queue, leavers + staying, random.random)
    assert set(staying) <= set(gone)
    assert one.queue.waiting == 0
    most = [QUOTA * waiter.went / 0.9 + 1 + 0.25 * QUOTA for waiter in gone]
    assert all(number <= limit for number, limit in enumerate(most, start=1))


def test_after_the_start_six_seconds_of_the_rate_may_go_at_once_and_at_least_one() -> None:
    one = plain(penalty=0.5).settle()
    assert one.burst == pytest.approx(6 * one.rate)
    for number in range(1, 20):
        one.settle(float(number))
    assert one.burst == 1


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1), st.sampled_from((200, 200, 200, 429)))))
def test_a_quiet_limiter_admits_as_many_as_one_that_looks_at_everything_each_time(
    requests: list[tuple[float, float, int]],
) -> None:
    quick, careful, now = sender(), sender(), 0.0
    for seconds, chance, status in requests:
        now += seconds
        careful.source._is_quiet = False
        taken = [one.take(now, chance) for one in (quick, careful)]
        assert (taken[0] is None) is (taken[1] is None)
        for one, turn in zip((quick, careful), taken, strict=True):
            if turn is not None:
                one.queue.learn(turn, answered(status, now, retry_after="1"))
        assert quick.source.credit == careful.source.credit


def test_a_long_wait_is_slept_in_halves_since_the_rate_may_grow() -> None:
    pace = sender().source
    assert pace.rate < QUOTA
    assert [pace.mode.nap(wait) for wait in (40.0, 3.0, 2.0, 1.5, 0.2)] == [20.0, 1.5, 1.0, 1.0, 0.2]


def test_a_wait_at_the_whole_quota_is_slept_through_since_the_rate_cannot_grow() -> None:
    assert [plain().source.mode.nap(wait) for wait in (40.0, 3.0)] == [40.0, 3.0]


# Reports


def test_a_cut_is_reported_once_with_both_rates_and_the_reason() -> None:
    one = plain()
    change = one.refuse(1.0, sent=0.5)
    assert change is not None
    assert (change.old, change.new) == pytest.approx((QUOTA, 0.7 * QUOTA))
    assert change.reason == "429 Too Many Requests"
    assert one.refuse(1.0, sent=0.5) is None


def test_growth_is_reported_when_it_reaches_a_tenth() -> None:
    one = plain()
    one.hold_back(0.0)
    one.refuse(0.0)
    one.accept(0.1)
    assert not one.source.listens(0.1)
    one.look(60.0)
    assert one.accept(60.0) is None
    one.look(120.0)
    assert one.source.listens(120.0)
    change = one.accept(120.0)
    assert change is not None
    assert (change.old, change.new) == pytest.approx((0.7 * QUOTA, 0.8 * QUOTA))
    assert one.accept(120.0) is None


# What need not be reported to the limiter


def test_while_nothing_can_be_learned_successes_need_not_be_reported() -> None:
    one = plain()
    one.accept(0.0)
    assert not one.source.listens(1e9)
    one.refuse(1.0)
    assert one.source.listens(1.0)
    one.accept(2.0)
    assert not one.source.listens(2.0)


def test_a_success_is_read_for_quota_headers_once_a_second() -> None:
    one = sender().settle()
    times = []
    for tenth in range(25):
        now = 10 + tenth / 10
        if one.source.listens(now):
            times.append(now)
            one.accept(now)
    assert times == [10.0, 11.0, 12.0]
