"""One of several processes that share a quota, as its store sees it: which messages it sends, and when.

It makes one call at a time. A request reserves the call in the same step in which it asks for its permit, so that of a
crowd one asks the store for all. Messages hold totals, so a call that fails, or was never made, is simply forgotten.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ....stores import Ask, Lease, Quota, Refusal
from .contact import AHEAD, GIVE_UP, Contact, Start, StoreCall
from .holding import LATE, Demand, Holding
from .outage import ALONE, Line, Outage, local_part, window_of
from .window import Window

if TYPE_CHECKING:
    from ..limiter import Turn
    from .source import Source

SOON: Final = 0.01
"""Seconds after which unused permits go back: another request may come at once."""

_NEWS: Final = 1.0
"""Seconds after which an idle member reports what changes nothing for the others at once."""

_HUNG: Final = 2
"""Calls that may hang in a row before the store counts as lost."""

_NOTHING: Final = (-1, -1, math.nan)
"""Totals that differ from all others."""

_ROUNDING: Final = 1e-6


class Member:
    """Called with the lock of its queue held. Instants are on the caller's clock, in seconds.

    Args:
        share: the name of the quota.
        quota: the quota as this process was configured.
        identity: makes a new member's name, and notes when it starts.
        alone: makes the local sources for as long as the number of members is unknown.
        steers: whether the members find the group's rate together; then nothing is leased before it is known.

    Attributes:
        line: the requests that wait.
        errand: arranges for an errand after so many seconds.
        held: its permits and units.
        contact: what it knows about its group.
        outage: the local sources, while the store is out of reach.
        history: what this member used in the last window, if the quota promises one.
        demand: how many requests come one after another.
        has_joined: whether the group counts it as a member.
        refused: the epoch of a refusal to report; -1 for none.
    """

    def __init__(
        self,
        share: str,
        quota: Quota,
        identity: Callable[[], Start],
        alone: "Callable[[], Sequence[Source]]",
        *,
        steers: bool = False,
    ) -> None:
        self.share, self.quota, self.steers = share, quota, steers
        self._identity, self._alone = identity, alone
        self.errand: Callable[[float], None]
        self.line: Line

    def serve(self, line: Line) -> None:
        """Lease permits for these requests."""
        self.line = line
        self.begin_anew()

    def begin_anew(self) -> None:
        """Become a member that holds nothing; a forked child becomes a new one."""
        self.start = self._identity()
        self._started = self.start.instant
        self.held, self.contact, self.outage = Holding(), Contact(), Outage(self.line)
        self.calling: StoreCall | None = None
        self.history = Window(1, self.quota.window) if self.quota.window else None
        self.refused, self._refused_until = -1, -math.inf
        self.demand = Demand()
        self.has_joined = False
        self._sequence = self._hung = 0
        self._reported: tuple[int, int, float] = (0, 0, 0.0)
        self._reported_waiting = 0
        self._reported_quota = self.quota

    @property
    def rate(self) -> float:
        """The group's rate, in permits per second."""
        lease = self.contact.lease
        return self.quota.rate if lease is None else lease.rate

    @property
    def max_cost(self) -> float:
        """Units of cost that may be spent at once; 0.0 unless both this process and the group in force count them."""
        lease, own = self.contact.lease, self.quota.max_cost
        return own if lease is None or not own else lease.quota.max_cost

    @property
    def expected(self) -> int:
        """How many requests are about to come, besides those that wait."""
        if self.max_cost:
            return 0  # What they cost is unknown.
        return max(0, min(self.most, self.demand.steady) - len(self.line.turns))

    @property
    def most(self) -> int:
        """The most permits to hold."""
        return self.contact.most(self.rate)

    def refuse(self, epoch: int, until: float) -> None:
        """Stop until an instant, and report that a request of this epoch was refused."""
        self.contact.paused_until = max(self.contact.paused_until, until)
        self.refused, self._refused_until = max(self.refused, epoch), max(self._refused_until, until)

    def use(self, turn: "Turn", now: float) -> None:
        """Use a permit for this turn."""
        self.held.use(self.line.cost_of(turn))
        self.demand.used_at = now
        if self.history is not None and self.history not in self.outage.sources:
            self.history.when(turn, 0, now)  # Forget what is out of the window.
            self.history.take(turn, now)
        if self.held.due and len(self.line.turns) < 2:
            self.errand(LATE if self.expected else SOON)  # Perhaps nobody is left to use the others.

    def wanted(self, now: float) -> tuple[int, int, float]:
        """How many more permits to ask for, and how many permits and units to keep for the first in the queue."""
        turns, held, cost_of = self.line.turns, self.held, self.line.cost_of
        usable = min(self.line.usable(now, AHEAD), self.outage.soon(now, AHEAD))
        most = len(turns) + self.expected
        if usable < most:
            most = max(0, math.ceil(usable - _ROUNDING))
        kept, units = min(len(held), most), 0.0
        if self.max_cost:
            slack, paid = _ROUNDING * self.max_cost, 0
            while paid < min(kept, len(turns)) and units + cost_of(turns[paid]) <= held.units + slack:
                units += cost_of(turns[paid])
                paid += 1
            kept = paid
        return min(most - kept, self.most - kept), kept, units

    def again(self) -> float:
        """When to lease the next permits."""
        held = self.held
        return self.contact.again(held.last, short=len(held) > max(1, len(self.line.turns) // 4))

    # Calls

    def reserve(self, turn: "Turn | None", now: float) -> StoreCall | None:
        """The next call, for the caller to make; None while another one is under way."""
        if not self.is_free(now):
            return None
        self.calling = StoreCall(turn, now)
        return self.calling

    def release(self, turn: "Turn") -> None:
        """Let another request make the call that this one has reserved and not begun."""
        call = self.calling
        if call is not None and call.turn is turn and call.ask is None:
            self.drop(call)

    def is_free(self, now: float) -> bool:
        """Whether no call is under way. One that was never made, or began before a suspension, is forgotten."""
        call = self.calling
        if call is None:
            return True
        if now < call.until:
            return False
        self._hung += call.ask is not None
        if self._hung > _HUNG:
            self.fail(call, now)
            return False
        self.calling = None
        return True

    def farewell(self, now: float) -> StoreCall:
        """The last call of a member that ends."""
        self.calling = StoreCall(None, now, is_last=True)
        return self.calling

    def begin(self, call: StoreCall, now: float) -> Ask | None:
        """The message; None if the call was forgotten."""
        if self.calling is not call:
            return None
        held, contact, turns = self.held, self.contact, self.line.turns
        held.lapse(now)
        self._sequence += 1
        self._started = min(self._started, now)  # The caller's clock may be another one.
        self.demand.update(held, now)
        want, kept, units = (0, 0, 0.0) if call.is_last or self.outage.is_on else self.wanted(now)
        if now < contact.paused_until or (self.steers and contact.lease is None):
            want = 0
        want = max(0, want)
        held.keep(kept, units)
        self._reported = (held.used, held.lapsed, held.spent)
        self._reported_waiting, self._reported_quota = len(turns), self.quota
        call.sent = now
        call.ask = self._message(kept, want, units, now, is_last=call.is_last)
        self.refused = -1
        return call.ask

    def _message(self, kept: int, want: int, units: float, now: float, *, is_last: bool) -> Ask:
        held, contact, quota, outage = self.held, self.contact, self.quota, self.outage
        lease, turns, cost_of = contact.lease, self.line.turns, self.line.cost_of
        wanting = turns[kept : kept + want]
        return Ask(
            share=self.share,
            **quota._asdict(),
            member=self.start.name,
            started=self.start.date,
            age=now - self._started,
            seq=self._sequence,
            lease_id=0 if lease is None else lease.id,
            used=held.used,
            lapsed=held.lapsed,
            held=kept,
            want=want,
            waiting=len(turns),
            low=bool(wanting) and all(turn.priority == "low" for turn in wanting),
            costs=tuple(map(cost_of, wanting)) if quota.max_cost else (),
            units_used=held.spent,
            units=units,
            own=outage.used,
            own_seconds=max(0.0, now - outage.since) if outage.used else 0.0,
            queue=0.0
            if lease is None
            else max(contact.queue_until - now, 0.0 if outage.is_long(now) else AHEAD),
            refused=None if self.refused < 0 else Refusal(self.refused, max(0.0, self._refused_until - now)),
            leaving=is_last,
        )

    def end(self, call: StoreCall, lease: Lease, now: float) -> bool:
        """Take in the answer. Returns whether it ends an outage."""
        ask = call.ask
        if self.calling is not call or ask is None:
            return False
        self.calling, self._hung = None, 0
        self.has_joined = not call.is_last
        restored = self.outage.end(now, reported=ask.own, by_probe=not ask.want)
        if lease.void:
            self.held.rewind(ask.used, ask.lapsed)
        # Permits that come after a suspension are of the past.
        arrived = now - GIVE_UP if now - call.sent > GIVE_UP else now
        got = self.held.add(lease.ranges, lease.units, arrived)
        self.contact.hear(lease, call.sent, now, dry=bool(ask.want and not got))
        if self.needs_errand(now):
            self.errand(0.0)
        return restored

    def fail(self, call: StoreCall, now: float) -> bool:
        """Continue without the store. Returns whether it now counts as lost: one lost message is no outage."""
        if self.calling is not call:
            return False
        self.calling = None
        self._take_back(call)
        self.held.give_up()  # So that nothing is spent twice.
        announced = self.outage.fail(now, self._local_sources, is_sure=self.contact.lease is None)
        self.errand(self.outage.probe_after)
        return announced

    def drop(self, call: StoreCall) -> None:
        """Forget a call that was not made, or was interrupted."""
        if self.calling is call:
            self.calling = None
            self._take_back(call)

    def _take_back(self, call: StoreCall) -> None:
        """Report again what this call may not have reported."""
        self._reported = _NOTHING
        if call.ask is not None and call.ask.refused is not None:
            self.refused = max(self.refused, call.ask.refused.epoch)

    def _local_sources(self, now: float) -> "Sequence[Source]":
        if self.contact.lease is None and self.outage.failures >= ALONE:
            return self._alone()
        return local_part(self.quota, self.history, self.contact, now)

    def update(self, quota: Quota) -> None:
        """Change the group's quota, as a member would that starts when it sends its next message."""
        self.quota = quota
        if self.history is not None:
            self.history.update(window_of(quota))
        self.start = self.start._replace(date=self._identity().date)
        self._started = math.inf
        self.errand(0.0)

    # What no request does

    def needs_errand(self, now: float) -> bool:
        """Whether the store should be called although no request does: a probe, or news."""
        if self.outage.is_on:
            return True
        if self.calling is not None or self.contact.lease is None:
            return False
        if self.refused >= 0 or self.quota != self._reported_quota:
            return True
        if self.line.turns:
            return False
        held = self.held
        _, lapsed, spent = self._reported
        news = held.lapsed != lapsed or (self.quota.max_cost and held.spent != spent)
        return bool(held.due) or news or bool(self._reported_waiting)

    def call_soon(self, now: float) -> None:
        """Arrange for an errand if one is needed."""
        if self.needs_errand(now):
            at_once = self.refused >= 0 or self.quota != self._reported_quota
            self.errand(0.0 if at_once else SOON if self.held.due or self.held.units > 0 else _NEWS)

    def run_errand(self, now: float) -> StoreCall | None:
        """The call that an errand makes; None if there is nothing to do any more."""
        if not self.needs_errand(now):
            return None
        steady = self.expected and now < self.demand.used_at + LATE
        if steady and self.refused < 0 and not self.outage.is_on:
            self.errand(LATE)  # The next request is about to come.
            return None
        return self.reserve(None, now)
