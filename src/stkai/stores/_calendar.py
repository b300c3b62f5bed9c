"""A group's permits as places on a calendar, and the limit on permits in any window of time.

A place that passes unused becomes credit, up to the burst: the virtual scheduling form of the leaky bucket (GCRA, ITU-T
I.371, annex A).

While the window is full, the next permit may be used once enough of those in it are older than the window. Large
windows count in slots. `step.lua` is the same code.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ._protocol import LATE, Quota

Range = tuple[float, float, int]  # The first place, the seconds between places, and the number of places.

NEVER: Final = -1e18
ROUNDING: Final = 1e-6  # The tolerance for rounding errors of clocks, in permits.
# Seconds; a clock that is further behind was set back, and the state continues as if no time had passed.
_CLOCK_SET_BACK: Final = 0.1
USAGE_SPAN: Final = 10.0  # Seconds over which `usage` decays.
_SAME_INSTANT: Final = 1e-6  # Seconds; entries closer than this are merged.
# Up to this many permits per window, each instant is kept; above, instants round up to this many slots.
_MAX_EXACT: Final = 64
_NO_QUOTA: Final = Quota(0.0)


@dataclass(slots=True)
class Calendar:
    """The calendar of a share. Instants are in seconds on its own clock, which starts at 0 and is never set back."""

    offset: float  # The calendar's clock minus the store's.
    at: float = 0.0  # When it was last used.
    quota: Quota = _NO_QUOTA  # The quota in force.
    rate: float = 0.0  # The rate in force.
    burst: float = 0.0
    next: float = 0.0  # The first place that was never leased.
    free: list[Range] = field(default_factory=list)  # Places that members returned.
    credit: float = 0.0  # Permits that may be used immediately.
    most: int = 0  # Permits allowed in any window; 0 if there is no such limit.
    # Instants, and the number of permits at each: in the last window, or leased ahead.
    window: list[tuple[float, int]] = field(default_factory=list)
    units: float = 0.0  # Units of cost left; negative while there is a debt.
    units_held: float = 0.0  # Units that members hold: they are still in the bucket.
    paused: float = NEVER  # When the pause ends.
    leased: int = 0  # Totals of permits, by outcome.
    used: int = 0
    returned: int = 0
    expired: int = 0
    usage: float = 0.0  # Permits used recently, decaying.

    @property
    def held(self) -> int:
        return self.leased - self.used - self.returned - self.expired


def advance(s: Calendar, now: float) -> float:
    """Advance the state to the store's `now`: places that passed unused become credit. Returns the calendar's time."""
    at = now + s.offset
    if at < s.at:
        if at < s.at - _CLOCK_SET_BACK:
            s.offset = s.at - now
        at = s.at
    seconds, s.at = at - s.at, at
    s.usage *= max(0.0, 1 - seconds / USAGE_SPAN)
    if s.quota.max_cost:
        s.units = min(s.quota.max_cost - s.units_held, s.units + seconds * s.quota.cost_rate)
    if s.free and s.free[0][0] <= at:
        ranges, s.free = s.free, []
        _offer(s, ranges, at)
    if s.next < at:
        # The permit at `next` is part of the burst, too.
        s.credit += min((at - s.next) * s.rate, max(0.0, s.burst - 1 - s.credit))
        s.next = at
    since = at - _length(s)
    if s.window and s.window[0][0] <= since:
        s.window = [entry for entry in s.window if entry[0] > since]
    return at


def give(s: Calendar, places: int) -> None:
    """Turn permits that were returned after their time into credit."""
    s.credit += min(places, max(0.0, max(1.0, s.burst - 1) - s.credit))


def release(s: Calendar, ranges: list[Range], now: float) -> None:
    """Take unused permits back."""
    for first, gap, places in ranges:
        s.returned += places
        remove_from_window(s, first, gap, places)
    _offer(s, ranges, now)


def _offer(s: Calendar, ranges: list[Range], now: float) -> None:
    """Offer unused places again: future ones become free, past ones become credit."""
    for first, gap, places in ranges:
        passed = past(first, gap, places, now)
        give(s, passed)
        if places > passed:
            s.free.append((first + passed * gap, gap, places - passed))
    s.free.sort()


def allocate(s: Calendar, places: int, now: float) -> Range:
    """Allocate up to `places` permits: from credit, then from free places, then from the calendar's end."""
    gap = 1 / s.rate
    opens = opening(s)
    if opens > s.next:
        # Places also pass unused while the window is full: credit beyond the burst is lost.
        surplus = max(0.0, (opens - s.next) * s.rate + s.credit - max(0.0, s.burst - 1))
        s.next = min(opens, s.next + surplus * gap)
    is_spare = spare(s, now) > 0
    if not is_spare:
        for index, (first, step, size) in enumerate(s.free):
            if first + step * (size - 1) < max(s.next, opens) + gap:
                found = fit(s, first, step, min(places, size))
                if found > 0:
                    s.free = sorted(s.free[:index] + cut([s.free[index]], found)[1] + s.free[index + 1 :])
                    return first, step, found
    if s.credit >= 1 - ROUNDING and s.paused <= now:
        first, gap, places = now if is_spare else opens, 0.0, min(places, math.floor(s.credit + ROUNDING))
        places = max(1, fit(s, first, gap, places))
        s.credit -= places
        return first, gap, places
    start = first = s.next
    if first < opens:
        first, step, places = opens, 0.0, past(first, gap, places, opens)
    else:
        step = gap
    places = max(1, fit(s, first, step, places))
    s.next = start + places * gap
    return first, step, places


