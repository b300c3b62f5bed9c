"""Limiters of the user's own, among others or alone."""

import math
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

import httpx

from .._operations import Operation
from .limiter import Limiter, Turn
from .plan import Plan
from .queue import Queue
from .queue_limiter import QueueLimiter
from .sources.source import TICK, Source

_GLANCE: Final = 1.0
"""Seconds; a limiter of the user's own is asked at least so often about the request that is next."""


class Guest(Source):
    """A limiter of the user's own among others: asked last, about one turn at a time, and not under the lock.

    As a source, it holds back all turns but the one that the limiter is asked about. The limiter sees a turn of its own
    for each of ours.
    """

    counts_units = True
    is_exact = False

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.max_cost: float | None = getattr(limiter, "max_cost", None)
        self.cost = getattr(limiter, "cost", None)
        self._asking: Turn | None = None

    @property
    def limit(self) -> str:  # type: ignore[override]
        return type(self.limiter).__name__

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where a turn's `costs` are set."""
        return (self,)

    def listens(self, now: float) -> bool:
        return True

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        asking = self._asking
        if asking is turn or (asking is None and not ahead):
            return 0.0
        return TICK if asking is None else max(TICK, asking.told - now)

    def reserve(self, turn: Turn) -> None:
        """Note that all other sources have a permit for the turn, so that the limiter is asked about it next."""
        self._asking = turn

    def take(self, turn: Turn, now: float) -> None:
        self._asking = None

    def forked(self) -> None:
        self._asking = None

    def inner(self, turn: Turn) -> Turn:
        """The limiter's own turn for one of ours."""
        if turn.inner is Turn.inner:
            turn.inner = {}
        turns = turn.inner
        if self not in turns:
            turns[self] = Turn(
                turn.request, chance=turn.chance, cost=self.cost_of(turn), priority=turn.priority
            )
        return turns[self]

    def ask(self, turn: Turn, now: float) -> float | Operation:
        """The limiter's answer; `turn.nap` is then when to ask again."""
        inner = self.inner(turn)
        inner.nap, inner.call = math.inf, turn.call
        wait = self.limiter.ask(inner, now)
        turn.nap = min(inner.nap, _GLANCE)
        return wait

    def give_up(self, turn: Turn, now: float) -> None:
        """Leave the limiter with the turn's place or permit, and let it be asked about another turn."""
        inner = turn.inner.get(self)
        if inner is not None:
            self.limiter.leave(inner, now)
        if self._asking is turn:
            self._asking = None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self.limiter.settle(self.inner(turn), cost, now)


_guests: WeakValueDictionary[int, Guest] = WeakValueDictionary()
"""By the id of their limiter: a limiter in several lists is still asked about one turn at a time."""


def guest_of(limiter: Limiter) -> Guest:
    with Queue.lock:
        guest = _guests.get(id(limiter))
        if guest is None:
            guest = _guests[id(limiter)] = Guest(limiter)
    return guest


def plan_of_own(limiter: Limiter, request: httpx.Request | None, guest: Guest | None = None) -> Plan | None:
    """What a request needs of a user's own limiter, which sees every request and every answer.

    `guest` is the limiter as one of several.
    """
    if guest is None and isinstance(limiter, QueueLimiter):
        plan = limiter.plan_for(request)
        return None if plan is None else replace(plan, ends=True)
    if request is not None and limiter.methods is not None and request.method not in limiter.methods:
        return None
    guests = () if guest is None else (guest,)
    priced = () if getattr(limiter, "max_cost", None) is None else guests or (limiter,)
    return Plan(guests, guests, priced, hasattr(limiter, "end"), bool(guests), limiter.max_wait_time)
