"""Pairs of requests close together: what their answers say of a server, and how far apart it wants requests."""

import pytest

from stkai.transports import Turn
from stkai.transports._limits.pace.pairs import PairTest, Spacing
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.silent_rate import SilentServerRate
from stkai.transports._limits.pace.start import ColdStart, Found

from ....support.sender import Sender, answered, silent


@pytest.mark.parametrize(("gap", "pairs"), [(2.0, 3), (2.1, 6)])
def test_a_slow_sender_needs_twice_as_many_pairs_for_the_verdict(gap: float, pairs: int) -> None:
    assert pairs_until_strict(seconds=100.0, gap=gap, accepted=100) == pairs


@pytest.mark.parametrize(("seconds", "pairs"), [(1.4, 3), (20.0, 6)])
def test_one_whose_requests_are_seldom_accepted_needs_twice_as_many_pairs_for_the_verdict(
    seconds: float, pairs: int
) -> None:
    assert pairs_until_strict(seconds=seconds, gap=0.4, accepted=0) == pairs


def pairs_until_strict(*, seconds: float, gap: float, accepted: int) -> int:
    """How many pairs it takes, one every so many seconds, of which the server accepts so many requests besides."""
    test, now, tried = PairTest(KnownQuota(None, None), is_bursty=False), 0.0, 0
    while not test.is_strict:
        for _ in range(accepted):
            test.accepted()
        test.take(now, gap, True)
        test.rest(now)
        try_pair(test, now, gap, True, False)
        now, tried = now + seconds, tried + 1
    return tried


def test_one_whose_requests_are_seldom_accepted_rests_before_its_first_pair() -> None:
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    assert test.take(0.0, 0.4, False) is not None
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    test.take(0.0, 0.4, True)
    assert test.take(2.0, 0.4, False) is None
    assert test.rest(2.0) == pytest.approx(5 * 0.4)
    assert test.take(4.0, 0.4, False) is not None


def test_a_program_that_was_idle_is_not_taken_for_one_whose_requests_are_seldom_accepted() -> None:
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    for now in (0.0, 0.4, 0.8, 1.2):
        test.take(now, 0.4, True)
        test.accepted()
    assert test.take(3600.0, 0.4, False) is not None


def test_a_verdict_stays_while_other_senders_take_nearly_everything() -> None:
    test, now = PairTest(KnownQuota(None, None), is_bursty=False), 0.0
    for _ in range(3):
        try_pair(test, now, 0.4, True, False)
        now += 1.0
    assert test.is_strict
    test.take(now + 100.0, 0.4, True)
    assert test.is_strict


def test_after_an_outage_it_is_measured_anew_how_often_requests_are_accepted() -> None:
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    test.take(0.0, 0.4, True)
    test.restart()
    assert test.take(300.0, 0.4, False) is not None


def try_pair(test: PairTest, now: float, gap: float, *accepted: bool) -> float:
    """Send a pair and let the server answer it; returns the seconds between its requests."""
    first = test.take(now, gap, False)
    assert first is not None
    seconds = test.second_due - now
    second = test.take(now + seconds, gap, False)
    assert second is not None
    assert [first.number, second.number] == [0, 1]
    for paired, outcome in zip((first, second), accepted, strict=True):
        if outcome:
            test.accepted()
        test.observe(paired, now + seconds, accepted=outcome, starting=False)
    return seconds


@pytest.mark.parametrize("spacing", [0.012, 0.05, 0.3])
@pytest.mark.parametrize("gap", [0.4, 1.0, 8.0])
def test_pairs_find_the_spacing_of_a_server_within_half_of_it(spacing: float, gap: float) -> None:
    test, now = PairTest(KnownQuota(None, None), is_bursty=False), 0.0
    while not test.is_strict:
        test.take(now, gap, True)
        test.rest(now)
        try_pair(test, now, gap, True, False)
        now += 20.0
    assert test.is_strict
    pairs = 0
    while test.is_searching:
        now, pairs = now + 10.0, pairs + 1
        test.rest(now)
        seconds = test.distance
        assert try_pair(test, now, gap, True, seconds >= spacing) == pytest.approx(seconds)
    assert spacing <= test.spacing <= 1.5 * spacing
    assert pairs <= 16
    assert test.is_clear


def test_two_that_ask_at_one_instant_go_as_far_apart_as_the_search_for_the_spacing_wants() -> None:
    one, mode = Sender(), silent(2.0, is_bursty=False)
    mode._test._failed, mode._test._gap, mode._test._at = 3, 0.5, 1000.0
    one.source.mode = mode
    one.look(100.0)
    now = 100.5
    distance = mode._test.distance
    assert 0.01 < distance < 0.1
    first, second = Turn(), Turn()
    assert one.wait(now, first) == 0.0
    assert one.wait(now, second) == pytest.approx(distance)
    assert one.wait(now + distance + 1e-6, second) == 0.0
    assert [turn.noted(mode).number for turn in (first, second)] == [0, 1]


