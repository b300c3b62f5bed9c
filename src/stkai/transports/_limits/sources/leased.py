"""A source of permits that are leased from a store: the limit of a group of processes."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ....stores._protocol import AHEAD, LATE, UNLIMITED, Quota
from ....stores._share import MEMBER_LIFETIME
from ..limiter import Answer, RateChange, Turn, place_in
from ..pace.law import LONGEST_PAUSE
from . import ROUNDING, TICK, Limits, Source
from .adaptive import AdaptiveRate
from .holding import CALL_LIFETIME, CLOCK_ROUNDING, lease_time, shares_of
from .member import RETURN_DELAY, Member
from .outage import TRANSITION, window_of
from .request_limits import Rate

_BUSY_NAP: Final = 0.002  # Seconds after which a request asks again while another one calls the store.
_RATE_KEPT: Final = 0.88  # Fraction of its rate that a member keeps after a refusal while the store is lost.

_ANSWER_LIFETIME: Final = 0.27  # Seconds for which an answer reliably shows that no member was refused.
# Seconds after which a waiting member reports again: the group may have changed its quota, or stopped.
_REPORT_INTERVAL: Final = 1.0


class Use(NamedTuple):
    """A permit that a request took: its epoch, whether only the local sources gave it, and those that did."""

    epoch: int
    is_local: bool
    local: Sequence[Source]


class Leased(Member):
    """The permits that a member leases from a store. Pure: the client makes the calls."""

    is_remote = True

    @property
    def wakes(self) -> bool:  # type: ignore[override]
        return self.group.is_far or self.waits_long

    @property
    def limit(self) -> str:  # type: ignore[override]
        quota = self.quota if self.group.lease is None else self.group.lease.quota
        limits = [f"{quota.rate:g} requests/s" if self.pace is None else AdaptiveRate.limit]
        if quota.max_cost:
            units = f"{quota.max_cost:g} units per {quota.max_cost / quota.cost_rate:g} s"
            limits = [units] if quota.rate >= UNLIMITED else [*limits, units]
        return f"{' and '.join(limits)}, shared as {self.share!r}"

    @property
    def is_exact(self) -> bool:  # type: ignore[override]
        # Until the store answers, waits are guesses, for which no call is refused.
        return self.group.lease is not None or self.outage.is_on

    @property
    def counts_units(self) -> bool:  # type: ignore[override]
        return self.max_cost > 0

    def update(self, limits: Limits) -> None:
        """Change the group's quota, as if this member started with its next message."""
        quota = quota_of(limits, promises=self.pace is None)
        self.quota = quota._replace(methods=self.quota.methods)
        if self.history is not None:
            self.history.update(window_of(quota))
        if self.pace is not None:
            self.pace.update(quota.rate, limits.time_window)
        self._date, self._started, self.updated = self._identity()[1], math.inf, limits
        self.outage.update(limits)
        self.client.schedule(0.0)

    # Permits

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        held, group, outage = self.held, self.group, self.outage
        wait = outage.when(turn, ahead, now) if outage.sources else 0.0
        if outage.is_on:
            return wait
        if self.history is not None and now >= self.guards_from and self.history not in outage.sources:
            wait = max(wait, self.history.when(turn, ahead, now))
        if turn.wakes_at < now and turn.held_by is self:  # It woke late, and other turns may, too.
            held.late = max(held.late, min(CALL_LIFETIME, LATE + now - turn.wakes_at))
        if held.lapse(now, self):
            group.retry_at = min(group.retry_at, now)  # The store has these again once they are reported.
        if now >= group.as_of + MEMBER_LIFETIME:
            held.keep(0, 0.0)  # Others may have got its permits by now.
        if now < group.paused_until:
            return max(wait, group.paused_until - now)
        due = held.due
        if ahead >= len(due) or not self._covers(turn, ahead, now):
            return max(wait, self._estimate(turn, ahead, now))
        left = due[ahead] - now
        if self.pace is None or max(now, due[ahead]) <= self._fresh_until:
            return wait if left <= CLOCK_ROUNDING else max(wait, TICK, left)
        # By then, the answer will be too old to show whether the group was refused in the meantime.
        turn.nap = min(turn.nap, max(_BUSY_NAP, left - group.lead()))
        return max(wait, TICK, left)

    def least_wait(self, seconds: float, ahead: int, now: float) -> float:
        if self.pace is None or self.outage.is_on:
            return seconds
        pause = max(0.0, self.group.paused_until - now)
        # The rate may grow to the whole quota.
        return pause + (seconds - pause) * min(1.0, self.rate / self.quota.rate)

    def take(self, turn: Turn, now: float) -> None:
        outage, lease = self.outage, self.group.lease
        local = outage.sources
        if local:
            outage.take(turn, now)
        turn.note(self, Use(-1 if lease is None else lease.epoch, outage.is_on, local))
        if outage.is_on:
            return
        self.held.use(self.cost_of(turn), now)
        self.demand.used_at = now
        if self.history is not None and self.history not in outage.sources:
            self.history.take(turn, now)
        if self.held.due and len(self.turns) < 2:
            # There may be no requests that use the other permits.
            self.client.schedule(LATE if self.expected(len(self.turns)) else RETURN_DELAY)
        elif self.quota.max_cost:
            # Before the store writes off the permit and its units, and then charges them again.
            self.client.schedule(RETURN_DELAY if self._is_urgent() else _REPORT_INTERVAL)

    def give_back(self, turn: Turn, now: float) -> None:
        use: Use | None = turn.noted(self)
        if use is not None and use.is_local:
            self.outage.give_back(turn, now)
        elif use is not None:
            self.held.put_back(self.cost_of(turn), turn.since)
            if self.history is not None:
                self.history.give_back(turn, now)
        self.pass_on(turn, now)

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        use: Use | None = turn.noted(self)
        quota = self.quota
        if use is None or not quota.max_cost:
            return
        estimate = self.cost_of(turn)
        # No answer delays the other requests by more than the longest wait.
        cost = min(cost, max(estimate, quota.max_cost, quota.cost_rate * LONGEST_PAUSE))
        more = cost - estimate
        for source in use.local:
            source.settle(turn, cost, now)
        if use.is_local:
            if self.outage.is_on:
                self.outage.spent += more
                return
            more = max(0.0, more)  # Parts of the estimate may not have been reported to the store.
        turn.costs = {**(turn.costs or {}), self: cost}
        self.held.spent += more
        self.call_soon()

    def listens(self, now: float) -> bool:
        return self.pace is not None or self.group.lease is None

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the group learn from an answer; until the number of members is known, each member adapts alone."""
        use: Use | None = turn.noted(self)
        local, change = self.outage.sources, None
        if use is None:
            return None
        if answer.is_refusal:
            self.settle(turn, 0.0, answer.now)
        if self.group.lease is None:
            changes = [source.learn(turn, answer) for source in local]
            change = next((change for change in changes if change is not None), None)
        elif self.pace is not None:
            seconds, change = self.pace.learn(turn, answer, use.epoch, self.rate)
            if seconds:
                until = answer.now + seconds
                self.group.paused_until = max(self.group.paused_until, until)
                self.refused = max(self.refused, use.epoch)
                self.call_soon()
                for source in local:
                    if isinstance(source, Rate):
                        source.pause(until)
                        if turn.paced and not isinstance(source, AdaptiveRate):
                            source.rate *= _RATE_KEPT
        return None if change is None else change._replace(share=self.share)

    def available(self, now: float, seconds: float) -> float:
        held, group = self.held, self.group
        if self.outage.is_on:
            return self.outage.available(now, seconds)
        until = now + seconds
        later = max(0.0, until - max(now, held.last, group.queue_until))
        return bisect_right(held.due, until) + 1 + later * self.rate / group.active

    def _next_lease_at(self) -> float:
        """When to lease the next permits."""
        short = len(self.held.due) > max(1, self.waiting // 4)
        lead = min(AHEAD, shares_of(self.turns) * self.group.lead(short=short))
        return max(self.held.last - lead, self.group.retry_at)

    # Calls

    def call(self, turn: Turn, now: float) -> Any:
        """The operation that calls the store, if a call is due and no other turn makes it; None otherwise."""
        group = self.group
        is_paused = now < group.paused_until and self.refused < 0
        if self.outage.is_on or is_paused or not self.is_free(now):
            return None
        if now > group.as_of + TRANSITION:
            group.active = 1  # The information about other members is out of date.
        if not self._is_due(turn, now):
            if now < (starts := lease_time(self, turn)) < math.inf:
                # The turn sleeps until its permit of another share is due.
                if group.is_far:
                    self.is_early = True
                    self.client.schedule(starts - now)
                else:
                    turn.nap = min(turn.nap, starts + LATE / 2 - now)
            return None
        if group.is_far and place_in(self.turns, turn) < len(self.held.due):
            # The turn would miss its own permit, so a thread makes the call.
            self.is_early = True
            self.client.schedule(0.0)
            return None
        return self.client.operation(self.reserve_call(turn, now), now)

    def pass_on(self, turn: Turn, now: float, but: tuple[Any, ...] = ()) -> None:
        """Let another turn make the call that this one has reserved; return permits for which no turn is left."""
        if but:
            return  # It also waits for another source, and still for this one.
        call = self.calling
        if call is not None and call.turn is turn and call.ask is None:
            self.drop_call(call)
        self.call_soon()

    @property
    def _fresh_until(self) -> float:
        """Until when a permit may be used without asking the store whether the group is paused.

        A process whose requests wake late also reads answers late.
        """
        return self.group.as_of + _ANSWER_LIFETIME + self.held.late - LATE

    def _is_due(self, turn: Turn, now: float) -> bool:
        group = self.group
        if now >= self._next_lease_at() - TICK and self.can_use_soon(turn, now) and self.wanted(now)[0] > 0:
            return True
        if self.pace is not None and now >= self._fresh_until - group.lead():
            return True
        return group.lease is not None and now >= group.as_of + _REPORT_INTERVAL

    def _estimate(self, turn: Turn, ahead: int, now: float) -> float:
        """Estimate the wait of a turn without a permit, never too long; also sets when it asks again."""
        group, held = self.group, self.held
        behind = ahead - len(held.due)
        calling = self.calling is not None
        if calling and group.lease is None:
            turn.nap = min(turn.nap, _BUSY_NAP + max(0, behind) * 1e-4)
            return _BUSY_NAP
        last = held.due[-1] if held.due else now
        start = max(last, now, group.queue_until)
        again = max(now + TICK, self._next_lease_at())
        if calling:
            # The answer may arrive sooner than the last ones, and its permits lapse if no turn is awake.
            again = max(again, now + min(max(_BUSY_NAP, group.latency), LATE / 2))
        if behind > 0 and group.queue_until >= now:
            if behind < 2 * group.most(self.rate):
                again = max(again, max(last, again) + min(behind / self.rate, 1.0))
            else:
                again = max(again, now + max(_BUSY_NAP, (start + behind / self.rate - now) / 2))
        turn.nap = min(turn.nap, max(_BUSY_NAP, again - now))
        if group.queue_until > now:
            return max(TICK, start - now + behind * group.active / self.rate)
        return max(TICK, start - now)

    def _covers(self, turn: Turn, ahead: int, now: float) -> bool:
        """Whether the units held suffice for the turn and for `ahead` turns before it."""
        cost = self.cost_of(turn)
        if not cost:
            return True
        claimed = sum(map(self.cost_of, self.first(ahead, now, self.turns))) if ahead else 0.0
        return claimed + cost <= self.held.units + ROUNDING * self.max_cost


def quota_of(limits: Limits, *, promises: bool) -> Quota:
    """The quota on which members must agree; with `promises`, no window has more requests than allowed."""
    window, most = limits.time_window or 1.0, limits.max_cost or 0.0
    if limits.max_requests is None:
        return Quota(UNLIMITED, UNLIMITED, 0.0, most, most / window)
    burst = limits.at_once if promises else 1.0
    return Quota(limits.rate, burst, window if promises else 0.0, most, most / window)
