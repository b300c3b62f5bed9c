"""The adaptive limiter: its law in numbers, and its layer over scripted servers."""

import math
import pickle
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import (
    AimdLimiter,
    ConfigurationError,
    DeadlineExceededError,
    RateChanged,
    Rejected,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
    Waited,
)
from stkai.testing import FakeClock
from stkai.transports import Context, Turn, adaptive, retry, token_bucket
from stkai.transports._adaptive import law as laws
from stkai.transports._adaptive.law import HISTORY, Past, PlainLaw, TunedLaw
from stkai.transports._adaptive.start import _DOUBLING, _FREE
from stkai.transports._adaptive.start import _SHARE as START

from ...support.crowd import Waiter, drive
from ...support.heard import CALL, Heard
from ...support.wire import Wire
from ...support.world import World

URL = "https://api.example.com/"
QUOTA = 100 / 60


def limiter(**options: Any) -> AimdLimiter:
    return AimdLimiter(100, 60, **options)


def plain(penalty: float = 0.3, recovery: float = 0.05, **options: Any) -> AimdLimiter:
    return limiter(penalty_factor=penalty, recovery_factor=recovery, **options)


def look(policy: AimdLimiter, now: float) -> float:
    """The rate at `now`; no request comes or goes."""
    policy.cancel(Turn(), now)
    return policy.rate


def hold_back(policy: AimdLimiter, now: float) -> Turn:
    """Let a request wait from `now` on."""
    while policy.take(now):
        pass
    ticket = Turn()
    assert policy.remaining(ticket, now) > 0
    return ticket


def warm(policy: AimdLimiter, now: float = 0.0) -> AimdLimiter:
    """Past its cold start: one refusal, which asked for no pause, and a success since."""
    policy.refused(now, sent=now, asked=0.0, chance=0.0)
    policy.succeeded(now, sent=now + 1e-9)
    return policy


# The start


def test_it_starts_with_a_small_share_of_the_quota_and_three_at_once() -> None:
    policy = limiter()
    assert policy.rate == pytest.approx(START * QUOTA)
    assert START <= 0.2
    assert [bool(policy.take(0.0)) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("quota", "at_once"), [(0.5, 1), (1, 1), (2, 2), (3, 3), (1e6, 3)])
def test_the_start_never_sends_more_at_once_than_the_quota(quota: float, at_once: int) -> None:
    policy = AimdLimiter(quota, 60)
    assert [bool(policy.take(0.0)) for _ in range(5)] == [number < at_once for number in range(5)]


def test_the_rate_doubles_in_a_fixed_part_of_the_window_while_requests_wait_up_to_the_quota() -> None:
    policy, doubling = limiter(), 60 * _DOUBLING
    hold_back(policy, 0.0)
    instants = [0.0, 2.5, 15.0, 20.0, 34.0, 34.9, 60.0]
    shares = [min(1.0, START * 2 ** (instant / doubling)) for instant in instants]
    assert [look(policy, instant) for instant in instants] == pytest.approx(
        [share * QUOTA for share in shares]
    )


def test_the_start_rate_does_not_double_while_no_request_waits() -> None:
    policy = limiter()
    policy.take(0.0)
    assert look(policy, 1000.0) == pytest.approx(START * QUOTA)
    assert policy.burst == 3


@pytest.mark.parametrize("looks", [1, 2, 1000])
def test_the_permits_of_the_start_are_the_integral_of_its_rate_however_often_they_are_computed(
    looks: int,
) -> None:
    policy = AimdLimiter(6000, 60, max_wait_time=None)
    queue = [hold_back(policy, 0.0)]
    while (wait := policy.remaining(Turn(), 0.0)) < 40.0:
        queue.append(Turn())
    for number in range(1, looks + 1):
        look(policy, 40.0 * number / looks)
    # From its first rate, doubling all the time, to 100 per second, and on at 100: one more in a hundredth of a second.
    doubling = 60 * _DOUBLING
    full = doubling * math.log2(1 / START)
    released = 100 * (1 - START) * doubling / math.log(2) + 100 * (40.0 - full)
    assert policy.waiting == pytest.approx(released, abs=2)
    assert wait == pytest.approx(40.0, abs=0.02)
    assert policy.rate == pytest.approx(100)


def test_requests_that_wait_through_the_start_are_told_how_long_it_takes() -> None:
    policy = AimdLimiter(600, 60, max_wait_time=None)
    waiters = [Waiter(0.0) for _ in range(200)]
    gone = drive(policy, waiters)
    assert gone == waiters
    assert all(waiter.went == pytest.approx(waiter.told, abs=1e-3) for waiter in waiters)


def test_the_first_refusal_ends_the_start() -> None:
    policy = limiter()
    hold_back(policy, 0.0)
    rate = look(policy, 40.0)
    policy.refused(40.0, sent=39.9, asked=0.0, chance=0.0)
    assert policy.rate < rate
    assert policy.burst == pytest.approx(max(1.0, 6 * policy.rate))
    assert look(policy, 45.0) < 1.1 * policy.rate


def test_successes_release_permits_ahead_of_the_rate_up_to_a_share_of_the_quota() -> None:
    policy, sent = limiter(), 0
    for _ in range(200):
        while policy.take(0.0):
            sent += 1
        policy.succeeded(0.0, sent=0.0)
    assert sent == 3 + _FREE * 100


