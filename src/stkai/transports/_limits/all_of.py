"""Several limits at once: a request is admitted when all of them admit it, and takes from all of them in one step."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import httpx

from ..._checks import even_half_made
from ..._errors import ConfigurationError
from .._operations import Operation
from .guest import guest_of, plan_of_own
from .limiter import Answer, Limiter, RateChange, Turn
from .plan import Chooser, Plan, subscribe
from .queue import READY, join_all
from .queue_limiter import QueueLimiter, is_ours
from .sources.source import Source

_MEMBERS: Final = ("methods", "max_wait_time", "ask", "leave", "learn", "settle")

_MOST_METHODS: Final = 100
"""Plans to keep: a gateway may pass on whatever methods its callers make up."""

WANTED: Final = (
    "rate_limit must be 'token_bucket', 'adaptive', a RateLimitConfig, a limiter (stkai.TokenBucket, AimdLimiter,"
    " InFlight, PerHost, PerKey, or a stkai.Limiter of your own), a list of limiters such as [AimdLimiter(),"
    " InFlight(8)], or None; not "
)


class AllOf(QueueLimiter):
    """Several limits at once; `rate_limit=[a, b]` is the same as `rate_limit=AllOf(a, b)`.

    While a request waits it holds a permit of none. First come, first served over all. What is cancelled, refused or
    never sent is given back to all. Each part counts its own `methods`.

    Args:
        limiters: limiters, also those per host or key, of your own, and lists of them. The same object twice counts
            once. Limiters of your own are asked last, about one request at a time.

    Raises:
        ConfigurationError: there are none, or one of them is not a limiter.
    """

    def __init__(self, *limiters: Any) -> None:
        self.parts: tuple[Any, ...] = tuple({id(part): part for part in _flattened(limiters)}.values())
        if not self.parts:
            raise ConfigurationError(f"{WANTED}an empty list")
        self._choosers = any(isinstance(part, Chooser) for part in self.parts)
        fixed = [part for part in self.parts if not isinstance(part, Chooser)]
        plan = _joined(None, fixed) or Plan()
        super().__init__(*plan.sources)
        self._methods = _all_methods(self.parts)
        self._max_wait_time = _smallest(part.max_wait_time for part in fixed)
        self._plans: dict[str, Plan | None] = {}
        self._plan = plan
        self.has_remote = self.has_remote or self._choosers

    def plan_for(self, request: httpx.Request | None) -> Plan | None:
        if request is None:
            return None if self._choosers else self._plan
        if self._choosers:
            chosen = [part.limiter_for(request) if isinstance(part, Chooser) else part for part in self.parts]
            return _joined(request, chosen)
        method = request.method
        if method not in self._plans:
            if len(self._plans) >= _MOST_METHODS:
                self._plans.clear()
            self._plans[method] = _joined(request, self.parts)
        return self._plans[method]

    def _sources_for(self, turn: Turn) -> tuple[Source, ...]:
        plan = self.plan_for(turn.request) or self._plan
        turn.sources, turn.guests, turn.is_by_hand = plan.sources, plan.guests, True
        return plan.sources

    def ask(self, turn: Turn, now: float) -> float | Operation:
        wait = super().ask(turn, now)
        if not turn.guests or wait == 0:
            return wait
        if wait is READY:
            said = self._ask_guests(turn, now)
            if said != 0:
                return said
            turn.is_admitted = True
            wait = super().ask(turn, now)
            turn.is_admitted = False
            if wait == 0:
                return 0.0
        # The turn waits for another limit, so the guests can be asked about another request.
        self._give_up_guests(turn, now)
        return wait

    def _ask_guests(self, turn: Turn, now: float) -> float | Operation:
        """Ask the guests, one after the other; if the turn has to wait for one, return the permits of those before."""
        for number, guest in enumerate(turn.guests):
            wait: float | Operation = guest.ask(turn, now)
            if wait != 0:
                if isinstance(wait, int | float):
                    turn.told, turn.held_by, turn.is_guess = now + wait, guest, False
                for earlier in turn.guests[:number]:
                    earlier.limiter.leave(earlier.inner(turn), now)
                return wait
        return 0.0

    def _give_up_guests(self, turn: Turn, now: float) -> None:
        for guest in turn.guests:
            guest.give_up(turn, now)
        if turn.guests:
            turn.inner = {}

    def leave(self, turn: Turn, now: float) -> None:
        super().leave(turn, now)
        self._give_up_guests(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        changes = [super().learn(turn, answer)]
        for guest in turn.guests:
            inner = guest.inner(turn)
            changes.append(guest.limiter.learn(inner, answer))
            turn.paced = turn.paced or inner.paced
            turn.errand = turn.errand or inner.errand
            turn.not_before = max(turn.not_before, inner.not_before)
        return next((change for change in changes if change is not None), None)

    def end(self, turn: Turn, now: float) -> None:
        super().end(turn, now)
        for guest in turn.guests:
            end = getattr(guest.limiter, "end", None)
            if end is not None:
                end(guest.inner(turn), now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self._settle([source for source in turn.sources if source not in turn.guests], turn, cost, now)
        for guest in turn.guests:
            guest.settle(turn, cost, now)

    def subscribe(self, layer: Any) -> None:
        """Report the stores' events to the listener of a layer's stack."""
        for part in self.parts:
            subscribe(part, layer)

    @even_half_made
    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.parts))})"


def checked_limiter(policy: Any, wanted: str = WANTED) -> Any:
    """A limiter, or one per key; a list or a tuple is all of its limiters.

    Raises:
        ConfigurationError: it cannot be asked for permits.
    """
    if isinstance(policy, list | tuple):
        return AllOf(*policy)
    if isinstance(policy, type) or not isinstance(policy, Limiter | Chooser):
        missing = [f"no `{name}`" for name in _MEMBERS if not hasattr(policy, name)]
        hint = ""
        if hasattr(policy, "ask") and not isinstance(policy, type):
            kind = type(policy).__name__
            hint = f"; {kind} has {' and '.join(missing)}: derive it from stkai.Limiter, which has defaults"
        raise ConfigurationError(f"{wanted}{policy!r}{hint}")
    return policy


def _flattened(limiters: Iterable[Any]) -> Iterator[Any]:
    for part in limiters:
        if isinstance(part, list | tuple):
            if not part:
                raise ConfigurationError(f"{WANTED}an empty list")
            yield from _flattened(part)
        elif isinstance(part, AllOf) and not part.is_own:
            yield from part.parts
        else:
            yield checked_limiter(part)


def _joined(request: httpx.Request | None, parts: Iterable[Any]) -> Plan | None:
    """What a request needs of all these parts together."""
    plans = [plan for part in parts if (plan := _plan_of(part, request)) is not None]
    if not plans:
        return None
    guests = dict.fromkeys(guest for plan in plans for guest in plan.guests)
    real = dict.fromkeys(source for plan in plans for source in plan.sources if source not in guests)
    sources = (*real, *guests)
    order = sources[0].order
    if any(source.order is not order for source in sources):
        join_all(sources)
    priced = dict.fromkeys(each for plan in plans for each in plan.priced)
    return Plan(
        sources,
        tuple(guests),
        tuple(priced),
        any(plan.ends for plan in plans),
        bool(guests) or any(plan.listens for plan in plans),
        _smallest(plan.max_wait_time for plan in plans),
    )


def _plan_of(part: Any, request: httpx.Request | None) -> Plan | None:
    if is_ours(part):
        return part.plan_for(request)
    return plan_of_own(part, request, guest_of(part))


def _smallest(waits: Iterable[float | None]) -> float | None:
    """The smallest of some times to wait, where None is no limit."""
    least = min((math.inf if wait is None else wait for wait in waits), default=math.inf)
    return None if least == math.inf else least


def _all_methods(parts: Iterable[Any]) -> frozenset[str] | None:
    names: set[str] = set()
    for part in parts:
        methods = None if isinstance(part, Chooser) else part.methods
        if methods is None:
            return None
        names.update(methods)
    return frozenset(names)
