"""The clients of StackSpot's API reference that send through another client, with a limiter in between.

The other client serves as the wire of a stack: each request carries a function that calls its method.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import ModuleType
from typing import Any, Final, cast

import httpx

from ._checks import argument_errors, is_async
from ._client import AsyncHttpClient, Headers, HttpClient
from ._config.names import REFERENCE_METHODS
from ._errors import (
    ClientSideRateLimitError,
    ConfigurationError,
    RetryableError,
    ServerSideRateLimitError,
    TokenAcquisitionTimeoutError,
)
from ._families import HTTPX, alike, as_httpx, httpx_errors, original
from ._headers import SET_BY_CLIENTS, check_headers, copy_request
from ._process import raise_interrupt
from ._urls import absolute_url, request_url
from .transports._bodies import set_body, timeouts
from .transports._call import Call
from .transports._context import add_note
from .transports._layer_checks import signature_of
from .transports._layer_transport import LayerTransport
from .transports._limits.flow import AdaptiveTransport, TokenBucketTransport
from .transports._limits.quota_limiters import AimdLimiter, TokenBucket
from .transports._options import OPTIONS, UNSET, CallOptions, RequestOptions, options_of, record
from .transports._options import options as options_block
from .transports._retry.flow import RetryTransport

__all__ = [
    "AdaptiveRateLimitedHttpClient",
    "ClientSideRateLimitError",
    "HttpClient",
    "RetryableError",
    "ServerSideRateLimitError",
    "TokenAcquisitionTimeoutError",
    "TokenBucketRateLimitedHttpClient",
]

_MAX_WAIT_TIME: Final = 45.0  # Seconds that these clients let a request wait for its permit.
_SEND: Final = "stkai.send"  # The extension of a request that holds the function to call.

_ONCE: Final = RequestOptions(retry=None)  # Retries are made only if the call asks for them.


class _RateLimitedHttpClient(HttpClient):
    """A client around another one, with a limiter in between; GET requests are not limited.

    Attributes:
        delegate: the client that sends.
        max_requests: requests allowed in the window.
        time_window: seconds.
        max_wait_time: seconds that a request may wait for its permit, or None.
    """

    def __init__(
        self,
        delegate: HttpClient,
        layer: Callable[..., LayerTransport],
        limiter: TokenBucket | AimdLimiter,
    ) -> None:
        self.delegate = _checked(delegate)
        super().__init__(RetryTransport(layer(_DelegateWire(delegate), limiter)))
        quota: Any = limiter  # Both numbers are given.
        self.max_requests: float = quota.max_requests
        self.time_window: float = quota.time_window
        self.max_wait_time = limiter.max_wait_time

    def send(self, request: httpx.Request) -> Any:
        """Raise a NotImplementedError: the other client may have only `get` and `post`."""
        raise NotImplementedError(f"{type(self).__name__} has no send(): use get, post or post_stream")

    def _send(
        self, verb: str, url: str, data: Any, headers: Headers, timeout: float, options: CallOptions
    ) -> Any:
        self._open_entry()
        given = options_of(verb, options)
        method, body = ("GET", ()) if verb == "get" else ("POST", (data,))
        call = partial(getattr(self.delegate, verb), url, *body)
        request = _request(method, url, headers, timeout)
        around = Call.start(request, 0.0).options  # Those of a block of `stkai.options`.
        # Retries are made here, not by the other client; `_accepted_by` sees to that if the call has a policy.
        block = nullcontext() if around.retry is UNSET else options_block(retry=None)

        raised: list[Exception] = []  # What the last call of the other client raised.

        def send(changed: httpx.Request) -> Any:
            known = {*httpx.Headers(headers), *SET_BY_CLIENTS}
            added = {name: value for name, value in changed.headers.items() if name not in known}
            left = changed.extensions.get("timeout", {}).get("read", timeout)
            all_headers = {**(headers or {}), **added} if added else headers
            raised.clear()
            try:
                with block:
                    return call(headers=all_headers, timeout=left, **_accepted_by(call, options))
            except Exception as error:
                raised.append(error)
                raise

        asked = given.over(around).over(_ONCE)
        extensions = {**request.extensions, _SEND: send, OPTIONS: asked}
        try:
            response = self.transport.handle_request(copy_request(request, extensions=extensions))
        except httpx.RequestError as error:
            if any(error.__cause__ is each for each in raised):
                raise raised[0] from None  # It reaches the caller unchanged, of whichever package it is.
            raise
        else:
            if raised:  # The response came with it.
                raise raised[0]
        finally:
            raised.clear()  # The error refers to this frame.
        return self._outcome(request, response)

    def _outcome(self, request: httpx.Request, response: httpx.Response) -> Any:
        """Return what the other client returned."""
        return original(response)


class _DelegateWire(httpx.BaseTransport):
    """The innermost transport of a client around another one: makes the call that the request carries."""

    def __init__(self, delegate: HttpClient) -> None:
        self._delegate = delegate

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # This lets the retry layer recognise errors of requests; the caller sees the original.
        with httpx_errors(HTTPX):
            try:
                return as_httpx(request.extensions[_SEND](request))
            except Exception as error:
                answer = getattr(error, "response", None)
                if not isinstance(getattr(answer, "status_code", None), int):
                    raise
                return as_httpx(answer)

    def close(self) -> None:
        if hasattr(self._delegate, "close"):
            self._delegate.close()


class TokenBucketRateLimitedHttpClient(_RateLimitedHttpClient):
    """Sends no faster than `max_requests` per `time_window` seconds through another client.

    Args:
        delegate: the client that sends; any `HttpClient`, also one whose methods return a `requests.Response`. You get
            whatever they return.
        max_requests: requests allowed in the window.
        time_window: seconds.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.

    Raises:
        InvalidArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        delegate: HttpClient,
        max_requests: int,
        time_window: float,
        max_wait_time: float | None = _MAX_WAIT_TIME,
    ) -> None:
        with argument_errors():
            limiter = TokenBucket(
                max_requests, time_window, max_wait_time=max_wait_time, methods=REFERENCE_METHODS
            )
            super().__init__(delegate, TokenBucketTransport, limiter)


