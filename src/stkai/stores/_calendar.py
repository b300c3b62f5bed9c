"""The permits of a group as places on a calendar.

`next` is the first place never leased; `free` holds places that members gave back; `credit` counts permits that may be
used at once. A place that passes unused becomes credit, up to the burst. It is the virtual-scheduling form of the leaky
bucket (GCRA: ITU-T I.371, annex A). `step.lua` is the same code.
"""

import math
from typing import Final

from . import _window
from ._ranges import NEVER, ROUND, Range, cut, past
from ._state import State

_SET_BACK: Final = 0.1
"""Seconds; if the clock is behind by more, it was set back, and the state goes on as if no time had passed."""

USAGE_SPAN: Final = 10.0
"""Seconds over which `usage` fades."""


def advance(s: State, now: float) -> float:
    """Move the state to the store's present: places that passed unused become credit. Returns the state's time."""
    at = now + s.offset
    if at < s.at:
        if at < s.at - _SET_BACK:
            s.offset = s.at - now
        at = s.at
    seconds, s.at = at - s.at, at
    s.usage *= max(0.0, 1 - seconds / USAGE_SPAN)
    if s.quota.max_cost:
        s.units = min(s.quota.max_cost, s.units + seconds * s.quota.cost_rate)
    if s.free and s.free[0][0] <= at:
        left = []
        for first, gap, places in s.free:
            gone = past(first, gap, places, at)
            give(s, gone)
            if places > gone:
                left.append((first + gone * gap, gap, places - gone))
        s.free = sorted(left)
    if s.next < at:
        # The permit at `next` is part of the burst, too.
        gained, room = (at - s.next) * s.rate, max(0.0, s.burst - 1 - s.credit)
        s.credit += min(gained, room)
        s.lost += max(0.0, gained - room)
        s.next = at
    if s.window:
        _window.prune(s, at)
    return at


def give(s: State, places: int) -> None:
    """Make permits that were given back after their time usable at once."""
    room = max(0.0, max(1.0, s.burst - 1) - s.credit)
    s.credit += min(places, room)
    s.lost += max(0.0, places - room)


def release(s: State, ranges: list[Range], now: float) -> None:
    """Take unused permits back: future places are free again, past ones become credit."""
    if not ranges:
        return
    for first, gap, places in ranges:
        s.returned += places
        if s.most:
            _window.forgive(s, first, gap, places)
        gone = past(first, gap, places, now)
        give(s, gone)
        if places > gone:
            s.free.append((first + gone * gap, gap, places - gone))
    s.free.sort()


def place(s: State, places: int, after: float, now: float) -> Range:
    """Up to so many permits not before `after`: from credit, then from free places, then from the calendar's end."""
    gap = 1 / s.rate
    opens = _window.opening(s) if s.most else NEVER
    if opens > s.next:
        # While the window is closed, places pass unused as well: what exceeds the burst is lost.
        surplus = max(0.0, (opens - s.next) * s.rate + s.credit - max(0.0, s.burst - 1))
        s.next = min(opens, s.next + surplus * gap)
        s.lost += surplus
    has_credit = s.credit >= 1 - ROUND and after <= now and s.paused <= now
    if not (has_credit and opens <= now):
        for index, (first, step, size) in enumerate(s.free):
            last = first + step * (size - 1)
            if after <= last < max(s.next, opens) + gap:
                skipped = 0 if first >= after else math.ceil((after - first) / step - ROUND)
                start = first + skipped * step
                found = min(places, size - skipped)
                found = _window.fit(s, start, step, found) if s.most else found
                if found > 0:
                    head, rest = cut([s.free[index]], skipped)
                    s.free = sorted(s.free[:index] + head + cut(rest, found)[1] + s.free[index + 1 :])
                    return start, step, found
    if has_credit:
        found = min(places, math.floor(s.credit + ROUND))
        found = max(1, _window.fit(s, max(now, opens), 0.0, found)) if s.most else found
        s.credit -= found
        return max(now, opens), 0.0, found
    if after > s.next + gap:
        # The places before it are left to requests that need no units of cost.
        number = math.floor((after - s.next) / gap)
        s.free = sorted([*s.free, (s.next, gap, number)])
        s.next = max(s.next + number * gap, after)
    first = max(s.next, s.paused)
    if first < opens:
        places = max(1, _window.fit(s, opens, 0.0, past(first, gap, places, opens)))
        s.next = first + places * gap
        return max(opens, after), 0.0, places
    places = max(1, _window.fit(s, first, gap, places)) if s.most else places
    s.next = first + places * gap
    return max(first, after), gap, places
