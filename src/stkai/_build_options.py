"""The keyword arguments that all `build_*` functions take, documented once and shown by `help()` of each."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from ._clock import Clock
from ._log import Listener
from .transports._options import UNSET

if TYPE_CHECKING:
    from ._standard import Auth, RateLimit, Retry
    from .transports._limit.flow import Cost, Settle

F = TypeVar("F", bound=Callable[..., Any])


class StackOptions(TypedDict, total=False):
    """What the `build_*` functions take besides `transport`."""

    auth: "Auth"
    rate_limit: "RateLimit"
    retry: "Retry"
    listener: Listener | Sequence[Listener] | None
    clock: Clock | None
    random: Callable[[], float] | None
    cost: "Cost | None"
    settle: "Settle | None"


DEFAULTS: Final = {"auth": "auto", "rate_limit": UNSET, "retry": UNSET}

ARGUMENTS: Final = """

    Args:
        transport: the wire; by default one of the package of each request, httpx or httpx2, that honours proxies, and
            verification and limits of the settings.
        auth: a provider of tokens, such as `StaticToken(token)`; a `BearerAuth`; None; or "auto": StackSpot CLI where
            it is installed and no other wire is given, else the credentials of the settings.
        rate_limit: "token_bucket" or "adaptive" with the numbers of the settings, a `RateLimitConfig`, a limiter to
            share (`TokenBucket`, `AimdLimiter`, `PerHost`, a `Limiter` of your own), or None. Not given: as the
            settings say.
        retry: a `RetryPolicy`, or None to send once. Not given: as the settings say.
        listener: a function that is called with every event, besides the default log; or a list of exactly those that
            are to be called.
        clock: where the stack gets its time from.
        random: draws numbers in [0, 1), for jitter.
        cost: says what a request will cost, in units, for a limiter with `max_cost`.
        settle: says what it has cost, from its answer; None where that cannot be known.

    Raises:
        ConfigurationError: (a ValueError) the settings or the arguments cannot work; the message says what to do.
    """


def shows_options(function: F) -> F:
    """Let `help()` show every keyword of `StackOptions`, with what it means."""
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
