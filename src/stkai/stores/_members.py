"""What a store assumes about the members of a share, and how their reports correct it.

A member reports totals. Those of its permits that it neither used nor keeps are returned; a member that falls silent
loses its permits, and is forgotten later. `step.lua` is the same code.
"""

from typing import Final

from ._calendar import forgive, forgive_latest, give, release
from ._protocol import Ask
from ._state import MemberState, State, count, cut, end, merged

FORGET: Final = 10.0
"""Seconds of silence after which a member is forgotten."""

_KEPT: Final = 2.0
"""Seconds after its last permit was due in which a silent member still holds its lease."""

WAITS: Final = 1.5
"""Seconds of silence after which a member no longer counts as waiting."""

_SWEEP: Final = 0.1
"""Seconds between looks at silent members."""

_SWEPT: Final = 20
"""Members looked at in one step."""


def settle(s: State, m: MemberState, ask: Ask, now: float) -> bool:
    """Replace what was assumed about the member by what it reports. Returns whether what it holds is void."""
    void_old(s, m)
    used, lapsed, spent = ask.used - m.used, ask.lapsed - m.lapsed, ask.units_used - m.units_used
    m.used, m.lapsed, m.units_used = ask.used, ask.lapsed, ask.units_used
    if ask.lease_id != m.id:  # The last answer did not arrive.
        release(s, m.fresh, now)
        s.units += m.units_fresh
        m.fresh, m.units_fresh = [], 0.0
    known = ask.lease_id in (m.id, m.before)
    ranges = merged(m.old, m.fresh)
    keeps = known and not ask.leaving
    held = min(ask.held, count(ranges)) if keeps else 0
    late = min(m.written_off, max(0, used + lapsed))  # Of permits that expired, only the books change.
    m.written_off = 0
    front, rest = cut(ranges, max(0, used + lapsed - late))
    ended = late + count(front)
    unused = ended - min(used, ended)
    s.expired -= late
    s.used += ended - unused
    s.usage += max(0, ended - unused)
    if unused > 0:
        s.returned += unused
        give(s, min(unused, max(0, lapsed)) if front else max(0, -used))
        if s.most:
            # Which of them were not used is unknown. To be safe, the earlier ones leave the window.
            early = cut(front, unused)[0]
            for first, gap, places in early:
                forgive(s, first, gap, places)
            forgive_latest(s, unused - count(early))
    kept, tail = cut(rest, held)
    release(s, tail, now)
    units = ask.units if keeps else 0.0
    s.units += m.units + m.units_fresh - spent - units
    s.units = min(s.quota.max_cost, s.units) if s.quota.max_cost else 0.0
    m.old, m.fresh, m.units, m.units_fresh = kept, [], units, 0.0
    return not known


def wait(s: State, m: MemberState, ask: Ask, now: float) -> None:
    """Note that the member is alive and whether requests wait in it."""
    m.seen, m.waiting = now, ask.waiting
    uncount(s, m)
    m.counted = bool(ask.want > 0 or ask.waiting or m.old)
    m.normal = bool(ask.waiting and not ask.low)
    s.active += m.counted
    s.normal += m.normal


def uncount(s: State, m: MemberState) -> None:
    """Note that the member neither waits for permits nor holds any."""
    s.active -= m.counted
    s.normal -= m.normal
    m.counted = m.normal = False


def void(s: State, now: float) -> None:
    """Void all leases: a new epoch begins. What members hold expires; what they did not use yet is in no window."""
    s.expired += s.held
    s.epoch += 1
    s.next = max(now, s.paused)
    s.free = []
    s.window = [entry for entry in s.window if entry[0] <= now]
    s.within = sum(places for _, places in s.window)


def void_old(s: State, m: MemberState) -> bool:
    """Void the member's lease if it is of an older epoch."""
    if m.epoch == s.epoch:
        return False
    m.written_off += count(m.old) + count(m.fresh)
    m.old, m.fresh, m.id, m.before, m.epoch = [], [], -1, -1, s.epoch
    return True


def sweep(s: State, now: float) -> None:
    """Take permits away from members that fell silent, then forget those."""
    if now < s.sweep_at:
        return
    overdue = s.members.overdue(now, _SWEPT)
    s.sweep_at = now if len(overdue) == _SWEPT else now + _SWEEP
    for name, m in overdue:
        held = count(m.old) + count(m.fresh)
        s.expired += held if m.epoch == s.epoch else 0
        uncount(s, m)
        m.written_off += held
        m.old, m.fresh, m.units, m.units_fresh, m.waiting = [], [], 0.0, 0.0, 0
        m.due = m.seen + FORGET
        if m.due > now:
            s.members[name] = m
        else:
            del s.members[name]


def due(m: MemberState) -> float:
    """When the member loses its permits, or is forgotten, if it stays silent."""
    if m.old or m.fresh:
        return min(m.seen + FORGET, max(end(m.old), end(m.fresh)) + _KEPT)
    return m.seen + (WAITS if m.counted else FORGET)
