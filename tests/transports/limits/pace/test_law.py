"""The law of the rate: how it grows and how it is cut, alone and by what a sender remembers."""

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai.transports import Turn
from stkai.transports._limits.pace import law as laws
from stkai.transports._limits.pace.law import HISTORY, Past, PlainLaw, TunedLaw
from stkai.transports._limits.pace.quota import KnownQuota

from ....support.sender import QUOTA, Sender, answered, plain, sender

# Growth


def test_the_rate_grows_with_the_integral_of_the_law_while_requests_wait() -> None:
    one, law = sender().settle(10.0), TunedLaw(QUOTA, 60)
    assert one.source._windowed.law == law
    start = one.rate
    for seconds in (1.0, 30.0, 90.0, 240.0):
        pace = sender().settle(10.0).source
        pace.mode.release(10.0, 10.0 + seconds, waiting=True)
        # dr/dt = slope * C/W * (1 + (t / patience)^steepness), in a thousand small steps.
        steps = [seconds / 60 * (number + 0.5) / 1000 for number in range(1000)]
        slopes = [laws._SLOPE * QUOTA / 60 * (1 + (t / laws._PATIENCE) ** laws._STEEPNESS) for t in steps]
        assert pace.rate == pytest.approx(start + sum(slopes) * seconds / 1000, rel=1e-5)


@pytest.mark.parametrize("permits", [1.0, 10.0, 200.0])
def test_the_least_time_for_permits_counts_on_all_growth_until_then(permits: float) -> None:
    mode = sender().settle(10.0).source.mode
    least = mode.least_time_for(permits, 10.0)
    assert permits / QUOTA <= least < mode.time_for(permits, 10.0)
    assert mode.release(10.0, 10.0 + least, waiting=True) <= permits


@pytest.mark.parametrize(("asked", "factor"), [(None, 2.0), (0.0, 1.0), (5.0, 1.0)])
def test_the_rate_regains_a_quota_twice_as_fast_where_refusals_ask_for_no_wait(
    asked: float | None, factor: float
) -> None:
    """The last refusal counts: it says what the next one will cost."""
    quota = KnownQuota(60 * QUOTA, 60)
    for earlier in (None, 5.0, asked):
        quota.asked(earlier)
    law = TunedLaw(QUOTA, 60)
    expected = law.grown(1.0, 0.0, 120.0 * factor) - 1.0
    assert quota.law().grown(1.0, 0.0, 120.0) - 1.0 == pytest.approx(expected)


@given(st.lists(st.floats(0, 100), max_size=10))
def test_the_growth_does_not_depend_on_how_often_it_is_computed(instants: list[float]) -> None:
    often, once = sender().settle().source.mode, sender().settle().source.mode
    before = 0.0
    for instant in [*sorted(instants), 100.0]:
        often.release(before, instant, waiting=True)
        before = instant
    once.release(0.0, 100.0, waiting=True)
    assert often.rate == pytest.approx(once.rate)


def test_the_rate_does_not_grow_while_no_request_waits_nor_in_a_pause() -> None:
    one = sender().settle()
    rate = one.rate
    assert one.look(500.0) == rate
    one.hold_back(500.0)
    one.refuse(500.0, sent=-1.0, asked=50.0)
    assert one.look(550.0) == rate
    assert one.look(560.0) > rate


def test_the_rate_never_grows_above_the_quota() -> None:
    one = sender().settle()
    one.hold_back(0.0)
    assert one.look(1e6) == QUOTA
    assert one.burst == pytest.approx(6 * QUOTA)


def test_a_cut_restarts_the_growth() -> None:
    law = TunedLaw(QUOTA, 60.0)
    early = law.grown(0.5, 0.0, 10.0) - 0.5
    late = law.grown(0.5, 180.0, 10.0) - 0.5
    assert late > 2 * early
    one = sender().settle()
    one.source.mode.release(0.0, 180.0, waiting=True)
    one.refuse(180.0)
    rate = one.rate
    one.source.mode.release(180.0, 190.0, waiting=True)
    assert one.rate - rate == pytest.approx(early, rel=1e-3)


@pytest.mark.parametrize("window", [1.0, 10.0, 3600.0])
def test_the_law_has_no_time_scale_but_the_window(window: float) -> None:
    law, other = TunedLaw(50 / 60, 60.0), TunedLaw(50 / window, window)
    for windows in (0.1, 1.0, 5.0):
        gained = law.grown(0.1 * law.ceiling, 0.0, windows * 60) / law.ceiling
        assert other.grown(0.1 * other.ceiling, 0.0, windows * window) / other.ceiling == pytest.approx(
            gained
        )


def test_growth_is_slower_where_a_window_holds_fewer_requests() -> None:
    gained = [
        TunedLaw(quota / 60, 60.0).grown(0.0, 0.0, 60.0) / (quota / 60) for quota in (5, 20, 100, 1000, 10000)
    ]
    assert gained == sorted(gained)
    assert gained[0] > gained[-1] / 30