def test_a_refusal_ends_what_successes_release() -> None:
    policy = limiter()
    policy.refused(0.0, sent=0.0, asked=0.0, chance=0.0)
    while policy.take(0.0):
        pass
    policy.succeeded(0.0, sent=0.0)
    assert not policy.take(0.0)


@pytest.mark.parametrize("window", [4.0, 60.0])
def test_a_burst_that_meets_a_small_bucket_is_no_reason_to_lower_the_rate(window: float) -> None:
    policy = AimdLimiter(60, window)
    while policy.take(0.0):
        pass
    rate = policy.rate
    policy.refused(window / 20, sent=0.0, asked=0.0, chance=0.0)
    assert policy.rate == rate
    assert policy.burst == 1
    hold_back(policy, window / 20)
    assert look(policy, window) > 1.5 * rate
    policy.succeeded(window, sent=window / 10)
    grown = policy.rate
    policy.refused(1.1 * window, sent=window, asked=0.0, chance=0.0)
    assert policy.rate < grown


def test_a_sender_that_had_the_whole_quota_in_its_first_window_keeps_most_of_it() -> None:
    policy = AimdLimiter(10, 60)
    policy._rate = policy.ceiling
    for number in range(10):
        policy._burst = policy._credit = 1.0
        assert policy.take(4.0 * number)
        policy.succeeded(4.0 * number, sent=4.0 * number)
    policy.refused(40.0, sent=40.0, asked=20.0, chance=0.0)
    assert policy.rate > 0.9 * policy.ceiling


# Sending


@given(st.floats(0, 1, exclude_max=True))
def test_each_gap_varies_by_a_tenth_and_never_more(chance: float) -> None:
    policy = plain(penalty=0.5, recovery=1e-9)
    for number in range(8):
        warm(policy, float(number))
    now = 1000.0
    while policy.take(now):
        pass
    first, second = Turn(chance=chance), Turn()
    wait = policy.remaining(first, now)
    told = policy.remaining(second, now) - wait
    gap = 1 / policy.rate
    assert told == pytest.approx(gap * (1 + 0.1 * (2 * chance - 1)), rel=0.01)
    assert 0.89 * gap <= told <= 1.11 * gap
    assert policy.remaining(first, now + wait) == 0.0
    assert policy.remaining(second, now + wait) == pytest.approx(told)


@given(st.randoms(use_true_random=False), st.integers(2, 60))
def test_at_the_whole_quota_each_request_sleeps_once_and_goes_when_told_despite_uneven_gaps(
    random: Random, count: int
) -> None:
    policy = plain(max_wait_time=None)
    while policy.take(0.0):
        pass
    crowd = [Waiter(0.0) for _ in range(count)]
    assert drive(policy, crowd, random.random) == crowd
    assert all(waiter.sleeps == 1 for waiter in crowd)
    assert all(waiter.went == pytest.approx(waiter.told, abs=1e-5) for waiter in crowd)
    gaps = [(later.went - earlier.went) * QUOTA for earlier, later in pairwise(crowd)]
    assert all(0.9 - 1e-3 <= gap <= 1.1 + 1e-3 for gap in gaps)


@given(st.randoms(use_true_random=False), st.lists(st.floats(0, 60), min_size=2, max_size=40))
def test_leaving_a_queue_of_uneven_gaps_neither_strands_nor_hurries_the_others(
    random: Random, patience: list[float]
) -> None:
    policy = plain(max_wait_time=None)
    while policy.take(0.0):
        pass
    leavers = [Waiter(number / 10, patience=seconds) for number, seconds in enumerate(patience)]
    staying = [Waiter(number / 10 + 0.05) for number in range(len(patience))]
    gone = drive(policy, leavers + staying, random.random)
    assert set(staying) <= set(gone)
    assert policy.waiting == 0
    most = [QUOTA * waiter.went / 0.9 + 1 + 0.25 * QUOTA for waiter in gone]
    assert all(number <= limit for number, limit in enumerate(most, start=1))
    # Each place that is given up may make a request behind it ask again.
    assert all(waiter.sleeps <= 1 + len(leavers) for waiter in staying)


def test_a_place_is_passed_on_with_its_gap_so_that_those_behind_go_when_they_were_told() -> None:
    policy = plain()
    while policy.take(0.0):
        pass
    first, second, third, heir = Turn(chance=1.0), Turn(chance=1.0), Turn(chance=1.0), Turn(chance=0.0)
    told = [policy.remaining(ticket, 0.0) for ticket in (first, second, third)]
    policy.cancel(second, 0.0)
    assert policy.remaining(heir, 0.0) == pytest.approx(told[1])
    for ticket, instant in zip((first, heir, third), told, strict=True):
        assert policy.remaining(ticket, instant - 0.01) == pytest.approx(0.01)
        assert policy.remaining(ticket, instant) == 0.0


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_returning_request_takes_a_gap_of_the_same_kind(chance: float) -> None:
    policy = plain()
    while number := policy.take(0.0):
        last = number
    behind, back = Turn(), Turn(number=last, chance=chance)
    told = policy.remaining(behind, 0.0)
    policy.remaining(back, 0.0)
    gap = 1 + 0.1 * (2 * chance - 1)
    assert policy.remaining(behind, 0.0) - told == pytest.approx(gap / policy.rate)


