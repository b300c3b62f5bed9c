"""The interface between a shared quota and its store: one atomic step per lease, and a compare-and-set for the rate.

A store holds numbers, never waiters. All times in messages are relative, in seconds from now, so that members whose
clocks differ can still share a quota.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Refusal(NamedTuple):
    """A 429 that a member reports.

    Attributes:
        epoch: the epoch in which the refused request was sent.
        pause: seconds from now during which no member should send.
    """

    epoch: int
    pause: float


class Known(NamedTuple):
    """What a member knows about its share, so that a lost state can be restored.

    Attributes:
        epoch: the epoch of the permits that the member holds.
        next: seconds from now until the place of the next permit.
        pause: seconds during which no member may send.
        members: how many members recently shared the quota.
    """

    epoch: int
    next: float
    pause: float
    members: int


class Law(NamedTuple):
    """The adaptive state of a group, as one of its members computed it.

    Attributes:
        share: the group.
        rate: requests per second that the whole group may send.
        burst: permits that may be taken at once after a quiet time.
        memory: the law's state, as text; empty if no law is in force.
        version: the version of the state that this one replaces; a later one wins.
        age: seconds since the state was written.
    """

    share: str
    rate: float
    burst: float
    memory: str
    version: int
    age: float = 0.0


class Ask(NamedTuple):
    """What a member tells its store when it needs permits. Pass all arguments by keyword.

    Attributes:
        share: the name of the quota.
        rate: the rate of the quota, in permits per second.
        burst: permits that the group may take at once after a quiet time.
        started: when the member started, in seconds since 1970; if quotas differ, the latest wins.
        member: the member's unique name.
        want: permits wanted; 0 only reports that the member is alive.
        costs: the cost of each request that wants a permit, in sending order.
        settle: units of cost to charge afterwards; negative to give back.
        back: the places given back, in seconds from now.
        refused: a 429 received since the last call.
        max_cost: units of cost that may be spent at once; None if costs do not count.
        cost_rate: units of cost per second.
        waiting: requests waiting in this member.
        known: what the member knows; None if it asks for the first time.
    """

    share: str
    rate: float
    burst: float
    started: float
    member: str
    want: int
    costs: tuple[float, ...] = ()
    settle: float = 0.0
    back: tuple[float, ...] = ()
    refused: Refusal | None = None
    max_cost: float | None = None
    cost_rate: float = 0.0
    waiting: int = 0
    known: Known | None = None


@dataclass(slots=True)
class Lease:
    """Permits that a member may use: the first after `wait` seconds, each further one `spacing` seconds later.

    Attributes:
        count: permits leased; 0 if none were wanted.
        wait: seconds until the first may be used.
        spacing: seconds between permits; 0.0 if all may be used at once.
        pause: seconds during which no member may send.
        rate: the group's current rate, in permits per second.
        epoch: counts refusals; permits of an older epoch are void.
        members: how many members share the quota, including this one.
        law: the adaptive state of the group; its memory is empty if no law is in force.
        quota: the quota in force, in permits per second, from the member that started last.
        burst: the burst of that quota.
        next: seconds until the place of the permit after these; negative if part of the burst is left.
    """

    count: int
    wait: float
    spacing: float
    pause: float
    rate: float
    epoch: int
    members: int
    law: Law
    quota: float = 0.0
    burst: float = 0.0
    next: float = 0.0


class Snapshot(NamedTuple):
    """A share's state for display, read without becoming a member.

    Attributes:
        members: how many members share the quota.
        rate: the group's current rate, in permits per second.
        quota: the quota, in permits per second.
        burst: permits that may be taken at once after a quiet time.
        used: permits per second leased recently.
        waiting: requests waiting, in all members.
        queue: seconds until a permit requested now could be used.
        pause: seconds during which no member may send.
        refused: seconds since a member last reported a 429; None if none did.
        epoch: counts refusals.
    """

    members: int
    rate: float
    quota: float
    burst: float
    used: float
    waiting: int
    queue: float
    pause: float
    refused: float | None
    epoch: int


@runtime_checkable
class Store(Protocol):
    """Holds the ticket clock of a shared quota. It must be thread-safe.

    A store that cannot be reached raises any exception; the limiter then continues with its local share.
    """

    def lease(self, ask: Ask) -> Lease:
        """Take permits in one atomic step, by the store's own clock."""
        ...

    def amend(self, epoch: int, law: Law) -> bool:
        """Replace the adaptive state of version `law.version` with a new one.

        Returns:
            Whether it was replaced; False if the epoch or the version has changed in the meantime.
        """
        ...

    def close(self) -> None:
        """Release files and connections; the next lease opens them again."""
        ...
