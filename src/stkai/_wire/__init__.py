"""The default wire: httpx's own transports, and the environment's proxies, which httpx ignores with `transport=`.

Each request is sent by the package that made it, httpx or httpx2, on a connection of its own process and event loop. A
connection works only there: httpx keeps those of a loop that has ended, and fails with "Event loop is closed" when it
picks one.
"""

import os
import ssl
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import httpx

from .._config import STKAI
from .._errors import ConfigurationError, causes, hide_frames, missing_extra
from .._event_loops import anyio, end_of, running_loop
from .._families import HTTPX, Family, alike, error_for, family_of
from .._process import begin_in_each_process, never_finalize
from .._urls import PROXIES, absolute_url, show_origin
from ..transports._call import cannot_send
from ..transports._failures import CONNECT_ERRORS
from .http2 import malformed
from .httpcore_fixes import CLOSED_IN_USE
from .pool import AsyncConnectionPool, ConnectionPool
from .proxies import ProxyMap
from .single_connection import with_single_connection

if TYPE_CHECKING:
    from .._config.models import HttpConfig


class _Router:
    """Holds a wire for each package and each proxy, and chooses one for each request.

    The wires of httpx are made at once, so that unusable settings fail early; those of httpx2 with its first request.
    """

    family = None
    is_leaf = True
    _is_closed = False

    def __init__(self, config: "HttpConfig | None" = None) -> None:
        self._config = config or STKAI.config.http
        self._context = _context_of(self._config)
        self._proxies = ProxyMap.of(self._config)
        self.full_pools: set[Any] = set()  # Pools whose connections are all in use.
        self._wires = {HTTPX: self._wires_of(HTTPX)}
        self._names: dict[str | None, str] = {url: show_origin(httpx.URL(url)) for url in self._proxies.urls}

    def _make(self, family: Family, proxy: httpx.Proxy | None) -> Any:
        """A wire of a package, with the limits of the settings, through a proxy, or direct if that is None."""
        raise NotImplementedError

    def _maker(self, kind: Any, family: Family, proxy: httpx.Proxy | None) -> Callable[[], Any]:
        """A function that makes transports of this kind; each has room for one connection, and one request on it."""
        http2, expiry = self._config.http2, self._config.keepalive_expiry
        if http2 and find_spec("h2") is None:
            raise missing_extra("HTTP/2 (STKAI_HTTP_HTTP2)", "http2")
        limits = family.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=expiry)
        make = partial(kind, verify=self._context, http2=http2, proxy=proxy, limits=limits)
        make()  # Fail early, for example for an unusable proxy; it has no connection yet that must be closed.
        return lambda: with_single_connection(make())

    def _wires_of(self, family: Family) -> dict[str | None, Any]:
        """The wires of a package by the URL of their proxy; None for the direct one.

        Neither an error nor a variable of its traceback shows that URL, which may contain a password.
        """
        made: dict[str | None, Any] = {None: self._make(family, None)}
        for url in self._proxies.urls:
            try:
                absolute_url(url, PROXIES)
                # Check the certificate of a proxy like a server's.
                context = self._context if url.lower().startswith("https://") else None
                made[url] = self._make(family, family.Proxy(url, ssl_context=context))
            except alike(httpx.InvalidURL, ValueError, ImportError) as error:
                is_missing = isinstance(error, ImportError)
                problem, made = str(missing_extra("a SOCKS proxy", "socks") if is_missing else error), {}
                del url
                break
        else:
            return made
        # Outside the handler, whose error would show the URL.
        msg = f"a proxy (of STKAI_HTTP_PROXY, HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) cannot be used: {problem}"
        raise ConfigurationError(msg)

    def _wire_for(self, request: httpx.Request) -> Any:
        # A method of its own, because tracebacks show variables, and a proxy's URL may contain a password.
        if self._is_closed:
            raise cannot_send()
        family = family_of(request)
        wires = self._wires.get(family)
        if wires is None:
            # Two threads may get here at once; the wires that lose have no connections yet.
            wires = self._wires.setdefault(family, self._wires_of(family))
        return wires[self._proxies.proxy_for(request.url) if self._names else None]

    def reserve_connection(self, request: httpx.Request, priority: str, left: float) -> Any:
        """Wait up to `left` seconds for a connection for the request, and return its loan; async in an async wire.

        A limiter calls this, so the pool timeout limits only how long no connection at all becomes free.
        """
        return self._wire_for(request).reserve(request, left, priority)

    def _closing(self) -> list[Any]:
        """Return all wires, to be closed; from now on they get no more requests."""
        self._is_closed = True
        return [wire for wires in self._wires.values() for wire in wires.values()]

    def _explain(self, error: Exception, request: httpx.Request) -> None:
        """Show an answer that is not HTTP, and name the proxy, without its password, if the connection used one.

        httpcore passes on some errors that are not its own: socksio's, if a proxy does not speak SOCKS; h11's, if a
        body does not have the announced length; h2's, if the client is closed before a connection has begun; a
        ValueError for a status that is not a number, in HTTP/2.
        """
        package = type(error).__module__.partition(".")[0]
        ended = alike(httpx.ReadError, httpx.WriteError, httpx.ProtocolError)
        if self._is_closed and (package == "h2" or isinstance(error, ended)):
            raise error_for(httpx.ReadError, CLOSED_IN_USE, request) from error
        *_, (frame, _) = walk_tb(error.__traceback__)
        if isinstance(error, ValueError) and frame.f_code.co_name == "_receive_response":
            raise malformed(f"illegal status: {error}", request)
        if package == "h11":
            raise error_for(httpx.LocalProtocolError, str(error), request) from error
        _show_unparsed(error)
        name = self._names.get(self._proxies.proxy_for(request.url))
        if name is None:
            return
        if package == "socksio":
            raise error_for(httpx.ProxyError, f"{error} (through the proxy {name})", request) from None
        hide_frames(error)
        if isinstance(error, alike(*CONNECT_ERRORS)):
            error.args = (f"{error} (through the proxy {name})".lstrip(),)


