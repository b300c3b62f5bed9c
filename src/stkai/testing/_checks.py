"""Argument checks: values that cannot work are refused at once, with a message that says what can."""

import math

from .._errors import ConfigurationError


def check_seconds(name: str, seconds: float) -> None:
    """Refuse anything that is not a duration."""
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds from 0 up, not {seconds}")


def check_range(name: str, value: float, low: int, high: int | None = None) -> None:
    """Refuse a number out of range."""
    if not low <= value or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigurationError(f"{name} must be {allowed}, not {value}")


def check_choice(name: str, value: object, *allowed: object) -> None:
    """Refuse anything that is not among the choices."""
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
