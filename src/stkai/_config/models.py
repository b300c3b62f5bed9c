"""The settings as pydantic models: their fields, defaults and allowed values. They read no environment.

The description of a field says what it allows, in words that complete "it must be ...": the errors quote it. This
module imports pydantic, so it is imported on first use.
"""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from .._urls import PROXIES, absolute_url, is_origin, show_origin
from .messages import configuration_error, problems
from .names import CLIENT_AUTH, DEFAULT_REFRESH_MARGIN, DEFAULT_TOKEN_URL
from .paths import existing_path

_STORES = ("file", "redis", "rediss", "unix")
_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off"}


def _not_bool(value: Any) -> Any:
    # A bool is an int to Python, and so to pydantic; "max_requests": True is a slip, not a 1.
    return str(value) if isinstance(value, bool) else value


def none_from_word(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() in {"none", "null", "unlimited"}:
        return None
    return value


def _listed(value: Any) -> Any:
    """One item, several separated by commas, or a JSON list: a variable can only hold text."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def _flag_or_path(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        return word in _YES if word in _YES | _NO else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _existing(value: bool | str) -> bool | str:
    return value if isinstance(value, bool) else existing_path(value)


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _name(value: str) -> str:
    if not value.strip():
        raise ValueError
    return value


def _store(value: Any) -> Any:
    """None, "file", a URL of a known scheme, or an object that can lease permits: a `stkai.stores.Store`."""
    if isinstance(value, str):
        value = none_from_word(value)
        scheme, separator, _ = (value or "").partition("://")
        known = value in (None, "file") or (separator and scheme.lower() in _STORES)
    else:
        known = value is None or (callable(getattr(value, "lease", None)) and not isinstance(value, type))
    if not known:
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
_OrNone = BeforeValidator(none_from_word)

_SECONDS = "a number of seconds, 0 or more"
_SOME_SECONDS = "a number of seconds, more than 0"
_COUNT = "a whole number, 0 or more"
_POSITIVE = "a whole number, 1 or more"
_SHARE = "a share, above 0 and at most 1, or 'none'"
_SMALLER_SHARE = "a share, above 0 and below 1, or 'none'"
_TEXT = "text that is not empty"

_Flag = Annotated[bool, Field(description="true or false")]
# White space around them is never meant: it is the line break at the end of a file, or what a shell has left.
_Text = Annotated[str, BeforeValidator(_stripped), Field(min_length=1)]
_Secret = Annotated[SecretStr, BeforeValidator(_stripped), Field(min_length=1)]
_Count = Annotated[int, _Number, Field(ge=0, description=_COUNT)]
_Positive = Annotated[int, _Number, Field(ge=1, description=_POSITIVE)]
_Seconds = Annotated[float, _Number, Field(ge=0, description=_SECONDS)]
_SomeSeconds = Annotated[float, _Number, Field(gt=0, description=_SOME_SECONDS)]
_Share = Annotated[float, _Number, Field(gt=0, le=1)]
_SmallerShare = Annotated[float, _Number, Field(gt=0, lt=1)]
_Status = Annotated[int, _Number, Field(ge=100, le=599)]
_TokenAddress = Annotated[str, AfterValidator(_token_address)]
_ProxyAddress = Annotated[str, AfterValidator(_proxy_address)]
_Origin = Annotated[str, AfterValidator(_origin)]
_Origins = Annotated[tuple[_Origin, ...], Field(min_length=1), AfterValidator(_distinct)]
# A token of RFC 9110, section 5.6.2.
_HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    if not TYPE_CHECKING:  # so that type checkers keep the signature which the fields give

        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                lines = problems(type(self), values, error, f"{type(self).__name__}.{{}}".format)
                raise configuration_error(lines) from error


class AuthConfig(_Section):
    """How to get an access token, and which origins may see it.

    White space around the client id and the secret is removed.
    """

    client_id: Annotated[_Text | None, Field(description=_TEXT)] = None
    client_secret: Annotated[_Secret | None, Field(description=_TEXT)] = None
    token_url: Annotated[
        _TokenAddress, Field(description="a URL, http:// or https://, without a user name or password")
    ] = DEFAULT_TOKEN_URL
    origins: Annotated[
        _Origins | None,
        BeforeValidator(_listed),
        _OrNone,
        Field(description="origins (https://host or https://host:port, without a path), separated by commas"),
    ] = None
    scope: Annotated[_Text | None, _OrNone, Field(description=f"{_TEXT}, or 'none'")] = None
    audience: Annotated[_Text | None, _OrNone, Field(description=f"{_TEXT}, or 'none'")] = None
    client_auth: Annotated[
        Literal["body", "basic"], Field(description=" or ".join(map(repr, CLIENT_AUTH)))
    ] = "body"
    refresh_margin: _Seconds = DEFAULT_REFRESH_MARGIN
    allow_http: _Flag = False

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.client_id is None) != (self.client_secret is None):
            there, missing = ("ID", "SECRET") if self.client_secret is None else ("SECRET", "ID")
            raise ValueError(
                f"STKAI_AUTH_CLIENT_{missing} is missing, and STKAI_AUTH_CLIENT_{there} is of no use without it:"
                " set both or neither, there or by configure(auth={'client_id': ..., 'client_secret': ...})"
            )
        return self

    def has_credentials(self) -> bool:
        """Whether there are a client id and a secret."""
        return self.client_id is not None and self.client_secret is not None


class RateLimitConfig(_Section):
    """How many requests may be sent in a time window of seconds, and with whom that quota is shared.

    `min_rate_floor`, `penalty_factor` and `recovery_factor` are for the strategy `adaptive`. It finds the quota by
    itself unless `max_requests` is given; see `quota`.
    """

    enabled: _Flag = False
    strategy: Annotated[
        Literal["token_bucket", "adaptive"], Field(description="'token_bucket' or 'adaptive'")
    ] = "token_bucket"
    max_requests: Annotated[_Positive | None, Field(description=_POSITIVE)] = 100
    time_window: Annotated[_SomeSeconds | None, Field(description=_SOME_SECONDS)] = 60.0
    max_wait_time: Annotated[
        _SomeSeconds | None, _OrNone, Field(description=f"{_SOME_SECONDS}, or 'unlimited'")
    ] = None
    min_rate_floor: Annotated[_Share | None, _OrNone, Field(description=_SHARE)] = None
    penalty_factor: Annotated[_SmallerShare | None, _OrNone, Field(description=_SMALLER_SHARE)] = None
    recovery_factor: Annotated[_Share | None, _OrNone, Field(description=_SHARE)] = None
    share: Annotated[
        Annotated[str, Field(strict=True), AfterValidator(_name)] | None,
        Field(description="the name of a share: text that is not empty"),
    ] = None
    store: Annotated[
        Any,
        AfterValidator(_store),
        Field(
            description="'file', a URL (file:///dir, redis://, rediss:// or unix://), or a stkai.stores.Store",
            repr=False,
        ),  # may contain a password
    ] = None
    store_timeout: _SomeSeconds = 0.25

    @model_validator(mode="after")
    def _numbers_and_names(self) -> Self:
        if self.strategy == "token_bucket" and (self.max_requests is None or self.time_window is None):
            raise ValueError(
                "a token bucket needs max_requests and time_window (STKAI_RATE_LIMIT_MAX_REQUESTS and"
                " STKAI_RATE_LIMIT_TIME_WINDOW); only the strategy 'adaptive' finds the quota by itself"
            )
        if self.store is not None and self.share is None:
            raise ValueError(
                "a store needs the name of a share: set share as well (STKAI_RATE_LIMIT_SHARE beside"
                " STKAI_RATE_LIMIT_STORE), the same for all who share the quota"
            )
        return self

    def quota(self) -> tuple[int | None, float | None]:
        """Requests and seconds of the quota; (None, None) where the adaptive limiter is to find it.

        It is, unless `max_requests` was given: the default number is nobody's quota.
        """
        if self.strategy == "adaptive" and (
            "max_requests" not in self.model_fields_set or not self.max_requests
        ):
            return None, None
        return self.max_requests, self.time_window

    @classmethod
    def conservative_preset(cls, max_requests: int = 20, time_window: float = 60.0) -> Self:
        """Plain AIMD that halves its rate after a 429 and regains it slowly: for many processes with one quota."""
        return cls._preset(max_requests, time_window, 120.0, floor=0.05, penalty=0.5, recovery=0.02)

    @classmethod
    def balanced_preset(cls, max_requests: int = 40, time_window: float = 60.0) -> Self:
        """Plain AIMD with moderate cuts: for two to five processes that share a quota."""
        return cls._preset(max_requests, time_window, 45.0, floor=0.1, penalty=0.3, recovery=0.05)

    @classmethod
    def optimistic_preset(cls, max_requests: int = 80, time_window: float = 60.0) -> Self:
        """Plain AIMD with small cuts and a high floor: for one process that has most of a quota to itself."""
        return cls._preset(max_requests, time_window, 20.0, floor=0.3, penalty=0.15, recovery=0.1)

    @classmethod
    def _preset(
        cls,
        max_requests: int,
        time_window: float,
        wait: float,
        *,
        floor: float,
        penalty: float,
        recovery: float,
    ) -> Self:
        return cls(
            enabled=True,
            strategy="adaptive",
            max_requests=max_requests,
            time_window=time_window,
            max_wait_time=wait,
            min_rate_floor=floor,
            penalty_factor=penalty,
            recovery_factor=recovery,
        )


class RetryConfig(_Section):
    """When a failed request is sent again; times in seconds."""

    enabled: _Flag = True
    max_retries: _Count = 3
    initial_delay: _Seconds = 0.5
    max_delay: _SomeSeconds = 60.0
    retry_on_status_codes: Annotated[
        tuple[_Status, ...],
        BeforeValidator(_listed),
        Field(description="status codes from 100 to 599, separated by commas"),
    ] = (408, 429, 500, 502, 503, 504)
    max_retry_after: _Seconds = 60.0
    deadline: Annotated[_SomeSeconds | None, _OrNone, Field(description=f"{_SOME_SECONDS}, or 'none'")] = None
    retry_unknown: _Flag = True
    retry_timeouts: _Flag = False
    idempotency_header: Annotated[
        _HeaderName | None, _OrNone, Field(description="a header's name, such as Idempotency-Key, or 'none'")
    ] = None


class HttpConfig(_Section):
    """The wire: certificates, connections and the proxy."""

    verify: Annotated[
        bool | str,
        BeforeValidator(_flag_or_path),
        AfterValidator(_existing),
        Field(description="true, false, or the path of a CA bundle that exists"),
    ] = True
    max_connections: Annotated[
        _Positive | None, _OrNone, Field(description=f"{_POSITIVE}, or 'unlimited'")
    ] = 100
    max_keepalive_connections: Annotated[
        _Count | None, _OrNone, Field(description=f"{_COUNT}, or 'unlimited'")
    ] = 20
    keepalive_expiry: Annotated[
        _Seconds | None, _OrNone, Field(description=f"{_SECONDS}, or 'unlimited'")
    ] = 5.0
    http2: _Flag = False
    proxy: Annotated[
        _ProxyAddress | None,
        _OrNone,
        Field(
            description="a URL, http://, https:// or socks5://, or 'none'", repr=False
        ),  # may contain a password
    ] = None
    trust_env: _Flag = True


class Settings(_Section):
    """All settings, as `STKAI.config` returns them. One that you make yourself reads no environment."""

    auth: Annotated[AuthConfig, Field(description="an AuthConfig")] = AuthConfig()
    rate_limit: Annotated[RateLimitConfig, Field(description="a RateLimitConfig")] = RateLimitConfig()
    retry: Annotated[RetryConfig, Field(description="a RetryConfig")] = RetryConfig()
    http: Annotated[HttpConfig, Field(description="an HttpConfig")] = HttpConfig()
