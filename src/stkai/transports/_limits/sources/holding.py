"""What a member of a share holds and knows: permits and units of cost, the demand for them, and the state of its group.

Instants are on the member's clock, in seconds. Totals count from the member's start.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ....stores._protocol import AHEAD, LATE, Ask, Lease
from ..limiter import Turn, place_in
from . import ROUNDING

CALL_LIFETIME: Final = 1.0  # Seconds after which a reserved or running call no longer holds up others.
CLOCK_ROUNDING: Final = 1e-9  # Seconds; tolerance for the rounding of a clock.

# Seconds' worth of permits that a member holds; more if the store answers slowly, or in a large group.
_HELD_SPAN: Final = 0.08
# Calls per second that a large group makes together: its members hold permits for longer.
_GROUP_CALLS: Final = 60

# Seconds before its last permit is due at which a member leases the next ones; fewer while it has permits for many of
# its requests: one lease of many permits is cheaper than many leases.
_LEAD: Final = 0.02
_SHORT_LEAD: Final = 0.002

# A held permit is exchanged if it is due later than this many times the wait for a new one, and so many seconds.
_EXCHANGE_FACTOR: Final = 3.0
_EXCHANGE_GAIN: Final = 2.0

_LARGE_COST: Final = 0.1  # Fraction of a bucket of units.

_RETRY_DELAY: Final = 0.05  # Seconds after which a member that got no permit asks again.

# Seconds for which the previous size of a group applies: after an outage, its members return one by one.
_GROUP_MEMORY: Final = 10.0

_STEADY_USAGE: Final = 10  # Requests are steady if they used more permits in the last `_STEADY_SPAN` seconds.
_STEADY_SPAN: Final = 0.25


class Holding:
    """Permits and units that are leased but not used, and the totals since the member started."""

    def __init__(self) -> None:
        self.due: list[float] = []  # When each permit may be used, in ascending order.
        self.units = self.spent = 0.0
        self.reported = 0.0  # Units in the last report that arrived.
        self.used = self.lapsed = 0  # Lapsed permits were given up after their time.
        self.delay = 0.0  # By how many seconds at most permits were used late since the last report.
        self.unsent_since = math.inf  # When the first was used of those put back since the last report.
        self.late = LATE  # Seconds after its time at which a permit lapses; more while requests wake late.

    @property
    def last(self) -> float:
        """When the last permit may be used; -inf without any."""
        return self.due[-1] if self.due else -math.inf

    def waits_long(self, now: float) -> bool:
        """Whether a permit is due so late that an earlier one would be worth a call to the store."""
        return self.last > now + _EXCHANGE_GAIN

    def add(self, ranges: Iterable[tuple[float, float, int]], units: float, now: float) -> None:
        """Add leased permits and units; see `Lease`."""
        for first, gap, count in ranges:
            for number in range(count):
                insort(self.due, now + first + number * gap)
        self.units += units

    def use(self, cost: float, now: float) -> None:
        """Use the first permit for a request with this cost."""
        self.delay = max(self.delay, now - self.due[0])
        del self.due[0]
        self.used += 1
        self.units -= cost
        self.spent += cost

    def put_back(self, cost: float, since: float) -> None:
        """Return a permit that was taken but not used: it is reported as lapsed, and the store leases it again."""
        self.unsent_since = min(self.unsent_since, since)
        self.used -= 1
        self.lapsed += 1
        self.units += cost
        self.spent -= cost

    def owes_report(self, bucket: float) -> bool:
        """Whether so much was spent of a bucket of units that the store must know immediately.

        Until then, it counts all of it as still in the bucket, which does not fill while it is full.
        """
        return self.spent - self.reported > _LARGE_COST * bucket > 0

    def lapse(self, now: float, member: Any) -> bool:
        """Give up the permits that no request used in time; returns whether there were any."""
        due, count, late = self.due, 0, self.late
        if due and due[0] < now - late:
            if member.turns and (starts := lease_time(member, member.turns[0])) < math.inf:
                late += max(0.0, min(starts + LATE - due[0], grace(member, member.turns[0])))
            count = bisect_right(due, now - late - CLOCK_ROUNDING)
            del due[:count]
            self.lapsed += count
        return count > 0

    def keep(self, permits: int, units: float) -> None:
        """Keep only the first `permits` permits, and `units` units; the next message reports what is kept."""
        del self.due[permits:]
        self.units = units

    def rewind(self, used: int, lapsed: int) -> None:
        """Forget a void lease, and what was used of it since the message with these totals.

        The store has already written it off: reported again, these uses would be charged to the next lease.
        """
        self.keep(0, 0.0)
        self.used, self.lapsed = used, lapsed


class Demand:
    """Whether requests arrive steadily, so that the next ones can be expected."""

    def __init__(self) -> None:
        self.used_at = self._asked_at = -math.inf
        self.steady = 0  # How many requests are expected before the next call.
        self._usage = 0.0
        self._last, self._counted = 0, (0, 0)

    def update(self, held: Holding, now: float, group: "GroupStatus", waiting: int) -> None:
        """Update the expectation before a call to the store. While no permits lapse, it grows with each call.

        If the store is far away, a few requests suffice, including those that are `waiting`: requests that arrive
        before it answers would find no permit. As calls follow each other closely then, the previous call also counts.
        """
        used, lapsed = held.used - self._counted[0], held.lapsed - self._counted[1]
        self._counted = held.used, held.lapsed
        fading = max(0.0, 1 - (now - self._asked_at) / _STEADY_SPAN)
        self._usage, self._asked_at = self._usage * fading + used, now
        least, recent = _STEADY_USAGE, LATE
        if group.is_far:
            least, recent = 0, max(LATE, group.lead())
            used, self._last = max(used, self._last, waiting), used
        is_steady = self._usage > least and now < self.used_at + recent
        self.steady = (max(0, used - lapsed) if lapsed else 2 * used) if is_steady else 0


@dataclass
class StoreCall:
    """One message to the store and its answer."""

    turn: Turn | None  # The turn that makes the call; None if no request does.
    sent: float  # When it began; until then, when it was reserved.
    is_last: bool  # Whether the member leaves the group with it.
    ask: Ask | None = None  # The message, once the call has begun.


class GroupStatus:
    """The state of the group, as of the store's last answer."""

    def __init__(self) -> None:
        self.lease: Lease | None = None  # The last answer; None if the store was never reached.
        self.as_of = -math.inf  # When the message that it answers was sent.
        self.retry_at = -math.inf  # When to ask again, if it had no permits, and none have lapsed since.
        self.sleep_until = -math.inf  # The same, even if some have: turns may sleep until then.
        self.queue_until = -math.inf  # When a permit requested now could be used.
        self.paused_until = self._members_at = -math.inf
        self.latency = 0.0
        self.members = 1  # The number of members, or the recent number if that was larger.
        self.active = 1  # How many of them wait for permits or hold some.

    def update(self, lease: Lease, sent: float, now: float, *, is_empty: bool) -> None:
        """Apply the answer to a message sent at `sent`; `is_empty` if it has no permits, but some are needed soon."""
        if now - sent < CALL_LIFETIME:  # A suspension of the process says nothing about the store.
            self.latency = max(now - sent, 0.8 * self.latency)
        self.lease, self.as_of, self.active = lease, sent, lease.active
        if lease.members >= self.members or now > self._members_at + _GROUP_MEMORY:
            self.members, self._members_at = lease.members, now
        self.queue_until = now + lease.queue
        if lease.pause:
            self.paused_until = max(self.paused_until, now + lease.pause)
        self.retry_at = self.sleep_until = now + max(lease.again, _RETRY_DELAY if is_empty else 0.0)

    def timely(self, member: Any, turns: Sequence[Turn], now: float) -> int:
        """How many of the permits that are held for these turns cannot be exchanged for much earlier ones.

        The store has earlier ones if the rate has risen, or if other members have returned places or units. But turns
        of low priority might get none instead, and those of several shares need permits that are due together.
        """
        lease, held = self.lease, member.held
        count = len(held.due)
        if lease is None or not (held.waits_long(now) and self.leases(now)):
            return count
        # Other members may have leased since an older answer what it says is left.
        is_fresh = now - self.as_of <= 2 * self.latency + LATE
        if not is_fresh and not lease.quota.max_cost:
            return count
        if all(turn.priority == "low" for turn in turns) or any(is_bound(member, turn) for turn in turns):
            return count
        soonest = max(AHEAD, self.queue_until - now)
        if lease.quota.max_cost:
            if lease.units_left is None:
                return count
            if not is_fresh:  # A message is due anyway. With returned units, the next permit is due no later.
                return bisect_right(held.due, now + _EXCHANGE_GAIN)
            # Units that are returned and leased again come after all others' leases.
            costs = [member.cost_of(turn) for turn in turns[:count]]
            costs[-1] = min(costs[-1], lease.quota.max_cost)  # More than that is paid afterwards.
            missing = sum(costs) - held.units - lease.units_left
            soonest = max(soonest, missing / lease.quota.cost_rate)
        return bisect_right(held.due, now + _EXCHANGE_FACTOR * soonest + _EXCHANGE_GAIN)

    @property
    def is_far(self) -> bool:
        """Whether calls to the store take so long that no request should wait for a call unnecessarily."""
        return self.latency > _LEAD

    def leases(self, now: float) -> bool:
        """Whether the store leases permits now, according to its last answer."""
        return now >= max(self.paused_until, self.retry_at)

    def lead(self, *, short: bool = False) -> float:
        """How many seconds before an instant to ask the store, to have its answer in time."""
        return min(AHEAD, max(_SHORT_LEAD if short else _LEAD, 1.25 * self.latency))

    def most(self, rate: float) -> int:
        """The most permits to hold: one more than this member's part of a short time or, if more, of the burst."""
        reach = min(AHEAD, max(_HELD_SPAN, 2.5 * self.latency, self.active / _GROUP_CALLS))
        burst = 0.0 if self.lease is None else -self.lease.queue
        return max(1, math.floor(rate * max(reach, burst) / self.active + ROUNDING)) + 1