def spare(s: Calendar, now: float) -> int:
    """How many permits may be used now from credit, also before others that are leased ahead; not positive if none."""
    if s.credit < 1 - ROUNDING or s.paused > now:
        return 0
    return fit(s, now, 0.0, math.floor(s.credit + ROUNDING))


def opening(s: Calendar) -> float:
    """The earliest instant at which the window has room for another permit."""
    surplus = _within(s) - s.most
    if not s.most or surplus < 0:
        return NEVER
    for instant, places in s.window:
        surplus -= places
        if surplus < 0:
            return instant + _length(s)
    return NEVER


def add_to_window(s: Calendar, first: float, gap: float, places: int) -> None:
    """Add permits to the window."""
    while s.most and places > 0:
        instant, together = _entry(s, first, gap, places)
        index = len(s.window)
        while index and s.window[index - 1][0] > instant + _SAME_INSTANT:
            index -= 1
        if index and s.window[index - 1][0] > instant - _SAME_INSTANT:
            s.window[index - 1] = s.window[index - 1][0], s.window[index - 1][1] + together
        else:
            s.window.insert(index, (instant, together))
        first, places = first + together * gap, places - together


def add_past_to_window(s: Calendar, seconds: float, places: int, now: float) -> None:
    """Add permits that were used evenly over the last `seconds`, but only those that the window may still contain."""
    first, gap = now - seconds, seconds / places
    over = past(first, gap, places, now - _length(s) - s.quota.window / _MAX_EXACT)
    add_to_window(s, first + over * gap, gap, places - over)


def remove_from_window(s: Calendar, first: float, gap: float, places: int) -> None:
    """Remove permits from the window: for each place, the latest permit that is not after it."""
    while s.most and places > 0:
        instant, together = _entry(s, first, gap, places)
        first, places = first + together * gap, places - together
        for index in range(len(s.window) - 1, -1, -1):
            entered, number = s.window[index]
            if together and entered <= instant + _SAME_INSTANT:
                taken = min(number, together)
                s.window[index : index + 1] = [(entered, number - taken)] if number > taken else []
                together -= taken


def note_delay(s: Calendar, ranges: list[Range], seconds: float) -> None:
    """Record that permits were used up to so many seconds late, unless the window's margin covers that."""
    for first, gap, places in ranges if seconds > _margin(s) else ():
        remove_from_window(s, first, gap, places)
        add_to_window(s, first + seconds, gap, places)


def _entry(s: Calendar, first: float, gap: float, places: int) -> tuple[float, int]:
    """The window's instant for the first of these permits, and how many of them share it. Slots round up."""
    if s.most <= _MAX_EXACT:
        return first, 1 if gap else places
    width = s.quota.window / _MAX_EXACT
    instant = math.ceil(first / width) * width
    return instant, max(1, past(first, gap, places, instant))


def fit(s: Calendar, first: float, gap: float, places: int) -> int:
    """How many of these permits fit into the windows around them; negative if they hold too many already."""
    if not s.most or _within(s) + places <= s.most:
        return places
    length = _length(s)
    if gap and s.window and s.window[-1][0] > first + _SAME_INSTANT:
        places = 1  # Later places share windows with permits that follow them.
    near = [entry for entry in s.window if entry[0] > first - length + _SAME_INSTANT]
    if s.most > _MAX_EXACT:
        return min(places, s.most - sum(together for _, together in near))
    most = inside = sum(together for instant, together in near if instant <= first + _SAME_INSTANT)
    left = 0
    for instant, together in near:
        if first + _SAME_INSTANT < instant < first + length - _SAME_INSTANT:
            inside += together
            while near[left][0] <= instant - length + _SAME_INSTANT:
                inside -= near[left][1]
                left += 1
            most = max(most, inside)
    return min(places, s.most - most)


def _within(s: Calendar) -> int:
    """Permits in the last window, or leased ahead."""
    return sum(places for _, places in s.window)


def _length(s: Calendar) -> float:
    """The window's length plus a margin, since some permits are used later than others."""
    return s.quota.window + _margin(s)


def _margin(s: Calendar) -> float:
    return min(LATE, s.quota.window / 300)


def count(ranges: list[Range]) -> int:
    return sum(places for _, _, places in ranges)


def end(ranges: list[Range]) -> float:
    """The last of these places; `NEVER` without any."""
    return max((first + gap * (places - 1) for first, gap, places in ranges), default=NEVER)


def past(first: float, gap: float, places: int, now: float) -> int:
    """How many of the places are not after `now`."""
    if first > now:
        return 0
    return min(places, math.floor((now - first) / gap + ROUNDING) + 1) if gap else places


def cut(ranges: list[Range], places: int) -> tuple[list[Range], list[Range]]:
    """Split sorted ranges after the given number of places."""
    head: list[Range] = []
    tail: list[Range] = []
    for first, gap, size in ranges:
        taken = min(places, size)
        places -= taken
        if taken:
            head.append((first, gap, taken))
        if size > taken:
            tail.append((first + taken * gap, gap, size - taken))
    return head, tail


def merged(some: list[Range], others: list[Range]) -> list[Range]:
    """Both lists as one sorted list; if ranges overlap, all are split into single places."""
    if not some or not others:
        return some or others
    ranges = sorted(some + others)
    for left, right in pairwise(ranges):
        if left[0] + left[1] * (left[2] - 1) > right[0]:
            return sorted(
                (first + gap * number, 0.0, 1) for first, gap, size in ranges for number in range(size)
            )
    return ranges
