"""The clients that people hold: three verbs over any transport, and a complete `httpx.Response` back.

They know no cookies, no redirects and no second auth flow; whoever needs these mounts the same transport into an
`httpx.Client`.
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from ._errors import ConfigurationError, InvalidArgumentError, ServerSideRateLimitError
from ._options import UNSET, RequestOptions, Unset
from .transports._base import CALL, Call, Context

if TYPE_CHECKING:
    from .transports._retry import RetryPolicy

    Retry = RetryPolicy | Unset | None

Headers = Mapping[str, str] | None
Seconds = float | Unset | None


class StreamedResponse(httpx.Response):
    """The response of `post_stream`: its body arrives while you iterate; close it, or use it in a `with` block."""

    _call: Call
    _context: Context

    def _bind(self, call: Call, context: Context) -> Self:
        self._call, self._context = call, context
        return self

    def close(self) -> None:
        super().close()
        self._stop_the_watch()

    async def aclose(self) -> None:
        await super().aclose()
        self._stop_the_watch()

    def _stop_the_watch(self) -> None:
        if not hasattr(self, "_elapsed"):
            self.elapsed = timedelta(seconds=self._context.clock.monotonic() - self._call.started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class HttpClient:
    """GET, POST and streamed POST over a transport; safe to share between threads. Close it, or use a `with` block.

    A subclass may instead override `get` and `post`, and `post_stream` if it can stream; it needs no transport then.

    Args:
        transport: usually a stack, from `build_transport` or a `StackBuilder`. Only a subclass with verbs of its own
            can do without.

    Raises:
        ConfigurationError: the transport is not a sync one.
    """

    _transport: httpx.BaseTransport | None = None

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        brings_its_own_verbs = type(self).post is not HttpClient.post
        if transport is None and brings_its_own_verbs:
            return
        if not isinstance(transport, httpx.BaseTransport):
            msg = (
                f"HttpClient needs an httpx.BaseTransport, such as stkai.build_transport(), not {transport!r}"
            )
            raise ConfigurationError(msg)
        self._transport = transport

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests."""
        if self._transport is None:
            msg = f"{type(self).__name__} has no transport: override its verbs, or call super().__init__(transport)"
            raise NotImplementedError(msg)
        return self._transport

    def get(
        self,
        url: str,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> httpx.Response:
        """Send a GET request and read the answer.

        Args:
            url: absolute.
            headers: added to the default ones.
            timeout: seconds that connecting, writing and each read may take.
            retry: a policy for this call, or None to send it once.
            deadline: seconds that the whole call may take.
            max_wait_time: seconds that each attempt may wait for a permit.

        Raises:
            InvalidArgumentError: (a ValueError and AssertionError) a bad URL, timeout or option.
            httpx.TransportError: the request failed; of stkai's own there are AuthenticationError,
                TokenAcquisitionTimeoutError, ServerSideRateLimitError (a 429 under the adaptive limiter, after retry)
                and DeadlineExceededError.
        """
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        return self._send("GET", url, None, headers, timeout, options)

    def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body, and read the answer; the rest is as for `get`."""
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        return self._send("POST", url, data, headers, timeout, options)

    def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> httpx.Response:
        """Like `post`, but the body arrives while you iterate over the response.

        The response is also a context manager; leaving it early gives the connection back. Once it has been handed up,
        nothing is retried, and the deadline no longer counts.

        Raises:
            NotImplementedError: a subclass that brings its own verbs, and does not stream.
        """
        if self._transport is None:
            msg = f"{type(self).__name__} does not support streaming: override post_stream"
            raise NotImplementedError(msg)
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        context = _context_of(self._transport)
        request, call = _prepare("POST", url, data, headers, timeout, options, context, buffered=False)
        try:
            inner = self._transport.handle_request(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        response = _streamed(inner, request, call, context)
        if _is_refused(response, call):
            with response:
                response.read()
            raise ServerSideRateLimitError(response, request=request)
        return response

    def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        context = _context_of(self.transport)
        request, call = _prepare(method, url, data, headers, timeout, options, context, buffered=True)
        try:
            response = self.transport.handle_request(request)
            try:
                response.read()
            finally:
                response.close()
        except httpx.RequestError as error:
            error.request = request
            raise
        return _finish(response, request, call, context)

    def close(self) -> None:
        """Close the transport, and with it all connections."""
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        if self._transport is not None:
            self._transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self._transport is not None:
            self._transport.__exit__(exc_type, exc_value, traceback)


class AsyncHttpClient:
    """GET, POST and streamed POST over an async transport, on asyncio and trio. Close it, or use `async with`.

    Args:
        transport: usually a stack, from `build_async_transport` or a `StackBuilder`.

    Raises:
        ConfigurationError: the transport is not an async one.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        if not isinstance(transport, httpx.AsyncBaseTransport):
            msg = f"AsyncHttpClient needs an httpx.AsyncBaseTransport (build_async_transport()), not {transport!r}"
            raise ConfigurationError(msg)
        self._transport = transport

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport that sends the requests."""
        return self._transport

    async def get(
        self,
        url: str,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> httpx.Response:
        """Send a GET request and read the answer; as `HttpClient.get`."""
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        return await self._send("GET", url, None, headers, timeout, options)

    async def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body, and read the answer; as `HttpClient.post`."""
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        return await self._send("POST", url, data, headers, timeout, options)

    async def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        *,
        retry: "Retry" = UNSET,
        deadline: Seconds = UNSET,
        max_wait_time: Seconds = UNSET,
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate; as `HttpClient.post_stream`, with `async with`."""
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        context = _context_of(self._transport)
        request, call = _prepare("POST", url, data, headers, timeout, options, context, buffered=False)
        try:
            inner = await self._transport.handle_async_request(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        response = _streamed(inner, request, call, context)
        if _is_refused(response, call):
            async with response:
                await response.aread()
            raise ServerSideRateLimitError(response, request=request)
        return response

    async def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        context = _context_of(self._transport)
        request, call = _prepare(method, url, data, headers, timeout, options, context, buffered=True)
        try:
            response = await self._transport.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            error.request = request
            raise
        return _finish(response, request, call, context)

    async def aclose(self) -> None:
        """Close the transport, and with it all connections."""
        await self._transport.aclose()

    async def close(self) -> None:
        """The same as `aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)


_NO_CONTEXT = Context()


def _context_of(transport: object) -> Context:
    """The context of the stack's outermost layer, so that the client and the stack read one clock."""
    context = getattr(transport, "context", None)
    return context if isinstance(context, Context) else _NO_CONTEXT


@cache
def _default_headers() -> httpx.Headers:
    """What httpx itself sends: the content codings depend on what is installed."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        return client.headers


def _prepare(
    method: str,
    url: str,
    data: Any,
    headers: Headers,
    timeout: float,
    options: RequestOptions,
    context: Context,
    *,
    buffered: bool,
) -> tuple[httpx.Request, Call]:
    target = check_url(url)
    limits = check_timeout(timeout)
    merged = _default_headers().copy()
    merged.update(headers)
    extensions: dict[str, Any] = {"timeout": limits}
    call = extensions[CALL] = Call(options, extensions, context.clock.monotonic(), buffered=buffered)
    try:
        return httpx.Request(method, target, headers=merged, json=data, extensions=extensions), call
    except (TypeError, ValueError) as error:
        msg = f"data must be JSON-serializable and headers strings: {error}"
        raise InvalidArgumentError(msg) from error


def check_url(url: str) -> httpx.URL:
    """The URL, if it is absolute.

    Raises:
        InvalidArgumentError: it is not.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        msg = f"url must be an absolute URL such as https://api.example.com/v1, not {url!r}: {error}"
        raise InvalidArgumentError(msg) from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        msg = f"url must be an absolute URL such as https://api.example.com/v1, not {url!r}"
        raise InvalidArgumentError(msg)
    return parsed


def check_timeout(timeout: float | httpx.Timeout) -> dict[str, float | None]:
    """The timeout in the form in which wires take it.

    Raises:
        InvalidArgumentError: it is not a positive number of seconds.
    """
    if isinstance(timeout, httpx.Timeout):
        return timeout.as_dict()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        msg = f"timeout must be a positive number of seconds, not {timeout!r}"
        raise InvalidArgumentError(msg)
    return dict.fromkeys(("connect", "read", "write", "pool"), timeout)


def _streamed(
    inner: httpx.Response, request: httpx.Request, call: Call, context: Context
) -> StreamedResponse:
    response = StreamedResponse(
        inner.status_code,
        headers=inner.headers,
        stream=inner.stream,
        extensions=inner.extensions,
        request=request,
    )
    call.finish(response, context.clock.monotonic())
    return response._bind(call, context)  # noqa: SLF001 - the class is this module's own


def _is_refused(response: httpx.Response, call: Call) -> bool:
    """Whether the adaptive limiter reported a 429 that remains after retry."""
    return call.paced and response.status_code == httpx.codes.TOO_MANY_REQUESTS


def _finish(response: httpx.Response, request: httpx.Request, call: Call, context: Context) -> httpx.Response:
    now = context.clock.monotonic()
    call.finish(response, now)
    response.request = request
    response.elapsed = timedelta(seconds=now - call.started)
    if _is_refused(response, call):
        raise ServerSideRateLimitError(response, request=request)
    return response
