"""The guide for a fixed window: what it believes, the pace that it sets, and the limiter that follows it."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import AimdLimiter, Event, RateChanged, StackBuilder
from stkai.testing import FakeClock
from stkai.testing._gate import rate_headers
from stkai.testing._quota import FixedWindow
from stkai.transports import Turn, adaptive
from stkai.transports._adaptive.headers import Reading
from stkai.transports._adaptive.window import WindowGuide

from ...support.wire import Wire
from ...support.world import World

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
    return guide.hear(reading(now, remaining, **options), now, now, rate, refused=refused)


def believing(rate: float = 0.5) -> WindowGuide:
    """A guide that believes in a window, at second 6, when the requests used are exactly on schedule."""
    guide = WindowGuide(QUOTA, FLOOR)
    tell(guide, 1.0, on_line(1.0), rate=rate)
    tell(guide, 6.0, on_line(6.0), rate=rate)
    assert guide.in_force
    return guide


def on_line(now: float, factor: float = 1.0, *, end: float = WINDOW) -> float:
    """The remaining requests at which the pace is `factor` times the base."""
    return 1 + math.cbrt(factor) * LIMIT * (end - now) / WINDOW


# What is believed


def test_nothing_is_followed_before_the_first_reading() -> None:
    guide = WindowGuide(QUOTA, FLOOR)
    guide.advance(1e9)
    assert (guide.listening, guide.in_force) == (True, False)


def test_a_reset_is_believed_once_it_has_stood_still_for_five_seconds() -> None:
    guide = WindowGuide(QUOTA, FLOOR)
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


@pytest.mark.parametrize("rounded", [math.floor, round, math.ceil])
def test_a_reset_in_whole_seconds_is_believed_window_after_window(rounded: Callable[[float], int]) -> None:
    guide = WindowGuide(QUOTA, FLOOR)
    for tenth in range(3000):
        now = tenth / 10
        guide.hear(Reading("", LIMIT, 50, rounded(WINDOW - now % WINDOW), WINDOW), now + 0.1, now, 0.5)
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
    guide = WindowGuide(QUOTA, FLOOR)
    for tenth in range(600):
        now = tenth / 10
        guide.hear(Reading("", LIMIT, 50, reset_in(now), WINDOW), now, now, 0.5)
        assert not guide.in_force
    assert not guide.listening


def test_the_oldest_request_of_a_sliding_window_is_found_out_when_it_expires() -> None:
    guide = WindowGuide(QUOTA, FLOOR)
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
    guide = WindowGuide(QUOTA, FLOOR)
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


def test_slow_answers_end_the_belief_for_good() -> None:
    guide = believing(rate=0.5)
    rate = guide.rate
    guide.hear(reading(20.0, 0), 20.0, 17.9, 0.5)
    assert (guide.in_force, guide.rate) == (True, rate)
    guide.hear(reading(30.0, 0), 30.0, 27.9, 0.5)
    assert (guide.listening, guide.in_force) == (False, False)


@pytest.mark.parametrize("other", [None, reading(20.0, 40), Reading("tokens", LIMIT, 0, 30, WINDOW)])
def test_refusals_that_the_window_does_not_explain_end_the_belief_for_good(other: Reading | None) -> None:
    guide = believing()
    assert not guide.hear(other, 20.0, 20.0, 0.5, refused=True)
    assert guide.in_force
    assert not guide.hear(other, 20.5, 20.5, 0.5, refused=True)
    assert not guide.listening


def test_a_refusal_with_no_requests_left_is_explained() -> None:
    guide = believing()
    for _ in range(5):
        assert tell(guide, 50.0, 0, refused=True)
    assert guide.in_force


def test_before_it_believes_it_explains_nothing_and_counts_no_contradiction() -> None:
    guide = WindowGuide(QUOTA, FLOOR)
    for now in (1.0, 1.2, 1.4):
        assert not tell(guide, now, 50, refused=True)
        assert not tell(guide, now, 0, refused=True)
        assert not guide.hear(None, now, now, 0.5, refused=True)
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
    guide.hear(Reading("", LIMIT, 50, 7.0, 10.0), 7.0, 7.0, 0.5)
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
    guide = WindowGuide(QUOTA, FLOOR)
    tell(guide, 0.0, 100)
    for now in range(5, 60):
        tell(guide, float(now), on_line(now, factor), rate=0.2)
    guide.advance(61.0)
    # Nearly a full 0.8, since there were many answers.
    assert guide.base == pytest.approx(0.2 * moves**0.8 + 0.02 * QUOTA, rel=0.02)


def test_a_single_answer_moves_the_base_half_as_far() -> None:
    guide = WindowGuide(QUOTA, FLOOR)
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
    guide, now = WindowGuide(QUOTA, FLOOR), 0.0
    for seconds, under_way, refused, name, remaining, reset, window in answers:
        assert 0 <= guide.release(now, now + seconds) <= QUOTA * seconds * 1.001 + 1e-9
        now += seconds
        said = Reading(name, 100, remaining, window - now % window if reset is None else reset, window)
        explained = guide.hear(said, now, now - under_way, 0.5, refused=refused)
        assert FLOOR <= guide.rate <= QUOTA
        assert guide.time_for(1.0, now) > 0
        assert not explained or (refused and remaining == 0 and guide.in_force)
        assert guide.listening or not guide.in_force


# The limiter


def led() -> AimdLimiter:
    """A limiter that follows a window, as `believing` does, at the rate with which it starts."""
    policy = AimdLimiter(LIMIT, WINDOW, max_wait_time=None)
    policy.succeeded(1.0, 1.0, reading(1.0, on_line(1.0)))
    rate = policy.rate
    policy.succeeded(6.0, 6.0, reading(6.0, on_line(6.0)))
    assert policy.rate == pytest.approx(rate)
    return policy


def look(policy: AimdLimiter, now: float) -> float:
    """The rate at `now`; no request comes or goes."""
    policy.cancel(Turn(), now)
    return policy.rate


def queue_up(policy: AimdLimiter, now: float) -> Turn:
    """Let a request wait from `now` on."""
    while policy.take(now):
        pass
    ticket = Turn()
    assert policy.remaining(ticket, now) > 0
    return ticket


def test_the_limiter_follows_the_pace_of_the_window_and_its_base_after_its_end() -> None:
    policy = led()
    base = policy.rate
    policy.succeeded(30.0, 30.0, reading(30.0, on_line(30.0, 0.5)))
    assert policy.rate == pytest.approx(base / 2)
    queue_up(policy, 30.0)
    # No growth by the law, though somebody waits.
    assert look(policy, 59.0) == pytest.approx(base / 2)
    assert look(policy, 61.0) > base / 2


def test_a_long_wait_within_a_window_is_slept_in_halves_also_at_the_whole_quota() -> None:
    policy = led()
    for end in (WINDOW, 2 * WINDOW):
        for now in (end - 50, end - 5):
            policy.succeeded(now, now, reading(now, LIMIT, end=end))
    assert policy.rate == policy.ceiling
    assert policy.nap(20.0) == 10.0


def test_a_used_up_window_pauses_all_requests_until_its_end() -> None:
    policy = led()
    policy.succeeded(30.0, 30.0, reading(30.0, 0))
    wait = policy.remaining(Turn(), 30.0)
    assert 30.0 <= wait < 30.0 + 1 / policy.rate
    assert policy.take(59.9) == 0


def test_a_refusal_that_the_window_explains_cuts_nothing_and_is_not_reported() -> None:
    policy = led()
    base = policy.rate
    change = policy.refused(50.0, 49.9, asked=10.0, chance=0.0, reading=reading(50.0, 0))
    assert change is None
    # Of the answers of this window two were on the line; the last is weighed by the sixth that was left of it.
    assert look(policy, 60.0) > 0.4 * base


def test_a_refusal_that_the_window_does_not_explain_cuts_and_two_end_the_belief() -> None:
    policy = led()
    rate = policy.rate
    change = policy.refused(20.0, 19.9, asked=0.0, chance=0.0, reading=reading(20.0, 50))
    assert change is not None
    assert change.new < rate
    assert policy.listens(20.0)
    policy.refused(21.0, 20.9, asked=0.0, chance=0.0)
    assert not policy.listens(30.0)


def test_when_the_window_is_no_longer_believed_the_law_continues_from_its_base() -> None:
    policy = led()
    base = policy.rate
    policy.succeeded(30.0, 30.0, reading(30.0, on_line(30.0, 0.25)))
    assert policy.rate == pytest.approx(base / 4)
    policy.succeeded(40.0, 40.0, reading(40.0, 50, end=95.0))
    assert policy.rate == pytest.approx(base)
    queue_up(policy, 40.0)
    assert look(policy, 50.0) > base


def test_after_a_long_silence_the_law_continues_from_the_base() -> None:
    policy = led()
    base = policy.rate
    policy.succeeded(50.0, 50.0, reading(50.0, on_line(50.0, 0.25)))
    queue_up(policy, 50.0)
    assert look(policy, 1000.0) > base / 4


def test_the_listener_is_told_of_the_base_and_not_of_every_move_within_a_window() -> None:
    policy = led()
    base = policy.rate
    changes = [policy.succeeded(float(now), now, reading(now, on_line(now, 1.2))) for now in range(7, 60)]
    assert changes == [None] * 53
    change = policy.succeeded(61.0, 61.0, reading(61.0, 99, end=120.0))
    assert change is not None
    assert change.reason == "rate limit headers"
    assert change.old == pytest.approx(base)
    assert change.new == pytest.approx(base * 1.2**0.8 + 0.02 * QUOTA, rel=0.03)


def test_without_quota_headers_answers_are_checked_once_a_second_and_at_each_refusal() -> None:
    policy = AimdLimiter(LIMIT, WINDOW)
    instants = [now / 100 for now in range(300)]
    assert [now for now in instants if policy.listens(now)] == [0.0, 1.0, 2.0]
    assert policy.listens(2.995, refused=True)
    policy.succeeded(3.0, 3.0, reading(3.0, 50))
    assert all(policy.listens(3.0 + now) for now in instants)


def test_plain_aimd_reads_no_headers() -> None:
    policy = AimdLimiter(LIMIT, WINDOW, penalty_factor=0.3)
    assert not policy.listens(0.0, refused=True)
    for now in (1.0, 6.0, 7.0):
        policy.succeeded(now, now, reading(now, 1))
    assert policy.rate == QUOTA


# The layers


class Server:
    """A server with a fixed window behind the layer, and the headers that it sends."""

    def __init__(self, world: World, style: str) -> None:
        self.quota = FixedWindow(20, 30.0)
        self.style = style
        self.events: list[Event] = []
        self.clock = FakeClock()
        self.policy = AimdLimiter(20, 30, max_wait_time=None)
        stack = StackBuilder(
            [adaptive(self.policy)], clock=self.clock, listener=self.events.append, random=lambda: 0.5
        )
        self.transport = world.build(stack, Wire(self._answer))
        self.statuses: list[int] = []
        self.world = world

    def _answer(self, request: httpx.Request) -> httpx.Response:
        now = self.clock.monotonic()
        status = 429 if self.quota.admit(now) else 200
        self.statuses.append(status)
        headers = rate_headers(self.style, self.quota, now, self.clock.utcnow())
        return httpx.Response(status, headers=headers)

    async def use(self, seconds: float) -> None:
        """Send one request after another for that long."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            await self.world.send(self.transport, httpx.Request("POST", "https://api.example.com/"))


