"""The record in a share's state file: two slots, written in turn, each with a checksum.

If a write to one slot is interrupted, the other slot is still intact.
"""

import struct
from typing import Final, NamedTuple
from zlib import crc32

from ._state import State

SLOT: Final = 1 << 21
"""The offset of the second slot, and the size of both: for 14,000 members. What is not written takes no space."""

_MAGIC: Final = b"stkai\x00\x00\x03"
_ENVELOPE: Final = struct.Struct("<8sII")
_HEAD: Final = struct.Struct("<Q16sd")

PREFIX: Final = _ENVELOPE.size + 8
"""Bytes that differ between one content of a slot and another: magic, checksum, length and number."""


class Record(NamedTuple):
    """One slot's content.

    Attributes:
        number: counts the writes; the slot with the higher number is the newer.
        boot: identifies the boot of the machine that wrote it, in 16 bytes.
        wall: seconds since 1970 at the time of writing.
        state: the share's state.
    """

    number: int
    boot: bytes
    wall: float
    state: State

    @property
    def offset(self) -> int:
        """The offset of its slot in the file."""
        return self.number % 2 * SLOT

    def pack(self) -> bytes:
        """The slot's content.

        Raises:
            ValueError: it does not fit into the slot.
        """
        body = _HEAD.pack(self.number, self.boot, self.wall) + self.state.pack()
        if len(body) > SLOT - _ENVELOPE.size:
            raise ValueError(f"the state has {len(body)} bytes; at most {SLOT - _ENVELOPE.size} are allowed")
        return _ENVELOPE.pack(_MAGIC, crc32(body), len(body)) + body


def number_of(prefix: bytes) -> int:
    """The number of a slot that begins with this prefix; -1 if it is not a slot of ours."""
    if len(prefix) < PREFIX or not prefix.startswith(_MAGIC):
        return -1
    return int.from_bytes(prefix[_ENVELOPE.size : PREFIX], "little")


def length_of(prefix: bytes) -> int:
    """The length of the content of a slot that begins with this prefix."""
    return min(SLOT, _ENVELOPE.size + int(_ENVELOPE.unpack_from(prefix)[2]))


def unpack(content: bytes) -> Record | None:
    """The record in a slot's content; None if it is damaged."""
    magic, checksum, length = _ENVELOPE.unpack_from(content)
    body = content[_ENVELOPE.size :]
    if magic != _MAGIC or length != len(body) or crc32(body) != checksum:
        return None
    number, boot, wall = _HEAD.unpack_from(body)
    return Record(number, boot, wall, State.unpack(body[_HEAD.size :]))
