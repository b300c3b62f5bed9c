"""Listeners, and the default one: which events it writes to the logger `stkai`, at which level."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from ._checks import is_async
from ._clock import SystemClock
from ._errors import ConfigurationError
from ._lazy import LateModule
from ._process import raise_interrupt

if TYPE_CHECKING:
    from . import events as events  # noqa: PLC0414 - for other modules
else:
    events = LateModule("stkai.events")

Listener = Callable[["events.Event"], None]
"""A plain function that is called with every event of a stack, in the thread or task in which the event happened."""

logger: Final = logging.getLogger("stkai")
# A library must not print anything unless the program configures logging.
logger.addHandler(logging.NullHandler())

LONG_WAIT: Final = 1.0
"""Seconds; a longer wait for a permit is logged at INFO."""

REJECTION_INTERVAL: Final = 10.0
"""Seconds between warnings that a layer rejects requests."""

_LEVELS: Final = {
    "CallStarted": logging.DEBUG,
    "AttemptStarted": logging.DEBUG,
    "AttemptFinished": logging.DEBUG,
    "RateChanged": logging.DEBUG,  # Each refused call may change the rate, and already has a line.
    "TokenRenewed": logging.DEBUG,
    "Rejected": logging.WARNING,
    "StoreLost": logging.WARNING,
    "StoreRestored": logging.WARNING,
    "QuotaDisagreement": logging.WARNING,
}
"""Levels by the name of the event's class; any other event is INFO."""

_rejections: Final[dict[str, tuple[float, int]]] = {}
"""By layer: until when its rejections are logged at DEBUG, and how many were: a full queue rejects hundreds.

There is no lock: threads that reject at the same moment may count one too few, or warn twice.
"""


def log_events(event: "events.Event") -> None:
    """Write an event to the logger `stkai`: the default listener.

    A call produces one line at INFO when it ends, plus one for each retry and each wait of more than a second; the rest
    is DEBUG. Rejections by the stack's own limiter produce one WARNING per layer in 10 s, which counts the others.
    """
    kind = type(event).__name__
    level = _LEVELS.get(kind, logging.INFO)
    if kind == "Waited" and getattr(event, "seconds", 0.0) <= LONG_WAIT:
        level = logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    if kind == "Rejected":
        layer, now = getattr(event, "layer", ""), SystemClock.monotonic()
        silent_until, left_out = _rejections.get(layer, (now, 0))
        if now < silent_until:
            _rejections[layer], level = (silent_until, left_out + 1), logging.DEBUG
        else:
            _rejections[layer] = now + REJECTION_INTERVAL, 0
            if left_out:
                logger.log(level, "%s; %d more were refused before it", event, left_out)
                return
    logger.log(level, "%s", event)


def listener_of(given: object) -> Listener:
    """One function that calls the default log and `given`, or, if that is a list, exactly its functions."""
    if given is None or given is log_events:
        return log_events
    several = [log_events, given] if callable(given) else given
    if not isinstance(several, list | tuple) or not all(callable(each) for each in several):
        msg = f"listener must be a function that takes an event, or a list of such functions, not {given!r}"
        raise ConfigurationError(msg)
    for each in several:
        if isinstance(each, type):
            raise ConfigurationError(
                f"listener must be an object, such as {each.__name__}(), not the class {each.__name__}"
            )
        if is_async(each):
            msg = f"listener must be a plain function, since it is never awaited, not the async {each!r}"
            raise ConfigurationError(msg)
    if len(several) == 1:
        return cast("Listener", several[0])
    return Listeners(tuple(several))


def notify(listener: Listener, event: "events.Event") -> None:
    """Call a listener; log its exceptions, which must not make a request fail. Interrupts are raised."""
    try:
        listener(event)
    except Exception as error:
        raise_interrupt(error)
        logger.exception("the listener failed on %s", event)


class Listeners:
    """Several listeners as one: if one of them raises an exception, even an interrupt, the others get the event."""

    def __init__(self, each: tuple[Listener, ...]) -> None:
        self.each = each

    def __call__(self, event: "events.Event") -> None:
        for place, listener in enumerate(self.each, 1):
            try:
                notify(listener, event)
            except BaseException:  # Otherwise, metrics would count a call as active for good.
                Listeners(self.each[place:])(event)
                raise
