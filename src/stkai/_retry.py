"""`Retrying` of StackSpot's API reference, which repeats a block of your own code.

As in the retry layer (`transports/_retry/`), a `RetryPolicy` decides.
"""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import httpx

from ._checks import argument_errors
from ._clock import Clock
from ._errors import (
    ClientSideRateLimitError,
    InvalidArgumentError,
    MaxRetriesExceededError,
    RetryableError,
    TokenAcquisitionTimeoutError,
    describe,
    visible,
)
from ._families import alike, as_httpx, httpx_kind
from ._log import logger
from ._process import raise_interrupt
from .transports._context import Context
from .transports._failures import TRANSIENT, Failure
from .transports._retry.policy import RETRY_ON_STATUS_CODES, RetryPolicy

__all__ = ["MaxRetriesExceededError", "RetryableError", "Retrying"]

_DEFAULTS: Final = RetryPolicy()


class Retrying:
    """Repeats a block until it succeeds: iterate with `for` or `async for`, and run the block in each attempt.

        for attempt in Retrying(max_retries=3):
            with attempt:
                response = client.post(url, data)
                response.raise_for_status()
                return response.json()

    The loop ends with the first attempt that raises nothing. An error that is not worth retrying is raised at once,
    unchanged, as is one whose server asks for a longer wait than `max_retry_after`. One object may serve many loops,
    even in several threads.

    Args:
        max_retries: attempts after the first; with 0, every error is raised unchanged.
        initial_delay: seconds before the second attempt; each further delay is twice as long. Jitter is added.
        retry_on_status_codes: status codes to retry when `raise_for_status()` of httpx or requests raises them.
        retry_on_exceptions: other exceptions to retry, together with their counterparts in requests. Every
            `RetryableError` is retried.
        skip_retry_on_exceptions: exceptions that are never retried.
        logger_prefix: precedes each line in the log.
        max_delay: the longest delay in seconds, unless the server asks for more.
        max_retry_after: the longest `Retry-After` to wait for, in seconds.
        deadline: seconds after which no further attempt begins; None for no limit.
        clock: where time comes from.
        random: draws a number in [0, 1), for jitter.

    Raises:
        InvalidArgumentError: (a ValueError and AssertionError) an argument is out of range.
        MaxRetriesExceededError: (raised by the loop) the last attempt failed as well; see `last_exception`.
    """

    def __init__(
        self,
        max_retries: int = _DEFAULTS.max_retries,
        initial_delay: float = _DEFAULTS.initial_delay,
        retry_on_status_codes: tuple[int, ...] = RETRY_ON_STATUS_CODES,
        retry_on_exceptions: tuple[type[Exception], ...] = TRANSIENT,
        skip_retry_on_exceptions: tuple[type[Exception], ...] = (),
        logger_prefix: str = "",
        *,
        max_delay: float = _DEFAULTS.max_delay,
        max_retry_after: float = _DEFAULTS.max_retry_after,
        deadline: float | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        with argument_errors():
            self.policy = RetryPolicy(
                max_retries,
                initial_delay=initial_delay,
                max_delay=max_delay,
                retry_on_status_codes=retry_on_status_codes,
                max_retry_after=max_retry_after,
                deadline=deadline,
            )
        if not initial_delay:
            raise InvalidArgumentError("initial_delay must be more than 0 seconds")
        self.retry_on_exceptions = _exceptions("retry_on_exceptions", retry_on_exceptions)
        self.skip_retry_on_exceptions = _exceptions("skip_retry_on_exceptions", skip_retry_on_exceptions)
        self.logger_prefix = logger_prefix
        self.max_retries, self.initial_delay = self.policy.max_retries, self.policy.initial_delay
        self.retry_on_status_codes = retry_on_status_codes
        self.context = Context(clock=clock, random=random)

    @property
    def max_attempts(self) -> int:
        """Maximum number of attempts."""
        return self.policy.max_retries + 1

    @property
    def enabled(self) -> bool:
        """Whether failures are retried."""
        return self.policy.max_retries > 0

    def __iter__(self) -> "_AttemptLoop":
        return _AttemptLoop(self)

    __aiter__ = __iter__

    def failure_of(self, error: Exception) -> Failure | None:
        """Classify an error for a retry; None if it is final."""
        if isinstance(error, alike(*self.skip_retry_on_exceptions)):
            return None
        cause = visible(describe(error))
        if isinstance(error, ClientSideRateLimitError):
            # Unlike the retry layer, the reference retries when its own limiter refuses.
            if isinstance(error, TokenAcquisitionTimeoutError):
                needed = error.required - error.waited
                return Failure(cause, acted=False, requested_wait=error.retry_after, needed=needed)
            return Failure(cause, acted=False)
        theirs = httpx_kind(error)
        response = getattr(error, "response", None)
        now = self.context.clock.utcnow()
        if response is not None and theirs:
            return self.policy.failure_of(as_httpx(response), None, now)
        if isinstance(error, alike(httpx.HTTPStatusError, RetryableError)):
            return self.policy.failure_of(None, error, now)
        if isinstance(error, alike(*self.retry_on_exceptions)) or (
            theirs and issubclass(theirs, self.retry_on_exceptions)
        ):
            return Failure(cause, acted=True)
        return None


class RetryingAttempt:
    """One attempt of a `Retrying` loop: a context manager that swallows failures that will be retried."""

    __slots__ = ("_loop", "attempt_number")

    def __init__(self, loop: "_AttemptLoop", number: int) -> None:
        self._loop = loop
        self.attempt_number = number
        """1 for the first."""

    @property
    def max_attempts(self) -> int:
        """Maximum number of attempts."""
        return self._loop.retrying.max_attempts

    @property
    def is_last_attempt(self) -> bool:
        """Whether this is the last attempt."""
        return self.attempt_number >= self.max_attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        raise_interrupt(error)
        return self._loop.will_retry(error, self.attempt_number)


class _AttemptLoop:
    """The attempts of one loop, in a thread or in a task."""

    def __init__(self, retrying: Retrying) -> None:
        self.retrying = retrying
        self._context = retrying.context
        self._start = self._context.now()
        self._attempts = 0
        self._delay: float | None = 0.0
        """Seconds until the next attempt; None if there is none, because the last one did not fail."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RetryingAttempt:
        if self._delay is None:
            raise StopIteration
        if self._attempts:
            self._context.clock.sleep(self._delay)
        return self._begin()

    __aiter__ = __iter__

    async def __anext__(self) -> RetryingAttempt:
        if self._delay is None:
            raise StopAsyncIteration
        if self._attempts:
            await self._context.clock.asleep(self._delay)
        return self._begin()

    def _begin(self) -> RetryingAttempt:
        self._delay = None
        self._attempts += 1
        return RetryingAttempt(self, self._attempts)

    def will_retry(self, error: Exception, number: int) -> bool:
        """Whether to retry after attempt `number`, and when; raises a MaxRetriesExceededError after the last one."""
        retrying, policy, context = self.retrying, self.retrying.policy, self._context
        failure = retrying.failure_of(error)
        if failure is None or not retrying.enabled:
            return False
        prefix = f"{retrying.logger_prefix} | " if retrying.logger_prefix else ""
        if number > policy.max_retries:
            msg = f"{prefix}all {number} attempts failed, the last by {failure.cause}"
            raise MaxRetriesExceededError(msg, error) from error
        spent = context.clock.monotonic() - self._start
        left = math.inf if policy.deadline is None else policy.deadline - spent
        seconds = policy.delay(failure, number, left, context.random())
        if seconds is None:
            return False
        text = "%sattempt %d of %d failed by %s; the next one starts in %.1f s"
        logger.warning(text, prefix, number, retrying.max_attempts, failure.cause, seconds)
        self._delay = seconds
        return True


def _exceptions(name: str, given: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    if isinstance(given, tuple) and all(
        isinstance(kind, type) and issubclass(kind, Exception) for kind in given
    ):
        return given
    raise InvalidArgumentError(f"{name} must be a tuple of exception classes, not {given!r}")
