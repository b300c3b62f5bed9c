"""The ticket clock of a shared quota: numbers in, numbers out. `tickets.lua` is the same code, line by line.

It is the virtual-scheduling form of the leaky bucket (GCRA: ITU-T I.371, annex A): `next` is the place of the next
permit on the store's clock. Returned places are granted first. A property test checks that both versions agree.
"""

import math

from ._members import FORGET, Members
from ._protocol import Ask, Known, Law, Lease, Snapshot

AHEAD = 0.25
"""Seconds' worth of its share that a member may lease in advance."""

MOST_VACANT = 64
MOST_QUEUE = 60.0
"""Seconds; the longest queue that a member's report can restore."""

_SPAN = 10.0
"""Seconds over which `used` is counted."""

_ROUNDING = 1e-6
"""Permits."""

_SET_BACK = 0.1
"""Seconds; if the clock is behind by more, it was set back, and the whole state moves back with it."""


class State:
    """The state of one share; times are instants on the store's clock, in seconds.

    Attributes:
        epoch: counts refusals; restarts above all earlier values when a state is lost.
        version: counts the changes of the law.
        last: the latest instant at which the state was used.
        quota, burst: the quota of the member that started last.
        max_cost, cost_rate: likewise, in units of cost.
        began: when that member started, by its own clock.
        owner_seen: when a member that started then was last seen.
        rate, depth: the rate (permits per second) and the burst in force.
        next: the place of the next permit.
        empty: when the bucket of units was empty, or will be.
        paused: when the pause ends.
        refused: when the last 429 was reported; -1 if none was.
        span, used, before: the current ten-second span, the permits leased in it, and in the one before.
        written: when the law was written.
        memory: the law's own state.
        vacant: places that were given back, in ascending order.
        is_lost: whether the state is new, so that members may know more.
    """

    __slots__ = (
        "before",
        "began",
        "burst",
        "cost_rate",
        "depth",
        "empty",
        "epoch",
        "is_lost",
        "last",
        "max_cost",
        "members",
        "memory",
        "next",
        "owner_seen",
        "paused",
        "quota",
        "rate",
        "refused",
        "span",
        "used",
        "vacant",
        "version",
        "written",
    )

    def __init__(self, now: float, members: Members) -> None:
        self.epoch = self.version = math.floor(now * 1000000)
        self.last = self.next = self.empty = self.written = now
        self.began = self.owner_seen = self.paused = self.refused = -1.0
        self.quota = self.burst = self.max_cost = self.cost_rate = self.rate = self.depth = 0.0
        self.span = self.used = self.before = 0
        self.memory = ""
        self.vacant: list[float] = []
        self.members = members
        self.is_lost = True


def lease(state: State, ask: Ask, now: float) -> Lease:
    """Take a step of the clock for one member."""
    now = _step_to(state, now)
    members = state.members.seen(ask.member, now, ask.waiting)
    _agree(state, ask, now)
    if state.is_lost:
        state.is_lost = False
        if ask.known is not None:
            _go_on(state, ask.known, now)
    if ask.refused is not None:
        _refuse(state, ask.refused.epoch, now + ask.refused.pause, now)
    if ask.settle and state.cost_rate:
        state.empty += ask.settle / state.cost_rate
    spacing = 1.0 / state.rate
    for seconds in ask.back:
        _take_back(state, now + seconds, spacing, now)
    while state.vacant and state.vacant[0] <= now:
        del state.vacant[0]
    count, wait, gap = 0, 0.0, spacing
    if ask.want > 0:
        known = 0 if ask.known is None else ask.known.members
        share = math.floor(state.rate * AHEAD / max(members, known) + _ROUNDING)
        count, wait, gap = _grant(state, ask, min(ask.want, max(1, share)), spacing, now)
        span = math.floor(now / _SPAN)
        if span != state.span:
            state.before = state.used if span == state.span + 1 else 0
            state.span, state.used = span, 0
        state.used += count
    law = Law(ask.share, state.rate, state.depth, state.memory, state.version, now - state.written)
    pause = max(0.0, state.paused - now)
    return Lease(
        count, wait, gap, pause, state.rate, state.epoch, members, law, state.quota, state.burst,
        state.next - now,
    )  # fmt: skip


def amend(state: State, epoch: int, law: Law, now: float) -> bool:
    """Put a new law in force, unless epoch or version have moved."""
    if epoch != state.epoch or law.version != state.version:
        return False
    now = _step_to(state, now)
    state.version += 1
    _pace(state, law.rate, now)
    state.rate, state.depth, state.memory, state.written = law.rate, law.burst, law.memory, state.last
    return True


def look(state: State, now: float) -> Snapshot:
    """A snapshot for display."""
    now = max(now, state.last)
    members, waiting = state.members.count(now)
    span = math.floor(now / _SPAN)
    used = state.used if span == state.span else 0
    before = state.before if span == state.span else state.used if span == state.span + 1 else 0
    elapsed = now - span * _SPAN
    lately = (used + before * (1 - elapsed / _SPAN)) / _SPAN
    queue = max(0.0, state.next - now)
    pause = max(0.0, state.paused - now)
    refused = now - state.refused if state.refused >= 0 else None
    return Snapshot(
        members, state.rate, state.quota, state.burst, lately, waiting, queue, pause, refused, state.epoch
    )


