"""The keyword arguments of the `build_*` functions and of `StackBuilder.standard`: documented and checked once."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, cast

from ._clock import Clock
from ._log import Listener
from ._secrets import Secret

if TYPE_CHECKING:
    from ._config.models import RateLimitConfig
    from .limiters import Limiter, PerHost, PerKey
    from .transports._auth.bearer import BearerAuth
    from .transports._auth.provider import AuthProvider
    from .transports._limits.metering import Estimate, Settle
    from .transports._retry.policy import RetryPolicy

    Limiters = Sequence[Any]
    """Several limits at once: a list or tuple of limiters."""

F = TypeVar("F", bound=Callable[..., Any])


class StackOptions(TypedDict, total=False):
    """What the `build_*` functions take besides `transport`."""

    auth: "AuthProvider | BearerAuth | Literal['auto'] | None"
    rate_limit: (
        "Literal['token_bucket', 'adaptive'] | RateLimitConfig | Limiter | PerHost | PerKey | Limiters | None"
    )
    retry: "RetryPolicy | None"
    listener: "Listener | Sequence[Listener] | None"
    clock: "Clock | None"
    random: "Callable[[], float] | None"
    cost: "Estimate | None"
    settle: "Settle | None"


class _FromSettings:
    """Stands for a default that the settings decide."""

    def __repr__(self) -> str:
        return "..."


DEFAULTS: Final = {"auth": "auto", "rate_limit": _FromSettings(), "retry": _FromSettings()}
"""The defaults that are not None."""

_SHARED: Final = [
    # TypedDict turns strings into ForwardRefs, which are hard to read.
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=kind.__forward_arg__
    )
    for name, kind in StackOptions.__annotations__.items()
]
"""The parameters that all these functions have."""

_TRANSPORT: Final = """
        transport: the wire; by default one of the package of each request (httpx or httpx2) that honours proxies, with
            the verification and limits of the settings."""

_ARGUMENTS: Final = """
        auth: a token provider, such as `StaticToken(token)`; a `BearerAuth`; None; or "auto": the settings' token;
            otherwise StackSpot CLI if it is installed and no other wire is given; otherwise the settings' credentials.
        rate_limit: "token_bucket" or "adaptive" with the numbers of the settings, a `RateLimitConfig`, a limiter to
            share (`TokenBucket`, `AimdLimiter`, `PerHost`, a `Limiter` of your own), or None. By default, as the
            settings say.
        retry: a `RetryPolicy`, or None to send once. By default, as the settings say.
        listener: a function that is called with every event, in addition to the default log; or a list of the only
            functions to call.
        clock: where the stack gets its time from.
        random: draws numbers in [0, 1), for jitter.
        cost: estimates what a request will cost, in units, for a limiter with `max_cost`.
        settle: reads from the answer what the request has cost; returns None if that is unknown.

    Raises:
        ConfigurationError: (a ValueError) the settings or the arguments cannot be used; the message says what to do.
        TypeError: there is no such argument.
    """

_CLIENTS: Final = frozenset(
    {"base_url", "cookies", "event_hooks", "follow_redirects", "headers", "mounts", "params"}
)
_WIRES: Final = frozenset({"cert", "http2", "limits", "proxy", "trust_env", "verify"})


def takes_stack_options(function: F) -> F:
    """Let `help()` show every keyword of `StackOptions` and what it means, and explain one that does not exist."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    known = {each.name for each in (*own, *_SHARED)}

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}{_hint(name)}"
                )
        if isinstance(options.get("auth"), str) and options["auth"] != "auto":
            # A token in place of a provider: tracebacks show variables.
            options["auth"] = Secret(options["auth"])
        return function(*args, **options)

    parameters = sorted([*own, *_SHARED], key=lambda each: (each.kind, each.name == "transport"))
    checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    arguments = describe_arguments(with_transport="transport" in known)
    checked.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{arguments}"
    return cast("F", checked)


@cache
def describe_arguments(*, with_transport: bool) -> str:
    """The part of a docstring that describes the arguments."""
    return inspect.cleandoc(f"\n    Args:{_TRANSPORT if with_transport else ''}{_ARGUMENTS}")


def _hint(name: str) -> str:
    if name == "timeout":
        return (
            ": it belongs to each call, as in client.post(url, timeout=60), or to an httpx client over the stack:"
            " httpx.Client(transport=stkai.build_transport(...), timeout=60)"
        )
    if name in _CLIENTS:
        return (
            f": it belongs to an httpx client over the stack: httpx.Client(transport=stkai.build_transport(...),"
            f" {name}=...)"
        )
    if name in _WIRES:
        return f": it belongs to the wire: transport=httpx.HTTPTransport({name}=...), or to the settings STKAI_HTTP_*"
    return ""