def test_the_gaps_of_requests_that_left_delay_no_other() -> None:
    policy = plain()
    while policy.take(0.0):
        pass
    first, last = Turn(), Turn()
    told = policy.remaining(first, 0.0)
    leavers = [Turn(chance=1.0) for _ in range(20)]
    for ticket in leavers:
        policy.remaining(ticket, 0.0)
    policy.remaining(last, 0.0)
    for ticket in leavers:
        policy.cancel(ticket, 0.0)
    assert policy.remaining(last, 0.0) - told <= 1.1 / policy.rate + 1e-9


def test_a_permit_that_is_free_at_once_costs_a_gap_of_the_same_kind() -> None:
    often = []
    for chance in (0.0, 0.5, 1.0):
        policy = plain()
        often.append(sum(bool(policy.take(0.0, chance)) for _ in range(20)))
    assert often == [11, 10, 9]


def test_after_the_start_six_seconds_of_the_rate_may_go_at_once_and_at_least_one() -> None:
    policy = warm(plain(penalty=0.5))
    assert policy.burst == pytest.approx(6 * policy.rate)
    for number in range(1, 20):
        warm(policy, float(number))
    assert policy.burst == 1


def test_a_long_wait_is_slept_in_halves_since_the_rate_may_grow() -> None:
    policy = limiter()
    assert policy.rate < QUOTA
    assert [policy.nap(wait) for wait in (40.0, 3.0, 2.0, 1.5, 0.2)] == [20.0, 1.5, 1.0, 1.0, 0.2]


def test_a_wait_at_the_whole_quota_is_slept_through_since_the_rate_cannot_grow() -> None:
    assert [plain().nap(wait) for wait in (40.0, 3.0)] == [40.0, 3.0]


# Growth


def test_the_rate_grows_with_the_integral_of_the_law_while_requests_wait() -> None:
    policy, law = warm(limiter(), 10.0), TunedLaw(QUOTA, 60)
    assert policy.law == law
    start = policy.rate
    hold_back(policy, 10.0)
    for seconds in (1.0, 30.0, 90.0, 240.0):
        # dr/dt = slope * C/W * (1 + (t / patience)^steepness), in a thousand small steps.
        steps = [seconds / 60 * (number + 0.5) / 1000 for number in range(1000)]
        slopes = [laws._SLOPE * QUOTA / 60 * (1 + (t / laws._PATIENCE) ** laws._STEEPNESS) for t in steps]
        gained = sum(slopes) * seconds / 1000
        assert look(policy, 10.0 + seconds) == pytest.approx(start + gained, rel=1e-5)


@given(st.lists(st.floats(0, 100), max_size=10))
def test_the_growth_does_not_depend_on_how_often_it_is_computed(instants: list[float]) -> None:
    often, once = warm(limiter()), warm(limiter())
    for policy in (often, once):
        hold_back(policy, 0.0)
    for instant in sorted(instants):
        look(often, instant)
    assert look(often, 100.0) == pytest.approx(look(once, 100.0))


def test_the_rate_does_not_grow_while_no_request_waits_nor_in_a_pause() -> None:
    policy = warm(limiter())
    rate = policy.rate
    assert look(policy, 500.0) == rate
    ticket = hold_back(policy, 500.0)
    policy.refused(500.0, sent=-1.0, asked=50.0, chance=0.0)
    assert look(policy, 550.0) == rate
    assert look(policy, 560.0) > rate
    policy.cancel(ticket, 560.0)
    rate = policy.rate
    assert look(policy, 900.0) == rate


def test_the_rate_never_grows_above_the_quota() -> None:
    policy = warm(limiter())
    hold_back(policy, 0.0)
    assert look(policy, 1e6) == QUOTA
    assert policy.burst == pytest.approx(6 * QUOTA)


def test_a_cut_restarts_the_growth() -> None:
    law = TunedLaw(QUOTA, 60.0)
    early = law.grown(0.5, 0.0, 10.0) - 0.5
    late = law.grown(0.5, 180.0, 10.0) - 0.5
    assert late > 2 * early
    policy = warm(limiter())
    hold_back(policy, 0.0)
    look(policy, 180.0)
    policy.refused(180.0, sent=180.0, asked=0.0, chance=0.0)
    rate = policy.rate
    assert look(policy, 190.0) - rate == pytest.approx(early, rel=1e-3)


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


# The cut


@given(
    st.floats(0.01, 1),
    st.integers(0, 200),
    st.floats(0, 60 * HISTORY),
    st.floats(0, 1),
    st.booleans(),
)
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


class Recorder:
    """A law that records what it is told, and leaves the rate alone."""

    def __init__(self) -> None:
        self.pasts: list[Past] = []

    history = HISTORY * 60.0

    def grown(self, rate: float, quiet: float, seconds: float) -> float:
        return rate

    def cut(self, rate: float, past: Past) -> float:
        self.pasts.append(past)
        return rate


def send(policy: AimdLimiter, instant: float) -> None:
    """Take a permit at `instant`, whatever the rate is."""
    policy._advance(instant)
    policy._credit = 2.0
    assert policy.take(instant)


