"""A limiter works after an interrupt (Ctrl-C, the exception of a signal handler) at any point of its arithmetic."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count

import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenBucket
from stkai.transports import Answer, Turn
from stkai.transports._limits.queue_limiter import QueueLimiter

from ...support.interrupts import Interrupt, needs_opcodes

OVER = 1000.0
"""Seconds; the scenario is over by then, and everything that it has used is free again."""

STRIDE = 4
"""Only every fourth point is tried: what goes wrong goes wrong at several in a row."""


def answer(now: float, status: int | None) -> Answer:
    response = None if status is None else httpx.Response(status)
    error = httpx.ConnectError("") if status is None else None
    return Answer(now, now, response, error, lambda: datetime.now(UTC), 0.5)


def scenario(limiter: QueueLimiter) -> None:
    """Requests that go, wait, leave, are refused and never sent; an interrupted one leaves, as the layer sees to."""
    turns = [Turn() for _ in range(6)]
    for turn in turns:  # Those of layers and permits: what nothing refers to any more is free.
        turn.sources = limiter.sources
    first, second, third, fourth, fifth, sixth = turns
    try:
        for turn in turns[:5]:
            limiter.ask(turn, 0.0)
        end(limiter, first, 0.3, 200)
        limiter.leave(fourth, 0.4)
        limiter.ask(sixth, 0.5)
        for now, turn, status in ((11.0, second, 429), (22.0, third, None), (33.0, fifth, 200)):
            if limiter.ask(turn, now) == 0:
                end(limiter, turn, now, status)
        limiter.leave(sixth, 40.0)
    finally:
        for turn in turns:
            (limiter.end if turn.granted else limiter.leave)(turn, 60.0)


def end(limiter: QueueLimiter, turn: Turn, now: float, status: int | None) -> None:
    limiter.learn(turn, answer(now, status))
    limiter.end(turn, now)


def seconds_for(limiter: QueueLimiter, requests: int = 12) -> float:
    """How long so many requests take, one after the other, each of which is accepted."""
    now = OVER
    for _ in range(requests):
        turn = Turn()
        while wait := limiter.ask(turn, now):
            assert isinstance(wait, float)
            assert not math.isnan(wait)
            now += max(min(wait, turn.nap), 0.001)
            assert now < 2 * OVER, "it never goes"
        end(limiter, turn, now, 200)
    return now - OVER


LIMITERS: dict[str, Callable[[], QueueLimiter]] = {
    "requests, units and in flight": lambda: AllOf(TokenBucket(2, 10, max_cost=3), InFlight(2)),
    "many requests": lambda: TokenBucket(5000, 10, burst=2),
    "adaptive": lambda: AimdLimiter(2, 10, max_cost=3),
    "adaptive, without numbers": AimdLimiter,
}


@needs_opcodes
@pytest.mark.parametrize("make", LIMITERS.values(), ids=list(LIMITERS))
def test_a_limiter_works_after_an_interrupt_at_any_point(make: Callable[[], QueueLimiter]) -> None:
    whole = make()
    scenario(whole)
    usual = seconds_for(whole)
    for number in count(1, STRIDE):
        limiter, interrupt = make(), Interrupt(number, "_limits")
        with interrupt.during():
            scenario(limiter)
        assert seconds_for(limiter) <= usual + 15, "three permits, at most, are lost"
        if interrupt.left > 0:
            break
    assert number > 50, "there were interrupts"
