"""The permits that a member has leased, and the numbers that it still has to tell its store."""

import math
from bisect import insort
from typing import Final

from ...stores import Ask, Lease, Refusal

_EPOCHS: Final = 8
"""Epochs that are remembered: a refusal is reported with that in which its request was sent."""


class Permits:
    """Leased permits in the order of their instants on the member's clock, in seconds.

    Attributes:
        due: when each may be used.
        costs: the units that were charged for each.
        horizon: when the last one that was ever leased could be used.
        per_permit: seconds between one permit and the next, as it has turned out while others waited as well.
        epoch: in which they were leased.
        back: places to give back, as instants.
        settle: units to charge.
        refusal: the epoch of a refusal to report and the end of its pause, or None.
    """

    def __init__(self) -> None:
        self.due: list[float] = []
        self.costs: list[float] = []
        self.horizon = -math.inf
        self.per_permit = 0.0
        self.epoch = -1
        self.back: list[float] = []
        self.settle = 0.0
        self.refusal: tuple[int, float] | None = None
        self._since: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.due)

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell the store."""
        return bool(self.back or self.settle or self.refusal)

    def take_in(self, lease: Lease, ask: Ask, now: float) -> None:
        """Add what was leased; permits of an older epoch are void."""
        if lease.epoch != self.epoch:
            self.settle -= sum(self.costs)
            self.due.clear()
            self.costs.clear()
            self.back.clear()
            self.horizon = -math.inf
            self.epoch = lease.epoch
            self._since = [*self._since[-_EPOCHS:], (now, lease.epoch)]
        before = max(self.horizon, now)
        for number in range(min(lease.count, ask.want)):
            place = now + max(0.0, lease.wait) + number * lease.spacing
            insort(self.due, place)
            self.costs.append(ask.costs[number] if number < len(ask.costs) else 0.0)
            self.horizon = max(self.horizon, place)
        if lease.count:
            self.per_permit = max(1.0 / lease.rate, (self.horizon - before) / lease.count)

    def use(self, place: int, cost: float) -> None:
        """Use a permit for a request of that cost."""
        del self.due[place]
        charged = self.costs.pop(place)
        if self.costs or charged:
            self.settle += cost - charged

    def give_back_all_but(self, most: int, now: float) -> None:
        """Give back what nobody is left to use."""
        while len(self.due) > most:
            self.back.append(self.due.pop())
            self.settle -= self.costs.pop()

    def epoch_at(self, instant: float) -> int:
        """The epoch that was known at that instant."""
        found = self._since[0][1] if self._since else self.epoch
        for since, epoch in self._since:
            if since <= instant:
                found = epoch
        return found

    def refuse(self, sent: float, until: float) -> None:
        """Remember a refusal to report: of several, the latest epoch and the longest pause."""
        epoch = self.epoch_at(sent)
        if self.refusal is not None:
            epoch, until = max(epoch, self.refusal[0]), max(until, self.refusal[1])
        self.refusal = epoch, until

    def tell(self, now: float) -> tuple[tuple[float, ...], float, Refusal | None]:
        """What to tell the store: places given back, units, and a refusal. They count as told."""
        back = tuple(place - now for place in self.back)
        settle, refusal = self.settle, self.refusal
        self.back, self.settle, self.refusal = [], 0.0, None
        return back, settle, None if refusal is None else Refusal(refusal[0], max(0.0, refusal[1] - now))

    def untell(self, ask: Ask, now: float) -> None:
        """The store has not heard it after all."""
        self.back = [now + seconds for seconds in ask.back] + self.back
        self.settle += ask.settle
        if ask.refused is not None:
            epoch, until = ask.refused.epoch, now + ask.refused.pause
            if self.refusal is not None:
                epoch, until = max(epoch, self.refusal[0]), max(until, self.refusal[1])
            self.refusal = epoch, until
