"""A connection of aiohttp's, the request that is written on it, and the answer that is read from it.

h11, httpx's own protocol library, checks and writes the request, so that both wires send the same bytes and refuse the
same requests. Every error is the one that httpx's own wire raises in the same case.
"""

import asyncio
import select
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import aiohttp
import h11
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import StreamWriter

from .._errors import describe
from .._families import alike, error_for

BUFFER: Final = 65_536
"""Bytes that are collected before they are written, and that are read ahead."""

LONGEST: Final = 102_400
"""Bytes of a head, as in httpcore."""

NOT_READ: Final = (aiohttp.ClientError, HttpProcessingError, OSError)
"""The errors of an answer that does not come, or not whole."""

_END_OF_HEAD: Final = b"\r\n\r\n"


class Connection(ResponseHandler):
    """One connection. It cannot be used again if bytes arrive while it is idle: they belong to no request."""

    idle_since: float | None = None  # In seconds of the loop's clock; None while in use.
    awaits_head = False  # Whether the head of the answer has not arrived yet.
    _last = b""  # The last bytes of what has arrived of a head.
    head_left: int | None = None  # How many bytes of the head may still arrive; None once it is complete.
    seconds: float | None = None  # How long each part of the head may take; None for no limit.
    timeout: asyncio.Timeout | None = None  # That limit while the head is awaited.
    is_last = False  # Whether no other request may follow the one in progress.
    broken_by: BaseException | None = None  # aiohttp forgets it once a body without length has begun.

    def is_alive(self) -> bool:
        """Whether it can carry another request: it is open, and nothing has arrived that the loop has not seen yet.

        A program that computes for a while keeps its loop from noticing that the server has closed the connection.
        """
        if not self.is_connected() or self.transport is None:
            return False
        try:
            return not is_readable(self.transport.get_extra_info("socket").fileno())
        except (OSError, ValueError):  # It was closed underneath.
            return False

    def drop(self) -> None:
        """Close at once. aiohttp's `close` first sends what is left of a request, however long the server takes."""
        payload = self._payload
        if self.transport is not None:
            self.transport.abort()
        self.close()
        if payload is not None and not payload.is_eof():  # Another task reads it: aiohttp forgets that.
            payload.set_exception(aiohttp.ClientConnectionError("the connection was closed on this side"))

    def data_received(self, data: bytes) -> None:
        if self.idle_since is not None:
            self.drop()
            return
        # In steps: what follows the answer and is not HTTP must not take the answer with it.
        while self.awaits_head and data:
            place = (self._last + data).find(_END_OF_HEAD)
            size = len(data) if place < 0 else place + len(_END_OF_HEAD) - len(self._last)
            part, data = data[:size], data[size:]
            self._last = b"" if place >= 0 else (self._last + part)[1 - len(_END_OF_HEAD) :]
            self._parse(part)
            if not data:
                return
        self._parse(data)  # Perhaps nothing: aiohttp asks so for what it has put off.

    def feed_data(self, data: Any, *size: int) -> None:
        """Called by aiohttp with a head, and its body that is to come."""
        super().feed_data(data, *size)
        self.awaits_head = is_interim(data[0].code)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self.head_left is not None:
            self.head_left = None if self._buffer else self.head_left - len(data)
            if self.head_left is not None and self.head_left < 0 and self.exception() is None:
                self.set_exception(HttpProcessingError(message=f"its head is longer than {LONGEST} bytes"))
            if self.head_left is not None and self.timeout is not None and self.seconds is not None:
                with suppress(RuntimeError):  # It has just run out.
                    self.timeout.reschedule(self._loop.time() + self.seconds)
        error, payload = self._exception, self._payload
        if isinstance(error, HttpProcessingError) and payload is not None and not payload.is_eof():
            payload.set_exception(error)  # aiohttp leaves the reader of the body waiting for more.

    def connection_lost(self, exc: BaseException | None) -> None:
        self.broken_by = exc
        super().connection_lost(exc)


