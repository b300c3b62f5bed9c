"""Mends connections of httpcore.

It leaves a connection open whose handshake, with a server or a SOCKS proxy, is cancelled or given up, and a lock taken
if an interrupt comes in it. A proxy that does not connect looks to it like a server that does not answer. Some errors
pass through it unchanged, and are not httpx errors; others lose their message. It loses an answer that follows a
GOAWAY.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import starmap
from ssl import SSLError
from typing import Any, Final, TypeVar

import httpx

from .._errors import causes
from .._event_loops import anyio
from .._families import alike
from .._secrets import HiddenBytes
from .proxies import AsyncProxyStream, ProxyStream

Transport = TypeVar("Transport", httpx.HTTPTransport, httpx.AsyncHTTPTransport)

CLOSED: Final = "the client was closed while it connected: nothing was sent"


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
        pool._optional_thread_lock = threading.RLock()  # noqa: SLF001 - httpcore's own is written in Python
        if credentials := getattr(pool, "_proxy_auth", None):  # httpcore logs those for a SOCKS proxy.
            pool._proxy_auth = tuple(map(HiddenBytes, credentials))  # noqa: SLF001
    return transport


class Network:
    """A network backend of httpcore for one connection; `errors` is httpcore, or the version of it that httpx2 uses."""

    _stream: Any = None
    """The latest connection: httpcore forgets one whose handshake is cancelled or given up."""

    _is_closed = False

    def __init__(self, pool: Any, backend: Any, errors: Any) -> None:
        self._close = getattr(pool, "close", None) or pool.aclose
        self._backend, self.errors, self._has_proxy = backend, errors, "Proxy" in type(pool).__name__
        self.sleep, self.connect_unix_socket = backend.sleep, backend.connect_unix_socket

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        with _connecting(self.errors):
            stream = SyncStream(self.unless_closed(self._backend.connect_tcp(*args, **options)), self)
        return ProxyStream(stream, self.errors, options.get("timeout")) if self._has_proxy else stream

    def unless_closed(self, stream: Any) -> Any:
        """The connection, if the client was not closed meanwhile, by another thread."""
        self._stream = stream
        if self._is_closed:
            stream.close()
            raise self.errors.ConnectError(CLOSED)
        return stream

    def close(self) -> Any:
        """Close the pool, and first of all the connection: an interrupt may have left the lock of the pool taken."""
        self._is_closed = True
        try:
            if self._stream is not None:
                self._stream.close()
        finally:
            self._close()


class AsyncNetwork(Network):
    async def connect_tcp(self, *args: Any, **options: Any) -> Any:
        with _connecting(self.errors):
            stream: Any = Stream(await self._backend.connect_tcp(*args, **options), self.errors)
        self._stream = stream
        if self._is_closed:
            await stream.aclose()
            raise self.errors.ConnectError(CLOSED)
        return AsyncProxyStream(stream, self.errors, options.get("timeout")) if self._has_proxy else stream

    async def close(self) -> None:
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
        *_, root = causes(error)
        while isinstance(root, BaseExceptionGroup):  # Of several addresses, the first counts.
            *_, root = causes(root.exceptions[0])
        if str(root) not in str(error):
            error.args = (f"{error}: {root}".removeprefix(": "),)
        raise


class SyncStream:
    """A connection in a thread."""

    def __init__(self, stream: Any, network: Network) -> None:
        self._stream, self._network, self._frames = stream, network, GoAways.of(stream, network.errors)
        self.close, self.get_extra_info = stream.close, stream.get_extra_info
        if self._frames is None:
            self.read, self.write = stream.read, stream.write  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            data: bytes = self._stream.read(max_bytes, timeout)
            if not data or self._frames is None or (data := self._frames.arrived(data)):
                return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._frames is None or self._frames.sent(buffer):
            self._stream.write(buffer, timeout)

    def start_tls(self, *args: Any, **options: Any) -> "SyncStream":
        """The same connection, from now on through TLS, unless the client was closed meanwhile."""
        stream = self._network.unless_closed(self._stream.start_tls(*args, **options))
        return SyncStream(stream, self._network)


class Stream:
    """A connection on asyncio or trio; for the arguments, see `Network`."""

    _broken_by = ""
    """What a write failed with: httpcore then reads, for there may be an answer, and the next error says nothing."""

    def __init__(self, stream: Any, errors: Any) -> None:
        self._stream, self._errors = stream, errors
        self._frames = GoAways.of(stream, errors)
        self.aclose = stream.aclose

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is, or raise an error of httpcore's."""
        while True:
            try:
                data: bytes = await self._stream.read(max_bytes, timeout)
            except (SSLError, anyio.EndOfStream) as error:
                raise self._errors.ReadError(str(error)) from error
            except Exception as error:
                explain(error, self._broken_by)
                raise
            if not data or self._frames is None or (data := self._frames.arrived(data)):
                return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it, or raise an error of httpcore's."""
        if self._frames is not None and not self._frames.sent(buffer):
            return
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
        except Exception as error:
            if type(error).__name__ != "ClosedResourceError":  # anyio's, or trio's
                raise
            raise self._errors.ConnectError(CLOSED) from error


