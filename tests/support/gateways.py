"""Servers that refuse without saying how long to wait, and processes that send to them, in virtual time."""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Protocol

import httpx

from stkai.transports import Answer, RateChange, Turn

from .sender import Sender, date

RESPONSES = {status: httpx.Response(status) for status in (200, 429)}


class Gateway(Protocol):
    """A server that admits a request or refuses it."""

    def admits(self, now: float) -> bool:
        """Whether a request that arrives now is accepted."""
        ...

    def end(self) -> None:
        """An accepted request has been answered."""
        ...


class LeakyBucket:
    """nginx's `limit_req`: the excess, in thousandths, is changed only by what is accepted.

    Args:
        rate: requests per second.
        burst: requests beyond the rate that are accepted at once; 0 spaces all requests out.
    """

    def __init__(self, rate: float, burst: int = 0) -> None:
        self.rate, self._burst = rate, burst
        self._excess, self._last = 0, -(10**9)

    def admits(self, now: float) -> bool:
        instant = int(now * 1000)
        excess = max(0, self._excess - int(self.rate * (instant - self._last)) + 1000)
        if excess > 1000 * self._burst:
            return False
        self._excess, self._last = excess, instant
        return True

    def end(self) -> None:
        pass


class FixedWindow:
    """So many requests in each window."""

    def __init__(self, requests: int, seconds: float) -> None:
        self._requests, self._seconds = requests, seconds
        self._window = self._received = 0

    def admits(self, now: float) -> bool:
        window = int(now // self._seconds)
        if window != self._window:
            self._window, self._received = window, 0
        self._received += 1
        return self._received <= self._requests

    def end(self) -> None:
        pass


class Places:
    """nginx's `limit_conn`: so many requests in flight."""

    def __init__(self, number: int) -> None:
        self._free = number

    def admits(self, now: float) -> bool:
        if not self._free:
            return False
        self._free -= 1
        return True

    def end(self) -> None:
        self._free += 1


class Down:
    """Refuses everything between two instants."""

    def __init__(self, inner: Gateway, start: float, end: float) -> None:
        self._inner, self._start, self._end = inner, start, end

    def admits(self, now: float) -> bool:
        return not self._start <= now < self._end and self._inner.admits(now)

    def end(self) -> None:
        self._inner.end()


class World:
    """Processes with workers that always have another request, in front of one gateway.

    Attributes:
        accepted, refused: instants, and the number of the process.
        changes: of rates, as reported.
        most_attempts: attempts that one call has used up at most: refusals that count for a retry.
        now: the time.
    """

    def __init__(self, gateway: Gateway, *, service: float = 0.001, seed: int = 1) -> None:
        self.gateway, self._service = gateway, service
        self._chance = Random(seed)  # noqa: S311
        self.accepted: list[tuple[float, int]] = []
        self.refused: list[tuple[float, int]] = []
        self.senders: list[Sender] = []
        self.changes: list[RateChange] = []
        self.now, self.most_attempts = 0.0, 0
        self._attempts: dict[Turn, int] = {}
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def add(self, *numbers: float, workers: int = 4, at: float = 0.0) -> Sender:
        """A process that knows these numbers, with so many workers, from `at` on."""
        number, one = len(self.senders), Sender(*numbers)
        self.senders.append(one)
        for _ in range(workers):
            self._later(at + self._chance.uniform(0, 0.3), lambda: self._ask(number, Turn()))
        return one

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, step = heapq.heappop(self._events)
            step()
        self.now = until

    def counts(self, start: float, end: float) -> tuple[list[int], int]:
        """How many requests of each process were accepted between two instants, and how many were refused."""
        counted = Counter(number for instant, number in self.accepted if start <= instant < end)
        refused = sum(start <= instant < end for instant, _ in self.refused)
        return [counted[number] for number in range(len(self.senders))], refused

    def _later(self, instant: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._events, (instant, next(self._order), step))

    def _ask(self, number: int, turn: Turn) -> None:
        turn.chance = self._chance.random()
        wait = self.senders[number].queue.ask(turn, self.now)
        assert isinstance(wait, float)
        if wait:
            late = self._chance.expovariate(1 / 0.0007)
            self._later(self.now + min(wait, turn.nap) + late, lambda: self._ask(number, turn))
        else:
            sent = self.now
            self._later(sent + self._delay(), lambda: self._arrive(number, turn, sent))

    def _arrive(self, number: int, turn: Turn, sent: float) -> None:
        if not self.gateway.admits(self.now):
            self.refused.append((self.now, number))
            self._later(self.now + self._delay(), lambda: self._answer(number, turn, sent, 429))
            return
        self.accepted.append((self.now, number))

        def end() -> None:
            self.gateway.end()
            self._later(self.now + self._delay(), lambda: self._answer(number, turn, sent, 200))

        self._later(self.now + self._service * self._chance.uniform(0.9, 1.1), end)

    def _answer(self, number: int, turn: Turn, sent: float, status: int) -> None:
        answer = Answer(sent, self.now, RESPONSES[status], None, date, self._chance.random())
        change = self.senders[number].queue.learn(turn, answer)
        if change is not None:
            self.changes.append(change)
        again = Turn()
        if status == 429:
            again.resume(turn)
            counted = self._attempts.pop(turn, 0) + (not turn.excused)
            self._attempts[again], self.most_attempts = counted, max(counted, self.most_attempts)
        self._attempts.pop(turn, None)
        self._ask(number, again)

    def _delay(self) -> float:
        return self._chance.uniform(0.0005, 0.0015)


def jain(shares: list[int]) -> float:
    """1.0 if all got the same, 1/n if one got everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else math.nan
