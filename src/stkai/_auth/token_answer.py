"""What a token endpoint answered (RFC 6749, section 5): a token and how long it lives, or what is wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import httpx

from ..transports._auth.provider import is_sendable

_LIFE: Final = 1199.0
"""Seconds that a token is assumed to live if the endpoint does not say: the lifetime of StackSpot's tokens."""

_LONGEST_LIFE: Final = 86_400.0
"""Seconds; a token is renewed at least once a day, whatever the endpoint says."""

_MEMORY: Final = 30.0
"""Seconds for which a refusal is remembered: endpoints lock accounts that try a wrong secret too often."""

_LONGEST_PAUSE: Final = 3600.0
"""Seconds; no answer stops a program for longer."""

_REFUSALS: Final = frozenset({400, 401, 403})
_REFUSED_CLIENT: Final = frozenset(
    {"invalid_client", "unauthorized_client", "invalid_grant", "access_denied"}
)
"""The statuses and error codes with which an endpoint refuses the client itself (RFC 6749, section 5.2)."""


class Pause(NamedTuple):
    """For how many seconds an endpoint is not asked again, and why, in words."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """An answer of the endpoint.

    Attributes:
        status: its status code.
        content: its JSON object; empty if it is something else.
        asked_at: when the endpoint was asked, in seconds of the clock.
        retry_after: seconds for which it asks to be left alone, or None.
    """

    status: int
    content: dict[str, Any] = field(repr=False)
    asked_at: float
    retry_after: float | None

    @property
    def token(self) -> str:
        """The token, if there is no problem."""
        token: str = self.content["access_token"]
        return token

    @property
    def lifetime(self) -> float:
        """Seconds that the token lives, from when it was asked for."""
        value = self.content.get("expires_in")
        try:
            seconds = math.nan if isinstance(value, bool) else float(value or 0)
        except (TypeError, ValueError, OverflowError):
            return _LIFE
        return min(seconds, _LONGEST_LIFE) if seconds > 0 else _LIFE

    def problem(self, words: Callable[[object], str]) -> str | None:
        """What is wrong with it; None if it has a token. `words` makes the endpoint's own words safe to show."""
        said = f"answered {self.status}"
        if 300 <= self.status < 400:
            return f"{said}, a redirect, which is not followed because it would carry the secret: correct token_url"
        if not 200 <= self.status < 300:
            reasons = [words(self.content.get(name)) for name in ("error", "error_description")]
            advice = "; check client_id and client_secret" if self.status == httpx.codes.UNAUTHORIZED else ""
            return ": ".join([said, *filter(None, reasons)]) + advice
        if not self.content:
            return f"{said} with something that is not a JSON object: check token_url"
        token = self.content.get("access_token")
        is_usable = isinstance(token, str) and is_sendable(token)
        return None if is_usable else f"{said} without a usable access_token"

    def pause(self) -> Pause | None:
        """How long to leave the endpoint alone after an answer with a problem; None if it may be asked again."""
        if self._refuses_client():
            return Pause(_MEMORY, "too many failed sign-ins may lock the account")
        if self.retry_after:
            return Pause(min(self.retry_after, _LONGEST_PAUSE), "it asked for this")
        return None

    def _refuses_client(self) -> bool:
        """Whether it refuses the credentials, so that asking again would not help."""
        code = self.content.get("error")
        if code is None:
            return self.status == httpx.codes.UNAUTHORIZED
        return self.status in _REFUSALS and isinstance(code, str) and code in _REFUSED_CLIENT
