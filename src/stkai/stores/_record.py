"""The record in a share's state file: two slots, written in turn, each with a checksum.

If a write to one slot is interrupted, the other slot is still intact. Members stay packed until they are needed, so
that a step costs about the same for any number of them.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Final
from zlib import crc32

from ._protocol import Quota
from ._state import Member, Range, State

SLOT: Final = 1 << 21
"""The offset of the second slot, and the size of both: for 14,000 members. What is not written takes no space."""

PREFIX: Final = 24
"""Bytes that tell one slot's content from another's: magic, checksum, length and number."""

_MAGIC: Final = b"stkai\x00\x00\x02"
_ENVELOPE: Final = struct.Struct("<8sII")
_NUMBER: Final = struct.Struct("<Q")
_INTEGERS: Final = (
    "epoch", "version", "id", "most", "within", "size", "active", "leased", "used", "returned", "expired",
)  # fmt: skip
_FLOATS: Final = (
    "at", "offset", "began", "started", "owner_seen", "rate", "burst", "next", "credit", "units", "paused", "refused",
    "written", "low_next", "normal_at", "other_normal_at", "sweep_at", "lost", "usage",
)  # fmt: skip
_HEAD: Final = struct.Struct(f"<Q16sd{len(_INTEGERS)}q{len(_FLOATS)}d5dHHHII")
_RANGE: Final = struct.Struct("<ddd")
_ENTRY: Final = struct.Struct("<dd")
_numbers: Final = attrgetter(*_INTEGERS, *_FLOATS)
_MEMBER: Final = struct.Struct("<HIdqqqqqqqqdddd?HH")


class StoredMembers:
    """The members of a share, packed; each is unpacked when it is first needed.

    Args:
        packed: the packed members by name.
    """

    def __init__(self, packed: dict[str, bytes] | None = None) -> None:
        self._packed = packed or {}
        self._open: dict[str, Member] = {}
        self._changed: set[str] = set()

    def get(self, name: str) -> Member | None:
        """The member, to be changed in place; None if it is unknown."""
        member = self._open.get(name)
        if member is None and name in self._packed:
            member = self._open[name] = _member_from(self._packed[name])
        self._changed.add(name)
        return member

    def __setitem__(self, name: str, member: Member) -> None:
        self._open[name] = member
        self._changed.add(name)

    def __delitem__(self, name: str) -> None:
        del self._open[name]
        self._packed.pop(name, None)

    def overdue(self, now: float, most: int) -> list[tuple[str, Member]]:
        """The first members whose `due` is not after `now`."""
        dues = {name: _MEMBER.unpack_from(packed)[2] for name, packed in self._packed.items()}
        dues |= {name: member.due for name, member in self._open.items()}
        names = sorted((due, name) for name, due in dues.items() if due <= now)[:most]
        found = [(name, self.get(name)) for _, name in names]
        return [(name, member) for name, member in found if member is not None]

    def all(self) -> list[Member]:
        """All members."""
        names = self._packed.keys() | self._open.keys()
        return [self._open.get(name) or _member_from(self._packed[name]) for name in names]

    def pack(self) -> bytes:
        """All members, packed."""
        for name in self._changed:
            member = self._open.get(name)
            if member is not None:
                self._packed[name] = _packed_member(name, member)
        self._changed.clear()
        return b"".join(self._packed.values())

    @classmethod
    def unpack(cls, content: bytes) -> "StoredMembers":
        """The members in a packed record."""
        packed, at = {}, 0
        while at < len(content):
            length, size = _MEMBER.unpack_from(content, at)[:2]
            start = at + _MEMBER.size
            packed[content[start : start + length].decode()] = content[at : at + size]
            at += size
        return cls(packed)


class Record:
    """One slot's content.

    Attributes:
        number: counts the writes; the slot with the higher number is the newer.
        boot: identifies the boot of the machine that wrote it.
        wall: seconds since 1970 at about the time of writing.
        state: the share's state.
    """

    __slots__ = ("boot", "number", "state", "wall")

    def __init__(self, number: int, boot: bytes, wall: float, state: State) -> None:
        self.number, self.boot, self.wall, self.state = number, boot, wall, state

    @property
    def offset(self) -> int:
        """The offset of its slot in the file."""
        return self.number % 2 * SLOT

    def pack(self) -> bytes:
        """The slot's content.

        Raises:
            ValueError: it does not fit into the slot.
        """
        s, members = self.state, self.state.members
        assert isinstance(members, StoredMembers)
        texts = s.memory.encode(), s.normal_by.encode(), s.quota.methods.encode()
        body = b"".join((
            _HEAD.pack(
                self.number, self.boot, self.wall, *_numbers(s), *s.quota[:5],
                *map(len, (*texts, s.free, s.window)),
            ),
            *texts,
            _flat(s.free, 3),
            _flat(s.window, 2),
            members.pack(),
        ))  # fmt: skip
        if len(body) > SLOT - _ENVELOPE.size:
            raise ValueError(f"the state has {len(body)} bytes; at most {SLOT - _ENVELOPE.size} are allowed")
        return _ENVELOPE.pack(_MAGIC, crc32(body), len(body)) + body


def number_of(prefix: bytes) -> int:
    """The number of a slot that begins like this; -1 if it is none of ours."""
    if len(prefix) < PREFIX or not prefix.startswith(_MAGIC):
        return -1
    (number,) = _NUMBER.unpack_from(prefix, _ENVELOPE.size)
    return int(number)


def length_of(prefix: bytes) -> int:
    """The length of the slot's content that begins like this."""
    length: int = _ENVELOPE.unpack_from(prefix)[2]
    return min(SLOT, _ENVELOPE.size + length)


