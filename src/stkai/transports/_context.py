"""What a stack gives each of its layers: a clock, random numbers and a listener."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._clock import Clock, SystemClock, uniform
from .._log import Listener, Listeners, log_events, logger
from .._signals import raise_interrupt

if TYPE_CHECKING:
    from ..events import Event


class Context:
    """What a stack gives each of its layers: a clock, random numbers and a listener.

    Attributes:
        clock: where time comes from.
        listener: called with every event; its exceptions are logged, and not raised.
        random: draws a number in [0, 1).
    """

    __slots__ = ("clock", "listener", "random")

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        listener: Listener = log_events,
        random: Callable[[], float] = uniform,
    ) -> None:
        self.clock, self.listener, self.random = clock or SystemClock(), listener, random

    def hears(self, level: int) -> bool:
        """Whether anybody would see an event that the default log writes at this level."""
        if self.listener is log_events:
            return logger.isEnabledFor(level)
        return not isinstance(self.listener, Listeners) or bool(self.listener.each)

    def emit(self, event: "Event") -> None:
        """Call the listener and log whatever it raises: an observer must not fail a request. Interrupts are raised."""
        try:
            self.listener(event)
        except Exception as error:  # noqa: BLE001 - user code; whatever it raises
            raise_interrupt(error)
            logger.exception("the listener failed on %s", event)
