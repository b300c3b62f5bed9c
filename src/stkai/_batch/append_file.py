"""An append-only file: each record is one write, so that a kill can truncate only the last record."""

import errno
import os
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from .._errors import ConfigurationError, StkaiError
from .._event_loops import in_thread
from .._process import begin_in_each_process

_BLOCK: Final = 1 << 16
_ROOM: Final = 1 << 20  # Bytes that must be free before anything is sent.


class WriteError(StkaiError):
    """A file of the batch could not be written, for example because the disk is full."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{path} cannot be written: {reason}")


def check_room(path: Path) -> None:
    """Raise a WriteError if the disk of this file is full, to within a megabyte."""
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent) as file:
            file.write(bytes(_ROOM))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise WriteError(path, error) from error


class AppendFile:
    """Appends whole records, and cuts off what a failed write left behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):  # Reading it might never end.
            os.close(self.descriptor)
            raise ConfigurationError(f"{path} is not a file, which a journal or an output must be")
        self.size = status.st_size
        self._has_name = status.st_nlink > 0  # Some file systems count no names.
        begin_in_each_process(self, AppendFile._renew)
        self._is_torn = False  # Whether the last write failed, and what it left could not be cut off.
        self._changes = 0
        self._safe_changes = 0  # How many of the changes would survive a power failure.
        self._lost: OSError | None = None
        self._committing = anyio.Lock()

    def _renew(self) -> None:
        self._appending = threading.Lock()
        """A failed write is undone by truncating to the size before it, so nothing else may be written until then."""

    def append(self, record: bytes) -> None:
        """Write a record, from any thread, after cutting off what an earlier, failed write left behind."""
        with self._appending:
            try:
                if self._has_name and not os.fstat(self.descriptor).st_nlink:
                    raise OSError("another program has deleted or replaced it")
                if self._is_torn:
                    self.truncate(self.size)
                written = os.write(self.descriptor, record)
                while written < len(record):
                    written += os.write(self.descriptor, memoryview(record)[written:])
                self.size += len(record)
            except BaseException as error:  # Including an interrupt, which must not leave half a record.
                self._is_torn = True
                with suppress(OSError):
                    self.truncate(self.size)
                if isinstance(error, OSError):
                    raise WriteError(self.path, error) from error
                raise
            self._changes += 1

    def cut_torn_tail(self) -> None:
        """Cut off everything after the last line break."""
        end = self.size
        while end > 0:
            start = max(0, end - _BLOCK)
            found = os.pread(self.descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < self.size:
            self.truncate(end)

    def truncate(self, size: int = 0) -> None:
        os.ftruncate(self.descriptor, size)
        self.size, self._is_torn = size, False
        self._changes += 1

    def sync(self) -> None:
        """Return once everything written so far would survive a power failure."""
        reached = self._changes
        if self._safe_changes == reached:
            return
        if self._lost is not None:
            raise WriteError(self.path, self._lost)
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            # Fail permanently: a second fsync would report success although the pages are lost.
            self._lost = error
            raise WriteError(self.path, error) from error
        self._safe_changes = reached

    async def commit(self) -> None:
        """Like `sync`, but without blocking; concurrent callers share a sync."""
        wanted = self._changes
        async with self._committing:
            if self._safe_changes < wanted:
                await in_thread(self.sync)

    def close(self) -> None:
        with self._appending:
            # Another file may get this descriptor, and a thread left behind by an interrupt may still write.
            descriptor, self.descriptor = self.descriptor, -1
        self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)
