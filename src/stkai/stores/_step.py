"""One step of a shared quota, as a pure function: a member's report and the current time in, a lease out.

The state is a calendar of permits, a bucket of units of cost, and assumptions about each member. A message contains
totals, which replace the assumptions: leased = used + returned + expired + held after every step, even if messages are
lost, repeated or reordered. A step handles the calling member, and from time to time the silent ones. `step.lua` is the
same code for Redis; a test checks that both agree. Stores in this process call these functions directly.
"""

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Final, TypeVar

from .._clock import Clock, clock_or_system
from ._calendar import (
    NEVER,
    ROUNDING,
    USAGE_SPAN,
    add_past_to_window,
    add_to_window,
    advance,
    allocate,
    end,
    fit,
    merged,
    opening,
    past,
    spare,
)
from ._protocol import AHEAD, BOOKS, Ask, GroupRate, Lease, Snapshot
from ._share import (
    MEMBER_LIFETIME,
    MemberState,
    State,
    affordable,
    due,
    normal_until,
    note_presence,
    payment,
    reconcile,
    sweep,
    uncount,
    void,
    void_old,
)

T = TypeVar("T")

_MAX_UNITS_WAIT: Final = 0.1  # Seconds; a member with permits gets no others that wait longer for units.
_LOW_FRACTION: Final = 0.1  # Fraction of low-priority requests while normal ones wait.
_SAME_START: Final = 1.0  # Seconds; if members start closer together, ages do not show which was last.
_MAX_QUEUE: Final = 60.0  # Seconds; the longest queue that a member's report can restore.


def step(s: State, ask: Ask, now: float) -> Lease:
    """Record a member's report, and lease it the permits that it wants, up to its share."""
    if s.rate and ask.lease_id > s.id:
        # An older state was restored, for example from a snapshot: the members know more.
        forget(s, now, ask.lease_id)
        s.is_new = True
    now = advance(s, now)
    sweep(s, now)
    packed = s.members.get(ask.member)
    if packed is None:
        m = MemberState(
            epoch=s.epoch, used=ask.used, lapsed=ask.lapsed, units_used=ask.units_used - ask.units_new
        )
    else:
        m = MemberState.unpack(packed)
    if 0 < ask.seq <= m.seq:
        # The message is a repetition, or arrived after a later one.
        return replace(_answer(s, ask.share, m, now, is_void=True), ranges=(), units=0.0)
    # If the last answer did not arrive, the member reports these requests again.
    own = ask.own if ask.lease_id == m.id else max(0, ask.own - m.own)
    if own:  # Requests that it sent without a lease while the store was unreachable.
        s.leased += own
        s.used += own
        s.credit = max(0.0, s.credit - own)
        add_past_to_window(s, ask.own_seconds, own, now)
    m.seq, m.own = ask.seq, ask.own
    _agree(s, ask, now)
    if s.is_new:
        s.is_new = False
        if ask.lease_id:
            s.next = max(s.next, now + min(ask.queue, _MAX_QUEUE))
    is_void = reconcile(s, m, ask, now)
    note_presence(s, m, ask, now)
    if ask.refused is not None:
        _refuse(s, ask.refused.epoch, now + ask.refused.pause, now)
        is_void = void_old(s, m) or is_void
    again = _grant(s, m, ask, now) if ask.want > 0 and not ask.leaving else 0.0
    s.id += 1
    m.before, m.id = -1 if is_void else ask.lease_id, s.id
    m.due = due(m)
    s.members[ask.member] = m.pack()
    lease = _answer(s, ask.share, m, now, is_void=is_void, again=again)
    if ask.leaving:
        uncount(s, m)
        del s.members[ask.member]
    return lease


def amend(s: State, epoch: int, law: GroupRate, now: float) -> bool:
    """Apply a new rate unless the epoch or version has changed. The number of places leased ahead stays the same."""
    if (epoch, law.version) != (s.epoch, s.version):
        return False
    now = advance(s, now)
    _set_rate(s, law.rate, law.burst, now)
    s.version += 1
    s.memory, s.written = law.memory, now
    return True


def look(s: State, now: float) -> Snapshot | None:
    """A snapshot for display; None if the share was never used."""
    if not s.rate:
        return None
    members = [MemberState.unpack(packed) for packed in s.members.values()]
    members = [member for member in members if member.seen > now + s.offset - MEMBER_LIFETIME]
    s = copy.copy(s)
    now = advance(s, now)
    debt = max(0.0, -s.units / s.quota.cost_rate) if s.quota.cost_rate else 0.0
    active = sum(bool(member.old or member.fresh or member.waiting) for member in members)
    books = {name: getattr(s, name) for name in BOOKS}
    return Snapshot(
        len(members), active, s.quota, s.rate, s.usage / USAGE_SPAN, sum(member.waiting for member in members),
        max(0.0, _queue(s, now), debt), s.units, max(0.0, s.paused - now),
        now - s.refused if s.refused > NEVER else None, s.epoch, books,
    )  # fmt: skip


def forget(s: State, now: float, known: int = 0) -> bool:
    """Reset the share, in an epoch above the last known one, so that all members start over.

    Returns whether the share was ever used.
    """
    if not s.rate:
        return False
    fresh = State.new(now, max(s.epoch, known) + 1)
    fresh.is_new = False
    for each in fields(State):
        setattr(s, each.name, getattr(fresh, each.name))
    return True


