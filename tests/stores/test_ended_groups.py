"""What a store keeps of an adaptive group whose members are gone: its rate, for an hour, or for a day if asked to."""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stkai import AimdLimiter
from stkai.stores import FileStore, MemoryStore, Store
from stkai.testing import FakeClock
from stkai.transports import Answer, Turn

from ..support.redis_servers import Server, installed
from ..support.shares import wait_for
from .clients import OnClock, patient_store

pytestmark = pytest.mark.no_cover

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
COLD = 2.0
"""Requests per second at which a new group of 600 per minute starts."""


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not installed("redis"):
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with Server("redis", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start=1000.0)


@pytest.fixture(params=["memory", "file", "redis"])
def store(
    request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """Each kind of store, in virtual time."""
    if request.param == "memory":
        yield MemoryStore(clock)
    elif request.param == "file":
        monkeypatch.setattr("stkai.stores._file.clock", clock)
        # Members report in threads of their own, which wait for the lock in real time.
        monkeypatch.setattr("stkai.stores._file.lock", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX))
        yield FileStore(tmp_path / "store")
    else:
        server: Server = request.getfixturevalue("redis_server")
        with server.client(socket_timeout=5) as client:
            client.flushall()
            yield patient_store(OnClock(client, clock.monotonic))


def a_member(store: Store, *, warm: bool = False) -> AimdLimiter:
    return AimdLimiter(600, 60, share="team", store=store, warm_start="team" if warm else None)


def send(policy: AimdLimiter, clock: FakeClock, status: int | None = None) -> None:
    """Take a permit and learn from an answer, as a flow does."""
    turn = Turn()
    wait_for(policy, clock, turn)
    now = clock.monotonic()
    clock.sleep(0.01)
    response = httpx.Response(status or 200, headers={"Retry-After": "1"})
    policy.learn(turn, Answer(now, clock.monotonic(), response, None, clock.utcnow, 0.0))


def a_group_that_ended(store: Store, clock: FakeClock) -> float:
    """Members send for a while, are refused once, and end; returns the group's rate."""
    members = [a_member(store) for _ in range(2)]
    for number in range(50):
        send(members[number % 2], clock)
    send(members[0], clock, 429)
    for member in members:
        for _ in range(3):
            send(member, clock)
    assert members[0].rate != pytest.approx(COLD, rel=0.2)
    for member in members:
        member.close()  # Otherwise a thread might report later, as a member of a group that has not ended.
    return members[0].rate


@pytest.mark.parametrize(
    ("store", "after", "warm", "goes_on"),
    [
        ("memory", 11.0, True, True),
        ("memory", 50 * MINUTE, False, True),
        ("memory", HOUR + MINUTE, False, False),
        ("memory", HOUR + MINUTE, True, True),
        ("memory", 23 * HOUR, True, True),
        ("memory", DAY + MINUTE, True, False),
        (
            "file",
            HOUR + MINUTE,
            False,
            False,
        ),  # The limits are in the step; each store keeps its state for long enough.
        ("file", 23 * HOUR, True, True),
        ("redis", HOUR + MINUTE, False, False),
        ("redis", 23 * HOUR, True, True),
        ("redis", DAY + MINUTE, True, False),
    ],
    indirect=["store"],
)
def test_a_group_goes_on_where_the_last_one_ended_within_an_hour_or_within_a_day_if_it_starts_warm(
    store: Store, clock: FakeClock, after: float, warm: bool, goes_on: bool
) -> None:
    ended = a_group_that_ended(store, clock)
    clock.advance(after)
    for member in [a_member(store, warm=warm) for _ in range(2 if goes_on else 1)]:
        send(member, clock)
        assert member.rate == pytest.approx(ended if goes_on else COLD, rel=0.1)
        member.close()


@pytest.mark.parametrize(("idle", "joins"), [(30.0, False), (5 * MINUTE, True), (50 * MINUTE, False)])
def test_a_refusal_after_an_idle_time_is_no_reason_to_start_over(
    clock: FakeClock, idle: float, joins: bool
) -> None:
    store = MemoryStore(clock)
    member = a_member(store)
    for _ in range(200):
        send(member, clock)
    send(member, clock, 429)
    for _ in range(50):
        send(member, clock)
    before = member.rate
    clock.advance(idle)
    if joins:
        member = a_member(store)
    for _ in range(3):
        send(member, clock)
    send(member, clock, 429)
    send(member, clock)
    assert 0.8 * before < member.rate <= before


def test_a_member_that_was_idle_for_hours_keeps_the_rate_of_its_group(store: Store, clock: FakeClock) -> None:
    member = a_member(store)
    for _ in range(100):
        send(member, clock)
    before = member.rate
    clock.advance(5 * HOUR)
    send(member, clock)
    assert member.rate == pytest.approx(before, rel=0.1)
    member.close()
