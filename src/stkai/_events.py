"""What a stack reports to its listeners: one frozen dataclass per event, named in the past tense.

Every event names the call it belongs to, so that logs, metrics and traces can be built from events alone. `str(event)`
is a readable line.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class CallInfo:
    """The call that an event belongs to. Contains no path, query string, header or token.

    Attributes:
        id: The same for all events of a call; unique within the process.
        method: the HTTP method.
        host: the host name, without a port.
        attempt: The number of the current attempt: 1, 2, ...
    """

    id: int
    method: str
    host: str
    attempt: int = 1

    def __str__(self) -> str:
        return f"#{self.id} {self.method} {self.host}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened in a stack. Contains no query string, header or token.

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
        resend_count: How often this call has sent the request before; 0 the first time.
        headers: Empty. A listener may add headers for this attempt, such as `traceparent`.
    """

    resend_count: int = 0
    headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.call}: attempt {self.call.attempt} sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFinished(Event):
    """The wire returned a response (its body may still be arriving) or raised an error.

    Attributes:
        status: the status code; None after an error.
        error: the name of the error's class; None after a response.
        seconds: Time since the request was sent.
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
        attempt: The number of the failed attempt: 1, 2, ...
        delay: Seconds; 0 if a limiter does the waiting.
        cause: What failed, in words.
    """

    attempt: int
    delay: float
    cause: str

    def __str__(self) -> str:
        when = f"in {self.delay:.3g} s" if self.delay else "as soon as the limiter permits"
        return f"{self.call}: attempt {self.attempt} failed ({self.cause}); retrying {when}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited(Event):
    """A request has waited `seconds` for a permit of the layer `layer`, and now has it."""

    layer: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.call}: waited {self.seconds:.3g} s for a permit of {self.layer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected(Event):
    """The layer `layer` refused a request, which was not sent, because it would have had to wait too long.

    Attributes:
        layer: the name of the layer.
        wait: Seconds that the request would have had to wait.
        limit: Seconds that it was allowed to wait.
    """

    layer: str
    wait: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.call}: refused by {self.layer}: a permit takes {self.wait:.3g} s, and the call may wait"
            f" {self.limit:.3g} s"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChanged(Event):
    """An adaptive limiter moved its rate from `old` to `new` requests per second, because of `reason`."""

    old: float
    new: float
    reason: str

    def __str__(self) -> str:
        return f"{self.call.host}: rate changed from {self.old:.3g}/s to {self.new:.3g}/s ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRenewed(Event):
    """A token was fetched in `seconds`, because of `reason`."""

    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"{self.call}: fetched a token in {self.seconds:.3g} s ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLost(Event):
    """The store of a shared quota is unavailable; until it is back, this process uses its own part of the quota.

    Attributes:
        share: The name of the shared quota.
        store: Where it lives, without credentials.
        reason: What failed, in words.
    """

    share: str
    store: str
    reason: str

    def __str__(self) -> str:
        return (
            f"the quota {self.share!r} goes on with this process's own part: {self.store} cannot be asked"
            f" ({self.reason})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRestored(Event):
    """The store of a shared quota answers again.

    Attributes:
        share: The name of the shared quota.
        store: Where it lives, without credentials.
    """

    share: str
    store: str

    def __str__(self) -> str:
        return f"the quota {self.share!r} is shared again: {self.store} answers"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaDisagreement(Event):
    """A member of the share that started later was given another quota, which now applies.

    Attributes:
        share: The name of the shared quota.
        mine: Requests per second that this process was given.
        theirs: Requests per second that apply.
    """

    share: str
    mine: float
    theirs: float

    def __str__(self) -> str:
        return (
            f"the members of the quota {self.share!r} disagree: {self.theirs:.3g} requests/s are in force, not"
            f" {self.mine:.3g}, as the member says that started last"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFinished(Event):
    """A call left the stack with a response (its body may still be arriving) or with an error.

    Attributes:
        status: the status code of the response; None after an error.
        error: the name of the error's class; None after a response.
        attempts: How often the request was sent, or was about to be.
        seconds: Time since `CallStarted`.
    """

    status: int | None = None
    error: str | None = None
    attempts: int = 1
    seconds: float

    def __str__(self) -> str:
        again = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.call}: {_outcome(self.status, self.error, self.seconds)}{again}"


def _outcome(status: int | None, error: str | None, seconds: float) -> str:
    return f"{error} after {seconds:.3g} s" if error else f"{status} in {seconds:.3g} s"
