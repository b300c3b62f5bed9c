"""What sections of settings are made of: their base class, and types of fields with phrases for what they allow."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .. import _checks
from .._checks import TOKEN
from .._secrets import HoldsSecret, reveal, sealed
from .._urls import PROXIES, absolute_url, is_origin, show_origin
from ..stores._choose import problem_of
from ..transports._auth.provider import is_sendable
from .names import configuration_error, masked, problems

_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off"}


def _not_bool(value: Any) -> Any:
    # A bool is an int to Python, and so to pydantic; "max_requests": True is a slip, not a 1.
    return str(value) if isinstance(value, bool) else value


def none_from_word(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() in {"none", "null", "unlimited"}:
        return None
    return value


def listed(value: Any) -> Any:
    """One item, several separated by commas, or a JSON list: a variable can only hold text."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def flag_or_path(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        return word in _YES if word in _YES | _NO else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def existing(value: bool | str) -> bool | str:
    """A flag, or the path of something that exists, with `~` expanded."""
    if isinstance(value, bool):
        return value
    try:
        expanded = Path(value).expanduser()
        found = bool(value) and expanded.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the system, or an unknown user
        raise ValueError from error
    if not found:
        raise ValueError
    return str(expanded)


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _token(value: SecretStr) -> SecretStr:
    if not is_sendable(value.get_secret_value()):
        raise ValueError
    return value


def store_place(value: Any) -> Any:
    """None, "file", a URL of a known scheme, or an object that can lease permits: a `stkai.stores.Store`."""
    value = none_from_word(value)
    can_lease = callable(getattr(value, "lease", None)) and not isinstance(value, type)
    if not can_lease and problem_of(value) is not None:
        raise ValueError
    return value


def _token_address(value: str) -> str:
    if absolute_url(value).userinfo:
        raise ValueError
    return value


def _proxy_address(value: str) -> str:
    absolute_url(value, PROXIES)
    return value


def _origin(value: str) -> str:
    url = absolute_url(value)
    if not is_origin(url):
        raise ValueError
    return show_origin(url)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


_Number = BeforeValidator(_not_bool)
OrNone = BeforeValidator(none_from_word)

SECONDS = _checks.SECONDS.words
SOME_SECONDS = _checks.SOME_SECONDS.words
COUNT = _checks.COUNT.words
POSITIVE = _checks.POSITIVE_COUNT.words
SHARE = f"{_checks.SHARE.words}, or 'none'"
SMALLER_SHARE = f"{_checks.SMALLER_SHARE.words}, or 'none'"
TEXT = "a non-empty string"
VISIBLE_ASCII = 'visible ASCII characters, without spaces and without "Bearer"'

Flag = Annotated[bool, Field(description="true or false")]
# White space around them is never intended: it is the line break at the end of a file, or comes from the shell.
Text = Annotated[str, BeforeValidator(_stripped), Field(min_length=1)]
Secret = Annotated[SecretStr, BeforeValidator(_stripped), Field(min_length=1)]
AccessToken = Annotated[SecretStr, BeforeValidator(_stripped), AfterValidator(_token)]
Count = Annotated[int, _Number, Field(ge=0, description=COUNT)]
Positive = Annotated[int, _Number, Field(ge=1, description=POSITIVE)]
Seconds = Annotated[float, _Number, Field(ge=0, description=SECONDS)]
SomeSeconds = Annotated[float, _Number, Field(gt=0, description=SOME_SECONDS)]
SomeCost = Annotated[float, _Number, Field(gt=0)]
Share = Annotated[float, _Number, Field(gt=0, le=1)]
SmallerShare = Annotated[float, _Number, Field(gt=0, lt=1)]
Status = Annotated[int, _Number, Field(ge=100, le=599)]
TokenAddress = Annotated[str, AfterValidator(_token_address)]
ProxyAddress = Annotated[str, AfterValidator(_proxy_address)]
_Method = Annotated[str, StringConstraints(pattern=f"^{TOKEN}$", to_upper=True)]
Methods = Annotated[tuple[_Method, ...], Field(min_length=1), AfterValidator(_distinct)]
_Origin = Annotated[str, AfterValidator(_origin)]
Origins = Annotated[tuple[_Origin, ...], Field(min_length=1), AfterValidator(_distinct)]
HeaderName = Annotated[str, Field(pattern=f"^{TOKEN}$")]
ShareName = Annotated[str, Field(strict=True, pattern=r"\S")]


class Section(BaseModel):
    """Base class of the sections: frozen; a bad value is a ConfigurationError that lists everything that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    if not TYPE_CHECKING:  # type checkers keep the signature that the fields define

        def __init__(self, /, **values: Any) -> None:
            values = sealed(values)
            try:
                super().__init__(**values)
            except ValidationError as error:
                lines = problems(type(self), values, error, f"{type(self).__name__}.{{}}".format)
                raise configuration_error(lines) from error

    @model_validator(mode="before")
    @classmethod
    def _revealed(cls, values: Any) -> Any:
        return {name: reveal(value) for name, value in values.items()} if isinstance(values, dict) else values

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.holds_secret():
            return HoldsSecret.__reduce_ex__(self, protocol)  # type: ignore[arg-type]
        return super().__reduce_ex__(protocol)

    def holds_secret(self) -> bool:
        """Whether a token, a secret or a password is among the values; then it refuses to be pickled."""
        return any(
            value.holds_secret()
            if isinstance(value, Section)
            else isinstance(value, SecretStr) or (isinstance(value, str) and masked(value) != value)
            for _, value in self
        )
