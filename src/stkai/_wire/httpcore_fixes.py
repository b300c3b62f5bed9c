"""Fixes for httpcore's connections.

httpcore leaves a connection open if its handshake, with a server or a SOCKS proxy, is cancelled or given up. It
reports a proxy that does not connect as a server that does not answer. It raises some errors that are not httpx
errors, and drops the message of others. It sends the head of a request and its body in two packets.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLError
from typing import Any, Final

from .._abandonable import GivenUpError, abandoned
from .._errors import causes
from .._event_loops import anyio
from ..transports._bodies import MAX_TIMEOUT, shut_down
from .http2 import FrameFilter
from .proxies import AsyncProxyStream, ProxyStream

_SHORT: Final = 65_536  # Bytes; a longer body is not copied in order to be joined with its head.

NO_THREAD: Final = "can't start new thread"
"""What Python says where the system allows no more threads: event loops look hosts up in threads."""

CLOSED: Final = "the client was closed while it connected: nothing was sent"
CLOSED_IN_USE: Final = "the connection was closed on this side"
"""The messages of the errors if another thread or task closes the client during a request."""


class Network:
    """A network backend of httpcore for one connection; `errors` is httpcore, or the version of it that httpx2 uses."""

    stream: Any = None
    """The latest connection: httpcore forgets one whose handshake is cancelled or given up."""

    is_closed = False
    _process: int | None = None  # That has opened the connection; a forked child has a copy of this.

    def __init__(self, pool: Any, errors: Any) -> None:
        self._backend = pool._network_backend  # noqa: SLF001
        self.errors, self._has_proxy = errors, "Proxy" in type(pool).__name__

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        with _connect_errors(self.errors):
            options["timeout"] = _bounded(seconds := options.get("timeout"))
            stream = self.opened(Stream(self._backend.connect_tcp(*args, **options), self))
        return ProxyStream(stream, self.errors, seconds) if self._has_proxy else stream

    def opened(self, stream: "Stream") -> "Stream":
        """The connection, unless another thread has closed the client in the meantime."""
        self.stream, self._process = stream, os.getpid()
        if self.is_closed:
            stream.close()
            raise self.errors.ConnectError(CLOSED)
        return stream

    def close(self) -> None:
        """Close the connection, even while another thread uses it."""
        self.is_closed = True
        if self.stream is not None:
            if self._process == os.getpid():
                shut_down(self.stream)
            self.stream.close()


class AsyncNetwork(Network):
    async def connect_tcp(self, *args: Any, **options: Any) -> Any:
        with _connect_errors(self.errors):
            stream = self.stream = AsyncStream(await self._backend.connect_tcp(*args, **options), self)
        if self.is_closed:
            await stream.aclose()
            raise self.errors.ConnectError(CLOSED)
        return AsyncProxyStream(stream, self.errors, options.get("timeout")) if self._has_proxy else stream

    async def aclose(self) -> None:
        if self.stream is not None:
            await self.stream.aclose()


def _bounded(seconds: float | None) -> float | None:
    """The timeout, or the longest one that sockets accept."""
    return None if seconds is None else min(seconds, MAX_TIMEOUT)


@contextmanager
def _connect_errors(errors: Any) -> Iterator[None]:
    """Turn the exceptions for an impossible host or port, as in a redirect, into httpcore's, and add the root cause."""
    try:
        yield
    except ExceptionGroup as group:  # anyio groups the errors of all addresses.
        with _connect_errors(errors):
            raise group.exceptions[0] from None
    except (ValueError, OverflowError) as error:
        raise errors.ConnectError(str(error)) from error
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        raise errors.ConnectError(f"the host was not looked up: {error}") from error
    except Exception as error:
        *_, root = causes(error)
        while isinstance(root, BaseExceptionGroup):  # Of several addresses, report the first.
            *_, root = causes(root.exceptions[0])
        if str(root) not in str(error):
            error.args = (f"{error}: {root}".removeprefix(": "),)
        raise


class _JoiningStream:
    """Sends the head of a request together with a short body: in one packet, with one system call."""

    _holds_next = False  # Whether the next write is a head, which waits for its body.
    _head = b""

    def __init__(self, stream: Any, network: Network) -> None:
        self._stream, self._network = stream, network
        self.frames = FrameFilter.of(stream, network.errors)

    def join_body(self) -> None:
        """Let the next head wait for its body, which must be in memory: nothing may come between the two."""
        self._holds_next = self.frames is None

    def _pieces(self, buffer: bytes) -> tuple[bytes, ...]:
        """The pieces to send when httpcore writes `buffer`; it writes the head and the body separately."""
        if self.frames is not None:
            return (buffer,) if self.frames.sent(buffer) else ()
        if self._holds_next:
            self._holds_next, self._head = False, buffer
            return ()
        head, self._head = self._head, b""
        return (head + buffer,) if len(buffer) <= _SHORT else (head, buffer)


