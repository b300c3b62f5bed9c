"""The adaptive limiter without numbers: what it finds out about a quota, and how it uses that."""

import math
from typing import Any

import pytest

from stkai import AimdLimiter, ConfigurationError
from stkai.transports import Turn
from stkai.transports._adaptive.headers import Reading
from stkai.transports._adaptive.law import Past, SearchingLaw
from stkai.transports._adaptive.search import QuotaSearch


def send(policy: AimdLimiter, now: float, count: int) -> int:
    """Send up to `count` requests at `now`, each answered at once; returns how many could go."""
    sent = 0
    while sent < count and policy.take(now):
        policy.succeeded(now, sent=now)
        sent += 1
    return sent


def test_without_numbers_nothing_holds_back_a_program_that_is_not_refused() -> None:
    policy = AimdLimiter()
    assert (policy.max_requests, policy.time_window) == (None, None)
    assert send(policy, 0.0, 1000) == 1000


def test_what_is_in_flight_doubles_with_every_round_trip() -> None:
    policy, flights = AimdLimiter(), []
    for trip in range(6):
        now = trip / 1e4
        flight = 0
        while policy.take(now):
            flight += 1
        flights.append(flight)
        for _ in range(flight):
            policy.succeeded(now + 1e-5, sent=now)
    assert flights == [3, 6, 12, 24, 48, 96]


def test_a_program_that_stood_still_for_an_hour_goes_on() -> None:
    policy = AimdLimiter()
    turns = [Turn() for _ in range(10)]
    waits = [policy.ask(turn, 0.0) for turn in turns]
    assert min(waits[3:]) > 0
    assert [policy.ask(turn, 3600.0) for turn in turns[3:6]] == [0.0, 0.0, 0.0]
    assert math.isfinite(policy.rate)
    policy.refused(3600.1, sent=3600.0, asked=1.0, chance=0.0)
    assert 0 < policy.rate < 1


def test_a_program_that_stood_still_for_an_hour_keeps_its_estimate() -> None:
    policy = AimdLimiter()
    send(policy, 0.0, 40)
    policy.take(1.0)
    policy.refused(1.0, sent=1.0, asked=59.0, chance=0.0)
    found = policy.rate
    turns = [Turn() for _ in range(20)]
    assert max(policy.ask(turn, 61.0) for turn in turns) > 0
    for turn in turns[-2:]:
        policy.ask(turn, 3661.0)
    assert found <= policy.rate < 2 * found


def test_the_first_refusal_gives_a_first_estimate_of_the_share() -> None:
    policy = AimdLimiter()
    assert send(policy, 0.0, 40) == 40
    assert policy.take(1.0)
    change = policy.refused(1.0, sent=1.0, asked=59.0, chance=0.0)
    # Forty in a window that is over in 59 seconds.
    assert policy.rate == pytest.approx(40 / 60, rel=0.02)
    assert change is not None
    assert "estimate of the quota" in change.reason
    assert policy.take(59.9) == 0


def test_an_implausible_wait_does_not_lower_the_first_estimate() -> None:
    policy = AimdLimiter()
    for second in range(40):
        send(policy, float(second), 1)
    policy.refused(40.0, sent=40.0, asked=86400.0, chance=0.0)
    policy.refused(200.0, sent=200.0, asked=60.0, chance=0.0)
    policy.succeeded(300.0, sent=300.0)
    assert policy.rate == pytest.approx(1.0, rel=0.1)


def test_the_longest_wait_that_a_server_asks_for_is_the_window() -> None:
    search = QuotaSearch()
    assert search.window == 60.0
    for asked in (40.0, 110.0, 20.0, 0.0, 1e9):
        search.asked(asked, rate=1.0)
    assert search.window == 110.0
    for _ in range(8):
        search.asked(45.0, rate=1.0)
    assert search.window == 45.0


def test_a_bucket_that_asks_for_a_second_does_not_make_the_window_a_second() -> None:
    search = QuotaSearch()
    for _ in range(8):
        search.asked(1.0, rate=0.3)
    assert search.window == 30.0


def test_a_fast_sender_has_a_shorter_window() -> None:
    search = QuotaSearch()
    for _ in range(8):
        search.asked(0.1, rate=10.0)
    assert search.window == 1.0


