"""The settings as pydantic models: fields, defaults and allowed values. They do not read the environment.

This module imports pydantic, so it is only imported on first use.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from .._checks import SAFE_RANGE, check_number
from .._errors import ConfigurationError
from ..stores import DEFAULT_TIMEOUT
from ..transports._limits.saved_rate import check_warm_start
from ..transports._retry.policy import RETRY_ON_STATUS_CODES, RetryPolicy
from . import fields
from .names import DEFAULT_QUOTA, DEFAULT_REFRESH_MARGIN, DEFAULT_TOKEN_URL, variable


class AuthConfig(fields.Section):
    """Where the access token comes from, and which origins may see it.

    It is either `token`, which is never renewed, or fetched with `client_id` and `client_secret`. White space around
    the three is removed.
    """

    token: fields.AccessToken | None = None
    client_id: fields.Text | None = None
    client_secret: fields.SecretText | None = None
    token_url: fields.TokenAddress = DEFAULT_TOKEN_URL
    origins: fields.OrNone[fields.Origins] = None
    scope: fields.OrNone[fields.Text] = None
    audience: fields.OrNone[fields.Text] = None
    client_auth: Literal["body", "basic"] = "body"
    refresh_margin: fields.Seconds = DEFAULT_REFRESH_MARGIN
    allow_http: fields.Flag = False

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.client_id is None) != (self.client_secret is None):
            there, missing = ("ID", "SECRET") if self.client_secret is None else ("SECRET", "ID")
            raise ValueError(
                f"STKAI_AUTH_CLIENT_{missing} is missing, but STKAI_AUTH_CLIENT_{there} is set:"
                " set both or neither, as variables or with configure(auth={'client_id': ..., 'client_secret': ...})"
            )
        if self.token is not None and self.client_id is not None:
            raise ValueError(
                "STKAI_AUTH_TOKEN is set, and so are STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET, but only one"
                " can sign the requests: unset the token or the credentials, or overrule the environment with"
                " configure(auth={'token': None}) or configure(auth={'client_id': None, 'client_secret': None})"
            )
        return self

    def has_credentials(self) -> bool:
        """Whether there are a client id and a secret."""
        return self.client_id is not None and self.client_secret is not None


class RateLimitConfig(fields.Section):
    """How many requests may be sent in a time window (in seconds), and who shares that quota.

    `methods` are those that count (None: all). `max_cost` also limits the units per time window, counted by `cost`
    (tokens of language models, the default where `max_cost` is given), and `in_flight` the requests on their way at
    once.

    `min_rate_floor`, `penalty_factor`, `recovery_factor` and `warm_start` are for the strategy `adaptive`, which finds
    the quota of requests by itself unless `max_requests`, a share, the floor or a factor is given.
    """

    enabled: fields.Flag = False
    strategy: Literal["token_bucket", "adaptive"] = "token_bucket"
    max_requests: fields.OrNone[fields.Positive] = DEFAULT_QUOTA[0]
    time_window: fields.SomeSeconds | None = DEFAULT_QUOTA[1]
    max_wait_time: fields.OrUnlimited[fields.SomeSeconds] = None
    methods: fields.OrNone[fields.Methods] = None
    max_cost: fields.OrNone[fields.SomeCost] = None
    cost: Annotated[fields.OrNone[Literal["llm-tokens"]], Field(description="'llm-tokens'")] = None
    in_flight: fields.OrNone[fields.Positive] = None
    min_rate_floor: fields.OrNone[fields.Fraction] = None
    penalty_factor: fields.OrNone[fields.Fraction] = None
    recovery_factor: fields.OrNone[fields.Fraction] = None
    share: fields.Name | None = None
    store: fields.StorePlace = None
    store_timeout: fields.SomeSeconds = DEFAULT_TIMEOUT
    warm_start: fields.Name | None = None

    @model_validator(mode="after")
    def _numbers_and_names(self) -> Self:
        has_quota = self.time_window is not None and (self.max_requests or self.max_cost) is not None
        if self.strategy == "token_bucket" and not has_quota:
            raise ValueError(
                "a token bucket needs time_window and max_requests or max_cost (STKAI_RATE_LIMIT_TIME_WINDOW,"
                " STKAI_RATE_LIMIT_MAX_REQUESTS and STKAI_RATE_LIMIT_MAX_COST); only the strategy 'adaptive' finds the"
                " quota by itself"
            )
        for name in ("max_requests", "time_window", "max_cost"):
            if getattr(self, name) is not None:
                check_number(f"{name} ({variable('rate_limit', name)})", getattr(self, name), SAFE_RANGE)
        if self.max_cost is not None:
            vars(self)["cost"] = "llm-tokens"  # The only one that settings can name.
        elif self.cost is not None and self.enabled:
            raise ValueError(
                "cost needs max_cost, the units that may be spent in a time window (STKAI_RATE_LIMIT_MAX_COST beside"
                " STKAI_RATE_LIMIT_COST)"
            )
        if self.store is not None and self.share is None:
            raise ValueError(
                "a store needs the name of a share: set share as well (STKAI_RATE_LIMIT_SHARE beside"
                " STKAI_RATE_LIMIT_STORE), the same for all who share the quota"
            )
        if self.warm_start is not None:
            is_plain = self.penalty_factor is not None or self.recovery_factor is not None
            try:
                check_warm_start(self.warm_start, self.share, plain=is_plain)
            except ConfigurationError as error:
                raise ValueError(f"{variable('rate_limit', 'warm_start')}: {error}") from None
        return self

    def quota(self) -> tuple[int | None, float | None]:
        """Requests and seconds of the quota; (None, None) if the adaptive limiter has to find it.

        It has to unless `max_requests`, or another field that needs a quota, was given: a default is not a real quota.
        Only the requests are None if the limit is in units of cost alone.
        """
        is_given = self.max_requests is not None and "max_requests" in self.model_fields_set
        parts = (self.min_rate_floor, self.penalty_factor, self.recovery_factor)
        needs_none = all(each is None for each in (self.share, *parts))
        if self.strategy == "adaptive" and not is_given and needs_none:
            return None, None if self.max_cost is None else self.time_window or DEFAULT_QUOTA[1]
        if self.strategy == "token_bucket":
            return self.max_requests, self.time_window
        return self.max_requests or DEFAULT_QUOTA[0], self.time_window or DEFAULT_QUOTA[1]

    def without_effect(self) -> str | None:
        """The warning about a time window without requests, or about settings of a limiter that is off unawares."""
        given = self.model_fields_set
        if self.enabled and "time_window" in given and self.time_window and self.quota() == (None, None):
            return (
                "the adaptive limiter finds the quota by itself, so STKAI_RATE_LIMIT_TIME_WINDOW has no effect; set"
                " STKAI_RATE_LIMIT_MAX_REQUESTS as well, or neither"
            )
        if self.enabled or "enabled" in given or not given:
            return None
        names = ", ".join(sorted(variable("rate_limit", name) for name in given))
        have = "has" if len(given) == 1 else "have"
        return (
            f"the limiter is off, so {names} {have} no effect; turn it on with STKAI_RATE_LIMIT_ENABLED=true"
        )

    @classmethod
    def conservative_preset(cls, max_requests: int = 20, time_window: float = 60.0) -> Self:
        """Plain AIMD that halves its rate after a 429 and regains it slowly: for many processes on one quota."""
        numbers = {"min_rate_floor": 0.05, "penalty_factor": 0.5, "recovery_factor": 0.02}
        return cls._preset(max_requests, time_window, max_wait_time=120.0, **numbers)

    @classmethod
    def balanced_preset(cls, max_requests: int = 40, time_window: float = 60.0) -> Self:
        """Plain AIMD with moderate cuts: for two to five processes that share a quota."""
        numbers = {"min_rate_floor": 0.1, "penalty_factor": 0.3, "recovery_factor": 0.05}
        return cls._preset(max_requests, time_window, max_wait_time=45.0, **numbers)

    @classmethod
    def optimistic_preset(cls, max_requests: int = 80, time_window: float = 60.0) -> Self:
        """Plain AIMD with small cuts and a high floor: for one process that has most of a quota to itself."""
        numbers = {"min_rate_floor": 0.3, "penalty_factor": 0.15, "recovery_factor": 0.1}
        return cls._preset(max_requests, time_window, max_wait_time=20.0, **numbers)

    @classmethod
    def _preset(cls, max_requests: int, time_window: float, **numbers: Any) -> Self:
        return cls(
            enabled=True, strategy="adaptive", max_requests=max_requests, time_window=time_window, **numbers
        )


_RETRY: Final = RetryPolicy()  # The settings have the policy's defaults.


class RetryConfig(fields.Section):
    """When a failed request is sent again; times in seconds."""

    enabled: fields.Flag = True
    max_retries: fields.Count = _RETRY.max_retries
    initial_delay: fields.Seconds = _RETRY.initial_delay
    max_delay: fields.Seconds = _RETRY.max_delay
    retry_on_status_codes: fields.Statuses = RETRY_ON_STATUS_CODES
    max_retry_after: fields.Seconds = _RETRY.max_retry_after
    deadline: fields.OrNone[fields.SomeSeconds] = None
    retry_unknown: fields.Flag = _RETRY.retry_unknown
    retry_timeouts: fields.Flag = _RETRY.retry_timeouts
    trust_connect_errors: fields.Flag = _RETRY.trust_connect_errors
    idempotency_header: fields.OrNone[fields.KeyHeader] = None

    def policy(self) -> RetryPolicy | None:
        """The retry policy with these values; None if retries are off."""
        return RetryPolicy(**self.model_dump(exclude={"enabled"})) if self.enabled else None


class HttpConfig(fields.Section):
    """The wire: certificates, connections and the proxy."""

    verify: fields.Verification = True
    max_connections: fields.OrUnlimited[fields.Positive] = 100
    max_keepalive_connections: fields.OrUnlimited[fields.Count] = 20
    keepalive_expiry: fields.OrUnlimited[fields.Seconds] = 5.0
    http2: fields.Flag = False
    proxy: fields.OrNone[fields.ProxyAddress] = None
    trust_env: fields.Flag = True


class Settings(fields.Section):
    """All settings, as `STKAI.config` returns them. An instance that you create does not read the environment."""

    auth: Annotated[AuthConfig, Field(description="an AuthConfig")] = AuthConfig()
    rate_limit: Annotated[RateLimitConfig, Field(description="a RateLimitConfig")] = RateLimitConfig()
    retry: Annotated[RetryConfig, Field(description="a RetryConfig")] = RetryConfig()
    http: Annotated[HttpConfig, Field(description="an HttpConfig")] = HttpConfig()
