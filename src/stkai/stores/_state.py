"""What a store keeps of one share: numbers, ranges of places, and what it assumes about each member."""

import math
import struct
from dataclasses import dataclass, field, fields
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, Final, get_args

from ._protocol import Quota

Range = tuple[float, float, int]
"""The first place, the seconds between places, and how many."""

Entry = tuple[float, int]
"""An instant, and how many permits."""

NEVER: Final = -1e18

ROUND: Final = 1e-6
"""Permits; covers the rounding of clocks."""


class Layout:
    """Packs objects into bytes: their numbers, then their texts and lists.

    Args:
        types: the attributes to pack, with their types.
    """

    def __init__(self, types: dict[str, Any]) -> None:
        codes = {float: "d", int: "q", bool: "?"}
        numbers = [name for name, kind in types.items() if kind in codes]
        texts = [name for name, kind in types.items() if kind is str]
        lists = [name for name in types if name not in (*numbers, *texts)]
        self._names = numbers, texts, lists
        self._head = struct.Struct(f"<{''.join(codes[types[name]] for name in numbers)}{len(texts + lists)}I")
        self._rows = {name: struct.Struct(f"<{len(get_args(get_args(types[name])[0]))}d") for name in lists}
        self._numbers = attrgetter(*numbers)
        self._texts = [attrgetter(name) for name in texts]

    def pack(self, thing: object) -> bytes:
        """The object's attributes, packed."""
        parts = [get(thing).encode(errors="surrogatepass") for get in self._texts]
        for name in self._names[2]:
            rows = getattr(thing, name)
            parts.append(
                struct.pack(f"<{len(rows) * len(rows[0])}d", *chain.from_iterable(rows)) if rows else b""
            )
        return b"".join((self._head.pack(*self._numbers(thing), *map(len, parts)), *parts))

    def unpack(self, packed: bytes) -> tuple[dict[str, Any], bytes]:
        """The attributes, and the bytes that follow them."""
        numbers, texts, lists = self._names
        values = self._head.unpack_from(packed)
        found, at = dict(zip(numbers, values, strict=False)), self._head.size
        for name, size in zip((*texts, *lists), values[len(numbers) :], strict=True):
            part, at = packed[at : at + size], at + size
            if name in self._rows:
                rows = self._rows[name].iter_unpack(part) if size else ()
                found[name] = [(*rest, int(places)) for *rest, places in rows]
            else:
                found[name] = part.decode(errors="surrogatepass")
        return found, packed[at:]


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


_NO_QUOTA: Final = Quota(0.0)
_MEMBER: Final = Layout({each.name: each.type for each in fields(MemberState)})
_DUE: Final = struct.Struct("<d")
_SIZES: Final = struct.Struct("<HI")


class Members:
    """The members of a share by name. They stay packed until a step needs them, so that a step costs about the same for
    any number of them; a member that has changed must be stored again.
    """

    def __init__(self, packed: bytes = b"") -> None:
        self._packed: dict[str, bytes] = {}
        self._unpacked: dict[str, MemberState] = {}
        at = 0
        while at < len(packed):
            length, size = _SIZES.unpack_from(packed, at)
            start = at + _SIZES.size
            at = start + length + size
            name = packed[start : start + length].decode(errors="surrogatepass")
            self._packed[name] = packed[start + length : at]

    def get(self, name: str) -> MemberState | None:
        """The member; None if it is unknown."""
        if name in self._packed and name not in self._unpacked:
            self._unpacked[name] = MemberState(**_MEMBER.unpack(self._packed[name])[0])
        return self._unpacked.get(name)

    def __setitem__(self, name: str, member: MemberState) -> None:
        self._packed[name], self._unpacked[name] = _MEMBER.pack(member), member

    def __delitem__(self, name: str) -> None:
        self._packed.pop(name, None)
        self._unpacked.pop(name, None)

    def overdue(self, now: float, most: int) -> list[tuple[str, MemberState]]:
        """The first members whose `due` is not after `now`."""
        dues = [(_DUE.unpack_from(packed)[0], name) for name, packed in self._packed.items()]
        names = sorted((due, name) for due, name in dues if due <= now)[:most]
        return [(name, MemberState(**_MEMBER.unpack(self._packed[name])[0])) for _, name in names]

    def __len__(self) -> int:
        return len(self._packed)

    def all(self) -> list[MemberState]:
        """All members."""
        return [MemberState(**_MEMBER.unpack(packed)[0]) for packed in self._packed.values()]

    def pack(self) -> bytes:
        """All members, packed."""
        parts: list[bytes] = []
        for name, packed in self._packed.items():
            key = name.encode(errors="surrogatepass")
            parts += (_SIZES.pack(len(key), len(packed)), key, packed)
        return b"".join(parts)


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

    def pack(self) -> bytes:
        """The state with its members, packed."""
        return _STATE.pack(self) + self.members.pack()

    @classmethod
    def unpack(cls, packed: bytes) -> "State":
        """The state that was packed."""
        found, members = _STATE.unpack(packed)
        quota = Quota(**{name: found.pop(f"quota.{name}") for name in Quota._fields})
        return cls(quota=quota, members=Members(members), **found)


_STATE: Final = Layout(
    {each.name: each.type for each in fields(State) if each.name not in {"quota", "members"}}
    | {f"quota.{name}": kind for name, kind in Quota.__annotations__.items()}
)


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