def test_the_law_is_told_what_was_sent_in_the_last_windows_and_not_refused() -> None:
    policy, law = plain(), Recorder()
    policy.law = law
    for number in range(200):
        send(policy, float(number))
    policy.succeeded(209.0, sent=199.0)
    send(policy, 210.0)
    policy.refused(210.0, sent=210.0, asked=0.0, chance=0.0)
    kept = [number for number in range(200) if number > 210 - HISTORY * 60]
    assert law.pasts[0].successes == pytest.approx(len(kept), abs=1)
    assert law.pasts[0].seconds == HISTORY * 60.0


def test_a_request_that_has_no_answer_yet_counts_as_accepted() -> None:
    policy, law = plain(), Recorder()
    policy.law = law
    for number in range(10):
        send(policy, float(number))
    send(policy, 10.0)
    policy.refused(10.5, sent=10.0, asked=0.0, chance=0.0)
    assert law.pasts[0].successes == 10


def test_the_law_is_told_how_short_the_past_is() -> None:
    policy, law = plain(), Recorder()
    policy.law = law
    send(policy, 4.0)
    policy.succeeded(5.0, sent=4.0)
    send(policy, 10.0)
    policy.refused(11.0, sent=10.0, asked=0.0, chance=0.0)
    send(policy, 12.0)
    policy.succeeded(13.0, sent=12.0)
    send(policy, 13.5)
    policy.refused(14.0, sent=13.5, asked=0.0, chance=0.0)
    assert [(past.successes, past.seconds) for past in law.pasts] == [(1, 7.0), (2, 10.0)]


def test_a_million_requests_take_no_more_memory_than_one() -> None:
    policy = AimdLimiter(1_000_000, 60)
    before = len(pickle.dumps(policy._tally._counts))
    for number in range(20_000):
        now = number / 1000
        policy._tally.add(now)
        policy.succeeded(now, sent=now)
    assert len(pickle.dumps(policy._tally._counts)) == before


def test_the_law_is_told_the_share_of_the_last_time_that_was_spent_holding_back() -> None:
    policy, law = plain(), Recorder()
    policy.law = law
    ticket = hold_back(policy, 0.0)
    look(policy, 10.0)
    policy.cancel(ticket, 10.0)
    policy.refused(70.0, sent=70.0, asked=0.0, chance=0.0)
    policy.succeeded(71.0, sent=71.0)
    hold_back(policy, 70.0)
    policy.refused(130.0, sent=130.0, asked=0.0, chance=0.0)
    fading = 1 / math.e
    assert [past.held for past in law.pasts] == pytest.approx([fading, 1 - (1 - fading) * fading])


def test_an_epoch_has_one_cut() -> None:
    policy = plain()
    for _ in range(8):
        policy.refused(1.0, sent=0.5, asked=1.0)
    assert policy.rate == pytest.approx(0.7 * QUOTA)
    policy.succeeded(3.0, sent=0.9)  # sent before the cut: it says nothing about the rate in force
    policy.refused(4.0, sent=3.5, asked=1.0)
    assert policy.rate == pytest.approx(0.7 * QUOTA)
    policy.succeeded(6.0, sent=5.9)
    policy.refused(7.0, sent=0.9, asked=1.0)  # sent before the cut
    assert policy.rate == pytest.approx(0.7 * QUOTA)
    policy.refused(8.0, sent=7.0, asked=1.0)
    assert policy.rate == pytest.approx(0.49 * QUOTA)


@pytest.mark.parametrize(
    ("options", "floor"),
    [({}, 0.5 / 60), ({"min_rate_floor": 0.2}, 0.2 * QUOTA), ({"min_rate_floor": 1e-6}, 0.5 / 60)],
)
@pytest.mark.parametrize("factors", [{}, {"penalty_factor": 1.0}])
def test_the_rate_never_falls_below_its_floor_and_requests_still_get_through(
    options: dict[str, float], floor: float, factors: dict[str, float]
) -> None:
    policy = limiter(**options, **factors, max_wait_time=None)
    ticket = hold_back(policy, 0.0)
    for number in range(200):
        warm(policy, float(number))
        assert policy.rate >= floor
    assert policy.rate == pytest.approx(floor)
    policy.cancel(ticket, 200.0)
    assert len(drive(policy, [Waiter(300.0) for _ in range(5)])) == 5


@pytest.mark.parametrize("quota", [0.25, 1, 10])
def test_the_floor_lets_fifty_share_a_quota_however_small(quota: float) -> None:
    assert AimdLimiter(quota, 60).floor == pytest.approx(quota / 50 / 60)


# The pause


def pause_of(policy: AimdLimiter, now: float, asked: float | None) -> float:
    """How many seconds no request may go after a refusal at `now`."""
    policy.refused(now, sent=now, asked=asked, chance=0.0)
    return policy._paused_until - now


def test_a_refusal_pauses_as_long_as_the_server_asked_and_for_a_second_where_it_did_not() -> None:
    assert pause_of(limiter(), 0.0, 7.0) == 7.0
    assert pause_of(limiter(), 0.0, None) == 1.0
    policy = plain()
    policy.refused(5.0, sent=5.0, asked=7.0, chance=0.0)
    assert not policy.take(11.999)
    assert policy.remaining(Turn(), 5.0) == 7.0
    assert policy.remaining(Turn(), 12.0) == 0.0


