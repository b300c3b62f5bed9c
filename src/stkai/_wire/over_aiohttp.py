"""An asyncio wire over aiohttp's connections and parser, as reliable under a retry layer as httpx's own.

It does not use aiohttp's client session, which resends idempotent requests, keeps cookies, adds headers, and reports a
broken connection as if nothing had been sent. aiohttp's connector opens the connections (addresses, TLS, proxies) and
its parser, written in C, reads the answers. The requests are those that httpx's own wire sends, byte for byte.
"""

import asyncio
import math
import os
import ssl
import sys
from asyncio import sslproto
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import httpx
from yarl import URL

from .._errors import ConfigurationError, describe
from .._event_loops import anyio, running_loop
from .._families import Family, alike, error_for, of_family
from .._process import after_fork, never_finalize
from .._secrets import Secret
from .._urls import WEB, port_of
from . import AsyncDefaultWire, WirePerLoop
from .aiohttp_connection import BUFFER_SIZE, MAX_HEAD, Connection, parser_limits
from .aiohttp_exchange import READ_ERRORS, Body, NetworkStream, RequestWriter, require_readable, unreadable
from .httpcore_fixes import CLOSED, NO_THREAD
from .pool import AsyncConnectionPool
from .proxies import ProxyMap, headers_for

if TYPE_CHECKING:
    from .._config.models import HttpConfig


_BODILESS_METHODS: Final = {"HEAD", "CONNECT"}
"""Methods whose answers have no body, whatever they announce."""