def test_growth_without_a_quota_does_not_depend_on_how_often_it_is_computed() -> None:
    law = TunedLaw(math.inf, 60.0, 60.0)
    once = law.grown(1.0, 0.0, 100.0)
    often = 1.0
    for step in range(100):
        often = law.grown(often, float(step), 1.0)
    assert often == pytest.approx(once)


def test_growth_without_a_quota_makes_shares_more_equal() -> None:
    law = TunedLaw(math.inf, 60.0, 60.0)
    assert law.grown(1.0, 0.0, 60.0) / law.grown(0.1, 0.0, 60.0) < 10


# The cut


@given(st.floats(0.01, 1), st.integers(0, 200), st.floats(0, 60 * HISTORY), st.floats(0, 1), st.booleans())
def test_a_cut_by_the_tuned_law_never_raises_the_rate(
    rate: float, successes: int, seconds: float, held: float, cold: bool
) -> None:
    new = TunedLaw(1.0, 60.0).cut(rate, Past(successes, seconds, held, cold))
    assert 0 <= new <= rate


def test_a_sender_with_more_of_the_quota_gives_up_less_of_it() -> None:
    law, shares = TunedLaw(1.0, 60.0), (0.1, 0.5, 0.8, 1.0)
    kept = [law.cut(share, Past(round(share * 120), 120.0, held=1.0, cold=False)) / share for share in shares]
    assert kept == sorted(kept)
    assert 0.8 < kept[0] < kept[-1] < 1


def test_a_sender_that_is_always_held_back_falls_to_its_goodput() -> None:
    past = Past(36, 120.0, held=1.0, cold=False)
    assert 0.3 <= TunedLaw(1.0, 60.0).cut(0.8, past) <= 0.35


def test_a_sender_that_is_seldom_held_back_is_not_judged_by_its_goodput() -> None:
    past = Past(12, 120.0, held=0.5, cold=False)
    assert TunedLaw(1.0, 60.0).cut(0.8, past) > 0.6


@pytest.mark.parametrize("cold", [True, False])
def test_the_goodput_of_less_than_a_window_does_not_take_the_rate_to_the_floor(cold: bool) -> None:
    past = Past(0, 5.0, held=1.0, cold=cold)
    assert 0.3 < TunedLaw(1.0, 60.0).cut(0.8, past) < 0.8


def test_in_a_short_window_goodput_does_not_set_the_rate() -> None:
    past = Past(successes=1, seconds=100.0, held=1.0, cold=False)
    assert TunedLaw(20.0, 1.0).cut(10.0, past) > 8.0
    assert TunedLaw(20.0, 10.0).cut(10.0, past) < 1.0


def test_a_cut_without_a_quota_never_raises_the_rate() -> None:
    law = TunedLaw(math.inf, 60.0, 60.0)
    for past in (
        Past(200, 60.0, 1.0, cold=True),
        Past(200, 10.0, 1.0, cold=False),
        Past(200, 120.0, 1.0, cold=False),
        Past(200, 120.0, 0.1, cold=False),
        Past(0, 120.0, 0.1, cold=False),
    ):
        assert 0 <= law.cut(1.0, past) <= 1.0


def test_an_epoch_has_one_cut() -> None:
    one = plain()
    for _ in range(8):
        one.refuse(1.0, sent=0.5, asked=1.0)
    assert one.rate == pytest.approx(0.7 * QUOTA)
    one.accept(3.0, sent=0.9)  # sent before the cut: it says nothing about the rate in force
    one.refuse(4.0, sent=3.5, asked=1.0)
    assert one.rate == pytest.approx(0.7 * QUOTA)
    one.accept(6.0, sent=5.9)
    one.refuse(7.0, sent=0.9, asked=1.0)  # sent before the cut
    assert one.rate == pytest.approx(0.7 * QUOTA)
    one.refuse(8.0, sent=7.0, asked=1.0)
    assert one.rate == pytest.approx(0.49 * QUOTA)


@pytest.mark.no_cover
@pytest.mark.parametrize(("share", "floor"), [(0.0, 0.5 / 60), (0.2, 0.2 * QUOTA), (1e-6, 0.5 / 60)])
@pytest.mark.parametrize("factors", [None, (1.0, 0.05)])
def test_the_rate_never_falls_below_its_floor_and_requests_still_get_through(
    share: float, floor: float, factors: tuple[float, float] | None
) -> None:
    one = sender(floor_share=share, plain=factors)
    for number in range(200):
        one.settle(float(number))
        assert one.rate >= floor
    assert one.rate == pytest.approx(floor)
    assert one.wait(300.0) <= 1 / floor