def test_the_pause_doubles_with_each_refusal_in_a_row_up_to_the_window() -> None:
    policy, now, pauses = limiter(), 0.0, []
    for _ in range(6):
        pauses.append(pause_of(policy, now, 5.0))
        now += pauses[-1]
    assert pauses == [5, 10, 20, 40, 60, 60]
    policy.succeeded(now, sent=now)
    assert pause_of(policy, now, 5.0) == 5


@pytest.mark.parametrize(("window", "longest"), [(60.0, 3600.0), (7200.0, 7200.0)])
@pytest.mark.parametrize("asked", [1e5, 1e12, 1e300])
def test_no_pause_is_longer_than_an_hour_or_the_window(window: float, longest: float, asked: float) -> None:
    policy, now = AimdLimiter(100, window), 0.0
    for _ in range(12):
        pause = pause_of(policy, now, asked)
        assert 120.0 <= pause <= longest
        now += pause
    assert pause == longest


def test_a_wait_of_up_to_the_longest_pause_is_kept_in_full() -> None:
    assert pause_of(limiter(), 0.0, 3600.0) == 3600.0
    assert pause_of(limiter(), 0.0, 1800.0) == 1800.0


def test_after_an_implausible_wait_one_request_probes() -> None:
    policy = warm(limiter())
    send(policy, 0.0)
    policy.refused(0.0, sent=0.0, asked=1e9, chance=0.0)
    waiters = [Turn() for _ in range(5)]
    assert min(policy.remaining(turn, 0.0) for turn in waiters) == 120.0
    assert [policy.remaining(turn, 120.0) == 0 for turn in waiters] == [True, False, False, False, False]
    assert policy.remaining(waiters[1], 120.0) > 60.0
    policy.succeeded(121.0, sent=120.0)
    assert policy.remaining(waiters[1], 121.0) < 60.0


def test_a_pause_of_many_windows_does_not_reduce_the_goodput_to_nothing() -> None:
    policy = warm(plain(), 0.0)
    law = Recorder()
    policy.law = law
    unused = Turn()
    assert policy.ask(unused, 1.9) == 0
    policy.refused(2.0, sent=2.0, asked=1800.0, chance=0.0)
    policy.succeeded(2.1, sent=1.9)  # It was in flight.
    policy.leave(unused, 2.1)
    policy.succeeded(1803.0, sent=1803.0)
    send(policy, 1804.0)
    policy.refused(1804.0, sent=1804.0, asked=1.0, chance=0.0)
    assert law.pasts[-1].seconds == pytest.approx(2.0)


def short_window() -> tuple[AimdLimiter, int]:
    """A limiter of 20 per second after its first request, and the ticket number of that request."""
    policy = AimdLimiter(20, 1.0)
    return policy, policy.take(0.0)


def test_in_a_short_window_only_the_refused_request_waits_as_long_as_asked() -> None:
    policy, number = short_window()
    policy.refused(0.1, sent=0.0, asked=1.0, chance=0.0, number=number)
    policy.succeeded(0.1, sent=0.0)
    refused, other = Turn(number=number), Turn()
    assert policy.remaining(refused, 0.1) == pytest.approx(1.0)
    assert policy.remaining(other, 0.1) < 0.5
    assert policy.remaining(refused, 1.1) == 0.0


def test_in_a_short_window_the_second_refusal_in_a_row_stops_the_others_too() -> None:
    policy, number = short_window()
    policy.refused(0.1, sent=0.0, asked=1.0, chance=0.0, number=number)
    policy.refused(1.0, sent=0.9, asked=1.0, chance=0.5, number=number)
    assert 0.5 <= policy.remaining(Turn(), 1.0) <= 1.0
    policy, number = short_window()
    policy.refused(0.1, sent=0.0, asked=1.0, chance=0.0, number=number)
    policy.succeeded(0.9, sent=0.8)
    policy.refused(1.0, sent=0.9, asked=1.0, chance=0.5, number=number)
    assert policy.remaining(Turn(), 1.0) < 0.5


def test_a_long_wait_stops_all_requests_in_a_short_window_as_well() -> None:
    policy, number = short_window()
    policy.refused(0.1, sent=0.0, asked=30.0, chance=0.0, number=number)
    assert policy.remaining(Turn(), 0.1) >= 30.0


def test_in_a_short_window_goodput_does_not_set_the_rate() -> None:
    past = Past(successes=1, seconds=100.0, held=1.0, cold=False)
    assert TunedLaw(20.0, 1.0).cut(10.0, past) > 8.0
    assert TunedLaw(20.0, 10.0).cut(10.0, past) < 1.0


def test_a_request_that_waits_out_its_refusal_in_a_short_window_goes_first() -> None:
    policy = AimdLimiter(20, 1.0)
    number = policy.take(0.0)
    while policy.take(0.0):
        pass
    policy.refused(0.1, sent=0.0, asked=1.0, chance=0.0, number=number)
    others = [Turn() for _ in range(100)]
    for turn in others:
        policy.remaining(turn, 0.1)
    refused = Turn(number=number)
    assert policy.remaining(refused, 1.2) < min(policy.remaining(turn, 1.2) for turn in others[-50:])


