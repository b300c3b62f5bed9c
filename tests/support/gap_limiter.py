"""The limiter of the documentation, as its users write one."""

import threading
from collections.abc import Collection

from stkai.transports import Answer, RateChange, Turn


class Gap:
    """Leaves a gap between two requests, and doubles it after a 429."""

    methods: Collection[str] = frozenset({"POST"})

    def __init__(self, seconds: float, max_wait_time: float | None = None) -> None:
        self.seconds, self.max_wait_time = seconds, max_wait_time
        self.last, self.due = -seconds, dict[Turn, float]()
        self.lock = threading.Lock()

    def ask(self, turn: Turn, now: float) -> float:
        with self.lock:
            if turn not in self.due:
                self.last = self.due[turn] = max(now, self.last + self.seconds)
            wait = self.due[turn] - now
            if wait <= 0:
                del self.due[turn]
            return max(0.0, wait)

    def leave(self, turn: Turn, now: float) -> None:
        with self.lock:
            self.due.pop(turn, None)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        if not answer.is_refusal:
            return None
        self.seconds *= 2
        return RateChange(2 / self.seconds, 1 / self.seconds, "too many requests")

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        pass
