"""Crowds over a shared quota: they come together, give up together, and leave nothing behind."""

import heapq
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from stkai import AimdLimiter, TokenBucket
from stkai.stores import Ask, Lease, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Answer, Context, RateChange, Run, Turn, limiter

from ...support.world import World

pytestmark = pytest.mark.no_cover

GOAL = 0.96
LATE = 0.05
"""Seconds that a permit may be used after its instant."""


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

    def __init__(
        self,
        rate: float,
        members: int = 2,
        *,
        burst: float = 1.0,
        make: Callable[[Any], Any] = lambda bucket: bucket,
    ) -> None:
        self.clock, self.rate = FakeClock(), rate
        self.store = Counted(self.clock)
        self.sent: list[float] = []
        self.policies = [
            make(TokenBucket(rate, 1.0, burst=burst, share="team", store=self.store)) for _ in range(members)
        ]
        self.stacks = [
            limiter(policy).asynchronous(
                httpx.MockTransport(self._note), context=Context(clock=self.clock, listener=_ignore)
            )
            for policy in self.policies
        ]

    def _note(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(self.clock.monotonic())
        return httpx.Response(200)

    async def send(self, member: int) -> None:
        await self.stacks[member].handle_async_request(httpx.Request("POST", "https://api.test/"))

    async def send_until(self, member: int, end: float) -> None:
        while self.clock.monotonic() < end:
            await self.send(member)

    async def storm(self, member: int, patience: float, end: float) -> None:
        """Give up after a while, and come again at once."""
        while self.clock.monotonic() < end:
            async with anyio.create_task_group() as group:
                group.start_soon(self._give_up_after, patience, group.cancel_scope)
                await self.send(member)
                group.cancel_scope.cancel()

    async def _give_up_after(self, patience: float, scope: anyio.CancelScope) -> None:
        await self.clock.asleep(patience)
        scope.cancel()

    def per_second(self, first: int, last: int) -> list[int]:
        counts = Counter(math.floor(instant) for instant in self.sent)
        return [counts[second] for second in range(first, last)]

    @property
    def most_in_a_second(self) -> int:
        first = most = 0
        for place, instant in enumerate(self.sent):
            while self.sent[first] <= instant - 1 + 1e-6:
                first += 1
            most = max(most, place - first + 1)
        return most


def _ignore(event: object) -> None:
    """A listener that is not interested."""


@pytest.mark.parametrize(("rate", "crowd", "beside"), [(50.0, 200, 0), (200.0, 400, 1)])
def test_a_crowd_that_is_cancelled_together_costs_no_second_of_the_quota(
    event_loop: World, rate: float, crowd: int, beside: int
) -> None:
    """The others are in the same process (0), or beside it in another."""
    team, end, workers = Team(rate), 4.0, int(max(4, rate / 20))

    async def main() -> None:
        async with anyio.create_task_group() as group, anyio.create_task_group() as impatient:
            for _ in range(crowd):
                impatient.start_soon(team.send, 0)
            for _ in range(workers):
                group.start_soon(team.send_until, beside, end)
            await team.clock.asleep(1.5)
            impatient.cancel_scope.cancel()

    event_loop.run(main())
    assert min(team.per_second(2, 4)) >= GOAL * rate
    assert team.most_in_a_second <= (1 + LATE) * rate + 2
    assert [policy.waiting for policy in team.policies] == [0, 0]


def test_waiters_that_soon_give_up_stop_nobody(event_loop: World) -> None:
    team, end = Team(50.0), 4.0

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(team.storm, 0, 0.3, end)
            for _ in range(8):
                group.start_soon(team.send_until, 1, end)

    event_loop.run(main())
    assert min(team.per_second(1, 4)) >= 0.95 * 50
    assert team.most_in_a_second <= (1 + LATE) * 50 + 2


def test_a_crowd_makes_one_call_for_all(event_loop: World) -> None:
    team = Team(50.0, members=1)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(team.send, 0)

    event_loop.run(main())
    assert len(team.sent) == 200
    assert team.store.calls <= 70


def test_what_a_crowd_has_leased_and_does_not_use_goes_to_the_others_at_once(event_loop: World) -> None:
    team = Team(10.0, burst=10.0)

    async def main() -> None:
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

    event_loop.run(main())
    assert team.sent[-1] - team.sent[2] < 0.1


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
