"""The protocol `Limiter`, what a layer passes to a limiter, and what a request needs from it."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

import httpx

from ..._errors import ClientSideRateLimitError
from ..._log import logger
from ..._process import raise_interrupt
from ...events import CallInfo
from .._failures import is_unsent
from .._operations import Operation
from .._options import Priority

TOO_MANY_REQUESTS: Final = int(httpx.codes.TOO_MANY_REQUESTS)
_UNRELATED_STATUSES: Final = frozenset({401, 403, 407, 408, 425})  # Refusals before the quota is checked.


class RateChange(NamedTuple):
    """A change of rate, in requests per second, and the reason for it; `share` is the name of the group, if any."""

    old: float
    new: float
    reason: str
    share: str | None = None


class Turn:
    """One request's wait for a permit. The layer asks the limiter with it until the request is admitted.

    Attributes:
        request: the request to send; None for a permit without one.
        cost: units that it takes from a limiter that counts them.
        priority: "normal" or "low".
        chance: a random number in [0, 1), drawn for this turn.
        number: the place in the queue, assigned by the limiter; lower numbers are served first. A later attempt of a
            call has the number of the one before; 0 is new.
        not_before: when it may be sent at the earliest, in seconds of the clock; set by `learn` for the next attempt.
        nap: seconds after which to ask again, if that is earlier than the wait; set by the limiter.
        is_guess: whether the wait is only a guess, so that asking again may succeed sooner; set by the limiter.
        granted: whether the permit has been taken, and neither given back nor ended; set by the limiter.
        paced: whether the limiter handles the wait after this refusal, so that retry need not; set by `learn`.
        excused: whether this refusal uses up no attempt of the retry policy; set by `learn`.
        errand: an operation to run after the answer, such as saving what was learned; set by `learn`.
        call: the request's call, for events; set before the layer runs an operation for the limiter, if it has any.
    """

    # Defaults are class attributes, except those used in every wait: instance attributes that hide class attributes are
    # slower. An instance with more attributes than the first few instances had gets its own dict, of 400 bytes.
    not_before: float = -math.inf
    nap: float
    is_guess: bool
    paced: bool = False
    excused: bool = False
    errand: Operation | None = None
    call: CallInfo | None = None
    # The rest is for stkai's own limiters.
    costs: dict[Any, float] | None = None  # Units by source, if they differ from `cost`.
    excuses: int = 0  # How many refusals of the call's earlier attempts were excused.
    asked: float  # When it first asked.
    due_at: float  # When it is due.
    wakes_at: float  # When it asks again at the latest; after `due_at`, if that is only a guess.
    slack: float  # Seconds that it sleeps longer: the turns before it may be late.
    rest: float  # Seconds that it sleeps at least if it can be woken, as it is if it can go early.
    held_by: Any  # The source that held it up when it last asked.
    certain: float  # Seconds that it has to wait, however wrong guesses are; infinite if nothing was guessed.
    is_woken: bool  # Whether it was woken, so that it will ask immediately.
    moves_up: bool  # Whether it may be admitted earlier than announced: turns before it have left.
    wake: Callable[[], object] | None  # Ends its sleep, from any thread, if the driver supports that.
    notes: dict[Any, Any] | None = None  # What sources and paces noted about its permits.
    custom: tuple[Any, ...] = ()  # Those of its sources that are custom limiters.
    is_admitted: bool = False  # Whether all custom limiters have admitted it.
    is_known: bool = False  # Whether a custom limiter was asked about it since it last left.
    loop_has_ended: Callable[[], bool] = bool  # If so, its task will never run again; `bool` returns False.
    is_by_hand: bool = False  # Whether user code asks with it: no layer or permit keeps it alive.
    parts: tuple[Any, ...] = ()  # The limiters of its plan, in that case.

    def __init__(
        self,
        request: httpx.Request | None = None,
        number: int = 0,
        chance: float = 0.5,
        cost: float = 1.0,
        priority: Priority = "normal",
        sources: tuple[Any, ...] = (),
    ) -> None:
        self.request = request
        self.number = number
        self.chance = chance
        self.cost = cost
        self.priority = priority
        self.sources = sources  # Where it takes its permits from.
        self.granted, self.since = False, 0.0  # `since` is when it received its permit.
        self.nap = self.due_at = self.wakes_at = self.certain = math.inf
        self.asked = self.slack = self.rest = 0.0
        self.is_guess = self.is_woken = self.moves_up = False
        self.held_by = self.wake = None

    def note(self, by: object, what: Any) -> None:
        """Store a note of a source or a pace about this turn."""
        self.notes = {**(self.notes or {}), by: what}

    def noted(self, by: object) -> Any:
        """The note of `by`; None if there is none."""
        return None if self.notes is None else self.notes.get(by)

    def resume(self, earlier: "Turn") -> None:
        """Take over the place of an earlier attempt of the same call."""
        self.number, self.not_before = earlier.number, earlier.not_before
        self.excuses = earlier.excuses + earlier.excused
        for source in earlier.custom:
            if (inner := earlier.noted(source)) is not None:
                self.note(source, inner.again())

    def again(self) -> "Turn":
        """A turn for another attempt of the same call."""
        turn = Turn(self.request, chance=self.chance, cost=self.cost, priority=self.priority)
        turn.resume(self)
        return turn


number_of: Final = attrgetter("number")


def place_in(line: Sequence[Turn], turn: Turn) -> int:
    """The index of the turn in a line, or the index at which it belongs."""
    place = bisect_left(line, turn.number, key=number_of)
    while place < len(line) and line[place].number == turn.number and line[place] is not turn:
        # Two parallel attempts of one call.
        place += 1
    return place


@dataclass(slots=True, eq=False)
class Answer:
    """The outcome of a request that received its permit.

    Attributes:
        sent: when it received its permit, in seconds of the clock.
        now: when the answer arrived, in seconds of the clock.
        response: the head of the response; None after an error.
        error: the exception that was raised instead; None after a response.
        date: a function that returns the wall-clock time, with its time zone.
        chance: a random number in [0, 1), drawn for this answer.
    """

    sent: float
    now: float
    response: httpx.Response | None
    error: BaseException | None
    date: Callable[[], datetime]
    chance: float

    @property
    def is_refusal(self) -> bool:
        """Whether the server refused the request because the quota is used up (429)."""
        return self.response is not None and self.response.status_code == TOO_MANY_REQUESTS


@runtime_checkable
class Limiter(Protocol):
    """Decides when a request may be sent. Pure: it receives the time as an argument, and never waits, sends or sleeps.

    Derive from it, or write an object with the same members; a limiter layer takes either. Several threads and event
    loops may use one object concurrently: guard its state with a lock that is held for arithmetic only.

    If it has a method `end(turn, now)`, that is called when the body of the answer has ended or was closed.
    """

    if TYPE_CHECKING:

        @property
        def methods(self) -> Collection[str] | None:
            """HTTP methods that need a permit; None for all."""
            return None

        @property
        def max_wait_time(self) -> float | None:
            """Seconds that a call may wait for permits; None waits as long as necessary."""
            return None

    else:  # A class that derives from it may set them.
        methods: Collection[str] | None = None
        max_wait_time: float | None = None

    def ask(self, turn: Turn, now: float) -> float | Operation:
        """Whether the request may be sent at `now` (seconds of the clock).

        Returns:
            0.0 if it may; the permit is then taken. Otherwise an estimate of the seconds to wait; the layer asks again
            after them, or after `turn.nap`. Or an operation to run before the layer asks again.
        """
        ...

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or a permit that was taken but not used."""
        return

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Learn from an answer or an error. Returns a change of rate that is worth reporting, or None."""
        return None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took to its actual cost."""
        return


