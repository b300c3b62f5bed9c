"""For how long a refusal stops a program."""

LEAST = 1 / 60
"""Windows: the least jitter of a pause, the pause where a 429 asks for none, and the shortest nap of a waiter."""

_LONGEST = 3600.0
"""Seconds, or the window if that is longer: one answer never stops a program for longer."""

_TRIED_AFTER = 120.0
"""Seconds, or the window: whoever asks for more than the longest pause is not believed, and tried again after that."""

_SOFT = 2.0
"""Seconds: in a window up to that long, whole seconds of `Retry-After` are no measure of when the quota is back."""

_SOFT_STOP = 0.2
"""Windows for which the others stop, at most, after a refusal in such a window ..."""

_FIRST_SOFT_STOP = 1.0
"""... and after the first refusal of all, when the rate was doubled once too often."""

_SOFT_JITTER = 0.1
"""Windows by which the return of a refused request is spread there."""


def longest(window: float) -> float:
    """Seconds: the bound of every pause."""
    return max(window, _LONGEST)


def is_soft(window: float) -> bool:
    """Whether only the refused request waits as long as asked, while the others go on at the reduced rate."""
    return window <= _SOFT


def hard(asked: float, row: int, window: float, rate: float, chance: float) -> float:
    """Seconds for which everybody stops after refusal number `row` in a row without a success.

    Never less than the server asked for, as long as that can be true. Doubles with each refusal, up to a window.
    """
    doubled = 2.0 ** max(0, min(row, 32) - 1)
    bound = longest(window)
    if asked > bound:
        return min(bound, max(window, _TRIED_AFTER) * doubled)
    jitter = chance * min(1 / rate, asked / 2 + LEAST * window)
    return min(bound, max(asked, min(asked * doubled, window)) + jitter)


def soft(asked: float, window: float, chance: float) -> float:
    """Seconds for which the refused request waits in a short window."""
    return min(longest(window), asked + _SOFT_JITTER * window * chance)


def soft_stop(window: float, chance: float, *, first: bool) -> float:
    """Seconds for which the others stop in a short window."""
    return (_FIRST_SOFT_STOP if first else _SOFT_STOP) * window * chance
