"""A file-backed store: the processes of one machine share a quota without a server.

State files are in a private directory, one per share. Symbolic links are never followed.
"""

import os
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from getpass import getuser
from io import FileIO
from pathlib import Path
from typing import Final
from zlib import crc32

from .._checks import safe_repr
from .._clock import SystemClock
from .._errors import ConfigurationError
from .._urls import file_name, full_path
from ._protocol import Snapshot, check_share
from ._share import MEMBER_LIFETIME, State
from ._step import LocalStore, T

_IS_UNIX: Final = sys.platform != "win32"
_FLAGS: Final = (
    os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
)
_LOCK_TIMEOUT: Final = 0.25  # Seconds.
# Longest sleep between lock attempts, in seconds; if shorter, a hundred waiters starve the holder on two cores.
_MAX_NAP: Final = 0.002
# Seconds; a file that another boot wrote more recently than this is in use by another machine.
_OTHER_MACHINE_WITHIN: Final = 60.0
# Seconds by which this clock may be behind the file's; a larger gap means that another clock wrote the file.
_CLOCK_TOLERANCE: Final = 5.0
# The offset of the second slot, and the size of both: enough for 12,000 members. The file is sparse.
SLOT: Final = 1 << 21
_MAGIC: Final = b"stkai\x00\x00\x05"
_HEAD: Final = struct.Struct("<8sII")  # Header of a slot: magic, length and checksum of its text.

clock: Final = SystemClock()


class InUseError(TimeoutError):
    """Locking timed out although other processes kept writing; without writes, the holder may be suspended."""


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
        if path is None:  # The same for all processes with the same TMPDIR.
            user = getuser() if sys.platform == "win32" else str(os.getuid())
            path = Path(_temporary_directory()) / f"stkai-{user}"
        self.path = full_path(path)
        with suppress(OSError):  # The directory is not available yet; every lease tries again.
            _make_directory(self.path, private=self._private)

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        # Reopened for each step: flock belongs to the open file description, which a forked child shares.
        path = self._path_of(share)
        with _open_state(path, private=self._private) as file:
            _check_file(file, path, private=self._private)
            lock(file.fileno())
            try:
                now = clock.monotonic()
                number, state = _read(file, now)
                result = work(state, now)
                _write(file, number + 1, state)
            finally:
                unlock(file.fileno())
        return result

    def look(self, share: str) -> Snapshot | None:
        return super().look(share) if self._path_of(share).is_file() else None

    def reset(self, share: str) -> bool:
        return self._path_of(share).is_file() and super().reset(share)

    def has_older_members(self, share: str) -> bool:
        """Whether members of version 2 use the share now; they keep a separate state."""
        try:
            written = (self.path / file_name(check_share(share), ".share")).stat().st_mtime
        except OSError:
            return False
        return clock.utcnow().timestamp() - written < MEMBER_LIFETIME

    @safe_repr
    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def _path_of(self, share: str) -> Path:
        return self.path / file_name(check_share(share), ".share6")


def _read(file: FileIO, now: float) -> tuple[int, State]:
    """The number of the last write and its state, or a new state if that one cannot be used.

    The two slots are written alternately: if a write is interrupted, the other slot is intact.
    """
    found = max(filter(None, (_slot(file, offset) for offset in (0, SLOT))), default=None)
    if found is None:
        return 0, State.new(now)
    number, boot, wall, packed = found
    if boot != _boot_id():
        _check_alone(wall, now)
    else:
        state = State.unpack(packed)
        if state.at - state.offset <= now + _CLOCK_TOLERANCE:
            return number, state
    return number, State.new(now)


def _slot(file: FileIO, offset: int) -> tuple[int, str, float, str] | None:
    """A slot's content: number of the write, boot id, wall clock at that time, packed state; None if damaged."""
    file.seek(offset)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        return None
    _, length, checksum = _HEAD.unpack(head)
    body = file.read(min(length, SLOT))
    if crc32(body) != checksum:
        return None
    number, boot, wall, state = body.decode().split("\n", 3)
    return int(number), boot, float(wall), state


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


