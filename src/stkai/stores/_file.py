"""A quota that the processes of one machine share through a file. No server is needed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ._local import LocalStore
from ._members import FORGET
from ._open_share import clock, open_shares
from ._place import check_share, default_directory, file_name, make_directory
from ._protocol import Ask, Lease, Snapshot
from ._state import State
from ._step import step

T = TypeVar("T")


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
        self.path = default_directory() if path is None else Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100
        self._paths: dict[str, Path] = {}
        with suppress(OSError):  # Not available now; every lease tries again.
            make_directory(self.path, private=self._private)

    def _change(self, share: str, work: Callable[[State, float], T]) -> T:
        held = open_shares.hold(self._path(share), private=self._private, wait=True)
        assert held is not None
        return held.change(work)

    def try_lease(self, ask: Ask) -> Lease | None:
        """Lease permits without waiting; return None if another process or thread holds the lock."""
        held = open_shares.hold(self._path(ask.share), private=self._private, wait=False)
        return None if held is None else held.change(lambda state, now: step(state, ask, now))

    def look(self, share: str) -> Snapshot | None:
        return super().look(share) if self._path(share).is_file() else None

    def reset(self, share: str) -> bool:
        return self._path(share).is_file() and super().reset(share)

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

    def _path(self, share: str) -> Path:
        path = self._paths.get(share)
        if path is None:
            path = self._paths[share] = self.path / file_name(check_share(share))
        return path