def test_abandoned_calls_leave_nothing_behind() -> None:
    policy = AimdLimiter(20, 1.0)
    for instant in range(1000):
        policy.refused(2.0 * instant, sent=2.0 * instant, asked=1.0, chance=0.0, number=10 * instant + 10)
    assert len(policy._holds) == 1
    policy.leave(Turn(number=10_000), 2000.0)
    assert not policy._holds


def test_calls_that_were_given_up_leave_nothing_behind_while_refusals_go_on() -> None:
    policy = AimdLimiter(20, 1)
    for number in range(1, 10_000):
        now = number / 2
        policy.refused(now, sent=now, asked=1.0, chance=0.0, number=number)
    assert len(policy._holds) < 200
    assert policy.remaining(Turn(number=number), now) == 1.0


def test_a_server_that_asks_for_more_than_the_window_gets_it_and_no_more() -> None:
    policy, now = limiter(), 0.0
    for _ in range(40):
        assert pause_of(policy, now, 100.0) == pytest.approx(100.0)
        now += 100.0


def test_a_refusal_of_an_old_request_counts_for_the_pause_but_not_for_the_row() -> None:
    policy = limiter()
    for _ in range(8):
        policy.refused(1.0, sent=0.5, asked=5.0, chance=0.0)
    assert policy._paused_until == 6.0
    policy.refused(3.0, sent=0.5, asked=5.0, chance=0.0)
    assert policy._paused_until == 8.0


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    policy = limiter()
    policy.refused(0.0, sent=-1.0, asked=20.0, chance=0.0)
    policy.refused(1.0, sent=-1.0, asked=2.0, chance=0.0)
    assert policy._paused_until == 20.0


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1000), st.integers(1, 10))
def test_the_jitter_of_a_pause_is_on_top_and_within_its_bounds(
    chance: float, asked: float, refusals: int
) -> None:
    policy = limiter()
    for number in range(1, refusals):
        now = float(number - refusals)
        policy.refused(now, sent=now, asked=0.0, chance=0.0)
    policy.refused(0.0, sent=0.0, asked=asked, chance=chance)
    without = max(asked, min(asked * 2 ** (refusals - 1), 60.0))
    jitter = policy._paused_until - without
    assert jitter == pytest.approx(chance * min(1 / policy.rate, asked / 2 + 1), abs=1e-9)
    assert jitter >= -1e-9


# Plain AIMD


def test_given_factors_mean_plain_aimd_from_the_whole_quota() -> None:
    policy = plain(penalty=0.4, recovery=0.1)
    assert policy.rate == QUOTA
    policy.refused(0.0, sent=0.0, asked=0.0, chance=0.0)
    assert policy.rate == pytest.approx(0.6 * QUOTA)
    hold_back(policy, 0.0)
    assert look(policy, 30.0) == pytest.approx(0.65 * QUOTA)
    assert look(policy, 60.0) == pytest.approx(0.7 * QUOTA)
    assert look(policy, 6000.0) == QUOTA


def test_one_factor_alone_implies_the_default_of_the_other() -> None:
    assert limiter(penalty_factor=0.4).law == PlainLaw(QUOTA, 60, 0.4, 0.05)
    assert limiter(recovery_factor=0.1).law == PlainLaw(QUOTA, 60, 0.3, 0.1)


def test_a_plain_cut_takes_its_share_whatever_the_goodput() -> None:
    law = PlainLaw(1.0, 60.0, 0.3, 0.05)
    pasts = Past(0, 120.0, 0.0, cold=True), Past(120, 120.0, 1.0, cold=False)
    assert [law.cut(0.5, past) for past in pasts] == pytest.approx([0.35, 0.35])


# Reports


def test_a_cut_is_reported_once_with_both_rates_and_the_reason() -> None:
    policy = plain()
    change = policy.refused(1.0, sent=0.5)
    assert change is not None
    assert (change.old, change.new) == pytest.approx((QUOTA, 0.7 * QUOTA))
    assert change.reason == "429 Too Many Requests"
    assert policy.refused(1.0, sent=0.5) is None


def test_growth_is_reported_when_it_reaches_a_tenth() -> None:
    policy = plain()
    policy.refused(0.0, sent=0.0, asked=0.0, chance=0.0)
    hold_back(policy, 0.0)
    look(policy, 60.0)
    assert policy.succeeded(60.0, sent=60.0) is None
    look(policy, 120.0)
    change = policy.succeeded(120.0, sent=120.0)
    assert change is not None
    assert (change.old, change.new) == pytest.approx((0.7 * QUOTA, 0.8 * QUOTA))
    assert policy.succeeded(120.0, sent=120.0) is None


@pytest.mark.parametrize("value", [0, -0.1, 1.1, math.nan, True, "0.5"])
@pytest.mark.parametrize("name", ["min_rate_floor", "penalty_factor", "recovery_factor"])
def test_an_invalid_share_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a number in \(0, 1\], not"):
        limiter(**{name: value})


def test_a_policy_says_what_it_is() -> None:
    assert repr(AimdLimiter(600, 60, penalty_factor=0.5)) == "AimdLimiter(600, 60, rate=10)"


# The layer


