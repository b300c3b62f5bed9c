"""Plays a scripted server against a wire, and notes the outcomes, the bytes that it saw, and its connections."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from stkai import RetryPolicy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMIT = 0.25
"""Seconds: every one of the four time limits."""

Serve = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's side of one connection.

    Attributes:
        seen: all bytes that arrived.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.seen = b""

    async def read(self) -> bytes:
        data = await self._reader.read(65536)
        self.seen += data
        return data

    async def head(self) -> bool:
        """Read up to the end of a head; False if the client has closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = await self.read()
            if not more:
                return False
            data += more
        return True

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def stop_reading(self) -> None:
        transport: Any = self._writer.transport
        transport.pause_reading()

    def reset(self) -> None:
        """End the connection with a reset (RST)."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


def answers(*parts: bytes, end: str = "close", pause: float = 0.0) -> Serve:
    """Answer each request with these bytes, then `close`, `reset`, `hang`, or `keep` the connection."""

    async def serve(peer: Peer) -> None:
        while await peer.head():
            for part in parts:
                await peer.send(part)
                await asyncio.sleep(pause)
            if end == "hang":
                await asyncio.sleep(4 * LIMIT)
            if end == "reset":
                await asyncio.sleep(0.01)
                peer.reset()
            if end != "keep":
                return

    return serve


async def echo(peer: Peer) -> None:
    """Answer with the bytes of the request."""
    await peer.head()
    with suppress(TimeoutError):
        await asyncio.wait_for(peer.read(), 0.05)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(peer.seen), peer.seen))


@dataclass(frozen=True)
class Case:
    """One scenario.

    Attributes:
        serve: what the server does on each connection.
        times: how many requests, one after the other.
        body: the request's body, or a function that makes an async iterator.
        pause: seconds between the requests.
        read: "all" of the body, only its "first" part, or "slowly".
        cancel: seconds after which the caller cancels.
        target: the request target, if it is not the path.
    """

    serve: Serve = echo
    method: str = "GET"
    path: str = "/"
    headers: Any = None
    body: bytes | Callable[[], AsyncIterator[bytes]] | None = None
    times: int = 1
    pause: float = 0.0
    read: str = "all"
    cancel: float | None = None
    target: bytes | None = None


@dataclass
class Seen:
    """What came of a scenario.

    Attributes:
        outcomes: a status, headers and body, or the class of an error, the part of the body that arrived, and whether
            a POST would be sent again.
        requests: all bytes that the server got.
        connections: how many there were.
    """

    outcomes: list[Any] = field(default_factory=list)
    requests: bytes = b""
    connections: int = 0


async def play(make: Callable[[], httpx.AsyncBaseTransport], case: Case) -> Seen:
    """Play the scenario over a new wire."""
    seen, peers, tasks = Seen(), list[Peer](), list[asyncio.Task[None]]()

    async def talk(peer: Peer) -> None:
        try:
            with suppress(ConnectionError):
                await case.serve(peer)
        finally:
            peer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        tasks.append(asyncio.create_task(talk(peers[-1])))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = make()
    for _ in range(case.times):
        request = httpx.Request(
            case.method,
            f"http://127.0.0.1:{port}{case.path}",
            headers=case.headers,
            content=case.body() if callable(case.body) else case.body,
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), LIMIT)},
        )
        if case.target is not None:
            request.extensions["target"] = case.target
        seen.outcomes.append(await _outcome(wire, request, case))
        await asyncio.sleep(case.pause)
        if case.pause:
            await asyncio.sleep(
                0.005
            )  # On a busy machine, too, what the server sent meanwhile arrives first.
    await wire.aclose()
    server.close()
    if tasks:  # The server reads what is on its way.
        await asyncio.wait(tasks, timeout=0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.005)  # The loop calls back the transports that were closed.
    seen.connections = len(peers)
    name = str(port).encode()
    seen.requests = b"".join(peer.seen for peer in peers).replace(name, b"PORT")
    return seen


async def _outcome(wire: httpx.AsyncBaseTransport, request: httpx.Request, case: Case) -> Any:
    head: tuple[Any, ...] = ()
    parts: list[bytes] = []

    async def exchange() -> None:
        nonlocal head
        response = await wire.handle_async_request(request)
        extensions = response.extensions
        head = (
            response.status_code, response.headers.raw, extensions["http_version"], extensions["reason_phrase"]
        )  # fmt: skip
        try:
            stream: Any = response.stream
            async for part in stream:
                parts.append(part)
                if case.read == "first":
                    parts[:] = [part[:1]]
                    break
                if case.read == "slowly":
                    await asyncio.sleep(1.5 * LIMIT)
        finally:
            await response.aclose()

    try:
        await asyncio.wait_for(exchange(), case.cancel)
    except Exception as error:
        failure = RetryPolicy().failure_of(None, error, datetime.now(UTC), repeatable=False)
        return type(error), b"".join(parts), failure is not None
    return (*head, _without_port(b"".join(parts), request))


def _without_port(body: bytes, request: httpx.Request) -> bytes:
    return body.replace(str(request.url.port).encode(), b"PORT")


def pieces(*parts: bytes, error: Exception | None = None) -> Callable[[], AsyncIterator[bytes]]:
    """A body that comes in parts, and may then break."""

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        if error is not None:
            raise error

    return body


def many(head: bytes, lines: Iterable[bytes]) -> bytes:
    """A head with these further lines."""
    return head + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: 0\r\n\r\n"
