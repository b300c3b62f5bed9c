"""Names and defaults that several modules share: each is defined here, and imported everywhere else."""

from typing import Final

PREFIX: Final = "STKAI_"
"""Begins the name of every environment variable of stkai."""

SECTIONS: Final = ("auth", "rate_limit", "retry", "http")
"""The sections of the settings, in the order in which they are shown."""

DEFAULT_TOKEN_URL: Final = "https://idm.stackspot.com/stackspot-dev/oidc/oauth/token"  # noqa: S105
DEFAULT_REFRESH_MARGIN: Final = 60
"""Seconds before its end at which a token is renewed."""

CLIENT_AUTH: Final = ("body", "basic")
"""Where the client's credentials go in a token request (RFC 6749, section 2.3.1)."""

REFERENCE_MAX_WAIT_TIME: Final = 45.0
"""Seconds for which the clients of the API reference let a request wait for its permit."""


def variable(section: str, field: str) -> str:
    """The environment variable that sets a field, such as `STKAI_RETRY_DEADLINE`."""
    return f"{PREFIX}{section}_{field}".upper()
