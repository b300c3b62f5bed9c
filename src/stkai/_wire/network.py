"""Mends connections of httpcore.

It leaves a connection open whose handshake, with a server or a SOCKS proxy, is cancelled or given up. A proxy that does
not connect looks to it like a server that does not answer. Some errors pass through it unchanged, and are not httpx
errors; others lose their message. It takes bytes that have arrived behind an answer for the answer to the next
request; and it loses an answer that follows a GOAWAY, see `http2`.
"""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLError
from typing import Any, Final, TypeVar

import httpx

from .._clock import SystemClock
from .._errors import causes
from .._event_loops import anyio
from .._families import alike
from .._secrets import HiddenBytes
from .http2 import AsyncGoAwayStream, GoAwayStream

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
        stream = GoAwayStream(stream) if self._has_http2 else stream
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
        stream = AsyncGoAwayStream(stream) if self._has_http2 else stream
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


_ASKS: Final = re.compile(rb"[\x01\x05]|(CONNECT [^/ ]+:[0-9]+ HTTP/)")
"""How a message of SOCKS begins (RFC 1928 and 1929), and the request for a tunnel (RFC 9110, section 9.3.6): a request
that a proxy forwards names a whole URL."""


class ProxyStream:
    """A connection to a proxy; for the arguments, see `Network`.

    Until the proxy has connected, nothing of the request is sent: what fails is an error of connecting, and may take
    what is left of the connect timeout. httpcore sets no time limit for the exchange with a SOCKS proxy.
    """

    _asks: re.Match[bytes] | None = None
    """What the proxy is asked, as long as it has not connected."""

    _has_asked = False

    def __init__(self, stream: Any, errors: Any, seconds: float | None) -> None:
        self._stream, self._errors = stream, errors
        self._end = math.inf if seconds is None else SystemClock.monotonic() + seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        with self._connecting():
            return self._arrived(self._stream.read(max_bytes, self._limit(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        self._begins(buffer)
        with self._connecting():
            return self._stream.write(buffer, self._limit(timeout))

    def start_tls(self, *args: Any, **options: Any) -> Any:
        return self._above(self._stream.start_tls(*args, **options))

    def _above(self, stream: Any) -> Any:
        """The same connection through TLS: with the server or, at first, with the proxy."""
        return stream if self._asks else type(self)(stream, self._errors, self._left())

    def _begins(self, buffer: bytes) -> None:
        if buffer and not self._has_asked:  # The end of a request may be written as nothing.
            self._asks = _ASKS.match(buffer)
            self._has_asked = self._asks is None

    def _limit(self, timeout: float | None) -> float | None:
        if not self._asks:
            return timeout
        seconds = self._left() if timeout is None else min(timeout, self._left())
        return None if seconds == math.inf else seconds

    def _left(self) -> float:
        return max(0.001, self._end - SystemClock.monotonic())

    def _arrived(self, data: bytes) -> bytes:
        if not data and self._asks and self._asks[1]:
            raise self._errors.ConnectError("the proxy closed the connection instead of answering")
        return data

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except (errors.ReadTimeout, errors.WriteTimeout, errors.ReadError, errors.WriteError) as error:
            if not self._asks:
                raise
            kind = "Timeout" if isinstance(error, errors.TimeoutException) else "Error"
            raise getattr(errors, f"Connect{kind}")(str(error)) from error


class AsyncProxyStream(ProxyStream):
    """The async version."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        with self._connecting():
            return self._arrived(await self._stream.read(max_bytes, self._limit(timeout)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        self._begins(buffer)
        with self._connecting():
            return await self._stream.write(buffer, self._limit(timeout))

    async def start_tls(self, *args: Any, **options: Any) -> Any:
        return self._above(await self._stream.start_tls(*args, **options))
