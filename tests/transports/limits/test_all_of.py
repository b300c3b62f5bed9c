"""Several limits at once: all or nothing, in one line, each with its own methods and costs."""

import heapq
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import stkai
from stkai import (
    AimdLimiter,
    AllOf,
    ConfigurationError,
    InFlight,
    PerHost,
    PerKey,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
    Waited,
)
from stkai.stores import FileStore, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Answer, RateChange, Run, Turn, limiter, retry
from stkai.transports._limits.in_flight import Slots
from stkai.transports._limits.queue import Queue
from stkai.transports._limits.sources.request_limits import Rate, Window
from stkai.transports._limits.sources.units import Units

from ...support.crowd import Waiter, drive, took
from ...support.event_log import EventLog
from ...support.shares import answer, wait_at
from ...support.world import World

URL = "https://api.example.com/v1"


def post(**more: Any) -> httpx.Request:
    return httpx.Request("POST", URL, **more)


def test_a_request_takes_from_all_or_from_none() -> None:
    many, few, places = TokenBucket(5, 60), TokenBucket(2, 60), InFlight(3)
    both = AllOf(many, few, places)
    turns = [Turn() for _ in range(4)]
    assert [both.ask(turn, 0.0) == 0 for turn in turns] == [True, True, False, False]
    assert places.busy == 2
    for turn in turns[2:]:
        both.leave(turn, 0.0)
    assert [took(many, 0.0) > 0 for _ in range(4)] == [True, True, True, False]


def test_what_is_given_back_goes_back_to_all() -> None:
    many, places = TokenBucket(2, 60, max_cost=100), InFlight(2)
    both = AllOf(many, places)
    turns = [Turn(cost=50.0) for _ in range(2)]
    assert [both.ask(turn, 0.0) for turn in turns] == [0, 0]
    for turn in turns:
        both.leave(turn, 1.0)
    assert [both.ask(Turn(cost=50.0), 1.0) for _ in range(2)] == [0, 0]
    assert places.busy == 2


def test_parts_that_are_also_used_alone_share_one_line() -> None:
    total = TokenBucket(1, 10)
    first, second = AllOf(total, InFlight(5)), AllOf(TokenBucket(100, 1), total)
    assert took(total, 0.0)
    turns = [Turn() for _ in range(3)]
    policies = [first, total, second]
    waits = [policy.ask(turn, 0.0) for policy, turn in zip(policies, turns, strict=True)]
    assert waits == [10.0, 20.0, 30.0]
    assert total.waiting == 3
    for number, (policy, turn) in enumerate(zip(policies, turns, strict=True), start=1):
        assert [
            each.ask(other, 10.0 * number) == 0
            for each, other in list(zip(policies, turns, strict=True))[number:]
        ] == [False] * (3 - number)
        assert policy.ask(turn, 10.0 * number) == 0


@pytest.mark.no_cover
@pytest.mark.parametrize("common", ["places", "rate", "none"])
def test_an_adaptive_limit_grows_while_a_request_before_waits_for_another_one(common: str) -> None:
    adaptive, places, slow = AimdLimiter(), InFlight(99), TokenBucket(1, 1000)
    both, other = AllOf(adaptive, places), AllOf(slow, adaptive if common == "rate" else places)
    assert took(slow, 0.0)
    if common != "none":
        assert other.ask(waiter := Turn(), 0.0) == 1000.0
        assert waiter.held_by in slow.sources
    turns, response, date = [Turn() for _ in range(5)], httpx.Response(200), FakeClock().utcnow
    for tick in range(1000):
        now = tick / 100
        for turn in [turn for turn in turns if both.ask(turn, now) == 0]:
            both.learn(turn, Answer(now, now, response, None, date, 0.5))
            both.end(turn, now)
            turns[turns.index(turn)] = Turn()
    assert adaptive.rate > 100


@pytest.mark.no_cover
def test_an_adaptive_limit_does_not_grow_while_all_wait_for_slots() -> None:
    adaptive, places, date = AimdLimiter(), InFlight(1), FakeClock().utcnow
    both, now, rates = AllOf(adaptive, places), 0.0, list[float]()
    turns = [Turn() for _ in range(5)]
    for _ in range(200):
        turn = next(turn for turn in turns if both.ask(turn, now) == 0)
        for _ in range(20):  # An answer takes a second.
            now += 0.05
            assert 0 not in [both.ask(other, now) for other in turns if other is not turn]
        both.learn(turn, Answer(now - 1, now, httpx.Response(200), None, date, 0.5))
        both.end(turn, now)
        turns = [*[other for other in turns if other is not turn], Turn()]
        rates.append(adaptive.rate)
    assert rates[-1] == rates[10]


