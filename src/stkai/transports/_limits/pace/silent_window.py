"""Finds the window of a server that refuses everything until it is over, and never says when that is.

Such a server accepts whatever is sent, and then refuses all of it until the next window. So what a sender got from the
end of one outage to the end of the next is its share of a window, whatever it had sent. A bucket refuses now and then.
"""

_OUTAGE = 8.0
"""Seconds: a row of refusals so long may be the rest of a window."""

_LONGEST = 75.0
"""Seconds from the end of one outage to the end of the next: a longer time is no window. Most windows are a minute."""

_ENOUGH = 5
"""Requests that a sender gets in a window, at least: fewer say too little."""

_SOON = 2
"""Rows of refusals that begin less than half a window after the one before, until it is clear that there is none."""

_VALID = 2.5
"""Windows without a refusal after which there seems to be none."""


class SilentWindow:
    """Counts what is accepted from the end of one outage to the end of the next.

    Args:
        since: when the first request was accepted.
        accepted: how many have been accepted since then.

    Attributes:
        seconds: how long the window is; 0 while none is known.
    """

    def __init__(self, since: float, accepted: float) -> None:
        self._since, self._accepted, self._rows, self._soon = since, accepted, 0, 0
        self.seconds = 0.0

    def average(self, now: float) -> float:
        """Requests per second that were accepted since the last outage ended."""
        return self._accepted / max(1.0, now - self._since)

    def accepted(self) -> None:
        """Count an accepted request."""
        self._accepted += 1

    def refused(self, now: float) -> None:
        """Note that a row of refusals begins."""
        self._rows += 1
        self._soon = self._soon + 1 if now - self._since < self.seconds / 2 else 0
        if self._soon >= _SOON:
            self.seconds = 0.0

    def forget_if_old(self, now: float) -> None:
        """Forget a window that has refused nothing for long."""
        if now - self._since > _VALID * self.seconds:
            self.seconds = 0.0

    def accepts_again(self, now: float, row_began: float) -> float:
        """Note the end of a row of refusals that was the end of a window, or may have been.

        Returns:
            The sender's share of a window in requests per second; 0 if there is no window.
        """
        seconds, share = now - self._since, 0.0
        is_window = self._rows == 1 and self._accepted >= _ENOUGH and seconds <= _LONGEST
        if is_window and (self.seconds or now - row_began > _OUTAGE):
            share, self.seconds = self._accepted / seconds, seconds
        self._since, self._accepted, self._rows = now, 0.0, 0
        return share
