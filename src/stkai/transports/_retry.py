"""Tries again what may succeed the next time, waits as long as the server asks, and gives up in time.

The policy is `RetryPolicy`. Failures are classified by whether the server may have acted on the request:

    not sent   no connection, no permit                    another attempt is always safe
    refused    408, 429, 503                               another attempt is always safe
    unknown    a broken connection, a timeout, 500, 502…   another attempt may repeat what was done

The last response is returned, and the last error raised, itself. tenacity runs the loop, from the second attempt on:
the first one nearly always succeeds and pays nothing for it.
"""

import math
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from .._clock import unique_key
from .._errors import ConfigurationError, DeadlineExceededError, RetryableError, TokenAcquisitionTimeoutError
from .._events import RetryScheduled
from .._options import UNSET
from ._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request
from ._retry_after import retry_after

if TYPE_CHECKING:
    import tenacity

# A proxy error comes before the tunnel stands, so that nothing has gone through it.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_UNKNOWN = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
_REFUSED_STATUS = frozenset({408, 429, 503})
_JITTER = 0.25
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, section 5.1."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that may be worth another: what it was, and what was said about when.

    Attributes:
        cause: in words, for people.
        acted: whether the server may have acted on the request.
        asked: seconds for which somebody asked us to stay away, or None.
        needed: seconds after which the request's turn comes, whenever it comes back until then.
        paced: a limiter below keeps the wait.
    """

    cause: str
    acted: bool
    asked: float | None = None
    needed: float = 0.0
    paced: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are tried again, how often, and after how long. Immutable; seconds everywhere.

    Attributes:
        max_retries: attempts after the first.
        initial_delay: the first delay; each further one is twice as long. Up to a quarter is added as jitter.
        max_delay: the longest such delay.
        retry_on_status_codes: answers that are worth another attempt.
        max_retry_after: the longest `Retry-After` that is waited for; a longer one is handed to the caller at once.
        deadline: for the whole call, with all attempts and waits; None for no limit.
        retry_unknown: whether to repeat a request on which the server may have acted.
        idempotency_header: a header, usually `Idempotency-Key`, that carries one key for all attempts of a call.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    max_retries: int = 3
    _: KW_ONLY
    initial_delay: float = 0.5
    max_delay: float = 60.0
    retry_on_status_codes: Collection[int] = (408, 429, 500, 502, 503, 504)
    max_retry_after: float = 60.0
    deadline: float | None = None
    retry_unknown: bool = True
    idempotency_header: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_retries", "initial_delay", "max_delay", "max_retry_after"):
            _require_at_least_zero(name, getattr(self, name))
        if self.max_retries != int(self.max_retries):
            msg = f"max_retries must be a whole number, not {self.max_retries!r}"
            raise ConfigurationError(msg)
        codes = _status_codes(self.retry_on_status_codes)
        object.__setattr__(self, "retry_on_status_codes", codes)
        if self.deadline is not None and not _require_at_least_zero("deadline", self.deadline):
            msg = f"deadline must be a positive number of seconds, or None, not {self.deadline!r}"
            raise ConfigurationError(msg)
        if not isinstance(self.retry_unknown, bool):
            msg = f"retry_unknown must be True or False, not {self.retry_unknown!r}"
            raise ConfigurationError(msg)
        header = self.idempotency_header
        if header is not None and not (isinstance(header, str) and _FIELD_NAME.fullmatch(header)):
            msg = f"idempotency_header must be the name of a header, such as Idempotency-Key, not {header!r}"
            raise ConfigurationError(msg)

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
        if asked > self.max_retry_after or max(asked, failure.needed) >= left:
            return None
        if failure.paced:
            return 0.0
        backoff = self.backoff(attempt, chance)
        # Everyone whom a full queue turns away is told the same: spread over the time for which nobody would be
        # served any earlier, they do not all come back at once for the one place that is free by then.
        jitter = max(backoff - self.backoff(attempt), chance * (failure.needed - asked))
        delay = max(asked + jitter, backoff)
        return delay if delay < left else None

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
    if isinstance(error, DeadlineExceededError) or not isinstance(error, _UNKNOWN):
        return None
    return Failure(cause, acted=True)


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


def _checked(policy: RetryPolicy | None) -> RetryPolicy:
    """The policy, or the default one."""
    if policy is None:
        return RetryPolicy()
    if not isinstance(policy, RetryPolicy):
        msg = f"a retry layer needs a stkai.RetryPolicy, not {policy!r}"
        raise ConfigurationError(msg)
    return policy


def _begin(
    request: httpx.Request, call: Call, default: RetryPolicy
) -> tuple[RetryPolicy | None, httpx.Request]:
    """The policy of this call, None where it is sent once, and the request as every attempt sends it."""
    options = call.options
    policy = default if options.retry is UNSET else options.retry
    deadline = (policy or default).deadline
    if deadline is not None and options.deadline is UNSET:
        call.deadline = call.started + deadline
    if policy is None:
        return None, request
    key = policy.idempotency_header
    if key is not None and key not in request.headers:
        headers = [*request.headers.raw, (key.encode(), unique_key().encode())]
        request = copy_request(request, headers=httpx.Headers(headers))
    return policy if can_resend(request) else None, request


class _Loop:
    """The attempts of one call after the first: what tenacity asks, and what it is told.

    Attributes:
        first: the outcome of the attempt that was made before the loop began, until that is told.
        response: the last one, as long as it is neither returned nor discarded.
    """

    def __init__(
        self, policy: RetryPolicy, context: Context, call: Call, first: httpx.Response | Exception
    ) -> None:
        self.policy, self.context, self.call = policy, context, call
        self.first: httpx.Response | Exception | None = first
        self.response = first if isinstance(first, httpx.Response) else None
        self._seconds = 0.0

    def take_first(self) -> httpx.Response | None:
        """The outcome of the first attempt; None from then on: time for another."""
        first, self.first = self.first, None
        if isinstance(first, Exception):
            raise first
        if first is None:
            self.call.record.attempts += 1
            self.call.paced = False
        return first

    def take_response(self) -> httpx.Response | None:
        """The response that nobody will want any more."""
        response, self.response = self.response, None
        return response

    def goes_on(self, state: "tenacity.RetryCallState") -> bool:
        """Whether there is another attempt after the one in `state`, and after how long."""
        call, context = self.call, self.context
        error = state.outcome.exception() if state.outcome else None
        failure = self.policy.failure_of(self.response, error, context.clock.utcnow(), paced=call.paced)
        if failure is None:
            return False
        left = call.time_left(context.clock.monotonic())
        seconds = self.policy.delay(failure, state.attempt_number, left, context.random())
        if seconds is None:
            return False
        self._seconds = seconds
        context.emit(RetryScheduled(attempt=state.attempt_number, delay=seconds, cause=failure.cause))
        return True

    def arguments(self) -> dict[str, Any]:
        """How to build tenacity's loop: it never stops on its own, and knows no type of failure."""
        return {"retry": self.goes_on, "wait": lambda _: self._seconds}


