"""Writes a request on a connection of aiohttp's.

h11, httpx's own protocol library, checks and writes it, so that both wires send the same bytes and refuse the same
requests.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import h11
import httpx
from aiohttp.http_writer import StreamWriter

from .._families import alike, error_for
from .aiohttp_exchange import BUFFER, Connection


class RequestWriter:
    """A request to be written.

    Args:
        forwarding: headers for the proxy that carries the request in the clear, or None.

    Raises:
        httpx.LocalProtocolError: the method, the target or a header is not legal.
    """

    def __init__(self, request: httpx.Request, forwarding: Mapping[str, str] | None) -> None:
        self._request = request
        self._machine = h11.Connection(h11.CLIENT)
        target = request.extensions.get("target", request.url.raw_path)
        fields = request.headers.raw
        if forwarding is not None:
            target = b"%s://%s%s" % (request.url.raw_scheme, request.url.netloc, target)
            names = {name.lower() for name, _ in fields}
            own = [(name.encode(), value.encode()) for name, value in forwarding.items()]
            fields = [*(field for field in own if field[0].lower() not in names), *fields]
        self._pending = b""
        with _refusing(request):
            self._add(h11.Request(method=request.method.encode(), target=target, headers=fields))

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops listening, the rest is dropped: it may have answered already."""
        stream: Any = self._request.stream
        try:
            with _refusing(self._request):
                if type(stream) in alike(httpx.ByteStream):
                    # All of it is there: to iterate asynchronously would take longer than to write it.
                    for data in stream:
                        self._add(h11.Data(data=data))
                else:
                    await self._collect(stream, connection, seconds)
                self._add(h11.EndOfMessage())
                await self._flush(connection, seconds)
        except _NotListeningError:
            return

    async def _collect(self, stream: Any, connection: Connection, seconds: float | None) -> None:
        """Collect a body that comes in pieces. While it waits for one, the loop runs and sends what there is."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._write_pending, connection)
        async for data in stream:
            if not self._pending:
                loop.call_soon(self._write_pending, connection)
            self._add(h11.Data(data=data))
            if len(self._pending) >= BUFFER:
                await self._flush(connection, seconds)

    def _add(self, event: h11.Event) -> None:
        self._pending += self._machine.send(event) or b""

    def _write_pending(self, connection: Connection) -> bool:
        """Write what has been collected; returns whether the server still listens."""
        transport, data = connection.transport, self._pending
        if transport is None or transport.is_closing():
            return False
        self._pending = b""
        if data:
            transport.write(data)
        return True

    async def _flush(self, connection: Connection, seconds: float | None) -> None:
        if not self._write_pending(connection):
            raise _NotListeningError
        if not connection.writing_paused:
            return
        try:
            async with asyncio.timeout(seconds):
                await StreamWriter(connection, asyncio.get_running_loop()).drain()
        except TimeoutError as error:
            raise error_for(httpx.WriteTimeout, "", self._request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _NotListeningError from error


class _NotListeningError(Exception):
    """The server has closed its side while the request was being written."""


@contextmanager
def _refusing(request: httpx.Request) -> Iterator[None]:
    """Turn h11's refusal to write something illegal into httpx's error."""
    try:
        yield
    except h11.LocalProtocolError as error:
        raise error_for(httpx.LocalProtocolError, str(error), request) from error
