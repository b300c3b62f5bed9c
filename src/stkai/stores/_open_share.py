"""The state file of one share, open in this process: reads and writes it, and checks which machine wrote it."""

import math
import os
import threading
from hashlib import blake2b
from pathlib import Path

from .._clock import SystemClock
from .._errors import ConfigurationError
from ._locks import read_at, unlock, write_at
from ._record import SIZE, PackedMembers, Record, newest, unpack
from ._tickets import State

_TWO_MACHINES = 60.0
_BACKWARDS = 5.0
"""Seconds that this clock may be behind the file's; a larger gap means that another clock wrote the file."""

_clock = SystemClock()


class OpenShare:
    """The file of one share, open in this process.

    Attributes:
        seen: when it was last known to exist.
        checked: when its path was last checked.
        wall: seconds since 1970 at that check.
        known: the record that this process wrote last, with the slot's content; None if a step failed.
    """

    __slots__ = ("checked", "fd", "identity", "known", "lock", "seen", "wall")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        about = os.fstat(fd)
        self.identity = (about.st_dev, about.st_ino)
        self.seen = self.checked = -math.inf
        self.wall = 0.0
        self.known: tuple[Record, bytes] | None = None
        self.lock = threading.Lock()

    def close(self) -> None:
        """Close the file, which also releases its lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close

    def read(self, now: float) -> Record:
        """The state in the file, or a new one if there is no usable state.

        Raises:
            ConfigurationError: another machine writes to the same file.
        """
        content = read_at(self.fd, SIZE, 0)
        known, self.known = self.known, None
        if known is not None:
            offset = known[0].offset
            if content.startswith(known[1], offset) and newest(content) == offset:
                return known[0]
        record = unpack(content)
        boot = _boot_id()
        if record is not None:
            if record.boot == boot and record.state.last <= now + _BACKWARDS:
                return record
            if record.boot != boot:
                self._check_alone(record, now)
        number = 0 if record is None else record.number
        return Record(number, boot, 0.0, State(now, PackedMembers(oldest=now)))

    def write(self, record: Record) -> None:
        """Write the state into the other slot."""
        record.number += 1
        record.wall = self.wall
        content = record.pack()
        written = write_at(self.fd, content, record.offset)
        if written != len(content):
            raise OSError(
                f"only {written} of {len(content)} bytes of the state were written: is the disk full?"
            )
        self.known = record, content

    def release(self) -> None:
        """Release the file's lock."""
        try:
            unlock(self.fd)
        finally:
            self.lock.release()

    def _check_alone(self, record: Record, now: float) -> None:
        """Refuse a file that another machine wrote to while this one was running.

        Raises:
            ConfigurationError: two machines share it.
        """
        wall = _clock.utcnow().timestamp()
        since = max(
            wall - now, wall - _TWO_MACHINES
        )  # Earlier, it may have been this machine, before its restart.
        if since < record.wall <= wall + _BACKWARDS:
            raise ConfigurationError(
                "two machines share one state file, but their clocks are unrelated;"
                " share the quota through Redis: store='redis://host:6379'"
            )


_boot: list[bytes] = []


def _boot_id() -> bytes:
    """Identifies this boot of this machine, in 16 bytes; a constant if the system has no boot id."""
    if not _boot:
        try:
            told = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        except OSError:
            told = b""
        _boot.append(blake2b(told, digest_size=16).digest())
    return _boot[0]
