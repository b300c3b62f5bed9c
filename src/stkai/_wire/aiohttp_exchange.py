"""A connection of aiohttp's, and the request and answer that it carries.

h11, httpx's own protocol library, checks and serializes the request, so that both wires send the same bytes and refuse
the same requests. Every error is the one that httpx's own wire raises in the same case.
"""

import asyncio
import select
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import aiohttp
import h11
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpResponseParser
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import StreamWriter

from .._families import alike, error_for

BUFFER_SIZE: Final = 65_536
"""Bytes that are buffered, both before they are written and before they are read."""

MAX_HEAD: Final = 102_400
"""Bytes that the head of an answer may have, as in httpcore."""

READ_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError)
"""The errors for an answer that does not arrive, or is incomplete."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_PARSER: Any = sys.modules[HttpResponseParser.__module__]
_LOCK: Final = threading.Lock()


class Connection(ResponseHandler):
    """One connection. If bytes arrive while it is idle, they belong to no request, so it cannot be reused."""

    idle_since: float | None = None  # In seconds of the loop's clock; None while in use.
    awaits_head = False  # Whether the head of the answer is still to come.
    _last = b""  # The last bytes of a head that is still incomplete.
    head_left: int | None = None  # How many bytes of the head may still arrive; None once it is complete.
    seconds: float | None = None  # How long each read may take; None for no limit.
    timeout: asyncio.Timeout | None = (
        None  # The timer for that limit, while the head or more of the body is awaited.
    )
    is_last = False  # Whether no other request may follow the one in progress.
    broken_by: BaseException | None = None  # aiohttp forgets it once a body without length has begun.

    def is_alive(self) -> bool:
        """Whether it can carry another request: it is open, and its socket has nothing to read.

        While a program keeps its event loop busy, the loop does not notice that the server has closed the connection.
        """
        if not self.is_connected() or self.transport is None:
            return False
        try:
            return not is_readable(self.transport.get_extra_info("socket").fileno())
        except (OSError, ValueError):  # The socket is closed.
            return False

    def drop(self) -> None:
        """Close at once. aiohttp's `close` would first send the rest of a request, however long the server takes."""
        payload, error = (
            self._payload,
            aiohttp.ClientConnectionError("the connection was closed on this side"),
        )
        if self.awaits_head and self.exception() is None:
            self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()
        self.close()
        if payload is not None and not payload.is_eof():  # aiohttp does not wake a task that is reading it.
            payload.set_exception(error)

    def set_response_params(self, **parameters: Any) -> None:
        """Prepare for an answer. In asyncio's debug mode, aiohttp would refuse what it accepts otherwise."""
        self._parameters = parameters
        if not _PARSER.DEBUG:
            super().set_response_params(**parameters)
            return
        with _LOCK:
            _PARSER.DEBUG = False
            try:
                super().set_response_params(**parameters)
            finally:
                _PARSER.DEBUG = True

    def data_received(self, data: bytes) -> None:
        if self.idle_since is not None:
            self.drop()
            return
        # In steps: if what follows the answer is not HTTP, the answer must not be lost with it.
        while self.awaits_head and data:
            offset = (self._last + data).find(_END_OF_HEAD)
            size = len(data) if offset < 0 else offset + len(_END_OF_HEAD) - len(self._last)
            chunk, data = data[:size], data[size:]
            self._last = b"" if offset >= 0 else (self._last + chunk)[1 - len(_END_OF_HEAD) :]
            self._parse(chunk)
            if self.awaits_head and offset >= 0 and self.exception() is None:
                # The parser would refuse what follows an informational answer that says "Connection: close".
                self._should_close = False
                self.set_response_params(**self._parameters)
            if not data:
                return
        self._parse(data)  # May be empty: aiohttp does that to parse what it has buffered.

    def feed_data(self, data: Any, *size: int) -> None:
        """Called by aiohttp with a head, and the body that follows it."""
        super().feed_data(data, *size)
        self.awaits_head = is_interim(data[0].code)
        if not self.awaits_head:
            self.timeout = None

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self.head_left is not None:
            self.head_left = None if self._buffer else self.head_left - len(data)
            if self.head_left is not None and self.head_left < 0 and self.exception() is None:
                self.set_exception(HttpProcessingError(message=f"its head is longer than {MAX_HEAD} bytes"))
        error, payload = self._exception, self._payload
        still_waits = data and (self.head_left is not None or not getattr(payload, "_buffer", True))
        if still_waits and self.timeout is not None and self.seconds is not None:
            with suppress(RuntimeError):  # It has just expired.
                self.timeout.reschedule(self._loop.time() + self.seconds)
        if isinstance(error, HttpProcessingError) and payload is not None and not payload.is_eof():
            payload.set_exception(error)  # aiohttp would leave the reader of the body waiting.

    def connection_lost(self, exc: BaseException | None) -> None:
        self.broken_by = exc
        super().connection_lost(exc)