def _agree(s: State, ask: Ask, now: float) -> None:
    """Adopt the member's quota if it is the youngest, or if no member with the quota in force is alive."""
    began, same = now - ask.age, ask.quota == s.quota
    younger = began - s.began
    if (
        younger > _SAME_START
        or (younger > -_SAME_START and ask.started > s.started)
        or s.owner_seen <= now - MEMBER_LIFETIME
    ):
        if not same:
            if s.quota.window and not s.is_new:
                void(s, now)
            if ask.max_cost and not s.quota.max_cost:
                s.units = 0.0 if s.is_new and ask.lease_id else ask.max_cost
            s.quota = ask.quota
            s.units = min(s.units, ask.max_cost - s.units_held)
            s.most = math.floor(ask.rate * ask.window + ROUNDING)
            s.version += 1
            s.memory = ""
            _set_rate(s, ask.rate, ask.burst, now)
        s.began, s.started, s.owner_seen = began, ask.started, now
    elif same:
        s.owner_seen = now


def _set_rate(s: State, rate: float, burst: float, now: float) -> None:
    """Apply a new rate, and scale the time until the next free place to it."""
    start = max(now, s.paused)
    if s.next > start and s.rate:
        s.next = start + (s.next - start) * s.rate / rate
    s.rate, s.burst = rate, burst
    s.credit = min(s.credit, burst)


def _refuse(s: State, epoch: int, until: float, now: float) -> None:
    """Pause all members. A refusal of the current epoch voids all leases; an older one can only extend the pause."""
    if epoch != s.epoch and until <= s.paused:
        return
    s.refused, s.paused = now, max(s.paused, until)
    s.next = max(s.next, s.paused)
    if epoch == s.epoch:
        void(s, now)
        s.credit = 0.0


def _grant(s: State, m: MemberState, ask: Ask, now: float) -> float:
    """Lease permits, and charge their units of cost. Returns seconds after which to ask again if there are none."""
    # A member uses its portion of the remaining burst immediately, so it does not hold it in advance.
    portion = max(1, math.floor(max(s.rate * AHEAD, s.credit) / max(1, s.active) + ROUNDING))
    # Permits that became due while the message was in transit do not count as held.
    held = sum(places - past(first, gap, places, now) for first, gap, places in m.old)
    want = min(ask.want, portion + 1 - held)
    if max(s.next, opening(s)) - now > 1.5 * AHEAD:
        want = min(want, 1)  # Keep the calendar short, even while the group grows.
    if ask.low and s.normal > m.normal and (until := normal_until(s, ask.member)) > now:
        if s.low_next > now:
            return min(s.low_next, until) - now
        want = min(want, 1)
        s.low_next = max(s.low_next, now - 1 / (_LOW_FRACTION * s.rate)) + 1 / (_LOW_FRACTION * s.rate)
    costs = ask.costs if s.quota.max_cost else ()
    granted = 0
    while granted < want:
        places, paid_at = want - granted, now
        if costs:
            # An earlier permit would let the first request spend what was paid for a later one.
            last = max(end(m.old), end(m.fresh))
            if last - now > 1.5 * AHEAD:
                return 0.0
            places = affordable(s, costs[granted:want])
            paid_at = now if places else payment(s, m, ask.member, costs[granted], now)
            if paid_at - now > _MAX_UNITS_WAIT and (granted or m.old):
                return 0.0 if granted else paid_at - now - _MAX_UNITS_WAIT / 2
        first, gap, found = allocate(s, max(1, places), now)
        if costs:
            first = max(first, last, paid_at)
            if not places and first > paid_at:
                first = payment(s, m, ask.member, costs[granted], now, first)
        paid = sum(costs[granted : granted + found])
        s.units -= paid
        s.units_held += paid
        m.units_fresh += paid
        m.fresh = merged(m.fresh, [(first, gap, found)])
        s.leased += found
        granted += found
        add_to_window(s, first, gap, found)
    return 0.0


def _queue(s: State, now: float) -> float:
    """Seconds until a permit requested now could be used; negative if part of the burst is left."""
    if (left := spare(s, now)) > 0:
        return -left / s.rate
    later = max(s.next, s.paused, opening(s))
    returned = (first for first, gap, _ in s.free if fit(s, first, gap, 1) > 0)
    return max(s.paused, min(later, next(returned, later))) - now


def _answer(s: State, share: str, m: MemberState, now: float, *, is_void: bool, again: float = 0.0) -> Lease:
    return Lease(
        m.id,
        GroupRate(share, s.rate, s.burst, s.memory, s.version, now - s.written),
        s.quota,
        tuple([(first - now, gap, places) for first, gap, places in m.fresh]),
        m.units_fresh,
        is_void, _queue(s, now), again, max(0.0, s.paused - now), s.epoch, max(1, s.active), len(s.members), s.units,
    )  # fmt: skip


class LocalStore:
    """A store that runs the step in this process; subclasses keep the states."""

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        """Call `work(state, now)` on a share's state, with exclusive access, and save the state."""
        raise NotImplementedError

    def lease(self, ask: Ask) -> Lease:
        return self._change(ask.share, lambda state, now: step(state, ask, now))

    def amend(self, epoch: int, law: GroupRate) -> bool:
        return self._change(law.share, lambda state, now: amend(state, epoch, law, now))

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        return self._change(share, look)

    def reset(self, share: str) -> bool:
        """Delete the state of a share; active members start over. Returns whether there was one."""
        return self._change(share, forget)

    def close(self) -> None:
        """Do nothing: nothing stays open between calls."""


class MemoryStore(LocalStore):
    """Keeps shares in memory, on a clock that you pass: for sharing in virtual time, without a file.

    Args:
        clock: its `monotonic` is the store's time.
    """

    blocks = False
    """The store never waits, so an event loop may call it directly."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock_or_system(clock)
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        with self._lock:
            now = self._clock.monotonic()
            state = self._states.get(share) or self._states.setdefault(share, State.new(now))
            return work(state, now)
