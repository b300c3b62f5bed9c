"""Paths in settings, made absolute so that they name the same file whatever the working directory."""

import os
from pathlib import Path

from .._errors import ConfigurationError


def full_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a .env file, with `~` expanded.

    Raises:
        ConfigurationError: `~user` names a user who does not exist.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(
            f"the .env file {os.fspath(path)!r} is in the home directory of an unknown user"
        ) from error


def existing_path(path: str) -> str:
    """The path with `~` expanded.

    Raises:
        ValueError: it does not exist, or cannot be looked up.
    """
    try:
        expanded = Path(path).expanduser()
        found = bool(path) and expanded.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the system, or an unknown user
        raise ValueError from error
    if not found:
        raise ValueError
    return str(expanded)
