"""Limiters with a quota of requests, units of cost, or both: one with a fixed rate, one that adapts to the server."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from ..._checks import FRACTION, POSITIVE, check_number, safe_repr
from ..._errors import ConfigurationError, digits
from ..._secrets import sealed
from ...costs import LlmTokens
from .limiter import Cost
from .pace.quota import KnownQuota
from .queue_limiter import QuotaLimiter, check_limits
from .saved_rate import SavedRate, check_warm_start
from .sources import Limits, Source, in_words
from .sources.adaptive import AdaptiveRate
from .sources.request_limits import Rate, Window
from .sources.units import Units


class TokenBucket(QuotaLimiter):
    """At most `max_requests` requests in any time window. Share the object to share the quota, even between stacks.

    After an idle period, `burst` requests may be sent at once; the others follow evenly. With the default burst, all
    requests of a window may be sent at once, and the next ones when these have left the window.

    Args:
        max_requests: requests allowed in any `time_window`; None counts only units of cost.
        time_window: seconds.
        max_cost: units of cost allowed per `time_window`, such as tokens; None counts requests only. Their bucket
            starts full and is refilled evenly, so the first window may use up to twice `max_cost`. A call that costs
            more than `max_cost` is sent when all units are available, and leaves a debt.
        burst: requests that may be sent at once after an idle period, at least 1, and never more than `max_requests`,
            the default.
        cost: what a call costs: a function of its request, or an object with `estimate` and `settle`, such as
            `stkai.costs.llm_tokens()`; by default, the stack or the call defines it.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.
        methods: HTTP methods that need a permit; None for all.
        share: a name; processes that use the same name share the quota, including the burst, exactly.
        store: where a shared quota lives: None or "file" for this machine, a URL such as `redis://host`, or a
            `stkai.stores.Store`.

    Raises:
        ConfigurationError: a number is not between 1e-9 and 1e20, there is nothing to count, `cost` is given without
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
        time_window = check_number("time_window", time_window, POSITIVE)
        max_requests, max_cost = limits.max_requests, limits.max_cost
        if max_requests is None and max_cost is None:
            raise ConfigurationError(
                "a TokenBucket without max_requests needs max_cost: it has nothing to count"
            )

        def alone() -> list[Source]:
            sources: list[Source] = []
            if max_requests is not None:
                if burst is not None:  # Otherwise the window alone keeps to the rate.
                    sources.append(Rate(limits.rate, limits.at_once, limit=in_words(limits)))
                sources.append(Window(max_requests, time_window))
            if max_cost is not None:
                sources.append(Units(max_cost, time_window))
            if share is not None and max_requests is not None:  # The number of members is not known yet.
                sources.append(AdaptiveRate(KnownQuota(max_requests, time_window)))
            return sources

        super().__init__(
            limits, alone, share=share, store=store,
            methods=methods, max_wait_time=max_wait_time, cost=cost,
        )  # fmt: skip

    @property
    def burst(self) -> float:
        """Requests that may be sent at once after an idle period."""
        return self._limits.at_once

    @safe_repr
    def __repr__(self) -> str:
        limits = self._limits
        most = "None" if limits.max_requests is None else f"{limits.max_requests:g}"
        cost = "" if limits.max_cost is None else f", max_cost={limits.max_cost:g}"
        burst = "" if limits.max_requests is None else f", burst={self.burst:g}"
        return f"TokenBucket({most}, {limits.time_window:g}{cost}{burst}{self._options()})"


