"""The promise of a quota that at most so many permits are used in any window of time.

The state holds the instants of the permits that were used in the last window or are leased ahead. A further permit may
be used once enough of them are a window old. Large windows count in slots. `step.lua` is the same code.
"""

import math
from typing import Final

from ._ranges import NEVER, past
from ._state import State

_SAME: Final = 1e-6
"""Seconds; entries that are closer are one."""

_EXACT: Final = 64
"""Up to so many permits per window, every instant is kept; above, as many slots, each rounded to its end."""


def opening(s: State) -> float:
    """The earliest instant at which the window has room for another permit."""
    surplus = s.within - s.most
    if surplus < 0:
        return NEVER
    for instant, places in s.window:
        surplus -= places
        if surplus < 0:
            return instant + _length(s)
    return NEVER


def prune(s: State, now: float) -> None:
    """Drop what is a window old."""
    since = now - _length(s)
    if s.window[0][0] <= since:
        s.window = [entry for entry in s.window if entry[0] > since]
        s.within = sum(places for _, places in s.window)


def note(s: State, first: float, gap: float, places: int) -> None:
    """Enter permits into the window."""
    s.within += places
    while places > 0:
        instant, together = _entry(s, first, gap, places)
        index = len(s.window)
        while index and s.window[index - 1][0] > instant + _SAME:
            index -= 1
        if index and s.window[index - 1][0] > instant - _SAME:
            s.window[index - 1] = s.window[index - 1][0], s.window[index - 1][1] + together
        else:
            s.window.insert(index, (instant, together))
        first, places = first + together * gap, places - together


def forgive_oldest(s: State, places: int) -> None:
    """Take permits that were not used out of the window. Which ones is unknown: the later ones stay, to be safe."""
    while places > 0 and s.window and s.window[0][0] <= s.at:
        instant, together = s.window[0]
        part = min(places, together)
        s.window[:1] = [(instant, together - part)] if together > part else []
        s.within -= part
        places -= part


def forgive(s: State, first: float, gap: float, places: int) -> None:
    """Take these permits out of the window."""
    while places > 0:
        instant, together = _entry(s, first, gap, places)
        for index, (entered, number) in enumerate(s.window):
            if abs(entered - instant) <= _SAME:
                part = min(number, together)
                s.window[index : index + 1] = [(entered, number - part)] if number > part else []
                s.within -= part
                break
        first, places = first + together * gap, places - together


def _entry(s: State, first: float, gap: float, places: int) -> tuple[float, int]:
    """The window's instant for the first of these permits, and how many of them fall into it. Slots round up."""
    if s.most <= _EXACT:
        return first, 1 if gap else places
    width = s.quota.window / _EXACT
    instant = math.ceil(first / width) * width
    return instant, max(1, past(first, gap, places, instant))


def fit(s: State, first: float, gap: float, places: int) -> int:
    """How many of these permits the windows around them have room for."""
    if s.within + places <= s.most:
        return places
    length = _length(s)
    if gap and s.window and s.window[-1][0] > first + _SAME:
        places = 1  # Later places share windows with permits that lie behind them.
    near = [entry for entry in s.window if entry[0] > first - length + _SAME]
    if s.most > _EXACT:
        return min(places, s.most - sum(together for _, together in near))
    most = inside = sum(together for instant, together in near if instant <= first + _SAME)
    left = 0
    for instant, together in near:
        if first + _SAME < instant < first + length - _SAME:
            inside += together
            while near[left][0] <= instant - length + _SAME:
                inside -= near[left][1]
                left += 1
            most = max(most, inside)
    return min(places, s.most - most)


def _length(s: State) -> float:
    """The window, and a little more: permits are used a moment late, and not all equally late."""
    return s.quota.window + min(0.002, s.quota.window / 1000)
