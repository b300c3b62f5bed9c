"""A quota that the processes of one machine share through a file. No server is needed."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

from .._checks import even_half_made
from .._clock import SystemClock
from .._errors import ConfigurationError
from .._urls import file_name
from . import _disk
from ._protocol import Snapshot, check_share
from ._share import FORGET, State
from ._step import LocalStore

T = TypeVar("T")

_LOCK_TIMEOUT: Final = 0.25

_TWO_MACHINES: Final = 60.0
"""Seconds; a file that another boot wrote more recently is used by another machine."""

_BACKWARDS: Final = 5.0
"""Seconds that this clock may be behind the file's; a larger gap means that another clock wrote the file."""

SLOT: Final = 1 << 21
"""The offset of the second slot, and the size of both: for 12,000 members. What is not written takes no space."""

_MAGIC: Final = b"stkai\x00\x00\x05"

_HEAD: Final = struct.Struct("<8sII")
"""What a slot begins with: magic, length and checksum of its text."""

clock = SystemClock()


class FileStore(LocalStore):
    """A directory with one state file for each share, for the processes of one user on one machine.

    A call raises `OSError` if the file cannot be read, written or locked within 0.25 s, and `ConfigurationError` if
    another machine also uses the file, or it is not a regular file.

    Args:
        path: the directory; created with mode 0700 if it is missing. The default is a directory of this user's in the
            system's temporary directory.

    Raises:
        ConfigurationError: the path is not a directory, or its parent does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._private = path is None
        self.path = _disk.default_directory() if path is None else Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100
        with suppress(OSError):  # Not available now; every lease tries again.
            _disk.make_directory(self.path, private=self._private)

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        # Opened anew in each step: a lock belongs to what was opened, which a fork would share.
        with _disk.open_state(self._file(share), private=self._private) as file:
            _disk.lock(file.fileno(), _LOCK_TIMEOUT, clock)
            try:
                now = clock.monotonic()
                number, state = _read(file, now)
                result = work(state, now)
                _write(file, number + 1, state)
            finally:
                _disk.unlock(file.fileno())
        return result

    def look(self, share: str) -> Snapshot | None:
        return super().look(share) if self._file(share).is_file() else None

    def reset(self, share: str) -> bool:
        return self._file(share).is_file() and super().reset(share)

    def has_older_members(self, share: str) -> bool:
        """Whether members of version 2 use the share now; they keep their own state, and do not share with these."""
        try:
            written = (self.path / file_name(check_share(share), ".share")).stat().st_mtime
        except OSError:
            return False
        return clock.utcnow().timestamp() - written < FORGET

    def close(self) -> None:
        """Do nothing: no file stays open between two calls."""

    @even_half_made
    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def _file(self, share: str) -> Path:
        return self.path / file_name(check_share(share), ".share5")


class Record(NamedTuple):
    """What a slot of the file holds. The two are written in turn: if one write is interrupted, the other is intact.

    Attributes:
        number: counts the writes; the slot with the higher number is the newer.
        boot: identifies the boot of the machine that wrote it.
        wall: seconds since 1970 at the time of writing.
        state: the share's state, packed.
    """

    number: int
    boot: str
    wall: float
    state: str


def _read(file: FileIO, now: float) -> tuple[int, State]:
    """The number of the last write, and the state that it wrote, or a new one if that cannot be used."""
    record = max(filter(None, (_slot(file, offset) for offset in (0, SLOT))), default=None)
    if record is None:
        return 0, State.new(now)
    if record.boot != _boot_id():
        _check_alone(record, now)
    else:
        state = State.unpack(record.state)
        if state.at - state.offset <= now + _BACKWARDS:
            return record.number, state
    return record.number, State.new(now)


def _slot(file: FileIO, offset: int) -> Record | None:
    """The record in a slot; None if it is damaged."""
    file.seek(offset)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        return None
    _, length, checksum = _HEAD.unpack(head)
    body = file.read(min(length, SLOT))
    if crc32(body) != checksum:
        return None
    number, boot, wall, state = body.decode().split("\n", 3)
    return Record(int(number), boot, float(wall), state)


def _write(file: FileIO, number: int, state: State) -> None:
    """Write the state into the other slot."""
    body = f"{number}\n{_boot_id()}\n{clock.utcnow().timestamp()!r}\n{state.pack()}".encode()
    content = _HEAD.pack(_MAGIC, len(body), crc32(body)) + body
    if len(content) > SLOT:
        raise ValueError(f"the state has {len(content)} bytes; at most {SLOT} are allowed")
    file.seek(number % 2 * SLOT)
    written = file.write(content)
    if written != len(content):
        raise OSError(f"only {written} of {len(content)} bytes of the state were written: is the disk full?")


def _check_alone(record: Record, now: float) -> None:
    """Refuse a file that another machine wrote to while this one was running."""
    wall = clock.utcnow().timestamp()
    # Earlier, it may have been this machine, before its restart.
    since = max(wall - now, wall - _TWO_MACHINES)
    if since < record.wall <= wall + _BACKWARDS:
        raise ConfigurationError(
            "two machines share one state file, but their clocks are unrelated;"
            " share the quota through Redis: store='redis://host:6379'"
        )


@cache
def _boot_id() -> str:
    """Identifies this boot of this machine; a constant if the system has no boot id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
