"""The record in a share's state file: two slots, written in turn, each with a checksum.

If a write to one slot is interrupted, the other slot is still intact.
"""

import struct
from hashlib import blake2b
from typing import Final
from zlib import crc32

from ._members import FORGET
from ._tickets import State

SLOT: Final = 8192
SIZE: Final = 2 * SLOT

_MAGIC: Final = b"stkai\x00\x00\x01"
_ENVELOPE: Final = struct.Struct("<8sII")  # magic, checksum and length of what follows
_HEAD: Final = struct.Struct("<Q16sd" + "qqqqq" + "d" * 14 + "HHH")
_MEMBER: Final = struct.Struct("<16sId")
_NUMBER: Final = struct.Struct("<16xQ")
_MOST_MEMORY: Final = 1024
MOST_MEMBERS: Final = 200


class PackedMembers:
    """Members in the file's format, looked up without unpacking all of them."""

    def __init__(self, packed: bytes = b"", oldest: float = 0.0) -> None:
        self.packed = bytearray(packed)
        self.oldest = oldest
        """No member was last seen before this instant."""

    def seen(self, member: str, now: float, waiting: int) -> int:
        key, packed = _key(member), self.packed
        place = packed.find(key)
        while place >= 0 and place % _MEMBER.size:
            place = packed.find(key, place + 1)
        if place < 0 and len(packed) < MOST_MEMBERS * _MEMBER.size:
            place = len(packed)
            packed += bytes(_MEMBER.size)
        if place >= 0:
            _MEMBER.pack_into(packed, place, key, min(waiting, 0xFFFFFFFF), now)
        if self.oldest <= now - FORGET:
            self._forget(now)
        return len(packed) // _MEMBER.size

    def count(self, now: float) -> tuple[int, int]:
        alive = [waiting for _, waiting, seen in _MEMBER.iter_unpack(self.packed) if seen > now - FORGET]
        return len(alive), sum(alive)

    def move_back(self, seconds: float) -> None:
        moved = [(key, waiting, seen - seconds) for key, waiting, seen in _MEMBER.iter_unpack(self.packed)]
        self.packed[:] = b"".join(_MEMBER.pack(*entry) for entry in moved)
        self.oldest -= seconds

    def _forget(self, now: float) -> None:
        alive = [entry for entry in _MEMBER.iter_unpack(self.packed) if entry[2] > now - FORGET]
        self.packed[:] = b"".join(_MEMBER.pack(*entry) for entry in alive)
        self.oldest = min((seen for _, _, seen in alive), default=now)


_keys: dict[str, bytes] = {}


def _key(member: str) -> bytes:
    """A 16-byte key for a member's name, which may have any length."""
    key = _keys.get(member)
    if key is None:
        if len(_keys) > 1000:  # In a program that keeps making limiters.
            _keys.clear()
        key = _keys[member] = blake2b(member.encode(errors="surrogatepass"), digest_size=16).digest()
    return key


class Record:
    """A state as read from the file, with the file's metadata.

    Attributes:
        number: counts the writes; its parity selects the slot.
        boot: the boot id of the machine whose clock the instants belong to.
        wall: when it was written, in seconds since 1970.
        state: the share.
    """

    __slots__ = ("boot", "number", "state", "wall")

    def __init__(self, number: int, boot: bytes, wall: float, state: State) -> None:
        self.number, self.boot, self.wall, self.state = number, boot, wall, state

    @property
    def offset(self) -> int:
        """The offset of its slot in the file."""
        return self.number % 2 * SLOT

    def pack(self) -> bytes:
        """The slot's content."""
        s, members = self.state, self.state.members
        assert isinstance(members, PackedMembers)
        memory = s.memory.encode()
        if len(memory) > _MOST_MEMORY:
            raise ValueError(
                f"the adaptive state has {len(memory)} bytes; at most {_MOST_MEMORY} are allowed"
            )
        vacant = struct.pack(f"<{len(s.vacant)}d", *s.vacant) if s.vacant else b""
        body = (
            _HEAD.pack(
                self.number, self.boot, self.wall, s.epoch, s.version, s.span, s.used, s.before,
                s.last, s.quota, s.burst, s.max_cost, s.cost_rate, s.began, s.owner_seen, s.rate, s.depth,
                s.next, s.empty, s.paused, s.refused, s.written, len(memory), len(s.vacant),
                len(members.packed) // _MEMBER.size,
            )
            + memory
            + vacant
            + struct.pack("<d", members.oldest)
            + members.packed
        )  # fmt: skip
        return _ENVELOPE.pack(_MAGIC, crc32(body), len(body)) + body


def unpack(content: bytes) -> Record | None:
    """The newest intact slot; None if neither is intact."""
    if len(content) < SIZE:
        content = content.ljust(SIZE, b"\0")
    newer = newest(content)
    return _unpack_slot(content, newer) or _unpack_slot(content, SLOT - newer)


def newest(content: bytes) -> int:
    """The offset of the slot that was written last."""
    return SLOT if _NUMBER.unpack_from(content, SLOT)[0] > _NUMBER.unpack_from(content)[0] else 0


def _unpack_slot(content: bytes, offset: int) -> Record | None:
    magic, checksum, length = _ENVELOPE.unpack_from(content, offset)
    start = offset + _ENVELOPE.size
    body = content[start : start + length]
    if magic != _MAGIC or not _HEAD.size <= length <= SLOT - _ENVELOPE.size or crc32(body) != checksum:
        return None
    state = State.__new__(State)
    state.is_lost = False
    (
        number, boot, wall, state.epoch, state.version, state.span, state.used, state.before,
        state.last, state.quota, state.burst, state.max_cost, state.cost_rate, state.began, state.owner_seen,
        state.rate, state.depth, state.next, state.empty, state.paused, state.refused, state.written,
        memory, vacant, members,
    ) = _HEAD.unpack_from(body)  # fmt: skip
    at = _HEAD.size
    state.memory = body[at : at + memory].decode() if memory else ""
    at += memory
    state.vacant = list(struct.unpack_from(f"<{vacant}d", body, at)) if vacant else []
    at += vacant * 8
    (oldest,) = struct.unpack_from("<d", body, at)
    at += 8
    state.members = PackedMembers(body[at : at + members * _MEMBER.size], oldest)
    return Record(number, boot, wall, state)