def forget(state: State, now: float) -> State:
    """The state of a share after a reset: its members start over, regardless of what they know."""
    fresh = State(max(now, state.last), state.members)
    fresh.epoch = fresh.version = max(fresh.epoch, state.epoch + 1)
    fresh.is_lost = False
    return fresh


def _step_to(state: State, now: float) -> float:
    """Advance the state's time; if the clock was set back, continue as if no time had passed since the last step."""
    back = state.last - now
    if back > _SET_BACK:
        state.last, state.next, state.empty = now, state.next - back, state.empty - back
        state.owner_seen, state.paused, state.written = (
            state.owner_seen - back, state.paused - back, state.written - back,
        )  # fmt: skip
        if state.refused >= 0:
            state.refused = max(0.0, state.refused - back)
        state.vacant = [place - back for place in state.vacant]
        state.members.move_back(back)
    state.last = max(now, state.last)
    return state.last


def _go_on(state: State, known: Known, now: float) -> None:
    """Restore a lost state from what the first member to ask knows."""
    state.epoch = known.epoch
    if known.pause > 0:
        state.paused = now + known.pause
    state.next = max(now, now + min(known.next, MOST_QUEUE), state.paused)


def _agree(state: State, ask: Ask, now: float) -> None:
    """Adopt the quota of the member that started last, as long as such a member is alive."""
    max_cost = ask.max_cost or 0.0
    same = (
        ask.rate == state.quota
        and ask.burst == state.burst
        and max_cost == state.max_cost
        and ask.cost_rate == state.cost_rate
    )
    if ask.started > state.began or state.owner_seen <= now - FORGET:
        if not same:
            state.quota = state.rate = ask.rate
            state.burst = state.depth = ask.burst
            state.max_cost, state.cost_rate = max_cost, ask.cost_rate
            state.memory = ""
            state.version += 1
        state.began, state.owner_seen = ask.started, now
    elif same and ask.started == state.began:
        state.owner_seen = now


def _pace(state: State, rate: float, now: float) -> None:
    """Move the places that are still to come: their number between now and the last one stays the same."""
    start, ratio = max(now, state.paused), state.rate / rate
    state.vacant = [start + (place - start) * ratio if place > start else place for place in state.vacant]
    if state.next > start:
        state.next = start + (state.next - start) * ratio


def _refuse(state: State, epoch: int, until: float, now: float) -> None:
    """Pause all members; a refusal of an older epoch can only lengthen the pause."""
    if epoch != state.epoch and until <= state.paused:
        return
    state.epoch += 1
    state.refused = now
    state.paused = max(state.paused, until)
    state.next = max(now, state.paused)
    state.vacant.clear()


def _take_back(state: State, place: float, spacing: float, now: float) -> None:
    """Keep a place for the next member that asks; a past place returns to the burst if it is still unused."""
    if place <= now:
        if state.next <= now:
            state.next -= spacing
    elif place < state.next and len(state.vacant) < MOST_VACANT:
        state.vacant.append(place)
        state.vacant.sort()


def _grant(state: State, ask: Ask, count: int, spacing: float, now: float) -> tuple[int, float, float]:
    """The number of permits, seconds until the first, and seconds between them."""
    earliest = max(now - (state.depth - 1.0) * spacing, state.paused)
    vacant = bool(state.vacant) and state.vacant[0] < state.next
    start = state.vacant.pop(0) if vacant else max(state.next, earliest)
    gap = spacing
    if vacant:
        count = 1
    elif start <= now:
        count = min(count, math.floor((now - start) / spacing + _ROUNDING) + 1)
        gap = 0.0
    first = max(start, now)
    if state.max_cost > 0:
        count, paid = _pay(state, ask.costs, count, first, gap)
        if paid > first:
            # The place moves to when the units are there; permits due before then stay in the burst.
            if not vacant:
                state.next = max(start, paid - (state.depth - 1.0) * spacing) + spacing
            return 1, paid - now, spacing
    if not vacant:
        state.next = start + count * spacing
    return count, first - now, gap


def _pay(state: State, costs: tuple[float, ...], count: int, first: float, gap: float) -> tuple[int, float]:
    """How many of the permits have enough units when due, and when the first may be used."""
    per_unit, full = 1.0 / state.cost_rate, state.max_cost / state.cost_rate
    for number in range(count):
        cost = costs[number] if number < len(costs) else 0.0
        due = first + number * gap
        paid = state.empty + min(cost, state.max_cost) * per_unit if cost > 0 else due
        if paid > due + 1e-9:
            if number:
                return number, first
            state.empty = max(state.empty, paid - full) + cost * per_unit
            return 1, paid
        state.empty = max(state.empty, due - full) + cost * per_unit
    return count, first
