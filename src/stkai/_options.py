"""What a caller sets for one request, and what it learns of it afterwards."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from ._errors import InvalidArgumentError

if TYPE_CHECKING:
    from .transports._retry.transport import RetryPolicy


class _Unset(Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""Says that an argument was not given, where None has a meaning of its own."""

Unset = Literal[_Unset.UNSET]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOptions:
    """Options of one request; pass them as `extensions={"stkai": RequestOptions(...)}` on any httpx client.

    What is not given keeps the stack's own value; None turns it off.

    Attributes:
        retry: the retry policy of this call; None sends it once.
        deadline: seconds that the whole call may take, with all attempts, waits and token fetches.
        max_wait_time: seconds that each attempt may wait for a permit; None waits as long as it takes.
    """

    retry: "RetryPolicy | Unset | None" = UNSET
    deadline: float | Unset | None = UNSET
    max_wait_time: float | Unset | None = UNSET

    def __post_init__(self) -> None:
        for name in ("deadline", "max_wait_time"):
            value = getattr(self, name)
            if value is UNSET or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                msg = f"{name} must be a positive number of seconds, or None for no limit, not {value!r}"
                raise InvalidArgumentError(msg)
        if self.retry is not UNSET and self.retry is not None:
            from .transports._retry.transport import RetryPolicy

            if not isinstance(self.retry, RetryPolicy):
                msg = f"retry must be a stkai.RetryPolicy, or None to send once, not {self.retry!r}"
                raise InvalidArgumentError(msg)


@dataclass(slots=True)
class CallRecord:
    """How a call went; `response.extensions["stkai"]`.

    Attributes:
        attempts: how often the request was sent, or was about to be.
        queued: seconds spent waiting for permits.
        backed_off: seconds spent waiting between attempts.
        authenticating: seconds spent waiting for an access token.
        on_wire: seconds that were none of these: sending, the server's work, and the answer until it was handed up.
    """

    attempts: int = 1
    queued: float = 0.0
    backed_off: float = 0.0
    authenticating: float = 0.0
    on_wire: float = 0.0