OTHERS: dict[str, Callable[[MemoryStore], Any]] = {
    "bucket": lambda _: TokenBucket(1, 60),
    "places": lambda _: InFlight(1),
    "share": lambda store: TokenBucket(1, 60, share="other", store=store),
    "shared units": lambda store: TokenBucket(None, 60, max_cost=1, share="units", store=store),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_request_that_another_limit_holds_up_does_not_ask_a_share_all_the_time(other: str) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    both = AllOf(TokenBucket(100, 1, share="team", store=store), OTHERS[other](store))

    def seconds_until_next(turn: Turn) -> float:
        return min(wait_at(clock.monotonic(), both, clock, turn), turn.nap)

    first, waiters, asks = Turn(), [Turn() for _ in range(5)], 0
    while wait := seconds_until_next(first):
        clock.advance(wait)
    coming = [(clock.monotonic(), number) for number in range(5)]
    end = clock.monotonic() + 10
    while coming[0][0] < end:
        now, number = heapq.heappop(coming)
        clock.advance(now - clock.monotonic())
        waiters[number].wake = lambda: None
        wait = seconds_until_next(waiters[number])
        assert wait > 0
        asks += 1
        heapq.heappush(coming, (now + wait, number))
    assert asks < 5 * 25


def test_a_share_leases_no_permit_that_lapses_before_another_share_admits_the_request() -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    both = AllOf(*(TokenBucket(most, 10, share=f"{most}", store=store) for most in (2, 50)))

    def ask(turn: Turn, now: float) -> float:
        return wait_at(now, both, clock, turn)

    def leased() -> float:
        seen = store.look("50")
        assert seen is not None
        return seen.books["leased"]

    for sent in range(4):
        turn = Turn()
        due = clock.monotonic() + ask(turn, clock.monotonic())
        if not turn.granted:
            ask(turn, due - 0.2)
            assert leased() == sent
            assert ask(turn, due) == 0
        assert leased() == sent + 1


def test_a_request_that_slept_for_a_guess_makes_no_permit_of_its_share_last_longer() -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    bucket, other = (TokenBucket(None, 10, max_cost=10, share="team", store=store) for _ in range(2))
    slot, first, second, occupants = InFlight(1), Turn(cost=1.0), Turn(cost=10.0), [Turn(), Turn()]
    both = AllOf(bucket, slot)

    def ask(policy: Any, turn: Turn, now: float) -> float:
        return wait_at(now, policy, clock, turn)

    assert ask(other, Turn(cost=10.0), 0.0) == 0
    clock.advance(2.0)
    call = both.ask(first, 2.0)
    assert ask(both, second, 2.0) > 0
    assert isinstance(call, Run)
    call.sync(1.0)
    assert ask(both, second, 2.0) > 0
    assert ask(both, first, 2.0) == 0
    both.end(first, 2.0)
    for now in (*range(2, 11), 10.9):  # Its permit is due at 11.
        assert ask(both, second, now) == pytest.approx(11.0 - now, abs=0.06)
    for occupant in occupants:
        assert slot.ask(occupant, 10.95) == 0
        slot.end(occupants[0], 10.95)
    assert ask(both, second, 11.0) > 0
    slot.end(occupants[1], 11.08)
    assert isinstance(both.ask(second, 11.08), Run)


class Watched(Turn):
    """Counts the questions for the sources or the costs of any of these turns."""

    looks = 0

    @property
    def sources(self) -> Any:
        Watched.looks += 1
        return self._sources

    @sources.setter
    def sources(self, sources: Any) -> None:
        self._sources = sources

    @property
    def costs(self) -> Any:  # type: ignore[override]
        Watched.looks += 1


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("own", "whole", "wait"),
    [
        (lambda: TokenBucket(1, 60), TokenBucket(9999, 60), 300 * 60),
        (lambda: TokenBucket(1000, 60, max_cost=1000), TokenBucket(None, 60, max_cost=100), 501 * 0.6),
    ],
    ids=["requests", "units"],
)
def test_a_request_does_not_look_at_all_that_wait_before_it(
    own: Any, whole: TokenBucket, wait: float
) -> None:
    tenants = [AllOf(own(), whole) for _ in range(2)]
    for _ in range(300):
        for tenant in tenants:
            tenant.ask(Watched(), 0.0)
    before, last = Watched.looks, Turn()
    assert tenants[0].ask(last, 1.0) == pytest.approx(wait - 1)
    tenants[0].leave(last, 1.0)
    assert Watched.looks - before < 150 < before


def test_parallel_attempts_of_one_call_wait_one_after_the_other_where_limits_differ() -> None:
    whole = TokenBucket(100, 10)
    tenants = [AllOf(TokenBucket(1, 10), whole) for _ in range(2)]
    call = Turn()
    for tenant, turn in (
        (tenants[0], Turn()),
        (tenants[1], Turn()),
        (tenants[0], call),
        (tenants[1], Turn()),
    ):
        tenant.ask(turn, 0.0)
    attempts = [call.again(), call.again()]
    tenants[0].leave(call, 0.0)
    assert [tenants[0].ask(turn, 0.0) for turn in attempts] == [10.0, 20.0]


def test_lines_that_already_wait_can_be_joined() -> None:
    first, second = TokenBucket(1, 10), TokenBucket(1, 10)
    waiting = [Turn(), Turn()]
    for policy, turn in ((first, waiting[0]), (second, waiting[1])):
        assert took(policy, 0.0)
        assert policy.ask(turn, 0.0) == 10.0
    both, turn = AllOf(first, second), Turn()
    assert both.ask(turn, 0.0) == 20.0
    assert [first.ask(waiting[0], 10.0), second.ask(waiting[1], 10.0)] == [0, 0]
    assert both.ask(turn, 20.0) == 0


