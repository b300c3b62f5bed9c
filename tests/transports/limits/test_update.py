"""The numbers of a limiter are read-only, and change by `update` while requests wait."""

import re
from typing import Any

import anyio
import httpx
import pytest

from stkai import AimdLimiter, AllOf, ConfigurationError, InFlight, StackBuilder, TokenBucket
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Turn, limiter

from ...support.crowd import took
from ...support.world import World


@pytest.mark.parametrize(
    ("make", "change", "within"),
    [
        (lambda: TokenBucket(1, 3600), {"max_requests": 100}, 1.0),
        (lambda: TokenBucket(1, 3600), {"time_window": 1.0}, 5.0),
        (lambda: TokenBucket(1, 3600, burst=1), {"max_requests": 3600}, 7.0),
        (lambda: TokenBucket(None, 3600, max_cost=1), {"max_cost": 100}, 1.0),
        (lambda: TokenBucket(None, 3600, max_cost=1), {"time_window": 1.0}, 7.0),
        (lambda: InFlight(1), {"n": 10}, 1.0),
        (lambda: AllOf(TokenBucket(1, 3600), InFlight(50)), {"max_requests": 100}, 1.0),
    ],
)
async def test_requests_that_wait_go_by_the_new_numbers_within_a_second(
    event_loop: World, make: Any, change: dict[str, Any], within: float
) -> None:
    policy, clock, sent = make(), FakeClock(), list[float]()

    async def one() -> None:
        async with policy.permit(clock=clock, cost=1):
            sent.append(clock.monotonic())
            await clock.asleep(1000.0)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
        await clock.asleep(10.0)
        assert len(sent) == 1
        (policy.parts[0] if isinstance(policy, AllOf) else policy).update(**change)
    assert len(sent) == 5
    assert max(sent) <= 10.0 + within


def test_the_first_two_hundred_of_a_line_notice_within_a_second() -> None:
    policy: Any = TokenBucket(1, 3600)
    turns = [Turn() for _ in range(200)]
    assert policy.ask(turns[0], 0.0) == 0
    for turn in turns[1:]:
        assert 0 < min(policy.ask(turn, 0.0), turn.nap) <= 1.0


def test_no_window_has_more_than_the_greater_of_the_two() -> None:
    policy = TokenBucket(5, 10)
    assert sum(took(policy, 0.0) > 0 for _ in range(9)) == 5
    policy.update(max_requests=8)
    assert sum(took(policy, 1.0) > 0 for _ in range(9)) == 3
    policy.update(max_requests=2)
    assert sum(took(policy, 10.0) > 0 for _ in range(9)) == 0
    assert sum(took(policy, 11.0) > 0 for _ in range(9)) == 2
    policy.update(time_window=100)
    assert sum(took(policy, 30.0) > 0 for _ in range(9)) == 0
    assert sum(took(policy, 111.0) > 0 for _ in range(9)) == 2


def test_a_request_that_has_left_a_shorter_window_gives_nothing_back_to_a_longer_one() -> None:
    policy, turns = TokenBucket(1, 1), [Turn() for _ in range(3)]
    assert policy.ask(turns[0], 0.0) == 0
    assert policy.ask(turns[1], 1.5) == 0
    policy.update(time_window=10)
    policy.leave(turns[0], 2.0)
    assert policy.ask(turns[2], 2.0) == pytest.approx(9.5)


def test_no_more_than_the_burst_goes_at_once_after_the_rate_rises() -> None:
    policy = TokenBucket(60, 60, burst=3, max_cost=60)
    assert sum(took(policy, 0.0) > 0 for _ in range(9)) == 3
    policy.update(max_requests=6000, max_cost=6000)
    assert sum(took(policy, 0.9) > 0 for _ in range(9)) == 3
    assert sum(took(policy, 1.0) > 0 for _ in range(99)) == 3
    assert sum(took(policy, 1.01) > 0 for _ in range(9)) == 1


def test_units_and_bursts_that_were_not_used_grow_with_their_limit() -> None:
    policy = TokenBucket(100, 10, max_cost=10, burst=2)
    assert policy.ask(Turn(cost=8.0), 0.0) == 0
    policy.update(max_cost=100)
    assert policy.ask(Turn(cost=92.0), 0.0) == 0
    assert policy.ask(Turn(cost=10.0), 0.0) == pytest.approx(1.0)
    assert (policy.max_cost, policy.burst) == (100, 2)


def test_units_that_were_used_stay_used_when_their_limit_rises_and_falls() -> None:
    policy = TokenBucket(None, 10, max_cost=100)
    assert policy.ask(Turn(cost=80.0), 0.0) == 0
    for most in (200, 100, 1000, 100):
        policy.update(max_cost=most)
    assert policy.ask(Turn(cost=50.0), 0.0) == pytest.approx(3.0)


def test_units_that_were_used_are_no_debt_when_their_limit_falls() -> None:
    policy = TokenBucket(None, 10, max_cost=100)
    assert policy.ask(Turn(cost=80.0), 0.0) == 0
    policy.update(max_cost=10)
    assert policy.ask(Turn(cost=10.0), 0.0) == pytest.approx(10.0)


def test_less_takes_effect_for_windows_to_come() -> None:
    policy = TokenBucket(None, 10, max_cost=100)
    policy.update(max_cost=10)
    assert policy.ask(Turn(cost=10.0), 0.0) == 0
    assert policy.ask(Turn(cost=10.0), 0.0) == pytest.approx(10.0)


