"""The adaptive law of a group of processes that share a quota, and that talk to each other through a store.

There is no leader: whoever is refused, or is the first to ask after a tick, computes the next state and writes it if
nobody else was first. The group moves as its members would: as many times one of them as there are, so that it holds
its own beside strangers who use the same key (Chiu and Jain, 1989).
"""

import json
import math
import threading
from typing import Any, Final, NamedTuple

from ...stores import Law as Shared
from ...stores import Lease
from .law import Law, Past

_TICK: Final = 0.25
"""Seconds between two steps of the law."""

_START: Final = 0.2
"""The share of the quota with which a group begins."""

_DOUBLING: Final = 1 / 12
"""Windows in which the rate doubles until the first refusal."""

_BURST: Final = 0.1
"""Windows whose worth of permits may be taken at once after a quiet time, by one of the members."""

_HISTORY: Final = 2.0
"""Windows over which successes are counted; older ones fade."""

_STRANGE: Final = 0.5
"""How much one refusal below the rate of the last one says that strangers send as well."""

_BELOW: Final = 0.93
_SATURATED: Final = 0.5
"""A goodput below that share of the rate says that the quota is smaller than it was."""

_HIT: Final = 0.6
"""Share of the requests that a group would have sent in a pause which others, who do not pause, see refused."""

_TEST: Final = 8
"""Cuts of one member's part, after which the whole group is cut, to find out whether there still are strangers."""

_LONGEST_STEP: Final = 1.5
"""Seconds; nobody has asked for longer, and so nobody was held back."""


class Memory(NamedTuple):
    """What the group remembers, besides its rate.

    Attributes:
        quiet: seconds for which the rate has grown since the last cut.
        held: share of the time, fading over a window, during which requests were held back.
        accepted: successes, fading.
        seconds: the time in which they were counted, fading likewise.
        epoch: that began with the last cut; a refusal of an earlier one says nothing of the present rate.
        cold: 1 until the first refusal.
        answered: 1 once a request was accepted that was sent after the last cut; before that, no cut follows it.
        strangers: from 0, nobody else uses the quota, to 1.
        parts: cuts of one member's part since the last cut of the whole.
        tested: the rate at which the whole was cut last, until the next refusal; 0 otherwise.
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

    def text(self) -> str:
        """As it is kept in the store."""
        return json.dumps([round(value, 6) for value in self])

    @classmethod
    def of(cls, text: str) -> "Memory | None":
        """What a text says; None where it is none of ours."""
        try:
            return cls(*map(float, json.loads(text)))
        except (ValueError, TypeError):
            return None


class GroupPilot:
    """Steers the group's rate from what this member hears of the server.

    Args:
        law: how the rate of one sender moves.
        ceiling: the whole quota, in requests per second.
        floor: the least rate.
        window: of the quota, in seconds.
        starts_cold: whether it begins with a part of the quota.
    """

    def __init__(self, law: Law, ceiling: float, floor: float, window: float, *, starts_cold: bool) -> None:
        self._law, self._ceiling, self._floor, self._window = law, ceiling, floor, window
        self._cold = starts_cold
        self._lock = threading.Lock()
        self._accepted = 0
        self._counted = 0
        self._refused = self._answered = -1
        self._last: tuple[int, Shared] | None = None

    def accepted(self, epoch: int) -> None:
        """A request of this member that was sent in that epoch was accepted."""
        with self._lock:
            self._accepted += 1
            self._answered = max(self._answered, epoch)

    def refused(self, epoch: int) -> None:
        """A request that was sent in that epoch was refused."""
        with self._lock:
            self._refused = max(self._refused, epoch)

    def steer(self, lease: Lease, waiting: int) -> Shared | None:
        """The group's next state, if it is time for one."""
        with self._lock:
            before, memory = lease.law, Memory.of(lease.law.memory) if lease.law.memory else None
            if memory is None:
                last = self._last
                if last is not None and last[0] == lease.epoch:  # The state was lost; it goes on.
                    return before._replace(
                        rate=last[1].rate, burst=last[1].burst, memory=last[1].memory, age=0.0
                    )
                memory = Memory(epoch=lease.epoch, cold=int(self._cold))
                rate = max(self._floor, _START * self._ceiling) if self._cold else self._ceiling
                return self._state(before, rate, memory, lease.members)
            self._last = lease.epoch, before
            if self._answered >= memory.epoch:
                memory = memory._replace(answered=1)
            cuts = self._refused >= memory.epoch and bool(memory.answered)
            if before.age < _TICK and not cuts:
                return None
            held = waiting > 0 or lease.wait > 0 or lease.pause > 0
            self._counted = self._accepted
            memory = self._faded(memory, before.age, held=held)
            if cuts:
                rate, memory = self._cut(before.rate, memory, lease)
            elif held:
                rate, memory = self._grown(before.rate, memory, lease, min(before.age, _LONGEST_STEP))
            else:
                rate = before.rate
            return self._state(before, rate, memory, lease.members)

    def steered(self, lease: Lease, law: Shared, *, done: bool) -> None:
        """Forget what the state holds now; what another member wrote in its place does not hold it."""
        if done:
            with self._lock:
                self._accepted -= self._counted
                memory = Memory.of(law.memory)
                if memory is not None and self._refused < memory.epoch:
                    self._refused = -1
        self._counted = 0

    def _state(self, before: Shared, rate: float, memory: Memory, members: int) -> Shared:
        rate = min(self._ceiling, max(self._floor, rate))
        burst = max(1.0, _BURST * self._window * rate / members)
        return before._replace(rate=rate, burst=burst, memory=memory.text(), age=0.0)

    def _faded(self, memory: Memory, seconds: float, *, held: bool) -> Memory:
        horizon = _HISTORY * self._window
        fading, fading_held = math.exp(-seconds / horizon), math.exp(-seconds / self._window)
        return memory._replace(
            held=1 - (1 - memory.held) * fading_held if held else memory.held * fading_held,
            accepted=memory.accepted * fading + self._accepted,
            seconds=memory.seconds * fading + horizon * (1 - fading),
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
        memory = memory._replace(epoch=lease.epoch, answered=0, strangers=strangers)
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
