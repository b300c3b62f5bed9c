"""The cold start: what a sender sends before its first refusal."""

import math
from itertools import pairwise
from statistics import fmean

import pytest

from stkai.transports import Turn
from stkai.transports._limits.pace.start import _DOUBLING_TIME, _EARLY_FRACTION
from stkai.transports._limits.pace.start import START_FRACTION as START

from ....support.crowd import Waiter, drive
from ....support.gateways import LeakyBucket, World, jain
from ....support.sender import QUOTA, Sender, sender


def test_it_starts_with_a_small_share_of_the_quota_and_three_at_once() -> None:
    cold = sender()
    assert cold.rate == pytest.approx(START * QUOTA)
    assert START <= 0.2
    assert [bool(cold.take(0.0)) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("quota", "at_once"), [(0.5, 1), (1, 1), (2, 2), (3, 3), (1e6, 3)])
def test_the_start_never_sends_more_at_once_than_the_quota(quota: float, at_once: int) -> None:
    cold = Sender(quota, 60)
    assert [bool(cold.take(0.0)) for _ in range(5)] == [number < at_once for number in range(5)]


def test_the_rate_doubles_in_a_fixed_part_of_the_window_while_requests_wait_up_to_the_quota() -> None:
    cold, doubling = sender(), 60 * _DOUBLING_TIME
    turn = cold.hold_back(0.0)
    instants = [0.0, 2.5, 15.0, 20.0, 34.0, 34.9, 60.0]
    rates = []
    for instant in instants:
        rates.append(cold.look(instant))
        cold.queue.leave(turn, instant)
        turn = cold.hold_back(instant)
    assert rates == pytest.approx([QUOTA * min(1.0, START * 2 ** (at / doubling)) for at in instants])


def test_the_start_rate_does_not_double_while_no_request_waits() -> None:
    cold = sender()
    cold.take(0.0)
    assert cold.look(1000.0) == pytest.approx(START * QUOTA)
    assert cold.burst == 3


@pytest.mark.parametrize("looks", [1, 2, 1000])
def test_the_permits_of_the_start_are_the_integral_of_its_rate_however_often_they_are_computed(
    looks: int,
) -> None:
    pace = Sender(6000, 60).source
    instants = [40.0 * number / looks for number in range(looks + 1)]
    released = sum(pace.mode.release(start, end, waiting=True) for start, end in pairwise(instants))
    # From its first rate, doubling all the time, to 100 per second, and on at 100.
    doubling = 60 * _DOUBLING_TIME
    full = doubling * math.log2(1 / START)
    expected = 100 * (1 - START) * doubling / math.log(2) + 100 * (40.0 - full)
    assert released == pytest.approx(expected)
    assert pace.rate == pytest.approx(100)


@pytest.mark.no_cover
def test_requests_that_wait_through_the_start_know_how_long_it_takes() -> None:
    waiters = [Waiter(0.0) for _ in range(200)]
    gone = drive(Sender(600, 60).queue, waiters)
    assert gone == waiters
    assert all(waiter.went == pytest.approx(waiter.promised, abs=0.2) for waiter in waiters)


def test_the_first_refusal_ends_the_start() -> None:
    cold = sender()
    cold.hold_back(0.0)
    rate = cold.look(40.0)
    cold.refuse(40.0, sent=39.9)
    assert cold.rate < rate
    assert cold.burst == pytest.approx(max(1.0, 6 * cold.rate))
    assert cold.look(45.0) < 1.1 * cold.rate


def test_successes_release_permits_ahead_of_the_rate_up_to_a_share_of_the_quota() -> None:
    cold, sent = sender(), 0
    for _ in range(200):
        while cold.take(0.0):
            sent += 1
        cold.accept(0.0)
    assert sent == 3 + _EARLY_FRACTION * 100


def test_a_refusal_ends_what_successes_release() -> None:
    cold = sender()
    cold.refuse(0.0)
    while cold.take(0.0):
        pass
    cold.accept(0.0)
    assert not cold.take(0.0)


@pytest.mark.parametrize("window", [4.0, 60.0])
def test_a_burst_that_meets_a_small_bucket_is_no_reason_to_lower_the_rate(window: float) -> None:
    cold = Sender(60, window)
    while cold.take(0.0):
        pass
    rate = cold.rate
    cold.refuse(window / 20, sent=0.0)
    assert cold.rate == rate
    assert cold.burst == 1
    cold.hold_back(window / 20)
    assert cold.look(window) > 1.5 * rate
    cold.accept(window, sent=window / 10)
    grown = cold.rate
    cold.refuse(1.1 * window, sent=window)
    assert cold.rate < grown


@pytest.mark.parametrize(("asked", "keeps"), [(1.0, True), (2.0, False), (3.0, False), (None, False)])
def test_a_server_that_soon_accepts_more_has_refused_a_burst_and_not_a_rate(
    asked: float | None, keeps: bool
) -> None:
    cold = Sender(40, 4)
    for _ in range(8):
        cold.force(0.0)
    cold.hold_back(0.0)
    rate = cold.look(0.3)
    cold.refuse(0.3, sent=0.0, asked=asked)
    assert (cold.rate == rate) is keeps


