"""A limit of the requests that are on their way at once."""

from collections.abc import Iterable

from ..._checks import POSITIVE_COUNT, check_number, even_half_made
from .queue import Queue
from .queue_limiter import QueueLimiter
from .sources.in_flight import Slots
from .sources.source import Limits


class InFlight(QueueLimiter):
    """At most `n` requests between leaving and the end of their answer's body; a stream counts until it is closed.

    Args:
        n: how many, at least 1.
        methods: HTTP methods that need a place; None for all.
        max_wait_time: seconds that a request may wait for its place; None waits as long as necessary.

    Raises:
        ConfigurationError: `n` is not a whole number of at least 1.
    """

    numbers = ("n",)

    def __init__(
        self, n: int, *, methods: Iterable[str] | None = None, max_wait_time: float | None = None
    ) -> None:
        check_number("n", n, POSITIVE_COUNT)
        self._slots = Slots(n)
        super().__init__(self._slots, methods=methods, max_wait_time=max_wait_time)

    @property
    def n(self) -> int:
        """How many may be on their way at once."""
        return self._slots.most

    @property
    def busy(self) -> int:
        """How many are on their way now."""
        return self._slots.busy

    def update(self, *, n: int) -> None:
        """Change how many may be on their way at once; those beyond it that have left are not called back.

        Raises:
            ConfigurationError: `n` is not a whole number of at least 1; nothing has changed.
        """
        check_number("n", n, POSITIVE_COUNT)
        with Queue.lock:
            self._slots.update(Limits(max_requests=n))

    @even_half_made
    def __repr__(self) -> str:
        return f"InFlight({self.n}{self._options()})"