def test_the_pace_of_growth_depends_on_the_server_alone() -> None:
    slow, fast = QuotaSearch(), QuotaSearch()
    for asked in (1.0, 20.0, 1.0):
        slow.asked(asked, rate=0.1)
        fast.asked(asked, rate=100.0)
    assert slow.pace == fast.pace == 20.0
    assert slow.window > fast.window
    for _ in range(8):
        fast.asked(1.0, rate=100.0)
    assert fast.pace == QuotaSearch().pace > 1.0


def test_the_policy_keeps_its_counts_when_the_window_turns_out_to_be_different() -> None:
    policy = AimdLimiter()
    send(policy, 10.0, 50)
    policy.refused(20.0, sent=20.0, asked=600.0, chance=0.0)
    assert policy.window == 600.0
    assert policy._tally.count(20.0) == pytest.approx(49, abs=1)


@pytest.mark.parametrize(
    ("reset", "window"), [(0.8, 1.0), (12.0, 30.0), (59.0, 60.0), (61.0, 60.0), (1200.0, 1800.0)]
)
def test_a_reset_without_a_window_implies_the_shortest_usual_window_that_fits(
    reset: float, window: float
) -> None:
    search = QuotaSearch()
    reading = Reading("", 100.0, 50.0, reset, float("inf"))
    assert search.completed(reading).window == window


def test_a_window_that_the_server_states_is_used_as_it_is() -> None:
    reading = Reading("", 100.0, 50.0, 30.0, 45.0)
    assert QuotaSearch().completed(reading) == reading


def test_headers_give_the_quota() -> None:
    policy = AimdLimiter()
    for second in range(9):
        now = float(second)
        if policy.take(now):
            reading = Reading("default", 600.0, 590.0 - second, 60.0 - second, 60.0)
            policy.succeeded(now, sent=now, reading=reading)
    assert policy.ceiling == 10.0
    assert policy.window == 60.0
    assert 0 < policy.rate <= 10.0
    assert repr(policy).startswith("AimdLimiter(found: 600, 60, rate=")


def test_growth_without_a_quota_does_not_depend_on_how_often_it_is_computed() -> None:
    law = SearchingLaw(60.0, 60.0)
    once = law.grown(1.0, 0.0, 100.0)
    often = 1.0
    for step in range(100):
        often = law.grown(often, float(step), 1.0)
    assert often == pytest.approx(once)


def test_growth_without_a_quota_makes_shares_more_equal() -> None:
    law = SearchingLaw(60.0, 60.0)
    assert law.grown(1.0, 0.0, 60.0) / law.grown(0.1, 0.0, 60.0) < 10


def test_a_cut_without_a_quota_never_raises_the_rate() -> None:
    law = SearchingLaw(60.0, 60.0)
    for past in (
        Past(200, 60.0, 1.0, cold=True),
        Past(200, 10.0, 1.0, cold=False),
        Past(200, 120.0, 1.0, cold=False),
        Past(200, 120.0, 0.1, cold=False),
        Past(0, 120.0, 0.1, cold=False),
    ):
        assert 0 <= law.cut(1.0, past) <= 1.0


def test_a_refusal_costs_a_small_cut_if_a_short_window_took_nearly_everything() -> None:
    law = SearchingLaw(1.0, 7.0)
    nearly_all, half = (Past(share * 20, 2.0, 1.0, cold=False) for share in (0.95, 0.5))
    assert law.cut(10.0, nearly_all) == pytest.approx(9.6)
    assert law.cut(10.0, half) == pytest.approx(8.6)


def test_one_number_without_the_other_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match="time_window is missing"):
        AimdLimiter(100)
    with pytest.raises(ConfigurationError, match="max_requests is missing"):
        AimdLimiter(time_window=60)


@pytest.mark.parametrize("name", ["min_rate_floor", "penalty_factor", "recovery_factor", "max_cost"])
def test_a_share_of_an_unknown_quota_is_an_error_that_names_it(name: str) -> None:
    options: Any = {name: 0.5}
    with pytest.raises(ConfigurationError, match=f"{name} needs a quota"):
        AimdLimiter(**options)


def test_a_policy_without_numbers_says_what_it_found() -> None:
    policy = AimdLimiter()
    assert repr(policy) == "AimdLimiter(quota not found yet, rate=5)"
    send(policy, 0.0, 10)
    policy.refused(1.0, sent=1.0, asked=59.0, chance=0.0)
    assert repr(policy) == "AimdLimiter(found: time_window=59, rate=0.15)"