@pytest.mark.parametrize("style", ["ietf", "github", "openai"])
async def test_with_headers_no_request_is_refused_and_nearly_all_of_the_quota_is_used(
    world: World, style: str
) -> None:
    server = Server(world, style)
    await server.use(90.0)
    server.statuses.clear()
    await server.use(300.0)
    assert server.statuses.count(429) == 0
    assert server.statuses.count(200) >= 0.9 * 20 * 10
    assert server.policy.listens(server.clock.monotonic())
    reasons = {event.reason for event in server.events if isinstance(event, RateChanged)}
    assert "rate limit headers" in reasons


async def test_a_share_that_others_take_is_left_to_them(world: World) -> None:
    server = Server(world, "ietf")
    await server.use(30.0)
    for _ in range(10):
        for _ in range(10):
            server.quota.admit(server.clock.monotonic())
        await server.use(30.0 - server.clock.monotonic() % 30)
    assert server.statuses.count(429) == 0
    assert server.policy.rate < 20 / 30


async def test_headers_that_contradict_themselves_are_no_longer_read(world: World) -> None:
    server = Server(world, "github")
    server.quota.time_window = 12.0
    await server.use(60.0)
    assert not server.policy.listens(math.inf, refused=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stkai.transports._adaptive.limiter.read_rate_limit", None)
        await server.use(10.0)


@pytest.mark.parametrize("window", [1e9, 1e15, 7200.0])
def test_a_window_far_longer_than_the_quotas_stops_no_request(window: float) -> None:
    policy = AimdLimiter(100, 60, max_wait_time=None)
    for second in range(20):
        now = float(second)
        policy.succeeded(now, sent=now, reading=Reading("long", 100.0, 0.0, window - now, window))
    assert policy.take(20.0)
    assert policy.remaining(Turn(), 20.0) < 60.0
