"""The adaptive law of a group of processes that share a quota and communicate through a store.

There is no leader: a member that is refused, or asks first after a tick, computes the next state and writes it unless
another member was first. The group acts like the sum of its members, so that it gets its fair share next to strangers
that use the same key (Chiu and Jain, 1989).
"""

import json
import math
import threading
from typing import Any, Final, NamedTuple

import httpx

from ..._forks import after_fork
from ...stores import Law as Shared
from ...stores import Lease
from .._limit.limiter import Answer
from .group_window import GroupWindow
from .law import Law, Past
from .warm import BELIEVED

_TICK: Final = 0.25
"""Seconds between steps of the law."""

_TURN: Final = 2.0
"""After so many steps for each member, a member that has made none takes one, if it has anything to report."""

_START: Final = 0.2
"""Share of the quota at which a group starts."""

_DOUBLING: Final = 1 / 12
"""Windows in which the rate doubles until the first refusal."""

_BURST: Final = 0.1
"""Windows' worth of permits that one member may take at once after a quiet time."""

_HISTORY: Final = 2.0
"""Windows over which successes are counted; older ones fade."""

_STRANGE: Final = 0.5
"""How strongly a refusal at a lower rate than the last one suggests that strangers also send."""

_BELOW: Final = 0.93
_SATURATED: Final = 0.5
"""A goodput below this share of the rate means that the quota has shrunk."""

_HIT: Final = 0.6
"""Share of the requests a group would have sent in a pause that would be refused if its members did not pause."""

_TEST: Final = 20
"""Cuts of single members after which the whole group is cut, to test whether strangers are still there."""

_ENDED: Final = 3600.0
"""Seconds without a lease after which a group has ended; a new one does not continue at its rate."""

_LONGEST_STEP: Final = 1.5
"""Seconds; after a longer gap without a lease, no request was held back."""