class OverAiohttp(httpx.AsyncBaseTransport):
    """A transport with room for one connection, which is not reused after `expiry` seconds of idle time."""

    _is_closed = False

    def __init__(
        self, context: ssl.SSLContext, expiry: float | None, family: Family, proxy: httpx.Proxy | None
    ) -> None:
        self._context, self._expiry = context, math.inf if expiry is None else expiry
        self._response, self._body = family.Response, of_family(Body, family)
        self._proxy = None if proxy is None else URL(str(proxy.url))
        self._proxy_headers = Secret({} if proxy is None else headers_for(proxy))
        self._connection: Connection | None = None
        self._destination: tuple[object, ...] | None = None
        after_fork(self, OverAiohttp._abandon)

    def _abandon(self) -> None:
        never_finalize(self._connection)
        self._connection = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        destination = request.url.scheme, request.url.netloc, request.extensions.get("sni_hostname")
        if destination != self._destination and (request.url.scheme not in WEB or not request.url.host):
            msg = f"not an http:// or https:// address: {request.url}"
            raise error_for(httpx.UnsupportedProtocol, msg, request)
        timeouts = request.extensions.get("timeout", {})
        # Headers for a proxy that forwards this request in plain text; None without a proxy, or through a tunnel.
        forwarding = None if self._proxy is None or request.url.scheme == "https" else self._proxy_headers
        # Checked before a connection is opened: a request that h11 refuses leaves no trace on the network.
        writer = RequestWriter(request, forwarding)
        connection = self._reusable(destination)
        if connection is None:  # A connection is falsy while nothing is buffered in it.
            connection = await self._open(request, timeouts.get("connect"))
            self._destination = destination
        return await self._exchange(connection, request, writer, timeouts)

    async def _exchange(
        self, connection: Connection, request: httpx.Request, writer: RequestWriter, timeouts: dict[str, Any]
    ) -> httpx.Response:
        """Send a request and receive the head of its answer."""
        try:
            connection.awaits_head = True
            connection.set_response_params(
                skip_payload=request.method in _BODILESS_METHODS,
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=BUFFER_SIZE,
                **parser_limits(),
            )
            await writer.write_to(connection, timeouts.get("write"))
            response = await self._receive(connection, request, timeouts.get("read"))
            connection.is_last = writer.must_close
            return response
        except BaseException:
            connection.drop()
            raise

    def _reusable(self, destination: tuple[object, ...]) -> Connection | None:
        """The idle connection, if it leads to that destination and is still usable."""
        connection = self._connection
        if connection is None:
            return None
        since = connection.idle_since
        is_fresh = since is not None and asyncio.get_running_loop().time() - since <= self._expiry
        if is_fresh and self._destination == destination and connection.is_alive():
            connection.idle_since = None
            return connection
        connection.drop()
        self._connection = None
        return None

    async def _open(self, request: httpx.Request, seconds: float | None) -> Connection:
        url, sni = request.url, request.extensions.get("sni_hostname")
        host, port = url.raw_host.decode("ascii"), port_of(url)
        # Not asyncio.timeout: if the deadline, an anyio scope, expires in the same step, neither may catch the cancel.
        name = sni.decode("ascii") if isinstance(sni, bytes) else sni
        with _connect_errors(request), anyio.fail_after(seconds):
            if self._proxy is None:
                target = URL.build(scheme=url.scheme, host=host, port=port)
                connection = await _connected(target, self._context, name)
            else:
                connection = await _connected(self._proxy, self._context, None)
                if url.scheme == "https":
                    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                    connection = await self._tunnel(connection, request, address, name or host)
        if self._is_closed:  # By another task, in the meantime.
            connection.drop()
            raise error_for(httpx.ConnectError, CLOSED, request)
        self._connection = connection
        return connection

    async def _tunnel(
        self, connection: Connection, request: httpx.Request, address: str, name: str
    ) -> Connection:
        """A connection over TLS to the server of that name, through the proxy (RFC 9110, section 9.3.6)."""
        asking = httpx.Request(
            "CONNECT",
            f"http://{address}",
            headers={"Host": address, "Accept": "*/*", **self._proxy_headers.reveal()},
            extensions={"target": address.encode()},
        )
        timeouts = request.extensions.get("timeout", {})
        try:
            answer = await self._exchange(connection, asking, RequestWriter(asking, None), timeouts)
        except alike(httpx.TimeoutException) as error:
            raise TimeoutError from error  # Nothing of the request was sent: a time limit of connecting.
        except alike(httpx.RequestError) as error:
            raise error_for(httpx.ConnectError, f"the proxy did not connect: {error}", request) from error
        loop = asyncio.get_running_loop()
        secure, transport = Connection(loop), connection.transport
        try:
            if not answer.is_success:
                reason = answer.extensions["reason_phrase"].decode("ascii", errors="ignore")
                raise error_for(httpx.ProxyError, f"{answer.status_code} {reason}", request)
            if transport is None or transport.is_closing():
                raise ConnectionResetError
            _let_errors_through(transport)
            upgraded = await loop.start_tls(transport, secure, self._context, server_hostname=name)
            # asyncio and uvloop do not always raise an error if the connection was closed in the handshake.
            if upgraded is None or upgraded.is_closing():
                raise ConnectionResetError
            secure.connection_made(upgraded)
        except BaseException:
            connection.drop()
            raise
        return secure

    async def _receive(
        self, connection: Connection, request: httpx.Request, seconds: float | None
    ) -> httpx.Response:
        connection.seconds, connection.head_left = seconds, MAX_HEAD
        try:
            async with asyncio.timeout(seconds) as connection.timeout:
                message, payload = await connection.read()
            require_readable(message)
        except READ_ERRORS as error:
            raise unreadable(error, connection, request) from error
        connection.head_left = None
        if request.method in _BODILESS_METHODS:  # Without a length, aiohttp would not reuse the connection.
            connection._should_close = False  # noqa: SLF001
        has_body = payload is not aiohttp.EMPTY_PAYLOAD
        body = self._body(connection, payload if has_body else None, request)
        body.ends_with_connection = (
            has_body and not message.chunked and "Content-Length" not in message.headers
        )
        version = message.version
        return self._response(
            message.code,
            # Older versions of aiohttp keep trailing white space.
            headers=[(name, value.rstrip(b" \t")) for name, value in message.raw_headers],
            stream=body,
            extensions={
                "http_version": f"HTTP/{version.major}.{version.minor}".encode(),
                "reason_phrase": (message.reason or "").encode("utf-8", "surrogateescape"),
                "network_stream": NetworkStream(connection),
            },
        )

    async def aclose(self) -> None:
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None and connection.transport is not None:
            connection.drop()
            # Let the loop close the socket and notify TLS: it may end right after this.
            for _ in range(2):
                await asyncio.sleep(0)


