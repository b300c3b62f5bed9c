"""One limit for all beside limits of each key's own: turns that wait for their own hold up no other."""

import heapq
from collections.abc import Callable
from typing import Any

import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenBucket
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Run, Turn

pytestmark = pytest.mark.no_cover

RATE = 20

WHOLE: dict[str, Callable[[Any], Any]] = {
    "requests": lambda _: TokenBucket(RATE, 1, burst=1),
    "units": lambda _: TokenBucket(None, 1, max_cost=RATE),
    "both": lambda _: TokenBucket(2 * RATE, 1, max_cost=RATE),
    "adaptive": lambda _: AimdLimiter(RATE, 1),
    "shared requests": lambda store: TokenBucket(RATE, 1, burst=1, share="whole", store=store),
    "shared units": lambda store: TokenBucket(None, 1, max_cost=RATE, share="whole", store=store),
    "shared both": lambda store: TokenBucket(2 * RATE, 1, max_cost=RATE, share="whole", store=store),
    "shared adaptive": lambda store: AimdLimiter(RATE, 1, share="whole", store=store),
}

OWN: dict[str, Callable[[Any], Any]] = {
    "bucket": lambda _: TokenBucket(1, 600),
    "units": lambda _: TokenBucket(None, 600, max_cost=1),
    "places": lambda _: InFlight(1),
    "share": lambda store: TokenBucket(1, 600, share="own", store=store),
}


PAIRS = [
    (whole, own)
    for number, whole in enumerate(WHOLE)
    for place, own in enumerate(OWN)
    if (place - number) % len(OWN) < 2
]
"""Each limit for all with two of those that each key has, and each of these with every kind."""


class Line:
    """Asks for many turns in virtual time, by the documented protocol."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.went: list[tuple[Any, float]] = []  # By which limiter, and how long it had waited.
        self._coming: list[tuple[float, int, Any, Turn]] = []
        self._number = 0

    def add(self, limiter: Any, *turns: Turn) -> None:
        for turn in turns:
            self._push(self.clock.monotonic(), limiter, turn)

    def run(self, seconds: float, *, follow: Any = None) -> None:
        """Let these seconds pass; a turn that the limiter `follow` lets go comes again."""
        end = self.clock.monotonic() + seconds
        while self._coming and self._coming[0][0] < end:
            now, _, limiter, turn = heapq.heappop(self._coming)
            self.clock.advance(max(0.0, now - self.clock.monotonic()))
            turn.wake = self._wakes(limiter, turn)
            while isinstance(wait := limiter.ask(turn, self.clock.monotonic()), Run):
                wait.sync(1.0)
            if wait:
                self._push(now + min(wait, turn.nap), limiter, turn)
                continue
            self.went.append((limiter, now - turn.asked if turn.asked else 0.0))
            if limiter is follow:
                limiter.end(turn, now)
                self.add(limiter, Turn())
        self.clock.advance(max(0.0, end - self.clock.monotonic()))

    def _wakes(self, limiter: Any, turn: Turn) -> Callable[[], None]:
        def wake() -> None:
            others = [entry for entry in self._coming if entry[3] is not turn]
            if len(others) < len(self._coming):
                self._coming = others
                heapq.heapify(others)
                self._push(self.clock.monotonic(), limiter, turn)

        return wake

    def _push(self, at: float, limiter: Any, turn: Turn) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, limiter, turn))


@pytest.mark.parametrize(("whole", "own"), PAIRS)
def test_a_turn_that_waits_for_a_limit_of_its_own_does_not_hold_up_the_others(whole: str, own: str) -> None:
    clock = FakeClock()
    store, line = MemoryStore(clock), Line(clock)
    common = WHOLE[whole](store)
    slow, fast = AllOf(OWN[own](store), common), AllOf(InFlight(99), common)
    line.add(slow, Turn())
    line.run(1.0)
    line.add(slow, *[Turn(cost=40.0) for _ in range(30)])
    line.run(1.0)
    assert [limiter for limiter, _ in line.went] == [slow]
    line.add(fast, *[Turn() for _ in range(4)])
    line.run(3.0, follow=fast)
    line.went.clear()
    line.run(2.0, follow=fast)
    assert len(line.went) > 0.95 * 2 * RATE
    assert max(waited for _, waited in line.went) < 0.4


def test_nor_does_a_crowd_of_a_thousand() -> None:
    line, common = Line(FakeClock()), TokenBucket(RATE, 1, burst=1)
    slow, fast = AllOf(TokenBucket(1, 86400), common), AllOf(InFlight(99), common)
    line.add(slow, *[Turn() for _ in range(1000)])
    line.run(0.5)
    line.went.clear()
    line.add(fast, *[Turn() for _ in range(10)])
    line.run(2.0, follow=fast)
    assert len(line.went) > 0.95 * 2 * RATE


@pytest.mark.parametrize("change", ["settle", "leave", "update"])
def test_what_is_given_back_wakes_the_first_that_waits_for_it_behind_a_crowd(change: str) -> None:
    common, woken = TokenBucket(None, 60, max_cost=10), list[Turn]()
    slow, fast = AllOf(TokenBucket(1, 86400), common), AllOf(InFlight(99), common)
    holder, waiter = Turn(cost=9.0), Turn(cost=9.0)
    assert slow.ask(Turn(cost=1.0), 0.0) == fast.ask(holder, 0.0) == 0.0
    for _ in range(99):
        slow.ask(Turn(cost=0.0), 0.0)
    assert fast.ask(waiter, 0.0) == pytest.approx(54.0)
    waiter.wake = lambda: woken.append(waiter)
    if change == "settle":
        fast.settle(holder, 0.0, 1.0)
    elif change == "leave":
        fast.leave(holder, 1.0)
    else:
        common.update(max_cost=90)
    assert woken == [waiter]
    assert fast.ask(waiter, 1.0) == 0.0
