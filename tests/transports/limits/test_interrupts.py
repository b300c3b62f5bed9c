"""A limiter works after an interrupt (Ctrl-C, the exception of a signal handler) at any point of its arithmetic."""

import _weakrefset
import dis
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenBucket
from stkai._wire.pool_state import PoolState
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Answer, Run, Turn
from stkai.transports._limits.queue import Queue, join_all
from stkai.transports._limits.queue_limiter import QueueLimiter
from stkai.transports._limits.waiting_turns import WaitingTurns

from ...support.interrupts import Interrupt, needs_opcodes

pytestmark = pytest.mark.no_cover

OVER = 1000.0
"""Seconds; the scenario is over by then, and everything that it has used is free again."""

STRIDE = 37
"""Only every 37th point is tried: what goes wrong goes wrong at several in a row."""

STRIDE_OF_SHARES = 311
"""They have more points, and each takes longer."""


def answer(now: float, status: int | None) -> Answer:
    response = None if status is None else httpx.Response(status)
    error = httpx.ConnectError("") if status is None else None
    return Answer(now, now, response, error, lambda: datetime.now(UTC), 0.5)


class Requests:
    """Requests under one limiter, in virtual time."""

    def __init__(self, make: Callable[[FakeClock], QueueLimiter]) -> None:
        self.clock = FakeClock()
        self.limiter = make(self.clock)

    def ask(self, turn: Turn, now: float) -> float:
        """Ask for a permit, and call the store if that is due."""
        self.clock.advance(max(0.0, now - self.clock.monotonic()))
        while isinstance(wait := self.limiter.ask(turn, now), Run):
            wait.sync(60.0)
        assert isinstance(wait, float)
        assert not math.isnan(wait)
        return wait

    def end(self, turn: Turn, now: float, status: int | None) -> None:
        """Let a request be answered, or not be sent."""
        self.limiter.learn(turn, answer(now, status))
        self.limiter.end(turn, now)

    def play(self) -> None:
        """Requests that go, wait, leave, are refused and never sent. An interrupted one leaves, as in the layer."""
        turns = [Turn() for _ in range(6)]
        for turn in turns:  # Those of layers and permits: what nothing refers to any more is free.
            turn.sources = self.limiter.sources
        first, second, third, fourth, fifth, sixth = turns
        try:
            for turn in turns[:5]:
                self.ask(turn, 0.0)
            if first.granted:
                self.end(first, 0.3, 200)
                self.limiter.settle(first, 2.0, 0.3)
            self.limiter.leave(fourth, 0.4)
            self.ask(sixth, 0.5)
            for now, turn, status in ((11.0, second, 429), (22.0, third, None), (33.0, fifth, 200)):
                if self.ask(turn, now) == 0:
                    self.end(turn, now, status)
            self.limiter.leave(sixth, 40.0)
        finally:
            for turn in turns:
                (self.limiter.end if turn.granted else self.limiter.leave)(turn, 60.0)

    def seconds(self, requests: int = 12) -> float:
        """How long so many requests take, one after the other, each of which is accepted."""
        now = OVER
        for _ in range(requests):
            turn = Turn()
            while wait := self.ask(turn, now):
                now += max(min(wait, turn.nap), 0.001)
                assert now < 2 * OVER, "it never goes"
            self.end(turn, now, 200)
        return now - OVER


def shared(limiter: Callable[..., QueueLimiter], *numbers: float, **options: Any) -> Any:
    return lambda clock: limiter(*numbers, share="team", store=MemoryStore(clock), **options)


LIMITERS: dict[str, Callable[[FakeClock], QueueLimiter]] = {
    "requests, units and in flight": lambda _: AllOf(TokenBucket(2, 10, max_cost=3), InFlight(2)),
    "many requests": lambda _: TokenBucket(5000, 10, burst=2),
    "adaptive": lambda _: AimdLimiter(2, 10, max_cost=3),
    "adaptive, without numbers": lambda _: AimdLimiter(),
    "shared": shared(TokenBucket, 2, 10),
    "shared units": shared(TokenBucket, 2, 10, max_cost=3),
    "shared and adaptive": shared(AimdLimiter, 2, 10),
}