class RequestWriter:
    """Writes a request. `forwarding`: headers for the proxy that forwards it in plain text, or None."""

    def __init__(self, request: httpx.Request, forwarding: Mapping[str, str] | None) -> None:
        self._request, self._is_cut = request, False
        self._machine = h11.Connection(h11.CLIENT)
        url, fields = request.url, request.headers.raw
        target = request.extensions.get("target")
        if target is None:
            target = url.raw_path
            if forwarding is not None:
                target = b"%s://%s%s" % (url.raw_scheme, url.netloc, target)
        if forwarding is not None:
            names = {name.lower() for name, _ in fields}
            own = [(name.encode(), value.encode()) for name, value in forwarding.items()]
            fields = [*(field for field in own if field[0].lower() not in names), *fields]
        self._unwritten = b""  # An attribute, because tracebacks show variables, and it contains the headers.
        with _protocol_errors(request):
            self._add(h11.Request(method=request.method.encode(), target=target, headers=fields))

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops reading, drop the rest: it may have answered already."""
        stream: Any = self._request.stream
        try:
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
                self._add(h11.EndOfMessage())
                await self._write(connection, seconds)
        except _NotReadingError:
            self._is_cut = True

    @property
    def must_close(self) -> bool:
        """Whether the connection cannot be reused: the request says so, or is incomplete (RFC 9112, section 9.6)."""
        return self._is_cut or self._machine.our_state is not h11.DONE

    def _add(self, event: h11.Event) -> None:
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
    """The body of an answer. Closing it closes the connection, unless it was read to its end: then that is idle."""

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
        # First return what arrived before the connection broke; aiohttp would raise the error at once.
        data: bytes = payload._read_nowait(-1)  # noqa: SLF001 - the public method raises the error first
        if data or (payload.at_eof() and payload.exception() is None):
            return data
        # Looked up each time: a deadline shortens it only until the caller has the response.
        connection, seconds = self._connection, self._request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds) as connection.timeout:
                connection.seconds = seconds
                return bytes(await payload.readany())
        finally:
            connection.timeout = None

    async def aclose(self) -> None:
        connection = self._connection
        can_go_on = connection.is_connected() and not (connection.is_last or connection.should_close)
        if not self._whole or not can_go_on:
            connection.drop()
        elif connection.idle_since is None:
            connection.idle_since = asyncio.get_running_loop().time()


def is_interim(status: int) -> bool:
    """Whether the final answer is still to come (RFC 9110, section 15.2)."""
    return httpx.codes.is_informational(status) and status != httpx.codes.SWITCHING_PROTOCOLS


def is_readable(descriptor: int) -> bool:
    """Whether data, or the end of the connection, has arrived at a socket."""
    if hasattr(select, "poll"):  # `select` does not accept large descriptors, but Windows has no `poll`.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


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
        reason = " ".join(error.message.split())  # aiohttp marks the fault on lines of its own.
        return error_for(httpx.RemoteProtocolError, f"the answer is not valid HTTP: {reason}", request)
    return error_for(httpx.ReadError, str(error), request)
