"""A group that shares an adaptive limiter: what its members learn from headers, and how they keep one common state."""

import json
import math
import random
from typing import Any

import httpx
import pytest
from benchmarks.adaptive.rate_headers import rate_headers
from hypothesis import given
from hypothesis import strategies as st

from stkai import AimdLimiter
from stkai.stores import GroupRate, Lease, MemoryStore, Quota
from stkai.testing import FakeClock
from stkai.testing._service import FixedWindow
from stkai.transports import Answer, Turn
from stkai.transports._limits.pace.group import GroupPace, GroupState
from stkai.transports._limits.pace.headers import Reading
from stkai.transports._limits.pace.quota import KnownQuota
from stkai.transports._limits.pace.window_guide import WindowGuide

from ....support.shares import wait_for

pytestmark = pytest.mark.no_cover

LIMIT, WINDOW = 100, 60.0
QUOTA = LIMIT / WINDOW


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Team:
    """Members that send one request after another to a server whose window they share with others."""

    def __init__(self, clock: FakeClock, members: int = 2, **options: Any) -> None:
        self.clock = clock
        self.store = MemoryStore(clock)
        self.members = [
            AimdLimiter(LIMIT, WINDOW, share="team", store=self.store, **options) for _ in range(members)
        ]
        self.window = FixedWindow(LIMIT, WINDOW)
        self.refused = 0

    def go(self, member: int) -> Turn:
        """Wait for a permit."""
        turn = Turn()
        wait_for(self.members[member], self.clock, turn)
        return turn

    def learn(self, member: int, turn: Turn, status: int, headers: Any) -> None:
        now = self.clock.monotonic()
        response = httpx.Response(status, headers=headers)
        self.members[member].learn(turn, Answer(now, now, response, None, self.clock.utcnow, 0.0))

    def post(self, member: int, *, headers: Any = None) -> None:
        turn, now = self.go(member), self.clock.monotonic()
        wait = self.window.admit(now)
        self.refused += bool(wait)
        given = rate_headers("ietf", self.window, now, self.clock.utcnow()) if headers is None else headers
        extra = [(b"retry-after", b"%d" % math.ceil(wait))] if wait else []
        self.learn(member, turn, 429 if wait else 200, [*httpx.Headers(given).raw, *extra])

    def post_for(self, seconds: float) -> int:
        """All members in turn; returns how many requests they sent."""
        until, sent = self.clock.monotonic() + seconds, 0
        while self.clock.monotonic() < until:
            self.post(sent % len(self.members))
            sent += 1
        return sent

    @property
    def memory(self) -> GroupState:
        found = GroupState.of(self.store._states["team"].memory)
        assert found is not None
        return found

    @property
    def guide(self) -> WindowGuide:
        """What the group knows about the window."""
        guide = WindowGuide(KnownQuota(LIMIT, WINDOW))
        guide.resume(self.memory.window, self.clock.monotonic())
        return guide


def test_a_group_uses_a_described_window_without_a_refusal(clock: FakeClock) -> None:
    team = Team(clock, members=3)
    team.post_for(WINDOW)
    sent = team.post_for(4 * WINDOW)
    assert team.refused == 0
    assert sent >= 0.95 * 4 * LIMIT


def test_what_one_member_learns_slows_the_others(clock: FakeClock) -> None:
    team = Team(clock)
    team.post_for(WINDOW)
    before = team.members[1].rate
    for _ in range(60):
        team.window.admit(clock.monotonic())  # Strangers, who use the same key.
    team.post(0)
    team.go(0)
    team.go(1)
    assert team.members[1].rate < 0.3 * before


def test_a_group_waits_for_the_reset_when_nothing_is_left(clock: FakeClock) -> None:
    team = Team(clock)
    team.post_for(WINDOW)
    while team.window.remaining(clock.monotonic()) > 1:
        team.window.admit(clock.monotonic())
    team.post(0)
    assert team.window.remaining(clock.monotonic()) == 0
    reset = clock.monotonic() + team.window.reset_in(clock.monotonic())
    team.go(1)
    assert clock.monotonic() >= reset
    assert team.refused == 0


def test_a_refusal_that_the_window_explains_cuts_nothing(clock: FakeClock) -> None:
    team = Team(clock)
    team.post_for(WINDOW)
    turns = [team.go(0), team.go(1)]
    cuts = team.memory.epoch
    headers = {
        "ratelimit-policy": '"default";q=100;w=60',
        "ratelimit": '"default";r=0;t=3',
        "retry-after": "3",
    }
    left = team.window.reset_in(clock.monotonic())
    headers["ratelimit"] = f'"default";r=0;t={math.ceil(left)}'
    for member, turn in enumerate(turns):
        team.learn(member, turn, 429, headers)
    team.go(0)
    assert team.memory.epoch == cuts
    assert team.guide.listening