def shares_of(turns: Sequence[Turn]) -> int:
    """How many shares the first turn needs permits of, one after the other."""
    return sum(source.is_remote for source in turns[0].sources) if turns else 1


def lease_time(member: Any, turn: Turn) -> float:
    """When to lease a permit for a turn that also has permits of other shares; -inf if it has none.

    A turn gets the permit of the slowest share first: otherwise, members would hold permits of one share each, and wait
    for those of another until all lapse. Of two shares with one rate, the one with the shorter window is stricter.
    """
    instant, own = -math.inf, (member.rate, member.quota.window, member.share)
    for other in turn.sources if len(turn.sources) > 1 else ():
        if other is member or not other.is_remote or other.outage.is_on:
            continue
        due, place = other.held.due, place_in(other.turns, turn)
        if place < len(due):
            instant = max(instant, due[place] - 1.25 * member.group.latency - LATE / 2)
        elif not grace(member, turn) and (other.rate, other.quota.window, other.share) < own:
            return math.inf
    return instant


def is_bound(member: Any, turn: Turn) -> bool:
    """Whether a permit for the turn must not miss one of another share."""
    return shares_of([turn]) > 1 and (not member.max_cost or lease_time(member, turn) > -math.inf)


def grace(member: Any, turn: Turn) -> float:
    """For how many seconds a permit that the turn has waits for one of another share.

    That one may come later because another member has units of its share, and waits for some of this one: each would
    give up what the other waits for, again and again. Permits without units are given up: others can use them.
    """
    return CALL_LIFETIME if member.max_cost and place_in(member.turns, turn) < len(member.held.due) else 0.0


def kept_until(member: Any, turn: Turn, now: float) -> float:
    """Until when the permit that the turn has, or would get now, waits for one of another share."""
    seconds = grace(member, turn) if shares_of([turn]) > 1 else 0.0
    return max(now, member.held.due[place_in(member.turns, turn)]) + seconds if seconds else now
