"""The keyword arguments of all `build_*` functions, documented once and shown in the `help()` of each."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from ._clock import Clock
from ._log import Listener
from .transports._options import UNSET

if TYPE_CHECKING:
    from ._standard import Auth, RateLimit, Retry
    from .transports._limits.metering import Estimate, Settle

F = TypeVar("F", bound=Callable[..., Any])


class StackOptions(TypedDict, total=False):
    """What the `build_*` functions take besides `transport`."""

    auth: "Auth"
    rate_limit: "RateLimit"
    retry: "Retry"
    listener: Listener | Sequence[Listener] | None
    clock: Clock | None
    random: Callable[[], float] | None
    cost: "Estimate | None"
    settle: "Settle | None"


DEFAULTS: Final = {"auth": "auto", "rate_limit": UNSET, "retry": UNSET}

ARGUMENTS: Final = """

    Args:
        transport: the wire; by default one of the package of each request (httpx or httpx2) that honours proxies, with
            the verification and limits of the settings.
        auth: a token provider, such as `StaticToken(token)`; a `BearerAuth`; None; or "auto": the settings' token;
            otherwise StackSpot CLI if it is installed and no other wire is given; otherwise the settings' credentials.
        rate_limit: "token_bucket" or "adaptive" with the numbers of the settings, a `RateLimitConfig`, a limiter to
            share (`TokenBucket`, `AimdLimiter`, `InFlight`, `PerHost`, `PerKey`, a `Limiter` of your own), a list of
            limiters that all have to let a request go, or None. By default, as the settings say.
        retry: a `RetryPolicy`, or None to send once. By default, as the settings say.
        listener: a function that is called with every event, in addition to the default log; or a list of the only
            functions to call.
        clock: where the stack gets its time from.
        random: draws numbers in [0, 1), for jitter.
        cost: estimates what a request will cost, in units, for limiters with `max_cost` that have no `cost` themselves.
        settle: reads from the answer what the request has cost; returns None if that is unknown.

    Raises:
        ConfigurationError: (a ValueError) the settings or the arguments cannot be used; the message says what to do.
    """


def shows_options(function: F) -> F:
    """Let `help()` show every keyword of `StackOptions` and what it means."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is each.KEYWORD_ONLY]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=annotation
        )
        for name, annotation in StackOptions.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*shared, *own])  # type: ignore[attr-defined]
    function.__doc__ = (function.__doc__ or "") + ARGUMENTS
    return function
