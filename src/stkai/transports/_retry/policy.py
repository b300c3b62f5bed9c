"""What to retry, and when: `RetryPolicy`; and how much of the traffic may be retries: `RetryBudget`.

Failures are classified by whether the server may have acted on the request:

    not sent     no connection                            a retry is always safe
    refused      408, 429, 503                            a retry is always safe
    unknown      a broken connection, 500, 502            a retry may repeat what was already done
    unanswered   a read timeout, 504, an answer that      it probably would: a POST or PATCH without an idempotency
                 cannot be parsed                         key is not sent again, unless the policy says so

With httpx's own transports and ours, a connection error means "not sent". Other transports may raise it for connections
that broke later, so there it is "unknown".
"""

import math
import threading
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any, Final

import httpx

from ..._checks import (
    AT_LEAST_ZERO,
    COUNT,
    POSITIVE_SECONDS,
    STATUS,
    Numbers,
    can_carry_key,
    check_flag,
    check_number,
    safe_repr,
)
from ..._errors import ConfigurationError, visible
from ..._families import alike, as_httpx
from ..._headers import has_field
from ..._process import begin_in_each_process
from .._failures import Failure, failure_of_error, forbids_retry, is_unanswered
from .._retry_after import retry_after

RETRY_ON_STATUS_CODES: Final = (408, 429, 500, 502, 503, 504)
"""Status codes that are retried by default."""

REFUSED_STATUS: Final = frozenset({408, 429, 503})
"""Status codes that prove that the server did not act on the request."""

_GATEWAY_TIMEOUT: Final = 504
_JITTER: Final = 0.25
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be repeated, whatever happened to the first attempt (RFC 9110, section 9.2.2)."""

_KEY: Final = b"idempotency-key"
"""The header by which servers recognise a repeated request; draft-ietf-httpapi-idempotency-key-header."""


_HALF_LIFE: Final = 10.0
"""Seconds in which the credit from calls halves, and the longest time that earns credit; Finagle's TTL."""

_LASTING_CREDIT: Final = 10.0
"""The credit, in retries, that does not decay: otherwise, a program with one call a minute would never have any."""

_ROUNDING: Final = 1e-9


