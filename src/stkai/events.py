"""The events of a stack, which its listener receives: a frozen dataclass for each, named in the past tense.

Every event names its call, so that logs, metrics and traces can be built from events alone. `str(event)` is a readable
line. This module is imported with the first event, which keeps `import stkai` fast.
"""

from dataclasses import dataclass, field

from ._errors import digits

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "CallFinished",
    "CallInfo",
    "CallStarted",
    "Event",
    "QuotaDisagreement",
    "RateChanged",
    "Rejected",
    "RetryScheduled",
    "StoreLost",
    "StoreRestored",
    "TokenRenewed",
    "Waited",
]
__dir__ = __all__.copy


@dataclass(frozen=True, kw_only=True, slots=True)
class CallInfo:
    """The call that an event belongs to. Carries no path, no query string, no header and no token.

    Attributes:
        id: the same for all events of one call; unique within the process.
        method: the HTTP method.
        host: the host name, without a port.
        attempt: the number of the attempt in progress: 1, 2, ...
        port: the port, even if it is the scheme's default; None if there is no server.
    """

    id: int
    method: str
    host: str
    attempt: int = 1
    port: int | None = None

    def __str__(self) -> str:
        return f"#{self.id} {self.method} {self.host}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened in a stack. Carries no query string, no header and no token.

    Attributes:
        call: the call in which it happened.
    """

    call: CallInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class CallStarted(Event):
    """A call entered the stack. Exactly one `CallFinished` follows."""

    def __str__(self) -> str:
        return f"{self.call}: started"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStarted(Event):
    """A request is about to be sent to the wire.

    Attributes:
        resend_count: how often this call has sent it before; 0 the first time.
        headers: empty; a listener may add headers for this attempt to carry, such as `traceparent`.
    """

    resend_count: int = 0
    headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.call}: attempt {self.call.attempt} sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFinished(Event):
    """The wire returned a response, whose body may still be on its way, or raised an error.

    Attributes:
        status: the status code; None after an error.
        error: the name of the error's class; None after a response.
        seconds: from sending until now.
    """

    status: int | None = None
    error: str | None = None
    seconds: float

    def __str__(self) -> str:
        outcome = _outcome(self.status, self.error, self.seconds)
        return f"{self.call}: attempt {self.call.attempt}: {outcome}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryScheduled(Event):
    """Attempt number `attempt` failed; the next one starts in `delay` seconds.

    Attributes:
        attempt: the number of the attempt that failed: 1, 2, ...
        delay: seconds; 0 if a limiter handles the wait itself.
        cause: what failed, in words.
    """

    attempt: int
    delay: float
    cause: str

    def __str__(self) -> str:
        when = f"in {digits(self.delay)} s" if self.delay else "as soon as the limiter permits"
        return f"{self.call}: attempt {self.attempt} failed ({self.cause}); retrying {when}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited(Event):
    """A request waited `seconds` for a permit of the layer `layer`, and now has it.

    Attributes:
        layer: the name of the layer.
        seconds: how long it waited.
        limit: if there are several limits, the one that held it up for longest, such as "16 in flight".
    """

    layer: str
    seconds: float
    limit: str = ""

    def __str__(self) -> str:
        limit = f" ({self.limit})" if self.limit else ""
        return f"{self.call}: waited {digits(self.seconds)} s for a permit of {self.layer}{limit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected(Event):
    """The layer `layer` rejected a request without sending it: it would have had to wait too long.

    Attributes:
        layer: the name of the layer.
        wait: seconds that the request would have had to wait.
        limit: seconds that it was allowed to wait.
    """

    layer: str
    wait: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.call}: refused by {self.layer}: a permit takes {digits(self.wait)} s, and the call may wait"
            f" {digits(self.limit)} s"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChanged(Event):
    """An adaptive limiter moved its rate from `old` to `new` requests per second, because of `reason`.

    Attributes:
        old, new: requests per second; for the whole group if the quota is shared.
        reason: what made it change, in words.
        share: the name of the shared quota, or None.
    """

    old: float
    new: float
    reason: str
    share: str | None = None

    def __str__(self) -> str:
        return f"{self.call.host}: rate changed from {digits(self.old)}/s to {digits(self.new)}/s ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRenewed(Event):
    """A token was fetched in `seconds`, because of `reason`."""

    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"{self.call}: fetched a token in {digits(self.seconds)} s ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLost(Event):
    """The store of a shared quota cannot be reached; until it can, this process keeps to its own part of the quota.

    Attributes:
        share: the name of the quota.
        store: where it lives, without credentials.
        reason: what failed, in words.
        was_reached: whether this process has reached it before. If not, the number of processes is unknown: this one
            starts with a tenth of the quota, then adapts to the server's answers, and may use all of the quota.
    """

    share: str
    store: str
    reason: str
    was_reached: bool = True

    def __str__(self) -> str:
        failure = f"{self.store} cannot be reached ({self.reason})"
        if not self.was_reached:
            return (
                f"the quota {self.share!r} is not shared: {failure}; this process starts with a tenth of it, then"
                " adapts alone, up to all of it"
            )
        return f"the quota {self.share!r} continues with this process's own part: {failure}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRestored(Event):
    """The store of a shared quota answers again.

    Attributes:
        share: the name of the quota.
        store: where it lives, without credentials.
    """

    share: str
    store: str

    def __str__(self) -> str:
        return f"the quota {self.share!r} is shared again: {self.store} answers"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaDisagreement(Event):
    """Another member of the share started later with a different quota, which is now in force.

    Attributes:
        share: the name of the quota.
        mine: the quota that this process was given, in requests per second.
        theirs: the quota in force, in requests per second.
        differences: what differs: "rate", "burst", "window", "max_cost", "cost_rate" or "methods".
    """

    share: str
    mine: float
    theirs: float
    differences: tuple[str, ...] = ("rate",)

    def __str__(self) -> str:
        return (
            f"the members of the quota {self.share!r} disagree about its {', '.join(self.differences)}:"
            f" {digits(self.theirs)} requests/s are in force, set by the member that started last, not"
            f" {digits(self.mine)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFinished(Event):
    """A call left the stack: with a response, whose body may still be on its way, or with an error.

    Attributes:
        status: the status code of the response; None after an error.
        error: the name of the error's class; None after a response.
        attempts: how often the call was sent, or was about to be.
        seconds: from `CallStarted` until now.
    """

    status: int | None = None
    error: str | None = None
    attempts: int = 1
    seconds: float

    def __str__(self) -> str:
        again = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.call}: {_outcome(self.status, self.error, self.seconds)}{again}"


def _outcome(status: int | None, error: str | None, seconds: float) -> str:
    return f"{error} after {digits(seconds)} s" if error else f"{status} in {digits(seconds)} s"
