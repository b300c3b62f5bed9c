"""Which refusals count, and which requests wait one out."""

import math


class Refusals:
    """Tells congestion events apart: all refusals of one event count once.

    A refusal of a request sent before the last cut says nothing about the current rate, nor do further refusals before
    the server has accepted a request again.

    Attributes:
        row: refusals in a row, each of a request sent after the last cut.
    """

    def __init__(self) -> None:
        self.row = 0
        self._cut_at = -math.inf
        self._answered = True

    def is_fresh(self, sent: float) -> bool:
        """Whether a request sent at `sent` went out at the current rate."""
        return sent > self._cut_at

    def refused(self, sent: float) -> bool:
        """Note the refusal of a request sent at `sent`, and return whether it begins a new congestion event."""
        fresh = sent > self._cut_at
        self.row += fresh
        return fresh and self._answered

    def accepted(self, sent: float) -> bool:
        """Note that a request sent at `sent` was accepted, and return whether that ends a row of refusals."""
        if sent <= self._cut_at:
            return False
        self._answered = True
        self.row = 0
        return True

    def cut(self, now: float) -> None:
        """Note that the rate was cut."""
        self._cut_at = now
        self._answered = False


class Holds:
    """Refused requests that wait on their own while the others go on.

    Attributes:
        until: when the last of them may go.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        self._ends: dict[int, float] = {}
        self._most = 1

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, number: int, now: float, until: float) -> None:
        """Hold back the request with this ticket number; 0 is no number."""
        if len(self._ends) >= self._most:
            # Calls that do not come back leave their entries behind: search for these whenever the number has doubled.
            for other, end in list(self._ends.items()):
                if end <= now:
                    self.drop(other)
            self._most = max(1, 2 * len(self._ends))
        if number:
            self._ends[number] = until
        self.until = max(self.until, until)

    def left(self, number: int, now: float) -> float:
        """Seconds for which the request still waits; 0.0 once it may go."""
        until = self._ends.get(number)
        if until is None:
            return 0.0
        if now < until:
            return until - now
        self.drop(number)
        return 0.0

    def drop(self, number: int) -> None:
        """Forget a request that was given up."""
        self._ends.pop(number, None)