class RetryBudget:
    """Limits retries to a fraction of the calls. Share the object between policies and stacks to share the budget.

    A retry costs 1. Each call adds `ratio`, and each second adds `min_per_second`; the first 10 seconds' worth is there
    from the start. When less than 1 is left, failures are returned to the caller at once.

    Args:
        ratio: retries per call, from 0 to 1.
        min_per_second: retries per second that are allowed even if there are few calls; at most 10 s of them add up.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(self, ratio: float = 0.2, min_per_second: float = 10) -> None:
        self.ratio = check_number(
            "ratio", ratio, Numbers("a number from 0 to 1, the retries per call", high=1)
        )
        self.min_per_second = check_number("min_per_second", min_per_second, AT_LEAST_ZERO)
        self._most = self._steady = _HALF_LIFE * self.min_per_second
        self._earned = 0.0
        self._at = math.inf
        begin_in_each_process(self, RetryBudget._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # A signal handler that sends must not hang here.

    def deposit(self, now: float) -> None:
        """Add the credit of one call; `now` is in seconds of the clock."""
        with self._lock:
            self._advance(now)
            self._earned += self.ratio

    def withdraw(self, now: float) -> bool:
        """Pay for a retry; returns whether there was enough credit."""
        with self._lock:
            self._advance(now)
            if self._steady + self._earned < 1 - _ROUNDING:
                return False
            paid = min(self._steady, 1.0)
            self._steady -= paid
            self._earned -= 1 - paid
            return True

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = now if self._at == math.inf else max(self._at, now)
        self._steady = min(self._most, self._steady + self.min_per_second * passed)
        if self._earned > _LASTING_CREDIT:
            self._earned = max(_LASTING_CREDIT, self._earned * 0.5 ** (passed / _HALF_LIFE))

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryBudget, (self.ratio, self.min_per_second)

    @safe_repr
    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio:g}, min_per_second={self.min_per_second:g})"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures to retry, how often, and after how long. Immutable; all times in seconds.

    Attributes:
        max_retries: attempts after the first. Early refusals under an adaptive limiter are not counted.
        initial_delay: the first delay; it doubles each time. Up to a quarter is added as jitter.
        max_delay: the longest such delay.
        retry_on_status_codes: status codes to retry; kept as a sorted tuple.
        max_retry_after: the longest `Retry-After` to wait for; a response that asks for more is returned at once.
            If a limiter handles the wait, the limiter decides instead.
        deadline: for the whole call, with all attempts and waits; None for no limit.
        retry_unknown: whether to repeat a request that the server may have acted on.
        retry_timeouts: whether to repeat a POST or PATCH without an idempotency key that was not answered: its read
            timeout passed, a gateway's did (504), or the answer cannot be parsed. The server has probably acted on it.
        idempotency_header: a header, usually `Idempotency-Key`, that carries one key for all attempts of a call.
        budget: limits retries to a fraction of the calls; share the object to share the budget.
        trust_connect_errors: whether a ConnectError or ConnectTimeout of your own wire means that nothing was sent, as
            it does with httpx's transports.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_retries: int = 3
    _: KW_ONLY
    initial_delay: float = 0.5
    max_delay: float = 60.0
    retry_on_status_codes: Collection[int] = RETRY_ON_STATUS_CODES
    max_retry_after: float = 60.0
    deadline: float | None = None
    retry_unknown: bool = True
    retry_timeouts: bool = False
    idempotency_header: str | None = None
    budget: RetryBudget | None = None
    trust_connect_errors: bool = False

    def __post_init__(self) -> None:
        keep = partial(object.__setattr__, self)  # It is frozen.
        keep("max_retries", check_number("max_retries", self.max_retries, COUNT))
        for name in ("initial_delay", "max_delay", "max_retry_after"):
            keep(name, check_number(name, getattr(self, name), AT_LEAST_ZERO))
        keep("retry_on_status_codes", _status_codes(self.retry_on_status_codes))
        if self.deadline is not None:
            hint = ", or None for no limit"
            keep("deadline", check_number("deadline", self.deadline, POSITIVE_SECONDS, hint))
        for name in ("retry_unknown", "retry_timeouts", "trust_connect_errors"):
            check_flag(name, getattr(self, name))
        header = self.idempotency_header
        if header is not None and not can_carry_key(header):
            raise ConfigurationError(
                "idempotency_header must be the name of a header that carries nothing else, such as Idempotency-Key,"
                f" not {header!r}"
            )
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            msg = f"budget must be a stkai.RetryBudget, such as RetryBudget(ratio=0.2), or None, not {self.budget!r}"
            raise ConfigurationError(msg)

    @safe_repr
    def __repr__(self) -> str:
        """Show only what differs from the defaults."""
        changed = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                changed.append(f"{each.name}={value!r}")
        return f"{type(self).__qualname__}({', '.join(changed)})"

    def backoff(self, attempt: int, chance: float = 0.0) -> float:
        """Seconds between attempt number `attempt` (from 1) and the next, if no longer delay was requested."""
        base = self.initial_delay * 2.0 ** min(attempt - 1, 64)
        return min(base, self.max_delay / (1 + _JITTER)) * (1 + _JITTER * chance)

    def delay(self, failure: Failure, attempt: int, left: float, chance: float = 0.0) -> float | None:
        """Seconds until the next attempt; None for no further attempt, because it would not help, or there is no time.

        Never less than the server asked for; jitter is added on top. `left` is the time until the deadline.
        """
        if attempt > self.max_retries or (failure.acted and not self.retry_unknown):
            return None
        asked = failure.requested_wait or 0.0
        if max(asked, failure.needed) >= left:
            return None
        if failure.paced:
            return 0.0
        if asked > self.max_retry_after:
            return None
        least = self.backoff(attempt)
        backoff = least * (1 + _JITTER * chance)
        # A full queue gives the same time to all requests that it refuses. Spread their retries over the time during
        # which none of them would be admitted anyway, so that they do not all compete for the first free place.
        jitter = max(backoff - least, chance * (failure.needed - asked))
        delay = max(asked + jitter, backoff)
        return delay if delay < left else None

    def is_final(self, response: httpx.Response) -> bool:
        """Whether a response is a final answer, and not a failure to retry."""
        return response.status_code not in self.retry_on_status_codes

    def is_repeatable(self, request: httpx.Request) -> bool:
        """Whether sending it twice has the same effect as once: its method is idempotent, or it carries a key."""
        headers, own = request.headers, self.idempotency_header
        return (
            request.method in _IDEMPOTENT or has_field(headers, _KEY) or (own is not None and own in headers)
        )

    def failure_of(
        self,
        response: httpx.Response | None,
        error: BaseException | None,
        now: datetime,
        *,
        paced: bool = False,
        repeatable: bool = True,
        sound_wire: bool = True,
    ) -> Failure | None:
        """Classify the outcome of an attempt, a response or an error, for a retry; None if it is final.

        `repeatable` is what `is_repeatable` says of the request. With a `sound_wire`, connection errors mean that
        nothing was sent.
        """
        may_repeat = repeatable or self.retry_timeouts
        if error is not None:
            if isinstance(error, alike(httpx.HTTPStatusError)):
                response = as_httpx(error.response)
            elif not may_repeat and is_unanswered(error):
                return None
            else:
                return failure_of_error(error, now, sound_wire=sound_wire or self.trust_connect_errors)
        if response is None or self.is_final(response):
            return None
        if response.status_code == _GATEWAY_TIMEOUT and not may_repeat:
            return None
        if forbids_retry(response.headers):
            return None
        cause = visible(f"{response.status_code} {response.reason_phrase}".strip())
        acted = response.status_code not in REFUSED_STATUS
        return Failure(cause, acted, retry_after(response.headers, now), paced=paced)


def _status_codes(given: Collection[int]) -> tuple[int, ...]:
    try:
        codes = tuple(sorted(set(given)))
        valid = all(STATUS.low <= code <= STATUS.high for code in codes)
    except TypeError:
        valid = False
    if not valid:
        msg = f"retry_on_status_codes must be HTTP status codes, such as (429, 503), not {given!r}"
        raise ConfigurationError(msg)
    return codes
