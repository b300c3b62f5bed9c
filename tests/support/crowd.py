"""Drives waiters through a queue in virtual time, as the transports do: numbers in, numbers out."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from stkai.transports._limits.limiter import Turn
from stkai.transports._limits.queue import Queue


@dataclass(eq=False)
class Waiter:
    """A request for a permit at time `arrives`.

    Attributes:
        limit: the longest wait that it accepts, in seconds; given a longer one, it leaves at once.
        patience: seconds after which it leaves without a permit.
        lateness: seconds by which it wakes late from each sleep.
        cost: units that it takes.
        used: units that it really took, known `serving` seconds after it went; None if that stays unknown.
        priority: "normal" or "low".
        promised: the time that it was first given for its permit.
        went: when it got its permit.
        sleeps: how often it slept.
    """

    arrives: float
    limit: float = math.inf
    patience: float = math.inf
    lateness: float = 0.0
    cost: float = 1.0
    used: float | None = None
    serving: float = 0.0
    priority: Literal["normal", "low"] = "normal"
    promised: float = math.nan
    went: float = math.nan
    sleeps: int = 0
    turn: Turn = field(init=False)

    def __post_init__(self) -> None:
        self.turn = Turn(cost=self.cost, priority=self.priority)


def arrivals(gaps: Iterable[float], rate: float = 1.0) -> list[Waiter]:
    """Waiters that arrive one after the other, at these intervals, counted in permits at this rate."""
    return [Waiter(now) for now in itertools.accumulate(gap / rate for gap in gaps)]


def drive(queue: Queue, waiters: Iterable[Waiter], chance: Callable[[], float] = lambda: 0.5) -> list[Waiter]:
    """Let everybody arrive, wait, and go or leave; returns those who went, in order."""
    order = itertools.count()
    coming = [(waiter.arrives, next(order), waiter) for waiter in waiters]
    leaving = [(arrives + waiter.patience, next(order), waiter) for arrives, _, waiter in coming]
    leaving = [event for event in leaving if event[0] < math.inf]
    quitters = {number for _, number, _ in leaving}
    events = coming + leaving
    heapq.heapify(events)
    gone: list[Waiter] = []
    left: set[Waiter] = set()
    settling: set[int] = set()
    while events:
        now, number, waiter = heapq.heappop(events)
        if not math.isnan(waiter.went) and waiter.used is not None and number in settling:
            queue.settle(waiter.turn, waiter.used, now)
        if waiter in left or not math.isnan(waiter.went):
            continue
        if number in quitters:
            queue.leave(waiter.turn, now)
            left.add(waiter)
            continue
        new = math.isnan(waiter.promised)
        turn = waiter.turn
        turn.chance = chance()
        seconds = queue.ask(turn, now)
        assert isinstance(seconds, float)
        if new:
            waiter.promised = now + seconds
        if now + seconds - waiter.arrives > waiter.limit:
            queue.leave(waiter.turn, now)
            left.add(waiter)
        elif seconds:
            waiter.sleeps += 1
            heapq.heappush(events, (now + min(seconds, turn.nap) + waiter.lateness, next(order), waiter))
        else:
            waiter.went = now
            gone.append(waiter)
            if waiter.used is not None:
                settling.add(number := next(order))
                heapq.heappush(events, (now + waiter.serving, number, waiter))
    return gone


def took(queue: Queue, now: float, cost: float = 1.0) -> int:
    """The number of a turn that got a permit at once; 0 if there was none."""
    turn = Turn(cost=cost)
    if queue.ask(turn, now) == 0:
        return turn.number
    queue.leave(turn, now)
    return 0


def most_in_excess(instants: list[float], rate: float) -> float:
    """The most permits by which a window between two of these times exceeds what its length allows."""
    worst, lowest = 0.0, math.inf
    for number, instant in enumerate(instants):
        lowest = min(lowest, number - rate * instant)
        worst = max(worst, number + 1 - rate * instant - lowest)
    return worst