def test_a_request_is_woken_although_its_line_is_joined_just_before(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = TokenBucket(1, 100, burst=1), AllOf(*(TokenBucket(1, 1) for _ in range(3)))
    assert took(policy, 0.0)
    waiting, woken = Turn(), list[bool]()
    assert policy.ask(waiting, 0.0)
    waiting.wake = lambda: woken.append(True)
    lock = Queue.lock

    class JoinsAfterwards:
        """The lock; as soon as it is released, another thread puts the limiter into a list."""

        def __enter__(self) -> None:
            lock.__enter__()

        def __exit__(self, *_: object) -> None:
            lock.__exit__(None, None, None)
            monkeypatch.setattr(Queue, "lock", lock)
            AllOf(policy, other)

    monkeypatch.setattr(Queue, "lock", JoinsAfterwards())
    policy.update(max_requests=1000)
    assert woken == [True]


def test_lines_in_which_low_priority_requests_wait_can_be_joined() -> None:
    lines: list[tuple[Any, list[Turn]]] = [
        (TokenBucket(1, 10), [Turn(priority=each) for each in ("low", "normal", "low")]) for _ in "ab"
    ]
    for policy, turns in lines:
        assert took(policy, 0.0)
        assert all(policy.ask(turn, 0.0) for turn in turns)
    (first, (low, normal, last)), (second, (other_low, other, other_last)) = lines
    both, new, new_low = AllOf(first, second), Turn(), Turn(priority="low")
    for policy, turn in ((both, new), (both, new_low), (first, normal), (second, other_low), (second, other)):
        assert policy.ask(turn, 1.0) != 0
    assert both.waiting == 5
    order = [normal, other, new, low, other_low, last, other_last, new_low]
    assert sorted(order, key=lambda turn: turn.number) == order
    for policy, turn in [(policy, turn) for policy, turns in lines for turn in turns] + [
        (both, new),
        (both, new_low),
    ]:
        policy.leave(turn, 2.0)
    assert first.waiting == second.waiting == 0


def test_a_sleeper_that_waits_for_one_limit_is_not_robbed_of_another() -> None:
    units, daily = TokenBucket(None, 60, max_cost=60), TokenBucket(2, 86_400)
    both = AllOf(units, daily)
    assert both.ask(Turn(cost=60.0), 0.0) == 0
    first, second = Turn(cost=30.0), Turn(cost=0.0)
    assert both.ask(first, 0.0) == 30.0
    assert both.ask(second, 1.0) != 0, "the last permit of the day is the first one's"
    assert both.ask(first, 30.0) == 0


def test_a_request_that_waits_for_one_limit_holds_no_permit_of_another() -> None:
    first, second = TokenBucket(1, 60), TokenBucket(1, 60)
    both, waiting = AllOf(first, second), Turn()
    assert took(second, 0.0)
    assert both.ask(waiting, 0.0) == 60.0
    assert took(first, 1.0)
    assert both.ask(waiting, 60.0) == pytest.approx(1.0)
    assert both.ask(waiting, 61.0) == 0


def test_requests_that_wait_for_a_slot_hold_no_permit_of_a_limit_that_they_share_with_others() -> None:
    total = TokenBucket(10, 60)
    full, free = AllOf(InFlight(1), total), AllOf(InFlight(9), total)
    assert took(full, 0.0)
    for _ in range(50):
        assert full.ask(Turn(), 0.0) != 0
    assert [free.ask(Turn(), 0.01) for _ in range(9)] == [0] * 9


def test_requests_that_wait_for_a_slot_claim_no_permit_that_others_can_use() -> None:
    total, slots = TokenBucket(10, 60), InFlight(1)
    both, sent = AllOf(slots, total), Turn()
    assert both.ask(sent, 0.0) == 0
    waiting = [Turn() for _ in range(3)]
    for turn in waiting:
        turn.wake = list
        assert both.ask(turn, 0.0) != 0
    # They sleep for a second, although the slot was expected to be free by now.
    assert [total.ask(Turn(), 0.5) for _ in range(8)] == [0] * 8
    both.end(sent, 0.6)  # The first is woken, and now claims the last permit.
    assert total.ask(Turn(), 0.61) != 0
    assert both.ask(waiting[0], 0.62) == 0


def test_only_the_first_that_waits_for_a_slot_claims_a_permit_when_it_is_freed() -> None:
    total, slots = TokenBucket(10, 1), InFlight(1)
    both, sent, waiting = AllOf(slots, total), Turn(), [Turn() for _ in range(30)]
    assert both.ask(sent, 0.0) == 0
    for now in (0.01, 1.5):
        for turn in waiting:
            turn.wake = list
            assert both.ask(turn, now) != 0
    assert [total.ask(Turn(), 2.0) for _ in range(10)] == [0] * 10
    both.end(sent, 2.1)
    assert both.ask(waiting[0], 2.1) == pytest.approx(0.9)
    for turn in waiting[1:]:  # They need the slot that the first will take.
        assert both.ask(turn, 2.2) != 0
    assert total.ask(Turn(), 2.3) == pytest.approx(0.7), "at least one of the next ten permits is left"


def test_requests_behind_one_that_waits_for_units_leave_a_free_slot_to_others() -> None:
    units, slots = TokenBucket(None, 10, max_cost=10), InFlight(1)
    one, other = AllOf(units, slots), AllOf(TokenBucket(9, 60), units, slots)
    first, second = Turn(cost=9.0), Turn(cost=0.1)
    assert units.ask(Turn(cost=10.0), 0.0) == 0
    for now in (0.0, 6.0):  # The longer no slot is freed, the longer that is expected to take.
        assert one.ask(first, now) == pytest.approx(9.0 - now)
        assert other.ask(second, now) != 0
    assert slots.ask(Turn(), 6.1) == 0


def test_a_permit_that_the_first_cannot_use_for_want_of_a_slot_wakes_the_next() -> None:
    total, slots = TokenBucket(1, 2), InFlight(1)
    both, sent, first, second, woken = AllOf(total, slots), Turn(), Turn(), Turn(), list[Turn]()
    assert both.ask(sent, 0.0) == 0
    assert both.ask(first, 0.5) == pytest.approx(1.5)
    assert total.ask(second, 0.5) == pytest.approx(3.5)
    second.wake = lambda: woken.append(second)
    assert both.ask(first, 2.0) != 0, "the slot is still in use"
    assert woken == [second]
    assert total.ask(second, 2.0) == 0


async def test_each_part_counts_its_own_methods(world: World) -> None:
    posts, all_methods = TokenBucket(1, 60, methods={"POST"}), InFlight(5)
    clock = FakeClock()
    transport = world.build(
        StackBuilder([limiter([posts, all_methods])], clock=clock), world.wire(*[200] * 5)
    )
    kept = [await world.send(transport, httpx.Request(method, URL)) for method in ("POST", "GET", "DELETE")]
    assert (clock.monotonic(), all_methods.busy, len(kept)) == (0.0, 3, 3)
    await world.send(transport, post())
    assert clock.monotonic() == 60.0


async def test_a_method_that_no_part_counts_passes(world: World) -> None:
    policy = AllOf(TokenBucket(1, 60, methods={"POST"}), InFlight(1, methods={"PUT"}))
    assert policy.methods == {"POST", "PUT"}
    transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), world.wire(*[200] * 5))
    for _ in range(5):
        await world.send(transport, httpx.Request("GET", URL))


