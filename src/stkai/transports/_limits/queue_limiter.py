"""The base classes of stkai's limiters: a queue with sources of permits, and one with a quota that may be shared."""

import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import httpx

from ..._checks import POSITIVE, SAFE_RANGE, check_number, is_async, is_method_name
from ..._clock import Clock
from ..._errors import ConfigurationError
from .._options import UNSET, Priority, RequestOptions, Unset
from .limiter import Cost, Plan, Pricing
from .permit import Permit
from .queue import Queue
from .sources import Limits, Source, listens_of

if TYPE_CHECKING:
    from .pace.group import GroupPace
    from .sources.leased import Leased

_HOOKS: Final = ("ask", "leave", "learn", "end", "settle")


class QueueLimiter(Queue):
    """A queue that is a `Limiter`."""

    is_own = False  # Whether it is a user's subclass, which must be given every request and answer.

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ours = next(base for base in cls.__mro__ if base.__module__.startswith("stkai."))
        cls.is_own = any(getattr(cls, name) is not getattr(ours, name) for name in _HOOKS)

    def __init__(
        self, *sources: Source, methods: Iterable[str] | None = None, max_wait_time: float | None = None
    ) -> None:
        self._methods = checked_methods(methods)
        if max_wait_time is not None:
            hint = " (0.001 for no wait), or None to wait as long as it takes"
            max_wait_time = check_number("max_wait_time", max_wait_time, POSITIVE, hint)
        super().__init__(*sources)
        ends = any(type(source).end is not Source.end for source in sources)
        self._plan = Plan(sources, ends=ends, listens=listens_of(sources), max_wait_time=max_wait_time)

    @property
    def methods(self) -> Collection[str] | None:
        """HTTP methods that need a permit; None if all do."""
        return self._methods

    @property
    def max_wait_time(self) -> float | None:
        """Seconds that a request may wait for its permit; None waits as long as necessary."""
        return self._plan.max_wait_time

    @property
    def plan_for_all(self) -> Plan | None:
        """The plan for every request; None if it depends on the request."""
        is_same = self._methods is None and type(self).plan_for is QueueLimiter.plan_for
        return self._plan if is_same else None

    def plan_for(self, request: httpx.Request | None) -> Plan | None:
        """What a request needs from this limiter; None if its method needs no permit."""
        if self._methods is None or request is None or request.method in self._methods:
            return self._plan
        return None

    def permit(
        self,
        *,
        cost: float | None = None,
        priority: Priority = "normal",
        max_wait_time: float | Unset | None = UNSET,
        clock: Clock | None = None,
    ) -> Permit:
        """A permit for something other than an httpx request: `with limiter.permit():`, or `async with`.

        Leaving the block with an exception of class `stkai.NotSent` gives the permit back; otherwise it counts as used.

        Args:
            cost: units that it takes from a limiter with `max_cost`.
            priority: "low" is admitted when no normal request waits, and gets at least one permit in eleven.
            max_wait_time: seconds that it may wait; by default the limiter's own.
            clock: where time comes from; by default the system's clock.

        Raises:
            InvalidArgumentError: an argument is out of range, or `cost` is missing.
            TokenAcquisitionTimeoutError: (on entering) the wait would exceed `max_wait_time`.
        """
        options = RequestOptions(cost=cost, priority=priority, max_wait_time=max_wait_time)
        return Permit(self, self.plan_for(None), options, clock)

    def _options(self) -> str:
        """The options that differ from the defaults, for `repr`."""
        return "" if self._methods is None else f", methods={sorted(self._methods)}"


