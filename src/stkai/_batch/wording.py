"""How failures are reported: a code for programs, a message for people."""

from typing import Any

import httpx

from .json_text import Part
from .quick_commands import FAILURE, status_of

_LONGEST = 500


def failure_of(
    error: Exception | None, response: httpx.Response | None, body: Part | None
) -> tuple[str, str]:
    """The code and the message of a failed call."""
    if response is None or response.status_code < 400:
        if response is not None and status_of(response) == FAILURE:
            return "execution_failed", "the execution of the quick command ended with FAILURE"
        return type(error).__name__, str(error) or f"{type(error).__name__}, without a message"
    said = _said(None if body is None else body.value)
    reason = response.reason_phrase
    message = f"the server answered {response.status_code}{f' {reason}' if reason else ''}{f': {said}' if said else ''}"
    return f"http_{response.status_code}", message


def refusal_of_token(what: str, *, no_auth: bool) -> str:
    """The message for when the server or the token endpoint rejects the credentials."""
    way = "leave out --no-auth, and set" if no_auth else "check"
    return f"{what}: {way} STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET, or STKAI_AUTH_TOKEN; nothing more is sent"


def _said(body: Any) -> str:
    """The message in an error body, where most servers put it."""
    for name in ("error", "message", "detail", "details"):
        body = body.get(name, body) if isinstance(body, dict) else body
    return body[:_LONGEST] if isinstance(body, str) else ""
