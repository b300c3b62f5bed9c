"""The wires for HTTP/2: httpx transports whose few connections carry many requests at once."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from .._event_loops import running_loop
from .._families import HTTPX, Family, of_family
from .._forks import after_fork
from .closing import AsyncClosable, Closable


class Multiplexed(Closable):
    """Sends all requests through one wire; a forked child opens its own connections.

    Args:
        make: makes the wire.
        family: its package.
    """

    def __init__(self, make: Callable[[], httpx.BaseTransport], family: Family = HTTPX) -> None:
        self.family = family
        self._make = make
        self._wire = make()
        after_fork(self, Multiplexed._start_anew)

    def _start_anew(self) -> None:
        self._wire = self._make()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        return self._wire.handle_request(request)

    def _close(self) -> None:
        self._wire.close()


class AsyncMultiplexed(AsyncClosable):
    """The async version, for the event loop that runs when it is made; `WirePerLoop` handles loops and forks."""

    def __init__(self, wire: httpx.AsyncBaseTransport, family: Family = HTTPX) -> None:
        self.family = family
        self._wire = wire
        self._loop = running_loop()
        self._body = of_family(_BodyOfLoop, family)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        response = await self._wire.handle_async_request(request)
        response.stream = self._body(response.stream, self._loop)
        return response

    async def _aclose(self) -> None:
        await self._wire.aclose()


class _BodyOfLoop(httpx.AsyncByteStream):
    """A body that can be closed, along with its connection, after its loop has ended."""

    def __init__(self, body: Any, loop: Any) -> None:
        self._body, self._loop = body, loop

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            yield part

    async def aclose(self) -> None:
        if self._loop is running_loop():
            await self._body.aclose()