class QuotaLimiter(QueueLimiter):
    """A limiter with a quota of requests, units of cost, or both, per time window; its own, or shared by a group."""

    _adaptive: Any = None  # Sets the rate of a process that shares nothing, unless that is constant.

    def __init__(
        self,
        limits: Limits,
        alone: Callable[[], Sequence[Source]],  # Creates the sources of a process that shares nothing (yet).
        *,
        share: str | None,
        store: Any,
        beside: Sequence[Source] = (),  # The other sources of each member of a share.
        pace: "GroupPace | None" = None,  # Computes the group's rate, if that adapts.
        methods: Iterable[str] | None,
        max_wait_time: float | None,
        cost: Cost | None,
    ) -> None:
        self._leased: Leased | None = None
        if share is not None:
            from .store_client import StoreClient

            self._leased = StoreClient(store, share, limits, alone, pace).member
        elif store is not None:
            raise ConfigurationError("store= needs share=, the name of the quota to share")
        sources = alone() if self._leased is None else [self._leased, *beside]
        super().__init__(*sources, methods=methods, max_wait_time=max_wait_time)
        self._limits = limits
        self._cost = None if cost is None else _checked_cost(cost, limits.max_cost)
        if limits.max_cost is not None:
            self._plan = replace(self._plan, priced=(self,))
        if self._leased is not None:
            quota = self._leased.quota
            self._leased.quota = quota._replace(methods=",".join(sorted(self.methods or ())))
            # Keeps the client alive until then, so that it can report at the end of the program.
            weakref.finalize(self, self._leased.client.retire).atexit = False

    @property
    def max_requests(self) -> float | None:
        """Requests per time window; None if they are not counted, or the quota is unknown."""
        return self._limits.max_requests

    @property
    def time_window(self) -> float | None:
        """Seconds; None if unknown."""
        return self._limits.time_window

    @property
    def max_cost(self) -> float | None:
        """Units of cost per time window; None if they are not counted."""
        return self._limits.max_cost

    @property
    def cost(self) -> Cost | None:
        """What a call costs; None if the stack or the call defines it."""
        return self._cost

    @property
    def rate(self) -> float:
        """Requests per second in force now; for the whole group if the quota is shared."""
        rate: float = (self._leased or self._adaptive or self._limits).rate
        return rate

    @property
    def share(self) -> str | None:
        """The name of the quota, if it is shared with other processes."""
        return None if self._leased is None else self._leased.share

    @property
    def store(self) -> Any:
        """The store of the shared quota; None if it is not shared."""
        return None if self._leased is None else self._leased.client.store

    @property
    def members(self) -> int:
        """The number of processes that share the quota, including this one, according to the store."""
        return 1 if self._leased is None else self._leased.group.members

    def update(
        self,
        *,
        max_requests: float | Unset = UNSET,
        time_window: float | Unset = UNSET,
        max_cost: float | Unset = UNSET,
    ) -> None:
        """Change the numbers that are given; they apply to waiting requests as well.

        The time since the last request counts at the new rate: at most `burst` requests and `max_cost` units too many.

        Raises:
            ConfigurationError: a number is out of range, or the limiter was created without it; nothing has changed.
        """
        numbers = {"max_requests": max_requests, "time_window": time_window, "max_cost": max_cost}
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not UNSET}
        if not given:
            return
        for name, value in given.items():
            check_number(name, value, POSITIVE)
            if getattr(self._limits, name) is None:
                raise ConfigurationError(
                    f"{name} cannot be updated: this limiter was made without it; make another with {name}={value!r}"
                )
        limits = check_limits(*self._limits._replace(**given))
        with Queue.lock:
            self._limits = limits
            for source in self.sources:
                source.update(limits)
            order = self.sources[0].order
            order.wake_all(turn for turn in order.turns if not turn.is_woken)
        order.wake()

    def subscribe(self, layer: Any) -> None:
        """Report the store's events to the listener of a layer's stack."""
        if self._leased is not None:
            self._leased.client.subscribe(layer)

    def close(self) -> None:
        """Report what was used, within 0.25 s, and leave the group; the next request joins it again.

        The connections of the store stay open for other limiters; `limiter.store.close()` closes them.
        """
        if self._leased is not None:
            self._leased.client.close()

    def _options(self) -> str:
        shared = "" if self._leased is None else f", share={self.share!r}, store={self.store!r}"
        return super()._options() + shared


def is_ours(limiter: object) -> TypeGuard[QueueLimiter]:
    """Whether it is one of stkai's limiters, which need not be given every request and every answer."""
    return isinstance(limiter, QueueLimiter) and not limiter.is_own


def checked_methods(methods: Iterable[str] | None) -> frozenset[str] | None:
    if methods is None:
        return None
    names = [] if isinstance(methods, str) or not isinstance(methods, Iterable) else list(methods)
    if not names or not all(map(is_method_name, names)):
        msg = f"methods must be HTTP method names such as {{'POST', 'PUT'}}, or None for all, not {methods!r}"
        raise ConfigurationError(msg)
    return frozenset(name.upper() for name in names)


def check_limits(
    max_requests: float | None, time_window: float | None, max_cost: float | None, burst: float | None = None
) -> Limits:
    """The limits that these numbers describe; those that are given must be positive and within `SAFE_RANGE`."""
    limits = Limits(max_requests, time_window, max_cost, burst)
    for name, value in limits._asdict().items():
        if value is not None:
            hint = ", or None to count requests only" if name == "max_cost" else ""
            number = check_number(name, check_number(name, value, POSITIVE, hint), SAFE_RANGE)
            limits = limits._replace(**{name: number})
    return limits


def _checked_cost(cost: object, max_cost: float | None) -> Any:
    is_usable = isinstance(cost, Pricing) or callable(cost)
    if isinstance(cost, type) or not is_usable or is_async(cost):
        raise ConfigurationError(
            "cost must be a plain function of a request, or an object with estimate and settle such as"
            f" stkai.costs.llm_tokens(), not {cost!r}"
        )
    if max_cost is None:
        raise ConfigurationError("cost= needs max_cost=, the units that may be spent in a time window")
    return cost