class Stream(_JoiningStream):
    """A connection of a sync client."""

    def __init__(self, stream: Any, network: Network) -> None:
        super().__init__(stream, network)
        self.close, self.get_extra_info = stream.close, stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            # Over HTTP/2, frames that belong to no request may keep arriving within each timeout.
            if self.frames is not None and abandoned():
                raise GivenUpError
            try:
                data: bytes = self._stream.read(max_bytes, _bounded(timeout))
            except self._network.errors.ReadError as error:
                if self._network.is_closed:
                    error.args = (CLOSED_IN_USE,)
                raise
            if not data and self._network.is_closed:
                raise self._network.errors.ReadError(CLOSED_IN_USE)
            if not data or self.frames is None or (data := self.frames.arrived(data)):
                return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for piece in self._pieces(buffer):
            self._stream.write(piece, _bounded(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> "Stream":
        """The same connection over TLS, unless the client has been closed in the meantime."""
        stream = self._stream.start_tls(ssl_context, server_hostname, _bounded(timeout))
        return self._network.opened(Stream(stream, self._network))


class AsyncStream(_JoiningStream):
    """A connection on asyncio or trio."""

    _broken_by = ""
    """Why a write failed: httpcore then reads, since there may be an answer, and that read's error has no message."""

    def __init__(self, stream: Any, network: Network) -> None:
        super().__init__(stream, network)
        self._errors, self.aclose = network.errors, stream.aclose
        tls = getattr(stream, "_stream", None)
        # Received data that is not yet decrypted, in anyio's or trio's stream; None without TLS.
        self._ahead = getattr(tls, "_read_bio", getattr(tls, "_incoming", None))

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what has arrived, or raise an error of httpcore's."""
        while True:
            try:
                data: bytes = await self._stream.read(max_bytes, timeout)
            except (SSLError, anyio.EndOfStream) as error:
                raise self._errors.ReadError(str(error)) from error
            except Exception as error:
                if _is_closed_here(error):
                    error.args = (CLOSED_IN_USE,)
                # An older anyio gives no cause.
                broke = "the connection broke" if isinstance(error, self._errors.ReadError) else ""
                add_message(error, self._broken_by or broke)
                raise
            if not data or self.frames is None or (data := self.frames.arrived(data)):
                return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it, or raise an error of httpcore's."""
        pieces = self._pieces(buffer)
        try:
            for piece in pieces:
                await self._stream.write(piece, timeout)
        except Exception as error:
            add_message(error)
            self._broken_by = str(error)
            if isinstance(error, SSLError | anyio.EndOfStream):
                raise self._errors.WriteError(str(error)) from error
            raise

    def get_extra_info(self, info: str) -> Any:
        """A property of the connection, such as `socket` or `is_readable`."""
        if info == "is_readable" and self._ahead is not None and self._ahead.pending:
            return True  # The socket has nothing more to read.
        try:
            return self._stream.get_extra_info(info)
        except ValueError:  # trio raises it for `is_readable` of a closed socket.
            return True if info == "is_readable" else None

    async def start_tls(self, *args: Any, **options: Any) -> "AsyncStream":
        """The same connection over TLS."""
        try:
            stream = AsyncStream(await self._stream.start_tls(*args, **options), self._network)
        except self._errors.ConnectError as error:
            add_message(error, "the server closed the connection during the TLS handshake")
            raise
        except Exception as error:
            if not _is_closed_here(error):
                raise
            raise self._errors.ConnectError(CLOSED) from error
        self._network.stream = stream
        return stream


def _is_closed_here(error: BaseException) -> bool:
    """Whether anyio or trio raised the error because another task has closed the connection."""
    return any(type(each).__name__ == "ClosedResourceError" for each in causes(error))


def add_message(error: BaseException, otherwise: str = "") -> None:
    """Give an error without a message, such as anyio's and trio's, the message of its cause, or else `otherwise`."""
    if not str(error):
        known = (text for below in causes(error) if (text := str(below)))
        if text := next(known, otherwise):
            error.args = (text,)
