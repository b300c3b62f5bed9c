"""Tries again what may succeed the next time, waits as long as the server asks, and gives up in time.

The policy is `RetryPolicy`. Failures are classified by whether the server may have acted on the request:

    not sent   no connection, no permit                    another attempt is always safe
    refused    408, 429, 503                               another attempt is always safe
    unknown    a broken connection, a timeout, 500, 502…   another attempt may repeat what was done

The last response is returned, and the last error raised, itself. tenacity runs the loop, from the second attempt on:
the first one nearly always succeeds and pays nothing for it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from .._clock import unique_key
from .._errors import ConfigurationError, RetryableError, TokenAcquisitionTimeoutError
from .._events import RetryScheduled
from .._options import UNSET
from ._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request
from ._retry_after import retry_after

if TYPE_CHECKING:
    import tenacity

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNKNOWN = (
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
)
_REFUSED_STATUS = frozenset({408, 429, 503})
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that may be worth another: what it was, and what was said about when.

    Attributes:
        cause: in words, for people.
        acted: whether the server may have acted on the request.
        asked: seconds for which somebody asked us to stay away, or None.
        needed: seconds that the next attempt will take at least, or it need not begin.
        paced: a limiter below keeps the wait.
    """

    cause: str
    acted: bool
    asked: float | None = None
    needed: float = 0.0
    paced: bool = False


class RetryPolicy:
    """Which failures are tried again, how often, and after how long. Immutable; seconds everywhere.

    Args:
        max_retries: attempts after the first.
        initial_delay: the first delay; each further one is twice as long. Up to a quarter is added as jitter.
        max_delay: the longest such delay.
        retry_on_status_codes: answers that are worth another attempt.
        max_retry_after: the longest `Retry-After` that is waited for; a longer one is handed to the caller at once.
        deadline: for the whole call, with all attempts and waits; None for no limit.
        retry_unknown: whether to repeat a request on which the server may have acted.
        idempotency_header: a header, usually `Idempotency-Key`, that carries one key for all attempts of a call.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    __slots__ = (
        "deadline",
        "idempotency_header",
        "initial_delay",
        "max_delay",
        "max_retries",
        "max_retry_after",
        "retry_on_status_codes",
        "retry_unknown",
    )

    def __init__(
        self,
        max_retries: int = 3,
        *,
        initial_delay: float = 0.5,
        max_delay: float = 60.0,
        retry_on_status_codes: Iterable[int] = (408, 429, 500, 502, 503, 504),
        max_retry_after: float = 60.0,
        deadline: float | None = None,
        retry_unknown: bool = True,
        idempotency_header: str | None = None,
    ) -> None:
        self.max_retries = int(_require_at_least_zero("max_retries", max_retries))
        if self.max_retries != max_retries:
            msg = f"max_retries must be a whole number, not {max_retries!r}"
            raise ConfigurationError(msg)
        self.initial_delay = _require_at_least_zero("initial_delay", initial_delay)
        self.max_delay = _require_at_least_zero("max_delay", max_delay)
        self.max_retry_after = _require_at_least_zero("max_retry_after", max_retry_after)
        self.retry_on_status_codes = frozenset(retry_on_status_codes)
        if not all(isinstance(code, int) and 100 <= code <= 599 for code in self.retry_on_status_codes):
            msg = f"retry_on_status_codes must be HTTP status codes, not {sorted(map(str, retry_on_status_codes))}"
            raise ConfigurationError(msg)
        if deadline is not None and not (_require_at_least_zero("deadline", deadline) > 0):
            msg = f"deadline must be a positive number of seconds, or None, not {deadline!r}"
            raise ConfigurationError(msg)
        self.deadline = deadline
        self.retry_unknown = retry_unknown
        self.idempotency_header = idempotency_header

    def __repr__(self) -> str:
        return "RetryPolicy(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"

    def backoff(self, attempt: int, chance: float = 0.0) -> float:
        """Seconds between attempt number `attempt` (from 1) and the next, where nobody asked for more."""
        base = self.initial_delay * 2.0 ** min(attempt - 1, 64)
        return min(base, self.max_delay / (1 + _JITTER)) * (1 + _JITTER * chance)

    def delay(self, failure: Failure, attempt: int, left: float, chance: float = 0.0) -> float | None:
        """Seconds until the next attempt, or None where there is none: it would not help, or there is no time for it.

        Never less than was asked for; jitter is added on top. `left` is what remains until the deadline.
        """
        if attempt > self.max_retries or (failure.acted and not self.retry_unknown):
            return None
        asked = failure.asked or 0.0
        if asked > self.max_retry_after:
            return None
        backoff = self.backoff(attempt, chance)
        delay = 0.0 if failure.paced else max(asked + backoff - self.backoff(attempt), backoff)
        return None if max(delay, asked, failure.needed) >= left else delay

    def is_final(self, response: httpx.Response) -> bool:
        """Whether a response is an answer, not a failure."""
        return response.status_code not in self.retry_on_status_codes

    def failure_of(
        self,
        response: httpx.Response | None,
        error: BaseException | None,
        now: datetime,
        *,
        paced: bool = False,
    ) -> Failure | None:
        """What an attempt's outcome, one of the two, says about another; None where it is final."""
        if error is not None:
            return _error_failure(error)
        if response is None or self.is_final(response):
            return None
        cause = f"{response.status_code} {response.reason_phrase}".strip()
        acted = response.status_code not in _REFUSED_STATUS
        return Failure(cause, acted, retry_after(response.headers, now), paced=paced)


