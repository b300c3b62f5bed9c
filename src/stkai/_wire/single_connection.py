"""A single connection of httpcore's, in place of the pool of one of httpx's transports."""

import sys
from contextlib import suppress
from typing import Any, Final, TypeVar

import httpx

from .._event_loops import anyio
from .._families import alike
from .._secrets import HiddenBytes
from ..transports._bodies import Sending
from .httpcore_fixes import AsyncNetwork, Network

_SCHEMES: Final = {b"http", b"https", b"ws", b"wss"}
Transport = TypeVar("Transport", httpx.HTTPTransport, httpx.AsyncHTTPTransport)


def with_single_connection(transport: Transport) -> Transport:
    """The transport, with a connection in place of its pool; unchanged if httpcore has changed too much."""
    pool: Any = getattr(transport, "_pool", None)
    errors = sys.modules.get(type(pool).__module__.partition(".")[0])
    private = (pool, "_network_backend"), (pool, "create_connection"), (errors, "ConnectionNotAvailable")
    if all(hasattr(*each) for each in private):
        is_sync = isinstance(transport, alike(httpx.HTTPTransport))
        connection: Any = (SingleConnection if is_sync else AsyncSingleConnection)(pool, errors)
        transport._pool = connection  # noqa: SLF001
        if credentials := getattr(pool, "_proxy_auth", None):  # httpcore logs them for a SOCKS proxy.
            pool._proxy_auth = tuple(map(HiddenBytes, credentials))  # noqa: SLF001
    return transport


class SingleConnection:
    """A connection of httpcore's, opened again when necessary. `pool` only makes it.

    It replaces the pool, which takes a lock three times and polls the socket twice for each request.
    """

    held: Any = None
    _network_class: type[Network] = Network

    def __init__(self, pool: Any, errors: Any) -> None:
        self.network: Any = self._network_class(pool, errors)
        pool._network_backend = self.network  # noqa: SLF001 - httpx has no argument for it
        self.pool, self._unavailable = pool, errors.ConnectionNotAvailable
        self._in_memory = alike(httpx.ByteStream)

    def _reused(self, request: Any, origin: Any) -> Any:
        """The open connection, if it can carry the request to this origin; otherwise None."""
        held = self.held
        if (
            held is None
            or not (held.can_handle_request(origin) and held.is_available())
            or held.has_expired()
        ):
            return None
        stream = self.network.stream
        if stream.frames is not None:
            # On an idle connection, nothing should arrive but its end; httpcore checks this only for HTTP/1.1.
            if stream.frames.is_full or stream.get_extra_info("is_readable"):
                return None
        elif type(request.stream) in self._in_memory:
            stream.join_body()
        if isinstance(sending := request.extensions.get("trace"), Sending):
            sending.uses(stream)
        return held

    def _new(self, origin: Any) -> Any:
        self.held = self.pool.create_connection(origin)
        return self.held

    def handle_request(self, request: Any) -> Any:
        if request.url.scheme not in _SCHEMES:
            return self.pool.handle_request(request)  # Raises the error.
        origin = request.url.origin
        while True:
            connection = self._reused(request, origin)
            if connection is None:
                self._drop()
                connection = self._new(origin)
            with suppress(self._unavailable):  # An HTTP/2 connection has ended in the meantime.
                return connection.handle_request(request)

    def _drop(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            held.close()

    def close(self) -> None:
        try:
            self.network.close()
        finally:
            self._drop()


class AsyncSingleConnection(SingleConnection):
    _network_class = AsyncNetwork

    async def handle_async_request(self, request: Any) -> Any:
        if request.url.scheme not in _SCHEMES:
            return await self.pool.handle_async_request(request)
        origin = request.url.origin
        while True:
            connection = self._reused(request, origin)
            if connection is None:
                await self._adrop()
                connection = self._new(origin)
            with suppress(self._unavailable):
                return await connection.handle_async_request(request)

    async def _adrop(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            with anyio.CancelScope(shield=True):
                await held.aclose()

    async def aclose(self) -> None:
        self.network.is_closed = True
        try:
            await self._adrop()
        finally:
            await self.network.aclose()