class RequestWriter:
    """A request to be written; `forwarding` are headers for the proxy that carries it in the clear, or None."""

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
        self._unwritten = b""  # No variable, which a traceback would show: it has the headers.
        with _refusing(request):
            self._add(h11.Request(method=request.method.encode(), target=target, headers=fields))

    async def write_to(self, connection: Connection, seconds: float | None) -> None:
        """Send head and body. If the server stops reading, the rest is dropped: it may have answered already."""
        stream: Any = self._request.stream
        try:
            with _refusing(self._request):
                if type(stream) in alike(httpx.ByteStream):
                    # All of it is there: to iterate asynchronously would take longer than to write it.
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
            return

    @property
    def must_close(self) -> bool:
        """Whether no request may follow on the connection: it says so, or was not sent whole; RFC 9112, section 9.6."""
        return self._machine.our_state is not h11.DONE

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
            if not connection.awaits_head:  # The server has answered, and reads no more.
                raise _NotReadingError from error
            raise error_for(httpx.WriteTimeout, "", self._request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _NotReadingError from error


class _NotReadingError(Exception):
    """The server has closed its side while the request was being written."""


@contextmanager
def _refusing(request: httpx.Request) -> Iterator[None]:
    """Turn h11's refusal to write something illegal into httpx's error."""
    try:
        yield
    except h11.LocalProtocolError as error:
        raise error_for(httpx.LocalProtocolError, str(error), request) from error


class Body(httpx.AsyncByteStream):
    """The body of an answer. Once it is read to its end and closed, its connection is idle; otherwise it is closed."""

    ends_with_connection = False  # Whether nothing else ends the body: then a reset has cut it off.

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
        except NOT_READ as error:
            raise unreadable(error, self._connection, self._request) from error
        if not data:
            self._whole = True
            raise StopAsyncIteration
        return data

    async def _next(self) -> bytes:
        """What has arrived; waits if that is nothing. Empty at the end of the body."""
        payload = self._payload
        # What arrived before the connection broke is read first, though aiohttp would raise the error at once.
        data: bytes = payload._read_nowait(-1)  # noqa: SLF001 - the public one raises first
        if data or (payload.at_eof() and payload.exception() is None):
            return data
        # Looked up anew: a deadline shortens it only until the caller has the response.
        async with asyncio.timeout(self._request.extensions.get("timeout", {}).get("read")):
            return bytes(await payload.readany())

    async def aclose(self) -> None:
        connection = self._connection
        can_go_on = connection.is_connected() and not (connection.is_last or connection.should_close)
        if not self._whole or not can_go_on:
            connection.drop()
        elif connection.idle_since is None:
            connection.idle_since = asyncio.get_running_loop().time()


class NetworkStream:
    """What httpx's `network_stream` tells of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_extra_info(self, info: str) -> Any:
        """As in httpcore: `ssl_object`, `client_addr`, `server_addr`, `socket`, or `is_readable`."""
        transport = self._connection.transport
        if info == "is_readable":
            return transport is None or transport.is_closing()
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return None if transport is None else transport.get_extra_info(names.get(info, info))


def is_interim(status: int) -> bool:
    """Whether the answer to the request is still to come (RFC 9110, section 15.2)."""
    return httpx.codes.is_informational(status) and status != httpx.codes.SWITCHING_PROTOCOLS


def is_readable(descriptor: int) -> bool:
    """Whether data has arrived at a socket, or its end."""
    if hasattr(select, "poll"):  # `select` itself cannot take large numbers, and Windows has nothing else.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])


@contextmanager
def connect_errors(request: httpx.Request) -> Iterator[None]:
    """Turn the errors of a connection that could not be opened into httpx's."""
    try:
        yield
    except TimeoutError as error:
        raise error_for(httpx.ConnectTimeout, "", request) from error
    except aiohttp.ClientHttpProxyError as error:
        raise error_for(httpx.ProxyError, f"{error.status} {error.message}", request) from error
    except aiohttp.ClientConnectorError as error:
        # Without aiohttp's "ssl:default", also for http, and its "None". Before 3.14, a certificate's lacks `os_error`.
        cause, host = getattr(error, "os_error", None), error.host
        place = f"[{host}]:{error.port}" if ":" in host else f"{host}:{error.port}"
        text = f"cannot connect to {place}: {error.strerror or describe(cause)}" if cause else str(error)
        raise error_for(httpx.ConnectError, text, request) from error
    except (aiohttp.ClientError, OSError, ValueError, HttpProcessingError) as error:
        raise error_for(httpx.ConnectError, str(error), request) from error


def unreadable(error: Exception, connection: Connection, request: httpx.Request) -> httpx.RequestError:
    """httpx's error for an answer that did not come, or not whole; `error` is one of `NOT_READ`."""
    if isinstance(error, TimeoutError):  # aiohttp's SocketTimeoutError is one as well.
        return error_for(httpx.ReadTimeout, "", request)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return error_for(
            httpx.RemoteProtocolError, "Server disconnected without sending a response.", request
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        kind = httpx.RemoteProtocolError if connection.broken_by is None else httpx.ReadError
        return error_for(kind, "peer closed connection before the whole body had arrived", request)
    if isinstance(error, HttpProcessingError):
        reason = " ".join(error.message.split())  # aiohttp draws where the fault is, on lines of its own.
        return error_for(httpx.RemoteProtocolError, f"the answer is not valid HTTP: {reason}", request)
    return error_for(httpx.ReadError, str(error), request)