def unpack(content: bytes) -> Record | None:
    """The record in a slot's content; None if it is damaged."""
    magic, checksum, length = _ENVELOPE.unpack_from(content)
    body = content[_ENVELOPE.size : _ENVELOPE.size + length]
    if magic != _MAGIC or not _HEAD.size <= length == len(body) or crc32(body) != checksum:
        return None
    number, boot, wall, *values = _HEAD.unpack_from(body)
    state = State.__new__(State)
    state.is_new = False
    for name, value in zip(_INTEGERS + _FLOATS, values, strict=False):
        setattr(state, name, value)
    *quota, memory, normal_by, methods, free, window = values[len(_INTEGERS) + len(_FLOATS) :]
    at, texts = _HEAD.size, []
    for size in (memory, normal_by, methods):
        texts.append(body[at : at + size].decode())
        at += size
    state.memory, state.normal_by = texts[:2]
    state.quota = Quota.of(quota, texts[2])
    end = at + free * _RANGE.size
    state.free = _ranges(body[at:end])
    at, end = end, end + window * _ENTRY.size
    state.window = [(instant, int(places)) for instant, places in _ENTRY.iter_unpack(body[at:end])]
    state.members = StoredMembers.unpack(body[end:])
    return Record(number, boot, wall, state)


def _flat(rows: Sequence[tuple[float, ...]], width: int) -> bytes:
    """All numbers of all rows, packed."""
    return struct.pack(f"<{width * len(rows)}d", *chain.from_iterable(rows)) if rows else b""


def _ranges(packed: bytes) -> list[Range]:
    return [(first, gap, int(places)) for first, gap, places in _RANGE.iter_unpack(packed)]


def _packed_member(name: str, m: Member) -> bytes:
    key, ranges = name.encode(errors="surrogatepass"), m.old + m.fresh
    size = _MEMBER.size + len(key) + len(ranges) * _RANGE.size
    numbers = _MEMBER.pack(
        len(key), size, m.due, m.id, m.before, m.epoch, m.used, m.lapsed, m.waiting, m.owed, m.seq,
        m.units_used, m.units, m.units_fresh, m.seen, m.counted, len(m.old), len(m.fresh),
    )  # fmt: skip
    return numbers + key + _flat(ranges, 3)


def _member_from(packed: bytes) -> Member:
    m = Member.__new__(Member)
    (
        length, _, m.due, m.id, m.before, m.epoch, m.used, m.lapsed, m.waiting, m.owed, m.seq,
        m.units_used, m.units, m.units_fresh, m.seen, m.counted, old, _,
    ) = _MEMBER.unpack_from(packed)  # fmt: skip
    ranges = _ranges(packed[_MEMBER.size + length :])
    m.old, m.fresh = ranges[:old], ranges[old:]
    return m
