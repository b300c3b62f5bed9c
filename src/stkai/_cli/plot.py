"""A plot of accepted and refused requests over time that fits into a cell of a table."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

ROWS: Final = 2
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_SHADES: Final = "░▒"
"""Refused requests are shaded, so that they stand out without colours too."""
_ACCEPTED, _REFUSED = "green", "red"


def counts(instants: Sequence[float], width: float, buckets: int) -> list[int]:
    """How many of the instants fall into each bucket of `width` seconds; what is later counts in the last one."""
    found = [0] * buckets
    for instant in instants:
        found[min(buckets - 1, max(0, int(instant / width)))] += 1
    return found


def columns(accepted: Sequence[int], refused: Sequence[int], *, top: float, cells: int) -> "Text":
    """Stacked columns, accepted below and refused on top of it, in `ROWS` lines of `cells` characters.

    Args:
        accepted: Requests in each bucket that the server accepted.
        refused: Requests in each bucket that it answered with 429.
        top: The count that fills the whole height; columns that are higher are cut off.
        cells: Width in characters, divided evenly among the buckets.
    """
    from rich.text import Text

    # Heights in eighths of a line; what is there at all shows.
    good = [_eighths(count, top) for count in accepted]
    whole = [
        max(low, _eighths(one + other, top)) for low, one, other in zip(good, accepted, refused, strict=True)
    ]
    text = Text()
    for row in reversed(range(ROWS)):
        for bucket, (low, high) in enumerate(zip(good, whole, strict=True)):
            character, style = _cell(low - 8 * row, high - 8 * row)
            start, end = (edge * cells // len(good) for edge in (bucket, bucket + 1))
            text.append(character * (end - start), style)
        if row:
            text.append("\n")
    return text


def _eighths(count: int, top: float) -> int:
    return min(8 * ROWS, math.ceil(8 * ROWS * count / top - 1e-9))


def _cell(good: int, whole: int) -> tuple[str, str]:
    """The character for a line in which the accepted end at `good` eighths, and all at `whole`, and its style."""
    good, whole = (min(8, max(0, height)) for height in (good, whole))
    if good or not whole:
        return _EIGHTHS[good], f"{_ACCEPTED} on {_REFUSED}" if whole > good else _ACCEPTED
    return _SHADES[whole > 4], _REFUSED
