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
    """What the store assumes about a member."""

    due: float = 0.0  # When the store looks at it next, if it stays silent.
    id: int = 0  # Its current lease; -1 if void, as is the one before.
    before: int = 0
    epoch: int = 0  # Of that lease.
    used: int = 0  # Its totals.
    lapsed: int = 0
    units_used: float = 0.0
    units: float = 0.0  # That it holds, without those of the last answer.
    units_fresh: float = 0.0
    waiting: int = 0  # Requests.
    written_off: int = 0  # Permits that expired, and may still turn out to have been used.
    seq: int = 0  # Its last call.
    seen: float = 0.0  # When that came.
    counted: bool = False  # As active.
    normal: bool = False  # Whether requests of normal priority wait.
    old: list[Range] = field(default_factory=list)  # The places that it holds.
    fresh: list[Range] = field(default_factory=list)  # Those of the last answer, which may not have arrived.

    def pack(self) -> str:
        """The member as a line of JSON, which begins with `due`."""
        return json.dumps(_values_of(self))

    @classmethod
    def unpack(cls, packed: str) -> "MemberState":
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
        return [f"{key}\t{packed}" for key, packed in self._packed.items()]

    def get(self, name: str) -> MemberState | None:
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
        return list(map(MemberState.unpack, self._packed.values()))


_NO_QUOTA: Final = Quota(0.0)


@dataclass(slots=True)
class State:
    """The state of one share. Instants are in seconds on its own clock, which starts at 0 and is never set back."""

    offset: float  # Its clock minus the store's.
    epoch: int  # Counts refusals; restarts above all earlier values when a state is lost.
    version: int  # Of the pace.
    id: int  # The last lease.
    memory: str = ""  # The state of the adaptive law, and when it was written.
    written: float = 0.0
    at: float = 0.0  # The latest instant at which the state was used.
    quota: Quota = _NO_QUOTA  # In force.
    began: float = NEVER  # When the member that set it started, by this clock ...
    started: float = 0.0  # ... and by its own.
    owner_seen: float = NEVER  # When a member with this quota last called.
    rate: float = 0.0  # The pace in force.
    burst: float = 0.0
    next: float = 0.0  # The calendar.
    free: list[Range] = field(default_factory=list)
    credit: float = 0.0
    most: int = 0  # Permits that may be used in any window; 0 without such a promise.
    window: list[Entry] = field(
        default_factory=list
    )  # Permits of the last window or leased ahead, and their sum.
    within: int = 0
    units: float = 0.0  # Left; negative while there is a debt.
    paused: float = NEVER  # When the pause ends.
    refused: float = NEVER  # When the last 429 was reported.
    low_next: float = NEVER  # The next place for a request of low priority beside others of normal priority.
    active: int = 0  # Members that wait or hold permits.
    normal: int = 0  # Those in which requests of normal priority wait.
    sweep_at: float = 0.0  # When silent members are looked for.
    leased: int = 0  # Permits by what became of them.
    used: int = 0
    returned: int = 0
    expired: int = 0
    usage: float = 0.0  # Permits used lately, fading.
    is_new: bool = True  # Members may know more.
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
        first, *lines = packed.split("\n")
        values = json.loads(first)
        values.update({name: _tuples(values[name]) for name in ("free", "window")})
        return cls(**values | {"quota": Quota(*values["quota"]), "members": Members(lines)})


def count(ranges: list[Range]) -> int:
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
