"""The options that a caller sets for one request, and the record that it gets afterwards."""

from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack

from .._checks import AT_LEAST_ZERO, POSITIVE_SECONDS, check_choice, check_number
from .._errors import InvalidArgumentError
from .._lazy import LateModule

if TYPE_CHECKING:
    from ._retry import policy
else:
    policy = LateModule("stkai.transports._retry.policy")

OPTIONS: Final = "stkai"
"""The extension that holds `RequestOptions` on a request and the `CallRecord` on a response."""


class _Unset(Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "..."


UNSET: Final = _Unset.UNSET
"""Marks an argument that was not given, where None has a meaning of its own."""

Unset = Literal[_Unset.UNSET]


Priority = Literal["normal", "low"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOptions:
    """Options of one request. Pass them as `extensions={"stkai": RequestOptions(...)}` with any httpx client.

    A field that is not given keeps the stack's own value; None turns it off.

    Attributes:
        retry: the retry policy of this call; None sends it once. It needs a retry layer: a stack built with
            `retry=None` ignores it.
        deadline: seconds that the whole call may take, with all attempts, waits, redirects and token fetches.
        max_wait_time: seconds that the call may wait for permits, all attempts together; None waits as long as
            necessary.
        cost: units that the call takes from each limit with `max_cost`; by default the result of that limit's own
            `cost`, or else of the stack's.
        priority: "normal", the default, or "low", which is sent when no normal request waits, and gets at least one
            permit in eleven.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    retry: "policy.RetryPolicy | Unset | None" = UNSET
    deadline: float | Unset | None = UNSET
    max_wait_time: float | Unset | None = UNSET
    cost: float | Unset | None = UNSET
    priority: Priority | Unset = UNSET

    def __post_init__(self) -> None:
        for name in ("deadline", "max_wait_time"):
            value = getattr(self, name)
            if value is not UNSET and value is not None:
                hint = (
                    ", or None for no limit"
                    if name == "deadline"
                    else " (0.001 for no wait), or None for no limit"
                )
                number = check_number(name, value, POSITIVE_SECONDS, hint, error=InvalidArgumentError)
                object.__setattr__(self, name, number)
        # Check for a method, so that `import stkai` need not import the class.
        is_policy = hasattr(type(self.retry), "is_repeatable")
        if self.retry is not UNSET and self.retry is not None and not is_policy:
            msg = f"retry must be a stkai.RetryPolicy, or None to send once, not {self.retry!r}"
            raise InvalidArgumentError(msg)
        if self.cost is not UNSET and self.cost is not None:
            object.__setattr__(self, "cost", check_cost(self.cost))
        if self.priority is not UNSET:
            check_choice("priority", self.priority, "normal", "low", error=InvalidArgumentError)

    def over(self, others: "RequestOptions") -> "RequestOptions":
        """These options, with those of `others` for the fields that are not given here."""
        if self is NO_OPTIONS:
            return others
        mine = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(others, **{name: value for name, value in mine.items() if value is not UNSET})


def check_cost(cost: Any) -> float:
    """The cost, if it is a finite number of at least 0."""
    return float(check_number("cost", cost, AT_LEAST_ZERO, error=InvalidArgumentError))


NO_OPTIONS: Final = RequestOptions()
"""The options of a call that sets none."""


class CallOptions(TypedDict, total=False):
    """The fields of `RequestOptions` as keywords of the clients' methods."""

    retry: "policy.RetryPolicy | None"
    deadline: float | None
    max_wait_time: float | None
    cost: float | None
    priority: Priority


def options_of(verb: str, given: CallOptions) -> RequestOptions:
    """The options of one call, checked."""
    for name in given:
        if name not in CallOptions.__annotations__:
            raise TypeError(f"{verb}() got an unexpected keyword argument {name!r}{_advice(verb, name)}")
    return RequestOptions(**given)


def _advice(verb: str, name: str) -> str:
    """What to do instead of passing an argument of httpx."""
    if name == "params":
        return "; put it into the URL"
    if name == "json" and verb != "get":
        return "; pass the body as data=..."
    if name in {"json", "data", "content", "files"}:
        what = "a GET has no body here" if verb == "get" else "data=... sends JSON"
        return f"; {what}, and an httpx client over the stack sends any: httpx.Client(transport=client.transport)"
    return ""


ENTERED: Final[ContextVar[tuple[tuple["_Block", RequestOptions], ...]]] = ContextVar(
    "stkai.entered", default=()
)
"""The `with options(...)` blocks around a call, innermost last, each with the options in force inside it."""


class _Block:
    """Sets options while entered; can be entered any number of times, in any number of threads and tasks."""

    def __init__(self, options: RequestOptions) -> None:
        self._options = options

    def __enter__(self) -> None:
        entered = ENTERED.get()
        options = self._options.over(entered[-1][1]) if entered else self._options
        ENTERED.set((*entered, (self, options)))

    def __exit__(self, *_: object) -> None:
        entered = ENTERED.get()
        # Generators may end in a different order, or be closed in a different context.
        for place in reversed(range(len(entered))):
            if entered[place][0] is self:
                ENTERED.set(entered[:place])
                for later in entered[place + 1 :]:
                    later[0].__enter__()
                return


def options(**given: Unpack[CallOptions]) -> _Block:
    """Set options for every call in this context: `with stkai.options(deadline=10.0, priority="low"): ...`.

    Useful for calls that an SDK makes. Each field applies unless the call itself sets it, and overrides enclosing
    blocks. A task inherits its parent's options, and so does a new thread on free-threaded Python; on others, it starts
    with none. The result can be kept, and entered as often as you like.

    Raises:
        TypeError: there is no such option.
        InvalidArgumentError: a value is out of range.
    """
    return _Block(options_of("options", given))


@dataclass(slots=True)
class CallRecord:
    """How a call went; found in `response.extensions["stkai"]`.

    Attributes:
        attempts: how often the request was sent, or was about to be.
        queued: seconds spent waiting for permits.
        backed_off: seconds spent waiting between attempts.
        authenticating: seconds spent waiting for an access token.
        on_wire: all other seconds: waiting for a connection, sending, the server's work, and the answer until it was
            returned.
    """

    attempts: int = 1
    queued: float = 0.0
    backed_off: float = 0.0
    authenticating: float = 0.0
    on_wire: float = 0.0


def record(response: Any) -> CallRecord:
    """The record of the call that a response answers: how many attempts it took, and what it waited for.

    Args:
        response: what a client over a stack returned, of httpx or httpx2, or an SDK's `with_raw_response` or stream.

    Raises:
        InvalidArgumentError: (a ValueError) the response did not pass through a stack.
    """
    inner = getattr(response, "http_response", getattr(response, "response", response))
    found = getattr(inner, "extensions", {}).get(OPTIONS)
    if not isinstance(found, CallRecord):
        # Without its repr: an object of an SDK may hold a long answer.
        raise InvalidArgumentError(
            f"a value of type {type(response).__name__} has no CallRecord: it did not pass through a stack of stkai,"
            " or is not a response; from an SDK, record() takes a stream, or what with_raw_response returns"
        )
    return found
