"""The adaptive pace: finds the rate at which a shared quota can be used from the server's answers, and keeps to it.

Several processes share one quota, and none knows about the others. The rate grows slowly while requests are held back,
and is cut once per congestion event (additive increase, multiplicative decrease: Chiu and Jain, 1989). It grows with
time, not per success, so that refusals do not grow with the number of processes. While the server describes its window
in headers, the rate follows these instead.
"""

import math
from collections.abc import Callable

from ..._operations import Operation
from ..._retry.retry_after import retry_after
from ..limiter import Answer, RateChange, Turn
from . import pause
from .blind import START, BlindRate, Pair
from .headers import Outcome, Reading, outcome_of, read_rate_limit
from .law import PlainLaw
from .quota import KnownQuota
from .saved_rate import LearnedRate
from .window_guide import WindowGuide
from .windowed import WindowedRate

_SPREAD = 0.1
"""Each gap varies by this share, up or down: otherwise one sender can lock the others out of a bucket server."""

_SOFT_SPREAD = 0.03
"""The same in a short window: there, the network alone varies gaps enough, and more jitter makes requests collide."""

_LISTENING = 1.0
"""Seconds between checks of the headers of a server that has sent no quota headers so far."""

_NEWS = 0.1
"""Share by which the rate must move before it is reported again."""

_STRICT_NEWS = 0.3
"""The same where refusals are mere collisions: the rate moves all the time."""

_LONGEST_NAP = 1.0
"""Seconds for which a waiter sleeps at most while the server does not say how long to wait."""

_REFUSED = "429 Too Many Requests"
_FOUND = "429 Too Many Requests: a first estimate of the quota"

Save = Callable[[LearnedRate, Answer], Operation | None]
"""Notes what was learned; returns an operation that saves it, if that is due."""


