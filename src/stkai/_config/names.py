"""The names and defaults of settings, and how their values are shown: as text, with secrets masked."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from .._errors import ConfigurationError
from .._lazy import LateModule
from .._secrets import MASK, reveal
from .._urls import mask_credentials

_difflib: Final = LateModule("difflib")

PREFIX: Final = "STKAI_"
"""The prefix of all stkai environment variables."""

SECTIONS: Final = ("auth", "rate_limit", "retry", "http")
"""The sections of the settings, in display order."""

DEFAULT_TOKEN_URL: Final = "https://idm.stackspot.com/stackspot-dev/oidc/oauth/token"  # noqa: S105
DEFAULT_REFRESH_MARGIN: Final = 60
"""Seconds before its expiry at which a token is renewed."""

DEFAULT_QUOTA: Final = (100, 60.0)
"""Requests and seconds, for a limiter in the settings that needs a quota and is given none."""

REFERENCE_METHODS: Final = ("POST",)
"""The methods that the API reference's clients count; they never hold back a GET."""

SECRETS: Final = frozenset({"auth", "client_secret", "token"})
"""Fields whose values are never shown; `auth`, because a token may have been given in place of a section."""
_MAX_SHOWN: Final = 200
"""Characters of a rejected value that errors show."""


def variable(section: str, field: str) -> str:
    """The environment variable that sets a field, such as `STKAI_RETRY_DEADLINE`."""
    return f"{PREFIX}{section}_{field}".upper()


def as_text(field: str, value: Any) -> str:
    """A valid value as it would be written in a variable; secrets are masked."""
    if value is None:
        return "none"
    if field in SECRETS:
        return MASK
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "[]"
    return mask_credentials(str(value))


def as_given(value: Any) -> str:
    """A rejected value as given, shortened if it is long; only its type if it could contain a secret."""
    value = reveal(value)
    if isinstance(value, str):
        text = repr(mask_credentials(value))
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(as_given, value))}]"
    else:
        is_plain = value is None or isinstance(value, (int, float))
        text = repr(value) if is_plain else f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, ignoring case; None if there is none."""
    words = {each.lower(): each for each in known}
    matches = _difflib.get_close_matches(word.lower(), sorted(words), n=1, cutoff=0.65)
    return words[matches[0]] if matches else None


def not_a_setting(name: str, word: str, known: Collection[str]) -> str:
    hint = closest(word, known)
    return f"{name} is not a setting; " + (
        f"did you mean {hint!r}?" if hint else f"there are {', '.join(known)}"
    )


def configuration_error(lines: Sequence[str], remarks: Sequence[str] = ()) -> ConfigurationError:
    """One error that lists everything that is wrong, followed by remarks."""
    if len(lines) == 1 and not remarks:
        return ConfigurationError(lines[0])
    heading = f"{len(lines)} setting{'s' * (len(lines) != 1)} cannot be used:"
    return ConfigurationError("\n  - ".join([heading, *lines, *remarks]))
