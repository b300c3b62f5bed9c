"""stkai's own clients: three verbs over any transport, which return complete `httpx.Response`s.

They have no cookies and follow no redirects; if you need those, mount the same transport in an `httpx.Client`.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, NoReturn, Self, Unpack

import httpx

from ._errors import ConfigurationError
from ._exchange import Exchange, StreamedResponse, async_entry, entry
from ._families import HTTPX, family_of_wire
from .transports._base import AsyncLayerTransport, LayerTransport
from .transports._options import CallOptions, RequestOptions, options_of

Headers = Mapping[str, str] | None

_CLOSED: Final = "Cannot send a request, as the client has been closed."
_REOPENED: Final = "Cannot open a client that has been closed; make a new one."


class HttpClient:
    """GET, POST and streamed POST over a transport. Safe to share between threads; close it, or use a `with` block.

    A subclass may override `get` and `post` (and `post_stream`, if it can stream) instead; then it needs no transport.

    Args:
        transport: Usually a stack from `build_transport` or a `StackBuilder`. Only a subclass with its own verbs can
            omit it.

    Raises:
        ConfigurationError: The transport is not a sync one.
    """

    _transport: httpx.BaseTransport | None = None
    _entry: LayerTransport | None = None
    _closed = False

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
        self, url: str, headers: Headers = None, timeout: float = 30, **options: Unpack[CallOptions]
    ) -> httpx.Response:
        """Send a GET request and read the response.

        Args:
            url: An absolute URL.
            headers: Added to the default ones.
            timeout: Seconds that connecting, writing and each read may take.
            retry: A policy for this call, or None to send it once.
            deadline: Seconds that the whole call may take.
            max_wait_time: Seconds that the call may wait for permits; None waits as long as it takes.
            cost: Units that the call takes from a limiter with `max_cost`.
            priority: "normal", or "low" to go when no normal call is waiting.

        Raises:
            InvalidArgumentError: (a ValueError and AssertionError) The URL, timeout or an option is invalid.
            RuntimeError: The client has been closed.
            httpx.TransportError: The request failed. stkai's own subclasses are AuthenticationError,
                TokenAcquisitionTimeoutError, ServerSideRateLimitError (the last attempt was a 429, with an adaptive
                limiter) and DeadlineExceededError.
        """
        return self._send("GET", url, None, headers, timeout, options_of("get", options))

    def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        **options: Unpack[CallOptions],
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body and read the response; otherwise like `get`."""
        return self._send("POST", url, data, headers, timeout, options_of("post", options))

    def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        **options: Unpack[CallOptions],
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate over the response.

        The response is also a context manager; leaving it early releases the connection. Once you have the response,
        nothing is retried and the deadline no longer applies.

        Raises:
            NotImplementedError: A subclass with its own verbs does not stream.
        """
        layer = self._open_entry()
        given = options_of("post_stream", options)
        exchange = Exchange(layer, "POST", url, data, headers, timeout, given, buffered=False)
        return exchange.stream(layer.carry_out(exchange.call, exchange.flow))

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a complete request and read the response.

        Its extensions may hold `RequestOptions` as "stkai", and timeouts. Raises what `get` raises.
        """
        layer = self._open_entry()
        exchange = Exchange.of(layer, request)
        return exchange.finish(layer.carry_out(exchange.call, exchange.flow))

    def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        layer = self._open_entry()
        exchange = Exchange(layer, method, url, data, headers, timeout, options, buffered=True)
        return exchange.finish(layer.carry_out(exchange.call, exchange.flow))

    def _open_entry(self) -> LayerTransport:
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._entry is None:
            self._entry = entry(self.transport)
        return self._entry

    def close(self) -> None:
        """Close the transport and all its connections. Closing again has no effect."""
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.close()

    def __enter__(self) -> Self:
        if self._closed:
            raise RuntimeError(_REOPENED)
        if self._transport is not None:
            self._transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.__exit__(exc_type, exc_value, traceback)

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_attribute(self, name, httpx.Client, "build_transport")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport or 'without transport'}{', closed' * self._closed}>"


class AsyncHttpClient:
    """GET, POST and streamed POST over an async transport, on asyncio and trio. Close it, or use `async with`.

    Args:
        transport: Usually a stack from `build_async_transport` or a `StackBuilder`.

    Raises:
        ConfigurationError: The transport is not an async one.
    """

    _closed = False

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
        self._entry = async_entry(transport)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport that sends the requests."""
        return self._transport

    async def get(
        self, url: str, headers: Headers = None, timeout: float = 30, **options: Unpack[CallOptions]
    ) -> httpx.Response:
        """Send a GET request and read the response, like `HttpClient.get`."""
        return await self._send("GET", url, None, headers, timeout, options_of("get", options))

    async def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        **options: Unpack[CallOptions],
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body and read the response, like `HttpClient.post`."""
        return await self._send("POST", url, data, headers, timeout, options_of("post", options))

    async def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = 30,
        **options: Unpack[CallOptions],
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate; like `HttpClient.post_stream`, with `async with`."""
        layer = self._open_entry()
        given = options_of("post_stream", options)
        exchange = Exchange(layer, "POST", url, data, headers, timeout, given, buffered=False)
        return exchange.stream(await layer.carry_out(exchange.call, exchange.flow))

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a complete request and read the response, like `HttpClient.send`."""
        layer = self._open_entry()
        exchange = Exchange.of(layer, request)
        return exchange.finish(await layer.carry_out(exchange.call, exchange.flow))

    async def _send(
        self, method: str, url: str, data: Any, headers: Headers, timeout: float, options: RequestOptions
    ) -> httpx.Response:
        layer = self._open_entry()
        exchange = Exchange(layer, method, url, data, headers, timeout, options, buffered=True)
        return exchange.finish(await layer.carry_out(exchange.call, exchange.flow))

    def _open_entry(self) -> AsyncLayerTransport:
        if self._closed:
            raise RuntimeError(_CLOSED)
        return self._entry

    async def aclose(self) -> None:
        """Close the transport and all its connections. Closing again has no effect."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()

    async def close(self) -> None:
        """The same as `aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        if self._closed:
            raise RuntimeError(_REOPENED)
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if not self._closed:
            self._closed = True
            await self._transport.__aexit__(exc_type, exc_value, traceback)

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_attribute(self, name, httpx.AsyncClient, "build_async_transport")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport}{', closed' * self._closed}>"


def _no_attribute(client: object, name: str, wanted: type, builder: str) -> AttributeError:
    """If an httpx client has the attribute, say how to put the stack into one."""
    kind = type(client).__name__
    msg = f"{kind!r} object has no attribute {name!r}"
    if hasattr(wanted, name) or name in {"timeout", "headers"}:
        msg += (
            f"; {kind} has only get, post and post_stream. Where an httpx.{wanted.__name__} is needed, put the stack"
            f" into one: httpx.{wanted.__name__}(transport=stkai.{builder}())"
        )
    return AttributeError(msg, name=name, obj=client)