class Bench:
    """An adaptive layer, under retry if asked for, over a scripted wire that records when each request arrives."""

    def __init__(
        self, world: World, policy: AimdLimiter, answers: Sequence[int | httpx.Response], **options: Any
    ) -> None:
        self.world, self.policy = world, policy
        self.clock = FakeClock(options.get("start", 0.0))
        self.heard = Heard()
        self.sent: list[tuple[float, int]] = []
        self._answers = list(answers)
        self.wire = Wire(self._answer)
        layers = [adaptive(policy)]
        if options.get("retry"):
            layers.insert(0, retry(options["retry"]))
        stack = StackBuilder(layers, clock=self.clock, listener=self.heard, random=lambda: 0.0)
        self.transport = world.build(stack, self.wire)

    def _answer(self, request: httpx.Request) -> int | httpx.Response:
        self.sent.append((self.clock.monotonic(), int(request.url.path[1:] or 0)))
        return self._answers.pop(0) if self._answers else 200

    async def send(self, number: int = 0, method: str = "POST", **options: Any) -> httpx.Response:
        extensions = {"stkai": RequestOptions(**options)} if options else {}
        request = httpx.Request(method, f"{URL}{number}", extensions=extensions)
        return await self.world.send(self.transport, request)


def refusal(seconds: str | None = None) -> httpx.Response:
    return httpx.Response(429, headers={} if seconds is None else {"Retry-After": seconds})


async def test_a_refusal_is_a_response_and_holds_back_the_next_request(world: World) -> None:
    bench = Bench(world, limiter(), [refusal("7")])
    assert (await bench.send()).status_code == 429
    response = await bench.send()
    assert [instant for instant, _ in bench.sent] == [0, 7.0]
    assert response.extensions["stkai"].queued == 7.0


async def test_a_date_in_retry_after_is_understood(world: World) -> None:
    headers = {"Retry-After": "Tue, 01 Jan 2030 00:00:30 GMT", "Date": "Tue, 01 Jan 2030 00:00:10 GMT"}
    bench = Bench(world, limiter(), [httpx.Response(429, headers=headers)])
    await bench.send()
    await bench.send()
    assert bench.sent[1][0] == 20.0


async def test_the_listener_hears_of_cuts_and_waits(world: World) -> None:
    bench = Bench(world, plain(), [refusal("7")])
    await bench.send()
    await bench.send()
    cut = RateChanged(call=CALL, old=QUOTA, new=QUOTA * (1 - 0.3), reason="429 Too Many Requests")
    assert bench.heard.of(RateChanged) == [cut]
    assert sum(event.seconds for event in bench.heard.of(Waited)) == 7.0


async def test_the_listener_hears_of_growth(world: World) -> None:
    bench = Bench(world, AimdLimiter(60, 60), [])
    for _ in range(30):
        await bench.send()
    changes = bench.heard.of(RateChanged)
    assert changes
    assert all(event.new > 1.1 * event.old and event.reason == "no refusal since" for event in changes)
    assert [event.old for event in changes[1:]] == [event.new for event in changes[:-1]]
    assert bench.policy.rate > 0.5


async def test_a_429_tells_retry_that_the_wait_is_kept_and_another_answer_does_not(world: World) -> None:
    bench = Bench(world, plain(), [refusal("3"), 503, 200], retry=RetryPolicy(initial_delay=0.5))
    response = await bench.send()
    assert response.status_code == 200
    record = response.extensions["stkai"]
    assert record.attempts == 3
    assert record.queued == pytest.approx(3.0)
    assert record.backed_off == pytest.approx(1.0)
    assert bench.wire.open == 1


@pytest.mark.parametrize("status", [401, 403, 407, 408, 500, 503, 529])
async def test_an_answer_that_says_nothing_about_the_quota_ends_no_back_off(
    world: World, status: int
) -> None:
    policy = plain()
    bench = Bench(world, policy, [refusal("5"), status, refusal("5")])
    for _ in range(3):
        await bench.send()
    assert policy.rate == pytest.approx(0.7 * QUOTA, rel=0.01)
    assert policy._paused_until == pytest.approx(bench.sent[2][0] + 10.0)


@pytest.mark.parametrize("status", [200, 302, 400, 404, 422])
async def test_an_answer_to_the_request_itself_was_accepted_by_the_quota(world: World, status: int) -> None:
    bench = Bench(world, plain(), [refusal("1"), status, refusal("1"), refusal("1")])
    for expected in (0.7, 0.7, 0.49, 0.49):
        await bench.send()
        assert bench.policy.rate == pytest.approx(expected * QUOTA, rel=0.01)


async def test_a_get_needs_no_permit_and_teaches_nothing(world: World) -> None:
    bench = Bench(world, plain(), [refusal("30"), refusal("30")])
    for _ in range(2):
        assert (await bench.send(method="GET")).status_code == 429
    assert bench.policy.rate == QUOTA
    await bench.send()
    assert [instant for instant, _ in bench.sent] == [0, 0, 0]