async def test_the_smallest_max_wait_time_counts(world: World) -> None:
    clock, policy = FakeClock(), [TokenBucket(1, 60, max_wait_time=100.0), InFlight(9, max_wait_time=3.0)]
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(200))
    await world.send(transport, post())
    with pytest.raises(TokenAcquisitionTimeoutError, match="no permit within 3 s"):
        await world.send(transport, post())


async def test_the_listener_learns_which_limit_held_a_request_up(world: World) -> None:
    clock, log = FakeClock(), EventLog()
    policy = [TokenBucket(1, 10), TokenBucket(None, 60, max_cost=600, cost=lambda _: 600.0), InFlight(9)]
    transport = world.build(
        StackBuilder([limiter(policy)], clock=clock, listener=log), world.wire(*[200] * 2)
    )
    for _ in range(2):
        await world.send(transport, post())
    (waited,) = log.of(Waited)
    assert (round(waited.seconds), waited.limit) == (60, "600 units per 60 s")
    assert "waited 60 s for a permit of limiter (600 units per 60 s)" in str(waited)


class Gate:
    """A limiter of a user's own: lets each request go after its second question, and records what it learns."""

    methods = None
    max_wait_time = None

    def __init__(self) -> None:
        self.seen = list[tuple[str, Any]]()
        self.asked = dict[Turn, int]()
        self.wait = 2.0

    def ask(self, turn: Turn, now: float) -> float:
        self.asked[turn] = self.asked.get(turn, 0) + 1
        self.seen.append(("ask", turn))
        return 0.0 if self.asked[turn] > 1 else self.wait

    def leave(self, turn: Turn, now: float) -> None:
        self.seen.append(("leave", turn))

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        self.seen.append(("learn", turn))
        return RateChange(1.0, 2.0, "learned")

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self.seen.append(("settle", cost))


def test_ones_own_limiter_is_asked_last_and_about_one_request_at_a_time() -> None:
    gate, bucket = Gate(), TokenBucket(2, 60)
    policy = AllOf(gate, bucket)
    first, second, third = Turn(), Turn(), Turn()
    assert policy.ask(first, 0.0) == 2.0
    assert policy.ask(second, 0.0) != 0
    assert len(gate.asked) == 1, "about no second one"
    spare = Turn()
    assert bucket.ask(spare, 0.0) == 0, "a request that waits holds nothing"
    bucket.leave(spare, 0.0)
    assert policy.ask(first, 2.0) == 0.0
    assert policy.ask(second, 2.0) == 2.0
    assert policy.ask(second, 4.0) == 0.0
    before = len(gate.seen)
    assert policy.ask(third, 4.0) == pytest.approx(58.0)
    assert len(gate.seen) == before, "the bucket says wait, so it is not asked"


