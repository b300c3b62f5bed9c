"""What a shared quota asks of its store: one atomic step per lease, and a compare-and-set for the adaptive rate.

A store holds numbers, never waiters. Every time that crosses is relative, in seconds from now, so that members whose
clocks differ share one quota all the same.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Refusal(NamedTuple):
    """A 429 that a member reports.

    Attributes:
        epoch: the epoch in which the refused request was sent.
        pause: seconds from now for which nobody should send.
    """

    epoch: int
    pause: float


class Known(NamedTuple):
    """What a member knows of its share, so that a state that was lost goes on where it was.

    Attributes:
        epoch: the epoch of the permits that the member holds.
        next: seconds from now until the place of the next permit.
        pause: seconds for which nobody may send.
        members: how many shared the quota lately.
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
        memory: what the law remembers, as text; empty where no law is in force.
        version: of the state that this one replaces; a later one wins.
        age: seconds since the state was written.
    """

    share: str
    rate: float
    burst: float
    memory: str
    version: int
    age: float = 0.0


class Ask(NamedTuple):
    """What a member tells its store when it needs permits. Pass all of it by keyword.

    Attributes:
        share: the name of the quota.
        rate: of the quota, in permits per second.
        burst: permits that the group may take at once after a quiet time.
        started: when the member started, in seconds since 1970; where quotas differ, the latest is right.
        member: who asks: a name that no other member has.
        want: permits wanted; 0 only tells that the member is alive.
        costs: the cost of each request that wants a permit, in the order in which they go.
        settle: units of cost to charge after all; negative to give back.
        back: the places given back, in seconds from now.
        refused: a 429 that came since the last time.
        max_cost: units of cost that may be spent at once; None where costs do not count.
        cost_rate: units of cost per second.
        waiting: requests that wait in this member.
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
        count: permits leased; 0 where none was wanted.
        wait: seconds until the first may be used.
        spacing: seconds between one permit and the next; 0.0 where all may be used at once.
        pause: seconds for which nobody may send.
        rate: permits per second that the group gets now.
        epoch: counts refusals; permits of an older epoch are void.
        members: how many share the quota, this one included.
        law: the adaptive state of the group; without memory where none is in force.
        quota: permits per second of the quota in force; that of the member that started last.
        burst: the burst of that quota.
        next: seconds until the place of the permit after these; negative where a burst is left.
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
    """A look at a share from outside, without becoming a member.

    Attributes:
        members: how many share the quota.
        rate: permits per second that the group gets now.
        quota: permits per second of the quota.
        burst: permits that may be taken at once after a quiet time.
        used: permits per second that were leased lately.
        waiting: requests that wait, in all members.
        queue: seconds until a permit that is asked for now could be used.
        pause: seconds for which nobody may send.
        refused: seconds since the last 429 that a member reported; None where there was none.
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
    """Where the ticket clock of a shared quota lives. Safe to use from several threads at once.

    A store that cannot be reached raises any exception; the limiter then goes on with its local share.
    """

    def lease(self, ask: Ask) -> Lease:
        """Take permits in one atomic step, by the store's own clock."""
        ...

    def amend(self, epoch: int, law: Law) -> bool:
        """Put a new adaptive state in the place of the one that `law.version` names.

        Returns:
            Whether it was done: not if the epoch or the version has changed meanwhile.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections; the next lease opens them again."""
        ...
