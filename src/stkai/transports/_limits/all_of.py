"""Several limits at once: a request is admitted when all of them admit it, and takes from all of them in one step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final
from weakref import WeakValueDictionary

import httpx

from ..._checks import REAL, safe_repr
from ..._errors import ConfigurationError
from .._operations import Operation
from .limiter import Answer, Chooser, Limiter, Plan, RateChange, Turn, subscribe
from .queue import READY, Queue, join_all
from .queue_limiter import QueueLimiter, checked_methods, is_ours
from .sources import Source, listens_of
from .sources.custom import CustomSource

_REQUIRED: Final = ("methods", "max_wait_time", "ask", "leave", "learn", "settle")

_MAX_METHODS: Final = 100  # Plans to cache: a gateway may forward arbitrary methods.

WANTED: Final = (
    "rate_limit must be 'token_bucket', 'adaptive', a RateLimitConfig, a limiter (stkai.TokenBucket, AimdLimiter,"
    " InFlight, PerHost, PerKey, or a stkai.Limiter of your own), a list of limiters such as [AimdLimiter(),"
    " InFlight(8)], or None; not "
)


class AllOf(QueueLimiter):
    """Several limits at once; `rate_limit=[a, b]` is the same as `rate_limit=AllOf(a, b)`.

    A waiting request holds no permit of any of them. First come, first served across all. Permits of requests that are
    cancelled, refused locally or never sent are returned to all parts. Each part counts its own `methods`.

    Args:
        limiters: of any kind, including `PerHost`, `PerKey`, your own, and lists. The same object twice counts once.
            Your own limiters are asked last, about one request at a time.

    Raises:
        ConfigurationError: there are none, one of them is not a limiter, or two of them are members of one share.
    """

    def __init__(self, *limiters: Any) -> None:
        try:
            self.parts: tuple[Any, ...] = tuple({id(part): part for part in _flattened(limiters)}.values())
        except RecursionError:
            raise ConfigurationError(f"{WANTED}a list that contains itself") from None
        self._choosers = any(isinstance(part, Chooser) for part in self.parts)
        plan = _joined(None, [part for part in self.parts if not isinstance(part, Chooser)]) or Plan()
        super().__init__(*plan.sources)
        each = [None if isinstance(part, Chooser) else part.methods for part in self.parts]
        self._methods = None if None in each else frozenset(name for names in each for name in names or ())
        self._plan, self._plans = plan, dict[str, Plan | None]()
        self.has_remote = self.has_remote or self._choosers

    def plan_for(self, request: httpx.Request | None) -> Plan | None:
        if request is None:
            return None if self._choosers else self._plan
        if self._choosers:
            chosen = [part.limiter_for(request) if isinstance(part, Chooser) else part for part in self.parts]
            return _joined(request, chosen)
        method, plans = request.method, self._plans
        if method not in plans:
            if len(plans) >= _MAX_METHODS:  # Not emptied: other threads may be about to read them.
                plans = self._plans = {}
            plans[method] = _joined(request, self.parts)
        return plans[method]

    def _sources_for(self, turn: Turn) -> tuple[Source, ...]:
        plan = self.plan_for(turn.request) or self._plan
        turn.sources, turn.custom, turn.parts, turn.is_by_hand = plan.sources, plan.custom, plan.parts, True
        return plan.sources

    def ask(self, turn: Turn, now: float) -> float | Operation:
        wait = super().ask(turn, now)
        if not turn.custom:
            return wait
        if wait is READY:
            wait = self._ask_custom(turn, now)
            if wait != 0:
                return wait
            turn.is_admitted = True
            wait = super().ask(turn, now)
            turn.is_admitted = False
        if wait != 0:  # Another limit holds the turn up, so let the custom limiters be asked about others.
            self._give_up_custom(turn, now)
        return wait

    def _ask_custom(self, turn: Turn, now: float) -> float | Operation:
        """Ask the custom limiters one by one; if the turn has to wait for a limiter, return the others' permits."""
        for number, source in enumerate(turn.custom):
            wait: float | Operation = source.ask(turn, now)
            if wait != 0:
                if isinstance(wait, REAL):
                    turn.due_at, turn.held_by = now + float(wait), source
                    turn.is_guess, turn.certain = source.inner(turn).is_guess, math.inf
                for earlier in turn.custom[:number]:
                    earlier.leave(turn, now)
                return wait
        return 0.0

    def _give_up_custom(self, turn: Turn, now: float) -> None:
        for source in turn.custom:
            source.give_up(turn, now)

    def leave(self, turn: Turn, now: float) -> None:
        try:
            super().leave(turn, now)
        finally:  # Even if interrupted.
            self._give_up_custom(turn, now)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        changes = [super().learn(turn, answer)]
        for source in turn.custom:
            changes.append(source.notify("learn", turn, answer))
            inner = source.inner(turn)
            turn.paced, turn.excused = turn.paced or inner.paced, turn.excused or inner.excused
            # Our own errand, which saves a rate, will be due again.
            turn.errand = inner.errand or turn.errand
            turn.not_before = max(turn.not_before, inner.not_before)
        return next((change for change in changes if change is not None), None)

    def end(self, turn: Turn, now: float) -> None:
        super().end(turn, now)
        for source in turn.custom:
            source.notify("end", turn, now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        self._settle([source for source in turn.sources if source not in turn.custom], turn, cost, now)
        for source in turn.custom:
            source.settle(turn, cost, now)

    def subscribe(self, layer: Any) -> None:
        """Report the stores' events to the listener of a layer's stack."""
        for part in self.parts:
            subscribe(part, layer)

    @safe_repr
    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.parts))})"


