"""The three ways of counting a quota: numbers in, numbers out."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai._errors import ConfigurationError
from stkai.testing._service import Bucket, FixedWindow, ServerQuota, SlidingWindow

KINDS = [FixedWindow, SlidingWindow, Bucket]


def accepted(quota: ServerQuota, instants: list[float]) -> list[float]:
    return [now for now in instants if quota.admit(now) == 0]


def test_a_fixed_window_starts_at_a_multiple_of_its_length() -> None:
    quota = FixedWindow(2, 60.0)
    assert [quota.admit(now) for now in (50.0, 51.0, 52.5)] == [0, 0, 7.5]
    assert [quota.admit(now) for now in (60.0, 119.0, 119.5)] == [0, 0, 0.5]


def test_a_fixed_window_reports_what_remains_and_when_it_resets() -> None:
    quota = FixedWindow(2, 60.0)
    quota.admit(50.0)
    assert (quota.remaining(55.0), quota.reset_in(55.0)) == (1, 5.0)
    quota.max_requests = 0
    assert quota.remaining(55.0) == 0
    quota.max_requests = 3
    assert (quota.remaining(60.0), quota.reset_in(60.0)) == (3, 60.0)


def test_a_sliding_window_accepts_again_when_the_oldest_is_a_window_old() -> None:
    quota = SlidingWindow(2, 60.0)
    assert [quota.admit(now) for now in (50.0, 55.0, 56.0)] == [0, 0, 54.0]
    assert [quota.admit(now) for now in (110.0, 110.0)] == [0, 5.0]


def test_a_bucket_starts_full_and_refills_at_the_quotas_rate() -> None:
    quota = Bucket(60, 60.0, depth=3)
    assert [quota.admit(0.0) for _ in range(4)] == [0, 0, 0, 1.0]
    assert [quota.admit(now) for now in (0.75, 1.0, 1.5)] == [0.25, 0, 0.5]
    assert [quota.admit(100.0) for _ in range(4)] == [0, 0, 0, 1.0]


def test_a_bucket_is_ten_deep_by_default() -> None:
    assert len(accepted(Bucket(100, 60.0), [0.0] * 20)) == 10


@pytest.mark.parametrize("kind", KINDS)
@given(max_requests=st.integers(1, 20), time_window=st.floats(0.1, 100), at=st.floats(0, 1e6))
def test_a_request_that_waits_as_long_as_required_is_admitted(
    kind: type[Any], max_requests: int, time_window: float, at: float
) -> None:
    quota = kind(max_requests, time_window)
    now = at
    while (wait := quota.admit(now)) == 0:
        now += time_window / 1000
    assert 0 < wait <= time_window
    assert quota.admit(now + wait * (1 + 1e-6) + 1e-6) == 0


@pytest.mark.parametrize("kind", KINDS)
@given(gaps=st.lists(st.floats(0, 2), max_size=200), max_requests=st.integers(1, 10))
def test_no_window_admits_more_than_the_quota(kind: type[Any], gaps: list[float], max_requests: int) -> None:
    window, depth = 5.0, 10
    instants = [sum(gaps[:count]) for count in range(len(gaps))]
    times = accepted(kind(max_requests, window), instants)
    if kind is FixedWindow:
        for index in {now // window for now in times}:
            assert sum(now // window == index for now in times) <= max_requests
    else:
        limit = max_requests + (depth if kind is Bucket else 0)
        for start in times:
            assert sum(start <= now < start + window for now in times) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_refused_requests_use_no_quota(kind: type[Any]) -> None:
    busy, calm = kind(5, 1.0), kind(5, 1.0)
    calm_times = accepted(calm, [step / 10 for step in range(100)])
    busy_times = accepted(busy, [step / 10 for step in range(100) for _ in range(7)])
    assert len(calm_times) == pytest.approx(50, abs=10)
    assert len(busy_times) == pytest.approx(len(calm_times), abs=10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [0.5, 2.0])
def test_the_quota_may_change_at_any_time(kind: type[Any], change: float) -> None:
    quota = kind(100, 10.0)
    accepted(quota, [step / 100 for step in range(2_000)])
    quota.max_requests = int(100 * change)
    accepted(quota, [20 + step / 100 for step in range(1_000)])
    assert len(accepted(quota, [30 + step / 100 for step in range(1_000)])) == pytest.approx(
        100 * change, abs=1
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_quota_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ConfigurationError, match="max_requests must be at least 1, not 0"):
        kind(0, 1.0)
    for time_window in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="time_window must be a positive number of seconds"):
            kind(1, time_window)


def test_a_bucket_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"depth must be at least 1, not 0\.5"):
        Bucket(1, 1.0, depth=0.5)
