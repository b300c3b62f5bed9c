"""A network between a gateway and those who send to it: a relay that delays what it passes on, in both directions."""

import asyncio
import contextlib
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from .gateways import Gateway

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Distant:
    """A gateway to which each message takes a random time, and from which each answer does.

    Attributes:
        gateway: the server.
        least: seconds each way, at least.
        most: seconds each way, at most.
    """

    gateway: Gateway
    least: float
    most: float

    @property
    def missing(self) -> str:
        return self.gateway.missing

    @property
    def capacity(self) -> float:
        return self.gateway.capacity

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with self.gateway.serving() as url:
            arguments = (urlsplit(url).port, self.least, self.most, theirs)
            relay = context.Process(target=_relay, args=arguments, daemon=True)
            relay.start()
            try:
                yield f"http://127.0.0.1:{ours.recv()}/"
            finally:
                relay.terminate()
                relay.join()


def _relay(target: int, least: float, most: float, ready: Connection) -> None:
    asyncio.run(_serve(target, least, most, ready))


async def _serve(target: int, least: float, most: float, ready: Connection) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pass_on(reader, inner_writer, least, most))
            tasks.create_task(_pass_on(inner_reader, writer, least, most))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, least: float, most: float
) -> None:
    """Pass on everything in its order, and the end; data may overtake none that was sent before."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def write() -> None:
        data = b"-"
        while data:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            writer.write(data)
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        due, data = 0.0, b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            due = max(due, loop.time() + random.uniform(least, most))  # noqa: S311 - nothing here is a secret
            queue.put_nowait((due, data))
