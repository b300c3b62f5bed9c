"""How many retries a budget lets through: numbers only."""

import copy
import math
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import ConfigurationError, RetryBudget

from ...support.threads import together


def retries(budget: RetryBudget, now: float, most: int = 10_000) -> int:
    """How many retries the budget pays for at that time."""
    return sum(1 for _ in range(most) if budget.withdraw(now))


@given(
    st.floats(0, 1),
    st.floats(0, 20),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), min_size=1, max_size=30),
)
def test_retries_never_exceed_their_share_of_the_calls_plus_the_credit_of_time(
    ratio: float, per_second: float, moments: list[tuple[float, int]]
) -> None:
    budget, now, calls, made = RetryBudget(ratio, per_second), 0.0, 0, 0
    for later, count in moments:
        now += later
        calls += count
        for _ in range(count):
            budget.deposit(now)
        made += retries(budget, now, count)
        assert made <= ratio * calls + per_second * (10 + now) + 1e-6


def test_every_fifth_call_pays_for_a_retry() -> None:
    budget, paid = RetryBudget(0.2, 0), []
    for number in range(1, 101):
        budget.deposit(0.0)
        if budget.withdraw(0.0):
            paid.append(number)
    assert paid == list(range(5, 101, 5))


def test_a_tenth_ten_times_is_one() -> None:
    budget = RetryBudget(0.1, 0)
    for _ in range(10):
        budget.deposit(0.0)
    assert budget.withdraw(0.0)
    assert not budget.withdraw(0.0)


def test_the_first_call_of_a_program_may_be_retried() -> None:
    budget = RetryBudget()
    budget.deposit(1e6)
    assert budget.withdraw(1e6)


@pytest.mark.no_cover
def test_time_adds_credit_of_at_most_ten_seconds() -> None:
    budget = RetryBudget(0, 2)
    assert retries(budget, 0.0) == 20
    assert retries(budget, 0.4) == 0
    assert retries(budget, 3.0) == 6
    assert retries(budget, 10_000.0) == 20


@pytest.mark.no_cover
def test_the_credit_of_calls_halves_in_ten_seconds_but_for_the_last_ten_retries() -> None:
    for later, left in ((0.0, 200), (10.0, 100), (20.0, 50), (1000.0, 10)):
        budget = RetryBudget(0.2, 0)
        for _ in range(1000):
            budget.deposit(0.0)
        assert retries(budget, later) == left


def test_a_program_that_makes_one_call_a_minute_also_gets_its_share() -> None:
    budget, paid = RetryBudget(0.2, 0), 0
    for minute in range(100):
        budget.deposit(60.0 * minute)
        paid += budget.withdraw(60.0 * minute)
    assert paid == 20


def test_without_ratio_and_without_time_nothing_is_ever_retried() -> None:
    budget = RetryBudget(0, 0)
    budget.deposit(0.0)
    assert not budget.withdraw(1000.0)


@pytest.mark.no_cover
def test_a_clock_that_goes_back_adds_nothing() -> None:
    budget = RetryBudget(0, 1)
    assert retries(budget, 100.0) == 10
    assert retries(budget, 50.0) == 0
    assert retries(budget, 102.0) == 2


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "0.2", None])
def test_an_invalid_ratio_is_refused_by_name(value: float) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^ratio must be a number from 0 to 1, the retries per call, not"
    ):
        RetryBudget(ratio=value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "10", None])
def test_an_invalid_rate_is_refused_by_name(value: float) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^min_per_second must be a finite number of at least 0, not"
    ):
        RetryBudget(min_per_second=value)


@pytest.mark.no_cover
def test_threads_spend_each_retry_once() -> None:
    budget = RetryBudget(1, 0)
    for _ in range(1000):
        budget.deposit(0.0)

    assert sum(together(*[lambda: retries(budget, 0.0)] * 8)) == 1000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_the_budget_is_in_use_is_not_stuck() -> None:
    budget = RetryBudget()
    with budget._lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if budget._lock.acquire(blocking=False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_copy_has_the_same_numbers_and_its_own_balance() -> None:
    budget = RetryBudget(0.5, 3)
    assert retries(budget, 0.0) == 30
    for other in (pickle.loads(pickle.dumps(budget)), copy.deepcopy(budget)):  # noqa: S301 - its own
        assert repr(other) == repr(budget) == "RetryBudget(ratio=0.5, min_per_second=3)"
        assert other.withdraw(0.0)
