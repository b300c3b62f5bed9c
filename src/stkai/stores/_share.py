"""The state of a share: its calendar, and assumptions about each member, which the members' reports correct.

A member reports totals. Permits that it neither used nor keeps are returned. A member that stays silent loses its
permits; it is forgotten later, and others get those that are not due yet. A permit for units of cost is paid with what
the bucket will hold when it is due.
`step.lua` is the same code, with the same names: `s` for the state, `m` for a member.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final

from ._calendar import (
    NEVER,
    ROUNDING,
    Calendar,
    Range,
    count,
    cut,
    end,
    give,
    merged,
    note_delay,
    past,
    release,
    remove_from_window,
)
from ._protocol import LATE, Ask, Quota

# Seconds of silence after which a member is forgotten; others get the permits that it held for later.
MEMBER_LIFETIME: Final = 10.0
_LEASE_GRACE: Final = 2.0  # Seconds for which a silent member keeps its lease after its last permit was due.
WAITING_LIFETIME: Final = 1.5  # Seconds of silence after which a member no longer counts as waiting.
_SWEEP_INTERVAL: Final = 0.1  # Seconds between searches for silent members.
_SWEEP_SIZE: Final = 20  # Members handled in one step.


@dataclass(slots=True)
class MemberState:
    """The store's assumptions about a member."""

    due: float = 0.0  # When the store handles it next, if it stays silent.
    id: int = 0  # Its current lease, and the one before; -1 if void.
    before: int = 0
    epoch: int = 0  # The epoch of the current lease.
    used: int = 0  # The totals that it reported.
    lapsed: int = 0
    units_used: float = 0.0
    units: float = 0.0  # Units that it holds, without those of the last answer.
    units_fresh: float = 0.0
    waiting: int = 0  # Requests waiting in it.
    own: int = 0  # Requests sent without a lease, according to its last message.
    seq: int = 0  # The number of its last call.
    seen: float = 0.0  # When it last called.
    counted: bool = False  # Whether it counts as active.
    normal: bool = False  # Whether requests of normal priority wait.
    old: list[Range] = field(default_factory=list)  # The places that it holds.
    fresh: list[Range] = field(default_factory=list)  # The places of the last answer, which may be lost.

    def pack(self) -> str:
        """The member as a JSON list that begins with `due`."""
        return json.dumps(_values_of_member(self))

    @classmethod
    def unpack(cls, packed: str) -> "MemberState":
        member = cls(*json.loads(packed))
        member.old, member.fresh = _tuples(member.old), _tuples(member.fresh)
        return member


_values_of_member: Final = attrgetter(*(each.name for each in fields(MemberState)))


def _tuples(rows: Iterable[Iterable[Any]]) -> list[Any]:
    """Convert rows read from JSON, which has no tuples."""
    return list(map(tuple, rows))


@dataclass(slots=True)
class State(Calendar):
    epoch: int = 0  # Counts refusals; restarts above all earlier values when a state is lost.
    version: int = 0  # The version of the group's rate.
    id: int = 0  # The last lease.
    memory: str = ""  # The state of the adaptive law.
    written: float = 0.0  # When that was written.
    began: float = NEVER  # When the member that set the quota started, by this clock ...
    started: float = 0.0  # ... and by its own.
    owner_seen: float = NEVER  # When a member with this quota last called.
    refused: float = NEVER  # When the last 429 was reported.
    low_next: float = NEVER  # When the next low-priority request may be sent while normal ones wait.
    active: int = 0  # Members that wait or hold permits.
    normal: int = 0  # Members in which requests of normal priority wait.
    sweep_at: float = 0.0  # When to search for silent members.
    is_new: bool = True  # Whether members may know more than this state.
    # By name. A step unpacks only the members that it needs, so its cost hardly depends on their number.
    members: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, now: float, epoch: int = 0) -> "State":
        """A new state as of `now`, with at least this epoch."""
        epoch = max(epoch, math.floor(now * 1e6))
        return cls(-now, epoch=epoch, version=epoch, id=epoch)

    def pack(self) -> str:
        """The state as a JSON list."""
        return json.dumps(_values_of_state(self))

    @classmethod
    def unpack(cls, packed: str) -> "State":
        state = cls(*json.loads(packed))
        state.free, state.window = _tuples(state.free), _tuples(state.window)
        state.quota = Quota(*state.quota)
        return state