class AdaptiveRateLimitedHttpClient(_RateLimitedHttpClient):
    """Adapts its rate to the server's 429s: plain AIMD with the given factors, with one cut per congestion event.

    A 429 is raised as a ServerSideRateLimitError; the next request waits as long as the server asked. In windows of up
    to two seconds, a short wait holds it up only after a second 429.

    Args:
        delegate: the client that sends; any `HttpClient`, also one whose methods return a `requests.Response`. You get
            whatever they return.
        max_requests: requests allowed in the window.
        time_window: seconds.
        min_rate_floor: the fraction of the quota that the rate never falls below.
        penalty_factor: the fraction of the rate that a cut takes away.
        recovery_factor: the fraction of the quota that is regained per window.
        max_wait_time: seconds that a request may wait for its permit; None waits as long as necessary.

    Raises:
        InvalidArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        delegate: HttpClient,
        max_requests: int,
        time_window: float,
        min_rate_floor: float = 0.1,
        penalty_factor: float = 0.3,
        recovery_factor: float = 0.05,
        max_wait_time: float | None = _MAX_WAIT_TIME,
    ) -> None:
        with argument_errors():
            limiter = AimdLimiter(
                max_requests,
                time_window,
                min_rate_floor=min_rate_floor,
                penalty_factor=penalty_factor,
                recovery_factor=recovery_factor,
                max_wait_time=max_wait_time,
                methods=REFERENCE_METHODS,
            )
            super().__init__(delegate, AdaptiveTransport, limiter)
        self.min_rate_floor = min_rate_floor
        self.penalty_factor = penalty_factor
        self.recovery_factor = recovery_factor

    def _outcome(self, request: httpx.Request, response: httpx.Response) -> Any:
        is_refusal = request.method != "GET" and response.status_code == httpx.codes.TOO_MANY_REQUESTS
        if not is_refusal:
            return super()._outcome(request, response)
        answer = original(response)
        is_httpx = isinstance(answer, alike(httpx.Response))
        try:
            # Read the body, whichever package made the response; the refusal is reported even if that fails.
            with httpx_errors(HTTPX):
                _ = answer.read() if is_httpx else getattr(answer, "content", None)
        except alike(httpx.RequestError) as broken:
            raise_interrupt(broken)
            if is_httpx:
                set_body(answer, [])
        finally:
            if hasattr(answer, "close"):
                answer.close()
        error = ServerSideRateLimitError(answer, request=request)
        add_note(error, request.method, request.url.host, record(response).attempts)
        raise error


def _checked(delegate: Any) -> HttpClient:
    """Return the client if it has the methods of `HttpClient`; a requests session, for example, would send a form."""
    packages = {kind.__module__.partition(".")[0] for kind in type(delegate).__mro__}
    looks_right = not isinstance(delegate, type | ModuleType | AsyncHttpClient) and all(
        callable(method := getattr(delegate, verb, None)) and not is_async(method) for verb in ("get", "post")
    )
    is_other = not isinstance(delegate, HttpClient) and packages & {"requests", "httpx", "httpx2", "aiohttp"}
    if not looks_right or is_other:
        raise ConfigurationError(
            f"delegate must be an HttpClient, whose methods are get(url, headers, timeout) and post(url, data, headers,"
            f" timeout) with JSON as data, not {delegate!r}: derive a class from stkai.HttpClient with two methods that"
            " call your own client"
        )
    return cast("HttpClient", delegate)


def _request(verb: str, url: str, headers: Headers, timeout: float) -> httpx.Request:
    """The request that the layers see for a call to a method."""
    extensions = {"timeout": timeouts(timeout)} if isinstance(timeout, int | float) else None
    try:
        # The URL may contain credentials, which requests can handle.
        target = absolute_url(url)
    except ValueError:
        target = request_url(url)
    return httpx.Request(verb, target, headers=check_headers(headers), extensions=extensions)


def _accepted_by(method: Callable[..., Any], given: CallOptions) -> dict[str, Any]:
    """The options of a call that a method accepts, with `retry=None`: retries are made here, each with a permit."""
    if not given:
        return {}
    chosen = {name: None if name == "retry" else value for name, value in given.items()}
    parameters = signature_of(method).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in chosen.items() if takes_all or name in parameters}
