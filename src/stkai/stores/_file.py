"""A quota that the processes of one machine share through a file. No server is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._errors import ConfigurationError
from ._members import FORGET
from ._open_share import OpenShare, clock, open_shares
from ._place import check_share, default_directory, file_name, make_directory
from ._protocol import Ask, Law, Lease, Snapshot
from ._record import StoredMembers
from ._step import amend, forget, look, step


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
        self._paths: dict[str, Path] = {}
        try:
            make_directory(self.path, private=self._private)
        except ConfigurationError:
            raise
        except OSError:
            pass  # Not available now; every lease tries again.

    def lease(self, ask: Ask) -> Lease:
        """Take a member's report and lease it permits.

        Raises:
            ConfigurationError: another machine also uses the file, or it is not a regular file.
            OSError: the file cannot be read, written or locked within 0.25 s.
        """
        found = self._lease(ask, wait=True)
        assert found is not None
        return found

    def try_lease(self, ask: Ask) -> Lease | None:
        """Lease permits without waiting; return None if another process or thread holds the lock."""
        return self._lease(ask, wait=False)

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one."""
        with self._held(law.share) as share:
            now = clock.monotonic()
            record = share.read(now)
            done = amend(record.state, epoch, law, now)
            share.write(record)
            return done

    def look(self, share: str) -> Snapshot | None:
        """A share's state for display; None if it was never used."""
        if not self._path(share).is_file():
            return None
        with self._held(share) as held:
            now = clock.monotonic()
            return look(held.read(now).state, now)

    def reset(self, share: str) -> bool:
        """Delete the state of a share; active members start over. Returns whether there was one."""
        if self.look(share) is None:
            return False
        with self._held(share) as held:
            now = clock.monotonic()
            record = held.read(now)
            record.state = forget(record.state, StoredMembers(), now)
            held.write(record)
        return True

    def has_older_members(self, share: str) -> bool:
        """Whether members of version 2 use the share now. They keep their own state and do not share with these."""
        try:
            written = (self.path / file_name(check_share(share), ".share")).stat().st_mtime
        except OSError:
            return False
        return clock.utcnow().timestamp() - written < FORGET

    def close(self) -> None:
        """Close the files; the next lease opens them again."""
        open_shares.close(self.path)

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def _lease(self, ask: Ask, *, wait: bool) -> Lease | None:
        share = open_shares.hold(self._path(ask.share), private=self._private, wait=wait)
        if share is None:
            return None
        try:
            now = clock.monotonic()
            record = share.read(now)
            lease = step(record.state, ask, now)
            share.write(record)
            return lease
        finally:
            share.release()

    @contextmanager
    def _held(self, name: str) -> Iterator[OpenShare]:
        share = open_shares.hold(self._path(name), private=self._private, wait=True)
        assert share is not None
        try:
            yield share
        finally:
            share.release()

    def _path(self, share: str) -> Path:
        path = self._paths.get(share)
        if path is None:
            path = self._paths[share] = self.path / file_name(check_share(share))
            open_shares.check_again(path)
        return path
