"""The permits that a member has leased, and what it still has to report to its store."""

import math
from bisect import insort
from typing import Final

from ...stores import Ask, Lease, Refusal

_EPOCHS: Final = 8
"""Epochs to remember: a refusal is reported with the epoch in which its request was sent."""


class Permits:
    """Leased permits in the order of their instants on the member's clock, in seconds.

    Attributes:
        due: when each may be used.
        costs: the units charged for each.
        horizon: when the last permit ever leased may be used.
        per_permit: observed seconds between permits while other members also wait.
        epoch: the epoch in which they were leased.
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
        self.rate = 0.0
        self._since: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.due)

    @property
    def has_news(self) -> bool:
        """Whether there is something to report to the store."""
        return bool(self.back or self.settle or self.refusal)

    def take_in(self, lease: Lease, ask: Ask, now: float) -> None:
        """Add the leased permits; those of an older epoch are void."""
        if lease.epoch != self.epoch:
            self.settle -= sum(self.costs)
            self.due.clear()
            self.costs.clear()
            self.back.clear()
            self.horizon = -math.inf
            self.epoch = lease.epoch
            self._since = [*self._since[-_EPOCHS:], (now, lease.epoch)]
        self.pace(lease.rate, max(now, now + lease.pause))
        before = max(self.horizon, now)
        for number in range(min(lease.count, ask.want)):
            place = now + max(0.0, lease.wait) + number * lease.spacing
            insort(self.due, place)
            self.costs.append(ask.costs[number] if number < len(ask.costs) else 0.0)
            self.horizon = max(self.horizon, place)
        if lease.count:
            self.per_permit = max(1.0 / lease.rate, (self.horizon - before) / lease.count)

    def pace(self, rate: float, start: float) -> None:
        """Move the permits due after `start` as the store moves its places when the group's rate changes."""
        if self.rate > 0 and rate != self.rate:
            ratio = self.rate / rate
            self.due = [start + (due - start) * ratio if due > start else due for due in self.due]
            if self.horizon > start:
                self.horizon = start + (self.horizon - start) * ratio
        self.rate = rate

    def use(self, place: int, cost: float) -> None:
        """Use a permit for a request of that cost."""
        del self.due[place]
        charged = self.costs.pop(place)
        if self.costs or charged:
            self.settle += cost - charged

    def give_back_all_but(self, most: int, now: float) -> None:
        """Give back permits that no request is left to use."""
        while len(self.due) > most:
            self.back.append(self.due.pop())
            self.settle -= self.costs.pop()

    def epoch_at(self, instant: float) -> int:
        """The epoch known at that instant."""
        found = self._since[0][1] if self._since else self.epoch
        for since, epoch in self._since:
            if since <= instant:
                found = epoch
        return found

    def refuse(self, sent: float, until: float) -> None:
        """Record a refusal to report; several are merged into the latest epoch and the longest pause."""
        epoch = self.epoch_at(sent)
        if self.refusal is not None:
            epoch, until = max(epoch, self.refusal[0]), max(until, self.refusal[1])
        self.refusal = epoch, until

    def tell(self, now: float) -> tuple[tuple[float, ...], float, Refusal | None]:
        """What to report to the store: places given back, units, and a refusal. They then count as reported."""
        back = tuple(place - now for place in self.back)
        settle, refusal = self.settle, self.refusal
        self.back, self.settle, self.refusal = [], 0.0, None
        return back, settle, None if refusal is None else Refusal(refusal[0], max(0.0, refusal[1] - now))

    def untell(self, ask: Ask, now: float) -> None:
        """Take back a report that did not reach the store."""
        self.back = [now + seconds for seconds in ask.back] + self.back
        self.settle += ask.settle
        if ask.refused is not None:
            epoch, until = ask.refused.epoch, now + ask.refused.pause
            if self.refusal is not None:
                epoch, until = max(epoch, self.refusal[0]), max(until, self.refusal[1])
            self.refusal = epoch, until
