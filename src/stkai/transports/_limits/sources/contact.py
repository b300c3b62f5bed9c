"""What a member knows about its group and its store: the last answer, its age, and how long an answer takes."""

import math
from typing import TYPE_CHECKING, Final

from ....stores import Ask, Lease

if TYPE_CHECKING:
    from ..limiter import Turn

AHEAD: Final = 0.25
"""Seconds; the longest stretch for which a member leases in advance."""

GIVE_UP: Final = 1.0
"""Seconds after which a call that was not made, or takes longer, no longer holds up others."""

_REACH: Final = 0.08
"""Seconds of its share that a member holds at most, unless the store answers slowly or the group is large ..."""

_CALLS: Final = 60
"""... so that the whole group makes about this many calls per second."""

_LEAD: Final = 0.02
"""Seconds before its last permit is due at which a member leases the next ones ..."""

_SHORT_LEAD: Final = 0.002
"""... and while most of its requests have one: one lease for many is cheaper than many leases."""

_FRESH: Final = 0.27
"""Seconds for which an answer says reliably that no member was refused."""

_RETRY: Final = 0.05
"""Seconds after which a member asks again that got no permit."""

_GROUP: Final = 10.0
"""Seconds for which a group counts as large as it was: after an outage, its members return one by one."""

_ROUNDING: Final = 1e-6


class StoreCall:
    """One message to the store and its answer.

    Attributes:
        turn: the turn that makes it; None if no request does.
        until: when it no longer holds up other calls.
        ask: the message; None before the call begins.
        sent: when the message was written.
        is_last: whether the member leaves the group with it.
    """

    __slots__ = ("ask", "is_last", "sent", "turn", "until")

    def __init__(self, turn: "Turn | None", now: float, *, is_last: bool = False) -> None:
        self.turn = turn
        self.until = now + GIVE_UP
        self.ask: Ask | None = None
        self.sent = now
        self.is_last = is_last


class Contact:
    """Instants are on the member's clock, in seconds.

    Attributes:
        lease: the store's last answer; None if it was never reached.
        as_of: when the message was sent that it answers.
        latency: seconds that an answer takes.
        members: how many members the group has, or had a short time ago.
        active: how many of them wait for permits or hold some.
        queue_until: when a permit requested now could be used.
        paused_until: when the group may send again.
    """

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.as_of = self.queue_until = self.paused_until = self._retry_at = self._members_at = -math.inf
        self.latency = 0.0
        self.members = self.active = 1

    @property
    def fresh_until(self) -> float:
        """Until when a permit may be used without asking the store whether there is a pause."""
        return self.as_of + _FRESH

    def update(self, lease: Lease, sent: float, now: float, *, is_empty: bool) -> None:
        """Take in the answer to a message sent at `sent`; `is_empty` if it has none of the permits asked for."""
        if now - sent < GIVE_UP:  # Otherwise the process was suspended, which says nothing about the store.
            self.latency = max(now - sent, 0.8 * self.latency)
        self.lease, self.as_of, self.active = lease, sent, lease.active
        if lease.members >= self.members or now > self._members_at + _GROUP:
            self.members, self._members_at = lease.members, now
        self.queue_until = now + lease.queue
        if lease.pause:
            self.paused_until = max(self.paused_until, now + lease.pause)
        self._retry_at = now + max(lease.again, _RETRY if is_empty else 0.0)

    def lead(self, *, short: bool = False) -> float:
        """Seconds before an instant at which to ask the store, to have its answer by then."""
        return min(AHEAD, max(_SHORT_LEAD if short else _LEAD, 1.25 * self.latency))

    def most(self, rate: float) -> int:
        """The most permits to hold: a short stretch of this member's share, or its share of a burst; and one."""
        reach = min(AHEAD, max(_REACH, 2.5 * self.latency, self.active / _CALLS))
        burst = 0.0 if self.lease is None else -self.lease.queue
        return max(1, math.floor(rate * max(reach, burst) / self.active + _ROUNDING)) + 1

    def again(self, last: float, *, short: bool) -> float:
        """When to lease the next permits, if the last of those held is due at `last`."""
        return max(last - self.lead(short=short), self._retry_at)
