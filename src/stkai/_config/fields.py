"""The types of the settings' fields, and the base class of sections.

The description of a type completes the phrase "it must be ...", and is quoted in errors.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from .. import _checks
from .._checks import can_carry_key, is_method_name, is_unlikely_name
from .._errors import ConfigurationError
from .._secrets import HoldsSecret, reveal, sealed
from .._urls import PROXIES, absolute_url, is_origin, mask_credentials, show_origin
from ..stores import ALLOWED, problem_of
from ..transports._auth import is_sendable
from .names import SECRETS, as_given, configuration_error, not_a_setting


def none_from_word(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() in {"none", "null", "unlimited"}:
        return None
    return value


def _listed(value: Any) -> Any:
    """Parse one item, several separated by commas, or a JSON list: environment variables can only hold text.

    A text without items is returned as it is, and refused later; an empty list is written `[]`.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except RecursionError:
            raise ValueError from None
    return [item.strip() for item in value.split(",") if item.strip()] or value


def _existing(value: bool | str) -> bool | str:
    """A flag, or the path of something that exists, with `~` expanded."""
    if isinstance(value, bool):
        return value
    # `Path` would raise other errors for a name that is too long, and for an unknown user.
    path = os.path.expanduser(value)  # noqa: PTH111
    if not os.path.exists(path):  # noqa: PTH110
        raise ValueError
    return path


def _only_if(accepts: Callable[[Any], object]) -> AfterValidator:
    """Accept the values for which the function returns something true; it may also raise a ValueError."""

    def accepted(value: Any) -> Any:
        if not accepts(value):
            raise ValueError
        return value

    return AfterValidator(accepted)


def _within(allowed: _checks.Numbers) -> Any:
    least, more_than = (None, allowed.low) if allowed.above else (allowed.low, None)
    return Field(ge=least, gt=more_than, le=allowed.high, description=allowed.words)


def _origin(value: str) -> str:
    url = absolute_url(value)
    if not is_origin(url):
        raise ValueError
    return show_origin(url)


