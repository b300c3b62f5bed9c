"""The state files that this process has open: reads and writes them, and checks which machine wrote them.

All stores on one directory use the same open files. Only some stay open, so that a thousand shares do not need a
thousand descriptors.
"""

import os
import threading
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeVar

from .._clock import SystemClock
from .._errors import ConfigurationError
from .._forks import after_fork
from ._locks import lock, read_at, try_lock, unlock, write_at
from ._place import open_state
from ._record import PREFIX, SLOT, Record, length_of, number_of, unpack
from ._state import State

T = TypeVar("T")

_LOCK_TIMEOUT: Final = 0.25

_MOST_OPEN: Final = 32

_TWO_MACHINES: Final = 60.0
"""Seconds; a file that another boot wrote more recently is used by another machine."""

_BACKWARDS: Final = 5.0
"""Seconds that this clock may be behind the file's; a larger gap means that another clock wrote the file."""

clock = SystemClock()


class OpenShare:
    """The file of one share, open in this process.

    Attributes:
        path: where the file was when it was opened.
        fd: its descriptor; -1 once it is closed.
        lock: excludes the other threads of this process.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        about = os.fstat(fd)
        self._identity = (about.st_dev, about.st_ino)
        # The record that this process wrote last, with its beginning; None if a step failed.
        self._known: tuple[Record, bytes] | None = None
        self.lock = threading.Lock()

    def close(self) -> None:
        """Close the file, which also releases its lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if os is not None:  # At the end of the program, modules may be None, and files are closed anyway.
            self.close()

    def take(self, *, wait: bool) -> bool:
        """Take the lock. Returns False if `wait` is false and another process or thread holds it.

        Raises:
            TimeoutError: it is held for 0.25 s.
        """
        if not self.lock.acquire(timeout=_LOCK_TIMEOUT if wait else 0):
            if wait:
                raise TimeoutError(f"another thread held the state file for {_LOCK_TIMEOUT:g} s")
            return False
        is_ours = False
        try:
            if wait and self.fd >= 0:
                lock(self.fd, _LOCK_TIMEOUT, clock)
            is_ours = wait or self.fd < 0 or try_lock(self.fd)
        finally:
            if not is_ours:
                self.lock.release()
        return is_ours

    def release(self) -> None:
        """Release the lock."""
        try:
            if self.fd >= 0:
                unlock(self.fd)
        finally:
            self.lock.release()

    def is_in_place(self) -> bool:
        """Whether other processes find the open file at its path."""
        try:
            about = os.lstat(self.path)
        except OSError:
            return False
        return self.fd >= 0 and (about.st_dev, about.st_ino) == self._identity

    def change(self, work: Callable[[State, float], T]) -> T:
        """Read the state, call `work(state, now)`, write the state, and release the lock.

        Raises:
            ConfigurationError: another machine writes to the same file.
            OSError: the file cannot be read or written.
        """
        try:
            now = clock.monotonic()
            record = self._read(now)
            result = work(record.state, now)
            self._write(record)
            return result
        finally:
            self.release()

    def _read(self, now: float) -> Record:
        """The record in the file, or a new one if there is no usable record."""
        prefixes = [read_at(self.fd, PREFIX, offset) for offset in (0, SLOT)]
        numbers = [number_of(prefix) for prefix in prefixes]
        newer = int(numbers[1] > numbers[0])
        known, self._known = self._known, None
        if known is not None and known[1] == prefixes[newer]:
            return known[0]
        boot = _boot_id()
        for slot in (newer, 1 - newer):
            record = None
            if numbers[slot] >= 0:
                record = unpack(read_at(self.fd, length_of(prefixes[slot]), slot * SLOT))
            if record is None:
                continue
            if record.boot != boot:
                _check_alone(record, now)
            elif record.state.at - record.state.offset <= now + _BACKWARDS:
                return record
            break
        return Record(max(0, *numbers), boot, 0.0, State.new(now))

    def _write(self, record: Record) -> None:
        """Write the state into the other slot."""
        record = record._replace(number=record.number + 1, wall=clock.utcnow().timestamp())
        content = record.pack()
        written = write_at(self.fd, content, record.offset)
        if written != len(content):
            raise OSError(
                f"only {written} of {len(content)} bytes of the state were written: is the disk full?"
            )
        self._known = record, content[:PREFIX]


class OpenShares:
    """The state files that this process has open."""

    def __init__(self) -> None:
        self._begin()
        after_fork(self, OpenShares._leave_parents_files)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, OpenShare] = {}

    def hold(self, path: Path, *, private: bool, wait: bool) -> OpenShare | None:
        """The share with its lock held; None if `wait` is false and another process or thread holds the lock.

        Raises:
            OSError: the file cannot be opened, or locked within 0.25 s.
        """
        while True:
            share = self._open.get(path) or self._add(path, private=private)
            if not share.take(wait=wait):
                return None
            if share.is_in_place():
                return share
            self._drop(share)
            share.release()

    def close(self, directory: Path) -> None:
        """Close the files of a directory."""
        with self._lock:
            shares = [share for path, share in self._open.items() if path.parent == directory]
        for share in shares:
            with share.lock:
                self._drop(share)

    def _add(self, path: Path, *, private: bool) -> OpenShare:
        """Open a file, and close the oldest if there are too many."""
        share = OpenShare(path, open_state(path, private=private))
        with self._lock:
            first = self._open.setdefault(path, share)
            surplus = list(self._open.values())[: max(0, len(self._open) - _MOST_OPEN)]
        for other in surplus:
            if other is not first and other.lock.acquire(blocking=False):
                self._drop(other)
                other.lock.release()
        return first

    def _drop(self, share: OpenShare) -> None:
        """Close a file; the caller holds its lock."""
        with self._lock:
            if self._open.get(share.path) is share:
                del self._open[share.path]
        share.close()

    def _leave_parents_files(self) -> None:
        """Reopen the files in a forked child, because a descriptor shared by two processes locks out neither.

        Only close the old descriptors: unlocking them would release the parent's lock.
        """
        shares = self._open
        self._begin()
        for share in shares.values():
            share.close()


open_shares = OpenShares()
"""Those of this process."""


def _check_alone(record: Record, now: float) -> None:
    """Refuse a file that another machine wrote to while this one was running.

    Raises:
        ConfigurationError: two machines share it.
    """
    wall = clock.utcnow().timestamp()
    # Earlier, it may have been this machine, before its restart.
    since = max(wall - now, wall - _TWO_MACHINES)
    if since < record.wall <= wall + _BACKWARDS:
        raise ConfigurationError(
            "two machines share one state file, but their clocks are unrelated;"
            " share the quota through Redis: store='redis://host:6379'"
        )


@cache
def _boot_id() -> bytes:
    """Identifies this boot of this machine, in 16 bytes; a constant if the system has no boot id."""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        found = b""
    return blake2b(found, digest_size=16).digest()