class Memory(NamedTuple):
    """What the group remembers, in addition to its rate.

    Attributes:
        quiet: seconds for which the rate has grown since the last cut.
        held: share of the time, fading over a window, during which requests were held back.
        accepted: successes, fading.
        seconds: the time in which they were counted, fading likewise.
        epoch: the epoch that began with the last cut; earlier refusals say nothing about the present rate.
        cold: 1 until the first refusal.
        answered: 1 once a request sent after the last cut was accepted; until then there is no further cut.
        strangers: evidence that others use the quota, from 0 to 1.
        parts: cuts of one member's part since the last cut of the whole.
        tested: the rate at which the whole was cut last, until the next refusal; 0 otherwise.
        window: the state of the guide for the window that the server describes; empty if it describes none.
    """

    quiet: float = 0.0
    held: float = 1.0
    accepted: float = 0.0
    seconds: float = 0.0
    epoch: float = 0
    cold: float = 1
    answered: float = 1
    strangers: float = 0.0
    parts: float = 0
    tested: float = 0.0
    window: tuple[Any, ...] = ()

    def text(self) -> str:
        """The text for the store."""
        numbers = [round(value, 6) for value in self[:-1]]
        window = [float(f"{value:.9g}") if isinstance(value, float) else value for value in self.window]
        return json.dumps([*numbers, window], separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> "Memory | None":
        """Parse a text from the store; None if it has another format."""
        try:
            *numbers, window = json.loads(text)
            return cls._make([*map(float, numbers), tuple(window)])
        except (ValueError, TypeError, OverflowError):
            return None


class GroupPilot:
    """Steers the group's rate by the answers that this member receives.

    Args:
        law: the law for the rate of one sender.
        ceiling: the whole quota, in requests per second.
        floor: the least rate.
        window: the quota's window, in seconds.
        starts_cold: whether to start with a part of the quota.
        starts_warm: whether to start at the rate of a group that ended within a day.
    """

    def __init__(
        self,
        law: Law,
        ceiling: float,
        floor: float,
        window: float,
        *,
        starts_cold: bool,
        starts_warm: bool = False,
    ) -> None:
        self._law, self._ceiling, self._floor, self._window = law, ceiling, floor, window
        self._cold, self._warm = starts_cold, starts_warm
        # Plain AIMD reads no headers.
        self._guided = GroupWindow(ceiling, floor, window, listens=starts_cold)
        self._accepted = 0
        self._counted = 0
        self._wrote_at = -math.inf
        self._refused = self._answered = -1
        self._last: tuple[int, Shared] | None = None
        self._begin()
        after_fork(self, GroupPilot._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def hear(self, answer: Answer, response: httpx.Response, *, refused: bool) -> float | None:
        """Read the quota headers of an answer.

        Returns:
            The seconds until the window ends, if the headers say that it is used up and the group believes in it.
        """
        with self._lock:
            reading = self._guided.read(answer, response.headers, refused=refused)
            return self._guided.hear(reading, answer.now, answer.sent, refused=refused)

    def accepted(self, epoch: int) -> None:
        """Note that a request of this member, sent in this epoch, was accepted."""
        with self._lock:
            self._accepted += 1
            self._answered = max(self._answered, epoch)

    def refused(self, epoch: int) -> None:
        """Note that a request sent in this epoch was refused, and that no window explains it."""
        with self._lock:
            self._refused = max(self._refused, epoch)

    def steer(self, lease: Lease, waiting: int, now: float) -> Shared | None:
        """The group's next state, if one is due."""
        with self._lock:
            before, memory = lease.law, Memory.of(lease.law.memory) if lease.law.memory else None
            if memory is None:
                last = self._last
                if last is not None and last[0] == lease.epoch:  # The state was lost; restore it.
                    return before._replace(
                        rate=last[1].rate, burst=last[1].burst, memory=last[1].memory, age=0.0
                    )
                return self._started(lease, cold=self._cold)
            if self._last is None and before.age > _ENDED:
                # The state is that of a group whose members are gone.
                if self._warm and before.age < BELIEVED:
                    return self._started(lease, cold=bool(memory.cold), rate=before.rate)
                return self._started(lease, cold=self._cold)
            before = before._replace(age=max(0.0, before.age))
            self._last = lease.epoch, before
            guide = self._guided.move(memory.window, now - before.age, now, before.rate, lease.members)
            if self._answered >= memory.epoch:
                memory = memory._replace(answered=1)
            cuts = self._refused >= memory.epoch and bool(memory.answered)
            # Otherwise the successes of a member that always asks just after another would never count.
            overdue = self._accepted and now - self._wrote_at >= _TURN * _TICK * lease.members
            if before.age < _TICK and not (cuts or overdue or self._guided.has_news(now - _TICK)):
                return None
            self._wrote_at = now
            held = waiting > 0 or lease.wait > 0 or lease.pause > 0
            self._counted = self._accepted
            memory = self._faded(memory, before.age, held=held)
            if cuts:
                rate, memory = self._cut(before.rate, memory, lease)
            elif held and not guide.in_force:
                rate, memory = self._grown(before.rate, memory, lease, min(before.age, _LONGEST_STEP))
            else:
                rate = before.rate
            rate = self._bounded(rate)
            if guide.in_force:
                rate, memory = guide.rate, memory._replace(cold=0)
            if memory.window or not guide.has_heard_nothing:
                memory = memory._replace(window=guide.state(now))
            return self._state(before, rate, memory, lease.members)

    def steered(self, lease: Lease, law: Shared, *, done: bool) -> None:
        """Forget what the state holds now; what another member wrote in its place does not hold it."""
        if done:
            with self._lock:
                self._accepted -= self._counted
                self._guided.told()
                memory = Memory.of(law.memory)
                if memory is not None and self._refused < memory.epoch:
                    self._refused = -1
        self._counted = 0

    def _started(self, lease: Lease, *, cold: bool, rate: float | None = None) -> Shared:
        """The state of a new group: by default at a share of the quota, or at all of it if it does not start cold."""
        if rate is None:
            rate = _START * self._ceiling if self._cold else self._ceiling
        memory = Memory(epoch=lease.epoch, cold=int(cold))
        return self._state(lease.law, self._bounded(rate), memory, lease.members)

    def _state(self, before: Shared, rate: float, memory: Memory, members: int) -> Shared:
        burst = max(1.0, _BURST * self._window * rate / members)
        return before._replace(rate=rate, burst=burst, memory=memory.text(), age=0.0)

    def _bounded(self, rate: float) -> float:
        return min(self._ceiling, max(self._floor, rate))

    def _faded(self, memory: Memory, seconds: float, *, held: bool) -> Memory:
        horizon = _HISTORY * self._window
        # Before the last step the group was idle, which says nothing about its goodput.
        step = min(seconds, _LONGEST_STEP)
        fading, fading_step = math.exp(-seconds / horizon), math.exp(-step / self._window)
        before = memory.held * math.exp(-(seconds - step) / self._window)
        return memory._replace(
            held=1 - (1 - before) * fading_step if held else before * fading_step,
            accepted=memory.accepted * fading + self._accepted,
            seconds=memory.seconds * fading + horizon * (1 - math.exp(-step / horizon)),
        )

    def _cut(self, rate: float, memory: Memory, lease: Lease) -> tuple[float, Memory]:
        """Cut the whole group's rate, or, beside strangers, the parts of the members that were refused.

        Each stranger is refused, and cut, for itself; a group that was cut altogether each time would starve beside
        them. Alone, it must be: its refusals say that the quota is used up. The two differ in where the next refusal
        comes. Alone, that is not before the rate has grown back; beside strangers, it may be at any rate.
        """
        accepted: Any = memory.accepted
        whole = min(rate, self._law.cut(rate, Past(accepted, memory.seconds, memory.held, bool(memory.cold))))
        strangers, parts = memory.strangers, memory.parts + 1
        if memory.tested > 0:
            strangers += _STRANGE if rate < _BELOW * memory.tested else -_STRANGE
            strangers = min(1.0, max(0.0, strangers))
        # The refusal may not have reached the store yet, which will then begin another epoch.
        memory = memory._replace(epoch=max(lease.epoch, self._refused + 1), answered=0, strangers=strangers)
        goodput = memory.accepted / max(1.0, memory.seconds)
        if memory.cold or strangers < _STRANGE or parts > _TEST or goodput < _SATURATED * rate:
            return whole, memory._replace(cold=0, quiet=0.0, parts=0, tested=rate)
        # Its members pause as one: without that, in a long pause each would have been refused for itself.
        part = min(1.0, max(1.0, _HIT * lease.pause * rate) / lease.members)
        quiet = memory.quiet * (1 - part)
        return rate - (rate - whole) * part, memory._replace(quiet=quiet, parts=parts, tested=0.0)

    def _grown(self, rate: float, memory: Memory, lease: Lease, seconds: float) -> tuple[float, Memory]:
        if memory.cold:
            return rate * 2 ** (seconds / max(0.5, _DOUBLING * self._window)), memory
        members = lease.members
        grown = rate + members * (self._law.grown(rate, memory.quiet, seconds) - rate)
        return max(rate, grown), memory._replace(quiet=memory.quiet + seconds)
