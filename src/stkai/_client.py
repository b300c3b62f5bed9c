"""The clients for direct use: three verbs over any transport, and a complete `httpx.Response` in return.

They handle no cookies, redirects or httpx auth; for these, mount the same transport in an `httpx.Client`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, NoReturn, Self, TypeVar, Unpack, cast

import httpx

from ._errors import ConfigurationError
from ._exchange import TIMEOUT, StreamedResponse, call_of, exchange, request_of
from ._families import HTTPX, family_of_wire
from .transports._call import begin
from .transports._context import Context
from .transports._layer_transport import AsyncLayerTransport, LayerBase, LayerTransport
from .transports._options import CallOptions

Headers = Mapping[str, str] | None

L = TypeVar("L", bound=LayerBase)


class _NoTransportError(NotImplementedError, AttributeError):
    """A client without a transport; an AttributeError, so that `hasattr` and mocks can inspect the client."""


class _Client(Generic[L]):
    """The parts that the sync and the async client share: everything but the requests."""

    _kind: type
    _twin: str  # The httpx client that resembles this one.
    _builder: str
    _entry_kind: type[L]
    transport: Any
    _transport: Any = None
    _entry: L | None = None
    _closed = False

    def _use(self, transport: object) -> None:
        if not isinstance(transport, self._kind) or family_of_wire(transport) not in {None, HTTPX}:
            raise ConfigurationError(
                f"{type(self).__name__} needs an httpx.{self._kind.__name__} on an httpx wire, such as"
                f" stkai.{self._builder}(), not {transport!r}"
            )
        self._transport = transport

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")

    def _open_entry(self) -> L:
        """The layer through which calls enter: the transport itself, or a layer around it that does nothing."""
        if self._closed or self._entry is None:
            self._require_open()
            transport = self.transport
            context = getattr(transport, "context", None)
            context = context if isinstance(context, Context) else None
            around = self._entry_kind(transport, context=context, name="client")
            self._entry = transport if around._joins(transport) else around  # noqa: SLF001
        return self._entry

    def __getattr__(self, name: str) -> NoReturn:
        """Say how to get an httpx client over the same stack."""
        kind = type(self).__name__
        if name == "transport":  # Its property has raised an AttributeError.
            raise _NoTransportError(
                f"{kind} has no transport: override this method, or call super().__init__(transport)"
            )
        msg = (
            f"{kind!r} object has no attribute {name!r}; {kind} has only get, post and post_stream. If you need an"
            f" {self._twin}, put the stack into one: {self._twin}(transport=stkai.{self._builder}())"
        )
        raise AttributeError(msg, name=name, obj=self)

    def __repr__(self) -> str:
        transport = self._transport
        # Also show what its limiters have found so far.
        details = transport.describe() if isinstance(transport, LayerBase) else ""
        return (
            f"<{type(self).__name__} {transport or 'without transport'}{details}{', closed' * self._closed}>"
        )


class HttpClient(_Client[LayerTransport]):
    """GET, POST and streamed POST over a transport; safe to share between threads. Close it, or use a `with` block.

    It returns redirects instead of following them; the clients of StackSpot's API reference follow those of a GET.

    A subclass may instead override `get` and `post`, and `post_stream` if it can stream; it then needs no transport.

    Args:
        transport: usually a stack, from `build_transport` or a `StackBuilder`. Only a subclass with methods of
            its own can do without one.

    Raises:
        ConfigurationError: the transport is not a sync one.
    """

    _kind, _twin, _builder = httpx.BaseTransport, "httpx.Client", "build_transport"
    _entry_kind = LayerTransport
    _transport: httpx.BaseTransport | None = None

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        if transport is not None or type(self).post is HttpClient.post:
            self._use(transport)

    @property
    def transport(self) -> httpx.BaseTransport:
        """The transport that sends the requests."""
        if self._transport is None:
            raise AttributeError  # `__getattr__` says what is missing.
        return self._transport

    def get(
        self, url: str, headers: Headers = None, timeout: float = TIMEOUT, **options: Unpack[CallOptions]
    ) -> httpx.Response:
        """Send a GET request and read the answer.

        Args:
            url: absolute.
            headers: added to the default ones.
            timeout: seconds that connecting, writing and each read may take, by default 30.
            retry: a policy for this call, or None to send it once.
            deadline: seconds that the whole call may take.
            max_wait_time: seconds that the call may wait for permits; None waits as long as necessary.
            cost: units that the call takes from a limiter with `max_cost`.
            priority: "normal", or "low" to be sent when no normal request waits.

        Raises:
            InvalidArgumentError: (a ValueError and AssertionError) a bad URL, timeout or option.
            RuntimeError: the client has been closed.
            httpx.TransportError: the request failed. stkai's own errors are AuthenticationError,
                TokenAcquisitionTimeoutError, ServerSideRateLimitError (a 429 under the adaptive limiter, after retries)
                and DeadlineExceededError.
        """
        return self._send("get", url, None, headers, timeout, options)

    def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = TIMEOUT,
        **options: Unpack[CallOptions],
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body, and read the answer; everything else is as for `get`."""
        return self._send("post", url, data, headers, timeout, options)

    def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = TIMEOUT,
        **options: Unpack[CallOptions],
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate over the response.

        The response is also a context manager; leaving it early gives the connection back. Once you have the response,
        nothing is retried, and the deadline no longer counts.

        Raises:
            NotImplementedError: the client is a subclass that overrides `post` and not this method.
        """
        return cast(StreamedResponse, self._send("post_stream", url, data, headers, timeout, options))

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a complete request, and read the answer.

        Its extensions may hold `RequestOptions` as "stkai", and timeouts; the errors are those of `get`.
        """
        layer = self._open_entry()
        return layer.carry_out(*call_of(layer, request))

    def _send(
        self, verb: str, url: str, data: Any, headers: Headers, timeout: float, options: CallOptions
    ) -> httpx.Response:
        layer = self._open_entry()
        request = request_of(verb, url, data, headers, timeout, options)
        call = begin(request, layer.context.now(), verb != "post_stream")
        return layer.carry_out(call, partial(exchange, layer))

    def close(self) -> None:
        """Close the transport, and with it all connections. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.close()

    def __enter__(self) -> Self:
        self._require_open()
        if self._transport is not None:
            self._transport.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._closed:
            self._closed = True
            transport: Any = self._transport
            if transport is not None:
                transport.__exit__(*exc_info)


class AsyncHttpClient(_Client[AsyncLayerTransport]):
    """GET, POST and streamed POST over an async transport, on asyncio and trio. Close it, or use `async with`.

    Args:
        transport: usually a stack, from `build_async_transport` or a `StackBuilder`.

    Raises:
        ConfigurationError: the transport is not an async one.
    """

    _kind, _twin, _builder = httpx.AsyncBaseTransport, "httpx.AsyncClient", "build_async_transport"
    _entry_kind = AsyncLayerTransport
    _transport: httpx.AsyncBaseTransport

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._use(transport)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The transport that sends the requests."""
        return self._transport

    async def get(
        self, url: str, headers: Headers = None, timeout: float = TIMEOUT, **options: Unpack[CallOptions]
    ) -> httpx.Response:
        """Send a GET request and read the answer; like `HttpClient.get`."""
        return await self._send("get", url, None, headers, timeout, options)

    async def post(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = TIMEOUT,
        **options: Unpack[CallOptions],
    ) -> httpx.Response:
        """Send a POST request with `data` as its JSON body, and read the answer; like `HttpClient.post`."""
        return await self._send("post", url, data, headers, timeout, options)

    async def post_stream(
        self,
        url: str,
        data: Any = None,
        headers: Headers = None,
        timeout: float = TIMEOUT,
        **options: Unpack[CallOptions],
    ) -> StreamedResponse:
        """Like `post`, but the body arrives while you iterate; see `HttpClient.post_stream`, with `async with`."""
        return cast(StreamedResponse, await self._send("post_stream", url, data, headers, timeout, options))

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a complete request, and read the answer; like `HttpClient.send`."""
        layer = self._open_entry()
        return await layer.carry_out(*call_of(layer, request))

    async def _send(
        self, verb: str, url: str, data: Any, headers: Headers, timeout: float, options: CallOptions
    ) -> httpx.Response:
        layer = self._open_entry()
        request = request_of(verb, url, data, headers, timeout, options)
        call = begin(request, layer.context.now(), verb != "post_stream")
        return await layer.carry_out(call, partial(exchange, layer))

    async def aclose(self) -> None:
        """Close the transport, and with it all connections. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()

    async def close(self) -> None:
        """The same as `aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        self._require_open()
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if not self._closed:
            self._closed = True
            transport: Any = self._transport
            await transport.__aexit__(*exc_info)
