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
from .aiohttp_exchange import Connection


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
        with _refusing(request):
            self._head = self._bytes_of(
                h11.Request(method=request.method.encode(), target=target, headers=fields)
            )

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops listening, the rest is dropped: it may have answered already."""
        stream: Any = self._request.stream
        data = self._head
        try:
            with _refusing(self._request):
                if type(stream) in alike(httpx.ByteStream):
                    # All of it is there: to iterate asynchronously would take longer than to write it.
                    for chunk in stream:
                        data += self._bytes_of(h11.Data(data=chunk))
                else:
                    await self._write(connection, data, seconds)
                    data = b""
                    async for chunk in stream:
                        await self._write(connection, self._bytes_of(h11.Data(data=chunk)), seconds)
                await self._write(connection, data + self._bytes_of(h11.EndOfMessage()), seconds)
        except _NotListeningError:
            return

    def _bytes_of(self, event: h11.Event) -> bytes:
        return self._machine.send(event) or b""

    async def _write(self, connection: Connection, data: bytes, seconds: float | None) -> None:
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise _NotListeningError
        if data:
            transport.write(data)
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
