"""What a member knows about its group and its store: the last answer, its age, and how long an answer takes."""

import math
from typing import Final

from ...stores import Known, Lease

AHEAD: Final = 0.25
"""Seconds; the length of a lease, and the greatest age of the store's last answer when a permit is used."""

_GRACE: Final = 0.02

_UNHEARD_OF: Final = 2.0
"""Seconds; a later answer means that the process was suspended, not that the store was slow."""

_HEARTBEAT: Final = 1.0
"""Seconds after which the head of the queue asks the store for its state."""

_GROUP: Final = 10.0
"""Seconds for which a group counts as large as it was: after an outage, its members return one by one."""


class Contact:
    """Instants are on the member's clock, in seconds.

    Attributes:
        known: the store's last answer; None if it was never reached.
        members: how many members the group has, or had a short time ago.
    """

    def __init__(self) -> None:
        self.known: Lease | None = None
        self.members = 0
        self._members_at = self._at = self._next = -math.inf
        self._latency = self._depth = 0.0

    @property
    def fresh_until(self) -> float:
        """The instant until which a permit may be used without asking the store whether there is a pause."""
        return self._at + AHEAD + _GRACE

    def heartbeat(self, place: int, now: float) -> float:
        """When the request in that place of the queue must ask again, so that the store hears of its member.

        The head may be gone by then, and the rate may have grown: those behind it must not sleep for too long either.
        """
        return now + (place + 1) * _HEARTBEAT if place else self._at + _HEARTBEAT

    def lead(self, least: float) -> float:
        """How many seconds before an instant the store must be asked, to have its answer by then."""
        return min(AHEAD, max(least, 1.25 * self._latency))

    def hear(self, lease: Lease, sent: float, now: float) -> None:
        """Take in the answer to a question asked at `sent`; -inf if the time is unknown."""
        latency = now - sent
        if latency < _UNHEARD_OF:
            # Even a slow store's answer may be used for a moment.
            self._at = max(self._at, sent, now - AHEAD + _GRACE)
            self._latency = max(latency, 0.8 * self._latency)
        if sent > -math.inf:
            self._next = now + lease.next
            self._depth = lease.wait if lease.count else lease.next
        if lease.members >= self.members or now > self._members_at + _GROUP:
            self.members, self._members_at = lease.members, now

    def for_the_store(self, epoch: int, paused_until: float, now: float) -> Known | None:
        """What the store needs to restore its state if the state is lost."""
        if self.known is None or epoch < 0:
            return None
        ahead = self._next - now
        if now < self._at + _UNHEARD_OF:
            # The others have kept leasing, so the queue is as long as it was.
            ahead = max(ahead, self._depth)
        return Known(epoch, ahead, max(0.0, paused_until - now), self.members)
