"""The keyword arguments of all `build_*` functions, documented once and shown by the `help()` of each."""

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
    """What the `build_*` functions accept besides `transport`."""

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
        transport: The wire. By default a pool of connections for the package of each request (httpx or httpx2) that
            uses the proxies, certificates and limits of the settings.
        auth: A token provider such as `StaticToken(token)`, a `BearerAuth`, None, or "auto": StackSpot CLI if it is
            installed and you pass no `transport`, otherwise the credentials in the settings.
        rate_limit: "token_bucket" or "adaptive" with the numbers in the settings, a `RateLimitConfig`, a limiter
            (`TokenBucket`, `AimdLimiter`, `PerHost`, or your own `Limiter`), or None. By default as the settings say.
        retry: A `RetryPolicy`, or None to send once. By default as the settings say.
        listener: A function to call with every event, in addition to the default log; or a list of exactly the
            functions to call.
        clock: Where the stack gets the time.
        random: Draws numbers in [0, 1) for jitter.
        cost: Estimates the cost of a request in units, for a limiter with `max_cost`.
        settle: Returns the real cost, given the response, or None if it is unknown.

    Raises:
        ConfigurationError: (a ValueError) the settings or arguments cannot work; the message says what to do.
    """


def shows_options(function: F) -> F:
    """Make `help()` show every keyword in `StackOptions` with its description."""
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
