"""The request that an aiohttp connection carries, and its answer.

h11, httpx's own protocol library, checks and serializes the request, so that both wires send the same bytes and refuse
the same requests. A plain request, as nearly all are, is serialized here instead, to the same bytes, which takes a
fraction of the work. Every error is the one that httpx's own wire raises in the same case.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import h11
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import StreamWriter

from .._families import alike, error_for, family_of
from .._headers import NAME, VALUE
from .._secrets import Secret
from .aiohttp_connection import Connection

READ_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError)
"""The errors for an answer that does not arrive, or is incomplete."""

_PLAIN_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_TARGET: Final = re.compile(rb"[!-~]+")
_NAMES: Final = re.compile(rb"%b(?:,%b)*" % (NAME, NAME))
_VALUES: Final = re.compile(rb"%b(?:\n%b)*" % (VALUE, VALUE))
_SPECIAL: Final = frozenset({b"transfer-encoding", b"upgrade", b"expect"})
"""Headers that are left to h11."""

_KEPT: Final = b"keep-alive"


def plain_request(request: httpx.Request) -> bytes:
    """The bytes of a request with its body in memory and nothing unusual in its head; empty for any other request."""
    if (
        not request.headers
        or request.method not in _PLAIN_METHODS
        or "target" in request.extensions
        or type(request.stream) is not family_of(request).ByteStream
    ):
        return b""
    # Join the body first: that may raise an error, and the other variables hold the token.
    body, target, fields = b"".join(request.stream), request.url.raw_path, request.headers.raw
    names, values = zip(*fields, strict=True)
    all_names, all_values = b",".join(names), b"\n".join(values)
    known = dict(zip(all_names.lower().split(b","), values, strict=False))
    # Whether no name contains a comma, no value a line break, and no field occurs twice.
    are_single = len(known) == len(fields) == all_names.count(b",") + 1 == all_values.count(b"\n") + 1
    if (
        not are_single
        or not (_TARGET.fullmatch(target) and _NAMES.fullmatch(all_names) and _VALUES.fullmatch(all_values))
        or b"host" not in known
        or known.get(b"connection", _KEPT) != _KEPT
        or known.get(b"content-length", b"0") != b"%d" % len(body)
        or not _SPECIAL.isdisjoint(known)
    ):
        return b""
    lines = [b": ".join(field) for field in fields]
    lines.insert(0, lines.pop(list(known).index(b"host")))  # h11 sends it first.
    return b"\r\n".join([b"%b %b HTTP/1.1" % (request.method.encode(), target), *lines, b"", body])


class RequestWriter:
    """Writes a request. `forwarding`: headers for the proxy that forwards it in plain text, or None."""

    _machine: h11.Connection | None = None  # None for a plain request.

    def __init__(self, request: httpx.Request, forwarding: Secret | None) -> None:
        self._request, self._is_cut = request, False
        # Not bound to a variable, since tracebacks show variables, and the headers contain the token.
        self._unwritten = b"" if forwarding is not None else plain_request(request)
        if self._unwritten:
            return
        self._machine = h11.Connection(h11.CLIENT)
        url, target = request.url, request.extensions.get("target")
        if target is None:
            target = url.raw_path
            if forwarding is not None:
                target = b"%s://%s%s" % (url.raw_scheme, url.netloc, target)
        with _protocol_errors(request):
            self._add(
                h11.Request(
                    method=request.method.encode(), target=target, headers=_fields(request, forwarding)
                )
            )

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops reading, drop the rest: it may have answered already."""
        stream: Any = self._request.stream
        try:
            if self._machine is None:
                await self._write(connection, seconds)
                return
            with _protocol_errors(self._request):
                if type(stream) in alike(httpx.ByteStream):
                    # It is in memory: asynchronous iteration would take longer than writing it.
                    for chunk in stream:
                        self._add(h11.Data(data=chunk))
                else:
                    await self._write(connection, seconds)
                    async for chunk in stream:
                        self._add(h11.Data(data=chunk))
                        await self._write(connection, seconds)
                        await asyncio.sleep(0)  # A body that never waits would keep other tasks from running.
                self._add(h11.EndOfMessage())
                await self._write(connection, seconds)
        except _NotReadingError:
            self._is_cut = True

    @property
    def must_close(self) -> bool:
        """Whether the connection cannot be reused: the request says so, or is incomplete (RFC 9112, section 9.6)."""
        return self._is_cut or (self._machine is not None and self._machine.our_state is not h11.DONE)

    def _add(self, event: h11.Event) -> None:
        assert self._machine is not None
        self._unwritten += self._machine.send(event) or b""

    async def _write(self, connection: Connection, seconds: float | None) -> None:
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise _NotReadingError
        if self._unwritten:
            transport.write(self._unwritten)
            self._unwritten = b""
        if not connection.writing_paused:
            return
        try:
            async with asyncio.timeout(seconds):
                await StreamWriter(connection, asyncio.get_running_loop()).drain()
        except TimeoutError as error:
            if not connection.awaits_head:  # The server has answered, and stopped reading.
                raise _NotReadingError from error
            raise error_for(httpx.WriteTimeout, "", self._request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _NotReadingError from error


def _fields(request: httpx.Request, forwarding: Secret | None) -> list[tuple[bytes, bytes]]:
    """The headers of the request, and those for the proxy that it does not have."""
    fields = request.headers.raw
    if forwarding is None:
        return fields
    names = {name.lower() for name, _ in fields}
    own = [(name.encode(), value.encode()) for name, value in forwarding.reveal().items()]
    return [*(field for field in own if field[0].lower() not in names), *fields]


class _NotReadingError(Exception):
    """The server stopped reading while the request was being written."""


@contextmanager
def _protocol_errors(request: httpx.Request) -> Iterator[None]:
    """Turn h11's error for an illegal request into httpx's."""
    try:
        yield
    except h11.LocalProtocolError as error:
        raise error_for(httpx.LocalProtocolError, str(error), request) from error


class Body(httpx.AsyncByteStream):
    """The body of an answer. Closing it closes the connection or, if the body was read to its end, makes it idle."""

    ends_with_connection = False  # Whether the body ends when the connection does: a reset then truncates it.

    def __init__(self, connection: Connection, payload: Any, request: httpx.Request) -> None:
        self._connection, self._payload, self._request = connection, payload, request
        self._whole = payload is None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._whole:
            raise StopAsyncIteration
        try:
            data = await self._next()
            if not data and self.ends_with_connection and self._connection.broken_by is not None:
                raise self._connection.broken_by
        except READ_ERRORS as error:
            raise unreadable(error, self._connection, self._request) from error
        if not data:
            self._whole = True
            raise StopAsyncIteration
        return data

    async def _next(self) -> bytes:
        """Return what has arrived, waiting if there is nothing yet; empty at the end of the body."""
        payload = self._payload
        while True:
            # aiohttp's public methods would raise an error before they return what arrived earlier, and would wait
            # forever if it comes together with the end of a chunk.
            data: bytes = payload._read_nowait(-1)  # noqa: SLF001
            error = payload.exception()
            if data or (payload.at_eof() and error is None):
                return data
            if error is not None:
                raise error
            # Looked up each time: a deadline shortens the timeout only until the caller has the response.
            connection, seconds = self._connection, self._request.extensions.get("timeout", {}).get("read")
            try:
                async with asyncio.timeout(seconds) as connection.timeout:
                    connection.seconds = seconds
                    await payload._wait("read")  # noqa: SLF001
            finally:
                connection.timeout = None

    async def aclose(self) -> None:
        connection = self._connection
        can_go_on = connection.is_connected() and not (connection.is_last or connection.should_close)
        if not self._whole or not can_go_on or connection.has_leftovers():
            connection.drop()
        elif connection.idle_since is None:
            connection.idle_since = asyncio.get_running_loop().time()


class NetworkStream:
    """The `network_stream` extension of an httpx response."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_extra_info(self, info: str) -> Any:
        """A property, as in httpcore: `ssl_object`, `client_addr`, `server_addr`, `socket` or `is_readable`."""
        transport = self._connection.transport
        if info == "is_readable":
            return transport is None or transport.is_closing()
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return None if transport is None else transport.get_extra_info(names.get(info, info))


def require_readable(message: Any) -> None:
    """Raise the parser's error for an answer that aiohttp accepts but httpcore does not."""
    if message.code == httpx.codes.SWITCHING_PROTOCOLS:
        raise HttpProcessingError(message="it switches to another protocol, which this wire cannot speak")
    if message.code < httpx.codes.CONTINUE:
        raise HttpProcessingError(message=f"its status is impossible: {message.code}")
    if "Transfer-Encoding" in message.headers:  # aiohttp accepts more kinds of white space than HTTP does.
        fields = [value for name, value in message.raw_headers if name.lower() == b"transfer-encoding"]
        if not message.chunked or [value.strip(b" \t").lower() for value in fields] != [b"chunked"]:
            names = b", ".join(fields).decode("latin-1")
            raise HttpProcessingError(message=f"its Transfer-Encoding is unknown: {names}")


def unreadable(error: Exception, connection: Connection, request: httpx.Request) -> httpx.RequestError:
    """httpx's error for an answer that did not arrive, or is incomplete; `error` is one of `READ_ERRORS`."""
    if isinstance(error, TimeoutError):  # Includes aiohttp's SocketTimeoutError.
        return error_for(httpx.ReadTimeout, "", request)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return error_for(
            httpx.RemoteProtocolError, "Server disconnected without sending a response.", request
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        kind = httpx.RemoteProtocolError if connection.broken_by is None else httpx.ReadError
        return error_for(kind, "peer closed connection before the whole body had arrived", request)
    if isinstance(error, HttpProcessingError):
        reason = " ".join(error.message.split())  # aiohttp marks the fault on separate lines.
        return error_for(httpx.RemoteProtocolError, f"the answer is not valid HTTP: {reason}", request)
    return error_for(httpx.ReadError, str(error), request)
