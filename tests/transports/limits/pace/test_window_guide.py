"""The guide for a fixed window: what it believes, and the rate that it sets."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai.transports._limits.pace.headers import Reading
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.window_guide import GroupWindow, WindowGuide

from ....support.sender import answered

LIMIT, WINDOW = 100, 60.0
QUOTA = LIMIT / WINDOW
FLOOR = 0.5 / WINDOW


def reading(
    now: float, remaining: float, *, end: float = WINDOW, limit: float = LIMIT, name: str = ""
) -> Reading:
    """A reading at `now` of the window that ends at `end`."""
    return Reading(name, limit, remaining, max(0.0, end - now), WINDOW)


def tell(
    guide: WindowGuide,
    now: float,
    remaining: float,
    *,
    refused: bool = False,
    rate: float = 0.5,
    **options: Any,
) -> bool:
    return guide.observe(reading(now, remaining, **options), now, now, rate, refused=refused)


def believing(rate: float = 0.5) -> WindowGuide:
    """A guide that believes in a window, at second 6, when the requests used are exactly on schedule."""
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    tell(guide, 1.0, on_line(1.0), rate=rate)
    tell(guide, 6.0, on_line(6.0), rate=rate)
    assert guide.in_force
    return guide


def on_line(now: float, factor: float = 1.0, *, end: float = WINDOW) -> float:
    """The remaining requests at which the pace is `factor` times the base."""
    return 1 + math.cbrt(factor) * LIMIT * (end - now) / WINDOW


# What is believed


def test_nothing_is_followed_before_the_first_reading() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    guide.advance(1e9)
    assert (guide.listening, guide.in_force) == (True, False)


def test_a_reset_is_believed_once_it_has_stood_still_for_five_seconds() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    believed = []
    for now in (10.0, 11.3, 14.9, 15.0, 16.0):
        tell(guide, now, 80)
        believed.append(guide.in_force)
    assert believed == [False, False, False, True, True]


def test_a_reset_that_is_a_little_off_stands_still_and_is_taken_for_the_middle() -> None:
    guide = believing()
    for now, off in ((10.0, 0.0), (12.0, 1.5), (14.0, -1.1), (16.0, 1.5)):
        tell(guide, now, on_line(now, end=60.2), end=60 + off)
        assert guide.in_force
    assert guide.rate == pytest.approx(0.5)
    tell(guide, 50.0, 0)
    assert guide.paused_until == 61.5


@pytest.mark.no_cover
@pytest.mark.parametrize("rounded", [math.floor, round, math.ceil])
def test_a_reset_in_whole_seconds_is_believed_window_after_window(rounded: Callable[[float], int]) -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    for tenth in range(3000):
        now = tenth / 10
        guide.observe(Reading("", LIMIT, 50, rounded(WINDOW - now % WINDOW), WINDOW), now + 0.1, now, 0.5)
        assert guide.in_force == (now >= 5)


@pytest.mark.parametrize(
    "reset_in",
    [
        lambda now: 1.0,  # the time until one more request, at a server that is in full use
        lambda now: 20.0 - now % 3,  # until the bucket is full
        lambda now: 60.0,  # the length of a sliding window
        lambda now: 60.0 - now / 2,  # a window in slow motion
        lambda now: 3600.0,  # another window
    ],
)
def test_a_reset_with_another_meaning_is_never_believed_and_soon_ignored(
    reset_in: Callable[[float], float],
) -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    for tenth in range(600):
        now = tenth / 10
        guide.observe(Reading("", LIMIT, 50, reset_in(now), WINDOW), now, now, 0.5)
        assert not guide.in_force
    assert not guide.listening


def test_the_oldest_request_of_a_sliding_window_is_found_out_when_it_expires() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    for now in range(120):
        # A request every 2 s: from second 60 on, a different one expires next each time.
        tell(guide, float(now), 70, end=60.0 + max(0, now - 59) // 2 * 2)
    assert not guide.listening


def test_a_window_that_repeats_is_believed_from_one_to_the_next() -> None:
    guide = believing()
    for now in range(7, 400):
        tell(guide, now + 0.3, on_line(now % 60), end=(now // 60 + 1) * WINDOW)
        assert guide.in_force


@pytest.mark.parametrize("gap", [0.0, 2.0, 30.0])
def test_a_window_may_start_with_its_first_request_however_late_that_comes(gap: float) -> None:
    guide = believing()
    tell(guide, 59.0, 5)
    tell(guide, 60 + gap, 99, end=120 + gap)
    tell(guide, 70 + gap, 90, end=120 + gap)
    assert guide.in_force


def test_a_new_window_may_be_announced_a_second_before_the_old_one_was_to_end() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    for now in (10.0, 20.0, 59.0):
        tell(guide, now, 50, end=61.0)
    tell(guide, 60.1, 99, end=120.0)
    tell(guide, 70.0, 90, end=120.0)
    assert guide.in_force


def test_an_answer_from_the_window_before_teaches_nothing() -> None:
    guide = believing()
    tell(guide, 59.0, 5)
    tell(guide, 60.2, 0)  # at once after the end
    tell(guide, 61.0, 99, end=120.0)
    base = guide.base
    tell(guide, 61.2, 0)  # when the next has been seen
    assert guide.in_force
    assert guide.paused_until == -math.inf
    assert guide.rate == pytest.approx(base * min(1.5, 98 / 100 * 60 / 59) ** 3, rel=0.05)


def test_one_contradiction_is_forgiven_but_the_reset_must_stand_still_again() -> None:
    guide = believing()
    tell(guide, 20.0, 60, end=80.0)
    assert guide.listening
    assert not guide.in_force
    tell(guide, 25.0, 55, end=80.0)
    assert guide.in_force


def test_two_contradictions_end_the_belief_for_good() -> None:
    guide = believing()
    tell(guide, 20.0, 60, end=80.0)
    tell(guide, 30.0, 60, end=90.0)
    assert not guide.listening
    for now in range(31, 90):
        assert not tell(guide, float(now), 0, end=90.0, refused=True)
    assert not guide.in_force


def test_a_first_window_that_is_contradicted_leaves_the_rate_as_it_was_before() -> None:
    guide = believing(rate=1.5)
    tell(guide, 30.0, 1)
    tell(guide, 61.5, on_line(61.5, end=90), end=90)
    assert (guide.in_force, guide.base) == (False, 1.5)


@pytest.mark.parametrize(("saved", "kept"), [(1.5, 1.5), (math.inf, QUOTA)])
def test_a_group_also_returns_to_the_rate_before_a_window_but_to_no_rate_above_the_quota(
    saved: float, kept: float
) -> None:
    one = believing(rate=saved)
    tell(one, 30.0, 1)
    other = WindowGuide(KnownQuota(LIMIT, WINDOW))
    other.resume(one.state(31.0), 31.0)
    tell(other, 61.5, on_line(61.5, end=90), end=90)
    assert not other.in_force
    assert other.base == pytest.approx(kept)


def test_a_second_window_that_is_contradicted_leaves_what_the_first_has_taught() -> None:
    guide = believing(rate=1.5)
    tell(guide, 30.0, 1)
    tell(guide, 61.0, on_line(61.0, end=120), end=120)
    learned = guide.base
    tell(guide, 90.0, on_line(90.0, end=150), end=150)
    assert (guide.in_force, guide.base) == (False, learned)
    assert learned < 1.0


def test_slow_answers_end_the_belief_for_good() -> None:
    guide = believing(rate=0.5)
    rate = guide.rate
    guide.observe(reading(20.0, 0), 20.0, 17.9, 0.5)
    assert (guide.in_force, guide.rate) == (True, rate)
    guide.observe(reading(30.0, 0), 30.0, 27.9, 0.5)
    assert (guide.listening, guide.in_force) == (False, False)


@pytest.mark.parametrize("other", [None, reading(20.0, 40), Reading("tokens", LIMIT, 0, 30, WINDOW)])
def test_refusals_that_the_window_does_not_explain_end_the_belief_for_good(other: Reading | None) -> None:
    guide = believing()
    assert not guide.observe(other, 20.0, 20.0, 0.5, refused=True)
    assert guide.in_force
    assert not guide.observe(other, 20.5, 20.5, 0.5, refused=True)
    assert not guide.listening


def test_a_refusal_with_no_requests_left_is_explained() -> None:
    guide = believing()
    for _ in range(5):
        assert tell(guide, 50.0, 0, refused=True)
    assert guide.in_force


def test_before_it_believes_it_explains_nothing_and_counts_no_contradiction() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    for now in (1.0, 1.2, 1.4):
        assert not tell(guide, now, 50, refused=True)
        assert not tell(guide, now, 0, refused=True)
        assert not guide.observe(None, now, now, 0.5, refused=True)
    tell(guide, 6.0, 50)
    assert guide.in_force


def test_after_three_windows_of_silence_it_has_to_be_convinced_again() -> None:
    guide = believing()
    guide.advance(6 + 3 * WINDOW)
    assert guide.in_force
    guide.advance(6.1 + 3 * WINDOW)
    assert (guide.listening, guide.in_force) == (True, False)
    tell(guide, 200.0, 50, end=240.0)
    assert not guide.in_force
    tell(guide, 205.0, 50, end=240.0)
    assert guide.in_force


# Several quotas


def test_another_quota_is_followed_if_it_is_tighter() -> None:
    guide = believing()
    tell(guide, 7.0, 1, limit=200, name="loose")
    assert guide.in_force
    tell(guide, 8.0, 20, limit=50, name="tight")
    assert not guide.in_force
    for now in (9.0, 13.0):
        tell(guide, now, 0)  # the one from before
        tell(guide, now, 20, limit=50, name="tight")
    assert guide.in_force
    assert guide.paused_until == -math.inf


def test_a_quota_whose_window_changes_is_a_new_quota() -> None:
    guide = believing()
    guide.observe(Reading("", LIMIT, 50, 7.0, 10.0), 7.0, 7.0, 0.5)
    assert (guide.listening, guide.in_force) == (True, False)


# The pace


def test_it_begins_with_the_rate_of_the_sender_within_its_bounds() -> None:
    assert believing(rate=0.5).base == 0.5
    assert believing(rate=100.0).base == QUOTA
    assert believing(rate=0.0).base == FLOOR


def test_the_pace_is_the_cube_of_how_far_the_requests_are_ahead_of_the_time() -> None:
    guide = believing()
    for factor in (1.0, 0.5, 0.125, 2.0):
        tell(guide, 30.0, on_line(30.0, factor))
        assert guide.rate == pytest.approx(0.5 * factor)
    tell(guide, 30.0, 100)
    assert guide.rate == pytest.approx(min(QUOTA, 0.5 * 1.5**3))


def test_the_last_request_is_left_to_others_but_the_pace_has_a_floor() -> None:
    guide = believing()
    tell(guide, 50.0, 1)
    assert guide.rate == FLOOR
    assert guide.paused_until == -math.inf
    tell(guide, 50.5, 0)
    assert guide.rate == FLOOR
    assert guide.paused_until == 60.0


def test_a_smaller_limit_slows_down_and_a_larger_one_speeds_up_within_the_window() -> None:
    guide = believing()
    tell(guide, 30.0, 25, limit=50)
    assert guide.rate == pytest.approx(0.5 * (24 / 25) ** 3)
    tell(guide, 30.0, 150, limit=200)
    assert guide.rate == pytest.approx(0.5 * (149 / 100) ** 3)


def test_a_new_window_begins_at_the_base_before_its_first_answer() -> None:
    guide = believing()
    tell(guide, 50.0, 1)
    guide.advance(59.9)
    assert guide.rate == FLOOR
    guide.advance(60.0)
    assert guide.rate == guide.base > FLOOR


@pytest.mark.parametrize(("factor", "moves"), [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5), (0.1, 0.3)])
def test_at_the_end_of_a_window_the_base_moves_by_the_mean_and_grows_a_little(
    factor: float, moves: float
) -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    tell(guide, 0.0, 100)
    for now in range(5, 60):
        tell(guide, float(now), on_line(now, factor), rate=0.2)
    guide.advance(61.0)
    # Nearly a full 0.8, since there were many answers.
    assert guide.base == pytest.approx(0.2 * moves**0.8 + 0.02 * QUOTA, rel=0.02)


def test_a_single_answer_moves_the_base_half_as_far() -> None:
    guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
    tell(guide, 0.0, 100)
    tell(guide, 30.0, on_line(30.0, 0.5))
    guide.advance(61.0)
    assert guide.base == pytest.approx(0.5 * 0.5**0.4 + 0.02 * QUOTA)


def test_a_window_without_an_answer_leaves_the_base_unchanged() -> None:
    guide = believing()
    guide.advance(61.0)
    base = guide.base
    guide.advance(170.0)
    tell(guide, 185.0, 90, end=240.0)
    assert guide.base == base


def test_answers_late_in_a_window_count_for_less() -> None:
    def base(factors: list[float]) -> float:
        guide = believing()
        for now, factor in zip((20.0, 40.0, 59.0), factors, strict=True):
            tell(guide, now, on_line(now, factor))
        guide.advance(61.0)
        return guide.base

    assert base([0.5, 1.0, 1.0]) < base([1.0, 0.5, 1.0]) < base([1.0, 1.0, 0.5])


# Permits


def test_permits_are_released_at_the_pace_of_the_window_and_then_at_the_base() -> None:
    guide = believing()
    tell(guide, 50.0, on_line(50.0, 0.5))
    rate = guide.rate
    assert guide.release(50.0, 52.0) == pytest.approx(2 * rate)
    assert guide.release(52.0, 52.0) == 0.0
    released = guide.release(52.0, 64.0)
    assert guide.rate == guide.base
    assert released == pytest.approx(8 * rate + 4 * guide.base)
    assert guide.release(64.0, 66.0) == pytest.approx(2 * guide.base)


def test_the_time_for_permits_takes_the_end_of_the_window_into_account() -> None:
    guide = believing()
    tell(guide, 50.0, 1)
    assert guide.time_for(FLOOR * 4, 50.0) == pytest.approx(4.0)
    assert guide.time_for(FLOOR * 10 + 0.5 * 3, 50.0) == pytest.approx(13.0)
    assert guide.time_for(0.5 * 3, 60.0) == pytest.approx(3.0)
    guide.advance(61.0)
    assert guide.time_for(guide.base * 100, 61.0) == pytest.approx(100.0)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 90),
            st.floats(0, 5),
            st.booleans(),
            st.sampled_from(["", "a"]),
            st.integers(0, 100),
            st.floats(0, 100) | st.none(),
            st.sampled_from([1e-3, 6.0, 60.0, 1e9]),
        ),
        max_size=40,
    )
)
def test_whatever_the_headers_say_the_pace_stays_within_its_bounds(
    answers: list[tuple[float, float, bool, str, int, float | None, float]],
) -> None:
    guide, now = WindowGuide(KnownQuota(LIMIT, WINDOW)), 0.0
    for seconds, under_way, refused, name, remaining, reset, window in answers:
        assert 0 <= guide.release(now, now + seconds) <= QUOTA * seconds * 1.001 + 1e-9
        now += seconds
        said = Reading(name, 100, remaining, window - now % window if reset is None else reset, window)
        explained = guide.observe(said, now, now - under_way, 0.5, refused=refused)
        assert FLOOR <= guide.rate <= QUOTA
        assert guide.time_for(1.0, now) > 0
        assert not explained or (refused and remaining == 0 and guide.in_force)
        assert guide.listening or not guide.in_force


def test_a_refusal_that_arrives_while_the_state_is_written_is_still_reported() -> None:
    state, known = believing().state(6.0), GroupWindow(KnownQuota(LIMIT, WINDOW))
    known.move(state, 6.0, 6.5, 0.5, 1)
    refusal = answered(429, 6.6)
    assert refusal.response is not None
    known.note(refusal.response, refusal)
    known.reported()
    guide = known.move(state, 6.0, 7.0, 0.5, 1)
    guide.observe(None, 7.5, 7.5, 0.5, refused=True)
    assert not guide.listening  # Two refusals that it does not explain.
