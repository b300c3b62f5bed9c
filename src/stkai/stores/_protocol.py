"""The interface between a member of a shared quota and its store: one atomic step per lease.

A store holds numbers, never waiting requests. All times in messages are in seconds from now, so that members whose
clocks differ can still share a quota. A member reports totals and what it holds, never single permits. The store
replaces its assumptions about the member with these, so that lost, repeated or reordered messages do no harm.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from .._errors import ConfigurationError

# The balance of permits: leased = used + returned + expired + held.
BOOKS: Final = ("leased", "used", "returned", "expired", "held")
# The maximum number of seconds for which a member leases its share of the permits in advance.
AHEAD: Final = 0.25
LATE: Final = 0.05  # Seconds for which a member reserves a permit for a request that wakes late.
UNLIMITED: Final = 1e6  # The rate of a quota that counts only units of cost, in permits per second.


class Quota(NamedTuple):
    """The terms that the members of a share must agree on.

    Attributes:
        rate: permits per second; `UNLIMITED` if only units of cost count.
        burst: permits that the group may take at once after an idle period.
        window: seconds; in any window of this length, at most `rate * window` permits are used; 0.0 without this limit.
        max_cost: units of cost that may be spent at once; 0.0 if costs do not count.
        cost_rate: units of cost per second.
        methods: the HTTP methods that need a permit, separated by commas; empty for all.
    """

    rate: float
    burst: float = 1.0
    window: float = 0.0
    max_cost: float = 0.0
    cost_rate: float = 0.0
    methods: str = ""

    def differences(self, other: "Quota") -> tuple[str, ...]:
        """The names of the attributes in which two quotas differ."""
        return tuple(name for name in self._fields if getattr(self, name) != getattr(other, name))


class Refusal(NamedTuple):
    """A 429 that a member reports.

    Attributes:
        epoch: the epoch in which the refused request was sent.
        pause: seconds from now during which no member should send.
    """

    epoch: int
    pause: float


class GroupRate(NamedTuple):
    """The rate and the adaptive state of a group, as computed by one of its members.

    Attributes:
        share: the name of the quota.
        rate: requests per second that the whole group may send.
        burst: permits that may be taken at once after an idle period.
        memory: the state of the adaptive law, as text; empty if no law is in force.
        version: the version of the state that this one replaces; the store rejects it if the version has changed.
        age: seconds since the state was written.
    """

    share: str
    rate: float
    burst: float
    memory: str = ""
    version: int = 0
    age: float = 0.0


class Ask(NamedTuple):
    """A member's message to its store: a report, and how many permits it wants. Pass all arguments by keyword.

    Totals count from the member's start; they may decrease when a permit that was taken is not used.

    Attributes:
        share: the name of the quota.
        rate, burst, window, max_cost, cost_rate, methods: the member's quota; see `Quota`.
        member: the member's unique name.
        started: when the member started, or last changed its quota, in seconds since 1970.
        age: seconds since then. If quotas differ, the youngest member's applies; within a second, `started` decides.
        seq: the number of this call, from 1; a message that arrives again, or too late, changes nothing. 0 for none.
        lease_id: the lease that the member holds; 0 if it holds none.
        used: total of the permits used.
        lapsed: total of the permits given up because their time had passed.
        delay: by how many seconds at most permits were used late since the last call.
        unsent: how many seconds ago the first of the permits was used that were given back since the last call.
        held: how many permits of its lease the member keeps; it returns the rest.
        want: how many more permits it wants; 0 only reports.
        waiting: requests waiting in this member.
        low: whether only requests of low priority wait.
        costs: the cost of each request that wants a permit, in sending order; empty if costs do not count.
        units_used: total of the units of cost used, corrections included.
        units_new: how much of that is new since the last answer; a store that forgot the member charges only this.
        units: units of its lease that the member keeps.
        own: requests sent without a lease while the store was unreachable, and not reported yet.
        own_seconds: seconds in which those were sent.
        queue: seconds of permits that were leased to all members, as of the last answer; restores a lost state.
        refused: a 429 received since the last call; None without one.
        leaving: whether this is the member's last call.
    """

    share: str
    rate: float
    burst: float
    member: str
    started: float = 0.0
    age: float = 0.0
    window: float = 0.0
    max_cost: float = 0.0
    cost_rate: float = 0.0
    methods: str = ""
    seq: int = 0
    lease_id: int = 0
    used: int = 0
    lapsed: int = 0
    delay: float = 0.0
    unsent: float = 0.0
    held: int = 0
    want: int = 0
    waiting: int = 0
    low: bool = False
    costs: tuple[float, ...] = ()
    units_used: float = 0.0
    units_new: float = 0.0
    units: float = 0.0
    own: int = 0
    own_seconds: float = 0.0
    queue: float = 0.0
    refused: Refusal | None = None
    leaving: bool = False

    @property
    def quota(self) -> Quota:
        """The quota as this member is configured."""
        return Quota(self.rate, self.burst, self.window, self.max_cost, self.cost_rate, self.methods)


@dataclass(slots=True)
class Lease:
    """A store's answer: permits that the member may use, and the state of its group.

    Attributes:
        id: identifies the lease; the member returns it in its next call.
        law: the rate and burst in force, and the adaptive state of the group.
        quota: the quota in force, that of the youngest member.
        ranges: the new permits, as (seconds from now until the first may be used, seconds between them, how many).
        units: units of cost that were paid for them.
        void: whether the permits that the member held before are void.
        queue: seconds until a permit requested now could be used; negative if part of the burst is left.
        again: seconds after which to ask again, if nothing was leased.
        pause: seconds during which no member may send.
        epoch: counts refusals; permits of an older epoch are void.
        active: members that wait or hold permits, including this one.
        members: how many members share the quota, including this one.
        units_left: units of cost that no member holds or owes; negative if leases for later were paid with them. None
            if the store does not say: members then keep the permits that they hold.
    """

    id: int
    law: GroupRate
    quota: Quota
    ranges: tuple[tuple[float, float, int], ...] = ()
    units: float = 0.0
    void: bool = False
    queue: float = 0.0
    again: float = 0.0
    pause: float = 0.0
    epoch: int = 0
    active: int = 1
    members: int = 1
    units_left: float | None = None

    @property
    def count(self) -> int:
        """How many permits are leased."""
        return sum(count for _, _, count in self.ranges)

    @property
    def rate(self) -> float:
        """The group's current rate, in permits per second."""
        return self.law.rate

    @property
    def burst(self) -> float:
        """Permits that the group may take at once after an idle period, at that rate."""
        return self.law.burst


