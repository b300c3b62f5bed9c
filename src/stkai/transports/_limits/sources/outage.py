"""This process's own part of the quota, while the store is out of reach and shortly afterwards."""

import math
from collections.abc import Sequence
from typing import Any, Final

from ....stores._protocol import AHEAD, Ask, Quota
from ..limiter import Turn
from .holding import CALL_LIFETIME
from .request_limits import Rate
from .source import ROUNDING, Limits, Source
from .units import Units

TRANSITION: Final = 1.5
"""Seconds after an outage during which a request needs a permit from both, since members return one by one."""

_FAILURES_TO_ADAPT, _FIRST_FRACTION = 3, 0.1
"""Calls in a row that must fail, while nobody uses the store, before a process that has never reached it adapts alone;
and the share of the quota that it uses until then: many that start at once may all be late."""

_FIRST_PROBE_DELAY: Final = 0.25
_MAX_PROBE_DELAY: Final = 1.0
"""Seconds between two probes of a lost store."""

_FAILURES_TO_ANNOUNCE: Final = 2
"""Calls in a row that must fail before an outage is announced: one lost message is no outage."""


class Outage:
    """The local sources that take the place of the store for the requests that wait for `leased`."""

    def __init__(self, leased: Any) -> None:
        self._leased = leased
        self.is_on = False  # Whether the store is out of reach now.
        self.since = -math.inf
        self.failures = 0  # Calls that have failed in a row.
        self.in_use = 0  # How many of them had failed when other processes last used the store.
        self.used = 0  # Permits of the local sources that were not reported yet, and what they cost.
        self.spent = 0.0
        self._local: Sequence[Source] = ()
        # How long they are in force: while the store is out of reach, and shortly afterwards.
        self._until = -math.inf
        # Numbers that the store does not know yet, and this member's part of its requests and units; all if it is None.
        self._updated: Limits | None = leased.updated
        self._fractions: tuple[float, float] | None = None

    @property
    def sources(self) -> Sequence[Source]:
        """The local sources in force. Turns that wait for `leased` wait for these."""
        if self._until == -math.inf:
            return ()
        for source in self._local:
            source.waiting = self._leased.waiting
        return self._local

    @property
    def probe_after(self) -> float:
        """Seconds after which to check whether the store is back."""
        if self.failures == 1:
            return 0.0
        return min(_FIRST_PROBE_DELAY * 2.0 ** max(0, self.failures - 2), _MAX_PROBE_DELAY)

    @property
    def _failures_to_announce(self) -> int:
        """Calls in a row that must fail before it is announced: one, if the store has never answered."""
        return 1 if self._leased.group.lease is None else _FAILURES_TO_ANNOUNCE

    def fail(self, now: float) -> bool:
        """Note that a call has failed; if there was no outage, one begins. Returns whether to announce it.

        A store that fails once more while it returns is still in the same outage.
        """
        leased = self._leased
        self.failures += 1
        if not self.is_on:
            self.since = now
            self.failures -= bool(self.sources)
        streak = self.failures - self.in_use
        adapts_alone = leased.group.lease is None and streak >= _FAILURES_TO_ADAPT
        if not self._local or (adapts_alone and streak == _FAILURES_TO_ADAPT):
            self._fractions = None
            self._local = leased.alone() if adapts_alone else self._make_local(now)
            for source in self._local:
                source.stands_for = leased
            self._apply()
        self.is_on, self._until = True, math.inf
        return self.failures == self._failures_to_announce

    def end(self, now: float, ask: Ask) -> bool:
        """Note that the store has answered this message. Returns whether to announce it."""
        self.used -= ask.own
        self.spent = 0.0
        if ask.quota == self._leased.quota:
            self._updated = None
        if not self.is_on:
            # After a mere probe, the next call that asks for permits may fail again, and continue with these sources.
            if ask.want and not self.sources:
                self._local = ()
            return False
        failures, self.failures, self.is_on = self.failures, 0, False
        self._until = now + TRANSITION if failures >= _FAILURES_TO_ANNOUNCE else -math.inf
        return failures >= self._failures_to_announce

    def update(self, limits: Limits) -> None:
        """Hold the local sources, now and in an outage to come, to new numbers until the store has received them."""
        self._updated = limits
        self._apply()

    def _apply(self) -> None:
        new = self._updated
        if new is None:
            return
        if self._fractions is not None:
            requests, units = self._fractions
            most = None if new.max_requests is None else requests * new.max_requests
            cost = None if new.max_cost is None else units * new.max_cost
            new = Limits(most, new.time_window, cost, burst=1.0)
        for source in self._local:
            if source.counts_units or new.max_requests is not None:
                source.update(new)

    def is_long(self, now: float) -> bool:
        """Whether all permits from before the outage have been used or have lapsed."""
        return self.is_on and now > self.since + CALL_LIFETIME

    # As sources

    def recover(self) -> None:
        for source in self._local:
            source.recover(())

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        if now >= self._until:
            self._local, self._until = (), -math.inf
        return max([source.when(turn, ahead, now) for source in self.sources], default=0.0)

    def take(self, turn: Turn, now: float) -> None:
        if self.is_on:
            self.used += 1
            self.spent += self._leased.cost_of(turn)
        for source in self.sources:
            source.take(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        """Give back a permit that only the local sources gave."""
        self.used -= 1
        if self.is_on:
            self.spent -= self._leased.cost_of(turn)
        for source in self.sources:
            source.give_back(turn, now)

    def owed(self, now: float) -> float:
        """Units spent that the time since has not made up for: those that the group's bucket should be short of."""
        missing = sum(source.missing(now) for source in self._local if isinstance(source, Units))
        return max(0.0, min(self.spent, missing))

    def soon(self, now: float, seconds: float) -> float:
        return min([source.soon(now, seconds) for source in self.sources], default=math.inf)

    def _make_local(self, now: float) -> list[Source]:
        """One member's part of the quota, without a burst; a small part while the store was never reached.

        It begins where the permits end that the group has leased, if these reach far: its window may be used up. The
        window of what this member has used allows it no more than its part, as if the others had used as much.
        """
        group, history, quota = self._leased.group, self._leased.history, self._leased.quota
        fraction, start, credit, rate = _FIRST_FRACTION, now, 1.0, quota.rate
        if group.lease is not None:
            fraction, credit, quota, rate = 1 / group.members, 0.0, group.lease.quota, group.lease.rate
            if group.queue_until > now + 2 * AHEAD:
                start = group.queue_until
        self._fractions = fraction * rate / quota.rate, fraction
        permits = Rate(rate * fraction, start=(start, credit))
        permits.pause(group.paused_until)
        sources: list[Source] = [permits]
        if history is not None:
            history.update(window_of(quota, fraction))
            sources.append(history)
        if quota.max_cost:
            most = quota.max_cost * fraction
            sources.append(Units(most, quota.max_cost / quota.cost_rate, start=(now, most * credit)))
        return sources


def window_of(quota: Quota, fraction: float = 1.0) -> Limits:
    """The requests that a member with such a part of the quota may use in any window."""
    return Limits(max(1, math.floor(quota.rate * quota.window * fraction + ROUNDING)), quota.window)