class RetryTransport(LayerTransport):
    """Sends again, as the policy says; a response that is not returned is closed before the wait.

    A body that can be sent only once (a generator, a file) is sent once, and its outcome returned.
    """

    name = "retry"

    def __init__(
        self, inner: httpx.BaseTransport, policy: RetryPolicy | None = None, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = _checked(policy)

    def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        policy, request = _begin(request, call, self.policy)
        if policy is None:
            return self._attempt(request, call)
        try:
            response = self._attempt(request, call)
        except httpx.TransportError as error:
            loop = _Loop(policy, self.context, call, error)
        else:
            if policy.is_final(response):
                return response
            loop = _Loop(policy, self.context, call, response)
        return self._again(request, loop)

    def _again(self, request: httpx.Request, loop: _Loop) -> httpx.Response:
        def attempt() -> httpx.Response:
            loop.response = loop.take_first() or self._attempt(request, loop.call)
            return loop.response

        def sleep(seconds: float) -> None:
            _discard(loop.take_response())
            if seconds:
                self.context.clock.sleep(seconds)
                loop.call.record.backed_off += seconds

        try:
            import tenacity

            return tenacity.Retrying(sleep=sleep, **loop.arguments())(attempt)
        except BaseException:
            _discard(loop.take_response())
            raise

    def _attempt(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = self.forward(request, call)
        if call.buffered:
            try:
                response.read()
            except BaseException:
                _discard(response)
                raise
        return response


def _discard(response: httpx.Response | None) -> None:
    if response is not None:
        with suppress(Exception):  # Nobody wants it any more, however it ends.
            response.close()


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
        self.policy = _checked(policy)

    async def handle_call(self, request: httpx.Request, call: Call) -> httpx.Response:
        policy, request = _begin(request, call, self.policy)
        if policy is None:
            return await self._attempt(request, call)
        try:
            response = await self._attempt(request, call)
        except httpx.TransportError as error:
            loop = _Loop(policy, self.context, call, error)
        else:
            if policy.is_final(response):
                return response
            loop = _Loop(policy, self.context, call, response)
        return await self._again(request, loop)

    async def _again(self, request: httpx.Request, loop: _Loop) -> httpx.Response:
        async def attempt() -> httpx.Response:
            loop.response = loop.take_first() or await self._attempt(request, loop.call)
            return loop.response

        async def sleep(seconds: float) -> None:
            await _adiscard(loop.take_response())
            if seconds:
                await self.context.clock.asleep(seconds)
                loop.call.record.backed_off += seconds

        try:
            import tenacity

            return await tenacity.AsyncRetrying(sleep=sleep, **loop.arguments())(attempt)
        except BaseException:
            await _adiscard(loop.take_response())
            raise

    async def _attempt(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = await self.forward(request, call)
        if call.buffered:
            try:
                await response.aread()
            except BaseException:
                await _adiscard(response)
                raise
        return response


async def _adiscard(response: httpx.Response | None) -> None:
    if response is not None:
        with suppress(Exception):  # Nobody wants it any more, however it ends.
            await response.aclose()


def retry(policy: RetryPolicy | None = None) -> Layer:
    """The layer `retry`, for a `StackBuilder`."""
    policy = _checked(policy)
    return Layer(
        "retry", partial(RetryTransport, policy=policy), partial(AsyncRetryTransport, policy=policy), policy
    )
