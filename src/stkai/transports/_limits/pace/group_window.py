"""The fixed window that a server describes in its headers, as followed by a group of processes.

The group's shared state contains one `WindowGuide`. Each member adds its latest answer, and counts as one of the
senders that share the window, so that a group gets its share beside other clients.
"""

import math
from typing import Any, NamedTuple

import httpx

from ..limiter import Answer
from .headers import Reading
from .quota import KnownQuota
from .window_guide import WindowGuide

_MAX_NAME = 32  # Characters of a quota's name to keep, because the state in the store is small.


class _Described(NamedTuple):
    """An answer's headers, when it arrived, and when its request was sent."""

    reading: Reading
    now: float
    sent: float


class GroupWindow:
    """What this member knows about the window, and what it has to report to the group. The caller holds a lock."""

    def __init__(self, quota: KnownQuota, *, listens: bool) -> None:
        self._quota, self._listens = quota, listens
        self._guide = WindowGuide(quota.ceiling, quota.floor)
        self._known_at = -math.inf
        self._latest: _Described | None = None
        self._moved_by: _Described | None = None
        self._doubts = False

    def note(self, response: httpx.Response, answer: Answer) -> float | None:
        """Apply an answer. Returns the seconds until the window ends if it is trusted and used up; None otherwise."""
        reading, now, sent = None, answer.now, answer.sent
        if self._listens and self._guide.listening:
            reading = self._quota.read(response, answer.date())
        self._doubts = self._doubts or (answer.is_refusal and (reading is None or reading.remaining >= 1))
        if reading is None:
            return None
        reading = reading._replace(name=reading.name[:_MAX_NAME])
        if self._latest is None or now > self._latest.now:
            self._latest = _Described(reading, now, sent)
        if reading.remaining >= 1:
            return None
        guide = self._guide  # A local copy; the group's guide is updated in its next step.
        guide.observe(reading, now, sent, guide.base)
        left = guide.paused_until - now
        return left if guide.in_force and left > 0 else None

    def move(
        self, state: tuple[Any, ...], written: float, now: float, rate: float, members: int
    ) -> WindowGuide:
        """The group's guide at `now`, from its state as of `written` and this member's later answers."""
        guide = WindowGuide(self._quota.ceiling, self._quota.floor)
        if state:
            try:
                guide.resume(state, written)
            except (ValueError, TypeError):  # Another version wrote it.
                guide = WindowGuide(self._quota.ceiling, self._quota.floor)
        guide.senders = members
        self._known_at = guide.seen_at
        latest = self._moved_by = self._latest
        if latest is not None and latest.now > guide.seen_at:
            guide.observe(latest.reading, latest.now, latest.sent, rate)
        if self._doubts:
            guide.observe(None, now, now, rate, refused=True)
        guide.advance(now)
        self._guide = guide
        return guide

    def has_news(self, recent: float) -> bool:
        """Whether this member received a description of the window, and the group got none since `recent`."""
        return self._known_at <= recent and self._latest is not None and self._latest.now > self._known_at

    def reported(self) -> None:
        """Record that the group's state now includes what this member had received."""
        self._doubts = False
        if self._latest is self._moved_by:
            self._latest = None
