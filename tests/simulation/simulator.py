"""Many processes that share a quota, in virtual time: the real limiters, flow, driver and step, on one seed.

Each process is an event loop with its own stack. Its threads, its timers and its messages are events of the simulator,
which may come late, be lost, or overtake each other. The same seed gives the same run.
"""

import heapq
import inspect
import itertools
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from stkai import TokenBucket
from stkai.stores import Ask, Lease
from stkai.stores._share import State
from stkai.stores._step import step

from ..stores.clients import check_books
from .process import Connection, Process

TIMEOUT = 0.25
"""Seconds after which a call to the store fails."""


class BrokenError(AssertionError):
    """The simulated program broke an invariant."""


class Simulator:
    """Virtual time, the store, and the processes.

    Args:
        seed: decides everything that is left to chance.
        processes: how many there are at the start.
        rate: permits per second of the whole group.
        window: seconds; the quota is `rate * window` permits per window.
        burst: permits at once after a quiet time; None for the whole quota.
        latency: seconds that a message to the store or back takes at most.
        max_cost: units of cost per window; None if costs do not count.
        losses: the share of messages that are lost, in each direction.
        echoes: the share of messages that arrive once more later.
        make: makes the limiter of a process, from its connection to the store.
    """

    def __init__(
        self,
        seed: int,
        *,
        processes: int = 2,
        rate: float = 50.0,
        window: float = 1.0,
        burst: float | None = None,
        latency: float = 0.001,
        max_cost: float | None = None,
        losses: float = 0.0,
        echoes: float = 0.0,
        make: "Callable[[Simulator, Connection], Any] | None" = None,
    ) -> None:
        self.seed, self.chance = seed, random.Random(seed)  # noqa: S311
        self.now = self.began = 1000.0
        self.rate, self.window, self.latency, self.losses = rate, window, latency, losses
        self.burst, self.max_cost, self.echoes = burst, max_cost, echoes
        self.make = make or Simulator.bucket
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.states: dict[str, State | None] = {}
        self.is_up, self.clock_offset = True, 0.0
        self.is_troubled = losses > 0  # Then the store cannot know all that was sent.
        self.current: Process | None = None
        self.calls = self.failures = 0
        self.errors: list[BaseException | None] = []
        self.uses: list[Use] = []
        self.waiting = Waiting()
        self.serve: Callable[[Process], Awaitable[httpx.Response]] = self.accept
        self.processes: list[Process] = []
        for _ in range(processes):
            self.start()

    def bucket(self, store: Connection) -> Any:
        """The usual limiter: a token bucket for the whole group."""
        count = self.rate * self.window
        return TokenBucket(
            count, self.window, burst=self.burst, max_cost=self.max_cost, share="team", store=store,
            cost=Metered() if self.max_cost else None,
        )  # fmt: skip

    def start(self) -> Process:
        """Start another process."""
        process = Process(self, len(self.processes))
        self.processes.append(process)
        return process

    # Time

    def at(self, seconds: float, event: Callable[[], object], process: Process | None = None) -> None:
        """Let something happen after so many seconds; in a process, only while that runs."""
        if process is not None:
            event = partial(process.run, event)
        heapq.heappush(self._events, (self.now + max(0.0, seconds), next(self._numbers), event))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until
        for error in self.errors:
            if error is not None:
                raise error

    # The store

    def message(self, process: Process, ask: Ask, finish: Callable[[], object]) -> None:
        """Carry a message to the store and its answer back; then call `finish` in the process."""
        there, back = (self.chance.uniform(0.3, 1) * self.latency for _ in range(2))
        is_lost = [self.chance.random() < self.losses for _ in range(2)]

        def arrive() -> None:
            lease: Lease | None = None
            if not self.is_up or is_lost[0]:
                if is_lost[0] and self.chance.random() < 0.5:
                    self.at(self.chance.uniform(0.2, 2), partial(self.arrive_late, ask))
            else:
                lease = self.lease(ask)
                if self.chance.random() < self.echoes:
                    self.at(self.chance.uniform(0.0, 2.0), partial(self.arrive_late, ask))
            if is_lost[1]:
                lease = None
            self.failures += lease is None
            self.at(TIMEOUT - there if lease is None else back, partial(end, lease), process)

        def end(lease: Lease | None) -> None:
            process.store.answers[id(ask)] = lease
            finish()

        self.at(there, arrive)

    @property
    def state(self) -> State | None:
        """The state of the share of the usual limiter."""
        return self.states.get("team")

    @state.setter
    def state(self, state: State | None) -> None:
        self.states["team"] = state

    def lease(self, ask: Ask) -> Lease:
        """The store's step, with its invariants."""
        self.calls += 1
        now = self.now + self.clock_offset
        state = self.states[ask.share] = self.states.get(ask.share) or State.new(now)
        lease = step(state, ask, now)
        if self.calls % 5 == 0:  # What does not balance once, stays so.
            check_books(state)
        self.check(all(count > 0 for _, _, count in lease.ranges), "a lease has no permits in a range")
        return lease

    def arrive_late(self, ask: Ask) -> None:
        """A message arrives that was believed lost, or arrived before, perhaps overtaken by later ones."""
        if self.is_up:
            self.lease(ask)

    # Requests

    async def accept(self, process: Process) -> httpx.Response:
        """A server that accepts everything at once."""
        return httpx.Response(200)

    def note_use(self, process: Process, cost: float, *, is_low: bool) -> None:
        """Note that a request was sent."""
        self.uses.append(Use(self.now, process.number, is_low, cost))

    def check(self, is_true: bool, what: str) -> None:
        """Fail, naming the seed and the time, unless something is true."""
        if not is_true:
            raise BrokenError(f"seed {self.seed}, {self.now - self.began:.4f} s: {what}")

    def end(self) -> None:
        """Close the event loops, and drop what is left in them."""
        for process in self.processes:
            process.is_alive = False
            for task in process.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                work: Any = task.get_coro()
                if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                    work.close()  # The process was killed before.
            process.tasks.clear()
            process.loop._ready.clear()  # type: ignore[attr-defined]
            process.loop._scheduled.clear()  # type: ignore[attr-defined]
            process.loop.close()
        self._events.clear()

    # What came of it

    def per_second(self, start: float, seconds: int) -> list[int]:
        """How many requests were sent in each second from `start` on."""
        instants = [use.instant - self.began - start for use in self.uses]
        return [sum(second <= instant < second + 1 for instant in instants) for second in range(seconds)]

    def most_within(self, seconds: float) -> int:
        """The most requests that were sent in any stretch of time."""
        instants = sorted(use.instant for use in self.uses)
        most = left = 0
        for right, instant in enumerate(instants):
            while instants[left] <= instant - seconds:
                left += 1
            most = max(most, right - left + 1)
        return most

    def finish(self, start: float, seconds: int, *, goal: float = 0.9, excess: float = 0.0) -> list[int]:
        """Check the promises for the stretch of so many seconds from `start` on.

        Args:
            start: seconds since the beginning.
            seconds: how many.
            goal: the least share of the limit in a second in which requests waited all the time.
            excess: the share of the limit that may be sent in excess of it in a window.
        """
        waiting = self.waiting.throughout(self.now)
        for second, sent in enumerate(self.per_second(start, seconds)):
            begin = self.began + start + second
            if any(since <= begin and until >= begin + 1 for since, until in waiting):
                per_second = self.per_second(start, seconds)
                self.check(
                    sent >= goal * self.rate - 1, f"{sent} were sent in second {second} of {per_second}"
                )
        # Permits are used a little late, and not all equally late.
        window = self.window - 0.005 - 2 * self.latency
        sent, allowed = self.most_within(window), math.floor(self.rate * self.window * (1 + excess)) + 1
        self.check(sent <= allowed, f"{sent} were sent within {window:.4f} s; {allowed} are allowed")
        if self.state is not None and not self.is_troubled:
            reported, known = self.state.used, self.state.used + self.state.expired + self.state.held
            total = f"{len(self.uses)} were sent; the store counts {reported} as used and {known} at most"
            self.check(reported <= len(self.uses) <= known, total)
        alive = [process for process in self.processes if process.is_alive]
        self.check(not any(process.waiting for process in alive), "requests wait for ever")
        return self.per_second(start, seconds)

    def fairness(self, start: float, seconds: float) -> float:
        """Jain's index of what the processes sent."""
        begin = self.began + start
        counts = Counter(use.process for use in self.uses if begin <= use.instant < begin + seconds)
        sent = [counts[process.number] for process in self.processes]
        return sum(sent) ** 2 / (len(sent) * sum(each**2 for each in sent))


class Metered:
    """What requests cost, and what they turn out to have cost."""

    def estimate(self, _: httpx.Request) -> float:
        return 1.0

    def settle(self, response: httpx.Response) -> float | None:
        real: float | None = response.request.extensions["real"]
        return real


class Use:
    """A request that was sent."""

    __slots__ = ("cost", "instant", "low", "process")

    def __init__(self, instant: float, process: int, low: bool, cost: float) -> None:
        self.instant, self.process, self.low, self.cost = instant, process, low, cost


class Waiting:
    """The stretches of time in which at least one request waited."""

    def __init__(self) -> None:
        self.count, self._since = 0, 0.0
        self._stretches: list[tuple[float, float]] = []

    def change(self, by: int, now: float) -> None:
        if self.count == 0 and by > 0:
            self._since = now
        self.count += by
        if self.count == 0:
            self._stretches.append((self._since, now))

    def throughout(self, now: float) -> list[tuple[float, float]]:
        """Stretches without a gap of more than a moment."""
        found: list[tuple[float, float]] = []
        for since, until in [*self._stretches, *([(self._since, now)] if self.count else [])]:
            if found and since - found[-1][1] < 0.002:
                found[-1] = (found[-1][0], until)
            else:
                found.append((since, until))
        return found
