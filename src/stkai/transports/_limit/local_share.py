"""What a member of a shared quota may send on its own while the store is unreachable."""

from collections.abc import Collection

from .limiter import Answer, RateChange, Turn
from .tickets import TicketQueue

_EASED = 0.88
_TOO_MANY_REQUESTS = 429


class LocalShare(TicketQueue):
    """A constant rate without a burst, starting where the last lease ended.

    Args:
        rate: permits per second.
        methods: HTTP methods that need a permit.
        start: instant from which permits are released.
        credit: permits available at that instant, in [0, 1].
    """

    def __init__(self, rate: float, methods: Collection[str], start: float, credit: float) -> None:
        super().__init__(rate, 1.0, None, methods)
        self._at = start
        self._credit = credit

    def learn(self, turn: Turn, answer: Answer) -> RateChange | None:
        """Lower the rate after a 429; the group's law restores it once the store is back."""
        if answer.response is not None and answer.response.status_code == _TOO_MANY_REQUESTS:
            with self._lock:
                self._advance(answer.now)
                self._rate *= _EASED
        return None

    def pause(self, until: float) -> None:
        """Send nothing before that instant."""
        with self._lock:
            self._paused_until = max(self._paused_until, until)