def _check_alone(written: float, now: float) -> None:
    """Refuse a file that another machine wrote to (at `written`) while this one was running."""
    wall = clock.utcnow().timestamp()
    # An earlier write may be this machine's, from before its restart.
    since = max(wall - now, wall - _OTHER_MACHINE_WITHIN)
    if since < written <= wall + _CLOCK_TOLERANCE:
        raise ConfigurationError(
            "two machines share one state file, but their clocks are unrelated;"
            " share the quota through Redis: store='redis://host:6379'"
        )


@cache
def _boot_id() -> str:
    """Identifies the current boot of this machine; a constant if the system has no boot id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (FileNotFoundError, PermissionError):  # Not other errors, which others may not have.
        return ""


def _temporary_directory() -> str:
    """The one of `tempfile`, which writes to it first, and chooses another directory, or none, if the disk is full."""
    if sys.platform == "win32":
        return tempfile.gettempdir()
    names = tempfile.tempdir, *map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp"  # noqa: S108
    return next((name for name in names if name and os.access(name, os.W_OK | os.X_OK)), "/tmp")  # noqa: S108


def _open_state(path: Path, *, private: bool) -> FileIO:
    """Open a state file; create it and its directory if they are missing."""
    try:
        if not _IS_UNIX and path.is_symlink():  # Windows has no O_NOFOLLOW.
            raise FileExistsError(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            # pathlib takes ten times as long for the directory.
            if stat.S_ISDIR(os.lstat(os.path.dirname(path)).st_mode):  # noqa: PTH120
                return _open_file(path, _FLAGS)
        _make_directory(path.parent, private=private)
        return _open_file(path, _FLAGS | os.O_CREAT)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise ConfigurationError(_not_plain(path)) from error
        raise


def _open_file(path: Path, flags: int) -> FileIO:
    """Open a file and create the object that closes it in one call of a C function, which no interrupt can split."""
    return next(map(FileIO, map(os.open, (path,), (flags,), (0o600,)), ("rb+",)))


def _check_file(file: FileIO, path: Path, *, private: bool) -> None:
    """Refuse anything but a regular file and, with `private`, a directory that other users own or may enter."""
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode):
        raise ConfigurationError(_not_plain(path))
    if private and _IS_UNIX and about.st_uid != os.geteuid():
        _make_directory(path.parent, private=True)


def _make_directory(directory: Path, *, private: bool) -> None:
    """Create the directory if it is missing, and check that it can hold state files."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the store {str(directory)!r} cannot be created: {str(directory.parent)!r} is not a directory"
        ) from error
    about, problem = directory.lstat(), ""
    if stat.S_ISLNK(about.st_mode):
        problem = "is a symbolic link, which stkai never follows to a quota's state"
    elif not stat.S_ISDIR(about.st_mode):
        problem = "is not a directory"
    elif private and _IS_UNIX and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        problem = "is not private: it must belong to this user, with mode 0700"
    if problem:
        raise ConfigurationError(
            f"{str(directory)!r} {problem}; correct that, or choose another directory: store='file:///directory'"
        )


def _not_plain(path: Path) -> str:
    return f"{str(path)!r} is a symbolic link or not a regular file; remove it, or choose another directory"


if sys.platform == "win32":
    import msvcrt

    _BYTE: Final = 1 << 30  # Windows locks also block reads, so this is a byte far beyond the record.

    def try_lock(fd: int) -> bool:
        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(fd: int) -> None:
        os.lseek(fd, _BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock(fd: int) -> None:
    """Acquire the lock, or raise a TimeoutError after `_LOCK_TIMEOUT` seconds.

    A blocking kernel lock has no timeout, and its holder may be suspended, so this polls. The lock is held for only a
    few microseconds.
    """
    if try_lock(fd):
        return
    until, written = clock.monotonic() + _LOCK_TIMEOUT, os.fstat(fd).st_mtime_ns
    nap = 1e-6
    while not try_lock(fd):
        if clock.monotonic() >= until:
            error = TimeoutError if os.fstat(fd).st_mtime_ns == written else InUseError
            raise error(f"another process held the lock of the state file for {_LOCK_TIMEOUT:g} s")
        clock.sleep(nap)
        nap = min(nap * 1.2, _MAX_NAP)
