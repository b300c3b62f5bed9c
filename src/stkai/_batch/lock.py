"""A lock on an open file, which the system releases when the process ends, even by a kill."""

import errno
from typing import Final

from .errors import UsageError

_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN})


def lock(descriptor: int) -> bool:
    """Lock a file for this process; return False if another process holds the lock.

    Raises:
        UsageError: the system, or the file system, does not support file locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:
        msg = "a batch needs file locks, which this system does not have: use Linux, macOS or WSL"
        raise UsageError(msg) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        msg = f"the journal cannot be locked ({error.strerror}): choose a file system with locks for -o"
        raise UsageError(msg) from error
    return True
