"""Mends connections of httpcore.

It leaves a connection open whose handshake, with a server or a SOCKS proxy, is cancelled or given up. A proxy that does
not connect looks to it like a server that does not answer. Some errors pass through it unchanged, and are not httpx
errors; others lose their message. It takes bytes that have arrived behind an answer for the answer to the next
request; and it loses an answer that follows a GOAWAY, see `http2`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLError
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from .._errors import causes
from .._event_loops import anyio
from .._families import alike
from .._lazy import LateModule
from .._secrets import HiddenBytes
from .proxies import AsyncProxyStream, ProxyStream

if TYPE_CHECKING:
    from . import http2
else:  # Only with the extra `http2`.
    http2 = LateModule("stkai._wire.http2")

Transport = TypeVar("Transport", httpx.HTTPTransport, httpx.AsyncHTTPTransport)

_CLOSED: Final = "the client was closed while it connected: nothing was sent"


def mended(transport: Transport) -> Transport:
    """The same transport, whose one connection is made through a `Network`, and closed with the transport.

    It is unchanged if httpcore no longer has the parts that this needs.
    """
    pool: Any = getattr(transport, "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    errors = sys.modules.get(type(pool).__module__.partition(".")[0])
    if hasattr(backend, "connect_tcp") and hasattr(errors, "ConnectError"):
        is_sync = isinstance(transport, alike(httpx.HTTPTransport))
        network = (Network if is_sync else AsyncNetwork)(pool, backend, errors)
        pool._network_backend = network  # noqa: SLF001 - httpx takes none
        setattr(pool, "close" if is_sync else "aclose", network.close)
        if credentials := getattr(pool, "_proxy_auth", None):  # httpcore logs those for a SOCKS proxy.
            pool._proxy_auth = tuple(map(HiddenBytes, credentials))  # noqa: SLF001
    return transport


class Network:
    """A network backend of httpcore for one connection.

    Args:
        pool: httpcore's pool.
        backend: makes the connections.
        errors: httpcore, or the version of it that httpx2 uses.
    """

    _stream: Any = None
    """The latest connection: httpcore forgets one whose handshake is cancelled or given up."""

    _is_closed = False

    def __init__(self, pool: Any, backend: Any, errors: Any) -> None:
        self._close = getattr(pool, "close", None) or pool.aclose
        self._backend, self._errors, self._has_proxy = backend, errors, "Proxy" in type(pool).__name__
        self._has_http2 = getattr(pool, "_http2", False)
        self.sleep, self.connect_unix_socket = backend.sleep, backend.connect_unix_socket

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        """A connection to a host."""
        with _connecting(self._errors):
            stream = self._backend.connect_tcp(*args, **options)
        stream = http2.GoAwayStream(stream, self._errors) if self._has_http2 else stream
        self._stream = (
            ProxyStream(stream, self._errors, options.get("timeout")) if self._has_proxy else stream
        )
        if self._is_closed:  # Meanwhile, by another thread.
            self._stream.close()
            raise self._errors.ConnectError(_CLOSED)
        return self._stream

    def close(self) -> Any:
        """Close the pool, and what it has forgotten."""
        self._is_closed = True
        try:
            self._close()
        finally:
            if self._stream is not None:
                self._stream.close()


class AsyncNetwork(Network):
    """The async version."""

    async def connect_tcp(self, *args: Any, **options: Any) -> Any:
        """A connection to a host."""
        with _connecting(self._errors):
            stream: Any = Stream(await self._backend.connect_tcp(*args, **options), self._errors)
        stream = http2.AsyncGoAwayStream(stream, self._errors) if self._has_http2 else stream
        self._stream = (
            AsyncProxyStream(stream, self._errors, options.get("timeout")) if self._has_proxy else stream
        )
        if self._is_closed:
            await self._stream.aclose()
            raise self._errors.ConnectError(_CLOSED)
        return self._stream

    async def close(self) -> None:
        """Close the pool, and what it has forgotten."""
        self._is_closed = True
        try:
            await self._close()
        finally:
            if self._stream is not None:
                await self._stream.aclose()


@contextmanager
def _connecting(errors: Any) -> Iterator[None]:
    """Turn what a redirect to an impossible host or port raises into an error of httpcore's."""
    try:
        yield
    except ExceptionGroup as group:  # anyio collects what it gets for each address.
        raise errors.ConnectError(str(group.exceptions[0])) from group.exceptions[0]
    except (ValueError, OverflowError) as error:
        raise errors.ConnectError(str(error)) from error
    except Exception as error:
        reason = _root_of(error)
        if reason not in str(error):
            error.args = (f"{error}: {reason}".removeprefix(": "),)
        raise


def _root_of(error: BaseException) -> str:
    """What went wrong in the first place; of several addresses, with the first."""
    *_, root = causes(error)
    return _root_of(root.exceptions[0]) if isinstance(root, BaseExceptionGroup) else str(root)


class Stream:
    """A connection on asyncio or trio; for the arguments, see `Network`."""

    _broken_by = ""
    """What a write failed with: httpcore then reads, for there may be an answer, and the next error says nothing."""

    def __init__(self, stream: Any, errors: Any) -> None:
        self._stream, self._errors = stream, errors
        self.aclose = stream.aclose

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is.

        Raises:
            httpcore.ReadError: the connection breaks.
        """
        try:
            data: bytes = await self._stream.read(max_bytes, timeout)
        except (SSLError, anyio.EndOfStream) as error:
            raise self._errors.ReadError(str(error)) from error
        except Exception as error:
            explain(error, self._broken_by)
            raise
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it.

        Raises:
            httpcore.WriteError: the connection breaks.
        """
        try:
            await self._stream.write(buffer, timeout)
        except Exception as error:
            explain(error)
            self._broken_by = str(error)
            if isinstance(error, SSLError | anyio.EndOfStream):
                raise self._errors.WriteError(str(error)) from error
            raise

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and its users ask about a connection, such as `socket` or `is_readable`."""
        try:
            return self._stream.get_extra_info(info)
        except ValueError:  # On trio, whether a socket that has been closed is readable.
            return True if info == "is_readable" else None

    async def start_tls(self, *args: Any, **options: Any) -> "Stream":
        """The same connection, from now on through TLS."""
        try:
            return Stream(await self._stream.start_tls(*args, **options), self._errors)
        except self._errors.ConnectError as error:
            explain(error, "the server closed the connection during the TLS handshake")
            raise


def explain(error: BaseException, otherwise: str = "") -> None:
    """Give an error without a message that of its cause, or a default one: anyio's and trio's own have none."""
    if not str(error):
        known = (text for below in causes(error) if (text := str(below)))
        if text := next(known, otherwise):
            error.args = (text,)


def connection_with_leftovers(body: Any) -> Any:
    """The HTTP/1.1 connection of an answer's body that was read to its end, if more has arrived there; otherwise None.

    It is unsolicited: a second answer, or the rest of an answer longer than announced.
    """
    try:
        connection = body._httpcore_stream._stream._connection  # noqa: SLF001 - httpcore itself does not look
        return connection if connection._h11_state.trailing_data[0] else None  # noqa: SLF001
    except AttributeError:  # It is no wire of httpx's, or speaks HTTP/2.
        return None
