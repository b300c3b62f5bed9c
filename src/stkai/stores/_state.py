"""What a store keeps of one share: numbers, ranges of places, and what it assumes about each member."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from ._protocol import Quota

Range = tuple[float, float, int]
"""The first place, the seconds between places, and how many."""

Entry = tuple[float, int]
"""An instant, and how many permits."""

NEVER: Final = -1e18

ROUND: Final = 1e-6
"""Permits; covers the rounding of clocks."""


@dataclass(slots=True)
class MemberState:
    """What the store assumes about a member.

    Attributes:
        due: when the store looks at it next, if it stays silent.
        id, before: its current lease, and the one before; -1 if void.
        epoch: the epoch of that lease.
        used, lapsed, units_used: its totals.
        units, units_fresh: units of cost that it holds, and those of the last answer.
        waiting: requests waiting in it.
        written_off: permits that expired, and may still turn out to have been used.
        seq: its last call.
        seen: when it last called.
        counted, normal: whether it counts as active, and whether requests of normal priority wait in it.
        old, fresh: the places it holds, and those of the last answer, which may not have arrived.
    """

    due: float = 0.0
    id: int = 0
    before: int = 0
    epoch: int = 0
    used: int = 0
    lapsed: int = 0
    units_used: float = 0.0
    units: float = 0.0
    units_fresh: float = 0.0
    waiting: int = 0
    written_off: int = 0
    seq: int = 0
    seen: float = 0.0
    counted: bool = False
    normal: bool = False
    old: list[Range] = field(default_factory=list)
    fresh: list[Range] = field(default_factory=list)

    def pack(self) -> str:
        """The member as a line of JSON, which begins with `due`."""
        return json.dumps(_values_of(self))

    @classmethod
    def unpack(cls, packed: str) -> "MemberState":
        """The member that was packed."""
        values = json.loads(packed)
        values[-2:] = map(_tuples, values[-2:])
        return cls(*values)


def _tuples(rows: Iterable[Iterable[Any]]) -> list[Any]:
    """Rows that were read from JSON, which has no tuples."""
    return [tuple(row) for row in rows]


_values_of: Final = attrgetter(*(each.name for each in fields(MemberState)))


class Members:
    """The members of a share by name. They stay packed but for the one that a step needs, so that it costs about the
    same for any number of them; a member that has changed must be stored again.

    Args:
        lines: of each member its name as JSON and what `MemberState.pack` made of it, separated by a tab.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._packed = dict(line.split("\t", 1) for line in lines)

    def lines(self) -> list[str]:
        """All members, packed."""
        return [f"{key}\t{packed}" for key, packed in self._packed.items()]

    def get(self, name: str) -> MemberState | None:
        """The member; None if it is unknown."""
        packed = self._packed.get(json.dumps(name))
        return None if packed is None else MemberState.unpack(packed)

    def __setitem__(self, name: str, member: MemberState) -> None:
        self._packed[json.dumps(name)] = member.pack()

    def __delitem__(self, name: str) -> None:
        self._packed.pop(json.dumps(name), None)

    def overdue(self, now: float, most: int) -> list[tuple[str, MemberState]]:
        """The first members whose `due` is not after `now`."""
        dues = [(float(packed[1 : packed.index(",")]), key) for key, packed in self._packed.items()]
        keys = sorted((due, key) for due, key in dues if due <= now)[:most]
        return [(json.loads(key), MemberState.unpack(self._packed[key])) for _, key in keys]

    def __len__(self) -> int:
        return len(self._packed)

    def all(self) -> list[MemberState]:
        """All members."""
        return list(map(MemberState.unpack, self._packed.values()))


_NO_QUOTA: Final = Quota(0.0)


@dataclass(slots=True)
class State:
    """The state of one share. Instants are in seconds on its own clock, which starts at 0 and is never set back.

    Attributes:
        offset: its clock minus the store's.
        epoch: counts refusals; restarts above all earlier values when a state is lost.
        version, memory, written: the version of the pace, the adaptive law's state, and when it was written.
        id: the last lease.
        at: the latest instant at which the state was used.
        quota: the quota in force; `began` and `started` are when the member that set it started, by this clock and by
            its own, and `owner_seen` is when a member with this quota last called.
        rate, burst: the pace in force.
        next, free, credit: the calendar.
        most: how many permits may be used in any window; 0 without such a promise.
        window, within: instants of permits in the last window or leased ahead, with their numbers; and their sum.
        units: units of cost that are left; negative while there is a debt.
        paused, refused: when the pause ends, and when the last 429 was reported.
        low_next: the next place for a request of low priority beside others of normal priority.
        active, normal: how many members wait or hold permits, and in how many requests of normal priority wait.
        sweep_at: when silent members are looked for.
        leased, used, returned, expired: permits by what became of them.
        usage: permits used lately, fading.
        is_new: whether the state is new, so that members may know more.
    """

    offset: float
    epoch: int
    version: int
    id: int
    memory: str = ""
    written: float = 0.0
    at: float = 0.0
    quota: Quota = _NO_QUOTA
    began: float = NEVER
    started: float = 0.0
    owner_seen: float = NEVER
    rate: float = 0.0
    burst: float = 0.0
    next: float = 0.0
    free: list[Range] = field(default_factory=list)
    credit: float = 0.0
    most: int = 0
    window: list[Entry] = field(default_factory=list)
    within: int = 0
    units: float = 0.0
    paused: float = NEVER
    refused: float = NEVER
    low_next: float = NEVER
    active: int = 0
    normal: int = 0
    sweep_at: float = 0.0
    leased: int = 0
    used: int = 0
    returned: int = 0
    expired: int = 0
    usage: float = 0.0
    is_new: bool = True
    members: Members = field(default_factory=Members)

    @classmethod
    def new(cls, now: float, epoch: int = 0) -> "State":
        """A state that begins now, with at least this epoch."""
        epoch = max(epoch, math.floor(now * 1e6))
        return cls(-now, epoch, epoch, epoch)

    @property
    def held(self) -> int:
        """Permits that members hold."""
        return self.leased - self.used - self.returned - self.expired

    def pack(self) -> str:
        """A line of JSON, and one for each member."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["members"]
        return "\n".join([json.dumps(values), *self.members.lines()])

    @classmethod
    def unpack(cls, packed: str) -> "State":
        """The state that was packed."""
        first, *lines = packed.split("\n")
        values = json.loads(first)
        values.update({name: _tuples(values[name]) for name in ("free", "window")})
        return cls(**values | {"quota": Quota(*values["quota"]), "members": Members(lines)})


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