class Snapshot(NamedTuple):
    """A share's state for display, read without becoming a member.

    Attributes:
        members: how many members share the quota.
        active: how many of them wait or hold permits.
        quota: the quota in force.
        rate: the group's current rate, in permits per second.
        used: permits used per second, an average of about 10 s, which starts at 0.
        waiting: requests waiting, in all members.
        queue: seconds until a new request could be sent.
        units: units of cost that are left; negative while there is a debt.
        pause: seconds during which no member may send.
        refused: seconds since a member last reported a 429; None if none did.
        epoch: counts refusals.
        books: totals of permits, by outcome; see `BOOKS`.
    """

    members: int
    active: int
    quota: Quota
    rate: float
    used: float
    waiting: int
    queue: float
    units: float
    pause: float
    refused: float | None
    epoch: int
    books: dict[str, int]


@runtime_checkable
class Store(Protocol):
    """Holds the state of shared quotas. Implementations must be thread-safe.

    If a call raises an exception or takes longer than 0.8 s, the limiter continues with its local part of the quota.
    """

    def lease(self, ask: Ask) -> Lease:
        """Record a member's report and lease it permits, in one atomic step, by the store's own clock."""
        ...

    def amend(self, epoch: int, law: GroupRate) -> bool:
        """Replace the adaptive state of version `law.version` with a new one.

        Returns:
            Whether it was replaced; False if the epoch or the version has changed in the meantime.
        """
        ...

    def close(self) -> None:
        """Release files and connections; the next lease opens them again."""
        ...


def check_share(share: object) -> str:
    if not isinstance(share, str) or not share.strip():
        raise ConfigurationError(f"share must be a name, such as 'team-key', not {share!r}")
    try:
        share.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"share must be text that can be encoded as UTF-8, not {share!r}") from error
    if "\x00" in share or len(share) > 1000:
        raise ConfigurationError(
            f"share must be at most 1000 characters long and contain no NUL, not {share[:40]!r}"
        )
    return share


_MAX_SURPLUS: Final = 1000  # Permits beyond those requested; with more, a user's store counts as broken.


def check_lease(lease: Any, want: int) -> Lease:
    """The store's answer to a request for `want` permits, if a limiter can use it; otherwise raises ValueError."""
    try:
        law, quota, ranges = lease.law, lease.quota, lease.ranges
        # If one of them is infinite or NaN, so is the sum.
        total = lease.id + lease.units + lease.queue + lease.again + lease.pause + lease.epoch + lease.active
        total += lease.members + (lease.units_left or 0.0)
        total += law.rate + law.burst + law.version + law.age + sum(quota[:5])
        total += sum(first + gap + count for first, gap, count in ranges)
        makes_sense = (
            math.isfinite(total)
            and all(first > -1 and gap >= 0 and count == int(count) > 0 for first, gap, count in ranges)
            and sum(count for _, _, count in ranges) <= want + _MAX_SURPLUS
            and lease.units >= 0
            and lease.pause >= 0
            and min(lease.members, lease.active) >= 1
            and law.rate > 0
            and isinstance(law.memory, str)
        )
    except (TypeError, AttributeError, ValueError, OverflowError):
        makes_sense = False
    if not makes_sense:
        raise ValueError(
            f"the store must answer with a Lease of finite numbers, and of {want} permits at most, not {lease!r:.300}"
        )
    return lease  # type: ignore[no-any-return]
