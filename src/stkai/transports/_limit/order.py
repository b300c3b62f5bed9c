"""Which request goes first: the order of waiting requests, by numbers that never change once given.

Normal numbers are even and low-priority ones odd, eighteen apart: nine normal requests go between two low ones while
both wait, and a low one that is alone has nobody before it.

A sleeper cannot be woken. So when somebody leaves, their place goes to the next that comes, while it is still ahead of
time: those behind go when they were told to, and no permit is lost. Without this, a crowd with little patience would
stop all traffic: the head of the queue would always be asleep, and leave before its time came.
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
    """The place of a request that left."""

    number: int
    told: float
    extra: float
    ahead: float
    cost: float


class Order:
    """The order of waiting requests. Numbers only; the queue that owns it holds the lock and knows the time.

    Attributes:
        turns: those who wait, first come first served within a priority.
        cost: units that all of them will take.
        last: the last number given to a request of normal priority.
    """

    __slots__ = ("_extras", "_gone", "_low", "_vacant", "cost", "last", "turns")

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.cost = 0.0
        self._vacant: list[_Vacancy] = []
        self._extras = 0.0
        # The last low-priority number, and the highest number that has gone.
        self.last = self._low = self._gone = 0

    def forget(self) -> None:
        """Drop all waiting requests."""
        self.turns.clear()
        self._vacant.clear()
        self.cost = 0.0

    def join(self, turn: Turn, now: float, spread: float = 0.0) -> int:
        """The place of a turn, counted from 0; a turn that is not in the order joins it.

        A new turn joins at the end of its priority, any other where its number belongs. The permits that it takes
        differ from one by up to `spread`, depending on its `chance`.
        """
        turns = self.turns
        if turns and turns[0] is turn and not self._vacant:
            return 0  # Usually the one that wakes on time is the first.
        if not turns:
            # Everyone who got a number has gone, including those who did not have to wait.
            self._gone = self.last
        filled = False
        if not turn.number:
            filled = self._number_anew(turn, now)
        number = turn.number
        while self._vacant and self._vacant[0].number < number:
            # The turn that asks moves up, so these places are no longer free.
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
        """Let the turn in that place go with its permit."""
        number = self.drop(place).number
        if number > self._gone:
            self._gone = number
            if number > self.last:
                # A low-priority one: the next to come goes after it, and before the next of low priority.
                self.last = number - 1

    def drop(self, place: int) -> Turn:
        """Remove the turn in that place."""
        turn = self.turns.pop(place)
        self.cost = self.cost - turn.cost if self.turns else 0.0
        return turn

    def leave(self, turn: Turn) -> None:
        """Remove a turn without its permit: the next that comes may have its place.

        Does nothing for a turn that is not in the order.
        """
        place = self.place_of(turn)
        if self.turns[place : place + 1] == [turn]:
            self.drop(place)
            if place < len(self.turns):
                heapq.heappush(
                    self._vacant, _Vacancy(turn.number, turn.told, turn.extra, turn.ahead, turn.cost)
                )

    def place_of(self, turn: Turn) -> int:
        """Where the turn is, or where it belongs."""
        turns, number = self.turns, turn.number
        if not turns or turns[-1].number < number:
            return len(turns)
        place = bisect_left(turns, number, key=_number)
        while place < len(turns) and turns[place].number == number and turns[place] is not turn:
            # Two parallel attempts of one call.
            place += 1
        return place

    def extras_before(self, place: int, spread: float) -> float:
        """What those before that place take beyond one permit each, at most `spread` each way per turn."""
        # Those who have left no longer count, though their extras are still in the sum.
        most = spread * place
        return max(-most, min(most, self.turns[place].ahead - self.turns[0].ahead))

    def cost_before(self, place: int) -> float:
        """Units that those before that place take."""
        # Sum from the nearer end: a new turn, and one that wakes on time, is at one of the two.
        if 2 * place < len(self.turns):
            return sum(turn.cost for turn in self.turns[:place])
        return self.cost - sum(turn.cost for turn in self.turns[place:])

    def last_cost_before(self, place: int) -> float:
        """Units of the last turn before that place that takes any."""
        while place and not self.turns[place - 1].cost:
            place -= 1
        return self.turns[place - 1].cost if place else 0.0

    def _number_anew(self, turn: Turn, now: float) -> bool:
        """Number a new turn, with a free place that fits if there is one; returns whether there was."""
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
