"""A listener that keeps its events, and a stand-in for their calls, so that events can be compared."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stkai import CallInfo, Event

CALL = CallInfo(id=0, method="POST", host="api.example.com")
"""Replaces the call of an event, whose id differs in every run."""


class EventLog:
    """A listener that keeps its events.

    Attributes:
        events: in the order in which they happened.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, *kinds: type[Event]) -> list[Any]:
        """The events of these kinds, as if they all belonged to one call."""
        return apart_from_calls([event for event in self.events if isinstance(event, kinds)])


def apart_from_calls(events: Sequence[Any]) -> list[Any]:
    """The events, as if they all belonged to attempts of one call."""
    return [
        dataclasses.replace(event, call=dataclasses.replace(CALL, attempt=event.call.attempt))
        for event in events
    ]
