"""The protocol `Limiter`, and what a limiter layer tells a limiter."""

import math
from collections.abc import Callable, Collection
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

import httpx

from ...events import CallInfo
from .._operations import Operation
from .._options import Priority


class RateChange(NamedTuple):
    """A change of a rate, in requests per second, and the reason."""

    old: float
    new: float
    reason: str


class Turn:
    """One request's wait for a permit. The layer asks the limiter with it until the request may go.

    Attributes:
        request: what is to be sent.
        cost: units that it takes from a limiter that counts them.
        priority: "normal" or "low".
        chance: a random number in [0, 1), drawn for this turn.
        number: the place in the queue, given by the limiter; the lower one goes first. An attempt that comes back
            brings the number of the one before; 0 is new.
        nap: seconds after which to ask again, if that is earlier than the wait; set by the limiter.
        granted: whether the permit has been taken; set by the limiter.
        paced: whether the limiter handles the wait after this refusal, so that retry need not; set by `learn`.
        call: the request's call, for events; set before the layer runs an operation for the limiter.
        since, told: for a queue of tickets: when the turn joined, or got its permit; and when it may go, as it was last
            told.
        extra, ahead: for a queue of tickets: what it takes beyond one permit, and the sum for all who joined before it.
    """

    __slots__ = (
        "ahead", "call", "chance", "cost", "extra", "granted", "nap", "number", "paced", "priority", "request", "since",
        "told",
    )  # fmt: skip

    def __init__(
        self,
        request: httpx.Request | None = None,
        *,
        number: int = 0,
        chance: float = 0.5,
        cost: float = 1.0,
        priority: Priority = "normal",
    ) -> None:
        self.request = request
        self.number = number
        self.chance = chance
        self.cost = cost
        self.priority = priority
        self.call: CallInfo | None = None
        self.nap = math.inf
        self.granted = self.paced = False
        self.since = self.told = self.extra = self.ahead = 0.0


class Answer:
    """The outcome of a request that had its permit.

    Attributes:
        sent: when it got its permit, in seconds of the clock.
        now: when the answer came, in seconds of the clock.
        response: the head of the response; None after an error.
        error: what was raised instead.
        date: tells the time of the wall clock, with its zone.
        chance: a random number in [0, 1), drawn for this answer.
    """

    __slots__ = ("chance", "date", "error", "now", "response", "sent")

    def __init__(
        self,
        sent: float,
        now: float,
        response: httpx.Response | None,
        error: BaseException | None,
        date: Callable[[], datetime],
        chance: float,
    ) -> None:
        self.sent, self.now, self.response, self.error = sent, now, response, error
        self.date, self.chance = date, chance


@runtime_checkable
class Limiter(Protocol):
    """Decides when a request may go. Pure: it is told the time, and never waits, sends or sleeps.

    Derive from it, or write an object with the same members; a limiter layer takes either. Several threads and event
    loops may ask one object at once: guard its state with a lock, held for arithmetic only.

    Attributes:
        methods: HTTP methods that need a permit.
        max_wait_time: seconds that a call may wait for permits; None waits as long as necessary.
    """

    methods: Collection[str]
    max_wait_time: float | None

    def ask(self, turn: Turn, now: float) -> float | Operation:
        """Whether the request may go at `now` (seconds of the clock).

        Returns:
            0.0 if it may, and the permit is taken. Otherwise the seconds that it has to wait, as far as is known; the
            layer asks again after them, or after `turn.nap`. Or an operation to carry out before the layer asks again.
        """
        ...

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or the permit that was taken and not used."""
        return

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Take note of the answer, or of the error in its place. Returns a change of rate worth reporting."""
        return None

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Correct the units that the request took, now that its real cost is known."""
        return
