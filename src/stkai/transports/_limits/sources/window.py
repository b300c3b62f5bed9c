"""The promise that no window of time has more than a number of requests in it, also from a cold start."""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, Final

from ..limiter import Turn
from .rate import Rate
from .source import TICK, Limits, Source, in_words

_EXACT: Final = 2048
"""Up to this number, each request has its own instant ..."""

_SLOTS: Final = 256
"""... above it, those within this part of the window share the last one's."""


class Window(Source):
    """At most `most` requests in any `seconds`. A window is half open: what left `seconds` ago is not in it.

    Attributes:
        most: requests in a window.
        seconds: how long a window is.
        used: requests in the window that ended when it was last asked.
    """

    def __init__(self, max_requests: float, time_window: float) -> None:
        self._instants: deque[float] = deque()
        # How many requests each instant stands for.
        self._counts: deque[int] = deque()
        self.used = 0
        self._began = -math.inf
        self._set(max_requests, time_window)

    def _set(self, max_requests: float, time_window: float) -> None:
        # Less than one request per window is one in a longer window.
        self.most = max(1, math.floor(max_requests))
        self.seconds = time_window / min(1.0, max_requests)
        self._grain = 0.0 if self.most <= _EXACT else self.seconds / _SLOTS

    @property
    def limit(self) -> str:  # type: ignore[override]
        return in_words(Limits(self.most, self.seconds))

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        self.forget(now)
        first = self.used + ahead - self.most
        if first < 0:
            return 0.0
        # Wait until the request that takes the place before in the window has left it: it was sent, or it is ahead.
        windows = 1 + max(0, ahead) // self.most
        first -= (windows - 1) * self.most
        start = self.instant(first) if first >= 0 else now - self.seconds
        return max(TICK, start + windows * self.seconds - now)

    def forget(self, now: float) -> None:
        """Drop the requests that have left the window."""
        instants, out = self._instants, now - self.seconds + TICK
        while instants and instants[0] <= out:
            instants.popleft()
            self.used -= self._counts.popleft()

    def recover(self, turns: Sequence[Turn]) -> None:
        super().recover(turns)
        instants, counts = self._instants, self._counts
        pairs: list[tuple[deque[Any], deque[Any]]] = [(instants, counts), (counts, instants)]
        for longer, shorter in pairs:
            while len(longer) > len(shorter):
                longer.popleft()
        self.used = sum(counts)

    def instant(self, number: int) -> float:
        """When the request of that number was sent, counted from 0 among those that are still kept."""
        if self.used > len(self._counts):
            number = bisect_right(list(accumulate(self._counts)), number)
        return self._instants[number]

    def take(self, turn: Turn, now: float) -> None:
        instants, counts = self._instants, self._counts
        if instants and now < instants[-1]:
            now = instants[-1]  # Another thread read the clock a moment later.
        self.used += 1
        if now < self._began + self._grain:
            instants[-1] = now
            counts[-1] += 1
        else:
            instants.append(now)
            counts.append(1)
            self._began = now

    def give_back(self, turn: Turn, now: float) -> None:
        place = bisect_left(self._instants, turn.since)
        if turn.since <= now - self.seconds or place == len(self._instants):
            return
        self.used -= 1
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._instants[place], self._counts[place]
            self._began = -math.inf

    def soon(self, now: float, seconds: float) -> float:
        windows, rest = divmod(max(0.0, seconds), self.seconds)
        left = bisect_right(self._instants, now + rest - self.seconds + TICK)
        if self.used > len(self._counts):
            left = sum(islice(self._counts, left))
        return self.most * (1 + windows) - self.used + left

    def update(self, limits: Limits) -> None:
        assert limits.max_requests is not None and limits.time_window is not None  # noqa: PT018
        self._set(limits.max_requests, limits.time_window)


class EvenWindow(Rate):
    """A window whose requests follow evenly after a burst. What is owed to waiters that wake late must fit into it.

    Args:
        limits: the numbers of a limiter that counts requests.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits.rate, limits.at_once, limit=in_words(limits))
        assert limits.max_requests is not None and limits.time_window is not None  # noqa: PT018
        self._window = Window(limits.max_requests, limits.time_window)

    def when(self, turn: Turn, ahead: int, now: float) -> float:
        # Not by `super()`, which Python looks up anew for every permit.
        wait, window = Rate.when(self, turn, ahead, now), self._window
        before = window.used + ahead - window.most
        if before < 0:
            return wait
        if before < window.used:
            left = window.instant(before) + window.seconds - now
            return left if left > wait and left > TICK else wait
        return max(wait, window.when(turn, ahead, now))

    def take(self, turn: Turn, now: float) -> None:
        self.credit -= 1.0
        self._window.forget(now)
        self._window.take(turn, now)

    def give_back(self, turn: Turn, now: float) -> None:
        super().give_back(turn, now)
        self._window.give_back(turn, now)

    def soon(self, now: float, seconds: float) -> float:
        return min(super().soon(now, seconds), self._window.soon(now, seconds))

    def recover(self, turns: Sequence[Turn]) -> None:
        super().recover(turns)
        self._window.recover(())

    def update(self, limits: Limits) -> None:
        super().update(limits)
        self._window.update(limits)