def _error_failure(error: BaseException) -> Failure | None:
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, TokenAcquisitionTimeoutError):
        return Failure(cause, acted=False, asked=error.retry_after, needed=error.required - error.waited)
    if isinstance(error, (RetryableError, *_NOT_SENT)):
        return Failure(cause, acted=False)
    return Failure(cause, acted=True) if isinstance(error, _UNKNOWN) else None


def _require_at_least_zero(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        msg = f"{name} must be a finite number of at least 0, not {value!r}"
        raise ConfigurationError(msg)
    return value


def _begin(
    request: httpx.Request, call: Call, default: RetryPolicy
) -> tuple[RetryPolicy | None, httpx.Request]:
    """The policy of this call, None where it is sent once, and the request as every attempt sends it."""
    policy = default if call.options.retry is UNSET else call.options.retry
    if policy is None:
        return None, request
    if policy.deadline is not None and call.options.deadline is UNSET:
        call.deadline = call.started + policy.deadline
    key = policy.idempotency_header
    if key is not None and key not in request.headers:
        request = copy_request(
            request, headers=httpx.Headers([*request.headers.raw, (key.encode(), unique_key().encode())])
        )
    return policy if can_resend(request) else None, request


class _Loop:
    """The attempts of one call after the first: what tenacity asks, and what it is told."""

    def __init__(
        self, policy: RetryPolicy, context: Context, call: Call, first: httpx.Response | Exception
    ) -> None:
        self.policy, self.context, self.call = policy, context, call
        self.first: httpx.Response | Exception | None = first
        self.discarded: httpx.Response | None = None
        self.seconds = 0.0

    def take_first(self) -> httpx.Response | None:
        """The outcome of the attempt that was made before the loop began; None from then on."""
        first, self.first = self.first, None
        if isinstance(first, Exception):
            raise first
        if first is None:
            self.call.record.attempts += 1
            self.call.paced = False
        return first

    def goes_on(self, state: "tenacity.RetryCallState") -> bool:
        """Whether there is another attempt after the one in `state`, and after how long."""
        outcome, call, context = state.outcome, self.call, self.context
        assert outcome is not None
        error = outcome.exception()
        response = outcome.result() if error is None else None
        failure = self.policy.failure_of(response, error, context.clock.utcnow(), paced=call.paced)
        if failure is None:
            return False
        left = call.time_left(context.clock.monotonic())
        seconds = self.policy.delay(failure, state.attempt_number, left, context.random())
        if seconds is None:
            return False
        self.seconds, self.discarded = seconds, response
        context.emit(RetryScheduled(attempt=state.attempt_number, delay=seconds, cause=failure.cause))
        return True

    def arguments(self) -> dict[str, Any]:
        """How to build tenacity's loop: it never stops on its own, and knows no type of failure."""
        return {"retry": self.goes_on, "wait": lambda _: self.seconds}


class RetryTransport(LayerTransport):
    """Sends again, as the policy says; a response that is not returned is closed before the wait.

    A body that can be sent only once (a generator, a file) is sent once, and its outcome returned.
    """

    name = "retry"

    def __init__(
        self, inner: httpx.BaseTransport, policy: RetryPolicy | None = None, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy or RetryPolicy()

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        policy, request = _begin(request, call, self.policy)
        if policy is None:
            return self._attempt(request, call)
        first: httpx.Response | Exception
        try:
            first = self._attempt(request, call)
        except httpx.TransportError as error:
            first = error
        else:
            if policy.is_final(first):
                return first
        return self._again(request, _Loop(policy, self.context, call, first))

    def _again(self, request: httpx.Request, loop: _Loop) -> httpx.Response:
        import tenacity

        def attempt() -> httpx.Response:
            return loop.take_first() or self._attempt(request, loop.call)

        def sleep(seconds: float) -> None:
            if loop.discarded is not None:
                loop.discarded.close()
            if seconds:
                self.context.clock.sleep(seconds)
                loop.call.record.backed_off += seconds

        return tenacity.Retrying(sleep=sleep, **loop.arguments())(attempt)

    def _attempt(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = self.forward(request, call)
        if call.buffered:
            try:
                response.read()
            except BaseException:
                response.close()
                raise
        return response


class AsyncRetryTransport(AsyncLayerTransport):
    """Sends again, as the policy says; a response that is not returned is closed before the wait.

    A body that can be sent only once (a generator, a file) is sent once, and its outcome returned.
    """

    name = "retry"

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: RetryPolicy | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = policy or RetryPolicy()

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        policy, request = _begin(request, call, self.policy)
        if policy is None:
            return await self._attempt(request, call)
        first: httpx.Response | Exception
        try:
            first = await self._attempt(request, call)
        except httpx.TransportError as error:
            first = error
        else:
            if policy.is_final(first):
                return first
        return await self._again(request, _Loop(policy, self.context, call, first))

    async def _again(self, request: httpx.Request, loop: _Loop) -> httpx.Response:
        import tenacity

        async def attempt() -> httpx.Response:
            return loop.take_first() or await self._attempt(request, loop.call)

        async def sleep(seconds: float) -> None:
            if loop.discarded is not None:
                await loop.discarded.aclose()
            if seconds:
                await self.context.clock.asleep(seconds)
                loop.call.record.backed_off += seconds

        return await tenacity.AsyncRetrying(sleep=sleep, **loop.arguments())(attempt)

    async def _attempt(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = await self.forward(request, call)
        if call.buffered:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response


def retry(policy: RetryPolicy | None = None) -> Layer:
    """The layer `retry`, for a `StackBuilder`."""
    policy = policy or RetryPolicy()
    return Layer(
        "retry", partial(RetryTransport, policy=policy), partial(AsyncRetryTransport, policy=policy), policy
    )
