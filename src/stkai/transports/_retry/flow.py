"""Tries again what may succeed the next time, waits as long as the server asks, and gives up in time.

The last response is returned, and the last error raised, itself. tenacity runs the loop, from the second attempt on:
the first one nearly always succeeds and pays nothing for it.
"""

import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httpx

from ..._clock import unique_key
from ..._errors import ConfigurationError
from ..._events import RetryScheduled
from ..._families import alike
from ..._lazy import import_whole
from .._base import AsyncLayerTransport, LayerBase, LayerTransport
from .._call import PACED, Attempt, can_resend, copy_request
from .._context import Context
from .._layer import Layer
from .._operations import Close, Drain, Flow, Read, Sleep, Until
from .._options import UNSET
from .policy import RetryPolicy, Send

if TYPE_CHECKING:
    import tenacity

_RETRIED_ABOVE: Final = "x-stainless-retry-count"
"""The header in which the SDKs made by Stainless (OpenAI's, Anthropic's) count their own retries."""

_LOOKS: Final = 100
"""Requests that are searched for it: an SDK sends it with every one."""


class _RetryFlow(LayerBase):
    """The layer `retry`, for both drivers."""

    name = "retry"
    policy: RetryPolicy
    _looks = _LOOKS

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        call = attempt.call
        options = call.options
        policy = self.policy if options.retry is UNSET else options.retry
        seconds = (policy or self.policy).deadline
        if seconds is not None and options.deadline is UNSET:
            call = call.within(seconds)
            attempt = attempt.within(call)
            assert call.deadline is not None
            yield Until(call.deadline)
        if self._looks:
            self._look_above(request)
        if policy is None:
            return (yield from self.forward(request, attempt))
        key = policy.idempotency_header
        if key is not None and key not in request.headers:
            headers = [*request.headers.raw, (key.encode(), unique_key().encode())]
            request = copy_request(request, headers=type(request.headers)(headers))
        if policy.budget is not None:
            policy.budget.deposit(self.context.clock.monotonic())
        if not can_resend(request):
            return (yield from self.forward(request, attempt))
        try:
            if call.buffered:
                response = yield from self._once(request, attempt, policy)
            else:
                response = yield from self.forward(request, attempt)
        except Exception as error:
            if not isinstance(error, alike(httpx.TransportError)):
                raise
            loop = _Loop(policy, self.context, request, attempt)
            loop.state.set_exception((type(error), error, error.__traceback__))
        else:
            if policy.is_final(response):
                return response
            try:
                loop = _Loop(policy, self.context, request, attempt)
            except BaseException:  # tenacity is imported here.
                yield Close(response)
                raise
            loop.state.set_result(response)
            loop.response = response
        return (yield from self._again(request, loop))

    def _once(self, request: httpx.Request, attempt: Attempt, policy: RetryPolicy) -> Flow:
        """One attempt; with the whole body where that is an answer which the caller wants whole."""
        response = yield from self.forward(request, attempt)
        if attempt.call.buffered and policy.is_final(response):
            try:
                yield Read(response)
            except BaseException:
                yield Close(response)
                raise
        return response

    def _again(self, request: httpx.Request, loop: "_Loop") -> Flow:
        state, tenacity = loop.state, loop.tenacity
        try:
            while True:
                do = loop.retrying.iter(retry_state=state)
                if isinstance(do, tenacity.DoAttempt):
                    loop.attempt = loop.attempt.again()
                    try:
                        loop.response = yield from self._once(request, loop.attempt, loop.policy)
                    except alike(httpx.TransportError):
                        info: Any = sys.exc_info()
                        state.set_exception(info)
                        del info
                    else:
                        state.set_result(loop.response)
                elif isinstance(do, tenacity.DoSleep):
                    response, loop.response = loop.response, None
                    if response is not None:
                        yield Drain(response)
                    state.prepare_for_next_attempt()
                    if do:
                        yield Sleep(float(do))
                        loop.attempt.record.backed_off += float(do)
                else:
                    answer: httpx.Response = do
                    return answer
        except BaseException:
            if loop.response is not None:
                yield Close(loop.response)
            raise
        finally:
            loop.forget()
            del state

    def _look_above(self, request: httpx.Request) -> None:
        """Warn once where an SDK above this stack retries as well."""
        self._looks -= 1
        count = request.headers.get(_RETRIED_ABOVE)
        if count is not None:
            self._looks = _LOOKS  # An SDK is there: go on looking.
        if count in {None, "", "0"}:
            return
        self._looks = 0
        warnings.warn(
            "an SDK above this stack retries as well, so that each call is tried up to (its retries + 1) * (ours + 1)"
            " times: set max_retries=0 on the SDK's client, or retry=None on the stack",
            stacklevel=2,
        )


