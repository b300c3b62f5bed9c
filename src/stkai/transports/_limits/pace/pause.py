"""How long a refusal stops a program, and which refusals say something about the rate."""

import math

LEAST = 1 / 60
"""Windows: the least jitter of a pause, and the shortest nap of a waiter."""

_UNASKED = 1.0
"""Seconds: the most for which the first 429 that asks for no wait stops a program."""

ROWS = 3
"""Refusals in a row up to which a pause that the server has not asked for doubles: no retry policy waits for longer."""

PROBES = 0.5
"""Requests per second that then probe, besides the pauses."""

LONGEST = 3600.0
"""Seconds, or the window if that is longer: no answer stops a program, or a group, for longer."""

_TRIED_AFTER = 120.0
"""Seconds, or the window: a server that asks for more than the longest pause is not believed, but probed after this."""

SOFT = 2.0
"""Seconds: in windows and for waits up to this long, `Retry-After` in whole seconds is too coarse."""


def longest(window: float) -> float:
    """The longest pause, in seconds."""
    return max(window, LONGEST)


def is_soft(window: float, asked: float = 0.0) -> bool:
    """Whether only the refused request waits as long as asked, while the others continue at the reduced rate."""
    return window <= SOFT and asked <= SOFT


def unasked(window: float) -> float:
    """Seconds for which a refusal stops a program if it does not say for how long."""
    return min(_UNASKED, LEAST * window)


def hard(asked: float, row: int, window: float, rate: float, chance: float) -> float:
    """Seconds for which all requests stop after `row` refusals in a row without a success.

    Never less than a plausible wait that the server asked for. Doubles with each refusal, up to a window.
    """
    doubled = 2.0 ** max(0, min(row, 32) - 1)
    bound = longest(window)
    if asked > bound:
        return min(bound, max(window, _TRIED_AFTER) * doubled)
    jitter = chance * min(1 / rate, asked / 2 + LEAST * window)
    return min(bound, max(asked, min(asked * doubled, window)) + jitter)


class Congestion:
    """Tells congestion events apart: all refusals of one event count once.

    A refusal of a request sent before the last cut says nothing about the current rate, nor do further refusals before
    the server has accepted a request again.

    Attributes:
        row: refusals in a row, each of a request sent after the last cut.
        is_answered: whether the server has accepted a request since the last cut.
    """

    def __init__(self) -> None:
        self.row = 0
        self.is_answered = True
        self._cut_at = -math.inf

    def refused(self, sent: float) -> bool:
        """Note the refusal of a request sent at `sent`, and return whether it begins a new congestion event."""
        fresh = sent > self._cut_at
        self.row += fresh
        return fresh and self.is_answered

    def accepted(self, sent: float) -> bool:
        """Note that a request sent at `sent` was accepted, and return whether that ends a row of refusals."""
        if sent <= self._cut_at:
            return False
        self.is_answered = True
        self.row = 0
        return True

    def cut(self, now: float) -> None:
        """Note that the rate was cut."""
        self._cut_at = now
        self.is_answered = False
