"""Who goes before whom: the turns of those who wait, by numbers that are fixed when they are given.

Numbers of normal priority are even and those of low priority odd, eighteen apart: nine normal requests go between two
low ones while both wait, and a low one that is alone has nobody before it.

Nobody who sleeps can be woken. Therefore the place of somebody who leaves goes to the next that comes, as long as it
is still ahead of time: those behind go when they were told to, and its permit is not lost. Without that, a crowd with
little patience would stop all traffic: the head of the queue would always be asleep, and never wait to the end.
"""

import heapq
from bisect import bisect_left
from operator import attrgetter
from typing import Final, NamedTuple

from .limiter import Turn

NORMAL: Final = 2
_LOW: Final = 18

_number = attrgetter("number")


class _Vacancy(NamedTuple):
    """The place of somebody who left."""

    number: int
    told: float
    extra: float
    ahead: float
    cost: float


class Order:
    """The order of those who wait. Numbers only; the queue that owns it holds the lock and knows the time.

    Attributes:
        turns: those who wait, first come first served within a priority.
        cost: units that all of them will take.
        last: the number that was given last to a request of normal priority.
    """

    __slots__ = ("_extras", "_gone", "_low", "_vacant", "cost", "last", "turns")

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.cost = 0.0
        self._vacant: list[_Vacancy] = []
        self._extras = 0.0
        # The last number of low priority, and the highest that has gone.
        self.last = self._low = self._gone = 0

    def forget(self) -> None:
        """Nobody waits any more."""
        self.turns.clear()
        self._vacant.clear()
        self.cost = 0.0

    def join(self, turn: Turn, now: float, spread: float = 0.0) -> int:
        """The place of a turn, counted from 0; one that is not in the order joins it.

        It joins at the end of its priority if it is new, and else where its number belongs. The permits that it takes
        differ from one by up to `spread`, as its `chance` has it.
        """
        turns = self.turns
        if turns and turns[0] is turn and not self._vacant:
            return 0  # Whoever wakes in time is the first.
        if not turns:
            # All that were given a number have gone, those who had not to wait as well.
            self._gone = self.last
        filled = False
        if not turn.number:
            filled = self._number_anew(turn, now)
        number = turn.number
        while self._vacant and self._vacant[0].number < number:
            # Who asks moves up, so that these places are no longer free.
            heapq.heappop(self._vacant)
        place = self.place_of(turn)
        if turns[place : place + 1] != [turn]:
            if spread and not filled:
                turn.extra = spread * (2 * turn.chance - 1)
                if place < len(turns):
                    turn.ahead = turns[place].ahead - turn.extra
                else:
                    turn.ahead = self._extras
                    self._extras += turn.extra
            turn.since = now
            turns.insert(place, turn)
            self.cost += turn.cost
        return place

    def go(self, place: int) -> None:
        """Let the turn in that place leave the order with its permit."""
        number = self.drop(place).number
        if number > self._gone:
            self._gone = number
            if number > self.last:
                # A low one: whoever comes next goes after it, and before the next of its kind.
                self.last = number - 1

    def drop(self, place: int) -> Turn:
        """Take the turn in that place out of the order."""
        turn = self.turns.pop(place)
        self.cost = self.cost - turn.cost if self.turns else 0.0
        return turn

    def leave(self, turn: Turn) -> None:
        """Take a turn out of the order without its permit: the next that comes may have its place.

        A turn that is not in the order changes nothing.
        """
        place = self.place_of(turn)
        if self.turns[place : place + 1] == [turn]:
            self.drop(place)
            if place < len(self.turns):
                heapq.heappush(
                    self._vacant, _Vacancy(turn.number, turn.told, turn.extra, turn.ahead, turn.cost)
                )

    def place_of(self, turn: Turn) -> int:
        """Where the turn is in the order, or belongs."""
        turns, number = self.turns, turn.number
        if not turns or turns[-1].number < number:
            return len(turns)
        place = bisect_left(turns, number, key=_number)
        while place < len(turns) and turns[place].number == number and turns[place] is not turn:
            # Two attempts of one call side by side.
            place += 1
        return place

    def extras_before(self, place: int, spread: float) -> float:
        """What those before that place take beyond one permit each, at most `spread` of them up or down."""
        # Those who left in between no longer count, though their extras are still in the sum.
        most = spread * place
        return max(-most, min(most, self.turns[place].ahead - self.turns[0].ahead))

    def cost_before(self, place: int) -> float:
        """Units that those before that place take."""
        # From the nearer end: who is new and who wakes in time is at one of the two.
        if 2 * place < len(self.turns):
            return sum(turn.cost for turn in self.turns[:place])
        return self.cost - sum(turn.cost for turn in self.turns[place:])

    def last_cost_before(self, place: int) -> float:
        """Units of the last one before that place that takes any."""
        while place and not self.turns[place - 1].cost:
            place -= 1
        return self.turns[place - 1].cost if place else 0.0

    def _number_anew(self, turn: Turn, now: float) -> bool:
        """Number a new turn: in the place of somebody who left, if one is free and fits; returns whether one did."""
        low = turn.priority == "low"
        while self._vacant:
            vacancy = self._vacant[0]
            if vacancy.number & 1 != low or vacancy.cost < turn.cost:
                break
            heapq.heappop(self._vacant)
            if vacancy.told > now:
                turn.number, turn.extra, turn.ahead = vacancy.number, vacancy.extra, vacancy.ahead
                return True
        if low:
            self._low = turn.number = (max(self._low, self._gone) | 1) + _LOW
        else:
            turn.number = self.last = self.last + NORMAL
        return False
