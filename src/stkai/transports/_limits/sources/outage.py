"""The local part of the quota that this process uses while the store is unreachable, and shortly afterwards."""

import math
from collections.abc import Sequence
from typing import Any, Final

from ....stores._protocol import AHEAD, UNLIMITED, Ask, Quota
from ..limiter import Turn
from . import ROUNDING, Limits, Source
from .holding import CALL_LIFETIME
from .request_limits import Rate
from .units import Units

# Seconds after an outage during which a request needs a permit from both, because members return one by one.
TRANSITION: Final = 1.5

# A process that has never reached the store uses this fraction of the quota: of many that start at once, all may be
# late. After this many consecutive failures while no process uses the store, it adapts alone.
_FIRST_FRACTION: Final = 0.1
_FAILURES_TO_ADAPT: Final = 3

PROBE_INTERVAL: Final = 0.5  # Seconds between two probes of a lost store.

# Consecutive failures before an outage is announced: a single lost message is not one.
_FAILURES_TO_ANNOUNCE: Final = 2


class Outage:
    """The local sources that replace the store for requests that wait for `leased`."""

    def __init__(self, leased: Any) -> None:
        self._leased = leased
        self.is_on = False  # Whether the store is unreachable now.
        self.since = -math.inf
        self.failures = 0  # Consecutive calls that failed.
        self.in_use = 0  # How many had failed when other processes were last seen to use the store.
        self.reported = 0  # Permits of the local sources in the last report, if it was not answered.
        self.used = 0  # Permits of the local sources that were not reported yet, and their cost.
        self.spent = 0.0
        self._local: Sequence[Source] = ()
        # Until when they are in force: while the store is unreachable, and shortly afterwards.
        self._until = -math.inf
        self._members = 0  # Of the group, when these were created; 0 if unknown.
        self._fractions = 1.0, 1.0  # The local sources' parts of the quota's requests and units.
        self._updated: Limits | None = leased.updated  # Limits that the store does not know yet.

    @property
    def sources(self) -> Sequence[Source]:
        """The local sources in force. Turns that wait for `leased` wait for them."""
        if self._until == -math.inf:
            return ()
        leased = self._leased
        for source in self._local:
            source.order, source.line, source.waiting = leased.order, leased.line, leased.waiting
        return self._local

    @property
    def _failures_to_announce(self) -> int:
        """Consecutive failures before an outage is announced: one, if the store has never answered."""
        return 1 if self._leased.group.lease is None else _FAILURES_TO_ANNOUNCE

    def fail(self, now: float) -> bool:
        """Record that a call failed; if there was no outage, one begins. Returns whether to announce it.

        A failure during the transition belongs to the same outage; its sources continue unless the group is larger than
        was known: a member that had never reached the store before may have used the whole quota.
        """
        leased = self._leased
        self._end_transition(now)
        self.failures += 1
        if not self.is_on:
            self.since = now
            self.failures -= bool(self.sources)
        streak = self.failures - self.in_use
        members = 0 if leased.group.lease is None else leased.group.members
        adapts_alone = not members and streak >= _FAILURES_TO_ADAPT
        if not self._local or members > self._members or (adapts_alone and streak == _FAILURES_TO_ADAPT):
            self._members, self._fractions = members, (1.0, 1.0)
            self._local = leased.alone() if adapts_alone else self._make_local(now)
            for source in self._local:
                source.stands_for = leased
            self._apply()
        self.is_on, self._until = True, math.inf
        return self.failures == self._failures_to_announce

    def end(self, now: float, ask: Ask) -> bool:
        """Record that the store answered this message. Returns whether to announce the end of an outage."""
        self.used -= ask.own
        self.reported = 0
        self.spent = 0.0
        if ask.quota == self._leased.quota:
            self._updated = None
        if not self.is_on:
            # After a mere probe, the next call that requests permits may fail, and these sources are used again.
            if ask.want and not self.sources:
                self._local = ()
            return False
        failures, self.failures, self.is_on = self.failures, 0, False
        self._until = now + TRANSITION if failures >= _FAILURES_TO_ANNOUNCE else -math.inf
        return failures >= self._failures_to_announce

    def update(self, limits: Limits) -> None:
        """Apply new limits to the local sources, now and in later outages, until the store has received them."""
        self._updated = limits
        self._apply()

    def _apply(self) -> None:
        new = self._updated
        if new is None:
            return
        requests, units = self._fractions
        most = None if new.max_requests is None else requests * new.max_requests
        cost = None if new.max_cost is None else units * new.max_cost
        new = Limits(most, new.time_window, cost)
        for source in self._local:
            if source.counts_units or new.max_requests is not None:
                source.update(new)

    def _end_transition(self, now: float) -> None:
        """Drop the local sources once their time is over; a later outage gets new ones."""
        if -math.inf < self._until <= now:
            self._local, self._until = (), -math.inf

    def is_long(self, now: float) -> bool:
        """Whether all permits from before the outage were used or have lapsed."""
        return self.is_on and now > self.since + CALL_LIFETIME

    # As sources

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        self._end_transition(now)
        return max([source.when(turn, ahead, now) for source in self.sources], default=0.0)

    def take(self, turn: Turn, now: float) -> None:
        if self.is_on:
            self.used += 1
            self.spent += self._leased.cost_of(turn)
        for source in self.sources:
            source.take(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        """Return a permit that came only from the local sources."""
        self.used -= 1
        if self.is_on:
            self.spent -= self._leased.cost_of(turn)
        for source in self.sources:
            source.give_back(turn, now)

    def debt(self, now: float) -> float:
        """Units spent in the outage and not refilled since, which must be missing from the group's bucket."""
        missing = sum(source.missing(now) for source in self._local if isinstance(source, Units))
        return max(0.0, min(self.spent, missing))

    def available(self, now: float, seconds: float) -> float:
        return min([source.available(now, seconds) for source in self.sources], default=math.inf)

    def _make_local(self, now: float) -> list[Source]:
        """Create sources for one member's part of the quota, without a burst; a small one if no store was ever reached.

        If the group has leased permits far ahead, its window may be used up, so they start when those permits end. The
        window of this member's own requests limits it to its part, as if the others had used as much.
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
    """The requests that a member with this fraction of the quota may use in any window; all, in an adaptive group."""
    most = quota.rate * quota.window * fraction if quota.window else UNLIMITED
    return Limits(max(1, math.floor(most + ROUNDING)), quota.window or 1.0)
