"""What a stack tells its listener: one frozen dataclass per event, in the past tense, with the reason.

Imported where the first event happens: `import stkai` need not wait for it.
"""

from dataclasses import dataclass


class Event:
    """Something that happened in a stack. Carries no query string, no header and no token."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited(Event):
    """A request waited `seconds` for a permit of the layer `layer`, and has it now."""

    layer: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChanged(Event):
    """An adaptive limiter moved its rate from `old` to `new` requests per second, because of `reason`."""

    old: float
    new: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryScheduled(Event):
    """Attempt number `attempt` failed by `cause`; the next one starts in `delay` seconds.

    `delay` is 0 where a limiter below keeps the wait itself.
    """

    attempt: int
    delay: float
    cause: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRenewed(Event):
    """A token was fetched in `seconds`, because of `reason`."""

    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected(Event):
    """The layer `layer` refused a request without sending it: its wait would have been `wait` seconds.

    `limit` is what it was allowed to wait, in seconds.
    """

    layer: str
    wait: float
    limit: float
