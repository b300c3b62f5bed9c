"""Crowds over a shared quota: they come together, give up together, and leave nothing behind."""

import asyncio
import gc
import heapq
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenBucket
from stkai.stores import Ask, Lease, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import (
    Answer,
    Attempt,
    Call,
    Context,
    RateChange,
    Run,
    Sleep,
    TokenBucketTransport,
    Turn,
    limiter,
)

from ...support.world import World

pytestmark = pytest.mark.no_cover


class Counted(MemoryStore):
    """A store that counts its calls."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.calls = 0

    def lease(self, ask: Ask) -> Lease:
        self.calls += 1
        lease = super().lease(ask)
        snapshot = self.look(ask.share)
        assert snapshot is not None
        books = snapshot.books
        assert books["leased"] == books["used"] + books["returned"] + books["expired"] + books["held"]
        return lease


class Team:
    """Processes that share a quota, each with a stack of its own, and the instants of what they sent."""

    def __init__(self, rate: float, members: int = 2, *, burst: float = 1.0) -> None:
        self.clock = FakeClock()
        self.store = Counted(self.clock)
        self.sent: list[float] = []
        self.policies = [
            TokenBucket(rate, 1.0, burst=burst, share="team", store=self.store) for _ in range(members)
        ]
        context = Context(clock=self.clock, listener=_ignore)
        self.stacks = [
            limiter(policy).asynchronous(httpx.MockTransport(self._note), context=context)
            for policy in self.policies
        ]

    def _note(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(self.clock.monotonic())
        return httpx.Response(200)

    async def send(self, member: int) -> None:
        await self.stacks[member].handle_async_request(httpx.Request("POST", "https://api.test/"))


def _ignore(event: object) -> None:
    """A listener that is not interested."""


async def test_a_crowd_makes_one_call_for_all(event_loop: World) -> None:
    team = Team(50.0, members=1)

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(team.send, 0)
    assert len(team.sent) == 200
    assert team.store.calls <= 70


async def test_what_a_crowd_has_leased_and_does_not_use_goes_to_the_others_at_once(event_loop: World) -> None:
    team = Team(10.0, burst=10.0)

    await team.send(0)
    await team.send(1)
    await team.clock.asleep(5)
    now, turns = team.clock.monotonic(), [Turn() for _ in range(20)]
    for turn in turns:
        answer = team.policies[0].ask(turn, now)
        if isinstance(answer, Run):
            answer.sync(60.0)
    for turn in turns:
        team.policies[0].leave(turn, now)
    async with anyio.create_task_group() as group:
        for _ in range(9):
            group.start_soon(team.send, 1)
    assert team.sent[-1] - team.sent[2] < 0.1


@pytest.mark.real_time
async def test_after_a_crowd_has_given_up_those_behind_it_go_at_once(event_loop: World) -> None:
    policy, sent = TokenBucket(100, 1.0, burst=1), list[int]()

    async def visit(number: int) -> None:
        async with policy.permit():
            sent.append(number)

    async def line_up(group: anyio.abc.TaskGroup, numbers: range) -> None:
        for number in numbers:
            group.start_soon(visit, number)
        while policy.waiting < numbers[-1] - len(sent):
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as crowd:
            await line_up(crowd, range(300))
            await line_up(others, range(300, 400))
            crowd.cancel_scope.cancel()
        await anyio.sleep(0.8)
        others.cancel_scope.cancel()
    # Their first wait was three seconds; they look again after one.
    assert sum(number >= 300 for number in sent) >= 5


@pytest.mark.real_time
def test_a_task_whose_loop_was_closed_gives_up_its_place() -> None:
    policy, loop = TokenBucket(1, 60.0), asyncio.new_event_loop()

    async def visit() -> None:
        async with policy.permit():
            pass

    with policy.permit():
        task = loop.create_task(visit())
        loop.run_until_complete(asyncio.sleep(0.01))
        assert policy.waiting == 1
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        del task, loop
        gc.collect()
    assert policy.waiting == 0


@pytest.mark.parametrize("waits_for", ["it alone", "a limit of its tenant as well"])
@pytest.mark.parametrize("is_behind_others", [False, True], ids=["alone", "behind others"])
def test_after_others_have_left_each_turn_that_goes_wakes_the_next(
    waits_for: str, is_behind_others: bool
) -> None:
    bucket, slow = TokenBucket(10, 1.0, burst=1), TokenBucket(1, 1000)
    policy: Any = bucket if waits_for == "it alone" else AllOf(TokenBucket(999, 1.0), bucket)
    if is_behind_others:
        other = AllOf(slow, bucket)
        slow.ask(Turn(), 0.0)
        assert other.ask(Turn(), 0.0) == 1000
    turns, woken = [Turn() for _ in range(8)], list[int]()
    for number, turn in enumerate(turns):
        turn.wake = partial(woken.append, number)
        policy.ask(turn, 0.0)
    for number in (1, 2, 3):
        policy.leave(turns[number], 0.0)
    assert woken == [2, 3, 4]  # The first, each time.
    assert policy.ask(turns[4], 0.0) == pytest.approx(0.1)
    assert policy.ask(turns[4], 0.1) == 0
    assert woken == [2, 3, 4, 5]
    assert policy.ask(turns[5], 0.1) == pytest.approx(0.1)
    assert policy.ask(turns[6], 0.1) == pytest.approx(0.2)
    assert policy.ask(turns[7], 0.1) == pytest.approx(0.3)
    for number in (5, 6, 7):
        assert policy.ask(turns[number], 0.1 * (number - 3)) == 0


REFUSED = Answer(0.0, 1.0, httpx.Response(429), None, lambda: datetime.now(UTC), 0.5)


@pytest.mark.parametrize(
    ("make", "give", "goes"),
    [
        (lambda: TokenBucket(1, 60), lambda policy, turn: policy.leave(turn, 1.0), 1),
        (lambda: AimdLimiter(1, 60), lambda policy, turn: policy.leave(turn, 1.0), 1),
        (lambda: AllOf(TokenBucket(1, 60), InFlight(9)), lambda policy, turn: policy.leave(turn, 1.0), 1),
        (lambda: TokenBucket(9, 60, max_cost=2), lambda policy, turn: policy.settle(turn, 0.0, 1.0), 2),
        (lambda: TokenBucket(9, 60, max_cost=2), lambda policy, turn: policy.learn(turn, REFUSED), 2),
    ],
    ids=["unsent", "unsent, adaptive", "unsent, list", "units", "refused"],
)
def test_returned_units_wake_the_first_turn_and_a_turn_that_goes_early_wakes_the_next(
    make: Any, give: Any, goes: int
) -> None:
    policy, holder, turns, woken = make(), Turn(cost=2.0), [Turn() for _ in range(4)], list[int]()
    assert policy.ask(holder, 0.0) == 0
    for number, turn in enumerate(turns):
        turn.wake = partial(woken.append, number)
        assert policy.ask(turn, 0.0) > 1
    give(policy, holder)
    went = [number for number in range(4) if number in woken and policy.ask(turns[number], 1.0) == 0]
    assert (went, woken) == (list(range(goes)), list(range(goes + 1)))


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda: TokenBucket(1, 60), {"max_requests": 3}),
        (lambda: TokenBucket(None, 60, max_cost=2), {"max_cost": 4}),
        (lambda: AimdLimiter(1, 60), {"time_window": 30}),
    ],
    ids=["requests", "units", "adaptive"],
)
def test_an_update_wakes_all_that_wait(make: Any, numbers: dict[str, float]) -> None:
    policy, woken = make(), list[int]()
    assert policy.ask(Turn(cost=2.0), 0.0) == 0
    for number, turn in enumerate(turns := [Turn() for _ in range(4)]):
        turn.wake = partial(woken.append, number)
        assert policy.ask(turn, 0.0) > 1
    policy.update(**numbers)
    assert woken == list(range(len(turns)))


@pytest.mark.parametrize("rate", [20, 300, 1000])
@pytest.mark.parametrize(
    "leaves", [slice(1, None, 2), slice(1, None, 4), slice(1, 300), slice(5, 6)], ids=str
)
def test_after_some_have_left_the_others_use_every_permit_although_they_sleep_until_they_are_woken(
    rate: int, leaves: slice
) -> None:
    policy, turns, now = TokenBucket(rate, 1.0, burst=1), [Turn() for _ in range(600)], 0.0
    asleep, sent, asks = list[tuple[float, int]](), list[float](), 0

    def ask(number: int) -> None:
        turn = turns[number]
        wait = policy.ask(turn, now)
        assert isinstance(wait, float)
        if wait:
            heapq.heappush(asleep, (now + wait + turn.slack + 0.0001 * (number % 10), number))
        else:
            sent.append(now)

    for number, turn in enumerate(turns):
        turn.wake = lambda number=number: heapq.heappush(asleep, (now + 0.0002, number))
        ask(number)
    for turn in turns[leaves]:
        policy.leave(turn, now)
    left = [turn for turn in turns if turn not in turns[leaves]]
    while asleep:
        now, number = heapq.heappop(asleep)
        if turns[number] in left and not turns[number].granted:
            asks += 1
            ask(number)
    assert sent[-1] == pytest.approx((len(left) - 1) / rate, rel=0.02)
    assert asks < 2.1 * len(left)


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("rate", "place", "seconds"),
    [(1, 100, 1), (1, 250, 50), (1, 900, 700), (100, 600, 6), (100, 1000, 6)],
    ids=["near", "far", "very far", "far in a fast queue", "very far in a fast queue"],
)
def test_those_far_back_sleep_until_their_permit_is_near(rate: float, place: int, seconds: float) -> None:
    policy, request = TokenBucket(rate, 1.0, burst=1), httpx.Request("GET", "https://api.test/")
    layer = TokenBucketTransport(httpx.MockTransport(lambda _: httpx.Response(200)), policy)
    while policy.waiting < place:
        policy.ask(Turn(), time.monotonic())
    flow = layer.flow(request, Attempt(Call.start(request, time.monotonic())))
    sleep = flow.send(None)
    assert isinstance(sleep, Sleep)
    assert sleep.seconds == pytest.approx(seconds, rel=0.02, abs=1 if rate > 1 else 0)
    flow.close()
    assert policy.waiting == place


def test_those_behind_waiters_that_oversleep_ask_again_after_milliseconds() -> None:
    """By the documented protocol: ask again after the seconds named, or after `turn.nap`."""
    clock = FakeClock()
    policy = TokenBucket(50, 1.0, burst=1, share="team", store=MemoryStore(clock))
    asleep = [(0.0, number, Turn()) for number in range(60)]
    asks, went = 0, list[float]()
    while asleep and asks < 20 * 60:
        wakes, number, turn = heapq.heappop(asleep)
        clock.advance(max(0.0, wakes - clock.monotonic()))
        wait, now = policy.ask(turn, clock.monotonic()), clock.monotonic()
        asks += 1
        if isinstance(wait, Run):
            wait.sync(1.0)
            heapq.heappush(asleep, (now, number, turn))
        elif wait:
            assert isinstance(wait, float)
            late = 0.3 if number % 2 else 0.0
            heapq.heappush(asleep, (now + min(wait, turn.nap) + late, number, turn))
        else:
            went.append(now)
    assert len(went) == 60


@pytest.mark.parametrize("numbers", [(), (60, 60.0), (600, 60.0), (1e6, 1.0)], ids=str)
def test_a_burst_at_the_start_goes_as_if_every_success_were_reported(
    event_loop: World, numbers: tuple[float, ...]
) -> None:
    class Reported(AimdLimiter):
        """Sees every success, since it overrides `learn`; the limiter itself is spared those that say nothing."""

        def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
            reported.append(answer.now)
            return super().learn(turn, answer)

    reported = list[float]()
    spared, whole = (_sent_at_the_start(event_loop, make(*numbers)) for make in (AimdLimiter, Reported))
    assert spared == pytest.approx(whole, abs=1e-6)
    assert len(reported) == len(whole)


def _sent_at_the_start(event_loop: World, policy: AimdLimiter) -> list[float]:
    """When sixty requests leave that come at once."""
    clock, sent = FakeClock(), list[float]()

    async def wire(request: httpx.Request) -> httpx.Response:
        sent.append(clock.monotonic())
        await clock.asleep(0.1)
        return httpx.Response(200)

    context = Context(clock=clock, listener=_ignore, random=lambda: 0.5)
    stack = limiter(policy).asynchronous(httpx.MockTransport(wire), context=context)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(stack.handle_async_request, httpx.Request("POST", "https://api.test/"))

    event_loop.run(main())
    return sent


def test_permits_that_a_crowd_left_in_a_window_go_to_the_first_of_the_next_one() -> None:
    bucket = TokenBucket(4, 1)
    for _ in range(4):
        assert bucket.ask(Turn(), 0.0) == 0
    turns, woken = [Turn() for _ in range(12)], list[Turn]()
    for turn in turns:
        assert bucket.ask(turn, 0.4)
        turn.wake = partial(woken.append, turn)
    for place in (1, 2):
        bucket.leave(turns.pop(place), 0.6)
    for window in (1, 2, 3):
        now = window * 1.001
        coming = [turn for turn in turns if turn.due_at <= now and not turn.granted]
        while coming:
            for turn in coming:
                bucket.ask(turn, now)
            coming = woken.copy()
            woken.clear()
        sent = [turn for turn in turns if turn.granted]
        assert sent == turns[: 4 * window]
