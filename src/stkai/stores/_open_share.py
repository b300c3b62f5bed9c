"""The state files that this process has open: reads and writes them, and checks which machine wrote them.

All stores on one directory use the same open files. Only those used last stay open, so that a thousand shares do not
need a thousand descriptors.
"""

import math
import os
import threading
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

from .._clock import SystemClock
from .._errors import ConfigurationError
from ._locks import lock, read_at, try_lock, unlock, write_at
from ._place import open_state
from ._record import PREFIX, SLOT, Record, StoredMembers, length_of, number_of, unpack
from ._state import State

_LOCK_TIMEOUT = 0.25
_LOOK_AGAIN = 0.25
"""Seconds between checks that the path still refers to the open file."""

_STILL_LINKED = 0.02
"""Seconds between the cheaper checks that the file was not deleted."""

_MOST_OPEN = 32

_TWO_MACHINES = 60.0
_BACKWARDS = 5.0
"""Seconds that this clock may be behind the file's; a larger gap means that another clock wrote the file."""

clock = SystemClock()


class OpenShare:
    """The file of one share, open in this process.

    Attributes:
        seen: when it was last known to exist.
        checked: when its path was last checked.
        wall: seconds since 1970 at that check.
        known: the record that this process wrote last, with its beginning; None if a step failed.
    """

    __slots__ = ("checked", "fd", "identity", "known", "lock", "path", "seen", "wall")

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
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

    def __del__(self) -> None:
        if os is not None:  # At the end of the program, modules may be gone, and files are closed anyway.
            self.close()

    def read(self, now: float) -> Record:
        """The state in the file, or a new one if there is no usable state.

        Raises:
            ConfigurationError: another machine writes to the same file.
        """
        prefixes = [read_at(self.fd, PREFIX, offset) for offset in (0, SLOT)]
        numbers = [number_of(prefix) for prefix in prefixes]
        newer = int(numbers[1] > numbers[0])
        known, self.known = self.known, None
        if known is not None and known[1] == prefixes[newer]:
            return known[0]
        record = None
        for slot in (newer, 1 - newer):
            if record is None and numbers[slot] >= 0:
                record = unpack(read_at(self.fd, length_of(prefixes[slot]), slot * SLOT))
        boot = _boot_id()
        if record is not None:
            if record.boot == boot and record.state.at - record.state.offset <= now + _BACKWARDS:
                return record
            if record.boot != boot:
                self._check_alone(record, now)
        return Record(max(0, *numbers), boot, 0.0, State(now, StoredMembers()))

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
        self.known = record, content[:PREFIX]

    def is_in_place(self) -> bool:
        """Whether other processes still find the open file at its path."""
        now = clock.monotonic()
        if now - self.seen >= _STILL_LINKED:
            self.seen = now
            if os.fstat(self.fd).st_nlink == 0:
                return False
        if now - self.checked < _LOOK_AGAIN:
            return True
        self.checked, self.wall = now, clock.utcnow().timestamp()
        try:
            about = self.path.lstat()
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self.identity

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
        wall = clock.utcnow().timestamp()
        # Earlier, it may have been this machine, before its restart.
        since = max(wall - now, wall - _TWO_MACHINES)
        if since < record.wall <= wall + _BACKWARDS:
            raise ConfigurationError(
                "two machines share one state file, but their clocks are unrelated;"
                " share the quota through Redis: store='redis://host:6379'"
            )


class OpenShares:
    """The state files that this process has open, the one used last at the end."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, OpenShare] = OrderedDict()

    def hold(self, path: Path, *, private: bool, wait: bool) -> OpenShare | None:
        """The share with its lock held; None if `wait` is false and another process or thread holds the lock.

        Raises:
            OSError: the file cannot be opened, or locked within 0.25 s.
        """
        if self._pid != os.getpid():
            self._leave_parents_files()
        while True:
            share = self._open.get(path) or self._add(path, private=private)
            if not share.lock.acquire(timeout=_LOCK_TIMEOUT if wait else 0):
                if not wait:
                    return None
                raise TimeoutError(f"another thread held the state file for {_LOCK_TIMEOUT:g} s")
            try:
                if self._open.get(path) is share:
                    if wait:
                        lock(share.fd, _LOCK_TIMEOUT, clock)
                    elif not try_lock(share.fd):
                        share.lock.release()
                        return None
                    if share.is_in_place():
                        return share
                    self._drop(share)
                share.lock.release()
            except BaseException:
                share.lock.release()
                raise

    def check_again(self, path: Path) -> None:
        """Before its next use, check that the file is still at its path."""
        share = self._open.get(path)
        if share is not None:
            share.seen = share.checked = -math.inf

    def close(self, directory: Path) -> None:
        """Close the files of a directory."""
        if self._pid != os.getpid():
            self._leave_parents_files()
        with self._lock:
            shares = [share for path, share in self._open.items() if path.parent == directory]
        for share in shares:
            with share.lock:
                self._drop(share)

    def _add(self, path: Path, *, private: bool) -> OpenShare:
        """Open a file, and close those that were not used for longest."""
        share = OpenShare(path, open_state(path, private=private))
        with self._lock:
            first = self._open.setdefault(path, share)
            surplus = list(self._open.values())[: max(0, len(self._open) - _MOST_OPEN)]
        if first is not share:
            share.close()
        for other in surplus:
            if other is not first and other.lock.acquire(blocking=False):
                try:
                    self._drop(other)
                finally:
                    other.lock.release()
        return first

    def _drop(self, share: OpenShare) -> None:
        """Close a file; the caller holds its lock in this process."""
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
