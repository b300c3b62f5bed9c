"""Who is told of events: the listener of a stack, by default the logger `stkai`."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._events import Event

Listener = Callable[["Event"], None]
"""A plain function that is called with every event of a stack, in the thread or task in which it happened."""

logger = logging.getLogger("stkai")

_LEVELS: Final = {"Waited": logging.DEBUG, "TokenRenewed": logging.DEBUG, "Rejected": logging.WARNING}


def log_event(event: "Event") -> None:
    """The default listener: writes the event to the logger `stkai`."""
    logger.log(_LEVELS.get(type(event).__name__, logging.INFO), "%s", event)