def explain(error: BaseException, otherwise: str = "") -> None:
    """Give an error without a message that of its cause, or a default one: anyio's and trio's own have none."""
    if not str(error):
        known = (text for below in causes(error) if (text := str(below)))
        if text := next(known, otherwise):
            error.args = (text,)


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = 9  # Bytes in front of a frame's body; RFC 9113, section 4.1.
_LONGEST: Final = 16_384  # Bytes of a body; h2 refuses longer ones.
_STREAM: Final = 0x7FFFFFFF  # The bits of a stream's number.
_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _CONTINUATION = 0, 1, 3, 7, 9  # Types of frames.
_END_STREAM, _END_HEADERS = 1, 4  # Their flags.


class GoAways:
    """Holds a GOAWAY back until the answer to the newest request has arrived. One request at a time is on its way.

    A server that ends an HTTP/2 connection in an orderly way still answers the requests that it has accepted (RFC 9113,
    section 6.8); nginx does so after a thousand requests, and when it is reloaded. h2 refuses everything behind a
    GOAWAY: the answer would be lost, and the request perhaps sent again.
    """

    def __init__(self, refused: type[Exception]) -> None:
        self._refused = refused  # If none is accepted; httpcore's error would not say so.
        self._newest, self._has_begun, self._is_answered, self._is_over = 0, False, True, False
        self._held = b""  # The GOAWAY that is held back.
        self._rest = b""  # The start of a frame whose end has not arrived yet.
        self._is_open = False  # Whether the headers of the last frame go on in the next one.

    @classmethod
    def of(cls, stream: Any, errors: Any) -> "GoAways | None":
        """Those of a connection; None unless client and server have agreed on HTTP/2 in the TLS handshake."""
        tls = stream.get_extra_info("ssl_object")
        return cls(errors.ConnectError) if tls and tls.selected_alpn_protocol() == "h2" else None

    def sent(self, data: bytes) -> bool:
        """Note a request in these frames; whether it is still of use to send them."""
        for kind, _, stream, _ in _frames_of(data.removeprefix(_PREFACE))[0]:
            if kind == _HEADERS:
                self._newest, self._has_begun, self._is_answered = stream, False, False
        return not self._is_over

    def arrived(self, data: bytes) -> bytes:
        """The bytes for h2: whole frames, with a GOAWAY behind the answer that it would cut off."""
        frames, self._rest = _frames_of(self._rest + data)
        passed = b"".join(starmap(self._passed, frames))
        if int.from_bytes(self._rest[:3].ljust(3, b"\0")) > _LONGEST:  # h2 will say so.
            passed, self._rest = passed + self._rest, b""
        return passed

    def _passed(self, kind: int, flags: int, stream: int, text: bytes) -> bytes:
        """What to pass on now that a frame has arrived."""
        if self._is_over:  # h2 would refuse it, and with it the answer that has arrived with it.
            return b""
        if kind == _GOAWAY and not stream and len(text) >= _HEAD + 8:
            last, code = (int.from_bytes(text[place : place + 4]) for place in (_HEAD, _HEAD + 4))
            last &= _STREAM
            if not self._is_answered and not code:
                if self._newest <= last:
                    self._held = text
                    return b""
                if not last and not self._has_begun:
                    raise self._refused("the server ended the connection before it accepted a request")
            self._held, self._is_over = b"", True
            return text
        if kind in {_HEADERS, _CONTINUATION}:
            self._has_begun, self._is_open = True, not flags & _END_HEADERS
        ends = kind == _RST_STREAM or (kind in {_DATA, _HEADERS} and flags & _END_STREAM)
        if ends and stream == self._newest:
            self._is_answered = True
        if self._held and self._is_answered and not self._is_open:
            text, self._held, self._is_over = text + self._held, b"", True
        return text


def _frames_of(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The type, the flags, the stream and the whole of each frame, and what is left."""
    frames = []
    place = 0
    while place + _HEAD <= len(data):
        end = place + _HEAD + int.from_bytes(data[place : place + 3])
        if end > len(data):
            break
        stream = int.from_bytes(data[place + 5 : place + _HEAD]) & _STREAM
        frames.append((data[place + 3], data[place + 4], stream, data[place:end]))
        place = end
    return frames, data[place:]