def test_each_adaptive_limiter_of_a_list_has_its_own_pairs() -> None:
    modes = [silent(10.0, is_bursty=False) for _ in range(2)]
    for now in (101.0, 102.0, 103.0):
        turns = [Turn(), Turn()]
        for turn in turns:
            for mode in modes:
                mode.take(turn, now)
        for mode in modes:
            mode.accepted(turns[0], answered(200, now + 0.01, sent=now))
            mode.refused(turns[1], answered(429, now + 0.01, sent=now))
    assert [mode.finding for mode in modes] == ["collisions, rate kept"] * 2


def test_a_pair_that_is_accepted_at_a_shorter_distance_corrects_the_spacing_that_collisions_made_too_long() -> (
    None
):
    spacing = Spacing()
    spacing.refused_after(0.2, 0.5)
    spacing.refused_after(0.2, 0.5)
    spacing.refused_after(0.4, 0.5)
    spacing.refused_after(0.4, 0.5)
    assert spacing.is_found(0.5)
    assert spacing.seconds(0.5) == 0.5
    spacing.accepted_after(0.15, 0.5)
    assert not spacing.is_found(0.5)
    assert spacing.middle(0.5) < 0.15


def test_a_quota_that_is_given_says_the_spacing_also_after_it_has_changed() -> None:
    quota = KnownQuota(20.0, 1.0, 0.0)
    mode = SilentServerRate(quota, Found(8.0, False, 50.0, 0.0, False), 100.0)
    mode._test._failed, mode._test._gap = 3, 0.1
    assert mode._test.is_strict
    assert not mode._test.is_searching
    before = mode.law.patience(8.0)
    quota.update(10.0, 1.0)
    mode.update(0.5)
    assert mode.law.patience(8.0) == pytest.approx(4 * before)


def test_two_requests_that_were_nearly_at_one_instant_show_that_there_is_no_spacing() -> None:
    test, now = PairTest(KnownQuota(None, None), is_bursty=False), 0.0
    for _ in range(3):
        try_pair(test, now, 0.4, True, False)
        now += 1.0
    while not test.is_bursty:
        now += 10.0
        test.rest(now)
        try_pair(test, now, 0.4, True, True)
    assert not test.is_strict


@pytest.mark.parametrize(("seconds", "is_bursty"), [(0.006, True), (0.009, False)])
def test_in_a_search_for_the_spacing_nine_milliseconds_are_no_instant(
    seconds: float, is_bursty: bool
) -> None:
    test, now = PairTest(KnownQuota(None, None), is_bursty=False), 0.0
    for _ in range(3):
        try_pair(test, now, 0.04, True, False)
        now += 0.2
    assert test.distance > 0
    first, second = test.take(now, 0.04, False), test.take(now + seconds, 0.04, False)
    assert first is not None
    assert second is not None
    test.observe(first, now + 0.1, accepted=True, starting=False)
    test.observe(second, now + 0.1, accepted=True, starting=False)
    assert test.is_bursty == is_bursty


@pytest.mark.parametrize(
    ("numbers", "late", "is_bursty"),
    [
        ((None, None), 0.015, True),
        ((None, None), 0.025, False),
        ((20.0, 1.0), 0.015, True),
        ((100.0, 1.0), 0.006, True),
        ((100.0, 1.0), 0.009, False),
        ((6000.0, 60.0), 0.009, False),
        ((1e6, 1.0), 0.006, True),
    ],
)
def test_threads_that_are_a_little_late_were_at_one_instant_unless_the_quota_may_allow_both(
    numbers: tuple[float | None, float | None], late: float, is_bursty: bool
) -> None:
    quota = KnownQuota(*numbers)
    start, test = ColdStart(quota), PairTest(quota, is_bursty=False)
    start.note(1.0)
    start.note(1.0 + late)
    first, second = test.take(1.0, 0.5, False), test.take(1.0 + late, 0.5, False)
    assert first is not None
    assert second is not None
    test.observe(first, 1.1, accepted=True, starting=True)
    test.observe(second, 1.1, accepted=True, starting=True)
    assert [start.is_bursty, test.is_bursty] == [is_bursty, is_bursty]


def test_a_quarter_of_the_shortest_time_that_was_accepted_counts_as_the_spacing_while_it_is_sought() -> None:
    spacing = Spacing()
    assert spacing.seconds(0.9) == pytest.approx(0.225)
    spacing.accepted_after(0.6, 0.9)
    assert spacing.seconds(0.9) == pytest.approx(0.15)


def test_a_late_answer_to_a_forgotten_pair_is_not_one_to_the_next_pair() -> None:
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    old = test.take(1.0, 0.4, False)
    assert old is not None
    first, second = test.take(2.0, 0.4, False), test.take(2.0, 0.4, False)  # Too late to be its second.
    assert first is not None
    assert second is not None
    assert test.observe(first, 3.1, accepted=False, starting=False) == 1
    assert test.observe(old, 3.2, accepted=True, starting=False) is None
    test.drop(old)
    test.observe(second, 3.3, accepted=True, starting=False)
    assert not test.is_bursty
