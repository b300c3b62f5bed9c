"""The standard stack: turns arguments and settings into layers and a wire, and explains the choice."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Self

import httpx

from ._auth import create_standalone_auth
from ._clock import Clock
from ._config.models import HttpConfig, RateLimitConfig, Settings
from ._errors import ConfigurationError
from ._log import logger
from ._secrets import Secret
from ._wire import AsyncDefaultWire, DefaultWire
from .costs import llm_tokens
from .stores import store_from
from .transports._auth import StaticToken
from .transports._auth.bearer import BearerAuth
from .transports._auth.flow import auth as auth_layer
from .transports._limits import flow as limit
from .transports._limits.all_of import AllOf, checked_limiter
from .transports._limits.in_flight import InFlight
from .transports._limits.limiter import Limiter
from .transports._limits.per_key import PerKey
from .transports._limits.queue_limiter import is_ours
from .transports._limits.quota_limiters import AimdLimiter, TokenBucket
from .transports._options import UNSET
from .transports._recipe import Layer
from .transports._retry.flow import retry as retry_layer
from .transports._retry.policy import RetryPolicy
from .transports._stk_cli import StkCLITransport, cli_is_available

_CLI_CANNOT: Final = (
    "StackSpot CLI signs only what it sends itself, synchronously: an async client, and a wire of your own, need"
    " credentials. Set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET, or STKAI_AUTH_TOKEN, and use"
    " build_transport() or build_async_transport(), or pass auth=provider (auth=None, or --no-auth for a batch, if"
    " the API needs no token)"
)

NO_AUTHENTICATION: Final = """no authentication is configured. One of these helps:
  - set STKAI_AUTH_CLIENT_ID and STKAI_AUTH_CLIENT_SECRET in the environment
  - set STKAI_AUTH_TOKEN, for a token or an API key that you already have
  - call STKAI.configure(auth={"client_id": ..., "client_secret": ...})
  - install StackSpot CLI and run: stk login
  - pass auth=provider, such as StaticToken(token)
  - pass auth=None, or --no-auth to stkai batch, for an API that needs no token"""


class AuthChoice(NamedTuple):
    """Which authentication "auto" means, and why."""

    kind: Literal["token", "cli", "credentials", "none"]
    why: str

    @classmethod
    def automatic(cls, settings: Settings, *, own_wire: bool) -> Self:
        """The token of the settings; otherwise StackSpot CLI, unless another wire is used; otherwise the credentials.

        The token takes precedence over the CLI because it may be for another service, which must not see StackSpot's
        token.
        """
        if settings.auth.token is not None:
            return cls("token", "a token is configured, and is never renewed")
        credentials = settings.auth.has_credentials()
        if not own_wire and cli_is_available():
            ignored = "; the configured client credentials are ignored" if credentials else ""
            return cls("cli", f"StackSpot CLI is installed and signs requests itself{ignored}")
        if credentials:
            return cls("credentials", "client id and secret are configured")
        return cls("none", "neither StackSpot CLI nor credentials are available")


def check_options(caller: str, options: Any, known: Collection[str]) -> None:
    """Refuse an unknown argument, and say where it belongs; hide a token that was given in place of a provider."""
    if isinstance(options.get("auth"), str) and options["auth"] != "auto":
        options["auth"] = Secret(options["auth"])  # In place: tracebacks show variables.
    for name in options:
        if name not in known:
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{_where(name, known)}")


def _where(name: str, known: Collection[str]) -> str:
    """Where an argument that no stack takes belongs; if that is unknown, the arguments that a stack takes."""
    if name == "timeout":
        return (
            ": it belongs to each call, as in client.post(url, timeout=60), or to an httpx client over the stack:"
            " httpx.Client(transport=stkai.build_transport(...), timeout=60)"
        )
    if name == "retries":
        return ": pass a policy, such as retry=stkai.RetryPolicy(max_retries=3)"
    if name == "transport":
        return ": it belongs to build(transport) or build_async(transport)"
    for owner, place in (
        (RetryPolicy, f"the policy: retry=stkai.RetryPolicy({name}=...)"),
        (TokenBucket, f"a limiter, such as rate_limit=stkai.TokenBucket(...) with {name}=..."),
        (
            httpx.HTTPTransport,
            f"the wire: transport=httpx.HTTPTransport({name}=...), or to the settings STKAI_HTTP_*",
        ),
        (
            httpx.Client,
            f"an httpx client over the stack: httpx.Client(transport=stkai.build_transport(...), {name}=...)",
        ),
    ):
        if name in inspect.signature(owner).parameters:
            return f": it belongs to {place}"
    return f"; a stack takes {', '.join(known)}"


def standard_layers(
    settings: Settings, options: Mapping[str, Any], *, own_wire: bool = False
) -> tuple[list[Layer], bool]:
    """The layers of a standard stack, outermost first, and whether StackSpot CLI is the wire and signs the requests."""
    policy = settings.retry.policy() if options["retry"] is UNSET else options["retry"]
    retry = None if policy is None else retry_layer(policy)
    limiter = _limiter(options["rate_limit"], settings)
    cost, settle = options.get("cost"), options.get("settle")
    _check_counted(limiter, cost, settle)
    bearer, by_cli = _bearer(options["auth"], settings, options.get("clock"), own_wire=own_wire)
    kinds = ((TokenBucket, limit.token_bucket), (AimdLimiter, limit.adaptive))
    factory = next((factory for kind, factory in kinds if isinstance(limiter, kind)), limit.limiter)
    layers = [
        retry,
        None if bearer is None else auth_layer(bearer),
        None if limiter is None else factory(limiter, cost=cost, settle=settle),
    ]
    return [layer for layer in layers if layer is not None], by_cli


def check_signed(wire: object, layers: Sequence[Layer]) -> None:
    """Refuse a wire that does not sign if no layer does, although StackSpot CLI was to sign."""
    if not isinstance(wire, StkCLITransport) and all(layer.name != "auth" for layer in layers):
        raise ConfigurationError(_CLI_CANNOT)


def default_wire(http: HttpConfig | None, *, by_cli: bool, is_async: bool) -> object:
    """The wire of a stack for which none is given."""
    if is_async:
        return AsyncDefaultWire(http)
    return StkCLITransport() if by_cli else DefaultWire(http)


def limiter_from(config: RateLimitConfig) -> Limiter:
    limiter = _quota_from(config)
    if config.in_flight is None:
        return limiter
    return AllOf(limiter, InFlight(config.in_flight, methods=config.methods))


def _quota_from(config: RateLimitConfig) -> TokenBucket | AimdLimiter:
    options: dict[str, Any] = {"max_wait_time": config.max_wait_time, "methods": config.methods}
    if config.share is not None:
        options |= {"share": config.share, "store": store_from(config.store, config.store_timeout)}
    if config.max_cost is not None:
        options |= {"max_cost": config.max_cost, "cost": llm_tokens()}
    quota: Any = config.quota()  # For a token bucket, the window is never None.
    if config.strategy == "token_bucket":
        if config.warm_start is not None:
            raise ConfigurationError(
                f"warm_start={config.warm_start!r} (STKAI_RATE_LIMIT_WARM_START) is for the strategy 'adaptive': a"
                " token bucket learns nothing; set STKAI_RATE_LIMIT_STRATEGY=adaptive, or leave warm_start out"
            )
        return TokenBucket(*quota, **options)
    for name in ("min_rate_floor", "penalty_factor", "recovery_factor", "warm_start"):
        options[name] = getattr(config, name)
    return AimdLimiter(*quota, **options)


_has_warned_of_settings = False


def _warn_of_settings(config: RateLimitConfig) -> None:
    """Warn, once per process, of settings that have no effect."""
    global _has_warned_of_settings  # noqa: PLW0603
    warning = config.without_effect()
    if warning is not None and not _has_warned_of_settings:
        _has_warned_of_settings = True
        logger.warning("%s", warning)


def _check_counted(limiter: object, cost: object, settle: object) -> None:
    """Refuse `cost` and `settle` if nothing counts units; limiters that are not ours are checked when first asked."""
    if cost is None and settle is None:
        return
    parts = limiter.parts if isinstance(limiter, AllOf) else [limiter]
    if any(
        isinstance(part, PerKey)
        or (part is not None and not is_ours(part))
        or getattr(part, "max_cost", None) is not None
        for part in parts
    ):
        return
    raise ConfigurationError(
        f"{'settle' if cost is None else 'cost'}= is given, but no limiter counts units: give one max_cost, such as"
        " rate_limit=TokenBucket(500, 60, max_cost=200_000)"
    )


def _limiter(given: Any, settings: Settings) -> Limiter | PerKey | None:
    config = settings.rate_limit
    if given is UNSET:
        if not config.enabled and config.share is not None:
            raise ConfigurationError(
                "STKAI_RATE_LIMIT_SHARE names a quota to share, but the limiter is off: set"
                " STKAI_RATE_LIMIT_ENABLED=true, or pass rate_limit='adaptive' or rate_limit='token_bucket'"
            )
        _warn_of_settings(config)
        given = config if config.enabled else None
    elif isinstance(given, str) and given in ("token_bucket", "adaptive"):
        given = config.model_copy(update={"strategy": given, "enabled": True})
        _warn_of_settings(given)
    if isinstance(given, RateLimitConfig):
        return limiter_from(given)
    return None if given is None else checked_limiter(given)


def _bearer(
    given: Any, settings: Settings, clock: Clock | None, *, own_wire: bool
) -> tuple[BearerAuth | None, bool]:
    """The `BearerAuth` that signs the requests, if any, and whether StackSpot CLI signs them instead."""
    if given == "auto":
        choice = AuthChoice.automatic(settings, own_wire=own_wire)
        if choice.kind == "none":
            raise ConfigurationError(_CLI_CANNOT if own_wire and cli_is_available() else NO_AUTHENTICATION)
        if choice.kind == "cli":
            if settings.auth.has_credentials():
                logger.warning("%s", choice.why)
            return None, True
        if settings.auth.token is not None:
            given = StaticToken(settings.auth.token.get_secret_value())
        else:
            given = create_standalone_auth(settings.auth, http=settings.http, clock=clock)
    if given is None or isinstance(given, BearerAuth):
        return given, False
    return BearerAuth(given, settings.auth.origins, allow_http=settings.auth.allow_http), False
