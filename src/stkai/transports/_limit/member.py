"""One of several processes that share a quota: its own first-come-first-served queue, and the permits it has leased.

It leases only permits that it will use within `AHEAD` seconds. Before it uses one, it makes sure that the store has
answered within that time, because a refusal pauses every member. Pure, like all policies: `Link` calls the store.
"""

import math
import threading
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from ..._forks import after_fork
from ...stores import Ask, Lease
from .contact import AHEAD, Contact
from .limiter import Turn
from .local_share import LocalShare
from .order import Order
from .permits import Permits
from .tickets import TICK, TicketQueue

_LEAD: Final = 0.02
"""How many seconds before the last permit is due the next ones are leased; more if the store answers slowly ..."""

_SHORT_LEAD: Final = 0.002
"""... and fewer while most requests in the queue have a permit: one lease for many is cheaper than many leases."""

_BOTH: Final = 1.5
"""Seconds after an outage during which a request needs a permit from both the local clock and the store."""

_LATE: Final = 0.05
"""Seconds that the first in the queue may oversleep before others go ahead."""

_BUSY: Final = 0.002
_DRY: Final = 0.05
_MOST: Final = 1000
_CAUGHT_UP: Final = 0.5
"""Seconds of the store's silence that the local share makes up for."""


class Terms(NamedTuple):
    """The shared quota as this member was configured.

    Attributes:
        share: its name.
        rate, burst: permits per second, and permits at once after a quiet time.
        methods: HTTP methods that need a permit.
        max_cost, cost_rate: units of cost at once, and per second; None and 0.0 if costs do not count.
        is_cautious: whether to lease nothing before the group's rate is known.
    """

    share: str
    rate: float
    burst: float
    methods: Collection[str]
    max_cost: float | None = None
    cost_rate: float = 0.0
    is_cautious: bool = False