_values_of_state: Final = attrgetter(*(each.name for each in fields(State)))


def reconcile(s: State, m: MemberState, ask: Ask, now: float) -> bool:
    """Replace the assumptions about the member with its report. Returns whether the permits that it holds are void."""
    void_old(s, m)
    used, lapsed, spent = ask.used - m.used, ask.lapsed - m.lapsed, ask.units_used - m.units_used
    m.used, m.lapsed, m.units_used = ask.used, ask.lapsed, ask.units_used
    if ask.lease_id != m.id:  # The last answer did not arrive.
        release(s, m.fresh, now)
        m.fresh = []
    known = ask.lease_id in (m.id, m.before)
    ranges = merged(m.old, m.fresh)
    keeps = known and not ask.leaving
    held = min(ask.held, count(ranges)) if keeps else 0
    front, rest = cut(ranges, max(0, used + lapsed))
    ended = count(front)
    unused = ended - min(used, ended)
    s.used += ended - unused
    s.usage += max(0, ended - unused)
    if unused > 0:
        s.returned += unused
        give(s, min(unused, max(0, lapsed)) if front else max(0, -used))
        # Which of them were unused is unknown. To be safe, the earlier ones leave the window.
        for first, gap, places in [*cut(front, unused)[0], (s.at, 0.0, unused - ended)]:
            remove_from_window(s, min(first, s.at - ask.unsent), gap, places)
    note_delay(s, cut(front, unused)[1], ask.delay)
    kept, tail = cut(rest, held)
    release(s, tail, now)
    units = ask.units if keeps else 0.0
    returned = m.units + m.units_fresh - units
    s.units_held -= returned
    s.units = min(s.quota.max_cost - s.units_held, s.units + returned - spent) if s.quota.max_cost else 0.0
    m.old, m.fresh, m.units, m.units_fresh = kept, [], units, 0.0
    return not known


def note_presence(s: State, m: MemberState, ask: Ask, now: float) -> None:
    """Record that the member is alive, and whether requests wait in it."""
    m.seen, m.waiting = now, ask.waiting
    uncount(s, m)
    m.counted = bool(ask.want > 0 or ask.waiting or m.old)
    m.normal = bool(ask.waiting and not ask.low)
    s.active += m.counted
    s.normal += m.normal


def uncount(s: State, m: MemberState) -> None:
    """Record that the member neither waits for permits nor holds any."""
    s.active -= m.counted
    s.normal -= m.normal
    m.counted = m.normal = False


def normal_until(s: State, but: str) -> float:
    """Until when requests of normal priority wait in other members; those that have permits, until these are due."""
    until = NEVER
    for name, packed in s.members.items():
        m = MemberState.unpack(packed)
        if name != but and m.normal:
            held = [*m.old, *m.fresh] if m.epoch == s.epoch else []
            until = max(until, m.seen + WAITING_LIFETIME if m.waiting > count(held) else end(held) + LATE)
    return until


def void(s: State, now: float) -> None:
    """Void all leases and begin a new epoch: what members hold expires, and unused permits leave the window."""
    s.expired += s.held
    s.epoch += 1
    s.next = max(now, s.paused)
    s.free = []
    s.window = [entry for entry in s.window if entry[0] <= now]


def void_old(s: State, m: MemberState) -> bool:
    """Void the member's lease if it is from an older epoch."""
    if m.epoch == s.epoch:
        return False
    m.old, m.fresh, m.id, m.before, m.epoch = [], [], -1, -1, s.epoch
    return True


