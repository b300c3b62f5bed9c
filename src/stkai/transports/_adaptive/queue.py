"""A queue whose rate follows from what a server accepts and refuses. Numbers in, numbers out.

It connects the parts: the cold start, the law, the pauses, the search for an unknown quota, and the window that a
server describes in its headers.
"""

import math
from collections.abc import Iterable

from .._limit.limiter import RateChange, Turn
from .._limit.sharing import SharingQueue
from . import pause
from .headers import Reading
from .law import Law, Past, PlainLaw, SearchingLaw, TunedLaw
from .refusals import Holds, Refusals
from .search import QuotaSearch
from .start import ColdStart
from .tally import Tally
from .warm import Keeper
from .window import WindowGuide

_BURST = 0.1
"""Windows' worth of permits that may be taken at once after a quiet time."""

_SPREAD = 0.1
"""Each gap varies by this share, up or down: otherwise one sender can lock the others out of a bucket server."""

_SOFT_SPREAD = 0.03
"""The same in a short window: there, the network alone varies gaps enough, and more jitter makes requests collide."""

_FLOOR = 0.5
"""Requests per window below which the rate never falls ..."""

_FLOOR_SHARE = 0.02
"""... unless that is more than this share of the quota: thirty senders may share a quota of ten."""

_LISTENING = 1.0
"""Seconds between checks of the headers of a server that has sent no quota headers so far."""

NEWS = 0.1
"""Share by which the rate must move before it is reported again."""

_REFUSED = "429 Too Many Requests"
_FOUND = "429 Too Many Requests: a first estimate of the quota"


