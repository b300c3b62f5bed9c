"""The adaptive law of a group of processes that share a quota and communicate through a store.

There is no leader: a member that is refused, or is the first to ask after an interval, computes the next state, and
writes it unless another member was first. The group acts like the sum of its members, so that it gets its fair share
beside other clients with the same key (Chiu and Jain, 1989).
"""

import json
import math
from typing import Any, Final, NamedTuple

from ....stores._protocol import GroupRate, Lease
from ..._retry_after import retry_after
from ..limiter import Answer, RateChange, Turn, was_admitted
from .law import BURST, HISTORY, LEAST_CHANGE, LEAST_PAUSE, Past, full_pause
from .quota import MAX_RATE_AGE, KnownQuota
from .start import START_FRACTION
from .window_guide import GroupWindow

_INTERVAL: Final = 0.25  # Seconds between steps of the law.
_MAX_STEP: Final = 1.5  # Seconds; in a longer gap without a lease, no request was held back.
# Steps per member after which a member that has not written the state writes it, if it has anything to report.
_STEPS_PER_MEMBER: Final = 2.0

_DOUBLING_WINDOWS: Final = 1 / 12  # Windows in which the rate doubles until the first refusal.
_SHRUNK_GOODPUT: Final = 0.5  # Goodput below this fraction of the rate means that the quota has shrunk.

# Evidence of other clients: the first refusal after a cut of the whole group adds it if the rate is below `_LOWER_RATE`
# times the rate at that cut, and subtracts it otherwise. It is also the evidence that suffices.
_EVIDENCE: Final = 0.5
_LOWER_RATE: Final = 0.93
# Cuts of single members, after which a cut of the whole group tests for other clients again.
_TEST_AFTER: Final = 20
# Fraction of what a group would have sent in a pause that would be refused if its members did not pause.
_REFUSED_IN_PAUSE: Final = 0.6

# Seconds without a lease after which a group has ended: unless a new one `starts_warm`, it starts cold.
_GROUP_LIFETIME: Final = 3600.0


