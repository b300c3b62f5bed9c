"""Ranges of places: instants at equal distances."""

import math
from itertools import pairwise
from typing import Final

Range = tuple[float, float, int]
"""The first place, the seconds between places, and how many."""

NEVER: Final = -1e18

ROUND: Final = 1e-6
"""Permits; covers the rounding of clocks."""


def count(ranges: list[Range]) -> int:
    """How many places there are."""
    return sum(places for _, _, places in ranges)


def end(ranges: list[Range]) -> float:
    """The last place."""
    return max((first + gap * (places - 1) for first, gap, places in ranges), default=NEVER)


def past(first: float, gap: float, places: int, now: float) -> int:
    """How many of the places are not after `now`."""
    if first > now:
        return 0
    return min(places, math.floor((now - first) / gap + ROUND) + 1) if gap else places


def cut(ranges: list[Range], places: int) -> tuple[list[Range], list[Range]]:
    """Split sorted ranges after so many places."""
    head: list[Range] = []
    tail: list[Range] = []
    for first, gap, size in ranges:
        part = min(places, size)
        places -= part
        if part:
            head.append((first, gap, part))
        if size > part:
            tail.append((first + part * gap, gap, size - part))
    return head, tail


def merged(some: list[Range], others: list[Range]) -> list[Range]:
    """All ranges, sorted; ranges that overlap become single places."""
    if not some or not others:
        return some or others
    ranges = sorted(some + others)
    for left, right in pairwise(ranges):
        if left[0] + left[1] * (left[2] - 1) > right[0]:
            return sorted(
                (first + gap * number, 0.0, 1) for first, gap, size in ranges for number in range(size)
            )
    return ranges
