"""Finds the rate at which a shared quota can be used, from the 429s of the server, and keeps to it.

Several processes share one quota and none knows of the others. The policy, `AimdLimiter`, grows its rate slowly while
requests are held back and cuts it once per congestion event (additive increase, multiplicative decrease: Chiu and
Jain, 1989); a `Retry-After` holds everybody until then, and the request that was refused goes first afterwards. The
growth is by time, not per success: that keeps the refusals from growing with the number of processes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..._errors import ConfigurationError
from .._limit.limiter import Answer, RateChange, Turn
from .._limit.sharing import SharingQueue, require_share
from .._retry.retry_after import retry_after
from .headers import Reading, read_rate_limit
from .law import HISTORY, Law, Past, PlainLaw, TunedLaw
from .window import WindowGuide

_START = 0.2
"""The share of the ceiling with which the tuned law starts."""

_START_BURST = 3.0
_DOUBLING = 5.0
"""Seconds in which the rate doubles until the first refusal."""

_BURST_SECONDS = 6.0
_SPREAD = 0.1
"""Each gap varies by that much, up and down: without it one sender can lock the others out of a bucket server."""

_LISTENING = 1.0
"""Seconds between looks at the headers of a server that has said nothing in them."""

_TOO_MANY_REQUESTS = 429

_LONGEST_PAUSE = 3600.0
"""Seconds, or the window if that is longer: one answer never stops a group for longer."""


class AimdLimiter(SharingQueue):
    """A rate that adapts to what the server accepts. Share the object to share the quota within a process.

    Args:
        max_requests: the whole quota, shared with others: requests per `time_window`.
        time_window: seconds.
        max_cost: units of cost allowed in `time_window`, such as tokens; None counts requests only. It is a constant
            limit beside the rate that adapts; see `TokenBucket`.
        min_rate_floor: least share of the quota that the rate falls to, in (0, 1]; at least half a request per window.
        penalty_factor: with it, plain AIMD: the share of the rate that a cut takes, in (0, 1]; 0.3 beside the other.
        recovery_factor: with it, plain AIMD: the share of the quota regained per window, in (0, 1]; 0.05 likewise.
        max_wait_time: seconds that a request may wait for its permit; None for as long as it takes.
        methods: HTTP methods that need a permit.
        share: a name; processes that give the same one share the quota, and what they learn of it.
        store: where a shared quota lives: None or "file" for this machine, a URL (`file:///directory`, `redis://`,
            `rediss://`, `unix://`), or a `stkai.stores.Store`.

    Raises:
        ConfigurationError: a number is out of its range, or the store cannot work.
    """

    def __init__(
        self,
        max_requests: float,
        time_window: float,
        *,
        max_cost: float | None = None,
        min_rate_floor: float | None = None,
        penalty_factor: float | None = None,
        recovery_factor: float | None = None,
        max_wait_time: float | None = None,
        methods: Iterable[str] = frozenset({"POST"}),
        share: str | None = None,
        store: Any = None,
    ) -> None:
        super().__init__(max_requests, time_window, max_wait_time, methods, max_cost=max_cost)
        self.ceiling = self._rate
        floor = 0.0 if min_rate_floor is None else _require_share("min_rate_floor", min_rate_floor)
        self.floor = max(floor * self.ceiling, min(0.5 / time_window, self.ceiling))
        self.law: Law = TunedLaw(self.ceiling, time_window)
        self._cold = penalty_factor is None and recovery_factor is None
        if self._cold:
            self._set_rate(max(self.floor, _START * self.ceiling))
            self._burst = _START_BURST
        else:
            penalty = 0.3 if penalty_factor is None else _require_share("penalty_factor", penalty_factor)
            recovery = 0.05 if recovery_factor is None else _require_share("recovery_factor", recovery_factor)
            self.law = PlainLaw(self.ceiling, time_window, penalty, recovery)
            self._set_rate(self.ceiling)
        self._reported = self._rate
        self._spread = _SPREAD
        self._quiet = 0.0
        self._held = 1.0
        self._successes: deque[float] = deque()
        self._began = math.inf
        self._cut_at = -math.inf
        self._answered = True
        self._row = 0
        self._guide = WindowGuide(self.ceiling, self.floor)
        # Plain AIMD is what was asked for, where it was.
        self._guide.listening = self._cold
        self._listens_at = -math.inf
        require_share(share, store)
        if share is not None:
            alone = partial(
                AimdLimiter,
                max_requests,
                time_window,
                min_rate_floor=min_rate_floor,
                penalty_factor=penalty_factor,
                recovery_factor=recovery_factor,
                max_cost=max_cost,
                methods=self.methods,
            )
            self._join_group(share, store, alone)

    def _join_group(self, share: str, store: Any, alone: "Callable[[], AimdLimiter]") -> None:
        from .group import GroupPilot

        pilot = GroupPilot(self.law, self.ceiling, self.floor, self.time_window, starts_cold=self._cold)
        self._join_share(share, store, burst=1.0, alone=alone, pilot=pilot)

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Let the answer move the rate: a 429 holds everybody back, and a success says how much gets through."""
        if self._link is not None:
            return self._learn_together(turn, answer)
        response = answer.response
        if response is None:
            return super().learn(turn, answer)
        turn.paced = response.status_code == _TOO_MANY_REQUESTS
        reading = None
        if self.listens(answer.now, refused=turn.paced):
            reading = read_rate_limit(response.headers, answer.date(), self.time_window)
        if turn.paced:
            asked = retry_after(response.headers, answer.date())
            return self.refused(answer.now, answer.sent, asked, answer.chance, reading)
        return self.succeeded(answer.now, answer.sent, reading)

    def _learn_together(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Tell the group what came back, by the store; alone, while that was never reached."""
        member = self._link.member
        if member.known is None:
            return super().learn(turn, answer)
        response = answer.response
        if response is None:
            return None
        turn.paced = response.status_code == _TOO_MANY_REQUESTS
        if not turn.paced:
            self._row = 0
            self._link.pilot.accepted()
        else:
            self._row += 1
            asked = retry_after(response.headers, answer.date())
            seconds = 1.0 if asked is None else asked
            longest = max(self.time_window, _LONGEST_PAUSE)
            pause = min(
                longest, max(seconds, min(seconds * 2.0 ** (min(self._row, 32) - 1), self.time_window))
            )
            jitter = answer.chance * min(1 / member.known.rate, seconds / 2 + 1.0)
            self._link.pilot.refused(member.refused(answer.sent, answer.now, pause + jitter))
            if member.local is not None:
                member.local.learn(turn, answer)
            self._link.run_errand()
        rate = float(member.known.rate)
        if abs(rate - self._reported) <= 0.1 * self._reported:
            return None
        return self._report("the group's law", rate)

    def listens(self, now: float, *, refused: bool = False) -> bool:
        """Whether to read what an answer says of the quota; where none has said anything, once a second will do."""
        guide = self._guide
        if not guide.listening or (guide.has_heard_nothing and now < self._listens_at and not refused):
            return False
        self._listens_at = now + _LISTENING
        return True

    def succeeded(self, now: float, sent: float, reading: Reading | None = None) -> RateChange | None:
        """The server accepted a request that was sent at `sent`, and said `reading` of its quota."""
        with self._lock:
            if reading is not None:
                self._hear(reading, now, sent)
            self._began = min(self._began, sent)
            self._successes.append(now)
            if self._successes[0] <= now - HISTORY * self.time_window:
                self._forget_old(now)
            if sent > self._cut_at:
                self._answered = True
                self._row = 0
            if self._guide.in_force:
                moved = abs(self._guide.base - self._reported) > 0.1 * self._reported
                return self._report("rate limit headers", self._guide.base) if moved else None
            return self._report("no refusal since", self._rate) if self._rate > 1.1 * self._reported else None

    def refused(
        self,
        now: float,
        sent: float,
        asked: float | None = None,
        chance: float = 0.5,
        reading: Reading | None = None,
    ) -> RateChange | None:
        """The server answered 429 to a request that was sent at `sent`, asking for `asked` seconds of silence.

        Everybody pauses. The rate is cut once per congestion event: a refusal of a request that was sent before the
        last cut says nothing about the rate that is in force now. A window that is known to be used up is none: the
        rate of its next run is found from how it went.
        """
        with self._lock:
            self._advance(now)
            self._forget_old(now)
            self._began = min(self._began, sent)
            fresh = sent > self._cut_at
            if fresh:
                self._row += 1
            explained = self._hear(reading, now, sent, refused=True)
            if fresh and self._answered and not explained:
                self._cut(now)
            seconds = 1.0 if asked is None else asked
            backed_off = max(seconds, min(seconds * 2.0 ** (min(self._row, 32) - 1), self.time_window))
            jitter = chance * min(1 / self._rate, seconds / 2 + 1.0)
            self._paused_until = max(self._paused_until, now + backed_off + jitter)
            if explained or self._rate >= self._reported:
                return None
            return self._report("429 Too Many Requests", self._rate)

    def nap(self, wait: float) -> float:
        """Sleep half of a long wait, then ask again: the rate may have grown, unless it is at its ceiling."""
        if self._rate >= self.ceiling and not self._guide.in_force:
            return wait
        return min(wait, max(1.0, wait / 2))

    def _cut(self, now: float) -> None:
        seconds = min(now - self._began, HISTORY * self.time_window)
        past = Past(len(self._successes), seconds, self._held, self._cold)
        self._set_rate(max(self.floor, self.law.cut(self._rate, past)))
        self._cold = False
        self._cut_at = now
        self._answered = False
        self._quiet = 0.0

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(1.0, _BURST_SECONDS * rate)

    def _hear(self, reading: Reading | None, now: float, sent: float, *, refused: bool = False) -> bool:
        """Whether it is a refusal that the headers explain."""
        self._advance(now)
        guide, followed = self._guide, self._guide.in_force
        explained = guide.hear(reading, now, sent, self._rate, refused=refused)
        if followed or guide.in_force:
            self._cold = False
            self._set_rate(guide.rate)
            self._paused_until = max(self._paused_until, guide.paused_until)
        return explained

    def _report(self, reason: str, rate: float) -> RateChange:
        change = RateChange(self._reported, rate, reason)
        self._reported = rate
        return change

    def _forget_old(self, now: float) -> None:
        while self._successes and self._successes[0] <= now - HISTORY * self.time_window:
            self._successes.popleft()

    def _release(self, seconds: float, unpaused: float) -> float:
        fading = math.exp(-seconds / self.time_window)
        self._held = 1 - (1 - self._held) * fading if self._queue else self._held * fading
        if self._guide.in_force:
            released = self._guide.release(self._at - unpaused, self._at)
            self._set_rate(self._guide.rate)
            return released
        if not self._queue:
            return self._rate * unpaused
        return self._doubled(unpaused) if self._cold else self._grown(unpaused)

    def _doubled(self, seconds: float) -> float:
        """Let the rate double every 5 s, up to the ceiling; returns the permits released meanwhile."""
        growing = min(seconds, _DOUBLING * math.log2(self.ceiling / self._rate))
        before = self._rate
        self._rate = min(self.ceiling, before * 2 ** (growing / _DOUBLING))
        return (self._rate - before) * _DOUBLING / math.log(2) + self.ceiling * (seconds - growing)

    def _grown(self, seconds: float) -> float:
        """Let the rate grow by the law; returns the permits released meanwhile."""
        before = self._rate
        self._set_rate(min(self.ceiling, max(before, self.law.grown(before, self._quiet, seconds))))
        self._quiet += seconds
        return (before + self._rate) / 2 * seconds

    def _time_for(self, permits: float) -> float:
        if self._guide.in_force:
            return self._guide.time_for(permits, max(self._at, self._paused_until))
        if not self._cold or self._rate >= self.ceiling:
            return permits / self._rate
        # The rate doubles on the way; the rest is at the ceiling.
        to_ceiling = _DOUBLING * math.log2(self.ceiling / self._rate)
        doubling = _DOUBLING / math.log(2)
        while_growing = (self.ceiling - self._rate) * doubling
        if permits <= while_growing:
            return doubling * math.log1p(permits / (doubling * self._rate))
        return to_ceiling + (permits - while_growing) / self.ceiling

    def __repr__(self) -> str:
        shared = "" if self.share is None else f", share={self.share!r}, store={self.store!r}"
        return f"AimdLimiter({self.max_requests:g}, {self.time_window:g}, rate={self._rate:.3g}{shared})"


def _require_share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        msg = f"{name} must be a number in (0, 1], not {value!r}"
        raise ConfigurationError(msg)
    return value