@runtime_checkable
class Pricing(Protocol):
    """What a call costs, before it is sent and after it was answered; `llm_tokens()` returns one."""

    def estimate(self, request: httpx.Request) -> float:
        """Units that a request will probably take."""
        ...

    def settle(self, response: httpx.Response) -> float | None:
        """Units that the request took; None if the answer does not report them."""
        ...


Cost = Callable[[httpx.Request], float] | Pricing
"""What a limiter accepts as `cost`."""


# Not a NamedTuple: its fields are read for every request, and slots are faster.
@dataclass(frozen=True, slots=True)
class Plan:
    """What a request needs from a limiter, depending on its method."""

    sources: tuple[Any, ...] = ()  # Where the request takes its permits from; none for a custom limiter.
    custom: tuple[Any, ...] = ()  # Those that are custom limiters.
    priced: tuple[Any, ...] = ()  # The limiters that count units: they have `max_cost` and `settle`.
    ends: bool = False  # Whether one of them must be notified when the answer has ended.
    # Whether a success could teach anything, at this instant or later; None if successes never do.
    listens: Callable[[float], bool] | None = None
    max_wait_time: float | None = None  # Seconds.
    parts: tuple[Any, ...] = ()  # The limiters of a list: a `PerKey` keeps those that are referenced.
    is_plain: bool = field(init=False)  # Whether an answer that teaches nothing needs no handling.
    # Whether a success needs handling, depending on when it arrives; None if none ever does.
    handles: Callable[[float], bool] | None = field(init=False)

    def __post_init__(self) -> None:
        is_plain = not (self.custom or self.priced or self.ends)
        object.__setattr__(self, "is_plain", is_plain)
        object.__setattr__(self, "handles", self.listens if is_plain else lambda _: True)


def was_never_sent(error: BaseException | None) -> bool:
    """Whether a request that ended with this error did not reach the server."""
    return isinstance(error, ClientSideRateLimitError) or is_unsent(error, sound_wire=True)


def was_admitted(response: httpx.Response) -> bool:
    """Whether the quota admitted the request, if this is not a 429; a server error does not show that."""
    return response.status_code < 500 and response.status_code not in _UNRELATED_STATUSES


def log_failure(limiter: object, error: Exception) -> None:
    """Log an exception of `learn`, `end` or `leave`, which must not replace the outcome; an interrupt is raised."""
    raise_interrupt(error)
    logger.error("%s failed on an answer, or when a request left", type(limiter).__name__, exc_info=error)


def notify(limiter: object, method: str, turn: Turn, *news: Any) -> Any:
    """Call any method but `ask`, if the limiter has it, and log its exceptions."""
    try:
        return getattr(limiter, method, lambda *_: None)(turn, *news)
    except Exception as error:  # noqa: BLE001 - user code
        log_failure(limiter, error)


class Chooser:
    """Chooses a limiter for each request."""

    def limiter_for(self, request: httpx.Request) -> Limiter:
        raise NotImplementedError


def subscribe(limiter: object, layer: Any) -> None:
    """Let a limiter report its events to the listener of a layer's stack, if it has any."""
    method = getattr(limiter, "subscribe", None)
    if method is not None:
        method(layer)
