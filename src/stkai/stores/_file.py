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

_MAGIC: Final = b"stkai\x00\x00\x04"
_ENVELOPE: Final = struct.Struct("<8sII")
_NUMBER: Final = struct.Struct("<Q")

_PREFIX: Final = _ENVELOPE.size + _NUMBER.size
"""Bytes that differ between one content of a slot and another: magic, checksum, length and number."""

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
        self._files: dict[str, _StateFile] = {}
        with suppress(OSError):  # Not available now; every lease tries again.
            _disk.make_directory(self.path, private=self._private)

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        return self._file(share).change(work)

    def look(self, share: str) -> Snapshot | None:
        return super().look(share) if self._file(share).path.is_file() else None

    def reset(self, share: str) -> bool:
        return self._file(share).path.is_file() and super().reset(share)

    def has_older_members(self, share: str) -> bool:
        """Whether members of version 2 use the share now; they keep their own state, and do not share with these."""
        try:
            written = (self.path / file_name(check_share(share), ".share")).stat().st_mtime
        except OSError:
            return False
        return clock.utcnow().timestamp() - written < FORGET

    def close(self) -> None:
        """Forget what was read; no file stays open between two calls."""
        self._files.clear()

    @even_half_made
    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def _file(self, share: str) -> "_StateFile":
        file = self._files.get(share)
        if file is None:
            path = self.path / file_name(check_share(share), ".share4")
            file = self._files.setdefault(share, _StateFile(path, private=self._private))
        return file


class Record(NamedTuple):
    """What a slot of the file holds. The two are written in turn: if one write is interrupted, the other is intact.

    Attributes:
        number: counts the writes; the slot with the higher number is the newer.
        boot: identifies the boot of the machine that wrote it.
        wall: seconds since 1970 at the time of writing.
        state: the share's state.
    """

    number: int
    boot: str
    wall: float
    state: State

    @property
    def offset(self) -> int:
        """The offset of its slot in the file."""
        return self.number % 2 * SLOT

    def pack(self) -> bytes:
        """The slot's content."""
        text = f"{self.boot} {self.wall!r}\n{self.state.pack()}"
        body = _NUMBER.pack(self.number) + text.encode()
        if len(body) > SLOT - _ENVELOPE.size:
            raise ValueError(f"the state has {len(body)} bytes; at most {SLOT - _ENVELOPE.size} are allowed")
        return _ENVELOPE.pack(_MAGIC, crc32(body), len(body)) + body


def number_of(prefix: bytes) -> int:
    """The number of a slot that begins with this prefix; -1 if it is not a slot of ours."""
    if len(prefix) < _PREFIX or not prefix.startswith(_MAGIC):
        return -1
    number: int = _NUMBER.unpack_from(prefix, _ENVELOPE.size)[0]
    return number


def length_of(prefix: bytes) -> int:
    """The length of the content of a slot that begins with this prefix."""
    return min(SLOT, _ENVELOPE.size + int(_ENVELOPE.unpack_from(prefix)[2]))


def unpack(content: bytes) -> Record | None:
    """The record in a slot's content; None if it is damaged."""
    magic, checksum, length = _ENVELOPE.unpack_from(content)
    body = content[_ENVELOPE.size :]
    if magic != _MAGIC or length != len(body) or crc32(body) != checksum:
        return None
    about, _, state = body[_NUMBER.size :].decode().partition("\n")
    boot, wall = about.split(" ")
    return Record(number_of(content), boot, float(wall), State.unpack(state))


class _StateFile:
    """The file of one share. Each step opens it anew: a lock belongs to what was opened, which a fork would share."""

    def __init__(self, path: Path, *, private: bool) -> None:
        self.path, self._private = path, private
        # The record that was written last, with its beginning; None if a step failed.
        self._known: tuple[Record, bytes] | None = None

    def change(self, work: Callable[[State, float], T]) -> T:
        """Lock the file, read the state, call `work(state, now)`, and write the state."""
        with _disk.open_state(self.path, private=self._private) as file:
            _disk.lock(file.fileno(), _LOCK_TIMEOUT, clock)
            try:
                now = clock.monotonic()
                record = self._read(file, now)
                result = work(record.state, now)
                self._write(file, record)
            finally:
                _disk.unlock(file.fileno())
        return result

    def _read(self, file: FileIO, now: float) -> Record:
        """The record in the file, or a new one if there is no usable record."""
        prefixes = [_disk.read_at(file.fileno(), _PREFIX, offset) for offset in (0, SLOT)]
        numbers = [number_of(prefix) for prefix in prefixes]
        newer = int(numbers[1] > numbers[0])
        known, self._known = self._known, None
        if known is not None and known[1] == prefixes[newer]:
            return known[0]
        boot = _boot_id()
        for slot in (newer, 1 - newer):
            record = None
            if numbers[slot] >= 0:
                record = unpack(_disk.read_at(file.fileno(), length_of(prefixes[slot]), slot * SLOT))
            if record is None:
                continue
            if record.boot != boot:
                _check_alone(record, now)
            elif record.state.at - record.state.offset <= now + _BACKWARDS:
                return record
            break
        return Record(max(0, *numbers), boot, 0.0, State.new(now))

    def _write(self, file: FileIO, record: Record) -> None:
        """Write the state into the other slot."""
        record = record._replace(number=record.number + 1, wall=clock.utcnow().timestamp())
        content = record.pack()
        written = _disk.write_at(file.fileno(), content, record.offset)
        if written != len(content):
            raise OSError(
                f"only {written} of {len(content)} bytes of the state were written: is the disk full?"
            )
        self._known = record, content[:_PREFIX]


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