def test_ones_own_limiter_is_left_when_another_limit_says_wait() -> None:
    gate, bucket = Gate(), TokenBucket(1, 60)
    policy, turn = AllOf(bucket, gate), Turn()
    assert policy.ask(turn, 0.0) == 2.0
    assert took(bucket, 1.0)
    assert policy.ask(turn, 2.0) == pytest.approx(59.0)
    assert [what for what, _ in gate.seen] == ["ask", "leave"]
    other = Turn()
    assert policy.ask(other, 2.0) != 0
    assert policy.ask(turn, 61.0) == 2.0
    assert policy.ask(turn, 63.0) == 0.0
    assert [what for what, _ in gate.seen] == ["ask", "leave", "ask", "ask"]


def test_a_cancelled_request_leaves_ones_own_limiter_to_the_next() -> None:
    gate = Gate()
    policy, first, second = AllOf(gate, InFlight(5)), Turn(), Turn()
    assert policy.ask(first, 0.0) == 2.0
    policy.leave(first, 1.0)
    assert [what for what, _ in gate.seen] == ["ask", "leave"]
    assert policy.ask(second, 1.0) == 2.0
    assert policy.ask(second, 3.0) == 0.0


async def test_ones_own_limiter_is_not_left_by_an_attempt_that_it_was_never_asked_about(world: World) -> None:
    gate = Gate()
    layers = [retry(), limiter([TokenBucket(1, 60), gate])]
    transport = world.build(StackBuilder(layers, clock=FakeClock()), world.wire(503, 200))
    await world.send(transport, httpx.Request("POST", URL))
    assert [what for what, _ in gate.seen] == ["ask", "ask", "learn"] * 2


def test_a_cancelled_request_leaves_each_of_several_limiters_of_ones_own_once() -> None:
    first, second, turn = Gate(), Gate(), Turn()
    policy, first.wait = AllOf(first, second), 0.0
    assert policy.ask(turn, 0.0) == 2.0
    assert [what for what, _ in first.seen] == ["ask", "leave"], "while the second one holds it up"
    policy.leave(turn, 1.0)
    assert [what for what, _ in first.seen] == ["ask", "leave"]
    assert [what for what, _ in second.seen] == ["ask", "leave"]


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_request_whose_loop_is_stuck_leaves_ones_own_limiter_to_the_next(has_ended: bool) -> None:
    gate = Gate()
    policy, first, second = AllOf(gate, InFlight(5)), Turn(), Turn()
    assert policy.ask(first, 0.0) == 2.0
    if has_ended:
        first.loop_has_ended = lambda: True
    for instant in (1.0, 6.9):
        assert policy.ask(second, instant) != 0
    assert policy.ask(second, 7.1) == 2.0
    assert policy.ask(second, 9.1) == 0.0
    asked, left = [[turn for what, turn in gate.seen if what == which] for which in ("ask", "leave")]
    assert left == [asked[0]], "its place there is given up"
    assert policy.ask(first, 10.0) == 2.0, "if it wakes up after all, it is asked about anew"


def test_no_limiter_is_asked_while_an_operation_of_ones_own_limiter_runs() -> None:
    class Remote(Gate):
        is_there = False

        def ask(self, turn: Turn, now: float) -> Any:
            return super().ask(turn, now) * 0.0 if self.is_there else Run(lambda _: None, lambda _: None)  # type: ignore[arg-type, return-value]

    gate = Remote()
    policy, first, others = AllOf(gate, InFlight(5)), Turn(), [Turn() for _ in range(100)]
    assert isinstance(policy.ask(first, 0.0), Run)
    waits: list[Any] = [policy.ask(other, 0.0) for other in others]
    assert min(waits) == pytest.approx(0.01), "they do not ask all the time"
    assert max(waits) > 0.5
    assert policy.ask(others[0], 60.0) != 0, "however long it takes"
    gate.is_there = True
    assert policy.ask(first, 60.0) == 0
    assert policy.ask(others[0], 60.0) == 0


async def test_ones_own_limiter_may_guess_and_know_the_call_beside_others_as_it_may_alone(
    world: World,
) -> None:
    class Guessing(Gate):
        def ask(self, turn: Turn, now: float) -> float:
            assert turn.call is not None
            turn.is_guess, turn.nap = True, 0.5
            return super().ask(turn, now)

    clock = FakeClock()
    stack = StackBuilder([limiter([Guessing(), InFlight(5)])], clock=clock)
    request = post(extensions={"stkai": stkai.RequestOptions(max_wait_time=1.0)})
    await world.send(world.build(stack, world.wire(200)), request)
    assert clock.monotonic() == 0.5


def test_a_wait_is_refused_for_what_is_certain_and_not_for_a_guess() -> None:
    """Earlier requests took 30 s each; the bucket has a permit in a second."""
    clock, places, bucket = FakeClock(), InFlight(1), TokenBucket(1, 1.0)
    for _ in range(40):
        with places.permit(clock=clock):
            clock.advance(30.0)
    both = AllOf(bucket, places)
    with both.permit(clock=clock):
        start = clock.monotonic()
        for most, waited in ((0.5, 0.0), (2.0, 2.0)):
            with (
                pytest.raises(stkai.TokenAcquisitionTimeoutError),
                both.permit(clock=clock, max_wait_time=most),
            ):
                pass
            assert clock.monotonic() - start == pytest.approx(waited)


