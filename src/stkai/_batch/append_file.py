"""A file that only grows: one write for each record, so that a kill leaves at most its last record torn."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from .errors import UsageError, WriteError

_BLOCK: Final = 1 << 16


class AppendFile:
    """Appends whole records; what a failed write left of one is cut off again.

    Attributes:
        path: of the file.
        size: its length in bytes.
        is_dirty: something was written since the last `sync`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            msg = f"{path} cannot be opened for writing: {error.strerror}"
            raise UsageError(msg) from error
        self.size = os.fstat(self.descriptor).st_size
        self.is_dirty = False
        self._is_open = True
        self._lost: OSError | None = None

    def append(self, record: bytes) -> None:
        """Write a record.

        Raises:
            WriteError: it could not be written as a whole, and is not there at all.
        """
        try:
            written = os.write(self.descriptor, record)
            while written < len(record):
                written += os.write(self.descriptor, memoryview(record)[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise WriteError(self.path, error) from error
        self.size += len(record)
        self.is_dirty = True

    def cut_torn_tail(self) -> bytes:
        """Cut off what follows the last line break, and return it."""
        end = self.size
        while end > 0:
            start = max(0, end - _BLOCK)
            found = os.pread(self.descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        torn = os.pread(self.descriptor, min(_BLOCK, self.size - end), end)
        if end < self.size:
            self.truncate(end)
        return torn

    def truncate(self, size: int = 0) -> None:
        """Cut the file to that many bytes."""
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise WriteError(self.path, error) from error
        self.size = size
        self.is_dirty = True

    def sync(self) -> None:
        """Return when all that was written so far survives a power cut.

        Raises:
            WriteError: the system cannot say so.
        """
        if not self.is_dirty:
            return
        if self._lost is not None:
            raise WriteError(self.path, self._lost)
        self.is_dirty = False
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            # For good: a second fsync would say that all is well, though the pages are gone.
            self.is_dirty, self._lost = True, error
            raise WriteError(self.path, error) from error

    def close(self) -> None:
        """Close the file, which gives up its lock; more than once if need be."""
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)
