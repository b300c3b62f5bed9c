"""Groups with random failures: stores fail, headers lie, requests give up; nothing gets stuck or lost."""

import heapq
import math
import os
import random
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, AllOf, TokenBucket
from stkai.stores import Ask, GroupRate, Lease, MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Answer, Run, Turn

from ...support.crowd import Waiter, drive

pytestmark = pytest.mark.no_cover

FIRST = int(os.environ.get("STKAI_TEST_SEED", "0"))
LEAST = 0.001
"""Seconds: no timer wakes anybody earlier."""

QUOTAS = [(100, 60.0), (10, 1.0), (5, 10.0), (1000, 60.0), (3, 60.0)]


class Flaky(MemoryStore):
    """A store that fails with a probability that changes."""

    def __init__(self, clock: FakeClock, chance: random.Random) -> None:
        super().__init__(clock)
        self.chance, self.failing = chance, 0.0

    def lease(self, ask: Ask) -> Lease:
        self._perhaps_fail()
        return super().lease(ask)

    def amend(self, epoch: int, law: GroupRate) -> bool:
        self._perhaps_fail()
        return super().amend(epoch, law)

    def _perhaps_fail(self) -> None:
        if self.chance.random() < self.failing:
            raise ConnectionError("nobody is there")


class Group:
    """Members with waiting requests, and a server that may say anything."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - nothing here is a secret
        self.clock = FakeClock()
        self.store = Flaky(self.clock, self.chance)
        self.quota, self.window = self.chance.choice(QUOTAS)
        kind: Any = self.chance.choice([AimdLimiter, AimdLimiter, TokenBucket])
        self.members = [
            kind(self.quota, self.window, share="team", store=self.store)
            for _ in range(self.chance.choice([1, 2, 5]))
        ]
        self.waiting: list[tuple[Any, Turn]] = []

    def step(self, nap: float) -> None:
        """Let one of the requests ask."""
        place = self.chance.randrange(len(self.waiting))
        member, turn = self.waiting[place]
        now = self.clock.monotonic()
        wait = member.ask(turn, now)
        if isinstance(wait, Run):
            wait.sync(1.0)
        elif wait:
            assert 0 < wait < math.inf
            self.clock.sleep(min(wait, turn.nap, nap))
        else:
            del self.waiting[place]
            member.learn(turn, self.answer(now))

    def answer(self, now: float) -> Answer:
        chance, quota, window = self.chance, self.quota, self.window
        left = chance.choice([0, 1, quota // 2, quota, 2 * quota, -1])
        reset = chance.choice([0, 1, window / 2, window, 3 * window, 1e6, "x"])
        headers: dict[str, str] = chance.choice(
            [
                {},
                {"ratelimit-policy": f'"d";q={quota};w={window:.0f}', "ratelimit": f'"d";r={left};t={reset}'},
                {
                    "x-ratelimit-limit": f"{quota}",
                    "x-ratelimit-remaining": f"{left}",
                    "x-ratelimit-reset": f"{reset}",
                },
            ]
        )
        status = chance.choice([200] * 8 + [429, 500])
        if status == 429 and chance.random() < 0.7:
            headers = {**headers, "retry-after": chance.choice(["0", "1", "3", f"{window:.0f}"])}
        sent = now - chance.choice([0.0, 0.01, 0.2, 3.0])
        response = httpx.Response(status, headers=headers)
        return Answer(sent, now, response, None, self.clock.utcnow, chance.random())

    def get_into_trouble(self, steps: int) -> None:
        """Fail, refuse, give up."""
        chance, most = self.chance, self.chance.choice([3, 20, 60])
        for _ in range(steps):
            if chance.random() < 0.02:
                self.store.failing = chance.choice([0.0, 0.0, 0.3, 1.0])
            while len(self.waiting) < most:
                self.waiting.append((chance.choice(self.members), Turn()))
            if chance.random() < 0.03:
                member, turn = self.waiting.pop(chance.randrange(most))
                member.leave(turn, self.clock.monotonic())
            else:
                self.step(chance.choice([0.001, 0.05, 1.0, self.window]))
            if chance.random() < 0.02:
                self.recover()

    def drain(self) -> None:
        """Let all turns that wait ask when it is time to, for at most 5,000 s."""
        asleep = [(self.clock.monotonic(), number, *who) for number, who in enumerate(self.waiting)]
        until = self.clock.monotonic() + 5000
        while asleep and asleep[0][0] < until:
            wakes, number, member, turn = heapq.heappop(asleep)
            self.clock.advance(max(0.0, wakes - self.clock.monotonic()))
            now = self.clock.monotonic()
            wait = member.ask(turn, now)
            if isinstance(wait, Run):
                wait.sync(1.0)
                wait = 0.0001
            if wait:
                heapq.heappush(asleep, (now + max(LEAST, min(wait, turn.nap)), number, member, turn))
            else:
                member.learn(turn, self.answer(now))
        self.waiting = [(member, turn) for _, _, member, turn in asleep]

    def recover(self) -> None:
        """Let the members find out whether the store is back."""
        for member in self.members:
            member._leased.client.work()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 4))
def test_every_request_of_a_group_in_trouble_gets_its_turn(seed: int) -> None:
    group = Group(seed)
    group.get_into_trouble(1500)
    group.store.failing = 0.0
    group.recover()
    group.drain()
    assert not group.waiting
    assert [member.waiting for member in group.members] == [0] * len(group.members)
    quota = group.quota / group.window
    assert all(0 < member.rate <= 1.5 * quota for member in group.members)


class Lists:
    """A queue whose turns need permits and units of two shares, in one order or the other, or of one share.

    They are in one process or in two; the numbers may change, and the store may lose its state.
    """

    def __init__(self, chance: random.Random, waiters: list[Waiter]) -> None:
        self.clock = FakeClock(0.0)
        self.store = store = MemoryStore(self.clock)
        window, shares = chance.choice([1.0, 10.0]), dict[str, Any](one=[20, 100], two=[None, 50])
        numbers = {name: (chance.choice(requests), window) for name, requests in shares.items()}
        most = chance.choice([200, 300])
        self.members = [
            [TokenBucket(*numbers[name], max_cost=most, share=name, store=store) for name in numbers]
            for _ in range(chance.choice([1, 2]))
        ]
        parts = chance.randint(2, 4)
        lists = [[AllOf(*each), AllOf(*reversed(each)), *each][:parts] for each in self.members]
        self.limits: dict[Turn, Any] = {
            waiter.turn: chance.choice(chance.choice(lists)) for waiter in waiters
        }
        trouble = chance.choice([self.lose_state, self.update, lambda: None])
        self.troubles: list[Any] = [(chance.uniform(0, window), trouble)]

    def lose_state(self) -> None:
        self.store._states.clear()

    def update(self) -> None:
        self.members[0][0].update(max_cost=150)

    def at(self, turn: Turn, now: float) -> Any:
        """The limiter of a turn, at this time."""
        self.clock.advance(max(0.0, now - self.clock.monotonic()))
        if self.troubles and now > self.troubles[0][0]:
            self.troubles.pop()[1]()
        return self.limits[turn]

    def ask(self, turn: Turn, now: float) -> Any:
        assert now < 200, "requests stand still"
        limits = self.at(turn, now)
        while isinstance(wait := limits.ask(turn, now), Run):
            wait.sync(60.0)
        return wait

    def leave(self, turn: Turn, now: float) -> None:
        self.at(turn, now).leave(turn, now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self.at(turn, now).settle(turn, cost, now)


@pytest.mark.parametrize("seed", [FIRST, FIRST + 421, FIRST + 537])
def test_requests_that_need_units_of_two_shares_get_their_turn(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing here is a secret
    waiters = [
        Waiter(
            chance.choice([0.0, chance.uniform(0, 10)]),
            limit=chance.choice([math.inf] * 4 + [2.0]),
            patience=chance.choice([math.inf] * 7 + [0.01, 0.3, 5.0]),
            lateness=chance.choice([0.0, 0.0003, 0.002]),
            cost=(cost := chance.choice([0, 1, 5, 30, 99, 150])),
            used=chance.choice([None, None, 0.0, 2.0 * cost]),
            serving=chance.choice([0.0, 0.05, 0.5]),
            priority=chance.choice(["normal", "normal", "normal", "low"]),
        )
        for _ in range(chance.choice([15, 25, 40]))
    ]
    queue: Any = Lists(chance, waiters)
    drive(queue, waiters)
    assert not any(limits.waiting for limits in queue.limits.values())
