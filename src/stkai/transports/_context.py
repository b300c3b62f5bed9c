"""What a stack gives each of its layers: a clock, random numbers and a listener."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._clock import Clock, SystemClock, uniform
from .._log import Listener, Listeners, log_events, logger
from .._signals import raise_interrupt

if TYPE_CHECKING:
    from ..events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a stack gives each of its layers: a clock, random numbers and a listener.

    Attributes:
        clock: where time comes from.
        listener: called with every event; its exceptions are logged, and not raised.
        random: draws a number in [0, 1).
    """

    clock: Clock = field(default_factory=SystemClock)
    listener: Listener = log_events
    random: Callable[[], float] = uniform

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