def test_ones_own_limiter_can_excuse_a_refusal_and_sees_that_in_the_next_attempt() -> None:
    class Lenient(Gate):
        def learn(self, turn: Turn, answer: Answer) -> None:
            turn.excused = True

    gate, clock = Lenient(), FakeClock()
    policy, first, again = AllOf(gate, InFlight(5)), Turn(), Turn()
    policy.ask(first, 0.0)
    assert policy.ask(first, 2.0) == 0.0
    policy.learn(first, answer(clock, 429))
    assert first.excused
    policy.end(first, 2.0)
    again.resume(first)
    policy.ask(again, 2.0)
    assert [turn.excuses for turn in gate.asked] == [0, 1]


async def test_ones_own_limiter_learns_and_settles_as_alone(world: World) -> None:
    gate, log, places = Gate(), EventLog(), InFlight(1)
    gate.max_cost = 100.0  # type: ignore[attr-defined]
    stack = StackBuilder(
        [limiter([gate, places], cost=lambda _: 7.0, settle=lambda answer: float(answer.content))],
        clock=FakeClock(),
        listener=log,
    )
    transport = world.build(stack, world.wire(httpx.Response(200, content=b"12")))
    await world.read(await world.send(transport, post()))
    (inner,) = gate.asked
    assert (inner.cost, inner.request is not None) == (7.0, True)
    assert [what for what, _ in gate.seen] == ["ask", "ask", "learn", "settle"]
    assert gate.seen[-1] == ("settle", 12.0)
    assert [(change.old, change.new, change.reason) for change in log.of(stkai.RateChanged)] == [
        (1.0, 2.0, "learned")
    ]
    assert places.busy == 0


def test_a_permit_of_a_list_is_settled_in_ones_own_limiter_too() -> None:
    gate, bucket, clock = Gate(), TokenBucket(None, 60, max_cost=1000), FakeClock()
    with AllOf(gate, bucket).permit(cost=1000, clock=clock) as permit:
        permit.settle(400)
    assert ("settle", 400) in gate.seen
    assert bucket.ask(Turn(cost=600.0), clock.monotonic()) == 0


def test_a_limiter_that_fails_to_settle_leaves_the_others_their_correction() -> None:
    class Broken(stkai.Limiter):
        max_cost = 100.0

        def ask(self, turn: Turn, now: float) -> float:
            return 0.0

        def settle(self, turn: Turn, cost: float, now: float) -> None:
            raise ValueError("broken")

    bucket = TokenBucket(None, 60, max_cost=100)
    layer = limiter([Broken(), bucket], cost=lambda _: 10.0, settle=lambda _: 50.0)
    transport = StackBuilder([layer], clock=FakeClock()).build(
        httpx.MockTransport(lambda _: httpx.Response(200))
    )
    httpx.Client(transport=transport).send(post())
    (units,) = bucket.sources
    assert isinstance(units, Units)
    assert units.level == 50.0


def test_a_subclass_of_ours_that_overrides_a_method_is_ones_own() -> None:
    class Counting(TokenBucket):
        answers = 0

        def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
            self.answers += 1
            return super().learn(turn, answer)

    class Named(TokenBucket):
        """Overrides nothing that matters."""

    assert Counting(1, 1).is_own
    assert (Named(1, 1).is_own, TokenBucket(1, 1).is_own) == (False, False)
    for policy in (own := Counting(5, 60), [own, InFlight(9)]):
        stack = StackBuilder([limiter(policy)], clock=FakeClock())
        transport = stack.build(httpx.MockTransport(lambda _: httpx.Response(200)))
        transport.handle_request(post())
    assert own.answers == 2, "it sees every answer"


IN_ITSELF: list[Any] = [InFlight(1)]
IN_ITSELF.append([IN_ITSELF])


