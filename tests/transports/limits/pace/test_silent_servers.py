"""Servers that only refuse: what a refusal takes, and windows that they never mention."""

import math

import httpx
import pytest

from stkai.transports import Answer, Turn
from stkai.transports._limits.pace.pairs import PairTest
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.silent_rate import SilentServerRate
from stkai.transports._limits.pace.silent_servers import EqualRefusals, SilentWindow
from stkai.transports._limits.pace.start import Found

from ....support.gateways import FixedWindow, LeakyBucket, World, jain
from ....support.sender import Sender, date

# What a refusal takes


def equal_refusals(quota: KnownQuota, *, window: float = 0.0) -> EqualRefusals:
    found = SilentWindow(0.0, 0.0)
    found.seconds = window
    return EqualRefusals(quota, PairTest(KnownQuota(None, None), is_bursty=True), found)


def test_the_rate_of_a_huge_quota_stays_a_number() -> None:
    assert math.isfinite(equal_refusals(KnownQuota(1e9, 1.0)).grown(1e-3, 1.0))


def test_a_refusal_takes_less_from_a_sender_that_has_most_of_a_known_quota() -> None:
    law = equal_refusals(KnownQuota(20, 1))
    for _ in range(9):
        law.count_cut()
    assert [round(1 - law.cut(rate) / rate, 4) for rate in (2.0, 10.0, 20.0)] == [0.1487, 0.1181, 0.0225]


@pytest.mark.parametrize("count", [8, 25, 100])
def test_in_a_window_a_rate_grows_by_eight_requests_per_window(count: int) -> None:
    law, rate = equal_refusals(KnownQuota(None, None), window=60.0), count / 60
    grown = law.grown(rate, 0.001) - rate
    assert grown * 60 / 0.001 == pytest.approx(8 / 60, rel=0.001)


def test_the_first_refusals_take_more_than_later_ones() -> None:
    law, taken = equal_refusals(KnownQuota(None, None)), []
    for _ in range(9):
        taken.append(round(1.0 - law.cut(1.0), 3))
        law.count_cut()
    assert taken == [0.5, 0.375, 0.3, 0.25, 0.214, 0.188, 0.167, 0.15, 0.15]


@pytest.mark.parametrize(("refused", "grows"), [(7, True), (8, False)])
def test_where_collisions_do_not_explain_the_refusals_a_rate_does_not_grow(refused: int, grows: bool) -> None:
    test = PairTest(KnownQuota(None, None), is_bursty=False)
    test._failed, test._gap = 3, 0.4
    law = EqualRefusals(KnownQuota(None, None), test, SilentWindow(0.0, 0.0))
    for number in range(10):
        law.note(2.0, refused=number < refused)
    assert test.is_strict
    assert (law.grown(2.0, 1.0) > 2.0) is grows


def test_a_slow_sender_remembers_its_refusals_for_longer() -> None:
    patience = []
    for rate in (5.0, 0.6, 0.1):
        law = equal_refusals(KnownQuota(None, None))
        for number in range(20):
            law.note(2.0, refused=number % 2 == 0)
        law.fade(rate, 60.0)
        patience.append(law.patience(1.0))
    assert patience == sorted(patience)
    assert patience[0] < patience[-1]


def refuses_at_first(quota: KnownQuota, refusals: int = 3) -> EqualRefusals:
    law = equal_refusals(quota)
    for _ in range(refusals):
        law.note(2.0, refused=True)
    return law


@pytest.mark.parametrize(
    ("rate", "numbers", "is_forgotten"),
    [(0.7, (None, None), True), (0.69, (None, None), False), (0.7, (100, 60), False)],
    ids=["", "a slow sender", "a known quota"],
)
def test_the_refusals_of_the_start_are_forgotten_after_a_clear_row(
    rate: float, numbers: tuple[int | None, int | None], is_forgotten: bool
) -> None:
    law = refuses_at_first(KnownQuota(*numbers))
    for _ in range(7):
        law.note(rate, refused=False)
        assert law._refused == 3
    law.note(rate, refused=False)
    assert (law._refused == 0) is is_forgotten


def test_refusals_are_forgotten_only_once() -> None:
    law = refuses_at_first(KnownQuota(None, None))
    for _ in range(8):
        law.note(2.0, refused=False)
    law.note(2.0, refused=True)
    for _ in range(20):
        law.note(2.0, refused=False)
    assert law._refused == 1


def test_a_request_of_a_pair_that_is_refused_ends_a_clear_row() -> None:
    silent = SilentServerRate(KnownQuota(None, None), Found(2.0, True, 30.0, -10.0, False), 0.0)
    pair = Turn(), Turn()
    for turn in pair:
        silent.take(turn, 1.0)
    for turn, status in zip(pair, (200, 429), strict=True):
        answer = Answer(1.0, 1.1, httpx.Response(status), None, date, 0.5)
        silent.law.row = 7
        (silent.accepted if status == 200 else silent.refused)(turn, answer)
    assert silent.law.row == 0


@pytest.mark.no_cover
def test_programs_that_use_up_a_short_window_at_once_soon_use_most_of_the_later_ones() -> None:
    used = []
    for seed in range(1, 7):
        world = World(FixedWindow(30, 3.0), seed=seed)
        for _ in range(4):
            world.add()
        world.run(40.0)
        used.append(sum(world.counts(10.0, 40.0)[0]) / 300)
    assert sum(used) / len(used) >= 0.75