class Member:
    """A share's queue in this process.

    Args:
        terms: the quota.
        alone: makes the limiter to use until the store is first reached.
        identity: returns a unique name, and the time in seconds since 1970.
    """

    def __init__(
        self,
        terms: Terms,
        alone: Callable[[], TicketQueue],
        identity: Callable[[], tuple[str, float]],
    ) -> None:
        self.terms = terms
        self._alone = alone
        self._identity = identity
        self._begin()
        after_fork(self, Member._begin)

    def _begin(self) -> None:
        """Become a member; a forked child becomes a new one."""
        self._lock = threading.Lock()
        self._name, self._started = self._identity()
        self._order = Order()
        self._line = self._order.turns
        self._permits = Permits()
        self._arrived: list[tuple[Lease, Ask, float]] = []
        self._contact = Contact()
        self._now = self._dry_until = self._paused_until = -math.inf
        self._talking = self._lost = False
        self._local: TicketQueue | None = None
        self._both_until: float | None = None
        self._passed: set[Turn] = set()

    @property
    def waiting(self) -> int:
        """Requests that wait for a permit."""
        return len(self._line)

    @property
    def now(self) -> float:
        """The latest instant that this member was told."""
        return self._now

    @property
    def known(self) -> Lease | None:
        """The store's last answer; None if it was never reached."""
        return self._contact.known

    @property
    def local(self) -> TicketQueue | None:
        """This process's own limiter, during an outage and shortly after."""
        return self._local

    @property
    def is_lost(self) -> bool:
        """Whether the store is unreachable now."""
        return self._lost

    @property
    def is_returning(self) -> bool:
        """Whether the store has only just come back."""
        return self._both_until is not None

    @property
    def has_news(self) -> bool:
        """Whether there is something to report to the store that no request will."""
        return self._permits.has_news and not self._talking and not self._lost

    def ask(self, turn: Turn, now: float) -> float | None:
        """Seconds until the turn comes; 0.0 once its permit is taken; None if the store must be asked first."""
        with self._lock:
            self._catch_up(now, turn.chance)
            place = self._order.join(turn, now)
            if self._local is not None and turn not in self._passed:
                if self._both_until is None and place < len(self._permits):
                    self._local.cancel(turn, now)
                else:
                    wait = self._local.ask(turn, now)
                    turn.granted = False
                    if wait:
                        return wait
                    if self._both_until is None:
                        return self._go(turn)
                    self._passed.add(turn)
            turn.nap = math.inf
            due, again = self._when(place, now)
            if again <= now:
                if due <= now and place < len(self._permits):
                    return self._go(turn, place)
                if not self._talking:
                    return None
                again = now + _BUSY
            turn.nap = max(TICK, again - now)
            turn.told = due if place < len(self._permits) else -math.inf
            return max(TICK, due - now)

    def leave(self, turn: Turn, now: float) -> None:
        """Give up the place in the queue, or the permit."""
        with self._lock:
            self._catch_up(now, turn.chance)
            granted, passed = turn.granted, turn in self._passed
            if self._local is not None:
                turn.granted = granted or passed
                self._local.leave(turn, now)
            turn.granted = False
            if granted:
                if not self._lost:
                    self._permits.back.append(now)
                    self._permits.settle -= turn.cost if self.terms.max_cost else 0.0
                return
            self._passed.discard(turn)
            self._order.leave(turn)
            self._permits.give_back_all_but(len(self._line), now)

    def settle(self, units: float) -> None:
        """Charge units afterwards."""
        with self._lock:
            self._permits.settle += units

    def epoch_at(self, instant: float) -> int:
        """The epoch known at that instant."""
        with self._lock:
            return self._permits.epoch_at(instant)

    def refused(self, sent: float, now: float, pause: float) -> None:
        """Pause, and report that a request sent at `sent` was refused."""
        with self._lock:
            self._catch_up(now, 0.5)
            self._paused_until = max(self._paused_until, now + pause)
            if not self._lost:
                self._permits.refuse(sent, now + pause)
            if isinstance(self._local, LocalShare):
                self._local.pause(now + pause)

    # Messages to and from the store

    def begin(self, now: float | None) -> Ask | None:
        """The message to the store; None while another call is running. Without an instant, it asks for no permits."""
        with self._lock:
            if self._talking:
                return None
            self._talking = True
            wanted: list[Turn] = []
            blind = self.terms.is_cautious and self.known is None
            if now is not None and not blind and not self._lost and now >= self._leases_again():
                line = (
                    self._line
                    if self._both_until is None
                    else [turn for turn in self._line if turn in self._passed]
                )
                wanted = line[len(self._permits) :][:_MOST]
            now = self._now if now is None else now
            terms = self.terms
            back, settle, refused = self._permits.tell(now)
            return Ask(
                share=terms.share,
                rate=terms.rate,
                burst=terms.burst,
                started=self._started,
                member=self._name,
                want=len(wanted),
                costs=tuple(turn.cost for turn in wanted) if terms.max_cost else (),
                settle=settle,
                back=back,
                refused=refused,
                max_cost=terms.max_cost,
                cost_rate=terms.cost_rate,
                waiting=len(self._line),
                known=self._contact.for_the_store(self._permits.epoch, self._paused_until, now),
            )

    def end(self, ask: Ask, lease: Lease | None, now: float | None) -> bool:
        """Take in the store's answer, or None if there was none. Returns whether the store is back after an outage."""
        with self._lock:
            self._talking = False
            if lease is None:
                self._permits.untell(ask, self._now if now is None else now)
                return False
            restored, self._lost = self._lost, False
            if restored and self._local is not None:
                self._both_until = math.inf  # Counted from the next request on.
            self._contact.known = lease
            self._arrived.append((lease, ask, -math.inf if now is None else now))
            if not self._line:
                # No request is left to use the permits: give the places back at once.
                sent = self._now if now is None else now
                places = [sent + lease.wait + number * lease.spacing for number in range(lease.count)]
                self._arrived[-1] = (lease, ask._replace(want=0), self._arrived[-1][2])
                self._permits.back += places
            return restored

    def lose(self, ask: Ask) -> bool:
        """Continue without the store. Returns whether it was reachable before."""
        with self._lock:
            self._talking = False
            # The call may have arrived: a refusal may be reported twice, but a place given back twice is granted twice.
            self._permits.untell(ask._replace(back=(), settle=0.0), self._now)
            news, self._lost = not self._lost, True
            return news

    def _catch_up(self, now: float, chance: float) -> None:
        self._now = max(now, self._now)
        for lease, ask, sent in self._arrived:
            anew = lease.epoch != self._permits.epoch
            self._permits.take_in(lease, ask, now)
            self._contact.hear(lease, sent, now)
            if sent > -math.inf:
                self._pause(lease, now, anew=anew)
            if ask.want and not lease.count:
                self._dry_until = now + _DRY
        self._arrived.clear()
        if self._lost and (self._local is None or self._both_until is not None):
            self._both_until = None
            self._passed.clear()
            self._local = self._local_share(now, chance)
        elif self._both_until is not None:
            if self._both_until == math.inf:
                self._both_until = now + _BOTH
            elif now >= self._both_until:
                self._local = self._both_until = None
                self._passed.clear()

    def _pause(self, lease: Lease, now: float, *, anew: bool) -> None:
        """Keep the group's pause; only a new epoch can shorten it, as after a reset."""
        until = now + lease.pause if lease.pause else -math.inf
        if not anew or self._permits.refusal is not None:
            until = max(until, self._paused_until)
        self._paused_until = until

    def _local_share(self, now: float, chance: float) -> TicketQueue:
        if self.known is None:
            return self._alone()
        # Begin where the leases end; if that was long ago, members begin at different times.
        ended = self._permits.horizon
        recent = ended > now - _CAUGHT_UP
        rate = self.known.rate / max(1, self._contact.members)
        share = LocalShare(rate, self.terms.methods, ended if recent else now, 0.0 if recent else chance)
        share.pause(self._paused_until)
        return share

    def _when(self, place: int, now: float) -> tuple[float, float]:
        """Estimate when the turn in that place may go, and when to check again."""
        permits = self._permits
        if place < len(permits):
            due = again = max(permits.due[place], self._paused_until)
            fresh_until = self._contact.fresh_until
            if self._lost:
                return due, again
            if due <= now + TICK:
                if place and now < permits.due[0] + _LATE:
                    return now + TICK, now + _BUSY  # The first in the queue is about to wake.
                # If the last answer is too old, ask the store whether there is a pause.
                return (now, now) if now <= fresh_until else (now + TICK, now)
            if due > fresh_until:
                again = due - self._contact.lead(_LEAD)
        else:
            behind = place - len(permits) + 1
            rate = self.terms.rate if self.known is None else self.known.rate
            group = max(1, self._contact.members)
            per_permit = min(permits.per_permit or 1 / rate, group / rate)
            last = max(now, permits.horizon, self._paused_until)
            due = last + behind * per_permit
            again = max(self._leases_again(), self._dry_until)
            if again > now and behind > 1:
                if behind <= 2 * max(1.0, rate * AHEAD / group):
                    # The next lease may include this turn, so it must not oversleep.
                    again = max(again, last + (behind - 1) / rate)
                else:
                    again = max(again, now + (due - now) / 2)
        if not place or again > now:
            again = min(again, self._contact.heartbeat(place, now))
        return due, again

    def _leases_again(self) -> float:
        """When the next permits may be leased."""
        due = self._permits.due
        lead = self._contact.lead(_LEAD if len(due) <= max(1, len(self._line) // 4) else _SHORT_LEAD)
        return max(due[-1] if due else -math.inf, self._paused_until) - lead

    def _go(self, turn: Turn, permit: int | None = None) -> float:
        if permit is not None:
            self._permits.use(permit, turn.cost if self.terms.max_cost else 0.0)
        self._order.go(self._order.place_of(turn))
        self._passed.discard(turn)
        turn.granted = True
        return 0.0