def test_the_default_burst_follows_the_quota() -> None:
    policy = TokenBucket(2, 10)
    policy.update(max_requests=4)
    assert (policy.burst, policy.rate, repr(policy)) == (4, 0.4, "TokenBucket(4, 10, burst=4)")


def test_a_shared_adaptive_limiter_shows_its_new_numbers() -> None:
    policy = AimdLimiter(600, 60, max_cost=1000, share="team", store=MemoryStore(FakeClock()))
    policy.update(max_requests=60, time_window=30, max_cost=500)
    assert repr(policy).startswith("AimdLimiter(60, 30, max_cost=500, rate=")


BAD = (0, -1, float("nan"), float("inf"), True, "5", None, 10**400)


@pytest.mark.parametrize("name", ["max_requests", "time_window", "max_cost"])
@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
def test_a_bad_number_is_refused_by_name_and_changes_nothing(kind: Any, name: str) -> None:
    policy = kind(2, 10, max_cost=5)
    others = {"max_requests": 9, "time_window": 9, "max_cost": 9}
    for value in BAD:
        with pytest.raises(ConfigurationError, match=rf"^{name} must be a positive"):
            policy.update(**others | {name: value})
        assert (policy.max_requests, policy.time_window, policy.max_cost) == (2, 10, 5)


@pytest.mark.parametrize("name", ["max_requests", "time_window", "max_cost"])
@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("value", [5e-324, 1e-12, 1e21, 1.7e308])
def test_a_number_that_no_quota_has_is_refused_in_words(kind: Any, name: str, value: float) -> None:
    numbers = {"max_requests": 2.0, "time_window": 10.0, "max_cost": 5.0}
    policy = kind(**numbers)
    message = f"{name} must be between 1e-9 and 1e20, not {value}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        kind(**numbers | {name: value})
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        policy.update(**{name: value})
    assert (policy.max_requests, policy.time_window, policy.max_cost) == (2, 10, 5)


def test_what_a_limiter_does_not_count_cannot_be_updated() -> None:
    for policy, name in (
        (TokenBucket(2, 10), "max_cost"),
        (TokenBucket(None, 10, max_cost=5), "max_requests"),
    ):
        with pytest.raises(ConfigurationError, match=f"{name} cannot be updated"):
            policy.update(**{name: 5})


def test_an_unknown_name_is_a_type_error() -> None:
    for policy in (TokenBucket(2, 10), AimdLimiter(2, 10), InFlight(2)):
        with pytest.raises(TypeError):
            policy.update(max_wait_time=5.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "name", ["max_requests", "time_window", "max_cost", "methods", "max_wait_time", "cost", "burst", "rate"]
)
def test_attributes_are_read_only(name: str) -> None:
    policies: list[Any] = [TokenBucket(2, 10, max_cost=5), AimdLimiter(2, 10)]
    for policy in policies:
        before = getattr(policy, name)
        with pytest.raises(AttributeError, match=name):
            setattr(policy, name, 5)
        assert getattr(policy, name) == before


async def test_the_quota_of_an_adaptive_limiter_changes_and_its_law_goes_on(world: World) -> None:
    clock, policy = FakeClock(), AimdLimiter(60, 60)
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(*[200] * 50))
    await world.send(transport, httpx.Request("POST", "https://api.example.com"))
    policy.update(max_requests=6000)
    for _ in range(49):
        await world.send(transport, httpx.Request("POST", "https://api.example.com"))
    assert policy.max_requests == 6000
    assert clock.monotonic() < 45.0


def test_where_a_server_just_refuses_the_rate_stays_the_same_part_of_the_quota() -> None:
    clock, policy = FakeClock(), AimdLimiter(20, 1)
    with policy.permit(clock=clock) as permit:
        permit.refused()
    before = policy.rate
    policy.update(max_requests=10)
    assert policy.rate == pytest.approx(before / 2)


def test_after_a_new_time_window_a_refusal_stops_a_shared_limiter_for_a_part_of_that() -> None:
    clock = FakeClock()
    policy = AimdLimiter(600, 600, share="team", store=MemoryStore(clock))
    with policy.permit(clock=clock):
        policy.update(max_requests=6, time_window=6)
    with policy.permit(clock=clock) as permit:
        permit.refused()
    refused = clock.monotonic()
    with policy.permit(clock=clock):
        assert clock.monotonic() < refused + 5.0


@pytest.mark.parametrize("name", ["min_rate_floor", "penalty_factor", "recovery_factor"])
def test_the_factors_of_the_adaptive_limiter_are_read_only(name: str) -> None:
    assert getattr(AimdLimiter(2, 10), name) is None
    policy = AimdLimiter(2, 10, min_rate_floor=0.1, penalty_factor=0.1, recovery_factor=0.1)
    with pytest.raises(AttributeError, match=name):
        setattr(policy, name, 0.5)
    assert getattr(policy, name) == 0.1


@pytest.mark.parametrize("limiter", [AimdLimiter(), AimdLimiter(10, 1), TokenBucket(10, 1)], ids=repr)
def test_an_update_without_numbers_changes_nothing(limiter: Any) -> None:
    before = repr(limiter)
    limiter.update()
    assert repr(limiter) == before
