"""Bodies that never end."""

import itertools
from collections.abc import AsyncIterator, Iterator

import httpx

from stkai.transports._bodies import adrain, aload, drain, load

from ..support.world import World


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that never blocks and never ends."""

    def __iter__(self) -> Iterator[bytes]:
        yield from itertools.repeat(b"." * 1000)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


async def test_a_body_that_never_ends_is_loaded_up_to_the_limit(world: World) -> None:
    response = httpx.Response(401, stream=Endless())
    await world.call(world.pick(load, aload), response, 3000)
    assert await world.read(response) == b"." * 3000


async def test_an_unwanted_body_that_never_ends_is_closed(world: World) -> None:
    response = httpx.Response(503, stream=Endless())
    if world.is_async:
        await adrain(response)
    else:
        drain(response, lambda: 0.0)
    assert response.is_closed