class _Loop:
    """The attempts of one call after the first: what tenacity asks, and what it is told.

    Attributes:
        response: the last one, as long as it is neither returned nor discarded.
    """

    def __init__(
        self, policy: RetryPolicy, context: Context, request: httpx.Request, attempt: Attempt
    ) -> None:
        self.tenacity = tenacity = import_whole("tenacity")
        self.policy, self.context, self.attempt = policy, context, attempt
        self.response: httpx.Response | None = None
        self._sent = Send.of(request, policy)
        self._seconds = 0.0
        # It never stops on its own, and knows no type of failure.
        self.retrying = tenacity.Retrying(retry=self.goes_on, wait=lambda _: self._seconds)
        self.retrying.begin()
        self.state = tenacity.RetryCallState(self.retrying, fn=None, args=(), kwargs={})

    def goes_on(self, state: "tenacity.RetryCallState") -> bool:
        """Whether there is another attempt after the one in `state`, and after how long."""
        context, policy, attempt = self.context, self.policy, self.attempt
        error = state.outcome.exception() if state.outcome else None
        response = self.response
        paced = response is not None and PACED in response.extensions
        failure = policy.failure_of(response, error, context.clock.utcnow(), paced=paced, sent=self._sent)
        if failure is None:
            return False
        now = context.clock.monotonic()
        seconds = policy.delay(failure, state.attempt_number, attempt.call.time_left(now), context.random())
        if seconds is None or (policy.budget is not None and not policy.budget.withdraw(now)):
            return False
        self._seconds = seconds
        event = RetryScheduled(call=attempt.info, attempt=attempt.number, delay=seconds, cause=failure.cause)
        context.emit(event)
        return True

    def forget(self) -> None:
        """Let go of tenacity's objects: they hold each other, and the error, whose traceback holds them."""
        self.state.outcome = None
        self.retrying.iter_state.reset()
        del self.retrying, self.state


class RetryTransport(_RetryFlow, LayerTransport):
    """Sends again, as the policy says; a response that is not returned is closed before the wait.

    A body that can be sent only once (a generator, a file) is sent once, and its outcome returned.

    Raises:
        ConfigurationError: `policy` is no `RetryPolicy`.
    """

    def __init__(
        self, inner: httpx.BaseTransport, policy: RetryPolicy | None = None, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = _checked(policy)


class AsyncRetryTransport(_RetryFlow, AsyncLayerTransport):
    """Sends again, as the policy says; a response that is not returned is closed before the wait.

    A body that can be sent only once (a generator, a file) is sent once, and its outcome returned.

    Raises:
        ConfigurationError: `policy` is no `RetryPolicy`.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: RetryPolicy | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = _checked(policy)


def retry(policy: RetryPolicy | None = None) -> Layer:
    """The layer `retry`, for a `StackBuilder`."""
    policy = _checked(policy)
    return Layer(
        "retry", partial(RetryTransport, policy=policy), partial(AsyncRetryTransport, policy=policy), policy
    )


def _checked(policy: RetryPolicy | None) -> RetryPolicy:
    """The policy, or the default one."""
    if policy is None:
        return RetryPolicy()
    if not isinstance(policy, RetryPolicy):
        msg = f"a retry layer needs a stkai.RetryPolicy, not {policy!r}"
        raise ConfigurationError(msg)
    return policy
