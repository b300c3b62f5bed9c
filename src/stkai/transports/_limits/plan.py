"""What a request needs of a limiter: permits of which sources, and what they cost it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import httpx

from .limiter import Limiter
from .sources.source import Source


@runtime_checkable
class Pricing(Protocol):
    """What a call costs a limiter, before it is sent and after it was answered; `llm_tokens()` returns one."""

    def estimate(self, request: httpx.Request) -> float:
        """Units that a request will probably take."""
        ...

    def settle(self, response: httpx.Response) -> float | None:
        """Units that it has taken; None if the answer does not tell."""
        ...


Cost = Callable[[httpx.Request], float] | Pricing
"""What a limiter takes as `cost`."""


@dataclass(
    frozen=True, slots=True
)  # Not a NamedTuple: its fields are read for every request, and slots are faster.
class Plan:
    """What a request of some method needs of a limiter.

    Attributes:
        sources: where it takes its permits from.
        guests: limiters of the user's own that it asks as well.
        priced: the limits that count units of cost: each has `max_cost`, and corrects with `settle` what a turn took.
        ends: whether one of them must be notified when the answer has ended.
        listens: whether an answer of success may teach one of them something.
        max_wait_time: seconds that it may wait.
    """

    sources: tuple[Source, ...] = ()
    guests: tuple[Any, ...] = ()
    priced: tuple[Any, ...] = ()
    ends: bool = False
    listens: bool = False
    max_wait_time: float | None = None


class Chooser:
    """Has a limiter for each request."""

    def limiter_for(self, request: httpx.Request) -> Limiter:
        """The limiter of that request."""
        raise NotImplementedError


def subscribe(limiter: object, layer: Any) -> None:
    """Let a limiter report to the listener of a layer's stack, if it has something to report."""
    method = getattr(limiter, "subscribe", None)
    if method is not None:
        method(layer)