@pytest.mark.parametrize(
    ("name", "left", "reset"),
    [("default", 1, 30), ("default", 0, 900), ("other", 0, 30), ("default", 0, 200)],
)
def test_a_group_does_not_wait_for_the_reset_of_another_window(
    clock: FakeClock, name: str, left: int, reset: int
) -> None:
    team = Team(clock)
    team.post_for(WINDOW)
    before = clock.monotonic()
    team.post(
        0, headers={"ratelimit-policy": f'"{name}";q=100;w=60', "ratelimit": f'"{name}";r={left};t={reset}'}
    )
    team.go(1)
    assert clock.monotonic() - before < 10


def test_two_refusals_that_no_window_explains_end_the_belief_in_it(clock: FakeClock) -> None:
    team = Team(clock)
    team.post_for(WINDOW)
    for _ in range(2):
        turn = team.go(0)
        assert team.guide.in_force
        team.learn(0, turn, 429, {"retry-after": "1"})
        team.post(0)
        team.post_for(1)
    assert not team.guide.listening
    assert not team.guide.in_force
    assert team.memory.epoch > 0


def test_plain_aimd_reads_no_headers_in_a_group(clock: FakeClock) -> None:
    team = Team(clock, penalty_factor=0.3)
    team.post_for(10)
    assert team.memory.window == ()


def test_a_window_of_days_is_not_followed(clock: FakeClock) -> None:
    team = Team(clock)
    daily = {"ratelimit-policy": '"daily";q=5000;w=86400', "ratelimit": '"daily";r=0;t=40000'}
    for _ in range(12):
        team.post(0, headers=daily)
        clock.sleep(1)
    assert team.memory.window == ()
    assert clock.monotonic() < 1000


@pytest.mark.parametrize(
    "memory",
    [
        "[]",
        "7",
        '{"a": 1}',
        "[1, 2, 3]",
        "nonsense",
        "[0,1,0,0,0,0,1,0,0,0]",
        json.dumps([0] * 10 + [["a", 1]]),
        json.dumps([0] * 10 + [["a", *[None] * 19]]),
        "[1" + "0" * 400 + ",[]]",
    ],
)
def test_a_state_in_another_format_is_replaced(clock: FakeClock, memory: str) -> None:
    team = Team(clock)
    team.post_for(3)
    team.store._states["team"].memory = memory
    team.post_for(10)
    assert team.memory.window


def test_a_member_that_asks_just_after_another_still_has_its_successes_counted(clock: FakeClock) -> None:
    pace = GroupPace(KnownQuota(LIMIT, WINDOW))
    state = GroupState(cold=0, accepted=10.0, seconds=30.0)

    def lease(now: float) -> Lease:
        law = GroupRate("team", QUOTA, 1.0, state.text(), version=round(now), age=0.01)
        return Lease(1, law, Quota(QUOTA), members=2)

    assert pace.steer(lease(0.0), 1, 0.0) is None
    pace.learn(Turn(), Answer(0.0, 0.0, httpx.Response(200), None, clock.utcnow, 0.0), 0, QUOTA)
    written = [pace.steer(lease(now), 1, now) for now in (0.5, 1.0, 1.4)]
    for law in written:
        if law is not None:
            pace.steered(law, done=True)
    (law,) = [law for law in written if law is not None]
    after = GroupState.of(law.memory)
    assert after is not None
    assert after.accepted > state.accepted


numbers = st.floats(0, LIMIT)


@given(
    readings=st.lists(st.tuples(st.floats(0.01, 20), numbers, st.booleans()), max_size=12),
    more=st.lists(st.tuples(st.floats(0.01, 20), numbers, st.booleans()), max_size=6),
    shift=st.floats(-1e6, 1e6),
)
def test_a_guide_resumes_from_its_state_as_if_it_had_never_stopped(
    readings: list[tuple[float, float, bool]], more: list[tuple[float, float, bool]], shift: float
) -> None:
    def take(guide: WindowGuide, answers: list[tuple[float, float, bool]], now: float, zero: float) -> float:
        for gap, remaining, refused in answers:
            now += gap
            reset = WINDOW - (now - zero) % WINDOW
            guide.observe(Reading("q", LIMIT, remaining, reset, WINDOW), now, now, 0.5, refused=refused)
        return now

    guide, other = WindowGuide(KnownQuota(LIMIT, WINDOW)), WindowGuide(KnownQuota(LIMIT, WINDOW))
    now = take(guide, readings, 0.0, 0.0)
    other.resume(tuple(json.loads(json.dumps(guide.state(now)))), now + shift)
    assert other.in_force == guide.in_force
    take(guide, more, now, 0.0)
    take(other, more, now + shift, shift)
    assert (other.in_force, other.listening) == (guide.in_force, guide.listening)
    assert other.rate == pytest.approx(guide.rate, rel=1e-3)


def test_a_state_fits_into_the_file_whatever_the_name_of_the_quota(clock: FakeClock) -> None:
    team = Team(clock)
    name = "".join(random.Random(1).choices("äß€𝄞x", k=2000))  # noqa: S311 - nothing here is a secret
    for _ in range(12):
        headers = {"ratelimit-policy": f'"{name}";q=100;w=60', "ratelimit": f'"{name}";r=50;t=60'}
        team.post(0, headers={key: value.encode() for key, value in headers.items()})
    assert len(team.store._states["team"].memory.encode()) <= 1024