class AdaptiveQueue(SharingQueue):
    """Releases permits at a rate that adapts.

    Args:
        max_requests: requests per `time_window`: the ceiling; None if it is unknown.
        time_window: seconds; None if it is unknown.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.
        methods: HTTP methods that need a permit.
        max_cost: units of cost allowed in `time_window`; None counts requests only.
        floor_share: least share of the quota that the rate falls to.
        plain: the penalty and the recovery factor of plain AIMD; None for the tuned law.

    Attributes:
        ceiling: requests per second that the rate never exceeds; infinite while the quota is unknown.
        law: how the rate moves.
    """

    def __init__(
        self,
        max_requests: float | None,
        time_window: float | None,
        max_wait_time: float | None,
        methods: Iterable[str],
        *,
        max_cost: float | None,
        floor_share: float,
        plain: tuple[float, float] | None,
    ) -> None:
        self._search: QuotaSearch | None = None
        if max_requests is None or time_window is None:
            self._search = QuotaSearch()
            super().__init__(1.0, 1.0, max_wait_time, methods)
            self.max_requests = self.time_window = None
        else:
            super().__init__(max_requests, time_window, max_wait_time, methods, max_cost=max_cost)
        self._floor_share = floor_share
        self._start = ColdStart(max_requests, self.window)
        self._start.over = plain is not None
        self.ceiling = self._start.ceiling
        self.law: Law = self._tuned_law() if plain is None else PlainLaw(self.ceiling, self.window, *plain)
        if plain is None:
            self._rate, self._burst = max(self.floor, self._start.rate), self._start.burst
        else:
            self._set_rate(self.ceiling)
        self._learned = Keeper()
        self._reported = self._rate
        self._spread = _SOFT_SPREAD if pause.is_soft(self.window) else _SPREAD
        self._quiet = 0.0
        self._held = 1.0
        self._tally = Tally(self.law.history)
        self._began = math.inf
        self._refusals = Refusals()
        self._holds = Holds()
        self._resumes_at = 0.0
        self._guide = WindowGuide(self.ceiling, self.floor)
        # Plain AIMD reads no headers.
        self._guide.listening = plain is None
        self._listens_at = -math.inf

    @property
    def window(self) -> float:
        """The quota's window in seconds, or the current estimate."""
        return self._search.window if self._search is not None else self.time_window or 0.0

    @property
    def floor(self) -> float:
        """Requests per second below which the rate never falls."""
        least = _FLOOR / self.window
        if self._search is not None:
            return least
        return max(self._floor_share * self.ceiling, min(least, _FLOOR_SHARE * self.ceiling))

    def listens(self, now: float, *, refused: bool = False) -> bool:
        """Whether to read an answer's quota headers; once a second if no answer has had any so far."""
        guide = self._guide
        if not guide.listening or (guide.has_heard_nothing and now < self._listens_at and not refused):
            return False
        self._listens_at = now + _LISTENING
        return True

    def remaining(self, turn: Turn, now: float) -> float:
        held = self._holds.left(turn.number, now)
        if held:
            turn.nap = math.inf
            return held
        return super().remaining(turn, now)

    def leave(self, turn: Turn, now: float) -> None:
        self._holds.drop(turn.number)
        super().leave(turn, now)

    def succeeded(self, now: float, sent: float, reading: Reading | None = None) -> RateChange | None:
        """Note that the server accepted a request sent at `sent`, with `reading` from its quota headers."""
        with self._lock:
            if reading is not None:
                self._hear(reading, now, sent)
            self._begin(sent)
            free = self._start.released_by_success()
            if free:
                self._advance(now)
                most = self._start.burst
                self._burst = max(self._burst, most)
                if self._credit < most:
                    self._credit = min(self._credit + free, most)
            if self._refusals.accepted(sent):
                self._end_probe()
            if self._guide.in_force:
                moved = abs(self._guide.base - self._reported) > NEWS * self._reported
                return self._report("rate limit headers", self._guide.base) if moved else None
            grown = self._rate > (1 + NEWS) * self._reported
            return self._report("no refusal since", self._rate) if grown else None

    def refused(
        self,
        now: float,
        sent: float,
        asked: float | None = None,
        chance: float = 0.5,
        reading: Reading | None = None,
        number: int = 0,
    ) -> RateChange | None:
        """Note that the server answered 429 to ticket `number`, sent at `sent`, asking for a wait of `asked` seconds.

        The rate is cut once per congestion event: a refusal of a request sent before the last cut says nothing about
        the current rate. A window that is known to be used up is not an event: how it went sets the rate of the next
        window.
        """
        with self._lock:
            self._advance(now)
            self._tally.add(sent, -1.0)
            self._begin(sent)
            first = not self._start.over
            fresh, event = self._refusals.is_fresh(sent), self._refusals.refused(sent)
            explained = self._hear(reading, now, sent, refused=True)
            cut = event and not explained
            if cut:
                self._cut(now, asked or 0.0)
            if self._search is not None and self._search.asked(asked or 0.0, self._rate) and cut:
                self._adopt(self._tuned_law())
            self._stop(now, asked, chance, number, first=first, fresh=fresh, explained=explained)
            if explained or self._rate >= self._reported:
                return None
            found = first and self._search is not None and self._start.over
            return self._report(_FOUND if found else _REFUSED, self._rate)

    def nap(self, wait: float) -> float:
        """Sleep half of a long wait, then ask again: the rate may have grown, unless it is at its ceiling."""
        if self._rate >= self.ceiling and not self._guide.in_force:
            return wait
        return min(wait, max(min(1.0, pause.LEAST * self.window), wait / 2))

    def _tuned_law(self) -> Law:
        search = self._search
        if search is None or self.ceiling < math.inf:
            return TunedLaw(self.ceiling, self.window)
        return SearchingLaw(search.window, search.pace)

    def _count(self, sent: float, count: float = 1.0) -> None:
        self._begin(sent)
        self._tally.add(sent, count)

    def _begin(self, sent: float) -> None:
        """Count time from the first request on. After a long pause, what was in flight before it says nothing."""
        if self._began == math.inf:
            self._began = sent

    def _adopt(self, law: Law) -> None:
        """Switch to another law, because more is known about the quota."""
        self.law = law
        self._tally = self._tally.resized(law.history)

    def _stop(
        self,
        now: float,
        asked: float | None,
        chance: float,
        number: int,
        *,
        first: bool,
        fresh: bool,
        explained: bool,
    ) -> None:
        """Hold back all requests, or in a short window only the refused one."""
        window = self.window
        seconds = pause.LEAST * window if asked is None else asked
        if explained or not pause.is_soft(window, seconds):
            stop = pause.hard(seconds, self._refusals.row, window, self._rate, chance)
            if seconds > pause.longest(window) and not self._resumes_at:
                # Then one request probes, and its answer decides.
                self._resumes_at = self._rate
                self._set_rate(self.floor)
        else:
            stop = pause.soft_stop(window, chance) if first or (fresh and self._refusals.row > 1) else 0.0
            self._holds.add(number, now, now + pause.soft(seconds, window, chance))
        if stop > window:
            # Over such a long pause, the goodput would be zero.
            self._began, self._tally = now + stop, Tally(self.law.history)
        self._paused_until = max(self._paused_until, now + stop)

    def _cut(self, now: float, asked: float) -> None:
        seconds = min(now - self._began, self._tally.span)
        successes = self._tally.count(now)
        cold = not self._start.over
        if cold and self._start.excuses(successes, self._rate, seconds):
            self._burst = 1.0
        else:
            # Without a quota, this is the first estimate: the requests accepted so far, until the server accepts more.
            believed = asked if asked <= pause.longest(self.window) else 0.0
            lately = seconds + believed if cold and self._search is not None else seconds
            past = Past(successes, lately, self._held, cold)
            self._set_rate(max(self.floor, self.law.cut(self._rate, past)))
            self._start.over = True
        self._refusals.cut(now)
        self._quiet = 0.0

    def _end_probe(self) -> None:
        if self._resumes_at:
            self._set_rate(max(self._rate, self._resumes_at))
            self._resumes_at = 0.0

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(1.0, _BURST * self.window * rate)

    def _hear(self, reading: Reading | None, now: float, sent: float, *, refused: bool = False) -> bool:
        """Take in the quota headers; returns whether they explain a refusal."""
        self._advance(now)
        if reading is not None and self._search is not None:
            reading = self._search.completed(reading)
        if reading is not None and reading.window > pause.longest(self.window):
            reading = None  # A window that long cannot be divided in advance.
        guide, followed = self._guide, self._guide.in_force
        if reading is not None and self._search is not None:
            guide.ceiling = reading.limit / reading.window
        explained = guide.hear(reading, now, sent, self._rate, refused=refused)
        if guide.in_force and reading is not None and self._search is not None and self._search.told(reading):
            self.ceiling = self._search.rate
            self._adopt(self._tuned_law())
        if followed or guide.in_force:
            self._start.over = True
            self._set_rate(guide.rate)
            self._paused_until = max(self._paused_until, guide.paused_until)
        return explained

    def _report(self, reason: str, rate: float) -> RateChange:
        self._learned.note(self._resumes_at or rate, self.window, refused=self._start.over)
        change = RateChange(self._reported, rate, reason)
        self._reported = rate
        return change

    def _release(self, seconds: float, unpaused: float) -> float:
        # A request that has a permit but waits for units is no reason to release more permits.
        short = bool(self._queue) and (self._units is None or self._credit < 1)
        waiting = short or self._at < self._holds.until
        fading = math.exp(-seconds / self.window)
        self._held = 1 - (1 - self._held) * fading if waiting else self._held * fading
        if self._guide.in_force:
            released = self._guide.release(self._at - unpaused, self._at)
            self._set_rate(self._guide.rate)
            return released
        if not short:
            return self._rate * unpaused
        before = self._rate
        if not self._start.over:
            self._rate, released = self._start.doubled(before, unpaused)
            return released
        # No waiter sleeps for longer than a window: in a longer step the program stood still, and no ceiling bounds it.
        counted = unpaused if self.ceiling < math.inf else min(unpaused, self.window)
        self._set_rate(min(self.ceiling, max(before, self.law.grown(before, self._quiet, counted))))
        self._quiet += counted
        return (before + self._rate) / 2 * unpaused

    def _time_for(self, permits: float) -> float:
        if self._guide.in_force:
            return self._guide.time_for(permits, max(self._at, self._paused_until))
        return permits / self._rate if self._start.over else self._start.time_for(permits, self._rate)
