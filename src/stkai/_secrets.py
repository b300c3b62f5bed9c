"""Objects that refuse to be pickled, and values that stay hidden from reprs and variables in tracebacks."""

from collections.abc import Collection, Mapping
from typing import Any, Final

MASK: Final = "********"
"""What is shown in place of a secret."""


class StaysInProcess:
    """Base class of objects that refuse to be pickled; a copy of one is the object itself."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled, since it belongs to its process: make the client and its limiter"
            " in each process, with share= to keep to one quota together"
        )

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self


class HoldsSecret(StaysInProcess):
    """Base class of objects that hold a secret."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            f"{type(self).__name__} holds a secret, which must not be written into a pickle: make another one in the"
            " process that needs it, from its own settings"
        )


class Secret(HoldsSecret):
    """A value that shows only a mask. Wrap it before anything can fail: traceback formatters show variables."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def reveal(self) -> Any:
        """The value itself. Keep it out of variables."""
        return self._value

    def is_text(self) -> bool:
        """Whether it is a string that is not blank and can be sent as UTF-8."""
        if not isinstance(self._value, str) or not self._value.strip():
            return False
        try:
            self._value.encode()
        except UnicodeEncodeError:  # In the environment, bytes that are not text become surrogates.
            return False
        return True

    def hint(self) -> str:
        """What to pass instead of a value from the settings, whose secrets are pydantic's; for messages."""
        is_wrapped = hasattr(self._value, "get_secret_value")
        return ", not a SecretStr: pass its .get_secret_value()" if is_wrapped else ""

    def __repr__(self) -> str:
        return MASK


class HiddenBytes(bytes):
    """Bytes that show only a mask, for a library that logs what it is given."""

    def __repr__(self) -> str:
        return MASK


def reveal(value: Any) -> Any:
    """The value inside a `Secret`; any other value is returned as it is."""
    return value.reveal() if isinstance(value, Secret) else value


def sealed(values: Any) -> Any:
    """A setting, or a dict of settings, with text, bytes, dicts and lists wrapped, since they may be secret."""
    if isinstance(values, Mapping):
        return {
            name: Secret(value) if isinstance(value, Collection) else value for name, value in values.items()
        }
    return Secret(values) if isinstance(values, Collection) else values
