"""What all limiters of stkai are: a queue with sources of permits, and the options that they share."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeGuard

import httpx

from ..._checks import POSITIVE, check_number, is_token
from ..._clock import Clock
from ..._errors import ConfigurationError
from .._options import UNSET, Priority, Unset
from .permit import Permit
from .plan import Plan
from .queue import Queue
from .sources.source import Source

_HOOKS: Final = ("ask", "leave", "learn", "end", "settle")


class QueueLimiter(Queue):
    """A queue that is a `Limiter`.

    Args:
        sources: where permits come from.
        methods: HTTP methods that need a permit; None for all.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.

    Raises:
        ConfigurationError: `methods` are no names of methods, or `max_wait_time` is not positive.
    """

    is_own = False
    """Whether it is a subclass of a user's that must see every request and every answer."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """What `update` changes."""

    if not TYPE_CHECKING:  # Type checkers would take any attribute for one that can be set.

        def __setattr__(self, name: str, value: object) -> None:
            known = getattr(type(self), name, None)
            if isinstance(known, property) and known.fset is None:
                advice = f"use update({name}=...)" if name in self.numbers else "make another limiter"
                raise AttributeError(
                    f"{type(self).__name__}.{name} cannot be set: {advice}", name=name, obj=self
                )
            super().__setattr__(name, value)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ours = next(base for base in cls.__mro__ if base.__module__.startswith("stkai."))
        cls.is_own = any(getattr(cls, name) is not getattr(ours, name) for name in _HOOKS)

    def __init__(
        self, *sources: Source, methods: Iterable[str] | None = None, max_wait_time: float | None = None
    ) -> None:
        self._methods = _checked_methods(methods)
        if max_wait_time is not None:
            check_number("max_wait_time", max_wait_time, POSITIVE, ", or None to wait as long as it takes")
        self._max_wait_time = max_wait_time
        super().__init__(*sources)
        ends = any(type(source).end is not Source.end for source in sources)
        listens = any(type(source).listens is not Source.listens for source in sources)
        self._plan = Plan(sources, ends=ends, listens=listens, max_wait_time=max_wait_time)

    @property
    def methods(self) -> Collection[str] | None:
        """HTTP methods that need a permit; None for all."""
        return self._methods

    @property
    def max_wait_time(self) -> float | None:
        """Seconds that a request may wait for its permit; None waits as long as necessary."""
        return self._max_wait_time

    def plan_for(self, request: httpx.Request | None) -> Plan | None:
        """What a request needs of this limiter; None if its method needs no permit."""
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
        """A permit for something other than a request of httpx: `with limiter.permit():`, or `async with`.

        Leaving the block with an exception of class `stkai.NotSent` gives the permit back; any other way uses it.

        Args:
            cost: units that it takes from a limiter with `max_cost`.
            priority: "low" goes when no normal request waits, and gets at least one permit in eleven.
            max_wait_time: seconds that it may wait; by default the limiter's own.
            clock: where time comes from; by default the system's clock.

        Raises:
            InvalidArgumentError: an argument is out of range, or `cost` is missing.
            TokenAcquisitionTimeoutError: (on entering) the wait would exceed `max_wait_time`.
        """
        return Permit(
            self, self.plan_for(None), cost=cost, priority=priority, max_wait_time=max_wait_time, clock=clock
        )

    def _options(self) -> str:
        """The options that are not the default, for `repr`."""
        return "" if self._methods is None else f", methods={sorted(self._methods)}"


def is_ours(limiter: object) -> TypeGuard[QueueLimiter]:
    """Whether it is a limiter of stkai, which need not see every request and every answer."""
    return isinstance(limiter, QueueLimiter) and not limiter.is_own


def _checked_methods(methods: Iterable[str] | None) -> frozenset[str] | None:
    if methods is None:
        return None
    names = [] if isinstance(methods, str) or not isinstance(methods, Iterable) else list(methods)
    if not names or not all(is_token(name) for name in names):
        msg = f"methods must be HTTP method names such as {{'POST', 'PUT'}}, or None for all, not {methods!r}"
        raise ConfigurationError(msg)
    return frozenset(name.upper() for name in names)
