"""The fixed window that a server describes in its headers, followed by a whole group of processes.

The group keeps one `WindowGuide` in its shared state. Each member adds the newest answer that it has received, and
counts as one of the senders that share the window, so that a group gets its share beside strangers.
"""

import math
from typing import Any, NamedTuple

import httpx

from ..limiter import Answer
from . import pause
from .headers import Reading, read_rate_limit
from .window_guide import WindowGuide

_LISTENING = 1.0
"""Seconds between checks of the headers of a server that has sent no quota headers so far."""

_LONGEST_NAME = 32
"""Characters of a quota's name to keep: the state in the store is small."""


class _Described(NamedTuple):
    """An answer's headers, when it came, and when its request was sent."""

    reading: Reading
    now: float
    sent: float


class GroupWindow:
    """What this member knows about the window and has to report to the group. The caller holds a lock.

    Args:
        ceiling: the whole quota, in requests per second.
        floor: the lowest rate.
        window: the quota's window in seconds, if the server states none.
        listens: whether to read headers at all.
    """

    def __init__(self, ceiling: float, floor: float, window: float, *, listens: bool) -> None:
        self._ceiling, self._floor, self._window = ceiling, floor, window
        self._guide = WindowGuide(ceiling, floor)
        self._listens = listens
        self._listens_at = self._known_at = -math.inf
        self._latest: _Described | None = None
        self._moved_by: _Described | None = None
        self._doubts = False

    def read(self, answer: Answer, headers: httpx.Headers, *, refused: bool) -> Reading | None:
        """The quota that an answer describes, if it is worth reading."""
        guide = self._guide
        unheard = guide.has_heard_nothing and self._latest is None
        listens = self._listens and guide.listening
        if not listens or (unheard and answer.now < self._listens_at and not refused):
            return None
        self._listens_at = answer.now + _LISTENING
        reading = read_rate_limit(headers, answer.date(), self._window)
        if reading is None or reading.window > pause.longest(self._window):
            return None  # A window that long cannot be divided in advance.
        return reading._replace(name=reading.name[:_LONGEST_NAME])

    def note(self, reading: Reading | None, now: float, sent: float, *, refused: bool) -> float | None:
        """Take in an answer. Returns the seconds until the window ends, if it is trusted and used up."""
        if reading is None:
            self._doubts = self._doubts or refused
            return None
        self._doubts = self._doubts or (refused and reading.remaining >= 1)
        if self._latest is None or now > self._latest.now:
            self._latest = _Described(reading, now, sent)
        return self._guide.left_if_used_up(reading, now, sent)

    def move(
        self, state: tuple[Any, ...], written: float, now: float, rate: float, members: int
    ) -> WindowGuide:
        """The group's guide at `now`, from its state as of `written` and what this member has received since."""
        guide = WindowGuide(self._ceiling, self._floor)
        if state:
            try:
                guide.resume(state, written)
            except (ValueError, TypeError):  # Another version wrote it.
                guide = WindowGuide(self._ceiling, self._floor)
        guide.senders = members
        self._known_at = guide.heard_at
        latest = self._moved_by = self._latest
        if latest is not None and latest.now > guide.heard_at:
            guide.hear(latest.reading, latest.now, latest.sent, rate)
        if self._doubts:
            guide.hear(None, now, now, rate, refused=True)
        guide.advance(now)
        self._guide = guide
        return guide

    def has_news(self, recent: float) -> bool:
        """Whether an answer described the window to this member, and none to the group since `recent`."""
        return self._known_at <= recent and self._latest is not None and self._latest.now > self._known_at

    def reported(self) -> None:
        """Note that the group's state now includes what this member had received."""
        self._doubts = False
        if self._latest is self._moved_by:
            self._latest = None
