"""Labels for metrics and spans, with so few distinct values that each can have its own time series."""

import re
from typing import Final

OTHER: Final = "_OTHER"
"""What the semantic conventions use in place of an unknown value."""

DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
"""Seconds: bounds of buckets. Those of the semantic conventions end at 10 s, where the answers of models begin."""

_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_MOST: Final = 200
"""Distinct values of a label; a program that talks to more hosts puts the rest into one series."""

_CAUSE: Final = re.compile(r"\d{3}|[A-Za-z_]\w*(?=:|$)")


class Bounded:
    """Lets through a limited number of distinct words, and returns `_OTHER` for the rest."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, word: str) -> str:
        if word in self._known:
            return word
        if len(self._known) >= _MOST:
            return OTHER
        self._known.add(word)
        return word


def method_of(method: str) -> str:
    """The HTTP method, if it is a usual one."""
    return method if method in _METHODS else OTHER


def error_type(status: int | None, error: str | None) -> str | None:
    """What went wrong: the name of an error's class, or a status of 400 or above."""
    if error is not None:
        return error
    return str(status) if status is not None and status >= 400 else None


def cause_of(cause: str) -> str:
    """The status code or the error name at the start of a retry's cause."""
    found = _CAUSE.match(cause)
    return found.group() if found else OTHER
