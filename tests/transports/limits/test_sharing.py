"""Limiters that share their quota through a store: which request goes when, and what happens when the store fails."""

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from stkai import (
    AimdLimiter,
    ConfigurationError,
    Event,
    InFlight,
    PerHost,
    QuotaDisagreement,
    RateChanged,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    StoreLost,
    StoreRestored,
    TokenBucket,
)
from stkai.stores import Ask, FileStore, Lease, MemoryStore
from stkai.stores._file import InUseError
from stkai.testing import FakeClock
from stkai.transports import (
    Answer,
    Attempt,
    Call,
    Context,
    LimiterTransport,
    Run,
    Sleep,
    Turn,
    limiter,
    retry,
)
from stkai.transports._limits.store_client import StoreClient

from ...support.shares import answer, wait_for
from ...support.wire import Wire
from ...support.world import World

TIMES = 12


class Scripted(MemoryStore):
    """A store that counts its calls and fails on demand."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.asked: list[Ask] = []
        self.fails = False

    def lease(self, ask: Ask) -> Lease:
        self.asked.append(ask)
        if self.fails:
            raise ConnectionError("nobody is there")
        return super().lease(ask)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Scripted:
    return Scripted(clock)


def bucket(store: Any, rate: float = 10.0, **others: Any) -> TokenBucket:
    return TokenBucket(rate, 1.0, share="team", store=store, **{"burst": 1, **others})


def client_of(policy: TokenBucket | AimdLimiter) -> StoreClient:
    """What calls the store for the limiter."""
    assert policy._leased is not None
    client: StoreClient = policy._leased.client
    return client


def stack(policy: Any, clock: FakeClock, listener: Any) -> httpx.BaseTransport:
    """A limiter alone, over a wire that answers 200."""
    wire = httpx.MockTransport(lambda _: httpx.Response(200))
    return limiter(policy).sync(wire, context=Context(clock=clock, listener=listener))


async def test_requests_of_two_processes_leave_at_the_rate_of_one_quota(
    world: World, clock: FakeClock, store: Scripted
) -> None:
    sent: list[float] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(clock.monotonic())
        return httpx.Response(200)

    members = [
        world.layer(limiter(bucket(store)), world.wire(*[note] * TIMES), context=Context(clock=clock))
        for _ in range(2)
    ]
    for number in range(TIMES):
        response = await world.send(members[number % 2], httpx.Request("POST", "https://api.test/"))
        await world.close(response)
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert gaps == pytest.approx([0.1] * (TIMES - 1), abs=0.01)


def test_a_member_serves_first_come_first_served(clock: FakeClock, store: Scripted) -> None:
    policy, turns, order = bucket(store), [Turn() for _ in range(6)], []
    waiting = list(turns)
    while waiting:
        for turn in list(waiting):
            wait = policy.ask(turn, clock.monotonic())
            if isinstance(wait, Run):
                wait.sync(60.0)
            elif not wait:
                order.append(turn)
                waiting.remove(turn)
        clock.sleep(0.01)
    assert order == turns


@pytest.mark.parametrize(
    "options",
    [RequestOptions(deadline=5.0), RequestOptions(max_wait_time=5.0), RequestOptions(max_wait_time=0.001)],
    ids=["deadline", "max_wait_time", "short"],
)
def test_calls_that_start_together_are_not_refused_before_the_store_has_answered(
    options: RequestOptions, clock: FakeClock, store: Scripted
) -> None:
    policy = TokenBucket(100, 60.0, share="team", store=store)
    first = policy.ask(Turn(), clock.monotonic())
    assert isinstance(first, Run)  # It has yet to call the store.
    request = httpx.Request("POST", "https://api.test/", extensions={"stkai": options})
    layer = LimiterTransport(Wire(), policy, context=Context(clock=clock))
    flow = layer.flow(request, Attempt(Call.start(request, clock.monotonic())))
    assert isinstance(flow.send(None), Sleep)
    flow.close()


def test_the_group_shares_its_burst_and_a_new_state_has_none(clock: FakeClock, store: Scripted) -> None:
    first, second = bucket(store, burst=3), bucket(store, burst=3)
    waits = [wait_for(first, clock), wait_for(second, clock)]
    assert waits == pytest.approx([0, 0.1], abs=0.01)
    clock.sleep(5)
    waits = [wait_for(policy, clock) for policy in (first, second, first, second)]
    assert waits == pytest.approx([0, 0, 0, 0.1], abs=0.01)


def test_a_request_that_gives_up_gives_its_place_to_the_next_that_asks(
    clock: FakeClock, store: Scripted
) -> None:
    first, second = bucket(store), bucket(store)
    wait_for(first, clock)
    impatient = Turn()
    for _ in range(3):
        wait = first.ask(impatient, clock.monotonic())
        if isinstance(wait, Run):
            wait.sync(60.0)
    first.leave(impatient, clock.monotonic())
    assert wait_for(second, clock) == pytest.approx(0.1, abs=0.01)


def test_an_unused_permit_is_not_lost(clock: FakeClock, store: Scripted) -> None:
    policy = bucket(store, burst=2)
    wait_for(policy, clock)
    clock.sleep(1)
    turn = Turn()
    wait_for(policy, clock, turn)
    policy.leave(turn, clock.monotonic())
    assert [wait_for(policy, clock) for _ in range(2)] == pytest.approx([0, 0], abs=0.01)


def test_a_permit_that_comes_back_is_used_before_one_that_another_member_holds_for_later(
    clock: FakeClock, store: Scripted
) -> None:
    first, second = (TokenBucket(2, 4, share="team", store=store) for _ in range(2))
    wait_for(first, clock)
    early, late = Turn(), Turn()
    for policy, turn in (first, early), (second, late):
        for _ in range(2):
            wait = policy.ask(turn, clock.monotonic())
            if isinstance(wait, Run):
                wait.sync(60.0)
    wait_for(first, clock, early)
    first.leave(early, clock.monotonic())
    assert wait_for(first, clock) == pytest.approx(0, abs=0.02)
    assert wait_for(second, clock, late) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("late", [0.06, 0.4])
def test_a_request_whose_event_loop_is_busy_uses_its_permit_late(
    clock: FakeClock, store: Scripted, late: float
) -> None:
    policy = bucket(store, rate=1000.0)
    for _ in range(3):
        turn = Turn()
        operation = policy.ask(turn, clock.monotonic())
        assert isinstance(operation, Run)
        operation.sync(60.0)
        clock.sleep(late)
        assert policy.ask(turn, clock.monotonic()) == 0


@pytest.mark.parametrize("busy", [0.06, 0.3, 0.9])
def test_a_busy_event_loop_has_permits_of_a_shared_adaptive_limiter(
    clock: FakeClock, store: Scripted, busy: float
) -> None:
    policy, turn, admitted = AimdLimiter(1000, 1.0, share="team", store=store), Turn(), 0
    for _ in range(40):
        found = policy.ask(turn, clock.monotonic())
        if isinstance(found, Run):
            found.sync(60.0)
        elif found == 0:
            turn, admitted = Turn(), admitted + 1
        clock.sleep(busy)
    assert admitted >= 10


def test_after_a_suspension_no_request_uses_a_permit_from_before(clock: FakeClock, store: Scripted) -> None:
    policy, turn = bucket(store, rate=1000.0), Turn()
    operation = policy.ask(turn, clock.monotonic())
    assert isinstance(operation, Run)
    operation.sync(60.0)
    clock.sleep(3.0)
    assert policy.ask(turn, clock.monotonic()) != 0


def test_the_others_get_what_a_dead_process_held_for_later(clock: FakeClock, store: Scripted) -> None:
    living, dead = (TokenBucket(2, 60, share="team", store=store) for _ in range(2))
    wait_for(living, clock)
    turns = {dead: Turn(), living: Turn()}
    for policy, turn in turns.items():
        operation = policy.ask(turn, clock.monotonic())
        assert isinstance(operation, Run)
        operation.sync(60.0)
    assert wait_for(living, clock, turns[living]) == pytest.approx(30, abs=0.1)


def test_a_member_that_was_silent_for_long_uses_no_permit_that_others_may_have_got(
    clock: FakeClock, store: Scripted
) -> None:
    policy, turn = TokenBucket(2, 60, share="team", store=store), Turn()
    wait_for(policy, clock)
    operation = policy.ask(turn, clock.monotonic())
    assert isinstance(operation, Run)
    operation.sync(60.0)
    clock.sleep(30)
    assert policy.ask(turn, clock.monotonic()) != 0


def test_a_permit_of_an_answer_that_is_read_after_a_suspension_is_not_used(
    clock: FakeClock, store: Scripted
) -> None:
    policy, turn = bucket(store, rate=1000.0), Turn()
    assert policy.ask(turn, 0.0) != 0
    member: Any = policy._leased
    call = member.calling
    lease = store.lease(member.begin_call(call, 0.0))
    member.end_call(call, lease, 3.0)
    assert lease.count > 0
    assert policy.ask(turn, 3.0) != 0


def test_units_of_cost_are_shared(clock: FakeClock, store: Scripted) -> None:
    first = bucket(store, rate=1000, burst=100, max_cost=100)
    second = bucket(store, rate=1000, burst=100, max_cost=100)
    assert wait_for(first, clock, Turn(cost=50)) < 0.02
    assert wait_for(second, clock, Turn(cost=100)) == pytest.approx(0.5, abs=0.02)
    turn = Turn(cost=100)
    wait_for(first, clock, turn)
    first.settle(turn, 20, clock.monotonic())
    wait_for(first, clock, Turn(cost=0))
    assert wait_for(second, clock, Turn(cost=80)) < 0.1


@pytest.mark.parametrize(("estimate", "real"), [(100, 900), (900, 100)])
def test_the_cost_of_a_call_is_corrected_however_long_the_member_was_silent(
    estimate: float, real: float, clock: FakeClock
) -> None:
    store = MemoryStore(clock)
    policy = TokenBucket(1000, 1000, max_cost=1000, share="team", store=store)
    wait_for(policy, clock, Turn(cost=0))
    clock.sleep(1000)  # A new state has no units yet.
    turn = Turn(cost=estimate)
    wait_for(policy, clock, turn)
    for _ in range(15):
        client_of(policy).work()
        clock.sleep(1)
    policy.settle(turn, real, clock.monotonic())
    wait_for(policy, clock, Turn(cost=0))
    client_of(policy).work()
    seen = store.look("team")
    assert seen is not None
    assert 1000 - real - 1 < seen.units < 1000 - real + 20


@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
def test_a_request_that_was_never_sent_costs_the_group_nothing(
    kind: type[TokenBucket] | type[AimdLimiter], clock: FakeClock, store: Scripted
) -> None:
    policy = kind(6000, 60, max_cost=600, share="team", store=store)
    wait_for(policy, clock, Turn(cost=1))  # A new state has no units yet.
    clock.sleep(60)
    for _ in range(3):
        turn = Turn(cost=600)
        assert wait_for(policy, clock, turn) < 1
        now = clock.monotonic()
        policy.learn(turn, Answer(now, now, None, httpx.ConnectError("refused"), clock.utcnow, 0.5))


def test_while_the_store_is_lost_each_member_keeps_to_its_part(clock: FakeClock, store: Scripted) -> None:
    first, second = bucket(store), bucket(store)
    for policy in (first, second, first, second):
        wait_for(policy, clock)
    store.fails = True
    asked = len(store.asked)
    start, granted = clock.monotonic(), 0
    while clock.monotonic() < start + 4:
        wait_for(first, clock)
        granted += 1
    assert granted == pytest.approx(20, abs=2)
    assert len(store.asked) <= asked + 8
    assert first.members == 2


@pytest.mark.no_cover
@pytest.mark.parametrize("meets_it_first", [True, False])
@pytest.mark.parametrize("burst", [1, None])
def test_while_the_store_is_lost_new_numbers_hold_for_this_member(
    clock: FakeClock, store: Scripted, burst: int | None, meets_it_first: bool
) -> None:
    store.fails = not meets_it_first
    policy = bucket(store, burst=burst)
    wait_for(policy, clock)
    store.fails = True

    def granted() -> int:
        start, granted = clock.monotonic(), 0
        while clock.monotonic() < start + 20:
            wait_for(policy, clock)
            granted += 1
        return granted

    assert granted() == pytest.approx(200, rel=0.1)
    policy.update(max_requests=40)
    assert granted() == pytest.approx(800, rel=0.1)
    policy.update(max_requests=2)
    assert granted() == pytest.approx(40, abs=12)
    store.fails = False
    clock.sleep(10)
    wait_for(policy, clock)
    assert granted() == pytest.approx(40, abs=3)


def test_new_numbers_hold_for_a_forked_child_that_never_reaches_the_store(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)
    wait_for(policy, clock)
    policy.update(max_requests=2)
    wait_for(policy, clock)
    policy.sources[0].order.forget()  # As in a child.
    store.fails = True
    start = clock.monotonic()
    for _ in range(40):
        wait_for(policy, clock)
    assert clock.monotonic() - start == pytest.approx(20.0, abs=5.0)


@pytest.mark.parametrize("max_requests", [10, None])
def test_while_the_store_is_lost_new_units_hold_for_this_member(
    clock: FakeClock, store: Scripted, max_requests: int | None
) -> None:
    policy = TokenBucket(max_requests, 1.0, max_cost=100, share="team", store=store)
    wait_for(policy, clock)
    store.fails = True
    wait_for(policy, clock)
    policy.update(max_cost=10)
    start = clock.monotonic()
    for _ in range(20):
        wait_for(policy, clock, Turn(cost=10.0))
    assert clock.monotonic() - start == pytest.approx(20.0, abs=3.0)


def test_a_bucket_whose_group_is_adaptive_now_outlives_an_outage(clock: FakeClock, store: Scripted) -> None:
    """As while a deployment replaces one limiter with the other: the quota then promises no window."""
    first, second = bucket(store), AimdLimiter(10.0, 1.0, share="team", store=store)
    for policy in (first, second) * 2:
        wait_for(policy, clock)
        clock.advance(1.1)
    store.fails = True
    for _ in range(20):
        wait_for(first, clock)
    store.fails = False
    client_of(first).work()
    assert sum(wait_for(first, clock) for _ in range(20)) < 10


def test_a_bucket_that_joins_an_adaptive_group_has_no_window_of_its_own(
    clock: FakeClock, store: Scripted
) -> None:
    first = bucket(store, 100.0)
    clock.advance(1.1)
    wait_for(AimdLimiter(100.0, 1.0, share="team", store=store), clock)
    assert sum(wait_for(first, clock) for _ in range(20)) < 3


def test_the_listener_gets_one_loss_and_one_return(clock: FakeClock, store: Scripted) -> None:
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)

    policy = bucket(store)
    transports = [stack(policy, clock, listener) for listener in (events.append, listen)]
    store.fails = True
    for transport in transports:
        for _ in range(3):
            transport.handle_request(httpx.Request("POST", "https://api.test/"))
    lost = [event for event in events if isinstance(event, StoreLost)]
    assert len(lost) == 2
    assert lost[0].share == "team"
    assert lost[0].call.host == "api.test"
    assert "nobody is there" in lost[0].reason
    assert "is not shared: " in str(lost[0])
    assert "starts with a tenth of it, then adapts alone" in str(lost[0])
    store.fails = False
    client_of(policy).work()
    assert len([event for event in events if isinstance(event, StoreRestored)]) == 2
    for _ in range(3):
        transports[0].handle_request(httpx.Request("POST", "https://api.test/"))
    assert len([event for event in events if isinstance(event, StoreLost | StoreRestored)]) == 4


def test_a_listener_that_sends_when_the_store_is_lost_waits_like_anybody_else(
    clock: FakeClock, store: Scripted
) -> None:
    policy, sent = bucket(store), list[float]()

    def serve(request: httpx.Request) -> httpx.Response:
        sent.append(clock.monotonic())
        return httpx.Response(200)

    def listen(event: Event) -> None:
        if isinstance(event, StoreLost):
            for _ in range(4):
                transport.handle_request(httpx.Request("POST", "https://api.test/"))

    context = Context(clock=clock, listener=listen)
    transport = limiter(policy).sync(httpx.MockTransport(serve), context=context)
    transport.handle_request(httpx.Request("POST", "https://api.test/"))
    store.fails = True
    for _ in range(3):
        transport.handle_request(httpx.Request("POST", "https://api.test/"))
    assert len(sent) == 8
    assert min(later - earlier for earlier, later in pairwise(sent)) > 0.04


def test_a_call_that_fails_after_its_limiter_was_dropped_ends_quietly(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)
    wait_for(policy, clock)
    client = client_of(policy)
    call = client.member.reserve_call(None, clock.monotonic())
    ask = client.member.begin_call(call, clock.monotonic())
    assert ask is not None
    client.member.outage.is_on = True  # So that there is nothing to report.
    client.retire()
    store.fails = True
    client._send(call, ask)
    assert client.member.outage.is_on


def test_a_store_that_fails_again_while_it_returns_is_in_the_same_outage(
    clock: FakeClock, store: Scripted
) -> None:
    events: list[str] = []
    policy = bucket(store)

    def listen(event: Event) -> None:
        events.append(type(event).__name__)

    transport = stack(policy, clock, listen)

    def fail(*, times: int) -> None:
        store.fails = True
        transport.handle_request(httpx.Request("POST", "https://api.test/"))
        for _ in range(times):
            client_of(policy).work()
        store.fails = False
        client_of(policy).work()
        transport.handle_request(httpx.Request("POST", "https://api.test/"))

    fail(times=1)
    fail(times=0)
    assert [name for name in events if name.startswith("Store")] == ["StoreLost", "StoreRestored"]
    fail(times=2)
    assert [name for name in events if name.startswith("Store")] == ["StoreLost", "StoreRestored"] * 2


def test_an_outage_after_a_quiet_time_is_a_new_one(clock: FakeClock, store: Scripted) -> None:
    policy, others = bucket(store), [bucket(store) for _ in range(9)]

    def lose() -> float:
        store.fails = True
        client_of(policy).work()
        return sum(wait_for(policy, clock) for _ in range(3))

    wait_for(policy, clock)
    assert lose() == pytest.approx(0.3, abs=0.1)  # It has the whole quota, since it is alone.
    store.fails = False
    client_of(policy).work()
    wait_for(policy, clock)
    for other in others:
        wait_for(other, clock)
    clock.sleep(2)
    client_of(policy).after_step(clock.monotonic())  # Which tells it the time.
    policy.update(max_requests=20)
    client_of(policy).work()
    assert policy.members == 10
    policy.update(max_requests=10)
    assert lose() == pytest.approx(3, abs=1)


@pytest.mark.parametrize("failures", [1, 3], ids=["it had a small part", "it adapted alone"])
def test_a_store_that_fails_again_after_it_named_the_members_leaves_each_its_part(
    clock: FakeClock, store: Scripted, failures: int
) -> None:
    policy, others = bucket(store, rate=100), [bucket(store, rate=100) for _ in range(49)]
    for other in others:
        wait_for(other, clock)
    client_of(policy).after_step(clock.monotonic())  # Which tells it the time.
    store.fails = True
    for _ in range(failures):
        client_of(policy).work()
        wait_for(policy, clock)
    store.fails = False
    client_of(policy).work()
    assert policy.members == 50
    store.fails = True
    client_of(policy).work()
    assert sum(wait_for(policy, clock) for _ in range(4)) == pytest.approx(2, abs=0.6)


def test_an_outage_that_no_request_notices_leaves_nothing_behind(clock: FakeClock, store: Scripted) -> None:
    policy = bucket(store)
    wait_for(policy, clock)
    store.fails = True
    client_of(policy).work()
    store.fails = False
    client_of(policy).work()
    asked = len(store.asked)
    assert wait_for(policy, clock) == pytest.approx(0.1, abs=0.01)
    assert len(store.asked) <= asked + 2


def test_a_lost_message_costs_the_group_no_permit_that_is_due_later(
    clock: FakeClock, store: Scripted
) -> None:
    first, second = (TokenBucket(2, 60, share="team", store=store) for _ in range(2))
    sent = [wait_for(first, clock)]
    waiting = {first: Turn(), second: Turn()}
    while waiting:
        store.fails = clock.monotonic() == 5
        for policy, turn in list(waiting.items()):
            wait = policy.ask(turn, clock.monotonic())
            if isinstance(wait, Run):
                wait.sync(60.0)
                store.fails = False
            elif not wait:
                sent.append(clock.monotonic())
                del waiting[policy]
        clock.sleep(0.5)
    assert sent == pytest.approx([0, 30, 60], abs=1)


def test_after_the_return_a_request_needs_both_clocks_for_a_while(clock: FakeClock, store: Scripted) -> None:
    first, second = bucket(store), bucket(store)
    for policy in (first, second, first):
        wait_for(policy, clock)
    store.fails = True
    for _ in range(3):
        wait_for(first, clock)
    store.fails = False
    client_of(first).work()
    start, granted = clock.monotonic(), 0
    while clock.monotonic() < start + 1.5:
        wait_for(first, clock)
        granted += 1
    assert granted <= 8  # Its own part, not the rest of the quota that the other leaves unused.
    start, granted = clock.monotonic(), 0
    while clock.monotonic() < start + 2:
        wait_for(first, clock)
        granted += 1
    assert granted == pytest.approx(20, abs=2)


@pytest.mark.no_cover
def test_a_store_that_reads_the_messages_of_an_outage_late_holds_up_no_request(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store, 50.0)

    def granted(seconds: float) -> int:
        until, granted = clock.monotonic() + seconds, 0
        while clock.monotonic() < until:
            wait_for(policy, clock)
            granted += 1
        return granted

    granted(2.0)
    store.fails, before = True, len(store.asked)
    granted(3.7)
    store.fails = False
    # As a stopped server does, which has already received them.
    for late in store.asked[before:]:
        MemoryStore.lease(store, late)
    assert granted(1.0) >= 48


def test_what_was_used_in_an_outage_counts_once_if_the_answer_to_the_report_is_lost(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)
    wait_for(policy, clock)
    store.fails = True
    for _ in range(TIMES):
        wait_for(policy, clock)
    store.fails = False
    client_of(policy).work()  # A probe.
    store.fails = True
    client_of(policy).work()
    assert store.asked[-1].own == TIMES
    MemoryStore.lease(store, store.asked[-1])
    store.fails = False
    for _ in ("probe", "report"):
        client_of(policy).work()
    snapshot = store.look("team")
    assert snapshot is not None
    assert snapshot.books["used"] == 1 + TIMES


def test_what_was_used_in_an_outage_and_comes_back_later_unbalances_no_book(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)
    wait_for(policy, clock)
    store.fails = True
    turn = Turn()
    for each in (Turn(), turn):
        wait_for(policy, clock, each)
    store.fails = False
    for _ in ("probe", "report"):
        client_of(policy).work()
    assert store.asked[-1].own == 2
    policy.leave(turn, clock.monotonic())
    for _ in range(3):
        wait_for(policy, clock)
    assert min(ask.own for ask in store.asked) == 0
    snapshot = store.look("team")
    assert snapshot is not None
    books = snapshot.books
    assert books["leased"] == books["used"] + books["returned"] + books["expired"] + books["held"]
    assert books["used"] >= 3


@pytest.mark.no_cover
@pytest.mark.parametrize("outage", [3, 20])
def test_units_spent_while_the_store_is_lost_are_not_there_again_when_it_returns(
    clock: FakeClock, store: Scripted, outage: int
) -> None:
    policy = TokenBucket(1000, 10.0, max_cost=100, burst=100, share="team", store=store)
    spent = list[float]()

    def spend(seconds: int) -> None:
        until = clock.monotonic() + seconds
        while clock.monotonic() < until:
            wait_for(policy, clock, Turn(cost=10))
            spent.append(clock.monotonic())

    spend(20)
    store.fails = True
    spend(outage)
    store.fails = False
    client_of(policy).work()
    spend(20)
    later = [instant for instant in spent if instant > 10]
    assert all(end - start > 8.9 for start, end in zip(later, later[10:], strict=False))
    assert later[-1] - later[0] == pytest.approx(len(later), abs=3)


@pytest.mark.no_cover
def test_after_an_outage_calls_that_cost_less_than_estimated_are_not_held_up(
    clock: FakeClock, store: Scripted
) -> None:
    policy = TokenBucket(1000, 1.0, max_cost=1000, share="team", store=store)

    def granted(seconds: float) -> int:
        until, granted = clock.monotonic() + seconds, 0
        while clock.monotonic() < until:
            turn = Turn(cost=100)
            wait_for(policy, clock, turn)
            clock.sleep(0.01)
            policy.settle(turn, 20, clock.monotonic())
            granted += 1
        return granted

    usual = granted(5) / 5
    store.fails = True
    granted(5)
    store.fails = False
    client_of(policy).work()
    assert granted(1) >= 0.8 * usual


@pytest.mark.parametrize("loses_state", [False, True])
def test_units_spent_while_the_store_is_lost_are_charged_though_a_request_was_refused(
    clock: FakeClock, store: Scripted, loses_state: bool
) -> None:
    policy = AimdLimiter(1000, 10, max_cost=100, share="team", store=store)
    for _ in range(3):
        with policy.permit(clock=clock, cost=0):
            clock.sleep(0.3)
    store.fails = True
    for cost in (30, 40):
        with policy.permit(clock=clock, cost=cost):
            pass
    with policy.permit(clock=clock, cost=0) as permit:
        permit.refused()
    store.fails = False
    if loses_state:
        store._states.clear()
    member = client_of(policy).member
    before = member.held.spent
    client_of(policy).work()
    assert member.held.spent - before == (0 if loses_state else pytest.approx(70, abs=10))


def test_what_a_request_cost_is_charged_though_it_was_sent_while_the_store_was_lost(
    clock: FakeClock, store: Scripted
) -> None:
    policy, turns = (
        TokenBucket(1000, 10.0, max_cost=100, share="team", store=store),
        [Turn(cost=1), Turn(cost=1)],
    )
    wait_for(policy, clock)
    store.fails = True
    for turn in turns:
        wait_for(policy, clock, turn)
    store.fails = False
    client_of(policy).work()
    before = client_of(policy).member.held.spent
    policy.settle(turns[0], 30, clock.monotonic())
    policy.settle(turns[0], 20, clock.monotonic())
    clock.sleep(5)  # The local sources are in force no longer.
    policy.settle(turns[1], 30, clock.monotonic())
    policy.settle(turns[1], 40, clock.monotonic())
    client_of(policy).work()
    assert store.asked[-1].units_used == before + 29 + 39


def test_a_store_that_was_never_reached_leaves_each_process_to_adapt(
    clock: FakeClock, store: Scripted
) -> None:
    store.fails = True
    policy = bucket(store, rate=10)
    start, granted = clock.monotonic(), 0
    while clock.monotonic() < start + 2:
        turn = Turn()
        wait_for(policy, clock, turn)
        granted += 1
        policy.learn(turn, answer(clock, 429 if granted > 5 else 200))
    assert 2 <= granted <= 15  # A constant rate would grant twenty.
    assert policy.members == 1


def test_a_process_keeps_to_a_small_part_while_others_use_the_file(clock: FakeClock, tmp_path: Path) -> None:
    class Held(FileStore):
        blocks = False
        error: type[TimeoutError] = InUseError

        def lease(self, ask: Ask) -> Lease:
            clock.advance(0.25)
            raise self.error("another process held the lock of the state file for 0.25 s")

    store, granted = Held(tmp_path), [0, 0]
    policy = bucket(store, rate=100)
    for phase, store.error in enumerate((InUseError, TimeoutError)):  # The holder is stopped then.
        start = clock.monotonic()
        while clock.monotonic() < start + 20:
            wait_for(policy, clock)
            granted[phase] += 1
    assert 100 < granted[0] <= 202
    assert granted[1] > 900, "it is alone"


def test_before_the_store_was_reached_costs_are_settled_in_the_process_alone(
    clock: FakeClock, store: Scripted
) -> None:
    store.fails = True
    policy = bucket(store, rate=1000, burst=100, max_cost=100)
    for _ in range(3):
        turn = Turn(cost=100)
        assert wait_for(policy, clock, turn) < 0.1
        policy.settle(turn, 0, clock.monotonic())
    store.fails = False
    wait_for(policy, clock, Turn(cost=1))
    assert store.asked[-1].units_used == 0


def test_a_lost_state_is_no_outage(clock: FakeClock, store: Scripted) -> None:
    events: list[Event] = []
    policy = bucket(store)
    transport = stack(policy, clock, events.append)
    for _ in range(3):
        transport.handle_request(httpx.Request("POST", "https://api.test/"))
        store._states.clear()
    assert [event for event in events if isinstance(event, StoreLost | StoreRestored)] == []


def test_after_its_state_was_lost_a_group_counts_for_ten_seconds_as_large_as_it_was(
    clock: FakeClock, store: Scripted
) -> None:
    first, second = bucket(store), bucket(store)
    for policy in (first, second, first):
        wait_for(policy, clock)
    store._states.clear()
    wait_for(first, clock)
    assert first.members == 2, "each will use half of the quota if the store is lost once more"
    clock.sleep(10.0)
    wait_for(first, clock)
    assert first.members == 1


def test_an_overruled_member_says_so_once(clock: FakeClock, store: Scripted) -> None:
    events: list[Event] = []
    old = bucket(store, rate=10)
    transport = stack(old, clock, events.append)
    wait_for(old, clock)
    new = bucket(store, rate=20)
    wait_for(new, clock)
    for _ in range(3):
        transport.handle_request(httpx.Request("POST", "https://api.test/"))
    disagreements = [event for event in events if isinstance(event, QuotaDisagreement)]
    assert [(event.share, event.mine, event.theirs) for event in disagreements] == [("team", 10, 20)]
    assert old.rate == 20


def test_a_429_pauses_the_whole_group_for_as_long_as_the_server_says(
    clock: FakeClock, store: Scripted
) -> None:
    first, second = (AimdLimiter(600, 60, share="team", store=store) for _ in range(2))
    for policy in (first, second):
        wait_for(policy, clock)
    turn = Turn()
    wait_for(first, clock, turn)
    refused = clock.monotonic()
    first.learn(turn, answer(clock, 429, **{"Retry-After": "7"}))
    assert turn.paced
    wait_for(second, clock)
    assert clock.monotonic() - refused >= 7
    again = Turn(number=turn.number)
    wait_for(first, clock, again)
    assert clock.monotonic() - refused >= 7


def test_a_refusal_cuts_the_rate_of_the_group_once(clock: FakeClock, store: Scripted) -> None:
    first, second = (AimdLimiter(600, 60, share="team", store=store) for _ in range(2))
    turns = [Turn(), Turn()]
    for policy, turn in zip((first, second), turns, strict=True):
        wait_for(policy, clock, turn)
        policy.learn(turn, answer(clock))
    before = first.rate
    for policy, turn in zip((first, second), turns, strict=True):
        policy.learn(turn, answer(clock, 429, **{"Retry-After": "1"}))
    for policy in (first, second):
        wait_for(policy, clock)
    assert before * 0.4 < first.rate < before
    assert second.rate == pytest.approx(first.rate, rel=0.2)


def test_a_refusal_in_an_outage_is_reported_afterwards_and_cuts_once(
    clock: FakeClock, store: Scripted
) -> None:
    policy = AimdLimiter(600, 60, share="team", store=store)
    turns = [Turn(), Turn()]
    for turn in turns:
        wait_for(policy, clock, turn)
    policy.learn(turns[0], answer(clock))
    before = policy.rate
    store.fails = True
    policy.learn(turns[1], answer(clock, 429, **{"Retry-After": "2"}))
    refused = clock.monotonic()
    store.fails = False
    client_of(policy).work()
    for _ in range(20):
        wait_for(policy, clock)
    assert clock.monotonic() - refused >= 2
    assert [ask.refused is not None for ask in store.asked].count(True) >= 1
    assert policy.rate > 0.3 * before


@pytest.mark.parametrize("others", [[], [InFlight(8)]], ids=["alone", "in a list"])
async def test_a_change_of_the_groups_rate_names_the_share(world: World, others: list[Any]) -> None:
    clock, events = FakeClock(), list[Event]()
    shared = AimdLimiter(600, 60, share="team", store=MemoryStore(clock))
    stack = StackBuilder(
        [retry(RetryPolicy()), limiter([shared, *others])], clock=clock, listener=[events.append]
    )
    refusal = httpx.Response(429, headers={"Retry-After": "1"})
    await world.send(world.build(stack, world.wire(refusal, 200)), httpx.Request("POST", "http://a.example"))
    assert {event.share for event in events if isinstance(event, RateChanged)} == {"team"}


@pytest.mark.no_cover
def test_a_group_grows_while_requests_are_held_back(clock: FakeClock, store: Scripted) -> None:
    policy = AimdLimiter(600, 60, share="team", store=store)
    wait_for(policy, clock)
    before = policy.rate
    turns = [Turn() for _ in range(50)]
    start = clock.monotonic()
    while clock.monotonic() < start + 10:
        for turn in turns:
            wait = 0.0 if turn.granted else policy.ask(turn, clock.monotonic())
            if isinstance(wait, Run):
                wait.sync(60.0)
        clock.sleep(0.05)
    assert before * 1.5 < policy.rate <= 10


@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
def test_a_store_without_a_share_is_a_configuration_error(kind: Any, store: Scripted) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        kind(10, 1, store=store)


@pytest.mark.parametrize("kind", [TokenBucket, AimdLimiter])
@pytest.mark.parametrize("share", ["", "  ", 7, b"x"])
def test_a_share_needs_a_name(kind: Any, share: Any) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        kind(10, 1, share=share)


def test_the_repr_names_share_and_store_without_a_password() -> None:
    policy = TokenBucket(10, 1, share="team", store="redis://user:hunter2@127.0.0.1:1/0")
    assert "'team'" in repr(policy)
    assert "127.0.0.1:1" in repr(policy)
    assert "hunter2" not in repr(policy)
    assert policy.store is not None


def test_limiters_of_each_host_tell_the_listener_too(clock: FakeClock, store: Scripted) -> None:
    events: list[Event] = []
    store.fails = True
    policy = PerHost(lambda origin: TokenBucket(10, 1, share=origin, store=store))
    transport = stack(policy, clock, events.append)
    transport.handle_request(httpx.Request("POST", "https://api.test/"))
    assert [event.share for event in events if isinstance(event, StoreLost)] == ["https://api.test"]


def test_a_configuration_error_of_the_store_reaches_the_first_call_only(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)

    def refuse(ask: Ask) -> Lease:
        raise ConfigurationError("two machines share one state file")

    lease = store.lease
    store.lease = refuse  # type: ignore[method-assign]
    turn = Turn()
    with pytest.raises(ConfigurationError, match="two machines"):
        wait_for(policy, clock, turn)
    store.lease = lease  # type: ignore[method-assign]
    policy.leave(turn, clock.monotonic())
    assert wait_for(policy, clock) < 0.2
    store.lease = refuse  # type: ignore[method-assign]
    clock.sleep(1)
    assert wait_for(policy, clock) < 1


def test_an_interrupt_while_the_store_is_asked_leaves_the_queue_as_it_was(
    clock: FakeClock, store: Scripted
) -> None:
    policy = bucket(store)
    wait_for(policy, clock)

    def interrupt(ask: Ask) -> Lease:
        raise KeyboardInterrupt

    lease, store.lease = store.lease, interrupt  # type: ignore[method-assign]
    turn = Turn()
    with pytest.raises(KeyboardInterrupt):
        wait_for(policy, clock, turn)
    store.lease = lease  # type: ignore[method-assign]
    policy.leave(turn, clock.monotonic())
    assert policy.waiting == 0
    assert wait_for(policy, clock) <= 0.2


@pytest.mark.real_time
def test_a_thread_reports_to_a_blocking_store_what_no_request_will(clock: FakeClock) -> None:
    reported = threading.Event()

    class Blocking(MemoryStore):
        blocks = True

        def lease(self, ask: Ask) -> Lease:
            if ask.refused is not None:
                reported.set()
            return super().lease(ask)

    policy = AimdLimiter(600, 60, share="team", store=Blocking(clock))
    turn = Turn()
    wait_for(policy, clock, turn)
    policy.learn(turn, answer(clock, 429))
    assert reported.wait(5)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((TokenBucket, 50, 1.0, None), "50 requests/s"),
        ((TokenBucket, None, 10.0, 300), "300 units per 10 s"),
        ((TokenBucket, 50, 1.0, 300), "50 requests/s and 300 units per 1 s"),
        ((AimdLimiter, 50, 1.0, None), "adaptive rate"),
    ],
    ids=["requests", "units", "both", "adaptive"],
)
def test_a_share_that_holds_up_a_request_says_what_it_limits_and_not_its_rate_of_the_moment(
    clock: FakeClock, store: Scripted, numbers: tuple[Any, ...], words: str
) -> None:
    kind, requests, window, units = numbers
    policy = kind(requests, window, max_cost=units, share="team", store=store)
    for _ in range(3):
        wait_for(policy, clock)
        policy.learn(Turn(), answer(clock))
        assert policy._leased.limit == f"{words}, shared as 'team'"
