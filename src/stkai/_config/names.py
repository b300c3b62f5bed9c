"""Names and defaults that several modules share, and how a path is read: defined here, imported everywhere else."""

import os
from pathlib import Path
from typing import Final

from .._errors import ConfigurationError

PREFIX: Final = "STKAI_"
"""The prefix of all stkai environment variables."""

SECTIONS: Final = ("auth", "rate_limit", "retry", "http")
"""The sections of the settings, in display order."""

DEFAULT_TOKEN_URL: Final = "https://idm.stackspot.com/stackspot-dev/oidc/oauth/token"  # noqa: S105
DEFAULT_REFRESH_MARGIN: Final = 60
"""Seconds before its expiry at which a token is renewed."""

CLIENT_AUTH: Final = ("body", "basic")
"""Where the client's credentials go in a token request (RFC 6749, section 2.3.1)."""

DEFAULT_QUOTA: Final = (100, 60.0)
"""Requests and seconds, for a limiter of the settings that needs a quota and is given none."""

REFERENCE_MAX_WAIT_TIME: Final = 45.0
"""Seconds that the clients of the API reference let a request wait for its permit."""


def variable(section: str, field: str) -> str:
    """The environment variable that sets a field, such as `STKAI_RETRY_DEADLINE`."""
    return f"{PREFIX}{section}_{field}".upper()


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
