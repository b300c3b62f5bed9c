"""What the standard stack is made of: from arguments and settings to layers and a wire, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx

from ._clock import Clock
from ._credentials.client_credentials import AuthProvider, create_standalone_auth
from ._errors import ConfigurationError
from ._log import logger
from ._options import UNSET, Unset
from .transports._adaptive.limiter import AimdLimiter
from .transports._adaptive.transport import adaptive
from .transports._auth.transport import BearerAuth
from .transports._auth.transport import auth as auth_layer
from .transports._base import Layer
from .transports._limit.token_bucket import TokenBucket, token_bucket
from .transports._retry.transport import RetryPolicy
from .transports._retry.transport import retry as retry_layer
from .transports._stk_cli import StkCLITransport, cli_is_available

if TYPE_CHECKING:
    from ._config.models import RateLimitConfig, Settings

    Auth = AuthProvider | BearerAuth | Literal["auto"] | None
    RateLimit = (
        Literal["token_bucket", "adaptive"] | RateLimitConfig | TokenBucket | AimdLimiter | Unset | None
    )
    Retry = RetryPolicy | Unset | None

Limiter = TokenBucket | AimdLimiter

CLI_CANNOT = (
    "StackSpot CLI signs only what it sends itself, synchronously: an async client, and a wire of your own, need"
    " credentials. Set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET and use build_transport() or"
    " build_async_transport(), or pass auth=provider (auth=None for an API that needs no token)"
)

NO_AUTHENTICATION = """no authentication is configured. One of these helps:
  - set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET in the environment
  - call STKAI.configure(auth={"client_id": ..., "client_secret": ...})
  - install StackSpot CLI and run: stk login
  - pass auth=provider, or auth=None for an API that needs no token"""


@dataclass(frozen=True, slots=True)
class AuthChoice:
    """Which authentication "auto" means, and why."""

    kind: Literal["cli", "credentials", "none"]
    why: str

    @classmethod
    def automatic(cls, settings: "Settings", *, own_wire: bool) -> Self:
        """StackSpot CLI first, unless the wire is to be another one; then the credentials of the settings."""
        credentials = settings.auth.has_credentials()
        if not own_wire and cli_is_available():
            ignored = "; the configured client credentials are ignored" if credentials else ""
            return cls("cli", f"StackSpot CLI is installed and signs requests itself{ignored}")
        if credentials:
            return cls("credentials", "client id and secret are configured")
        return cls("none", "neither StackSpot CLI nor credentials are there")


@dataclass(frozen=True, slots=True)
class Parts:
    """The layers of a standard stack, outermost first, and how its wire is made where the caller brings none."""

    layers: list[Layer]
    settings: "Settings"
    by_cli: bool

    @classmethod
    def choose(
        cls,
        settings: "Settings",
        *,
        auth: "Auth" = "auto",
        rate_limit: "RateLimit" = UNSET,
        retry: "Retry" = UNSET,
        own_wire: bool = False,
        clock: Clock | None = None,
    ) -> Self:
        """Settle what is not given by the settings.

        Args:
            own_wire: the stack will stand on a wire that is not StackSpot CLI.

        Raises:
            ConfigurationError: an argument is none of what it may be, or there is nothing to authenticate with.
        """
        policy = _retry_policy(retry, settings)
        limiter = _limiter(rate_limit, settings)
        bearer, by_cli = _bearer(auth, settings, limiter, clock, own_wire=own_wire)
        layers = [
            None if policy is None else retry_layer(policy),
            None if bearer is None else auth_layer(bearer),
            adaptive(limiter) if isinstance(limiter, AimdLimiter) else None,
            token_bucket(limiter) if isinstance(limiter, TokenBucket) else None,
        ]
        return cls([layer for layer in layers if layer is not None], settings, by_cli)

    def make_wire(self) -> httpx.BaseTransport:
        """A sync wire: StackSpot CLI, if that signs, or the default one."""
        from ._wire.by_package import WireByFamily

        return StkCLITransport() if self.by_cli else WireByFamily(self.settings.http)

    def make_async_wire(self) -> httpx.AsyncBaseTransport:
        """An async wire.

        Raises:
            ConfigurationError: StackSpot CLI was to sign.
        """
        from ._wire.by_package import AsyncWireByFamily

        if self.by_cli:
            raise ConfigurationError(CLI_CANNOT)
        return AsyncWireByFamily(self.settings.http)

    def check_signed(self, wire: object, layers: Iterable[Layer]) -> None:
        """Refuse a wire that does not sign, where there is no layer that would.

        Raises:
            ConfigurationError: StackSpot CLI was to sign.
        """
        is_signed = isinstance(wire, StkCLITransport) or any(layer.name == "auth" for layer in layers)
        if self.by_cli and not is_signed:
            raise ConfigurationError(CLI_CANNOT)


def _retry_policy(given: "Retry", settings: "Settings") -> RetryPolicy | None:
    if given is UNSET:
        config = settings.retry
        return RetryPolicy(**config.model_dump(exclude={"enabled"})) if config.enabled else None
    if given is not None and not isinstance(given, RetryPolicy):
        msg = f"retry must be a stkai.RetryPolicy or None, not {given!r}"
        raise ConfigurationError(msg)
    return given


def _limiter(given: "RateLimit", settings: "Settings") -> Limiter | None:
    if given is None or isinstance(given, Limiter):
        return given
    if given is UNSET:
        return limiter_from(settings.rate_limit) if settings.rate_limit.enabled else None
    from ._config.models import RateLimitConfig

    if isinstance(given, RateLimitConfig):
        return limiter_from(given)
    if given in ("token_bucket", "adaptive"):
        return limiter_from(settings.rate_limit.model_copy(update={"strategy": given}))
    msg = f"rate_limit must be 'token_bucket', 'adaptive', a RateLimitConfig, a policy object or None, not {given!r}"
    raise ConfigurationError(msg)


def limiter_from(config: "RateLimitConfig") -> Limiter:
    """A new limiter with the numbers of a config."""
    options: dict[str, Any] = {"max_wait_time": config.max_wait_time}
    if config.strategy == "adaptive":
        for name in ("min_rate_floor", "penalty_factor", "recovery_factor"):
            options[name] = getattr(config, name)
    kind = AimdLimiter if config.strategy == "adaptive" else TokenBucket
    return kind(config.max_requests, config.time_window, **options)


def _bearer(
    given: "Auth", settings: "Settings", limiter: Limiter | None, clock: Clock | None, *, own_wire: bool
) -> tuple[BearerAuth | None, bool]:
    """What signs the requests, and whether StackSpot CLI does instead."""
    if given is None:
        return None, False
    if given != "auto":
        return given if isinstance(given, BearerAuth) else _scoped(given, settings), False
    choice = AuthChoice.automatic(settings, own_wire=own_wire)
    if choice.kind == "none":
        raise ConfigurationError(CLI_CANNOT if own_wire and cli_is_available() else NO_AUTHENTICATION)
    if choice.kind == "cli":
        if settings.auth.has_credentials():
            logger.warning("%s", choice.why)
        return None, True
    provider = create_standalone_auth(settings.auth, http=settings.http, clock=clock)
    if limiter is not None and limiter.max_wait_time is not None:
        # A token must outlive the wait for a permit that follows it.
        provider.refresh_margin = max(provider.refresh_margin, limiter.max_wait_time)
    return _scoped(provider, settings), False


def _scoped(provider: AuthProvider, settings: "Settings") -> BearerAuth:
    return BearerAuth(provider, settings.auth.origins, allow_http=settings.auth.allow_http)
