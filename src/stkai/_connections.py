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
    """A connection of the kind that the pool makes, straight or through a proxy; anew where it is of no more use.

    Attributes:
        connections: as a pool has it.
    """

    def __init__(self, pool: Any) -> None:
        self.connections: list[Any] = []
        self._pool = pool

    def handle_request(self, request: Any) -> Any:
        if request.url.scheme not in _SCHEMES:
            return self._pool.handle_request(request)  # It says what is wrong.
        origin = request.url.origin
        if not _serves(self.connections, origin):
            self.close()
            self.connections.append(self._pool.create_connection(origin))
        return self.connections[0].handle_request(request)

    def close(self) -> None:
        while self.connections:
            self.connections.pop().close()


class _AsyncSingle:
    """The same for the async world."""

    def __init__(self, pool: Any) -> None:
        self.connections: list[Any] = []
        self._pool = pool

    async def handle_async_request(self, request: Any) -> Any:
        if request.url.scheme not in _SCHEMES:
            return await self._pool.handle_async_request(request)  # It says what is wrong.
        origin = request.url.origin
        if not _serves(self.connections, origin):
            await self.aclose()
            self.connections.append(self._pool.create_connection(origin))
        return await self.connections[0].handle_async_request(request)

    async def aclose(self) -> None:
        while self.connections:
            await self.connections.pop().aclose()


def _serves(connections: list[Any], origin: Any) -> bool:
    """Whether the connection leads there, is idle, and has not been closed at its other end."""
    if not connections:
        return False
    connection = connections[0]
    # In this order: the last one asks the system.
    return bool(
        connection.can_handle_request(origin) and connection.is_available() and not connection.has_expired()
    )
