"""One connection instead of a pool below a transport of httpx's, for those that stand side by side.

httpcore's pool looks after its connections at the beginning and the end of each request, and asks the system about
them. Where each transport has one connection, and one request at a time, that is a fifth of what a request costs.
"""

from typing import Any, Final, TypeVar

import httpx

T = TypeVar("T", bound=httpx.HTTPTransport | httpx.AsyncHTTPTransport)

_SCHEMES: Final = frozenset({b"http", b"https", b"ws", b"wss"})


def with_one_connection(transport: T) -> T:
    """The transport, with its pool replaced: whoever uses it sends one request at a time.

    The pool is not a public part of the transport. Where there is none of this name, everything stays as it is, and
    works.
    """
    pool = getattr(transport, "_pool", None)
    if hasattr(pool, "create_connection"):
        single = _Single(pool) if hasattr(pool, "close") else _AsyncSingle(pool)
        vars(transport)["_pool"] = single
    return transport


class _Single:
    """A connection of the kind that the pool makes, straight or through a proxy; anew where it is of no more use."""

    def __init__(self, pool: Any) -> None:
        self.connection: Any = None
        self._pool = pool

    def handle_request(self, request: Any) -> Any:
        kind = type(self._pool)
        if request.url.scheme not in _SCHEMES or _is_replaced(kind.handle_request, kind.close):
            return self._pool.handle_request(request)
        origin = request.url.origin
        while True:
            connection = self.connection
            if connection is None or not _serves(connection, origin):
                self._hang_up()
                connection = self.connection = self._pool.create_connection(origin)
            try:
                return connection.handle_request(request)
            except Exception as error:
                if not _is_gone(error):
                    raise

    def close(self) -> None:
        self._hang_up()
        self._pool.close()

    def _hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class _AsyncSingle:
    """The same for the async world."""

    def __init__(self, pool: Any) -> None:
        self.connection: Any = None
        self._pool = pool

    async def handle_async_request(self, request: Any) -> Any:
        kind = type(self._pool)
        if request.url.scheme not in _SCHEMES or _is_replaced(kind.handle_async_request, kind.aclose):
            return await self._pool.handle_async_request(request)
        origin = request.url.origin
        while True:
            connection = self.connection
            if connection is None or not _serves(connection, origin):
                await self._hang_up()
                connection = self.connection = self._pool.create_connection(origin)
            try:
                return await connection.handle_async_request(request)
            except Exception as error:
                if not _is_gone(error):
                    raise

    async def aclose(self) -> None:
        await self._hang_up()
        await self._pool.aclose()

    async def _hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            import anyio

            with anyio.CancelScope(shield=True):  # Who is cancelled still leaves no connection open.
                await connection.aclose()


def _serves(connection: Any, origin: Any) -> bool:
    """Whether the connection leads there, is idle, and has not been closed at its other end."""
    # In this order: the last one asks the system.
    return bool(
        connection.can_handle_request(origin) and connection.is_available() and not connection.has_expired()
    )


def _is_replaced(send: Any, other: Any) -> bool:
    """Whether a recorder of traffic, say, put a method of its own into the class of the pool: it is to be called."""
    home = getattr(other, "__globals__", None)
    return home is None or getattr(send, "__globals__", None) is not home


def _is_gone(error: Exception) -> bool:
    """Whether nothing was sent, since the connection was closed after it had been looked at."""
    return type(error).__name__ == "ConnectionNotAvailable"