def checked_limiter(policy: Any, wanted: str = WANTED) -> Any:
    """A limiter, or one per key; a list or a tuple becomes an `AllOf`."""
    if isinstance(policy, list | tuple):
        return AllOf(*policy)
    kind = type(policy).__name__
    if isinstance(policy, QueueLimiter) and not hasattr(policy, "_plan"):
        raise ConfigurationError(f"{kind} is not initialised: its __init__ must call super().__init__(...)")
    if isinstance(policy, type) or not isinstance(policy, Limiter | Chooser):
        hint = ""
        if hasattr(policy, "ask") and not isinstance(policy, type):
            missing = [f"no `{name}`" for name in _REQUIRED if not hasattr(policy, name)]
            hint = f"; {kind} has {' and '.join(missing)}: derive it from stkai.Limiter, which has defaults"
        raise ConfigurationError(f"{wanted}{policy!r}{hint}")
    given = None if isinstance(policy, Chooser) else policy.methods
    if given is not None and checked_methods(given) != frozenset(given):
        raise ConfigurationError(f"{kind}.methods must be in upper case, not {given!r}")
    return policy


def _flattened(limiters: Sequence[Any]) -> Iterator[Any]:
    if not limiters:
        raise ConfigurationError(f"{WANTED}an empty list")
    for part in limiters:
        if isinstance(part, list | tuple):
            yield from _flattened(part)
        elif isinstance(part, AllOf) and not part.is_own:
            yield from part.parts
        else:
            yield checked_limiter(part, f"{WANTED}a list with ")


def _joined(request: httpx.Request | None, parts: Sequence[Any]) -> Plan | None:
    """What a request needs from all parts together; None if nothing."""
    asked = (plan_of(part, request, in_list=True) for part in parts)
    plans = [plan for plan in asked if plan is not None]
    if not plans:
        return None
    custom = dict.fromkeys(source for plan in plans for source in plan.custom)
    real = dict.fromkeys(source for plan in plans for source in plan.sources if source not in custom)
    sources = (*real, *custom)
    if any(source.order is not sources[0].order for source in sources):
        join_all(sources)
    priced = {id(each): each for plan in plans for each in plan.priced}
    return Plan(
        sources,
        tuple(custom),
        tuple(priced.values()),
        any(plan.ends for plan in plans),
        listens_of(sources),
        min((plan.max_wait_time for plan in plans if plan.max_wait_time is not None), default=None),
        parts=tuple(parts),
    )


# By the id of the limiter, so that a limiter in several lists is still asked about one turn at a time.
_custom_sources: Final[WeakValueDictionary[int, CustomSource]] = WeakValueDictionary()


def _source_of(limiter: Limiter) -> CustomSource:
    with Queue.lock:
        return _custom_sources.setdefault(id(limiter), CustomSource(limiter))


def plan_of(limiter: Limiter, request: httpx.Request | None, *, in_list: bool = False) -> Plan | None:
    """What a request needs from a limiter, alone or in a list; a custom one gets every request and every answer."""
    if is_ours(limiter):
        return limiter.plan_for(request)
    if isinstance(limiter, QueueLimiter) and not in_list:
        plan = limiter.plan_for(request)
        # Its own `ask` determines where its turns take their permits.
        return plan and replace(plan, sources=(), custom=(), ends=True, listens=_always)
    if request is not None and limiter.methods is not None and request.method not in limiter.methods:
        return None
    custom = (_source_of(limiter),) if in_list else ()
    priced = () if getattr(limiter, "max_cost", None) is None else custom or (limiter,)
    return Plan(custom, custom, priced, hasattr(limiter, "end"), _always, limiter.max_wait_time)


def _always(_now: float) -> bool:
    return True