# Windows


def outage(window: SilentWindow, began: float, ended: float) -> float:
    """The server refuses everything for a while, and accepts again."""
    window.refused(began)
    return window.accepts_again(ended, began)


def found(accepted: int = 25) -> SilentWindow:
    """A window of a minute that has just begun again."""
    window = SilentWindow(0.0, accepted)
    assert outage(window, 20.0, 60.0) == accepted / 60
    assert window.seconds == 60.0
    return window


def test_what_was_accepted_between_two_outages_is_the_share_of_a_window() -> None:
    found()


@pytest.mark.parametrize(
    ("accepted", "began", "ended", "why"),
    [
        (4, 20.0, 60.0, "too few were accepted to say how many"),
        (25, 55.0, 60.0, "the outage was short, as at a bucket that others have emptied"),
        (25, 20.0, 90.0, "it took longer than a minute and a quarter"),
    ],
)
def test_not_every_outage_is_the_rest_of_a_window(
    accepted: int, began: float, ended: float, why: str
) -> None:
    window = SilentWindow(0.0, accepted)
    assert outage(window, began, ended) == 0.0, why
    assert window.seconds == 0.0


def test_a_server_that_refused_now_and_then_before_the_outage_has_no_window() -> None:
    window = SilentWindow(0.0, 25)
    window.refused(5.0)
    assert outage(window, 20.0, 60.0) == 0.0


def test_the_next_outage_may_be_as_short_as_it_likes() -> None:
    window = found()
    for _ in range(30):
        window.accepted()
    assert outage(window, 119.5, 120.0) == 0.5


def test_two_refusals_too_soon_show_that_there_is_no_window() -> None:
    window = found()
    for began in (70.0, 80.0):
        assert window.seconds == 60.0
        outage(window, began, began + 1)
    assert window.seconds == 0.0


def test_a_window_that_refuses_nothing_is_forgotten() -> None:
    window = found()
    window.advance(60.0 + 2.5 * 60.0)
    assert window.seconds == 60.0
    window.advance(60.0 + 2.5 * 60.0 + 1)
    assert window.seconds == 0.0


def test_growth_accelerates_until_the_next_outage() -> None:
    window = found()
    growths = []
    for windows in (0.0, 1.0, 2.0):
        window.advance(60.0 + windows * 60.0)
        growths.append(window.growth)
    assert growths == [8.0, 16.0, 40.0]


def test_windows_without_a_refusal_do_not_make_the_window_longer() -> None:
    window = found()
    for _ in range(30):
        window.accepted()
    outage(window, 170.0, 178.0)
    assert window.seconds == 59.0


def test_an_outage_of_any_length_ends_a_window_where_tests_have_shown_that_there_are_windows() -> None:
    window = SilentWindow(0.0, 2)
    window.test._evidence = 5.0
    assert outage(window, 9.5, 10.0) == 0.2
    assert window.seconds == 10.0


@pytest.mark.no_cover
@pytest.mark.parametrize("numbers", [(), (100.0, 60.0)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_window_of_a_minute_is_divided_without_a_word_of_it(numbers: tuple[float, ...], seed: int) -> None:
    world = World(FixedWindow(100, 60.0), seed=seed)
    for _ in range(4):
        world.add(*numbers)
    world.run(300.0)
    shares, refused = world.counts(60.0, 300.0)
    assert sum(shares) >= 0.9 * 400
    assert refused <= 0.2 * sum(shares)
    assert jain(shares) >= 0.85
    assert world.most_attempts <= 4


@pytest.mark.no_cover
def test_a_window_that_the_server_never_mentions_is_named() -> None:
    world = World(FixedWindow(100, 60.0))
    world.add(workers=8)
    world.run(600.0)
    assert str(world.senders[0].source) == "found: window of about 60 s"
    assert any("window of about 60 s" in change.reason for change in world.changes)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("number", "seconds", "share"), [(50, 5.0, 0.6), (100, 10.0, 0.6), (300, 30.0, 0.3), (100, 60.0, 0.5)]
)
def test_those_who_join_late_get_their_share_of_a_window_that_the_server_never_mentions(
    number: int, seconds: float, share: float
) -> None:
    world = World(FixedWindow(number, seconds), service=0.1, seed=2)
    for at in (0.0, 40.0, 48.0, 56.0):
        world.add(workers=6, at=at)
    world.run(360.0)
    shares, refused = world.counts(240.0, 360.0)
    assert refused <= 0.2 * sum(shares)
    assert min(shares) >= share * sum(shares) / 4


@pytest.mark.no_cover
def test_those_who_join_late_at_a_strict_server_find_its_spacing_however_little_they_get() -> None:
    world = World(LeakyBucket(5), service=0.1, seed=2)
    for at in (0.0, 10.0, 12.0, 14.0):
        world.add(workers=6, at=at)
    world.run(600.0)
    shares, _ = world.counts(360.0, 600.0)
    assert min(shares) >= 0.5 * sum(shares) / 4


@pytest.mark.no_cover
def test_what_is_refused_while_the_server_accepts_nothing_makes_no_window() -> None:
    one = Sender()
    for _ in range(20):
        one.accept(0.1)
    for second in range(1, 3600):
        one.observe(429, second + 0.1, second, turn=Turn())
    one.observe(200, 3600.1, 3600.0, turn=one.force(3600.0))
    assert one.look(3605.0) >= 2.0
