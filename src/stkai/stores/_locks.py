"""A lock between processes on an open file, and access to the file at an offset, on Unix and on Windows."""

import os
import sys
from typing import Protocol

_SPINS = 8
_LONGEST_NAP = 0.0005


class Time(Protocol):
    """The part of a clock that waiting for a lock needs."""

    def monotonic(self) -> float:
        """Seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        ...


if sys.platform == "win32":
    import msvcrt

    _BYTE = 1 << 30
    """Windows locks bytes, also against reading: one far behind the record."""

    def try_lock(fd: int) -> bool:
        """Take the lock if nobody holds it."""
        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Let go of the lock."""
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
        """Do nothing: on Windows, whoever waits for a lock sleeps."""

else:
    import fcntl

    read_at = os.pread
    write_at = os.pwrite

    def try_lock(fd: int) -> bool:
        """Take the lock if nobody holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Let go of the lock."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    yield_processor = os.sched_yield


def lock(fd: int, timeout: float, time: Time) -> None:
    """Take the lock, waiting for it at most `timeout` seconds.

    A lock of the kernel's that waits cannot be told to give up, and its holder may be stopped; so this one asks again
    and again: the lock is held for microseconds.

    Raises:
        TimeoutError: somebody else held it all the time.
    """
    if try_lock(fd):
        return
    until = time.monotonic() + timeout
    for _ in range(_SPINS):
        yield_processor()
        if try_lock(fd):
            return
    nap = 1e-6
    while not try_lock(fd):
        if time.monotonic() >= until:
            raise TimeoutError(f"the lock of the state file was held by somebody else for {timeout:g} s")
        time.sleep(nap)
        nap = min(nap * 1.2, _LONGEST_NAP)