class GroupState(NamedTuple):
    """The state of a group, in addition to its rate."""

    quiet: float = 0.0  # Seconds for which the rate has grown since the last cut.
    held: float = 1.0  # Fraction of the time, decaying over a window, during which requests were held back.
    accepted: float = 0.0  # Successes, decaying.
    seconds: float = 0.0  # The time in which they were counted, decaying likewise.
    # The epoch that began with the last cut; earlier refusals say nothing about the present rate.
    epoch: float = 0
    cold: float = 1  # 1 until the first refusal.
    # 1 once a request sent after the last cut was accepted; until then, there is no further cut.
    answered: float = 1
    others: float = 0.0  # Evidence that other clients use the quota, from 0 to 1.
    member_cuts: float = 0  # Cuts of one member's part since the last cut of the whole group.
    tested: float = 0.0  # The rate at the last cut of the whole group, until the next refusal; 0 otherwise.
    # The state of the guide for the window that the server describes; empty if it describes none.
    window: tuple[Any, ...] = ()

    def text(self) -> str:
        numbers = [round(value, 6) for value in self[:-1]]
        window = [float(f"{value:.9g}") if isinstance(value, float) else value for value in self.window]
        return json.dumps([*numbers, window], separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> "GroupState | None":
        """Parse a text from the store; None if it is empty, or its format is unknown."""
        try:
            *numbers, window = json.loads(text)
            return cls._make([*map(float, numbers), tuple(window)])
        except (ValueError, TypeError, OverflowError):
            return None


class GroupPace:
    """Adjusts the group's rate to the answers that this member receives. The caller holds a lock.

    With `starts_warm`, it starts at the rate of a group that ended within the last day.
    """

    def __init__(self, quota: KnownQuota, *, starts_warm: bool = False) -> None:
        self._quota, self._warm = quota, starts_warm
        self._cold = quota.plain is None
        self._set_up()
        self._accepted = self._counted = 0
        self._wrote_at = -math.inf
        self._refused = self._answered = -1
        self._streak, self._streak_epoch = 0, -1
        self._last: tuple[int, GroupRate] | None = None
        self._reported = 0.0

    def _set_up(self) -> None:
        self._law = self._quota.law()
        self._guided = GroupWindow(self._quota)

    def update(self, ceiling: float, window: float) -> None:
        """Continue with the same fraction of another quota, in requests per second and seconds."""
        before = self._quota.ceiling
        if window != self._quota.window or not math.isclose(ceiling, before):
            self._quota.update(ceiling * window, window)
            self._set_up()
            if self._last is not None:  # The store forgets the state when the quota changes.
                epoch, law = self._last
                factor = self._quota.ceiling / before
                self._last = epoch, law._replace(rate=law.rate * factor, burst=law.burst * factor)

    def learn(self, turn: Turn, answer: Answer, epoch: int, rate: float) -> tuple[float, RateChange | None]:
        """Record the answer to a request of this epoch, sent while the group's rate was `rate`.

        Returns the seconds for which the group must pause, and the change of its rate if that is worth reporting.
        """
        response, turn.paced = answer.response, answer.is_refusal
        if response is None or not (turn.paced or was_admitted(response)):
            return 0.0, None
        used_up = self._guided.note(response, answer)
        if not turn.paced:
            self._streak = 0
            self._accepted += 1
            self._answered = max(self._answered, epoch)
            return used_up or 0.0, self._change_to_report(rate)
        if epoch > self._streak_epoch:
            self._streak_epoch = epoch
            self._streak += 1
        if used_up is None:  # The window does not explain it.
            self._refused = max(self._refused, epoch)
        window = self._quota.window
        asked = retry_after(response.headers, answer.date())
        seconds = LEAST_PAUSE * window if asked is None else asked
        stop = full_pause(seconds, self._streak, window, rate, answer.chance)
        return max(used_up or 0.0, stop), self._change_to_report(rate)

    def _change_to_report(self, rate: float) -> RateChange | None:
        before = self._reported or rate
        if abs(rate - before) <= LEAST_CHANGE * before and self._reported:
            return None
        self._reported = rate
        return RateChange(before, rate, "adjusted by the group") if rate != before else None

    def steer(self, lease: Lease, waiting: int, now: float) -> GroupRate | None:
        """The group's next state; None if none is due."""
        self.update(lease.quota.rate, self._quota.window)
        before, state = lease.law, GroupState.of(lease.law.memory)
        if state is None:
            last = self._last
            if last is not None and last[0] == lease.epoch:  # The state was lost; restore it.
                rate = self._quota.bounded(last[1].rate)
                return before._replace(rate=rate, burst=last[1].burst, memory=last[1].memory, age=0.0)
            return self._started(lease, cold=self._cold)
        if self._last is None and before.age > _GROUP_LIFETIME:
            # The state is that of a group that has ended.
            if self._warm and before.age < MAX_RATE_AGE:
                return self._started(lease, cold=bool(state.cold), rate=before.rate)
            return self._started(lease, cold=self._cold)
        before = before._replace(age=max(0.0, before.age))
        self._last = lease.epoch, before
        guide = self._guided.move(state.window, now - before.age, now, before.rate, lease.members)
        if self._answered >= state.epoch:
            state = state._replace(answered=1)
        cuts = self._refused >= state.epoch and bool(state.answered)
        # Otherwise, the successes of a member that always asks just after another would never count.
        overdue = self._accepted and now - self._wrote_at >= _STEPS_PER_MEMBER * _INTERVAL * lease.members
        if before.age < _INTERVAL and not (cuts or overdue or self._guided.has_news(now - _INTERVAL)):
            return None
        self._wrote_at = now
        held = waiting > 0 or lease.queue > 0 or lease.pause > 0
        self._counted = self._accepted
        state = self._faded(state, before.age, held=held)
        if cuts:
            rate, state = self._cut(before.rate, state, lease)
        elif held and not guide.in_force:
            rate, state = self._grown(before.rate, state, lease, min(before.age, _MAX_STEP))
        else:
            rate = before.rate
        rate = self._quota.bounded(rate)
        if guide.in_force:
            rate, state = guide.rate, state._replace(cold=0)
        if state.window or not guide.is_uninformed:
            state = state._replace(window=guide.state(now))
        return self._state(before, rate, state, lease.members)

    def steered(self, proposed: GroupRate, *, done: bool) -> None:
        """Drop the counts that the state contains once it was written (`done`); otherwise keep them."""
        if done:
            self._accepted -= self._counted
            self._guided.reported()
            state = GroupState.of(proposed.memory)
            if state is not None and self._refused < state.epoch:
                self._refused = -1
        self._counted = 0

    def _started(self, lease: Lease, *, cold: bool, rate: float | None = None) -> GroupRate:
        """The state of a new group, by default at a fraction of the quota, or, with plain AIMD, at all of it."""
        if rate is None:
            rate = START_FRACTION * self._quota.ceiling if self._cold else self._quota.ceiling
        state = GroupState(epoch=lease.epoch, cold=int(cold))
        return self._state(lease.law, self._quota.bounded(rate), state, lease.members)

    def _state(self, before: GroupRate, rate: float, state: GroupState, members: int) -> GroupRate:
        burst = max(1.0, BURST * self._quota.window * rate / members)
        return before._replace(rate=rate, burst=burst, memory=state.text(), age=0.0)

    def _faded(self, state: GroupState, seconds: float, *, held: bool) -> GroupState:
        horizon = HISTORY * self._quota.window
        # The group was idle before the last step, which says nothing about its goodput.
        step = min(seconds, _MAX_STEP)
        fading, fading_step = math.exp(-seconds / horizon), math.exp(-step / self._quota.window)
        before = state.held * math.exp(-(seconds - step) / self._quota.window)
        return state._replace(
            held=1 - (1 - before) * fading_step if held else before * fading_step,
            accepted=state.accepted * fading + self._accepted,
            seconds=state.seconds * fading + horizon * (1 - math.exp(-step / horizon)),
        )

    def _cut(self, rate: float, state: GroupState, lease: Lease) -> tuple[float, GroupState]:
        """Cut the whole group's rate, or, beside other clients, the parts of the members that were refused.

        Each other client is refused, and cut, separately; a group that was always cut as a whole would starve beside
        them. Without others, it must be cut: its refusals show that the quota is used up. The next refusal tells the
        difference: without others, it occurs once the rate has grown back; with others, at any rate.
        """
        past = Past(state.accepted, state.seconds, state.held, bool(state.cold))
        whole = min(rate, self._law.cut(rate, past))
        others, cuts = state.others, state.member_cuts + 1
        if state.tested > 0:
            others += _EVIDENCE if rate < _LOWER_RATE * state.tested else -_EVIDENCE
            others = min(1.0, max(0.0, others))
        # The refusal may not have reached the store yet, which will then begin another epoch.
        state = state._replace(epoch=max(lease.epoch, self._refused + 1), answered=0, others=others)
        goodput = state.accepted / max(1.0, state.seconds)
        if state.cold or others < _EVIDENCE or cuts > _TEST_AFTER or goodput < _SHRUNK_GOODPUT * rate:
            return whole, state._replace(cold=0, quiet=0.0, member_cuts=0, tested=rate)
        # The members pause together: otherwise, each would have been refused separately in a long pause.
        fraction = min(1.0, max(1.0, _REFUSED_IN_PAUSE * lease.pause * rate) / lease.members)
        quiet = state.quiet * (1 - fraction)
        return rate - (rate - whole) * fraction, state._replace(quiet=quiet, member_cuts=cuts, tested=0.0)

    def _grown(
        self, rate: float, state: GroupState, lease: Lease, seconds: float
    ) -> tuple[float, GroupState]:
        if state.cold:
            return rate * 2 ** (seconds / max(0.5, _DOUBLING_WINDOWS * self._quota.window)), state
        members = lease.members
        grown = rate + members * (self._law.grown(rate, state.quiet, seconds) - rate)
        return max(rate, grown), state._replace(quiet=state.quiet + seconds)