@contextmanager
def _connect_errors(request: httpx.Request) -> Iterator[None]:
    """Turn the errors of opening a connection into httpx's."""
    try:
        yield
    except TimeoutError as error:
        raise error_for(httpx.ConnectTimeout, "", request) from error
    except aiohttp.ClientConnectorError as error:
        # Omit aiohttp's "ssl:default", shown even for http, and "None". Before 3.14, certificate errors lack os_error.
        text, host, cause = str(error), error.host, getattr(error, "os_error", None)
        if cause is not None:
            reason = error.strerror or describe(cause)
            if reason.startswith("Connect call failed"):  # asyncio's words, which do not say why.
                reason = os.strerror(cause.errno)
            text = f"cannot connect to {f'[{host}]' if ':' in host else host}:{error.port}: {reason}"
        raise error_for(httpx.ConnectError, text, request) from error
    except (aiohttp.ClientError, OSError, ValueError, TypeError) as error:  # uvloop has no TLS within TLS.
        text = str(error) or "the connection was closed during the TLS handshake"
        raise error_for(httpx.ConnectError, text, request) from error
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        raise error_for(httpx.ConnectError, f"the host was not looked up: {error}", request) from error


async def _connected(url: URL, context: ssl.SSLContext, name: str | None) -> Connection:
    """A new connection to a server or a proxy, with TLS if the URL says so, by default for the name in the URL."""
    loop = asyncio.get_running_loop()
    request = aiohttp.ClientRequest("GET", url, loop=loop, server_hostname=name)
    # Like httpx, resolve the host anew for each connection.
    connector: Any = aiohttp.TCPConnector(
        use_dns_cache=False, resolver=aiohttp.ThreadedResolver(), ssl=context
    )
    connector._factory = partial(Connection, loop=loop)  # noqa: SLF001
    try:
        connection = await connector._create_connection(request, [], aiohttp.ClientTimeout())  # noqa: SLF001
    except BaseException:
        # If the deadline has passed meanwhile, let it end the call, instead of this error.
        await asyncio.sleep(0)
        raise
    assert isinstance(connection, Connection)
    return connection


def _let_errors_through(transport: Any) -> None:
    """Let an error of TLS within this TLS end both: asyncio in Python 3.11, and first in 3.12, raises a TypeError."""
    if sys.version_info >= (3, 13) or not isinstance(transport, sslproto._SSLProtocolTransport):  # noqa: SLF001
        return
    close: Any = transport._force_close  # type: ignore[attr-defined]  # noqa: SLF001

    def close_or_abort(error: BaseException | None) -> None:
        try:
            close(error)
        except TypeError:
            transport.abort()

    transport._force_close = close_or_abort  # type: ignore[attr-defined]  # noqa: SLF001


class AiohttpWire(AsyncDefaultWire):
    """A wire with the verification, limits and proxies of the settings."""

    def __init__(self, config: "HttpConfig") -> None:
        if config.http2:
            raise ConfigurationError(
                "aiohttp cannot send over HTTP/2: set http2 (STKAI_HTTP_HTTP2) to false, or use the default wire"
            )
        if ProxyMap.of(config).has_socks:
            raise ConfigurationError(
                "aiohttp cannot send through a SOCKS proxy: unset STKAI_HTTP_PROXY or ALL_PROXY, or use the default"
                " wire"
            )
        super().__init__(config)

    def _make(self, family: Family, proxy: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
        self._context.set_alpn_protocols(["http/1.1"])
        one = partial(OverAiohttp, self._context, self._config.keepalive_expiry, family, proxy)

        def make() -> AsyncConnectionPool:
            if not isinstance(running_loop(), asyncio.AbstractEventLoop):
                raise ConfigurationError("aiohttp works on asyncio only: on trio, use the default wire")
            return AsyncConnectionPool(one, self._config, family, self.full_pools)

        return WirePerLoop(make, family)
