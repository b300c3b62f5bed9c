"""A quota that the processes of one machine share through a file. No server is needed."""

import os
import threading
from pathlib import Path

from .._clock import SystemClock
from .._errors import ConfigurationError
from . import _tickets
from ._locks import lock, try_lock
from ._open_share import OpenShare
from ._place import check_share, default_directory, file_name, make_directory, open_state
from ._protocol import Ask, Law, Lease, Snapshot
from ._record import PackedMembers

_LOCK_TIMEOUT = 0.25
_LOOK_AGAIN = 0.25
"""Seconds between checks that the path still refers to the open file."""

_STILL_LINKED = 0.02
"""Seconds between the cheaper checks that the file was not deleted."""

_clock = SystemClock()


class FileStore:
    """A directory with one state file for each share, for the processes of one user on one machine.

    Args:
        path: the directory; created with mode 0700 if it is missing. The default is a directory of this user's in the
            system's temporary directory.

    Raises:
        ConfigurationError: the path is not a directory, or its parent does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._private = path is None
        self.path = default_directory() if path is None else Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100
        try:
            make_directory(self.path, private=self._private)
        except ConfigurationError:
            raise
        except OSError:
            pass  # Not available now; every lease tries again.
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._shares: dict[str, OpenShare] = {}

    def lease(self, ask: Ask) -> Lease:
        """Take permits.

        Raises:
            ConfigurationError: another machine also uses the file, or it is not a regular file.
            OSError: the file cannot be read, written or locked within 0.25 s.
        """
        found = self._lease(ask, wait=True)
        assert found is not None
        return found

    def try_lease(self, ask: Ask) -> Lease | None:
        """Take permits without waiting; return None if another process or thread holds the lock."""
        return self._lease(ask, wait=False)

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        share = self._hold(law.share, wait=True)
        assert share is not None
        try:
            now = _clock.monotonic()
            record = share.read(now)
            done = _tickets.amend(record.state, epoch, law, now)
            if done:
                share.write(record)
            return done
        finally:
            share.release()

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        if not (self.path / file_name(check_share(share))).is_file():
            return None
        held = self._hold(share, wait=True)
        assert held is not None
        try:
            now = _clock.monotonic()
            state = held.read(now).state
            return _tickets.look(state, now) if state.rate else None
        finally:
            held.release()

    def reset(self, share: str) -> None:
        """Delete the state of a share; active members start over."""
        if self.look(share) is None:
            return
        held = self._hold(share, wait=True)
        assert held is not None
        try:
            now = _clock.monotonic()
            record = held.read(now)
            record.state = _tickets.forget(record.state, now)
            record.state.members = PackedMembers(oldest=now)
            held.write(record)
        finally:
            held.release()

    def close(self) -> None:
        """Close the files; the next lease opens them again."""
        if self._pid != os.getpid():
            self._leave_parents_files()
        with self._lock:
            shares, self._shares = list(self._shares.values()), {}
        for share in shares:
            with share.lock:
                share.close()

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def _lease(self, ask: Ask, *, wait: bool) -> Lease | None:
        share = self._hold(ask.share, wait=wait)
        if share is None:
            return None
        try:
            now = _clock.monotonic()
            record = share.read(now)
            lease = _tickets.lease(record.state, ask, now)
            share.write(record)
            return lease
        finally:
            share.release()

    def _hold(self, name: str, *, wait: bool) -> OpenShare | None:
        """The share with its lock held; None if `wait` is false and another process or thread holds the lock."""
        if self._pid != os.getpid():
            self._leave_parents_files()
        while True:
            share = self._shares.get(name) or self._open(name)
            if not share.lock.acquire(timeout=_LOCK_TIMEOUT if wait else 0):
                if not wait:
                    return None
                raise TimeoutError(f"another thread held the state file for {_LOCK_TIMEOUT:g} s")
            try:
                if self._shares.get(name) is share:
                    if wait:
                        lock(share.fd, _LOCK_TIMEOUT, _clock)
                    elif not try_lock(share.fd):
                        share.lock.release()
                        return None
                    if self._is_in_place(name, share):
                        return share
                    self._drop(name, share)
                share.lock.release()
            except BaseException:
                share.lock.release()
                raise

    def _open(self, name: str) -> OpenShare:
        fd = open_state(self.path, file_name(check_share(name)), private=self._private)
        share = OpenShare(fd)
        with self._lock:
            first = self._shares.setdefault(name, share)
        if first is not share:
            share.close()
        return first

    def _is_in_place(self, name: str, share: OpenShare) -> bool:
        """Whether other processes still find the open file at its path."""
        now = _clock.monotonic()
        if now - share.seen >= _STILL_LINKED:
            share.seen = now
            if os.fstat(share.fd).st_nlink == 0:
                return False
        if now - share.checked < _LOOK_AGAIN:
            return True
        share.checked, share.wall = now, _clock.utcnow().timestamp()
        try:
            about = (self.path / file_name(name)).lstat()
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == share.identity

    def _drop(self, name: str, share: OpenShare) -> None:
        """Close a file that is no longer at its path; closing it releases its lock."""
        with self._lock:
            if self._shares.get(name) is share:
                del self._shares[name]
        share.close()

    def _leave_parents_files(self) -> None:
        """Reopen the files in a forked child, because a descriptor shared by two processes locks out neither.

        Only close the old descriptors: unlocking them would release the parent's lock.
        """
        shares = self._shares
        self._begin()
        for share in shares.values():
            share.close()