async def test_a_pause_longer_than_the_limit_is_refused_at_once(world: World) -> None:
    bench = Bench(world, limiter(max_wait_time=10.0), [refusal("50")])
    await bench.send()
    with pytest.raises(TokenAcquisitionTimeoutError) as caught:
        await bench.send()
    error = caught.value
    assert (error.waited, error.max_wait_time, error.required, error.retry_after) == (0, 10, 50, 40)
    assert bench.heard.of(Rejected) == [Rejected(call=CALL, layer="adaptive", wait=50.0, limit=10.0)]
    assert bench.policy.waiting == 0
    assert bench.clock.sleeps == []
    await bench.send(max_wait_time=None)
    assert bench.sent[-1][0] == 50.0


@pytest.mark.parametrize("start", [0.0, 0.1, 1000.1, 123456.7])
async def test_a_pause_as_long_as_the_limit_is_waited_for(world: World, start: float) -> None:
    bench = Bench(world, limiter(max_wait_time=33.3), [refusal("33.3")], start=start)
    await bench.send()
    await bench.send()
    assert bench.sent[1][0] == pytest.approx(start + 33.3)


async def test_the_deadline_of_the_call_bounds_a_pause(world: World) -> None:
    bench = Bench(world, limiter(max_wait_time=None), [refusal("50")])
    await bench.send()
    with pytest.raises(
        DeadlineExceededError, match="a permit takes 50 s, and the call's deadline leaves 20 s"
    ):
        await bench.send(deadline=20.0)


async def test_a_wire_error_passes_through_and_teaches_nothing(world: World) -> None:
    policy = plain()
    wire = Wire(httpx.ReadError("reset"))
    transport = world.layer(adaptive(policy), wire, context=Context(clock=FakeClock()))
    with pytest.raises(httpx.ReadError):
        await world.send(transport, httpx.Request("POST", URL))
    assert policy.rate == QUOTA
    assert policy.refused(0.0, sent=0.0) is not None
    assert policy.waiting == 0


@pytest.fixture(params=["asyncio", "trio"])
def event_loop(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_a_refused_call_comes_back_at_the_head_of_the_queue(event_loop: World) -> None:
    policy = plain(max_wait_time=None)
    bench = Bench(event_loop, policy, [refusal("10")], retry=RetryPolicy())
    while policy.take(0.0):
        pass

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(bench.send, number)
                while policy.waiting <= number:
                    await anyio.lowlevel.checkpoint()

    event_loop.run(main())
    assert [number for _, number in bench.sent] == [0, 0, 1, 2, 3, 4]
    refused, again = bench.sent[0][0], bench.sent[1][0]
    assert again >= refused + 10.0


def test_eight_refusals_at_once_cut_once_and_come_back_in_their_order(event_loop: World) -> None:
    policy, clock = plain(), FakeClock()
    heard = Heard()
    sent: list[tuple[float, int]] = []

    async def answer(request: httpx.Request) -> int | httpx.Response:
        sent.append((clock.monotonic(), int(request.url.path[1:])))
        if len(sent) > 8:
            return 200
        while len(sent) < 8:
            await anyio.lowlevel.checkpoint()
        return refusal("10")

    stack = StackBuilder(
        (retry(RetryPolicy()), adaptive(policy)), clock=clock, listener=heard, random=lambda: 0.0
    )
    transport = event_loop.build(stack, Wire(answer))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(event_loop.send, transport, httpx.Request("POST", f"{URL}{number}"))
                while len(sent) <= number:
                    await anyio.lowlevel.checkpoint()

    event_loop.run(main())
    assert len(heard.of(RateChanged)) == 1
    assert [number for _, number in sorted(sent[8:])] == list(range(8))
    assert sent[8][0] == pytest.approx(10.0)
    assert all(instant >= 10.0 for instant, _ in sent[8:])


def test_a_cancelled_waiter_gives_its_permit_back(event_loop: World) -> None:
    policy = limiter(max_wait_time=None)
    bench = Bench(event_loop, policy, [refusal("10")])

    async def main() -> None:
        await bench.send(0)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.send, 1)
            await bench.clock.asleep(4.0)
            group.cancel_scope.cancel()
        assert policy.waiting == 0
        await bench.send(2)

    event_loop.run(main())
    assert bench.sent == [(0, 0), (10.0, 2)]


async def test_a_ticket_of_one_limiter_is_no_place_in_the_queue_of_another(world: World) -> None:
    clock, inner = FakeClock(start=100.0), TokenBucket(1, 5.0)
    for number in range(21):
        assert inner.take(5.0 * number)
    assert inner.remaining(Turn(), 100.0) == 5.0
    transport = world.build(StackBuilder((adaptive(plain()), token_bucket(inner)), clock=clock), Wire(200))
    request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(max_wait_time=1.0)})
    with pytest.raises(TokenAcquisitionTimeoutError) as caught:
        await world.send(transport, request)
    assert caught.value.required == 10.0


def test_sync_and_async_stacks_share_one_policy() -> None:
    policy, clock = plain(), FakeClock()
    layer, context = adaptive(policy), Context(clock=clock)
    sync, trio_world = World("sync"), World("trio")
    refused = sync.run(
        sync.send(sync.layer(layer, Wire(refusal("9")), context=context), httpx.Request("POST", URL))
    )
    assert refused.status_code == 429
    transport = trio_world.layer(layer, Wire(200), context=context)
    trio_world.run(trio_world.send(transport, httpx.Request("POST", URL)))
    assert clock.monotonic() >= 9.0
