"""Wires that record their requests, for sync and async pools."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from stkai._wire.pool import AsyncConnectionPool, ConnectionPool

from ..support.world import World

URL = "http://a.example.com/"
NO_PATIENCE: dict[str, object] = {"timeout": {"pool": 0.001}}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Two chunks; may break between them, or on closing."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = chunks or (b"bo", b"dy")
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.close()


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers with a body; records the hosts of its requests, and how often it is closed."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.answer = answer or (lambda _: httpx.Response(200, stream=Body()))
        self.hosts: list[str] = []
        self.closed = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.hosts.append(request.url.host)
        return self.answer(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.close()


class Pool:
    """A pool of such wires in a world, and the wires it has made.

    Attributes:
        answer: the answer of wires that are made from now on.
    """

    def __init__(self, world: World, most: int | None = None, idle: int | None = None, **limits: Any) -> None:
        self.world = world
        self.made: list[Wire] = []
        self.answer: Callable[[httpx.Request], httpx.Response] | None = None
        kind: Any = world.pick(ConnectionPool, AsyncConnectionPool)
        self.transport: Any = kind(
            self._make, httpx.Limits(max_connections=most, max_keepalive_connections=idle, **limits)
        )

    def _make(self) -> Wire:
        self.made.append(Wire(self.answer))
        return self.made[-1]

    @property
    def state(self) -> Any:
        return self.transport

    async def open(self, url: str = URL, **options: Any) -> httpx.Response:
        """Send a request without reading the response."""
        return await self.world.send(self.transport, httpx.Request("GET", url, **options))

    async def get(self, url: str = URL, **options: Any) -> bytes:
        """Send a request, and read the answer to its end."""
        return await self.world.read(await self.open(url, **options))

    async def hurry(self, url: str = URL) -> bytes:
        """The same for a request that does not wait for a wire."""
        return await self.get(url, extensions=NO_PATIENCE)