class Adaptive:
    """A pace that adapts to what the server accepts.

    Args:
        quota: what is known about the quota: the ceiling, if it was given.
        plain: the penalty and the recovery factor of plain AIMD; None for the tuned law.
        learned: what an earlier program learned about the quota.
        save: notes what was learned.

    Attributes:
        rate: requests per second in force now.
        burst: permits that may be taken at once after a quiet time.
        credit: the permits that are there, while this pace spaces them itself; None while its user counts them.
        paused_until: when the present pause ends.
        quota: what is known about the quota.
        ignores_successes_until: when a success may say something again; until then, none needs to be reported.
    """

    def __init__(
        self,
        quota: KnownQuota,
        *,
        plain: tuple[float, float] | None = None,
        learned: LearnedRate | None = None,
        save: Save | None = None,
    ) -> None:
        self.quota, self._plain, self._save = quota, plain, save
        if learned is not None and learned.refused:
            quota.resume(learned.window)
        self._moves = WindowedRate(quota, self._plain_law())
        self._guide = WindowGuide(quota.ceiling, quota.floor)
        self._guide.listening = plain is None  # Plain AIMD reads no headers.
        if learned is not None:
            self._moves.resume(learned.rate, refused=learned.refused)
        self._blind: BlindRate | None = None
        self.paused_until = self._listens_at = self.ignores_successes_until = -math.inf
        self.credit: float | None = None
        self._released = 0.0
        self._take_over()
        self._reported = self.rate

    def __str__(self) -> str:
        if self.quota.is_given:
            return str(self.quota)
        if self.quota.requests < math.inf:
            return f"found: {self.quota}"
        return (
            f"found: time_window={self.quota.window:g}" if self._moves.start.over else "quota not found yet"
        )

    def release(self, start: float, now: float, *, waiting: bool) -> float:
        """Permits released from `start` to `now`, while requests wait for them or not."""
        released, self._released = self._released, 0.0
        self._moves.note(start, now, waiting=waiting)
        if self._blind is not None:
            return self._go_blind(self._blind, now - start if waiting else 0.0, now)
        if now <= start:
            return released
        paused_until = self.paused_until
        seconds = now - start if start >= paused_until else max(0.0, now - paused_until)
        if self._guide.in_force:
            released += self._guide.release(now - seconds, now)
            self._moves.set(self._guide.rate)
        elif waiting:
            released += self._moves.release(seconds)
        else:
            return released + self.rate * seconds
        self._take_over()
        if self.rate > (1 + _NEWS) * self._reported:
            self.ignores_successes_until = -math.inf  # The next success reports the growth.
        return released

    def time_for(self, permits: float, now: float) -> float:
        """Seconds from `now` on, or from the end of the pause, until this many more permits are released."""
        if self._blind is not None:
            return permits / self.rate
        if self._guide.in_force:
            return self._guide.time_for(permits, max(now, self.paused_until))
        return self._moves.time_for(permits)

    def take(self, turn: Turn, now: float) -> float:
        """Count a request that goes now; returns the permits that it takes: one, give or take some jitter."""
        self._moves.history.add(now)
        if self._blind is not None:
            turn.mark = pair = self._blind.take(now)
            return 0.0 if pair is Pair.FIRST else 1.0
        if self.rate >= self.quota.ceiling:
            return 1.0
        spread = _SOFT_SPREAD if self.quota.is_given and pause.is_soft(self.quota.window) else _SPREAD
        return 1.0 + spread * (2.0 * turn.chance - 1.0)

    def give_back(self, turn: Turn, now: float) -> None:
        """Take back a request that was counted and not sent."""
        self._moves.history.add(turn.since, -1.0)
        if self._blind is not None:
            self._blind.lose(turn.mark)

    def nap(self, wait: float) -> float:
        """Sleep half of a long wait, then ask again: the rate may have grown, unless it is at its ceiling."""
        if self._blind is not None:
            return min(wait, max(_LONGEST_NAP / 4, min(_LONGEST_NAP, wait / 2)))
        if self.rate >= self.quota.ceiling and not self._guide.in_force:
            return wait
        return min(wait, max(min(1.0, pause.LEAST * self.quota.window), wait / 2))

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the answer move the rate: a 429 holds back all requests, and a success shows how much gets through."""
        outcome = outcome_of(answer)
        turn.paced = outcome is Outcome.REFUSED
        if answer.response is None or outcome is Outcome.UNRELATED:
            if self._blind is not None:
                self._blind.lose(turn.mark)
            return None
        reading, headers = None, answer.response.headers
        if self.listens(answer.now, refused=turn.paced):
            window = self.quota.window if self.quota.is_given else math.inf
            reading = read_rate_limit(headers, answer.date(), window)
        if turn.paced:
            asked = retry_after(headers, answer.date())
            change = self.refused(turn, answer.now, answer.sent, asked, answer.chance, reading)
        else:
            change = self.accepted(turn, answer.now, answer.sent, reading)
        if change is not None and self._save is not None:
            rate = self._guide.base if self._guide.in_force else self._moves.lasting
            learned = LearnedRate(rate, self.quota.window, refused=self._moves.start.over)
            turn.errand = self._save(learned, answer)
        return change

    def update(self, max_requests: float, time_window: float) -> None:
        """Adapt to another quota from now on, of which this sender gets the same share."""
        before = self.quota.ceiling
        self.quota.update(max_requests, time_window)
        self._guide.ceiling = self.quota.ceiling
        share = self.quota.ceiling / before if before < math.inf else 1.0
        self._moves.update(self._plain_law() or self.quota.law(), share)
        self._take_over()

    def listens(self, now: float, *, refused: bool = False) -> bool:
        """Whether to read an answer's quota headers; once a second if no answer has had any so far."""
        guide = self._guide
        if not guide.listening or (guide.has_heard_nothing and now < self._listens_at and not refused):
            return False
        self._listens_at = now + _LISTENING
        return True

    def accepted(
        self, turn: Turn, now: float, sent: float, reading: Reading | None = None
    ) -> RateChange | None:
        """Note that the server accepted a request sent at `sent`, with `reading` from its quota headers."""
        if reading is not None:
            self._follow(reading, now, sent)
        if self._blind is not None:
            self._blind.accepted(now, turn.mark)
            return self._blind_change(self._blind)
        self._released += self._moves.accepted(sent)
        self._take_over()
        change = None
        if self._guide.in_force:
            if abs(self._guide.base - self._reported) > _NEWS * self._reported:
                change = self._report("rate limit headers", self._guide.base)
        elif self.rate > (1 + _NEWS) * self._reported:
            change = self._report("no refusal since", self.rate)
        self._look_ahead()
        return change

    def refused(
        self,
        turn: Turn,
        now: float,
        sent: float,
        asked: float | None = None,
        chance: float = 0.5,
        reading: Reading | None = None,
    ) -> RateChange | None:
        """Note that the server answered 429 to a request sent at `sent`, asking for a wait of `asked` seconds."""
        first = not self._moves.start.over
        explained = self._follow(reading, now, sent, refused=True)
        if asked is None and reading is None and not explained and self._plain is None:
            return self._refused_blindly(turn, now, sent, chance)
        self._open_eyes()
        self._moves.refused(turn, now, sent, asked, chance, explained=explained)
        self._take_over()
        self._look_ahead()
        if explained or self.rate >= self._reported:
            return None
        found = first and self._moves.start.over and not self.quota.is_given
        return self._report(_FOUND if found else _REFUSED, self.rate)

    # The server does not say how long to wait.

    def _refused_blindly(self, turn: Turn, now: float, sent: float, chance: float) -> RateChange | None:
        """Take note of a refusal that asks for no wait: the law for that comes into force."""
        moves = self._moves
        blind = self._blind
        moves.history.add(sent, -1.0)
        if blind is None:
            found, starting = moves.found(now)
            if starting and not self.quota.is_given:
                found = max(START, found)
            blind = self._blind = BlindRate(self.quota, found, now, starting=starting)
            self.ignores_successes_until = -math.inf
        else:
            blind.refused(now, sent, chance, turn.mark)
        return self._blind_change(blind)

    def _go_blind(self, blind: BlindRate, waited: float, now: float) -> float:
        if waited > 0:
            blind.grow(waited)
        self.rate, self.burst, self.credit = blind.rate, 1.0, blind.credit(now)
        return 0.0

    def _blind_change(self, blind: BlindRate) -> RateChange | None:
        self.rate = blind.rate
        if abs(self.rate - self._reported) <= (_STRICT_NEWS if blind.is_strict else _NEWS) * self._reported:
            return None
        if self.rate > self._reported:
            return self._report("no refusal since", self.rate)
        return self._report(f"{_REFUSED}: {blind}" if str(blind) else _REFUSED, self.rate)

    def _open_eyes(self) -> None:
        """Go by windows again, at the present rate: the server has said something about its quota."""
        if self._blind is not None:
            self._moves.set(self.quota.bounded(self._blind.rate))
            self._blind = self.credit = None

    def _plain_law(self) -> PlainLaw | None:
        return None if self._plain is None else PlainLaw(self.quota.ceiling, self.quota.window, *self._plain)

    def _take_over(self) -> None:
        moves = self._moves
        self.rate, self.burst = moves.rate, moves.burst
        self.paused_until = max(self.paused_until, moves.paused_until)

    def _follow(self, reading: Reading | None, now: float, sent: float, *, refused: bool = False) -> bool:
        """Take in the quota headers; returns whether they explain a refusal: the window is used up.

        Then the refusal is no event: how the window went sets the rate of the next one.
        """
        guide, quota, moves = self._guide, self.quota, self._moves
        if reading is not None and not quota.is_given:
            reading = quota.completed(reading)
        if reading is not None and reading.window > pause.longest(quota.window):
            reading = None  # A window that long cannot be divided in advance.
        followed = guide.in_force
        if reading is not None and not quota.is_given:
            guide.ceiling = reading.limit / reading.window
        explained = guide.hear(reading, now, sent, moves.rate, refused=refused)
        if guide.in_force and reading is not None and quota.stated(reading):
            moves.adopt(quota.law())
        if followed or guide.in_force:
            self._open_eyes()
            moves.start.over = True
            moves.set(guide.rate)
            self.paused_until = max(self.paused_until, guide.paused_until)
        return explained

    def _look_ahead(self) -> None:
        """Find out until when a success says nothing: it ends no row of refusals, and releases and reports nothing."""
        guide = self._guide
        reads = guide.listening and not guide.has_heard_nothing
        if reads or self._moves.awaits_success or self.rate > (1 + _NEWS) * self._reported:
            self.ignores_successes_until = -math.inf
        else:
            self.ignores_successes_until = self._listens_at if guide.listening else math.inf

    def _report(self, reason: str, rate: float) -> RateChange:
        change = RateChange(self._reported, rate, reason)
        self._reported = rate
        return change
