"""Writes a request on a connection of aiohttp's, with the bytes that httpx's own wire sends.

h11, httpx's own protocol library, checks every head that is not plainly legal, so that both wires refuse the same
requests.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import h11
import httpx
from aiohttp.http_writer import StreamWriter

from .._checks import TOKEN
from .._families import alike
from .._headers import items_of
from .aiohttp_exchange import BUFFER, Connection, error_for

_TOKEN: Final = TOKEN.encode()
_LINE: Final = re.compile(rb"%b [!-~]+" % _TOKEN)
_NAMES: Final = re.compile(rb"%b(?:\n%b)*" % (_TOKEN, _TOKEN))
_VALUE: Final = rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?"
_VALUES: Final = re.compile(rb"%b(?:\n%b)*" % (_VALUE, _VALUE))
_MOST_DIGITS: Final = 20
"""Of a length, as in h11."""

_Items = Sequence[tuple[bytes, bytes, bytes]]
"""Headers, as `items_of` gives them."""


class _Head(NamedTuple):
    """A legal head: its bytes, and the length of the body, which is None for one in chunks."""

    content: bytes
    length: int | None

    @classmethod
    def of(cls, method: bytes, target: bytes, items: _Items) -> "_Head":
        """The head as h11 writes it.

        Raises:
            h11.LocalProtocolError: it is not legal.
        """
        raw_names, names, values = zip(*items, strict=True) if items else ((), (), ())
        written, contents = b"\n".join(raw_names), b"\n".join(values)
        # Checked all at once; a line break inside one of them would show in the number of lines.
        if (
            names[:1] == (b"host",)
            and names.count(b"host") == 1
            and b"transfer-encoding" not in names
            and written.count(b"\n") == contents.count(b"\n") == len(items) - 1
            and _LINE.fullmatch(b"%b %b" % (method, target))
            and _NAMES.fullmatch(written)
            and _VALUES.fullmatch(contents)
        ):
            length = _plain_length(names, values)
            if length is not None:
                return cls(_written(method, target, zip(raw_names, values, strict=True)), length)
        fields = [(name, value) for name, _, value in items]
        request = h11.Request(method=method, target=target, headers=fields)
        found = dict(request.headers)
        # "A user agent SHOULD generate Host as the first header field" (RFC 9110, section 7.2).
        ordered = sorted(request.headers.raw_items(), key=lambda field: field[0].lower() != b"host")
        length = None if b"transfer-encoding" in found else int(found.get(b"content-length", b"0"))
        return cls(_written(request.method, request.target, ordered), length)


def _plain_length(names: tuple[bytes, ...], values: tuple[bytes, ...]) -> int | None:
    """The length of the body; None if that is not simply one number."""
    count = names.count(b"content-length")
    if count == 0:
        return 0
    value = values[names.index(b"content-length")]
    return int(value) if count == 1 and value.isdigit() and len(value) <= _MOST_DIGITS else None


def _written(method: bytes, target: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines)


class RequestWriter:
    """A request to be written.

    Args:
        forwarding: headers for the proxy that carries the request in the clear, or None.

    Raises:
        httpx.LocalProtocolError: the method, the target or a header is not legal.
    """

    def __init__(self, request: httpx.Request, forwarding: Mapping[str, str] | None) -> None:
        self._request = request
        target = request.extensions.get("target", request.url.raw_path)
        target = target.encode("ascii") if isinstance(target, str) else target
        items = items_of(request.headers)
        if forwarding is not None:
            target = b"%s://%s%s" % (request.url.raw_scheme, request.url.netloc, target)
            names = {name for _, name, _ in items}
            own = [
                (name.encode(), name.lower().encode(), value.encode()) for name, value in forwarding.items()
            ]
            items = [*(item for item in own if item[1] not in names), *items]
        try:
            self._pending, self._left = _Head.of(request.method.encode(), target, items)
        except h11.LocalProtocolError as error:
            raise self._refused(str(error)) from error

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops listening, the rest is dropped: it may have answered already."""
        stream: Any = self._request.stream
        try:
            if type(stream) in alike(httpx.ByteStream):
                # All of it is there: to iterate asynchronously would take longer than to write it.
                for data in stream:
                    self._add(data)
            else:
                await self._collect(stream, connection, seconds)
            self._end()
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
            self._add(data)
            if len(self._pending) >= BUFFER:
                await self._flush(connection, seconds)

    def _add(self, data: bytes) -> None:
        """Collect a piece of the body."""
        if self._left is None:
            # One without bytes would be the end.
            self._pending += b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return
        self._left -= len(data)
        if self._left < 0:
            raise self._refused("Too much data for declared Content-Length")
        self._pending += data

    def _end(self) -> None:
        """Collect the end of the body."""
        if self._left is None:
            self._pending += b"0\r\n\r\n"
        elif self._left:
            raise self._refused("Too little data for declared Content-Length")

    def _refused(self, why: str) -> httpx.RequestError:
        return error_for(httpx.LocalProtocolError, why, self._request)

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
