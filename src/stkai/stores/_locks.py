"""Locks between processes on an open file, and file access at an offset, on Unix and Windows."""

import os
import sys

from .._clock import Clock

_SPINS = 8
_LONGEST_NAP = 0.0005


if sys.platform == "win32":
    import msvcrt

    _BYTE = 1 << 30
    """Windows locks also block reads, so this is a byte far beyond the record."""

    def try_lock(fd: int) -> bool:
        """Take the lock if it is free."""
        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Release the lock."""
        os.lseek(fd, _BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

    def read_at(fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)

    def write_at(fd: int, content: bytes, offset: int) -> int:
        """Write from `offset` on; returns how many bytes were written."""
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, content)

    def yield_processor() -> None:
        """Do nothing: on Windows, waiting for a lock sleeps instead."""

else:
    import fcntl

    read_at = os.pread
    write_at = os.pwrite

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

    yield_processor = os.sched_yield


def lock(fd: int, timeout: float, clock: Clock) -> None:
    """Take the lock, waiting at most `timeout` seconds.

    A blocking kernel lock has no timeout, and its holder may be stopped, so this polls: the lock is held for
    microseconds only.

    Raises:
        TimeoutError: another process held the lock the whole time.
    """
    if try_lock(fd):
        return
    until = clock.monotonic() + timeout
    for _ in range(_SPINS):
        yield_processor()
        if try_lock(fd):
            return
    nap = 1e-6
    while not try_lock(fd):
        if clock.monotonic() >= until:
            raise TimeoutError(f"another process held the lock of the state file for {timeout:g} s")
        clock.sleep(nap)
        nap = min(nap * 1.2, _LONGEST_NAP)
