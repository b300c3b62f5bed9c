"""Bodies that never end."""

import gzip
import itertools
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

import anyio
import httpx
import pytest

from stkai._abandonable import GivenUpError
from stkai.testing import FakeClock
from stkai.transports import Attempt, Call, Drain, Flow, drive
from stkai.transports._bodies import adrain, aload, aread, is_short, keep, load, read

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


def drain_in_thread(response: httpx.Response) -> None:
    def flow() -> Flow:
        yield Drain(response, 1.0)
        return response

    drive(flow(), Attempt(Call.start(httpx.Request("GET", "http://a/"), 0.0)), FakeClock())


async def test_a_body_that_never_ends_is_loaded_up_to_the_limit(world: World) -> None:
    response = httpx.Response(401, stream=Endless())
    if world.is_async:
        await aload(response, 3000, forever)
    else:
        chunks: list[bytes] = []
        load(response, 3000, chunks, forever)
        keep(response, chunks)
    assert await world.read(response) == b"." * 3000


async def test_an_unwanted_body_that_never_ends_is_closed(world: World) -> None:
    response = httpx.Response(503, stream=Endless())
    if world.is_async:
        await adrain(response, 1.0)
    else:
        drain_in_thread(response)
    assert response.is_closed


class Dripping(httpx.AsyncByteStream):
    """A chunk, and a wait for more; two generators, as in httpx over httpcore."""

    has_ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._received():
            yield chunk

    async def _received(self) -> AsyncIterator[bytes]:
        try:
            yield b"drip"
            await anyio.sleep_forever()
        finally:
            self.has_ended = True


async def test_a_read_that_is_given_up_after_a_chunk_leaves_no_generator_behind(event_loop: World) -> None:
    body = Dripping()
    with pytest.raises(GivenUpError):
        await aread(httpx.Response(200, stream=body), lambda: 0.0)
    assert body.has_ended


@pytest.mark.parametrize(
    ("length", "is_brief"),
    [("5", True), ("65536", True), ("65537", False), ("9" * 5000, False), ("-1", True), ("", True)],
)
def test_a_body_is_short_unless_its_length_says_otherwise(length: str, is_brief: bool) -> None:
    response = httpx.Response(503, headers={"content-length": length}, stream=Endless())
    assert is_short(response) is is_brief


PLAIN = {"content-type": "application/json"}
BODIES = {
    "plain": (PLAIN, b'{"a": 1}'),
    "empty": ({}, b""),
    "compressed": ({"content-encoding": "gzip"}, gzip.compress(b"abc")),
}


class OfAnotherVersion(httpx.Response):
    """A response that keeps its body in another way than those of today."""

    reads = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        vars(self).pop("_num_bytes_downloaded", None)

    def read(self) -> bytes:
        self.reads += 1
        return super().read()


def state(response: Any) -> dict[str, Any]:
    names = ("content", "text", "is_closed", "is_stream_consumed", "num_bytes_downloaded")
    return {name: getattr(response, name) for name in names}


@pytest.mark.parametrize("package", ["httpx", "httpx2"])
@pytest.mark.parametrize("body", BODIES)
async def test_a_body_is_read_as_the_package_itself_reads_it(world: World, package: str, body: str) -> None:
    family: Any = import_module(package)
    headers, content = BODIES[body]

    class Pieces(family.SyncByteStream, family.AsyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            yield from (content[:2], content[2:])

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self:
                yield piece

    ours, theirs = (family.Response(200, headers=headers, stream=Pieces()) for _ in range(2))
    if world.is_async:
        await aread(ours)
        await theirs.aread()
    else:
        read(ours)
        theirs.read()
    assert state(ours) == state(theirs)


def test_a_body_of_a_package_that_keeps_it_in_another_way_is_read_through_its_own_method() -> None:
    response = OfAnotherVersion(200, headers=PLAIN, stream=httpx.ByteStream(b"abc"))
    read(response)
    assert (response.reads, response.content) == (1, b"abc")