@pytest.mark.parametrize(
    "given", [[], (), [7], ["adaptive"], [TokenBucket], [None], [[]], [InFlight(1), object()], IN_ITSELF]
)
def test_a_list_without_limiters_is_refused(given: Any) -> None:
    for make in (
        lambda: AllOf(*given),
        lambda: limiter(given),
        lambda: stkai.build_client(auth=None, rate_limit=given),
        lambda: stkai.build_async_transport(auth=None, rate_limit=given),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make()
        words = ("rate_limit", "Limiter", "'token_bucket'", "[AimdLimiter(), InFlight(8)]", " list")
        assert all(word in str(caught.value) for word in words)
        assert not str(caught.value).endswith("not 'adaptive'")


def test_limits_of_a_list_have_shares_of_their_own(tmp_path: Path) -> None:
    place = f"file://{tmp_path}"
    minute, other = TokenBucket(600, 60, share="n", store=place), TokenBucket(5, 1, share="m", store=place)
    day = TokenBucket(86_400, 86_400, share="n", store=FileStore(tmp_path))
    elsewhere = TokenBucket(86_400, 86_400, share="n", store=f"file://{tmp_path}/elsewhere")
    alone = TokenBucket(2, 60)
    for limits in ([other, minute, day], [other, [alone, minute], AllOf(alone, day)]):
        with pytest.raises(
            ConfigurationError, match=r"its own share=; two of these have share='n' in FileStore"
        ):
            AllOf(*limits)
    chosen = AllOf(PerKey(lambda _: "all", lambda _: [day, alone]), other, minute)
    with pytest.raises(ConfigurationError, match=r"its own share="):
        chosen.plan_for(post())
    assert AllOf(minute, other, [minute], elsewhere).parts == (minute, other, elsewhere)


def test_the_error_about_an_incomplete_limiter_says_what_it_lacks() -> None:
    class Half:
        def ask(self, turn: Turn, now: float) -> float:
            return 0.0

        def learn(self, turn: Turn, answer: Answer) -> None: ...

    with pytest.raises(
        ConfigurationError, match="Half has no `methods` and no `max_wait_time` and no `leave`"
    ):
        AllOf(Half())


@pytest.mark.parametrize("names", [["post"], ("Post",), "POST", "post", [], [5]])
def test_a_limiter_of_ones_own_that_would_count_no_request_is_refused(names: Any) -> None:
    class Own(stkai.Limiter):
        methods = names

        def ask(self, turn: Turn, now: float) -> float:
            return 0.0

    for make in (AllOf, limiter, lambda own: stkai.build_client(auth=None, rate_limit=own)):
        with pytest.raises(ConfigurationError, match="methods must be"):
            make(Own())


def test_lists_nest_and_the_same_object_counts_once() -> None:
    bucket, places = TokenBucket(1, 60), InFlight(2)
    policy = AllOf(bucket, [places, (bucket, AllOf(places))])
    assert policy.parts == (bucket, places)
    assert took(policy, 0.0)
    assert repr(policy) == "AllOf(TokenBucket(1, 60, burst=1), InFlight(2))"


def test_methods_that_callers_make_up_are_not_remembered_for_ever() -> None:
    policy = AllOf(TokenBucket(10, 60), InFlight(2))
    for number in range(1000):
        assert policy.plan_for(httpx.Request(f"METHOD{number}", URL)) is not None
    assert len(policy._plans) <= 100


def test_a_plan_is_found_although_other_threads_make_up_many_methods_meanwhile() -> None:
    policy, get = AllOf(InFlight(1)), httpx.Request("GET", URL)

    class Plans(dict[str, Any]):
        def __contains__(self, method: object) -> bool:
            is_known = super().__contains__(method)
            if method == "GET":
                for number in range(200):
                    policy.plan_for(httpx.Request(f"METHOD{number}", URL))
            return is_known

    plan = policy.plan_for(get)
    policy._plans = Plans(policy._plans)
    assert policy.plan_for(get) is plan


def test_a_part_that_the_request_chooses_learns_from_successes() -> None:
    alone, one_of_two = (PerHost(lambda _: AimdLimiter(100, 60)) for _ in range(2))
    for policy in (alone, [one_of_two, TokenBucket(100, 1)]):
        clock = FakeClock()
        start = clock.monotonic()
        stack = StackBuilder([limiter(policy)], clock=clock)
        transport = stack.build(httpx.MockTransport(lambda _: httpx.Response(200)))
        for _ in range(6):
            transport.handle_request(post())
        assert clock.monotonic() == start, "at first, each success releases another permit"


async def test_parts_may_be_chosen_by_the_request(world: World) -> None:
    clock, total = FakeClock(), TokenBucket(3, 60)
    made = list[str]()

    def per_model(model: str) -> TokenBucket:
        made.append(model)
        return TokenBucket(2, 60)

    policy = AllOf(PerKey(stkai.costs.model_of, per_model), PerHost(lambda _: InFlight(9)), total)
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(*[200] * 9))
    sent = []
    for model in ("a", "a", "b", "b", "a"):
        await world.send(transport, post(json={"model": model}))
        sent.append(clock.monotonic())
    assert sent == [0, 0, 0, 60, 60]
    assert made == ["a", "b"]
    with pytest.raises(ConfigurationError, match="has no permits without a request: ask one of its limiters"):
        policy.permit()


async def test_first_come_first_served_over_all(event_loop: World) -> None:
    clock, sent = FakeClock(), list[tuple[float, int]]()

    def answer(request: httpx.Request) -> int:
        sent.append((clock.monotonic(), int(request.headers["number"])))
        return 200

    policy = [
        TokenBucket(4, 8, burst=1),
        TokenBucket(None, 10, max_cost=100, cost=lambda _: 25.0),
        InFlight(2),
    ]
    transport = event_loop.build(StackBuilder([limiter(policy)], clock=clock), event_loop.wire(answer))

    async def one(number: int) -> None:
        response = await event_loop.send(transport, post(headers={"number": str(number)}))
        await clock.asleep(0.5)
        await response.aread()

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(one, number)
            await clock.asleep(0.0001)
    assert [number for _, number in sent] == list(range(12))
    for start, _ in sent:
        assert sum(start <= instant < start + 8 - 1e-3 for instant, _ in sent) <= 4


@pytest.mark.no_cover
async def test_a_crowd_that_is_cancelled_together_does_not_stop_the_others(event_loop: World) -> None:
    clock, sent = FakeClock(), list[float]()

    def answer(request: httpx.Request) -> int:
        sent.append(clock.monotonic())
        return 200

    policy = [TokenBucket(50, 1, burst=1), InFlight(100)]
    transport = event_loop.build(StackBuilder([limiter(policy)], clock=clock), event_loop.wire(answer))

    async def loop(until: float) -> None:
        while clock.monotonic() < until:
            response = await event_loop.send(transport, post())
            await response.aread()

    async with anyio.create_task_group() as crowd:
        for _ in range(120):
            crowd.start_soon(event_loop.send, transport, post())
        await clock.asleep(2.0)
        crowd.cancel_scope.cancel()
    async with anyio.create_task_group() as rest:
        for _ in range(4):
            rest.start_soon(loop, 6.0)
    for second in range(2, 6):
        assert 48 <= sum(second <= instant < second + 1 for instant in sent) <= 51


