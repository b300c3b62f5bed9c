"""A fixed quota, first come first served, that tells callers how long they would wait."""

from collections.abc import Iterable
from typing import Any

from ..._checks import even_half_made
from ..._errors import ConfigurationError
from ..._secrets import sealed
from .limiter import Cost
from .pace.adaptive import Adaptive
from .pace.quota import KnownQuota
from .queue_limiter import QuotaLimiter, check_limits
from .sources.rate import PacedRate
from .sources.source import Limits, Source
from .sources.units import Units
from .sources.window import EvenWindow, Window


class TokenBucket(QuotaLimiter):
    """At most so many requests in any time window. Share the object to share the quota, also between stacks.

    After a quiet time, `burst` requests may go at once; the others follow evenly. With the default burst, all of a
    window's requests may go at once, and the next ones when these are out of the window.

    Args:
        max_requests: requests allowed in any `time_window`; None counts units of cost alone.
        time_window: seconds.
        max_cost: units of cost allowed per `time_window`, such as tokens; None counts requests only. They are refilled
            evenly. A call that costs more than all of them goes when none is used, and is paid for afterwards.
        burst: requests that may go at once after a quiet time, at least 1; by default `max_requests`.
        cost: what a call costs: a function of its request, or an object with `estimate` and `settle`, such as
            `stkai.costs.llm_tokens()`; by default what the stack or the call says.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.
        methods: HTTP methods that need a permit; None for all.
        share: a name; processes that give the same name share the quota, and the burst, exactly.
        store: where a shared quota lives: None or "file" for this machine, a URL (`file:///directory`, `redis://`,
            `rediss://`, `unix://`), or a `stkai.stores.Store`.

    Raises:
        ConfigurationError: a number is not positive and finite, there is nothing to count, `cost` is given without
            `max_cost`, or the store cannot be used.
    """

    def __init__(
        self,
        max_requests: float | None,
        time_window: float,
        *,
        max_cost: float | None = None,
        burst: float | None = None,
        cost: Cost | None = None,
        max_wait_time: float | None = None,
        methods: Iterable[str] | None = None,
        share: str | None = None,
        store: Any = None,
    ) -> None:
        store = sealed(store)  # Tracebacks show variables, and a URL may contain a password.
        limits = check_limits(max_requests, time_window, max_cost, burst)
        if time_window is None:
            raise ConfigurationError("time_window must be a positive, finite number, not None")
        if max_requests is None and max_cost is None:
            raise ConfigurationError(
                "a TokenBucket without max_requests needs max_cost: it has nothing to count"
            )

        def alone() -> list[Source]:
            """While the store was never reached: nobody knows how many share the quota."""
            sources = _local_sources(limits)
            if max_requests is not None:
                sources.append(PacedRate(Adaptive(KnownQuota(max_requests, time_window))))
            return sources

        super().__init__(
            limits, _local_sources(limits), share=share, store=store, alone=alone,
            methods=methods, max_wait_time=max_wait_time, cost=cost,
        )  # fmt: skip

    @property
    def burst(self) -> float:
        """Requests that may go at once after a quiet time."""
        return self._limits.at_once

    def _rate(self) -> float:
        return self._limits.rate

    @even_half_made
    def __repr__(self) -> str:
        limits = self._limits
        most = "None" if limits.max_requests is None else f"{limits.max_requests:g}"
        cost = "" if limits.max_cost is None else f", max_cost={limits.max_cost:g}"
        burst = "" if limits.max_requests is None else f", burst={self.burst:g}"
        return f"TokenBucket({most}, {limits.time_window:g}{cost}{burst}{self._options()})"


def _local_sources(limits: Limits) -> list[Source]:
    sources: list[Source] = []
    most, window = limits.max_requests, limits.time_window
    assert window is not None
    if most is not None:
        # Without a burst of its own, the window alone keeps to the rate.
        sources.append(Window(most, window) if limits.burst is None else EvenWindow(limits))
    if limits.max_cost is not None:
        sources.append(Units(limits.max_cost, window))
    return sources
