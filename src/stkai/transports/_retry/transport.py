"""Tries again what may succeed the next time, waits as long as the server asks, and gives up in time.

The policy is `RetryPolicy`. The last response is returned, and the last error raised, itself. tenacity runs the loop,
from the second attempt on: the first one nearly always succeeds and pays nothing for it.
"""

from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from ..._clock import unique_key
from ..._errors import ConfigurationError
from ..._families import alike
from ..._options import UNSET
from .._base import AsyncLayerTransport, Call, Context, Layer, LayerTransport, can_resend, copy_request
from .policy import RetryPolicy

if TYPE_CHECKING:
    import tenacity

__all__ = ["AsyncRetryTransport", "RetryPolicy", "RetryTransport", "retry"]


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
        request = copy_request(request, headers=type(request.headers)(headers))
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
        self.response = None if isinstance(first, Exception) else first
        self._seconds = 0.0

    def take_first(self) -> httpx.Response | None:
        """The outcome of the first attempt; None from then on: time for another."""
        first, self.first = self.first, None
        if isinstance(first, Exception):
            raise first
        if first is None:
            self.call.record.attempts += 1
            self.call.paced = False
            self.call.broken = None
        return first

    def take_response(self) -> httpx.Response | None:
        """The response that nobody will want any more."""
        response, self.response = self.response, None
        return response

    def goes_on(self, state: "tenacity.RetryCallState") -> bool:
        """Whether there is another attempt after the one in `state`, and after how long."""
        call, context = self.call, self.context
        response, error = self.response, state.outcome.exception() if state.outcome else None
        if call.broken is not None and not self.policy.is_final(call.broken):
            # Its head was there: what that says holds, whatever became of the body.
            response, error = call.broken, None
        failure = self.policy.failure_of(response, error, context.clock.utcnow(), paced=call.paced)
        if failure is None:
            return False
        left = call.time_left(context.clock.monotonic())
        seconds = self.policy.delay(failure, state.attempt_number, left, context.random())
        if seconds is None:
            return False
        self._seconds = seconds
        from ..._events import RetryScheduled

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
        except alike(httpx.TransportError) as error:
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
        return self._load(request, call) if call.buffered else self.forward(request, call)

    def _load(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = self.forward(request, call)
        try:
            response.read()
        except BaseException:
            call.broken = response
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
        except alike(httpx.TransportError) as error:
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

    def _attempt(self, request: httpx.Request, call: Call) -> Coroutine[Any, Any, httpx.Response]:
        return self._load(request, call) if call.buffered else self.forward(request, call)

    async def _load(self, request: httpx.Request, call: Call) -> httpx.Response:
        response = await self.forward(request, call)
        try:
            await response.aread()
        except BaseException:
            call.broken = response
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