def sweep(s: State, now: float) -> None:
    """Stop counting silent members as active, then take their permits away; later, forget them."""
    if now < s.sweep_at:
        return
    dues = [(float(packed[1 : packed.index(",")]), name) for name, packed in s.members.items()]
    overdue = sorted(each for each in dues if each[0] <= now)[:_SWEEP_SIZE]
    s.sweep_at = now if len(overdue) == _SWEEP_SIZE else now + _SWEEP_INTERVAL
    for _, name in overdue:
        m = MemberState.unpack(s.members[name])
        uncount(s, m)
        m.waiting, m.due = 0, due(m)
        if m.due <= now:
            _take_away(s, m, now)
            m.due = m.seen + MEMBER_LIFETIME
        if m.due > now:
            s.members[name] = m.pack()
        else:
            del s.members[name]


def _take_away(s: State, m: MemberState, now: float) -> None:
    units = m.units + m.units_fresh
    s.units_held -= units
    if m.epoch == s.epoch:
        ranges = merged(m.old, m.fresh)
        passed = sum(past(*each, now) for each in ranges)
        s.expired += passed
        release(s, cut(ranges, passed)[1], now)
        if not passed:  # Permits that are due may have been used, and the units with them.
            s.units += units
    m.old, m.fresh, m.units, m.units_fresh = [], [], 0.0, 0.0


def affordable(s: State, costs: tuple[float, ...]) -> int:
    """How many requests can be paid for with the units that are left now."""
    left = s.units
    for number, cost in enumerate(costs):
        if cost and left < min(cost, s.quota.max_cost) - ROUNDING * s.quota.max_cost:
            return number
        left -= cost
    return len(costs)


def payment(s: State, m: MemberState, name: str, cost: float, now: float, since: float = -math.inf) -> float:
    """When, from `since` on, `cost` can be paid so that all leases that are due later can still be used in time."""
    others = [MemberState.unpack(packed) for each, packed in s.members.items() if each != name]
    uses = [use for each in (*others, m) for use in _uses(s, each, now)]
    # A member may spend all units of a lease with its first permit, or all with its last.
    firsts, lasts = (sorted((use[when], use[2]) for use in uses) for when in (0, 1))
    while (start := _earliest(s, lasts, cost, now, first := _earliest(s, firsts, cost, now, since))) > first:
        since = start
    return start


def _earliest(s: State, held: list[tuple[float, float]], cost: float, now: float, since: float) -> float:
    level, at, need = s.units + s.units_held, now, min(cost, s.quota.max_cost)
    for number, (instant, units) in enumerate(held):
        start = max(since, at + max(0.0, need - level) / s.quota.cost_rate)
        if start <= instant and _can_pay(s, _later(s, level, start - at) - cost, start, held[number:]):
            return start
        level, at = _later(s, level, instant - at) - units, instant
    return max(since, at + max(0.0, need - level) / s.quota.cost_rate)


def _can_pay(s: State, level: float, at: float, held: list[tuple[float, float]]) -> bool:
    """Whether the bucket, with `level` units at an instant, holds enough for the leases when they are due."""
    for instant, units in held:
        level, at = _later(s, level, instant - at), instant
        if level < min(units, s.quota.max_cost) - ROUNDING * s.quota.max_cost:
            return False
        level -= units
    return True


def _later(s: State, level: float, seconds: float) -> float:
    return min(s.quota.max_cost, level + seconds * s.quota.cost_rate)


def _uses(s: State, m: MemberState, now: float) -> list[tuple[float, float, float]]:
    """When the member uses the first and the last of the permits that it holds, and the units of these."""
    leases = [(m.old, m.units), (m.fresh, m.units_fresh)]
    held = [(ranges if m.epoch == s.epoch else [], units) for ranges, units in leases if units > 0]
    return [
        (max(now, ranges[0][0] if ranges else now), max(now, end(ranges)), units) for ranges, units in held
    ]


def due(m: MemberState) -> float:
    """When the member stops counting as active, loses its permits, or is forgotten, if it stays silent."""
    if held := [*m.old, *m.fresh]:
        is_served = m.counted and m.waiting <= count(held)
        return min(m.seen + MEMBER_LIFETIME, end(held) + (LATE if is_served else _LEASE_GRACE))
    return m.seen + (WAITING_LIFETIME if m.counted else MEMBER_LIFETIME)