@pytest.mark.parametrize("quota", [0.25, 1, 10])
def test_the_floor_lets_fifty_share_a_quota_however_small(quota: float) -> None:
    assert Sender(quota, 60).source.quota.floor == pytest.approx(quota / 50 / 60)


# What the law gets


class Recorder:
    """A law that records what it gets, and leaves the rate alone."""

    history = HISTORY * 60.0

    def __init__(self) -> None:
        self.pasts: list[Past] = []

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        return rate

    def cut(self, rate: float, past: Past) -> float:
        self.pasts.append(past)
        return rate


def recorded(**options: Any) -> tuple[Sender, Recorder]:
    one, law = plain(**options), Recorder()
    one.source.quota.law = lambda: law  # type: ignore[assignment, method-assign, return-value]
    one.source._windowed._adopt()
    return one, law


def test_the_law_gets_what_was_sent_in_the_last_windows_and_not_refused() -> None:
    one, law = recorded()
    for number in range(200):
        one.force(float(number))
    one.accept(209.0, sent=199.0)
    one.force(210.0)
    one.refuse(210.0)
    kept = [number for number in range(200) if number > 210 - HISTORY * 60]
    assert law.pasts[0].successes == pytest.approx(len(kept), abs=1)
    assert law.pasts[0].seconds == HISTORY * 60.0


def test_a_request_that_has_no_answer_yet_counts_as_accepted() -> None:
    one, law = recorded()
    for number in range(11):
        one.force(float(number))
    one.refuse(10.5, sent=10.0)
    assert law.pasts[0].successes == 10


def test_a_request_that_was_not_sent_does_not_count() -> None:
    one, law = recorded()
    for number in range(10):
        turn = one.force(float(number))
        if number % 2:
            one.queue.leave(turn, number + 0.5)
    one.force(10.0)
    one.refuse(10.5, sent=10.0)
    assert law.pasts[0].successes == 5


def test_the_law_gets_the_length_of_a_short_past() -> None:
    one, law = recorded()
    one.force(4.0)
    one.accept(5.0, sent=4.0)
    one.force(10.0)
    one.refuse(11.0, sent=10.0)
    one.force(12.0)
    one.accept(13.0, sent=12.0)
    one.force(13.5)
    one.refuse(14.0, sent=13.5)
    assert [(past.successes, past.seconds) for past in law.pasts] == [(1, 7.0), (2, 10.0)]


def test_a_million_requests_take_no_more_memory_than_one() -> None:
    one = Sender(1_000_000, 60)
    before = len(pickle.dumps(one.source._windowed.history))
    for number in range(20_000):
        one.source._windowed.history.add(number / 1000)
    assert len(pickle.dumps(one.source._windowed.history)) <= before + 100


def test_the_law_gets_the_share_of_the_last_time_that_was_spent_holding_back() -> None:
    one, law = recorded()
    source = one.source
    source.mode.take(Turn(), 0.0)
    source.mode.release(0.0, 10.0, waiting=True)
    source.mode.release(10.0, 70.0, waiting=False)
    source._learn(Turn(), answered(429, 70.0, retry_after="0"))
    source._learn(Turn(), answered(200, 71.0))
    source.mode.release(70.0, 130.0, waiting=True)
    source._learn(Turn(), answered(429, 130.0, retry_after="0"))
    fading = 1 / math.e
    assert [past.held for past in law.pasts] == pytest.approx([fading, 1 - (1 - fading) * fading])


def test_a_pause_of_many_windows_does_not_reduce_the_goodput_to_nothing() -> None:
    one, law = recorded()
    unused = one.force(1.9)
    one.refuse(2.0, asked=1800.0)
    one.accept(2.1, sent=1.9)  # It was in flight.
    one.queue.leave(unused, 2.1)
    one.accept(1803.0)
    one.force(1804.0)
    one.refuse(1804.0, asked=1.0)
    assert law.pasts[-1].seconds == pytest.approx(2.0)


# Plain AIMD


def test_given_factors_mean_plain_aimd_from_the_whole_quota() -> None:
    one = plain(penalty=0.4, recovery=0.1)
    assert one.rate == QUOTA
    one.refuse(0.0)
    assert one.rate == pytest.approx(0.6 * QUOTA)
    one.source.mode.release(0.0, 30.0, waiting=True)
    assert one.rate == pytest.approx(0.65 * QUOTA)
    one.source.mode.release(30.0, 60.0, waiting=True)
    assert one.rate == pytest.approx(0.7 * QUOTA)
    one.source.mode.release(60.0, 6000.0, waiting=True)
    assert one.rate == QUOTA


def test_a_plain_cut_takes_its_share_whatever_the_goodput() -> None:
    law = PlainLaw(1.0, 60.0, 0.3, 0.05)
    pasts = Past(0, 120.0, 0.0, cold=True), Past(120, 120.0, 1.0, cold=False)
    assert [law.cut(0.5, past) for past in pasts] == pytest.approx([0.35, 0.35])