class _Url(str):
    """A URL that shows no password where a repr or JSON may end up in a log."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(mask_credentials(self))


class _Or(NamedTuple):
    """The word for None, where a field allows it."""

    word: str


if TYPE_CHECKING:
    _Hidden = Any  # So that type checkers accept text, which becomes a SecretStr.
else:
    _Hidden = SecretStr

T = TypeVar("T")
OrNone = Annotated[T | None, BeforeValidator(none_from_word), _Or("none")]
OrUnlimited = Annotated[T | None, BeforeValidator(none_from_word), _Or("unlimited")]

_Masked = (
    AfterValidator(lambda value: _Url(value) if isinstance(value, str) else value),
    PlainSerializer(lambda value: mask_credentials(str(value)), when_used="json-unless-none"),
)

# To Python, and so to pydantic, a bool is an int; "max_requests": True is a mistake, not a 1.
_Number = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
# White space around a value is never intended; it may be the line break at the end of a file.
_Stripped = BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)
_Path = BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)
_Listed = BeforeValidator(_listed)
_Distinct = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
_NotEmpty = Field(min_length=1, description="a non-empty string")
_Method = Annotated[str, StringConstraints(to_upper=True), _only_if(is_method_name)]
_Origin = Annotated[str, AfterValidator(_origin)]
_Status = Annotated[int, _Number, _within(_checks.STATUS)]

Flag = Annotated[bool, Field(description="true or false")]
Count = Annotated[int, _Number, _within(_checks.COUNT)]
Positive = Annotated[int, _Number, _within(_checks.POSITIVE_COUNT)]
SomeCost = Annotated[float, _Number, _within(_checks.POSITIVE)]
Seconds = Annotated[float, _Number, _within(_checks.SECONDS)]
SomeSeconds = Annotated[float, _Number, _within(_checks.POSITIVE_SECONDS)]
Fraction = Annotated[float, _Number, _within(_checks.FRACTION)]
Text = Annotated[str, _Stripped, _NotEmpty]
SecretText = Annotated[_Hidden, _Stripped, _NotEmpty]
AccessToken = Annotated[
    _Hidden,
    _Stripped,
    # `docker run --env-file` keeps the quotes that a shell removes.
    _only_if(lambda token: is_sendable(text := token.get_secret_value()) and text[0] not in "\"'"),
    Field(description='visible ASCII characters, without spaces, enclosing quotes or "Bearer"'),
]
TokenAddress = Annotated[
    str,
    _only_if(lambda text: not absolute_url(text).userinfo),
    Field(description="a URL (http:// or https://) without a user name or password"),
]
ProxyAddress = Annotated[
    str,
    _only_if(lambda text: absolute_url(text, PROXIES)),
    *_Masked,
    Field(description="a URL (http://, https:// or socks5://)"),
]
Origins = Annotated[
    tuple[_Origin, ...],
    _Listed,
    _Distinct,
    Field(
        min_length=1,
        description="origins (https://host or https://host:port, without a path), separated by commas",
    ),
]
Methods = Annotated[
    tuple[_Method, ...],
    _Listed,
    _Distinct,
    Field(min_length=1, description="names of HTTP methods such as POST, separated by commas"),
]
Statuses = Annotated[
    tuple[_Status, ...], _Listed, Field(description="status codes from 100 to 599, separated by commas")
]
KeyHeader = Annotated[
    str,
    _only_if(can_carry_key),
    Field(description="a header name that carries nothing else, such as Idempotency-Key"),
]
Name = Annotated[
    str,
    Field(
        strict=True,
        pattern=r"\S",
        description="a name without quotes, other than true, false, yes, no, on and off",
    ),
    _only_if(lambda name: not is_unlikely_name(name)),
]
StorePlace = Annotated[
    Any,
    BeforeValidator(none_from_word),
    _only_if(lambda store: problem_of(store) is None),
    *_Masked,
    Field(description=ALLOWED),
]
Verification = Annotated[
    bool | str,
    Field(union_mode="left_to_right"),
    _Path,
    AfterValidator(_existing),
    Field(description="true, false, or the path of a CA bundle that exists"),
]


def _phrase(field: FieldInfo) -> str:
    """The phrase that completes "it must be ..." for a field."""
    of_type = (
        each.description
        for kind in get_args(field.annotation)
        for each in getattr(kind, "__metadata__", ())
        if isinstance(each, FieldInfo)
    )
    words = " or ".join(repr(word) for word in get_args(field.annotation) if isinstance(word, str))
    phrase = field.description or words or next(filter(None, of_type))
    return ", or ".join([phrase, *(repr(each.word) for each in field.metadata if isinstance(each, _Or))])


def problems(
    model: type[BaseModel],
    values: Mapping[str, Any],
    error: ValidationError,
    name: Callable[[str], str],
) -> list[str]:
    """What is wrong with these values of a model: one line per field, which `name` turns into its full name."""
    lines: dict[str, str] = {}
    for detail in error.errors():
        if not detail["loc"]:  # about several fields at once: the validator's message is complete
            return [str(detail["ctx"]["error"])]
        field = str(detail["loc"][0])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigurationError):  # about a section in a dict: its message is complete
            line = str(cause)
        elif detail["type"] == "extra_forbidden":
            line = not_a_setting(name(field), field, model.model_fields)
        else:
            given = "" if field in SECRETS else f"is {as_given(values[field])}; it "
            line = f"{name(field)} {given}must be {_phrase(model.model_fields[field])}"
        lines.setdefault(field, line)
    return list(lines.values())


class Section(BaseModel):
    """Base class of the sections: frozen; bad values raise a ConfigurationError that lists everything that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    if not TYPE_CHECKING:  # type checkers keep the signature that the fields define

        def __init__(self, /, *unnamed: Any, **values: Any) -> None:
            if unnamed:
                unnamed = ()  # One of them may be a secret, which no traceback shows.
                raise TypeError(f"{type(self).__name__} takes keyword arguments only")
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
        """Whether a value is or contains a token, a secret or a password; such a section refuses to be pickled."""
        return any(
            value.holds_secret()
            if isinstance(value, Section)
            else isinstance(value, SecretStr) or (isinstance(value, str) and mask_credentials(value) != value)
            for _, value in self
        )
