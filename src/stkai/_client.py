"""The clients that people hold: three verbs over any transport, and a complete `httpx.Response` back.

They know no cookies, no redirects and no second auth flow; whoever needs these mounts the same transport into an
`httpx.Client`.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from ._errors import ConfigurationError
from ._exchange import Exchange, StreamedResponse
from ._families import HTTPX, family_of_wire
from ._options import UNSET, RequestOptions, Unset

if TYPE_CHECKING:
    from .transports._retry.transport import RetryPolicy

    Retry = RetryPolicy | Unset | None

Headers = Mapping[str, str] | None
Seconds = float | Unset | None


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
        if not isinstance(transport, httpx.BaseTransport) or family_of_wire(transport) not in {None, HTTPX}:
            msg = (
                "HttpClient needs an httpx.BaseTransport on a wire of httpx, such as stkai.build_transport(),"
                f" not {transport!r}"
            )
            raise ConfigurationError(msg)
        self._transport = transport

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests."""
        if self._transport is None:
            msg = f"{type(self).__name__} has no transport: override this verb, or call super().__init__(transport)"
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
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate over the response.

        The response is also a context manager; leaving it early gives the connection back. Once it has been handed up,
        nothing is retried, and the deadline no longer counts.

        Raises:
            NotImplementedError: a subclass that brings its own verbs, and does not stream.
        """
        options = RequestOptions(retry=retry, deadline=deadline, max_wait_time=max_wait_time)
        transport = self.transport
        exchange = Exchange(transport, "POST", url, data, headers, timeout, options, buffered=False)
        with exchange:
            response = exchange.stream(exchange.send(transport))
            if not exchange.is_refused(response):
                return response
            with response:
                response.read()
        raise exchange.refusal(response)

    def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        transport = self.transport
        exchange = Exchange(transport, method, url, data, headers, timeout, options, buffered=True)
        with exchange:
            response = exchange.send(transport)
            try:
                response.read()
            finally:
                response.close()
        return exchange.finish(response)

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
        if not isinstance(transport, httpx.AsyncBaseTransport) or family_of_wire(transport) not in {
            None,
            HTTPX,
        }:
            msg = (
                "AsyncHttpClient needs an httpx.AsyncBaseTransport on a wire of httpx, such as"
                f" stkai.build_async_transport(), not {transport!r}"
            )
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
        exchange = Exchange(self._transport, "POST", url, data, headers, timeout, options, buffered=False)
        with exchange:
            response = exchange.stream(await exchange.asend(self._transport))
            if not exchange.is_refused(response):
                return response
            async with response:
                await response.aread()
        raise exchange.refusal(response)

    async def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        exchange = Exchange(self._transport, method, url, data, headers, timeout, options, buffered=True)
        with exchange:
            response = await exchange.asend(self._transport)
            try:
                await response.aread()
            finally:
                await response.aclose()
        return exchange.finish(response)

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
