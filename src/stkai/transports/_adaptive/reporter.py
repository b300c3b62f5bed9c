"""What a member of a group that shares a quota reports about its answers."""

from typing import Any

import httpx

from .._limit.limiter import Answer, Turn
from .._retry.retry_after import retry_after
from . import pause


class Reporter:
    """Reports to the group through the store what the server accepted and refused.

    Args:
        link: the connection to the store.
        window: the quota's window, in seconds.
    """

    def __init__(self, link: Any, window: float) -> None:
        self._link, self._window = link, window
        self._row = 0
        self._refused_epoch = -1

    def report(self, turn: Turn, answer: Answer, response: httpx.Response) -> None:
        """Report an answer that says something about the quota."""
        member, pilot = self._link.member, self._link.pilot
        used_up = pilot.hear(answer, response, refused=turn.paced)
        epoch = member.epoch_at(answer.sent)
        if not turn.paced:
            self._row = 0
            pilot.accepted(epoch)
            if used_up:
                member.refused(answer.sent, answer.now, used_up)
                self._link.run_errand()
            return
        if epoch > self._refused_epoch:
            self._refused_epoch = epoch
            self._row += 1
        if used_up is None:
            pilot.refused(epoch)
        asked = retry_after(response.headers, answer.date())
        seconds = pause.LEAST * self._window if asked is None else asked
        stop = pause.hard(seconds, self._row, self._window, member.known.rate, answer.chance)
        member.refused(answer.sent, answer.now, max(used_up or 0.0, stop))
        if member.local is not None:
            member.local.learn(turn, answer)
        self._link.run_errand()