class AimdLimiter(QuotaLimiter):
    """A rate that adapts to what the server accepts. Share the object to share the quota within a process.

    Without numbers, the limiter finds the quota itself. If you give numbers, they are the ceiling. Without `share`, the
    tuned law leaves 2% of it (at most 0.1 requests per second) to other senders.

    Args:
        max_requests: the whole quota, which others may use as well: requests per `time_window`.
        time_window: seconds. Give both numbers or neither; with `max_cost`, `max_requests` alone may be None, and the
            limiter finds the quota of requests itself.
        max_cost: units of cost allowed in `time_window`, such as tokens; None counts requests only. As for
            `TokenBucket`; if a server's headers state fewer tokens, the headers apply.
        min_rate_floor: the lowest rate, as a fraction of the quota, in (0, 1]; at least half a request per window.
        penalty_factor: fraction by which a cut reduces the rate, in (0, 1]. If it or `recovery_factor` is given,
            plain AIMD replaces the tuned law; the other one is then 0.3 or 0.05.
        recovery_factor: fraction of the quota by which the rate grows per window, in (0, 1].
        cost: what a call costs, as for `TokenBucket`.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.
        methods: HTTP methods that need a permit; None for all.
        share: a name; processes that use the same name share the quota, and what they learn about it.
        store: where the shared quota lives, as for `TokenBucket`.
        warm_start: a name under which the rate is saved in the user's cache directory; a program that starts within a
            day starts at that rate. With `share`, it must be the name of the share, whose store keeps the rate. None,
            the default, saves nothing.

    Raises:
        ConfigurationError: a number is out of range or missing, the store cannot be used, or `warm_start` has nothing
            to save.
    """

    _adaptive: AdaptiveRate

    def __init__(
        self,
        max_requests: float | None = None,
        time_window: float | None = None,
        *,
        max_cost: float | None = None,
        min_rate_floor: float | None = None,
        penalty_factor: float | None = None,
        recovery_factor: float | None = None,
        cost: Cost | None = None,
        max_wait_time: float | None = None,
        methods: Iterable[str] | None = None,
        share: str | None = None,
        store: Any = None,
        warm_start: str | None = None,
    ) -> None:
        store = sealed(store)  # Tracebacks show variables, and a URL may contain a password.
        limits = check_limits(max_requests, time_window, max_cost)
        max_requests, time_window, max_cost, _ = limits
        factors = {
            "min_rate_floor": min_rate_floor,
            "penalty_factor": penalty_factor,
            "recovery_factor": recovery_factor,
        }
        for name, value in factors.items():
            if value is not None:
                factors[name] = check_number(name, value, FRACTION)
        min_rate_floor, penalty_factor, recovery_factor = factors.values()
        if max_requests is None or time_window is None:
            _require_no_numbers(limits, factors | {"share": share})
        plain = None
        if penalty_factor is not None or recovery_factor is not None:
            plain = penalty_factor or 0.3, recovery_factor or 0.05
        if warm_start is not None:
            check_warm_start(warm_start, share, plain=plain is not None)
        # Without requests, the window is that of the units.
        floor, window = min_rate_floor or 0.0, None if max_requests is None else time_window
        saved = SavedRate(warm_start) if warm_start is not None and share is None else None
        self._factors = factors
        adaptive = self._adaptive = AdaptiveRate(
            KnownQuota(max_requests, window, floor, plain=plain, leaves_some=plain is None),
            learned=None if saved is None else saved.read(),
            save=None if saved is None else saved.note,
        )
        if saved is not None:
            weakref.finalize(self, saved.save)

        counted = cost.count if isinstance(cost, LlmTokens) else "total"
        uncounted = {"input": "output", "output": "input"}.get(counted, "none")

        def units() -> Sequence[Source]:
            if max_cost is None:
                return []
            return [Units(max_cost, time_window or 1.0, reads_headers=True, uncounted=uncounted)]

        def alone() -> Sequence[Source]:
            return [adaptive, *units()]  # No reference to the limiter: that would be a cycle.

        group = None
        if share is not None:
            from .pace.group import GroupPace

            quota = KnownQuota(max_requests, window, floor, plain=plain)
            group = GroupPace(quota, starts_warm=warm_start is not None)
        # A server's token headers apply to everyone who uses the key, so each member follows those that it receives.
        super().__init__(
            limits, alone, share=share, store=store, beside=units(), pace=group,
            methods=methods, max_wait_time=max_wait_time, cost=cost,
        )  # fmt: skip

    @property
    def min_rate_floor(self) -> float | None:
        """The fraction of the quota that the rate never falls below, if it was given."""
        return self._factors["min_rate_floor"]

    @property
    def penalty_factor(self) -> float | None:
        """The fraction by which a cut reduces the rate, if it was given."""
        return self._factors["penalty_factor"]

    @property
    def recovery_factor(self) -> float | None:
        """The fraction of the quota by which the rate grows per window, if it was given."""
        return self._factors["recovery_factor"]

    @property
    def burst(self) -> float:
        """Requests that may be sent at once after an idle period."""
        return self._adaptive.mode.burst

    @property
    def window(self) -> float:
        """The quota's window in seconds, or the current estimate."""
        return self._adaptive.quota.window

    @safe_repr
    def __repr__(self) -> str:
        cost = "" if self.max_cost is None else f", max_cost={self.max_cost:g}"
        if cost and self.max_requests is None:
            cost += f" per {self.time_window:g} s"
        quota = self._adaptive if self._leased is None else f"{self.max_requests:g}, {self.time_window:g}"
        return f"AimdLimiter({quota}{cost}, rate={digits(self.rate)}{self._options()})"


def _require_no_numbers(limits: Limits, options: dict[str, object]) -> None:
    """Refuse one number without the other, and options that need a quota."""
    is_of_units = limits.max_requests is None and limits.max_cost is not None
    if not is_of_units and limits[:2] != (None, None):
        missing = "time_window" if limits.time_window is None else "max_requests"
        raise ConfigurationError(
            f"{missing} is missing: give max_requests and time_window, or neither to let the limiter find the quota"
        )
    if is_of_units and limits.time_window is None:
        raise ConfigurationError(
            "max_cost needs a quota: give time_window as well, and max_requests unless the limiter has to find it"
        )
    for name, given in options.items():
        if given is not None:
            unknown = "; if you do not know it, more than it can be, such as 100, 1" * (name == "share")
            raise ConfigurationError(
                f"{name} needs a quota: give max_requests and time_window as well{unknown}"
            )
