"""Members of a share: they join, change the quota, disagree about it, are forked, and report once more at their end."""

import gc
import multiprocessing
import os
import sys
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from stkai import (
    AimdLimiter,
    AllOf,
    Event,
    InFlight,
    QuotaDisagreement,
    RequestOptions,
    StackBuilder,
    StoreLost,
    TokenBucket,
)
from stkai.stores import Ask, FileStore, GroupRate, Lease, MemoryStore
from stkai.stores import _background_calls as calls_of_stores
from stkai.testing import FakeClock
from stkai.transports import Run, Turn, limiter

from ...support.forked import Forked
from ...support.interrupts import Interrupt, needs_opcodes
from ...support.shares import answer, wait_at, wait_for
from ...support.threads import together

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> "Noted":
    return Noted(clock)


class Noted(MemoryStore):
    """A store that keeps what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.asked: list[Ask] = []

    def lease(self, ask: Ask) -> Lease:
        self.asked.append(ask)
        return super().lease(ask)


class Blocking(Noted):
    """A store that may block, so that a thread calls it; in virtual time, it answers at once unless it hangs."""

    blocks = True
    hangs: float = 0.0

    def lease(self, ask: Ask) -> Lease:
        time.sleep(self.hangs)
        return super().lease(ask)


def test_a_permit_leased_at_a_low_rate_is_exchanged_when_the_rate_rises(
    clock: FakeClock, store: Noted
) -> None:
    policy, turn = TokenBucket(10, 1.0, burst=1, share="team", store=store), Turn()
    wait_for(policy, clock)

    def set_rate(rate: float) -> None:
        state = store._states["team"]
        assert store.amend(state.epoch, GroupRate("team", rate, 1.0, version=state.version))

    set_rate(0.001)
    operation: Any = policy.ask(turn, clock.monotonic())
    operation.sync(60.0)
    wait: Any = policy.ask(turn, clock.monotonic())
    assert wait > 900
    set_rate(10.0)
    assert wait_for(policy, clock, turn) < 3


def test_the_queue_itself_never_calls_a_store_that_may_block(clock: FakeClock) -> None:
    callers: list[int] = []

    class Watched(Blocking):
        def lease(self, ask: Ask) -> Lease:
            callers.append(threading.get_ident())
            return super().lease(ask)

    policy = TokenBucket(10, 1.0, share="team", store=Watched(clock))
    wait_for(policy, clock)
    assert policy._leased is not None
    callers.clear()
    turn = Turn()
    policy.ask(turn, clock.monotonic())
    policy.leave(turn, clock.monotonic())
    policy._leased.client._due = -1.0  # A report is overdue.
    policy._leased.client.after_step(clock.monotonic())
    assert threading.get_ident() not in callers


# The quota


def test_an_update_changes_the_quota_of_the_group(clock: FakeClock, store: Noted) -> None:
    first, second = (TokenBucket(10, 1.0, burst=1, share="team", store=store) for _ in range(2))
    for policy in (first, second):
        wait_for(policy, clock)
    first.update(max_requests=40)
    wait_for(first, clock)
    wait_for(second, clock)
    start = clock.monotonic()
    for _ in range(20):
        wait_for(first, clock)
        wait_for(second, clock)
    assert clock.monotonic() - start == pytest.approx(1.0, abs=0.1)
    assert (first.rate, second.rate) == (40, 40)
    assert (first.max_requests, second.max_requests) == (40, 10)


@pytest.mark.parametrize(
    ("quota", "faster"),
    [
        ({"max_requests": 1, "time_window": 600.0}, {"max_requests": 6000}),
        ({"max_requests": None, "time_window": 10.0, "max_cost": 10}, {"max_cost": 1000}),
    ],
)
def test_those_who_wait_for_a_slow_quota_notice_that_it_became_fast(
    quota: dict[str, Any], faster: dict[str, Any], clock: FakeClock, store: Noted
) -> None:
    policy = TokenBucket(**quota, share="team", store=store)
    wait_for(policy, clock, Turn(cost=10))
    turns = [Turn(cost=10) for _ in range(3)]
    for turn in turns:
        wait_at(clock.monotonic(), policy, clock, turn)
    policy.update(**faster)
    assert policy._leased is not None
    for _ in range(2):  # It reports the new quota, and exchanges the permit.
        policy._leased.client.after_step(clock.monotonic())
    assert sum(wait_for(policy, clock, turn) for turn in turns) <= 1.1


def test_the_last_update_applies_whichever_member_makes_it(clock: FakeClock, store: Noted) -> None:
    first, second = (TokenBucket(10, 1.0, burst=1, share="team", store=store) for _ in range(2))
    for number, policy in enumerate((first, second, first)):
        clock.sleep(5)
        policy.update(max_requests=20 + number)
        wait_for(policy, clock)
    wait_for(second, clock)
    assert (first.rate, second.rate) == (22, 22)


@pytest.mark.parametrize(
    ("mine", "theirs", "differences"),
    [
        ({}, {"burst": 5}, ("burst",)),
        ({"max_cost": 100}, {}, ("max_cost", "cost_rate")),
        ({"max_cost": 100}, {"max_cost": 50}, ("max_cost", "cost_rate")),
        ({}, {"methods": ["POST"]}, ("methods",)),
    ],
)
def test_a_disagreement_between_members_is_reported_with_all_that_differs(
    clock: FakeClock, store: Noted, mine: dict[str, Any], theirs: dict[str, Any], differences: tuple[str, ...]
) -> None:
    events: list[Event] = []
    old = TokenBucket(10, 1.0, share="team", store=store, **mine)
    stack = StackBuilder([limiter(old)], listener=[events.append], clock=clock)
    transport = stack.build(httpx.MockTransport(lambda _: httpx.Response(200)))
    wait_for(old, clock, Turn(cost=1.0))
    clock.sleep(2)
    new = TokenBucket(10, 1.0, share="team", store=store, **theirs)
    wait_for(new, clock, Turn(cost=1.0))
    clock.sleep(1)
    for _ in range(3):
        transport.handle_request(
            httpx.Request("POST", "https://api.test/", extensions={"stkai": _costs(mine)})
        )
        clock.sleep(1)
    (event,) = [event for event in events if isinstance(event, QuotaDisagreement)]
    assert event.differences == differences
    assert all(name in str(event) for name in differences)


def _costs(options: dict[str, Any]) -> RequestOptions:
    return RequestOptions(cost=1.0) if options.get("max_cost") else RequestOptions()


# Costs


def test_a_refused_call_costs_the_group_nothing(clock: FakeClock, store: Noted) -> None:
    policy = TokenBucket(1000, 1.0, max_cost=100, share="team", store=store)
    for _ in range(3):
        turn = Turn(cost=100)
        wait_for(policy, clock, turn)
        policy.learn(turn, answer(clock, 429))
    assert clock.monotonic() < 0.1


def test_a_shared_adaptive_limiter_heeds_the_servers_headers_about_tokens(
    clock: FakeClock, store: Noted
) -> None:
    policy = AimdLimiter(6000, 60, max_cost=6_000, share="team", store=store)
    turn = Turn(cost=10)
    wait_for(policy, clock, turn)
    headers = {"x-ratelimit-limit-tokens": "600", "x-ratelimit-remaining-tokens": "0"}
    policy.learn(turn, answer(clock, 200, **headers))
    assert wait_for(policy, clock, Turn(cost=100)) == pytest.approx(10, abs=1)


def test_a_cost_above_all_that_there_is_goes_in_its_turn_and_is_paid_afterwards(
    clock: FakeClock, store: Noted
) -> None:
    first, second = (TokenBucket(1000, 1.0, max_cost=100, share="team", store=store) for _ in range(2))
    assert wait_for(first, clock, Turn(cost=250)) < 0.1
    assert wait_for(second, clock, Turn(cost=50)) == pytest.approx(2.0, abs=0.1)


def test_a_cost_above_all_that_there_is_goes_sooner_when_units_come_back(
    clock: FakeClock, store: Noted
) -> None:
    policy = TokenBucket(1000, 10.0, max_cost=50, share="team", store=store)
    whole, above = Turn(cost=50), Turn(cost=99)
    wait_for(policy, clock, whole)
    assert wait_at(clock.monotonic(), policy, clock, above) == pytest.approx(10.0)
    policy.leave(whole, clock.monotonic())
    assert wait_for(policy, clock, above) < 2.5


def test_a_request_that_sleeps_is_woken_for_units_that_came_back_early(
    clock: FakeClock, store: Noted
) -> None:
    """If others ask a little later each time, it would otherwise miss every permit that they lease for it."""
    policy = TokenBucket(20, 10.0, max_cost=50, share="team", store=store)

    def ask(turn: Turn, at: float) -> float:
        return wait_at(at, policy, clock, turn)

    start, first, free, large, other = (
        clock.monotonic(),
        Turn(cost=15),
        Turn(cost=0),
        Turn(cost=45),
        Turn(cost=30),
    )
    wait_for(policy, clock, first)
    ask(free, start)
    ask(large, start)
    policy.settle(first, 500, start)
    ask(large, start + 0.48)
    assert ask(free, start + 0.5) == 0
    policy.settle(first, 1, start + 0.5)
    assert min(ask(other, start + 0.6), other.nap) >= 0.8
    assert min(ask(large, start + 1.0), large.nap) == 1.0
    ask(other, start + 1.5)
    assert large.is_woken
    assert ask(large, start + 1.5) == 0


def test_a_member_asks_again_at_once_when_permits_lapse_that_turns_still_wait_for(
    clock: FakeClock, store: Noted
) -> None:
    """The store has said that it has no more for seconds, but it gets these back: else two shares could stand still.

    Turns sleep for as long as the store has said.
    """
    policy = TokenBucket(1000, 10.0, max_cost=50, share="team", store=store)
    wait_for(policy, clock, Turn(cost=1))
    member, asleep, late = policy._leased, Turn(cost=45), Turn(cost=30)
    assert member is not None
    member.held.add(((0.0, 0.0, 1),), 30, clock.monotonic())
    member.group.retry_at = member.group.sleep_until = clock.monotonic() + 5.0
    assert policy.ask(asleep, clock.monotonic())
    assert asleep.nap == 1.0
    clock.advance(0.2)
    call = policy.ask(late, clock.monotonic())
    assert isinstance(call, Run)
    call.sync(60.0)
    assert asleep.is_woken
    assert policy.ask(asleep, clock.monotonic()) == 0


def test_two_shares_and_a_limit_in_flight_work_as_one_limiter(clock: FakeClock, store: Noted) -> None:
    limits = AllOf(
        TokenBucket(20, 1.0, burst=1, share="requests", store=store),
        TokenBucket(None, 1.0, max_cost=100, share="tokens", store=store),
        InFlight(4),
    )
    waits = []
    for _ in range(20):
        turn = Turn(cost=10)
        waits.append(wait_for(limits, clock, turn))
        limits.end(turn, clock.monotonic())
    assert clock.monotonic() == pytest.approx(1.0, abs=0.1)
    assert max(waits[1:]) < 0.2


# The end


def test_a_limiter_that_is_closed_reports_once_more_and_leaves_the_group(
    clock: FakeClock, store: Noted
) -> None:
    first, second = (TokenBucket(10, 1.0, max_cost=100, share="team", store=store) for _ in range(2))
    for policy in (first, second):
        turn = Turn(cost=1)
        wait_for(policy, clock, turn)
    policy.settle(turn, 60, clock.monotonic())
    second.close()
    last = store.asked[-1]
    assert (last.leaving, last.units_used) == (True, 60)
    snapshot = store.look("team")
    assert snapshot is not None
    assert snapshot.members == 1
    second.close()
    assert store.asked[-1] is last, "it has left already"
    wait_for(second, clock)
    snapshot = store.look("team")
    assert snapshot is not None
    assert snapshot.members == 2, "it joins again with its next request"


@pytest.mark.real_time
def test_closing_a_limiter_waits_a_quarter_of_a_second_at_most(clock: FakeClock) -> None:
    store = Blocking(clock)
    policy = TokenBucket(10, 1.0, share="team", store=store)
    wait_for(policy, clock)
    store.hangs = 5.0
    start = time.monotonic()
    policy.close()
    assert time.monotonic() - start < 2.0


SHORT_PROGRAM = """
import sys, httpx, stkai
bucket = stkai.TokenBucket(1000, 1, max_cost=100, share="short", store=sys.argv[1])
costs = dict(cost=lambda request: 1.0, settle=lambda response: 100.0)
wire = httpx.MockTransport(lambda request: httpx.Response(200))
with stkai.build_client(auth=None, retry=None, rate_limit=bucket, transport=wire, **costs) as client:
    client.post("https://api.test/")