class DefaultWire(_Router, httpx.BaseTransport):
    """A sync wire with the verification, limits, HTTP/2 and proxies of the settings."""

    def _make(self, family: Family, proxy: httpx.Proxy | None) -> httpx.BaseTransport:
        make = self._maker(family.HTTPTransport, family, proxy)
        return ConnectionPool(make, self._config, family, self.full_pools)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response: httpx.Response = self._wire_for(request).handle_request(request)
        except Exception as error:
            self._explain(error, request)
            raise
        return response

    def close(self) -> None:
        for wire in self._closing():
            wire.close()


class AsyncDefaultWire(_Router, httpx.AsyncBaseTransport):
    def _make(self, family: Family, proxy: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
        make = self._maker(family.AsyncHTTPTransport, family, proxy)
        pool = partial(AsyncConnectionPool, make, self._config, family, self.full_pools)
        return WirePerLoop(pool, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response: httpx.Response = await self._wire_for(request).handle_async_request(request)
        except Exception as error:
            self._explain(error, request)
            raise
        return response

    async def aclose(self) -> None:
        for wire in self._closing():
            await wire.aclose()


class WirePerLoop(httpx.AsyncBaseTransport):
    """Sends each request through its event loop's own wire, which is made there; several loops may run at once.

    The wire is closed when the loop ends, or dropped without being closed if the loop gives no chance to close it.
    """

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._make = make
        self._by_loop: dict[Any, httpx.AsyncBaseTransport] = {}  # By loop, until it ends.
        self._closers: dict[Any, AsyncGenerator[None, None]] = {}
        begin_in_each_process(self, WirePerLoop._begin_process)

    def _begin_process(self) -> None:
        self._lock = threading.Lock()
        self._by_loop.clear()
        for closer in self._closers.values():
            never_finalize(closer)
        self._closers = {}

    def handle_async_request(self, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        loop = running_loop()
        wire = self._by_loop.get(loop)
        return self._send_first(loop, request) if wire is None else wire.handle_async_request(request)

    async def _send_first(self, loop: Any, request: httpx.Request) -> httpx.Response:
        """Send a loop's first request."""
        return await (await self._begin(loop)).handle_async_request(request)

    async def reserve(self, request: httpx.Request, left: float, priority: str) -> Any:
        """Wait for a connection of the pool that is the event loop's wire."""
        loop = running_loop()
        pool: Any = self._by_loop.get(loop)
        if pool is None:
            pool = await self._begin(loop)
        return await pool.reserve(request, left, priority)

    async def _begin(self, loop: Any) -> httpx.AsyncBaseTransport:
        """Make the wire of a loop."""
        self._forget_ended_loops()
        wire, by_loop = self._make(), self._by_loop
        closer = _close_with_the_loop(loop, by_loop)
        await anext(closer)  # Registers the generator with the loop, without suspending.
        with self._lock:
            by_loop[loop], self._closers[loop] = wire, closer
        return wire

    def _forget_ended_loops(self) -> None:
        with self._lock:
            ended = [loop for loop in self._closers if loop not in self._by_loop or end_of(loop)()]
            forgotten = [(self._by_loop.pop(loop, None), self._closers.pop(loop)) for loop in ended]
        with warnings.catch_warnings():
            # Dropping the sockets closes them; they can no longer be closed in an orderly way.
            warnings.simplefilter("ignore", ResourceWarning)
            del forgotten

    async def aclose(self) -> None:
        self._forget_ended_loops()
        # The generators are dropped here, which makes loops in other threads close their own wires.
        closers, self._closers, self._by_loop = self._closers, {}, {}
        here = closers.get(running_loop())
        if here is not None:
            await here.aclose()


async def _close_with_the_loop(
    loop: Any, by_loop: dict[Any, httpx.AsyncBaseTransport]
) -> AsyncGenerator[None, None]:
    """Close the wire of a loop when that ends: asyncio and trio then close all their asynchronous generators."""
    try:
        yield
    finally:
        wire = by_loop.pop(loop, None)
        here = None
        # nest_asyncio leaves the generator to the end of the program, when no loop runs.
        with suppress(RuntimeError):
            here = running_loop()
        if wire is not None and here is not None:
            with anyio.CancelScope(shield=True):
                await wire.aclose()


def _show_unparsed(error: Exception) -> None:
    """Show what arrived instead of an answer: h11 says "illegal request line" if not a single line is complete."""
    if str(error) == "illegal request line":
        frames = (frame for below in causes(error) for frame, _ in walk_tb(below.__traceback__))
        for received in (frame.f_locals["buf"] for frame in frames if "buf" in frame.f_locals):
            error.args = (f"illegal status line: {bytes(received)[:80]!r}",)


def _context_of(config: "HttpConfig") -> ssl.SSLContext:
    """How TLS verifies the server. All wires share one context, because loading the certificates is slow."""
    verify = config.verify
    if isinstance(verify, str):
        name, path = "verify (STKAI_HTTP_VERIFY)", verify
        folder, file = (path, None) if Path(path).is_dir() else (None, path)
        make = partial(ssl.create_default_context, cafile=file, capath=folder)
    else:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        path = os.environ.get(name, "")
        make = partial(httpx.create_ssl_context, verify=verify, trust_env=config.trust_env)
    try:
        return make()
    except OSError as error:
        msg = f"{name} must name certificates in PEM form, and {path!r} does not: {error}"
        raise ConfigurationError(msg) from error
