"""What a store keeps of one share: numbers, ranges of places, and what it believes of each member."""

import math
from itertools import pairwise
from typing import Final, Protocol

from ._protocol import Quota

Range = tuple[float, float, int]
"""The first place, the seconds between places, and how many."""

NEVER: Final = -1e18

ROUND: Final = 1e-6
"""Permits; covers the rounding of clocks."""


class Member:
    """What the store believes of a member.

    Attributes:
        id, before: its current lease, and the one before; -1 if void.
        epoch: the epoch of that lease.
        old, fresh: the places it holds, and those of the last answer, which may not have arrived.
        used, lapsed, units_used: its totals.
        units, units_fresh: units of cost that it holds, and those of the last answer.
        seen: when it last called.
        due: when the store looks at it next, if it stays silent.
        waiting: requests waiting in it.
        owed: permits that expired, and may still turn out to have been used.
        counted: whether it counts as active.
        seq: its last call.
    """

    __slots__ = (
        "before", "counted", "due", "epoch", "fresh", "id", "lapsed", "old", "owed", "seen", "seq", "units",
        "units_fresh", "units_used", "used", "waiting",
    )  # fmt: skip

    def __init__(self, used: int, lapsed: int, units_used: float) -> None:
        self.used, self.lapsed, self.units_used = used, lapsed, units_used
        self.id = self.before = self.epoch = self.waiting = self.owed = self.seq = 0
        self.old: list[Range] = []
        self.fresh: list[Range] = []
        self.units = self.units_fresh = self.seen = 0.0
        self.due = -NEVER
        self.counted = False


class Members(Protocol):
    """The members of a share, by name."""

    def get(self, name: str, /) -> Member | None:
        """The member, to be changed in place; None if it is unknown."""
        ...

    def __setitem__(self, name: str, member: Member, /) -> None: ...

    def __delitem__(self, name: str, /) -> None: ...

    def overdue(self, now: float, most: int) -> list[tuple[str, Member]]:
        """The first members whose `due` is not after `now`."""
        ...

    def all(self) -> list[Member]:
        """All members."""
        ...


class State:
    """The state of one share. Instants are in seconds on its own clock, which starts at 0 and is never set back.

    Attributes:
        at: the latest instant at which the state was used.
        offset: its clock minus the store's.
        quota: the quota in force; `began` and `started` tell when the member that set it started, by this clock and by
            its own, and `owner_seen` when a member with this quota last called.
        rate, burst: the pace in force.
        next, free, credit: the calendar.
        most: how many permits may be used in any window; 0 without such a promise.
        window, within: instants of permits in the last window or leased ahead, with their numbers; and their sum.
        units: units of cost that are left; negative while there is a debt.
        epoch: counts refusals; restarts above all earlier values when a state is lost.
        paused, refused: when the pause ends, and when the last 429 was reported.
        version, memory, written: the version of the pace, the adaptive law's state, and when it was written.
        low_next: the next place for a request of low priority beside others of normal priority.
        normal_by, normal_at, other_normal_at: the member that last waited with normal priority, when that was, and when
            another member did.
        id: the last lease.
        size, active: how many members there are, and how many of them wait or hold permits.
        sweep_at: when silent members are looked for.
        leased, used, returned, expired, lost: permits by what became of them; lost ones were never leased.
        usage: permits used lately, fading.
        is_new: whether the state is new, so that members may know more.
    """

    __slots__ = (
        "active", "at", "began", "burst", "credit", "epoch", "expired", "free", "id", "is_new", "leased", "lost",
        "low_next", "members", "memory", "most", "next", "normal_at", "normal_by", "offset", "other_normal_at",
        "owner_seen", "paused", "quota", "rate", "refused", "returned", "size", "started", "sweep_at", "units",
        "usage", "used", "version", "window", "within", "written",
    )  # fmt: skip

    def __init__(self, now: float, members: Members) -> None:
        self.offset = -now
        self.members = members
        self.quota = Quota(0.0)
        self.rate = self.burst = 0.0
        self.at = self.next = self.written = self.sweep_at = self.started = 0.0
        self.began = self.owner_seen = self.paused = self.refused = NEVER
        self.low_next = self.normal_at = self.other_normal_at = NEVER
        self.epoch = self.version = self.id = math.floor(now * 1e6)
        self.memory = self.normal_by = ""
        self.credit = self.units = self.usage = self.lost = 0.0
        self.free: list[Range] = []
        self.window: list[tuple[float, int]] = []
        self.most = self.within = self.size = self.active = 0
        self.leased = self.used = self.returned = self.expired = 0
        self.is_new = True

    @property
    def held(self) -> int:
        """Permits that members hold."""
        return self.leased - self.used - self.returned - self.expired


def count(ranges: list[Range]) -> int:
    """How many places there are."""
    return sum(places for _, _, places in ranges)


def end(ranges: list[Range]) -> float:
    """The last place."""
    return max((first + gap * (places - 1) for first, gap, places in ranges), default=NEVER)


def past(first: float, gap: float, places: int, now: float) -> int:
    """How many of the places are not after `now`."""
    if first > now:
        return 0
    return min(places, math.floor((now - first) / gap + ROUND) + 1) if gap else places


def cut(ranges: list[Range], places: int) -> tuple[list[Range], list[Range]]:
    """Split sorted ranges after so many places."""
    head: list[Range] = []
    tail: list[Range] = []
    for first, gap, size in ranges:
        part = min(places, size)
        places -= part
        if part:
            head.append((first, gap, part))
        if size > part:
            tail.append((first + part * gap, gap, size - part))
    return head, tail


def merged(some: list[Range], others: list[Range]) -> list[Range]:
    """All ranges, sorted; ranges that overlap become single places."""
    if not some or not others:
        return some or others
    ranges = sorted(some + others)
    for left, right in pairwise(ranges):
        if left[0] + left[1] * (left[2] - 1) > right[0]:
            return sorted(
                (first + gap * number, 0.0, 1) for first, gap, size in ranges for number in range(size)
            )
    return ranges