"""


@pytest.mark.real_time
def test_short_programs_are_charged_what_their_calls_really_cost(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    start = time.monotonic()
    for _ in range(3):
        with Forked([sys.executable, "-c", SHORT_PROGRAM, store]) as process:
            assert process.wait(60) == 0
    snapshot = FileStore(tmp_path / "store").look("short")
    assert snapshot is not None
    assert snapshot.units <= 100 - 300 + 100 * (time.monotonic() - start) + 1
    assert snapshot.members == 0


def _post_and_settle(place: str) -> None:
    policy = TokenBucket(1000, 1.0, max_cost=1000, share="pool", store=place)
    turn = Turn(cost=1)
    wait_for(policy, turn=turn)
    policy.settle(turn, 500, time.monotonic())


@needs_fork
@pytest.mark.real_time
def test_a_child_of_multiprocessing_reports_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_of_stores, "LAST_REPORT", 30.0)  # Enough on a busy machine, too.
    place = f"file://{tmp_path}/store"
    child = multiprocessing.get_context("fork").Process(target=_post_and_settle, args=(place,))
    child.start()
    child.join(60)
    snapshot = FileStore(tmp_path / "store").look("pool")
    assert snapshot is not None
    assert snapshot.members == 0


@pytest.mark.real_time
def test_interrupts_while_threads_are_started_leave_the_calls_of_no_request_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    calls, done = calls_of_stores.BackgroundCalls(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        for _ in range(10):
            with pytest.raises(KeyboardInterrupt):
                calls.later(0.0, lambda: None)
    calls.later(0.0, done.set)
    assert done.wait(20)


@needs_opcodes
@pytest.mark.real_time
def test_an_interrupt_while_a_call_is_scheduled_leaves_no_lock() -> None:
    number = 1
    while True:
        calls, done = calls_of_stores.BackgroundCalls(), threading.Event()
        calls.later(60.0, lambda: None)  # A thread waits, so none is started.
        interrupt = Interrupt(number, "stores/_background_calls.py", threading.__file__)
        with interrupt.during():
            calls.later(60.0, lambda: None)
        later = threading.Thread(target=calls.later, args=(0.0, done.set), daemon=True)
        later.start()
        assert done.wait(20), number
        if interrupt.left > 0:
            break
        number += 1


def test_a_limiter_that_is_dropped_is_collected(clock: FakeClock, store: Noted) -> None:
    policy = TokenBucket(10, 1.0, share="team", store=store)
    wait_for(policy, clock)
    found = weakref.ref(policy)
    del policy
    gc.collect()
    assert found() is None


# Deadlines and forks


@pytest.mark.real_time
def test_a_deadline_is_kept_while_the_store_does_not_answer(clock: FakeClock) -> None:
    store = Blocking(clock)
    policy = TokenBucket(10, 1.0, share="team", store=store)
    store.hangs = 3.0
    operation: Any = policy.ask(Turn(), clock.monotonic())
    start = time.monotonic()
    operation.sync(0.1)
    assert time.monotonic() - start < 2.0


@pytest.mark.real_time
def test_a_store_that_hangs_at_once_is_lost_and_holds_no_request(clock: FakeClock) -> None:
    store, events = Blocking(clock), list[Event]()
    store.hangs = 30.0
    builder = StackBuilder(
        [limiter(TokenBucket(10, 1.0, share="team", store=store))], listener=[events.append]
    )
    transport = builder.build(httpx.MockTransport(lambda _: httpx.Response(200)))
    start = time.monotonic()
    for _ in range(2):
        assert transport.handle_request(httpx.Request("POST", "https://api.test/")).status_code == 200
    assert time.monotonic() - start < 10
    (lost,) = [event for event in events if isinstance(event, StoreLost)]
    assert "the store did not answer within 0.8 s" in lost.reason


def test_a_store_whose_long_timeout_does_not_pass_is_lost_with_an_event(clock: FakeClock) -> None:
    store, events, answered = Blocking(clock), list[Event](), threading.Event()
    policy = TokenBucket(10, 1.0, share="team", store=store)
    transport = StackBuilder([limiter(policy)], listener=[events.append], clock=clock).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    assert policy._leased is not None
    policy._leased.client._limit = None  # As for a RedisStore, whose user says how long it may take.
    store.lease = lambda ask: answered.wait(60)  # type: ignore[method-assign, assignment, return-value]
    turn, calls = Turn(), list[threading.Thread]()
    for _ in range(6):
        operation: Any = policy.ask(turn, clock.monotonic())
        if isinstance(operation, Run):
            calls.append(threading.Thread(target=operation.sync, args=(60.0,)))
            calls[-1].start()
            while policy._leased.calling.ask is None:  # type: ignore[union-attr]
                time.sleep(0)
        clock.advance(1.1)
    answered.set()
    for call in calls:
        call.join()
    transport.close()
    assert [type(event) for event in events] == [StoreLost]


@needs_fork
def test_a_forked_child_is_a_new_member_and_holds_nothing(clock: FakeClock, store: Noted) -> None:
    policy = TokenBucket(100, 1.0, share="team", store=store)
    for _ in range(3):
        wait_for(policy, clock)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            wait_for(policy, clock)
            asked = store.asked[-1]
            os.write(write, f"{asked.member} {asked.held} {asked.used}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    name, held, used = os.read(read, 1000).decode().split()
    assert name != store.asked[-1].member
    assert (held, int(used) <= 1) == ("0", True)


@pytest.mark.real_time
def test_many_threads_make_one_call_at_a_time(clock: FakeClock) -> None:
    store, most, now = Blocking(clock), [0], [0]
    inner = store.lease

    def lease(ask: Ask) -> Lease:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.005)
        try:
            return inner(ask)
        finally:
            now[0] -= 1

    store.lease = lease  # type: ignore[method-assign]
    policy = TokenBucket(200, 1.0, share="team", store=store)
    together(*[partial(wait_for, policy)] * 40)
    assert (policy.waiting, most[0]) == (0, 1)
    policy.close()  # Its last report waits for no other call.


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionRefusedError("no"), "ConnectionRefusedError: no"), (TimeoutError(), "TimeoutError")],
)
def test_a_store_that_was_never_reached_is_announced_at_once(
    clock: FakeClock, error: Exception, reason: str
) -> None:
    events: list[Event] = []

    class Dead(Blocking):
        def lease(self, ask: Ask) -> Lease:
            raise error

    policy = TokenBucket(10, 1.0, share="team", store=Dead(clock))
    stack = StackBuilder([limiter(policy)], listener=[events.append], clock=clock)
    transport = stack.build(httpx.MockTransport(lambda _: httpx.Response(200)))
    transport.handle_request(httpx.Request("POST", "https://api.test/"))
    (lost,) = [event for event in events if isinstance(event, StoreLost)]
    assert lost.reason == reason
