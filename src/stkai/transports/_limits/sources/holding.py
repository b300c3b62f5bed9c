"""What a member of a share holds: permits in the order of their instants, and units of cost.

The totals count from the member's start. A message reports them, and the store replaces what it assumed about the
member by them, so that a message that is lost, repeated or overtaken changes nothing.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import Final

LATE: Final = 0.05
"""Seconds for which a permit is kept for a request that wakes late."""

EPSILON: Final = 1e-9
"""Seconds; covers the rounding of a clock."""

_STEADY: Final = 10
"""Permits used in the last `_SPAN` seconds above which requests count as steady."""

_SPAN: Final = 0.25


class Holding:
    """Instants are on the member's clock, in seconds.

    Attributes:
        due: when each permit may be used, in ascending order.
        units: units of cost leased and not spent yet.
        used: permits used since the member started.
        lapsed: permits given up unused after their time, likewise.
        spent: units of cost used, corrections included, likewise.
    """

    def __init__(self) -> None:
        self.due: list[float] = []
        self.units = 0.0
        self.used = self.lapsed = 0
        self.spent = 0.0

    def __len__(self) -> int:
        return len(self.due)

    @property
    def last(self) -> float:
        """When the last permit may be used; -inf if there is none."""
        return self.due[-1] if self.due else -math.inf

    def add(self, ranges: Iterable[tuple[float, float, int]], units: float, now: float) -> int:
        """Add what was leased: ranges (seconds from now, gap, count), and units. Returns the number of permits."""
        before = len(self.due)
        for first, gap, count in ranges:
            for number in range(count):
                insort(self.due, now + first + number * gap)
        self.units += units
        return len(self.due) - before

    def use(self, cost: float) -> None:
        """Use the first permit for a request of that cost."""
        del self.due[0]
        self.used += 1
        self.units -= cost
        self.spent += cost

    def put_back(self, cost: float) -> None:
        """Give back a permit that was taken and not used: it is reported as lapsed, and the store grants it again."""
        self.used -= 1
        self.lapsed += 1
        self.units += cost
        self.spent -= cost

    def lapse(self, now: float) -> None:
        """Give up the permits that no request has used in time."""
        due = self.due
        if due and due[0] < now - LATE:
            count = bisect_right(due, now - LATE - EPSILON)
            del due[:count]
            self.lapsed += count

    def give_up(self) -> None:
        """Give up everything."""
        self.lapse(math.inf)
        self.units = 0.0

    def keep(self, permits: int, units: float) -> None:
        """Drop all but the first permits, and all but so many units; the next message says what is kept."""
        del self.due[permits:]
        self.units = units

    def rewind(self, used: int, lapsed: int) -> None:
        """Forget a lease that is void, and what was used of it since the message with these totals.

        The store has written it off already: reported again, these uses would be charged to the next lease.
        """
        self.due.clear()
        self.units = 0.0
        self.used, self.lapsed = used, lapsed


class Demand:
    """Whether requests come one after another, so that the next ones can be expected.

    Attributes:
        used_at: when a permit was last used.
        steady: how many requests will come before the next call; 0 unless they come steadily.
    """

    def __init__(self) -> None:
        self.used_at = self._asked_at = -math.inf
        self.steady = 0
        self._usage = 0.0
        self._counted = (0, 0)

    def update(self, held: Holding, now: float) -> None:
        """Look back at a call to the store. While none of its permits lapse, more requests are expected each time."""
        used, lapsed = held.used - self._counted[0], held.lapsed - self._counted[1]
        self._counted = held.used, held.lapsed
        fading = max(0.0, 1 - (now - self._asked_at) / _SPAN) if self._asked_at > -math.inf else 0.0
        self._usage, self._asked_at = self._usage * fading + used, now
        is_steady = self._usage > _STEADY and now < self.used_at + LATE
        self.steady = (max(0, used - lapsed) if lapsed else 2 * used) if is_steady else 0
