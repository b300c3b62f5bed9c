"""The location of state files: a private directory, never a symbolic link, and one file per share."""

import os
import stat
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from .._errors import ConfigurationError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


def check_share(share: object) -> str:
    """Check the name of a share, and return it.

    Raises:
        ConfigurationError: it is empty, not text, too long or not encodable.
    """
    if not isinstance(share, str) or not share.strip():
        raise ConfigurationError(f"share must be a name, such as 'team-key', not {share!r}")
    try:
        share.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"share must be text that can be encoded as UTF-8, not {share!r}") from error
    if "\x00" in share or len(share) > 1000:
        raise ConfigurationError(
            f"share must be at most 1000 characters long and contain no NUL, not {share[:40]!r}"
        )
    return share


def file_name(share: str, suffix: str = ".share4") -> str:
    """A file name that is unique to the share, even on file systems that ignore case."""
    digest = blake2b(share.encode(), digest_size=10).hexdigest()
    return f"{quote(share, safe='')[:60]}-{digest}{suffix}"


def default_directory() -> Path:
    """This user's directory on this machine, the same for all processes with the same TMPDIR."""
    if sys.platform == "win32":
        import getpass

        user = getpass.getuser()
    else:
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"stkai-{user}"


def open_state(path: Path, *, private: bool) -> int:
    """Open a state file; create it and its directory if they are missing. The caller closes the descriptor.

    Args:
        private: refuse a directory that other users own or may enter.

    Raises:
        ConfigurationError: the directory is not a directory, or the file is not a regular file.
        OSError: the file system refuses.
    """
    at = _open_directory(path.parent, private=private)
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _BINARY | _CLOEXEC
    try:
        if not _NO_FOLLOW and path.is_symlink():
            raise ConfigurationError(_not_plain(path))
        fd = os.open(path if at is None else path.name, flags, 0o600, dir_fd=at)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise ConfigurationError(_not_plain(path)) from error
        raise
    finally:
        if at is not None:
            os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigurationError(_not_plain(path))
    return fd


def make_directory(directory: Path, *, private: bool) -> None:
    """Create the directory if it is missing, and check that it can hold state files.

    Raises:
        ConfigurationError: the path is not a directory, or its parent does not exist.
        OSError: the file system refuses.
    """
    at = _open_directory(directory, private=private)
    if at is not None:
        os.close(at)


def _open_directory(directory: Path, *, private: bool) -> int | None:
    """A descriptor for the directory; None on Windows, which has none."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the store {str(directory)!r} cannot be created: {str(directory.parent)!r} is not a directory"
        ) from error
    if directory.is_symlink():
        raise ConfigurationError(
            f"{str(directory)!r} is a symbolic link, which stkai never follows to a quota's state;"
            " remove it, or choose another directory: store='file:///directory'"
        )
    if not directory.is_dir():
        raise ConfigurationError(f"{str(directory)!r} is not a directory; choose a directory as the store")
    if not _DIRECTORY:
        return None
    fd = os.open(directory, os.O_RDONLY | _DIRECTORY | _NO_FOLLOW | _CLOEXEC)
    about = os.fstat(fd)
    if private and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        os.close(fd)
        raise ConfigurationError(
            f"{str(directory)!r} is not private: it must belong to this user, with mode 0700;"
            " correct that, or choose another directory: store='file:///directory'"
        )
    return fd


def _not_plain(path: Path) -> str:
    return (
        f"{str(path)!r} is not a regular file, or is a symbolic link; remove it, or choose another directory"
    )
