"""The clients in the worlds, and bodies that arrive in pieces."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from stkai import AsyncHttpClient, HttpClient, StackBuilder
from stkai.testing import FakeClock

from .wire import Wire
from .world import World

URL = "https://api.example.com/v1/things?page=1"


def client_of(world: World, transport: Any) -> Any:
    return world.pick(HttpClient, AsyncHttpClient)(transport)


def stack_of(world: World, wire: Wire, *layers: Any, clock: FakeClock | None = None) -> Any:
    """A client over the layers, in virtual time."""
    return client_of(world, world.build(StackBuilder(layers, clock=clock or FakeClock()), wire))


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Chunks, one of which may be an error; an action may precede each."""

    def __init__(self, *chunks: bytes | BaseException, before: Callable[[], object] = int) -> None:
        self._chunks = iter(chunks)
        self._before = before

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._before()
        chunk = next(self._chunks)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None


async def arrivals(world: World, response: httpx.Response) -> tuple[list[bytes], Exception | None]:
    """The chunks that arrived, and the error that ended them."""
    chunks: list[bytes] = []

    async def read() -> None:
        async for chunk in response.aiter_bytes():
            chunks.append(chunk)  # noqa: PERF401 - what arrived before an error counts

    def read_sync() -> None:
        for chunk in response.iter_bytes():
            chunks.append(chunk)  # noqa: PERF402

    try:
        await world.call(world.pick(read_sync, read))
    except httpx.TransportError as error:
        return chunks, error
    return chunks, None


BROKEN = httpx.RemoteProtocolError("peer closed connection without sending complete message body")
