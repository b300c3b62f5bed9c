"""What to retry, and when: `RetryPolicy`.

Failures are classified by whether the server may have acted on the request:

    not sent   no connection                               a retry is always safe
    refused    408, 429, 503                               a retry is always safe
    unknown    a broken connection, a timeout, 500, 502…   a retry may repeat what was already done
"""

import math
import re
import ssl
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Final, NamedTuple, Self

import httpx

from ..._errors import (
    ClientSideRateLimitError,
    ConfigurationError,
    DeadlineExceededError,
    RetryableError,
    ServerSideRateLimitError,
)
from ..._families import alike
from .budget import RetryBudget
from .retry_after import retry_after

# A proxy error comes before the tunnel is open, so the server has seen nothing.
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_UNKNOWN: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
RETRY_ON_STATUS_CODES: Final = (408, 429, 500, 502, 503, 504)
"""Status codes that are retried by default."""

_REFUSED_STATUS: Final = frozenset({408, 429, 503})
_JITTER: Final = 0.25
_PROXY_REFUSES: Final = re.compile(r"4\d\d\b|.*(username|password|credential|auth)", re.IGNORECASE)
"""What httpx's ProxyError says if the proxy wants other credentials, or rejects us altogether."""

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, section 5.1."""

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be repeated whatever happened to the first attempt; RFC 9110, section 9.2.2."""

_KEY: Final = "idempotency-key"
"""The header that lets servers recognise a repeated request; draft-ietf-httpapi-idempotency-key-header."""


class Send(NamedTuple):
    """What retry knows about the request.

    Attributes:
        repeatable: the server gives a repeated request the same answer: its method is idempotent, or it has a key.
    """

    repeatable: bool

    @classmethod
    def of(cls, request: httpx.Request, policy: "RetryPolicy") -> Self:
        """Look at `request` and the policy's idempotency header."""
        headers, own = request.headers, policy.idempotency_header
        has_key = _KEY in headers or (own is not None and own in headers)
        return cls(has_key or request.method in _IDEMPOTENT)


