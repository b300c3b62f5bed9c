"""State files on disk: where they are, how they are opened, and locks between processes, on Unix and Windows.

They are in a private directory, one per share, and a symbolic link is never followed.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from getpass import getuser
from io import FileIO
from pathlib import Path
from typing import Final

from .._clock import Clock
from .._errors import ConfigurationError

_IS_UNIX: Final = sys.platform != "win32"

_FLAGS: Final = (
    os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
)

_LONGEST_NAP: Final = 0.0005


def default_directory() -> Path:
    """This user's directory on this machine, the same for all processes with the same TMPDIR."""
    user = getuser() if sys.platform == "win32" else str(os.getuid())
    return Path(tempfile.gettempdir()) / f"stkai-{user}"


def open_state(path: Path, *, private: bool) -> FileIO:
    """Open a state file; create it and its directory if they are missing.

    With `private`, refuse a directory that other users own or may enter.
    """
    try:
        file = _open(path, private=private)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise ConfigurationError(_not_plain(path)) from error
        raise
    try:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ConfigurationError(_not_plain(path))
        if private and _IS_UNIX and about.st_uid != os.geteuid():
            make_directory(path.parent, private=True)
    except BaseException:
        file.close()
        raise
    return file


def _open(path: Path, *, private: bool) -> FileIO:
    if not _IS_UNIX and path.is_symlink():  # Windows has no O_NOFOLLOW.
        raise FileExistsError(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        # pathlib takes ten times as long for the directory.
        if stat.S_ISDIR(os.lstat(os.path.dirname(path)).st_mode):  # noqa: PTH120
            return _file(path, _FLAGS)
    make_directory(path.parent, private=private)
    return _file(path, _FLAGS | os.O_CREAT)


def _file(path: Path, flags: int) -> FileIO:
    """Open a file and make the object that closes it, in one call of a C function: no interrupt can come in between."""
    return next(map(FileIO, map(os.open, (path,), (flags,), (0o600,)), ("rb+",)))


def make_directory(directory: Path, *, private: bool) -> None:
    """Create the directory if it is missing, and check that it can hold state files."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the store {str(directory)!r} cannot be created: {str(directory.parent)!r} is not a directory"
        ) from error
    about = directory.lstat()
    if stat.S_ISLNK(about.st_mode):
        raise ConfigurationError(
            f"{str(directory)!r} is a symbolic link, which stkai never follows to a quota's state;"
            " remove it, or choose another directory: store='file:///directory'"
        )
    if not stat.S_ISDIR(about.st_mode):
        raise ConfigurationError(f"{str(directory)!r} is not a directory; choose a directory as the store")
    if private and _IS_UNIX and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        raise ConfigurationError(
            f"{str(directory)!r} is not private: it must belong to this user, with mode 0700;"
            " correct that, or choose another directory: store='file:///directory'"
        )


def _not_plain(path: Path) -> str:
    return (
        f"{str(path)!r} is not a regular file, or is a symbolic link; remove it, or choose another directory"
    )


if sys.platform == "win32":
    import msvcrt

    _BYTE: Final = 1 << 30
    """Windows locks also block reads, so this is a byte far beyond the record."""

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
        """Take the lock if it is free."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Release the lock."""
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock(fd: int, timeout: float, clock: Clock) -> None:
    """Take the lock, waiting at most `timeout` seconds.

    A blocking kernel lock has no timeout, and its holder may be stopped, so this polls: the lock is held for
    microseconds only.
    """
    until = clock.monotonic() + timeout
    nap = 1e-6
    while not try_lock(fd):
        if clock.monotonic() >= until:
            raise TimeoutError(f"another process held the lock of the state file for {timeout:g} s")
        clock.sleep(nap)
        nap = min(nap * 1.2, _LONGEST_NAP)
