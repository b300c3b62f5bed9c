"""A listener that keeps what it hears, and the call that stands for all others when events are compared."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stkai import CallInfo, Event

CALL = CallInfo(id=0, method="POST", host="api.example.com")
"""In the place of the call of an event: its id is another in every run."""


class Heard:
    """A listener.

    Attributes:
        events: what it has heard, in order.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, *kinds: type[Event]) -> list[Any]:
        """The events of these kinds, all as if they were of one call."""
        return apart_from_calls([event for event in self.events if isinstance(event, kinds)])


def apart_from_calls(events: Sequence[Any]) -> list[Any]:
    """The events, all as if they were attempts of one call."""
    return [
        dataclasses.replace(event, call=dataclasses.replace(CALL, attempt=event.call.attempt))
        for event in events
    ]