@pytest.mark.parametrize(("asked", "goes_on"), [(None, True), (1.0, True), (29.0, True), (30.0, False)])
def test_the_burst_of_another_program_halves_the_rate_and_ends_the_start_only_if_it_used_up_a_window(
    asked: float | None, *, goes_on: bool
) -> None:
    cold = sender()
    before = cold.rate
    cold.take(0.0)
    cold.refuse(0.01, sent=0.0, asked=asked)
    assert cold.rate == pytest.approx(before / 2)
    assert cold.source._windowed.start.over is not goes_on
    cold.accept(30.0)
    cold.take(31.0)
    cold.refuse(31.01, sent=31.0, asked=None)
    assert cold.source._windowed.start.over


@pytest.mark.no_cover
@pytest.mark.parametrize("gap", [0.0, 0.05, 1.0])
def test_programs_that_start_together_at_a_small_bucket_soon_have_equal_rates(gap: float) -> None:
    fairness = []
    for seed in (1, 2, 3):
        world = World(LeakyBucket(100 / 60, 10), seed=seed)
        for number in range(4):
            world.add(100, 60, at=gap * number)
        world.run(200.0)
        fairness.append(jain(world.counts(100.0, 200.0)[0]))
    assert fmean(fairness) >= 0.85


def test_a_sender_that_had_the_whole_quota_in_its_first_window_keeps_most_of_it() -> None:
    cold = Sender(10, 60)
    cold.source._windowed.rate = cold.source.quota.ceiling
    for number in range(10):
        cold.force(4.0 * number)
        cold.accept(4.0 * number)
    cold.refuse(40.0, asked=20.0)
    assert cold.rate > 0.9 * cold.source.quota.ceiling


@pytest.mark.no_cover
def test_without_numbers_a_program_that_is_not_refused_sends_a_thousand_requests_in_three_seconds() -> None:
    waiters = [Waiter(0.0) for _ in range(1000)]
    gone = drive(Sender().queue, waiters)
    assert gone == waiters
    assert [waiter.went for waiter in gone[:3]] == [0.0, 0.0, 0.0]
    assert gone[-1].went < 3.0


def test_a_program_that_stood_still_for_an_hour_goes_on() -> None:
    cold = Sender()
    turns = [Turn() for _ in range(10)]
    waits = [cold.wait(0.0, turn) for turn in turns]
    assert min(waits[3:]) > 0
    assert [cold.wait(3600.0, turn) for turn in turns[3:6]] == [0.0, 0.0, 0.0]
    assert math.isfinite(cold.rate)
    cold.refuse(3600.1, sent=3600.0, asked=5.0)
    assert 0 < cold.rate < 1


def test_a_start_whose_rate_brings_its_burst_back_at_once_need_not_hear_of_successes() -> None:
    slow, fast = sender(), Sender(1e9, 1.0)
    for cold in (slow, fast):
        assert cold.source.listens(0.0)
        cold.accept(0.0)
    assert slow.source.listens(0.1)
    assert not fast.source.listens(0.1)


@pytest.mark.parametrize(("asked", "rate"), [(3, 1 / 3.1), (4, 1 / 4.1)])
def test_a_refusal_at_once_still_leaves_a_request_in_the_time_asked_for(asked: float, rate: float) -> None:
    one = Sender()
    one.refuse(0.1, sent=0.0, asked=asked, turn=one.force(0.0))
    assert one.rate == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("short", [0.0, 1.0, 2.0])
def test_a_short_wait_says_nothing_unless_longer_ones_were_asked_for(short: float) -> None:
    for earlier, finding in (([], "short Retry-After"), ([3.0], "time_window=30")):
        one = Sender()
        for now, asked in enumerate([*earlier, short]):
            one.refuse(10.0 * now + 0.1, sent=10.0 * now, asked=asked, turn=one.force(10.0 * now))
        assert finding in str(one.source)


def test_a_refused_request_waits_as_asked_although_a_short_wait_says_nothing() -> None:
    one = Sender()
    for now in (0.0, 10.0):  # The refusal that brings the law of servers that just refuse, and one under it.
        turn = one.force(now)
        one.refuse(now + 0.1, sent=now, asked=1.0, turn=turn)
        assert "short Retry-After" in str(one.source)
        assert turn.again().not_before == now + 1.1
    assert one.wait(10.1, turn.again()) == pytest.approx(1.0)


@pytest.mark.parametrize(("gap", "finding"), [(0.5, "short Retry-After"), (1.0, "time_window=")])
def test_a_short_wait_says_something_to_a_sender_with_few_requests(gap: float, finding: str) -> None:
    one, now = Sender(), 0.0
    one.refuse(0.1, sent=0.0, asked=1.0, turn=one.force(0.0))
    while now < 20.0:
        now += gap
        one.force(now)
        one.accept(now)
    one.refuse(now + 1.1, sent=now + 1.0, asked=1.0, turn=one.force(now + 1.0))
    assert finding in str(one.source)