@needs_opcodes
@pytest.mark.parametrize("make", LIMITERS.values(), ids=list(LIMITERS))
def test_a_limiter_works_after_an_interrupt_at_any_point(make: Callable[[FakeClock], QueueLimiter]) -> None:
    fresh, whole = Requests(make), Requests(make)
    whole.play()
    usual = max(fresh.seconds(), whole.seconds())
    for number in count(1, STRIDE_OF_SHARES if fresh.limiter.has_remote else STRIDE):
        requests, interrupt = Requests(make), Interrupt(number, "_limits")
        with interrupt.during():
            requests.play()
        assert requests.seconds() <= usual + 15, f"three permits, at most, are lost: {number}"
        if interrupt.left > 0:
            break
    assert number > 50, "there were interrupts"


@pytest.mark.parametrize(
    "method", [Queue.ask, Queue.learn, Queue._when_free, join_all, PoolState.take, PoolState.catch_up]
)
def test_no_loop_jumps_back_outside_of_the_block_that_holds_a_lock(method: Any) -> None:
    """CPython 3.12 and 3.13 compile a loop that ends with an `if` to such a jump, and run signal handlers there."""
    parse: Any = getattr(dis, "_parse_exception_table", lambda _: [])
    blocks = parse(method.__code__)

    def is_in_block(offset: int) -> bool:
        return any(block.start <= offset < block.end for block in blocks)

    for step in dis.get_instructions(method):
        if "JUMP_BACKWARD" in step.opname and "NO_INTERRUPT" not in step.opname:
            assert is_in_block(step.offset) or not is_in_block(step.argval), step


@needs_opcodes
def test_limiters_in_use_are_joined_after_an_interrupt_at_any_point() -> None:
    for number in count(1):
        one, two = TokenBucket(1, 10), TokenBucket(1, 20)
        turns = [Turn() for _ in range(6)]
        for turn in turns:
            (one if turn in turns[::2] else two).ask(turn, 0.0)
        interrupt = Interrupt(number, "queue.py", "waiting_turns.py", _weakrefset.__file__)
        with interrupt.during():
            AllOf(one, two)
        both, last = AllOf(one, two), Turn()
        for now in (10.0, 20.0, 40.0):
            for turn in turns:
                if not turn.granted:
                    (one if turn in turns[::2] else two).ask(turn, now)
        assert all(turn.granted for turn in turns), number
        assert both.ask(last, 45.0) == 15.0
        assert both.ask(last, 60.0) == 0
        assert (one.waiting, two.waiting, Queue.lock._is_owned()) == (0, 0, False)
        assert set(both.sources[0].order.members) >= set(both.sources), "a fork would not renew the others"
        if interrupt.left > 0:
            break
    assert number > 40, "there were interrupts"


@needs_opcodes
def test_work_that_was_put_off_is_done_after_an_interrupt_before_it() -> None:
    for number in count(1):
        done = list[int]()
        order, interrupt = WaitingTurns(), Interrupt(number, "waiting_turns.py")
        order.deferred.append(partial(done.append, 1))
        with interrupt.during():
            order.catch_up()
        order.catch_up()
        assert done, number
        if interrupt.left > 0:
            break
    assert number > 2, "there were interrupts"


class _Over(BaseException):
    pass


class _Sleepless(FakeClock):
    def sleep(self, seconds: float) -> None:
        """End the trace: from now on, an interrupt would come in the clean-up after it."""
        sys.settrace(None)
        raise _Over


@needs_opcodes
def test_an_interrupt_before_a_permit_is_waited_for_leaves_the_line_at_any_point() -> None:
    policy, clock = InFlight(1), _Sleepless()
    with policy.permit(clock=clock):
        for number in count(1):
            interrupt = Interrupt(number, "permit.py")
            with suppress(_Over), interrupt.during():
                policy.permit(clock=clock).__enter__()
            assert policy.waiting == 0, number
            if interrupt.left > 0:
                break
    assert number > 10, "there were interrupts"