class Failure(NamedTuple):
    """An attempt that may be worth a retry: what went wrong, and what was said about when to come back.

    Attributes:
        cause: for people to read.
        acted: whether the server may have acted on the request.
        asked: seconds for which somebody asked us to stay away, or None.
        needed: seconds until the request's turn; coming back earlier does not change it.
        paced: whether a limiter handles the wait and decides how long it is.
    """

    cause: str
    acted: bool
    asked: float | None = None
    needed: float = 0.0
    paced: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures to retry, how often, and after how long. Immutable; all times in seconds.

    Attributes:
        max_retries: attempts after the first.
        initial_delay: the first delay; it doubles each time. Up to a quarter is added as jitter.
        max_delay: the longest such delay.
        retry_on_status_codes: status codes to retry.
        max_retry_after: the longest `Retry-After` to wait for; a response that asks for more is returned at once.
            If a limiter handles the wait, the limiter decides instead.
        deadline: for the whole call, with all attempts and waits; None for no limit.
        retry_unknown: whether to repeat a request that the server may have acted on.
        retry_timeouts: whether to repeat a POST or PATCH without an idempotency key whose answer did not come within
            the read timeout. The server is probably still working on it.
        idempotency_header: a header, usually `Idempotency-Key`, that carries one key for all attempts of a call.
        budget: limits retries to a share of the calls; share the object to share the budget.

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

    def __post_init__(self) -> None:
        for name in ("max_retries", "initial_delay", "max_delay", "max_retry_after"):
            _require_at_least_zero(name, getattr(self, name))
        if not isinstance(self.max_retries, int):
            msg = f"max_retries must be a whole number, not {self.max_retries!r}"
            raise ConfigurationError(msg)
        codes = _status_codes(self.retry_on_status_codes)
        object.__setattr__(self, "retry_on_status_codes", codes)
        if self.deadline is not None and not _require_at_least_zero("deadline", self.deadline):
            msg = f"deadline must be a positive number of seconds, or None, not {self.deadline!r}"
            raise ConfigurationError(msg)
        for name in ("retry_unknown", "retry_timeouts"):
            if not isinstance(getattr(self, name), bool):
                msg = f"{name} must be True or False, not {getattr(self, name)!r}"
                raise ConfigurationError(msg)
        header = self.idempotency_header
        if header is not None and not (isinstance(header, str) and _FIELD_NAME.fullmatch(header)):
            msg = f"idempotency_header must be the name of a header, such as Idempotency-Key, not {header!r}"
            raise ConfigurationError(msg)
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            msg = f"budget must be a stkai.RetryBudget, such as RetryBudget(ratio=0.2), or None, not {self.budget!r}"
            raise ConfigurationError(msg)

    def backoff(self, attempt: int, chance: float = 0.0) -> float:
        """Seconds between attempt number `attempt` (from 1) and the next, if nobody asked for more."""
        base = self.initial_delay * 2.0 ** min(attempt - 1, 64)
        return min(base, self.max_delay / (1 + _JITTER)) * (1 + _JITTER * chance)

    def delay(self, failure: Failure, attempt: int, left: float, chance: float = 0.0) -> float | None:
        """Seconds until the next attempt, or None if there is none: it would not help, or there is no time for it.

        Never less than was asked for; jitter is added on top. `left` is the time until the deadline.
        """
        if attempt > self.max_retries or (failure.acted and not self.retry_unknown):
            return None
        asked = failure.asked or 0.0
        if max(asked, failure.needed) >= left:
            return None
        if failure.paced:
            return 0.0
        if asked > self.max_retry_after:
            return None
        backoff = self.backoff(attempt, chance)
        # A full queue tells everyone it turns away the same time. Spread the returns over the time in which nobody
        # would be served any earlier, so that they do not all come back at once for the one place that is free by then.
        jitter = max(backoff - self.backoff(attempt), chance * (failure.needed - asked))
        delay = max(asked + jitter, backoff)
        return delay if delay < left else None

    def is_final(self, response: httpx.Response) -> bool:
        """Whether a response is an answer and not a failure."""
        return response.status_code not in self.retry_on_status_codes

    def failure_of(
        self,
        response: httpx.Response | None,
        error: BaseException | None,
        now: datetime,
        *,
        paced: bool = False,
        sent: Send = Send(repeatable=True),  # noqa: B008 - immutable
    ) -> Failure | None:
        """What an attempt's outcome, a response or an error, says about a retry; None if it is final."""
        if isinstance(error, alike(httpx.HTTPStatusError)):
            response = error.response
        elif error is not None:
            if isinstance(error, alike(httpx.ReadTimeout)) and not (sent.repeatable or self.retry_timeouts):
                return None
            return _error_failure(error, now)
        if response is None or self.is_final(response):
            return None
        cause = f"{response.status_code} {response.reason_phrase}".strip()
        acted = response.status_code not in _REFUSED_STATUS
        return Failure(cause, acted, retry_after(response.headers, now), paced=paced)


def describe(error: BaseException) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _error_failure(error: BaseException, now: datetime) -> Failure | None:
    cause = describe(error)
    if isinstance(error, ServerSideRateLimitError) and isinstance(error.response, alike(httpx.Response)):
        return Failure(cause, acted=False, asked=retry_after(error.response.headers, now))
    # Our own limiter knows best: a caller who limits the wait wants to know.
    if isinstance(error, ClientSideRateLimitError | DeadlineExceededError) or _is_hopeless(error):
        return None
    if isinstance(error, alike(RetryableError, *NOT_SENT)):
        return Failure(cause, acted=False)
    return Failure(cause, acted=True) if isinstance(error, alike(*_UNKNOWN)) else None


def _is_hopeless(error: BaseException) -> bool:
    """Whether a retry would fail in the same way: a bad certificate, credentials that a proxy rejects."""
    if isinstance(error, alike(httpx.ProxyError)):
        return _PROXY_REFUSES.match(str(error)) is not None
    below: BaseException | None = error
    for _ in range(8):
        if isinstance(below, ssl.SSLCertVerificationError):
            return True
        below = below and (below.__cause__ or below.__context__)
    return False


def _require_at_least_zero(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        msg = f"{name} must be a finite number of at least 0, not {value!r}"
        raise ConfigurationError(msg)
    return value


def _status_codes(given: Collection[int]) -> frozenset[int]:
    try:
        codes = frozenset(given)
        valid = all(100 <= code <= 599 for code in codes)
    except TypeError:
        valid = False
    if not valid:
        msg = f"retry_on_status_codes must be HTTP status codes, such as (429, 503), not {given!r}"
        raise ConfigurationError(msg)
    return codes
