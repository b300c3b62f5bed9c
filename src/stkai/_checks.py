"""Argument validation and its error messages."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from numbers import Integral, Rational, Real
from types import CodeType
from typing import Any, Final, NamedTuple, TypeVar

from ._errors import ConfigurationError, InvalidArgumentError, StkaiError

T = TypeVar("T")
N = TypeVar("N", bound=float | None)

REAL: Final = (float, int, Real)
"""The types of real numbers; the concrete ones come first, because checking an abstract one is slow."""

_MAX_FLOAT: Final = sys.float_info.max
"""The highest number: excludes infinity, NaN, and integers that do not fit into a float."""


class Numbers(NamedTuple):
    """The finite numbers, no bools, that an argument accepts: at least `low`, or `above` it. `words` describes them."""

    words: str
    low: float = 0.0
    high: float = _MAX_FLOAT
    above: bool = False
    whole: bool = False

    def accept(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low < value <= self.high if self.above else self.low <= value <= self.high


POSITIVE: Final = Numbers("a positive, finite number", above=True)
AT_LEAST_ZERO: Final = Numbers("a finite number of at least 0")
SECONDS: Final = Numbers("a non-negative number of seconds")
POSITIVE_SECONDS: Final = Numbers("a positive number of seconds", above=True)
COUNT: Final = Numbers("a non-negative whole number", whole=True)
POSITIVE_COUNT: Final = Numbers("a positive whole number", low=1, whole=True)
SAFE_RANGE: Final = Numbers("between 1e-9 and 1e20", low=1e-9, high=1e20)
"""The range in which no rate overflows or is 0."""

FRACTION: Final = Numbers("a number above 0 and at most 1", high=1, above=True)
STATUS: Final = Numbers("a status code from 100 to 599", low=100, high=599, whole=True)


def check_number(
    name: str, value: N, allowed: Numbers, hint: str = "", *, error: type[StkaiError] = ConfigurationError
) -> N:
    """The value of the argument `name`, as an int or a float, if it is one of the allowed numbers.

    The error for others says "name must be ..., not value"; the hint follows "...".
    """
    number: N = _plain(value)
    if not allowed.accept(number):
        raise error(f"{name} must be {allowed.words}{hint}, not {_shown(value)}")
    return number


def _plain(value: Any) -> Any:
    """Convert a number of another type, such as NumPy's, to int or float; keep fractions and other values unchanged."""
    if type(value) in {int, float, bool} or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return value if isinstance(value, Rational) else float(value)  # A fraction may not fit into a float.


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")


def check_choice(
    name: str, value: object, *allowed: object, error: type[StkaiError] = ConfigurationError
) -> None:
    if value not in allowed:
        choices = [repr(each) for each in allowed]
        words = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
        raise error(f"{name} must be {words}, not {value!r}")


def is_async(function: object) -> bool:
    """Whether it is a coroutine function, or an object with such a `__call__`.

    Mocks do not count, although `iscoroutinefunction` accepts them.
    """
    return isinstance(getattr(function, "__code__", None), CodeType | None) and (
        iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)
    )


@contextmanager
def argument_errors() -> Iterator[None]:
    """Raise configuration errors as AssertionErrors, as in the API reference; both are ValueErrors."""
    try:
        yield
    except ConfigurationError as error:
        raise InvalidArgumentError(*error.args) from error


HTTP_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""The pattern of the names of headers and methods: tokens of RFC 9110, section 5.6.2."""


def is_http_name(text: object) -> bool:
    """Whether it is a string that can be the name of a header."""
    return isinstance(text, str) and re.fullmatch(HTTP_NAME, text) is not None


_TAKEN: Final = (
    "accept.*|.*authorization|connection|content-.*|cookie|host|te|trailer|transfer-.*|upgrade|user-agent"
)
"""Headers that httpx or a layer sends for another purpose."""


def is_unlikely_name(name: str) -> bool:
    """Whether a name begins with a quote, as `docker run --env-file` keeps them, or is a flag such as true."""
    return name[:1] in {"'", '"'} or name.lower() in {"true", "false", "yes", "no", "on", "off"}


def can_carry_key(header: object) -> bool:
    """Whether it is the name of a header that can carry an idempotency key."""
    return (
        is_http_name(header)
        and not is_unlikely_name(name := str(header))
        and not re.fullmatch(_TAKEN, name.lower())
    )


def is_method_name(text: object) -> bool:
    """Whether it can be the name of a method. Wildcards such as ALL are not: a limiter for them would limit nothing."""
    return (
        is_http_name(text)
        and not is_unlikely_name(name := str(text))
        and name.upper() not in {"*", "ALL", "ANY"}
    )


def safe_repr(show: Callable[[T], str]) -> Callable[[T], str]:
    """Let `__repr__` work for an object whose constructor raised: traceback formatters call it on `self`."""

    @wraps(show)
    def shown(thing: T) -> str:
        try:
            return show(thing)
        except AttributeError:
            return f"<{type(thing).__name__}, not fully constructed>"

    return shown


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _MAX_FLOAT:
        return "an integer that does not fit into a float"  # Python refuses to print very long ones.
    return repr(value)
