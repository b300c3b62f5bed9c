"""Checks the arguments of the adaptive limiter."""

from collections.abc import Mapping

from ..._errors import ConfigurationError


def require_parts(parts: Mapping[str, float | None]) -> None:
    """Check that each value that is given is a share.

    Raises:
        ConfigurationError: one is not a number in (0, 1].
    """
    for name, value in parts.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigurationError(f"{name} must be a number in (0, 1], not {value!r}")


def require_no_numbers(
    max_requests: float | None, time_window: float | None, options: Mapping[str, object]
) -> None:
    """Refuse half a quota, and options that need a quota.

    Raises:
        ConfigurationError: one of the numbers is missing, or one of the options is given.
    """
    if max_requests is not None or time_window is not None:
        missing = "time_window" if time_window is None else "max_requests"
        raise ConfigurationError(
            f"{missing} is missing: give max_requests and time_window, or neither to let the limiter find the quota"
        )
    for name, given in options.items():
        if given is not None:
            raise ConfigurationError(f"{name} needs a quota: give max_requests and time_window as well")
