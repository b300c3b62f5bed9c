"""A limiter works after an interrupt (Ctrl-C, the exception of a signal handler) at any point of its arithmetic."""

import dis
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from types import FrameType
from typing import Any

import httpx
import pytest

from stkai import AimdLimiter, AllOf, InFlight, TokenBucket
from stkai.transports import Answer, Turn
from stkai.transports._limits.queue_limiter import QueueLimiter

OVER = 1000.0
"""Seconds; the scenario is over by then, and everything that it has used is free again."""

STRIDE = 4
"""Only every fourth point is tried: what goes wrong goes wrong at several in a row."""


class Interrupted(BaseException):
    """What a signal handler raises."""


class Interrupt:
    """Raises, once, at the point of that number where Python may run a signal handler: after calls and loops."""

    _AFTER = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"})

    def __init__(self, number: int) -> None:
        self.left = number

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if "_limits" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, before = True, ""

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "opcode":
                if before in self._AFTER:
                    self.left -= 1
                    if not self.left:
                        raise Interrupted
                before = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            return step

        return step

    @contextmanager
    def during(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            yield
        except Interrupted:
            pass
        finally:
            sys.settrace(before)


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


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="3.12 reports no opcodes of a frame that has begun"
)
@pytest.mark.parametrize("make", LIMITERS.values(), ids=list(LIMITERS))
def test_a_limiter_works_after_an_interrupt_at_any_point(make: Callable[[], QueueLimiter]) -> None:
    whole = make()
    scenario(whole)
    usual = seconds_for(whole)
    for number in count(1, STRIDE):
        limiter, interrupt = make(), Interrupt(number)
        with interrupt.during():
            scenario(limiter)
        assert seconds_for(limiter) <= usual + 15, "three permits, at most, are lost"
        if interrupt.left > 0:
            break
    assert number > 50, "there were interrupts"
