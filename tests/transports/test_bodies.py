"""Bodies that never end."""

import itertools
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from stkai.transports._bodies import SHORT, Reading, adrain, aload, drain, is_short

from ..support.world import World


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that never blocks and never ends."""

    def __iter__(self) -> Iterator[bytes]:
        yield from itertools.repeat(b"." * 1000)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def forever() -> float:
    return 1.0


async def test_a_body_that_never_ends_is_loaded_up_to_the_limit(world: World) -> None:
    response = httpx.Response(401, stream=Endless())
    if world.is_async:
        await aload(response, 3000, forever)
    else:
        reading = Reading(response, 3000)
        reading.fetch(forever)
        reading.keep()
    assert await world.read(response) == b"." * 3000


async def test_an_unwanted_body_that_never_ends_is_closed(world: World) -> None:
    response = httpx.Response(503, stream=Endless())
    if world.is_async:
        await adrain(response, 1.0)
    else:
        drain(response, Reading(response, SHORT), forever)
    assert response.is_closed


@pytest.mark.parametrize(
    ("length", "is_brief"),
    [("5", True), ("65536", True), ("65537", False), ("9" * 5000, False), ("-1", True), ("", True)],
)
def test_a_body_is_short_unless_its_length_says_otherwise(length: str, is_brief: bool) -> None:
    response = httpx.Response(503, headers={"content-length": length}, stream=Endless())
    assert is_short(response) is is_brief