MOMENTS = st.sampled_from([0.0, 0.0, 0.1, 1.0, 5.0])


class AnyOrder(RuleBasedStateMachine):
    """Turns ask, leave, learn, end and settle in any order; no permit is lost, and none is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting = list[Turn]()
        self.out = list[tuple[Turn, float]]()
        self.went = list[float]()

    @initialize(burst=st.sampled_from([1.0, 3.0]))
    def make(self, burst: float) -> None:
        self.slots, self.units = Slots(4), Units(40.0, 10.0)
        self.window, self.rate = Window(6, 10.0), Rate(0.6, burst)
        self.queues = [
            Queue(self.window, self.rate, self.units, self.slots),
            Queue(self.window, self.slots),
            Queue(self.units),
        ]
        self.owner = dict[Turn, Queue]()

    @rule(seconds=MOMENTS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 2), cost=st.sampled_from([0.0, 1.0, 30.0, 90.0]), low=st.booleans())
    def come(self, number: int, cost: float, low: bool) -> None:
        turn = Turn(cost=cost, priority="low" if low else "normal")
        self.owner[turn] = self.queues[number]
        self.waiting.append(turn)
        self._ask(turn)

    def _ask(self, turn: Turn) -> None:
        if self.owner[turn].ask(turn, self.now) == 0:
            self.waiting.remove(turn)
            self.out.append((turn, self.now))
            if self.window in turn.sources:
                self.went.append(self.now)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        self._ask(data.draw(st.sampled_from(self.waiting)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(turn)
        self.owner[turn].leave(turn, self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["end", "leave", "settle", "twice", "refused"]))
    def come_back(self, data: st.DataObject, how: str) -> None:
        turn, since = data.draw(st.sampled_from(self.out))
        queue = self.owner[turn]
        self.out.remove((turn, since))
        if how == "settle":
            queue.settle(turn, data.draw(st.sampled_from([0.0, 5.0, 60.0])), self.now)
        elif how == "refused":
            response = httpx.Response(429)
            queue.learn(turn, Answer(since, self.now, response, None, lambda: None, 0.5))  # type: ignore[arg-type, return-value]
        elif how == "leave":
            queue.leave(turn, self.now)
            if self.window in turn.sources:
                self.went.remove(since)
        queue.end(turn, self.now)
        if how == "twice":
            queue.end(turn, self.now)
            queue.leave(turn, self.now)

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "slots"):
            return
        held = [turn for turn, _ in self.out if self.slots in turn.sources]
        assert self.slots.busy == len(held) <= 4
        line = self.slots.order.turns
        assert sorted(turn.number for turn in line) == [turn.number for turn in line]
        assert {id(turn) for turn in line} <= {id(turn) for turn in self.waiting}
        for source in (self.slots, self.units, self.window, self.rate):
            assert source.waiting == sum(source in turn.sources for turn in line)
        costs = [self.units.cost_of(turn) for turn in line if self.units in turn.sources]
        assert self.units._costs == costs
        assert self.units.level <= 40.0
        assert sum(instant > self.now - 10.0 + 2e-6 for instant in self.went) <= 6
        assert -1e-6 <= self.rate.credit <= self.rate.burst + 1.1

    def teardown(self) -> None:
        """Every turn that stays gets a permit in a bounded time."""
        if not hasattr(self, "slots"):
            return
        for turn, _ in self.out:
            self.owner[turn].end(turn, self.now)
        limit = self.now + 10.0 * (len(self.waiting) + 2) + 400.0 * (len(self.waiting) + 2)
        while self.waiting:
            assert self.now < limit
            soonest = math.inf
            for turn in list(self.waiting):
                if wait := self.owner[turn].ask(turn, self.now):
                    assert isinstance(wait, float)
                    soonest = min(soonest, wait)
                else:
                    self.waiting.remove(turn)
                    self.owner[turn].end(turn, self.now)
            self.now += max(1.0, soonest)
        assert (self.slots.busy, self.slots.order.turns) == (0, [])


TestAnyOrder = pytest.mark.no_cover(AnyOrder.TestCase)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 2.0]), st.floats(0, 60), st.floats(0.1, 5) | st.just(math.inf)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from([1.0, 4.0]),
)
def test_impatient_crowds_before_several_limits_delay_no_request_for_ever(
    coming: list[tuple[float, float, float]], burst: float
) -> None:
    now, waiters = 0.0, list[Waiter]()
    for gap, cost, patience in coming:
        now += gap
        waiters.append(Waiter(now, cost=cost, patience=patience))
    queue = Queue(Window(5, 10.0), Rate(0.5, burst), Units(60.0, 10.0))
    gone = drive(queue, waiters)
    assert {waiter for waiter in waiters if waiter.patience == math.inf} <= set(gone)
    assert queue.waiting == 0
