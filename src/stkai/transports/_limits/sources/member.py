"""A member of a share: one of several processes with a common quota. Decides what to send to the store, and when.

A member makes one call at a time. A request reserves it in the step in which it asks for a permit, so that one of many
requests calls the store for all. Messages contain totals, so calls that fail, or are never made, need no correction.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final

from ....stores._protocol import AHEAD, LATE, Ask, Lease, Quota, Refusal
from ..limiter import Turn
from . import ROUNDING, Limits, Source
from .holding import CALL_LIFETIME, Demand, GroupStatus, Holding, StoreCall, kept_until, lease_time, shares_of
from .outage import PROBE_INTERVAL, Outage, window_of
from .request_limits import Window

# Seconds after which unused permits are returned; another request may follow immediately.
RETURN_DELAY: Final = 0.01
_REPORT_DELAY: Final = 1.0  # Seconds after which an idle member sends a report that is not urgent.
_MAX_HUNG_CALLS: Final = 2  # Consecutive calls that may hang before the store counts as lost.
_EXCHANGE_INTERVAL: Final = 0.5  # Seconds between two exchanges, unless a call is due anyway.


class Member(Source):
    """The part of `Leased` that exchanges messages with the store. Instants are on the caller's clock, in seconds."""

    client: Any  # Makes the calls; the client sets this itself.
    updated: Limits | None = None  # Replace those of the constructor, also in a forked child.

    def __init__(
        self,
        share: str,
        quota: Quota,
        # Returns a unique name and the time of its start: in seconds since 1970, and as an instant.
        identity: Callable[[], tuple[str, float, float]],
        alone: Callable[[], Sequence[Source]],  # Creates the sources until the number of members is known.
        pace: Any = None,  # Computes the rate of an adaptive group; until then, nothing is leased.
    ) -> None:
        self.share, self.quota, self.pace = share, quota, pace
        self._identity, self.alone = identity, alone
        self.forked()

    def forked(self) -> None:
        """Become a member that holds nothing."""
        self._name, self._date, self._started = self._identity()
        self.held, self.group, self.outage = Holding(), GroupStatus(), Outage(self)
        self.calling: StoreCall | None = None
        # The permits used in the last window, if the quota limits windows; answers arrive with varying delays.
        self.history = Window(1, self.quota.window) if self.quota.window else None
        self.guards_from = -math.inf  # When `history` begins to hold requests back.
        self.demand = Demand()
        self.refused = -1  # The epoch of a refusal to report.
        self.passing = 0  # Permits that will be used before the store answers, if it is far away.
        self.is_early = False  # Whether a call is due for which no request should wait.
        self._sequence = self._hung = 0
        self._exchanged_at = -math.inf  # When permits were last returned for earlier ones.
        self.waits_long = False  # Whether a permit was due so late that it may be exchanged.
        self._reported: Ask | None = None  # The last message that probably arrived.

    @property
    def has_joined(self) -> bool:
        """Whether the group counts it as a member."""
        return self.group.lease is not None and not (self._reported and self._reported.leaving)

    @property
    def rate(self) -> float:
        """The group's rate, in permits per second."""
        lease = self.group.lease
        return self.quota.rate if lease is None else lease.rate

    @property
    def max_cost(self) -> float:
        """Units of cost that may be spent at once; 0.0 unless both this process and the group count them."""
        lease, own = self.group.lease, self.quota.max_cost
        return own if lease is None or not own else lease.quota.max_cost

    def expected(self, waiting: int) -> int:
        """How many requests will probably come, besides `waiting` ones."""
        if self.max_cost:
            return 0  # Their costs are unknown.
        return max(0, min(self.group.most(self.rate) + self.passing, self.demand.steady) - waiting)

    def can_use_soon(self, turn: Turn, now: float) -> bool:
        """Whether the turn could use a permit that is leased now; a guess suffices if no other turn could use it."""
        kept, by, until = kept_until(self, turn, now), turn.held_by, now + AHEAD
        if (starts := lease_time(self, turn)) > -math.inf or kept > now:
            return kept >= starts
        if self.comes_later(turn, now + 2 * AHEAD) and by.is_remote and not by.outage.is_on:
            return bool(by.group.leases(now))  # After the permit of this share, however late.
        if by is not None and by.is_exact:  # A permit that is leased too early would lapse.
            lead = self.group.latency * (3 if self.group.is_far else 1)
            until = min(until, max(now + lead, self.held.last, self.group.queue_until) + LATE)
        return not self.comes_later(turn, until) or not (by.is_exact or self.order.is_mixed)

    def users(self, now: float, most: int) -> tuple[list[Turn], float]:
        """The first turns that could use a permit leased now, and how many more their other limits would admit."""
        users: list[Turn] = []
        room: dict[tuple[Source, ...], float] = {}
        for turn in self.turns:
            if len(users) >= most:
                break
            left = 0.0
            if self.can_use_soon(turn, now):
                left = room[turn.sources] if turn.sources in room else self._room(turn.sources, now)
            room[turn.sources] = left - 1
            if left > ROUNDING:
                users.append(turn)
            elif not self.order.is_mixed:
                break  # All other turns wait for the same limits.
        return users, sum(max(0.0, left) for left in room.values()) if room else self._room((), now)

    def _room(self, sources: Sequence[Any], now: float) -> float:
        until = AHEAD + 2 * self.group.latency  # Permits of another share are leased afterwards.
        return min(float(each.available(now, until)) for each in (self.outage, *sources) if each is not self)

    def wanted(self, now: float) -> tuple[int, int, float, list[Turn]]:
        """How many more permits to request; how many permits and units to keep; and the turns that could use them."""
        held, cost_of = self.held, self.cost_of
        self.passing = bisect_right(held.due, now + self.group.latency) if self.group.is_far else 0
        limit = self.group.most(self.rate) + self.passing
        turns, room = self.users(now, max(limit, len(held.due)))
        most, expected = len(turns), self.expected(len(turns))
        most += expected if room >= expected else max(0, math.ceil(room - ROUNDING))
        kept, units = min(self.group.timely(self, turns, now), most), 0.0
        if self.max_cost:
            slack, paid = ROUNDING * self.max_cost, 0
            while paid < min(kept, len(turns)) and units + cost_of(turns[paid]) <= held.units + slack:
                units += cost_of(turns[paid])
                paid += 1
            kept = paid
        return max(0, min(most, limit) - kept), kept, units, turns

    # Calls

    def reserve_call(self, turn: Turn | None, now: float, *, is_last: bool = False) -> StoreCall:
        """Reserve the next call, which the caller then makes. Requires `is_free`, except for the last call."""
        self.calling = StoreCall(turn, now, is_last)
        return self.calling

    def is_free(self, now: float) -> bool:
        """Whether no call is in progress. One that was never made, or began before a suspension, no longer counts."""
        call = self.calling
        if call is None:
            return True
        if now < call.sent + CALL_LIFETIME:
            return False
        self._hung += call.ask is not None
        if self._hung > _MAX_HUNG_CALLS:
            self.fail_call(call, now, "it does not answer")
            return False
        self.calling = None
        return True

    def begin_call(self, call: StoreCall, now: float) -> Ask | None:
        """The message to send; None if the call no longer counts."""
        if self.calling is not call:
            return None
        held, group = self.held, self.group
        held.lapse(now, self)
        self.is_early = False
        self._sequence += 1
        self._started = min(self._started, now)  # The caller's clock may be a different one.
        self.demand.update(held, now, group, len(self.turns))
        is_idle = call.is_last or self.outage.is_on
        want, kept, units, turns = (0, 0, 0.0, []) if is_idle else self.wanted(now)
        if now < group.paused_until or (self.pace is not None and group.lease is None):
            want = 0
        if kept < len(held.due) and turns:
            self._exchanged_at = now
        held.keep(kept, units)
        call.sent = now
        call.ask = self._reported = self._message(call, want, turns[kept : kept + want])
        self.refused, held.delay, held.unsent_since = -1, 0.0, math.inf
        return call.ask

    def _message(self, call: StoreCall, want: int, wanting: Sequence[Turn]) -> Ask:
        held, group, quota, outage, now = self.held, self.group, self.quota, self.outage, call.sent
        lease, queue = group.lease, max(group.queue_until - now, 0.0 if outage.is_long(now) else AHEAD)
        # A store that hung reads old probes late, and would take their reports for recent use: they only repeat a
        # report whose answer was lost. A permit that was reported and then given back offsets the next one.
        outage.reported = max(0, min(outage.used, outage.reported) if outage.is_on else outage.used)
        return Ask(
            share=self.share,
            **quota._asdict(),
            member=self._name,
            started=self._date,
            age=now - self._started,
            seq=self._sequence,
            lease_id=0 if lease is None else lease.id,
            used=held.used,
            lapsed=held.lapsed,
            delay=held.delay,
            unsent=max(0.0, now - held.unsent_since),
            held=len(held.due),
            want=want,
            waiting=len(self.turns),
            low=bool(wanting) and all(turn.priority == "low" for turn in wanting),
            costs=tuple(map(self.cost_of, wanting)) if quota.max_cost else (),
            units_used=held.spent,
            units_new=held.spent - held.reported,
            units=held.units,
            own=outage.reported,
            own_seconds=max(0.0, now - outage.since) if outage.used else 0.0,
            queue=0.0 if lease is None else queue,
            refused=None if self.refused < 0 else Refusal(self.refused, max(0.0, group.paused_until - now)),
            leaving=call.is_last,
        )

    def end_call(self, call: StoreCall, lease: Lease, now: float) -> bool:
        """Apply the answer. Returns whether it ends an outage that was announced."""
        ask, group = call.ask, self.group
        if self.calling is not call or ask is None:
            return False
        self.calling, self._hung, self.held.reported = None, 0, ask.units_used
        # A new state begins without units; its epoch is above all earlier ids.
        if group.lease is not None and lease.epoch <= group.lease.id:
            self.held.spent += self.outage.debt(now)
        restored = self.outage.end(now, ask)
        if lease.void:
            self.held.rewind(ask.used, ask.lapsed)
            # The quota was changed or reset; the store takes care of the window.
            self.guards_from = now + self.quota.window
        # It is unknown when the permits of an answer read after a suspension are due: they lapse.
        arrived = -math.inf if now - call.sent > CALL_LIFETIME else now
        self.held.add(lease.ranges, lease.units, arrived)
        self.waits_long = self.held.waits_long(now)
        came_early = lease.count > 0 and now < group.sleep_until
        # If a permit is due much later, it gets no others, and asks again before that, or to exchange it.
        group.update(lease, call.sent, now, is_empty=ask.want > 0 and not lease.count and not self.waits_long)
        # A permit of another share may arrive later by the latency.
        least = LATE + (group.latency if group.is_far and shares_of(self.turns) > 1 else 0.0)
        self.held.late = max(least, 0.8 * self.held.late)
        if self.history is not None and not self.outage.sources:
            self.history.update(window_of(lease.quota))
        # Turns sleep until other instants, perhaps beyond the time of their permits.
        is_news = came_early or group.is_far or self._exchanged_at == call.sent
        users = self.users(now, len(self.held.due))[0] if is_news or self.waits_long else []
        if is_news:
            self.order.wake_all(users)
        if self.waits_long and now >= self._exchanged_at + _EXCHANGE_INTERVAL:
            self.is_early |= group.timely(self, users, now) < len(self.held.due)
        if self.is_early or self.needs_call():
            self.client.schedule(0.0)
        return restored

    def fail_call(self, call: StoreCall, now: float, reason: str) -> None:
        """Continue without the store. The client announces an outage; a single lost message is not one."""
        if self.calling is not call:
            return
        self.drop_call(call)
        self.held.keep(0, 0.0)  # So that no permit is used twice.
        if self.outage.fail(now):
            self.client.loss = reason
        self.client.schedule(0.0 if self.outage.failures == 1 else PROBE_INTERVAL)

    def drop_call(self, call: StoreCall) -> None:
        """End a call that was not made, or was interrupted; what it may not have reported is reported again."""
        if self.calling is not call:
            return
        self.calling = self._reported = None
        if call.ask is not None and call.ask.refused is not None:
            self.refused = max(self.refused, call.ask.refused.epoch)

    def _is_urgent(self) -> bool:
        """Whether there is something that the other members must know immediately."""
        has_changed = self._reported is not None and self.quota != self._reported.quota
        return has_changed or self.refused >= 0 or self.held.owes_report(self.quota.max_cost)

    def needs_call(self) -> bool:
        """Whether to call the store in the background, to probe it or to report."""
        if self.outage.is_on:
            return True
        if self.calling is not None or self.group.lease is None:
            return False
        if self._is_urgent():
            return True
        if self.turns:
            return False
        held, last = self.held, self._reported
        if held.due or last is None or last.waiting or held.lapsed != last.lapsed or self.outage.used > 0:
            return True
        return bool(self.quota.max_cost) and held.spent != last.units_used

    def call_soon(self) -> None:
        """Schedule a background call if one is needed."""
        if self.needs_call():
            later = RETURN_DELAY if self.held.due or self.held.units > 0 else _REPORT_DELAY
            self.client.schedule(0.0 if self._is_urgent() else later)

    def background_call(self, now: float) -> StoreCall | None:
        """The background call to make; None if none is needed any more."""
        if not self.is_early and not self.needs_call():
            return None
        steady = self.expected(len(self.turns)) and now < self.demand.used_at + LATE
        if steady and self.refused < 0 and not self.outage.is_on and not self.is_early:
            self.client.schedule(LATE)  # The next request will probably come.
            return None
        return self.reserve_call(None, now) if self.is_free(now) else None
