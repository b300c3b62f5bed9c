"""Mends connections of httpcore.

It closes an async connection whose TLS handshake fails, but not one whose handshake is cancelled. Some errors pass
through it as they are, so that they are none of httpx's; others lose their message. And it takes bytes that have
arrived behind an answer for the answer to the next request.
"""

import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from ssl import SSLError
from typing import Any, TypeVar

import httpx

from .._errors import causes
from .._event_loops import anyio
from .._families import alike
from .socks import AsyncSocks, Socks

Transport = TypeVar("Transport", httpx.HTTPTransport, httpx.AsyncHTTPTransport)


def transport_of(kind: type[Transport], **options: Any) -> Transport:
    """A transport of httpx whose connections are made here; its own, if httpcore's private parts have other names.

    Args:
        kind: its class.
        options: its arguments.
    """
    proxy = options.get("proxy")
    if proxy is None or not proxy.url.scheme.startswith("socks"):
        return mended(kind(**options))
    direct = kind(**{**options, "proxy": None})
    return direct if _mend(direct, proxy) else kind(**options)


def mended(transport: Transport) -> Transport:
    """The same transport, whose connections are made through a `Network`."""
    _mend(transport, None)
    return transport


def _mend(transport: Any, proxy: httpx.Proxy | None) -> bool:
    pool = getattr(transport, "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    errors = sys.modules.get(type(pool).__module__.partition(".")[0])
    if not hasattr(backend, "connect_tcp") or not hasattr(errors, "ConnectError"):
        return False
    is_sync = isinstance(transport, alike(httpx.HTTPTransport))
    network: Any = (Network if is_sync else AsyncNetwork)(backend, errors)
    if proxy is not None:
        network = (Socks if is_sync else AsyncSocks)(network, errors, proxy)
    pool._network_backend = network  # type: ignore[union-attr] # noqa: SLF001 - httpx takes no network backend
    return True


class Network:
    """A network backend of httpcore.

    Args:
        backend: makes the connections.
        errors: httpcore, or the version of it that httpx2 uses.
    """

    def __init__(self, backend: Any, errors: Any) -> None:
        self._backend, self._errors = backend, errors
        self.sleep, self.connect_unix_socket = backend.sleep, backend.connect_unix_socket

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        """A connection to a host."""
        with _connecting(self._errors):
            return self._backend.connect_tcp(*args, **options)


class AsyncNetwork:
    """The async version."""

    def __init__(self, backend: Any, errors: Any) -> None:
        self._backend, self._errors = backend, errors
        self.sleep = backend.sleep

    async def connect_tcp(self, *args: Any, **options: Any) -> "Stream":
        """A connection to a host."""
        return await self._connected(self._backend.connect_tcp(*args, **options))

    async def connect_unix_socket(self, *args: Any, **options: Any) -> "Stream":
        """A connection to a Unix socket."""
        return await self._connected(self._backend.connect_unix_socket(*args, **options))

    async def _connected(self, connecting: Awaitable[Any]) -> "Stream":
        with _connecting(self._errors):
            return Stream(await connecting, self._errors)


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
    """A connection; on asyncio or trio; for the arguments, see `Network`."""

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
        """The same connection, from now on through TLS; closed if that fails, or is cancelled."""
        try:
            return Stream(await self._stream.start_tls(*args, **options), self._errors)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            if isinstance(error, self._errors.ConnectError):
                explain(error, "the server closed the connection during the TLS handshake")
            raise


def explain(error: BaseException, otherwise: str = "") -> None:
    """Give an error without a message that of its cause, or another: anyio's and trio's own have none."""
    if not str(error):
        known = (text for below in causes(error) if (text := str(below)))
        if text := next(known, otherwise):
            error.args = (text,)


def connection_with_leftovers(body: Any) -> Any:
    """The HTTP/1.1 connection of an answer's body that was read to its end, if more has arrived there; otherwise None.

    Nobody has asked for that: a second answer, or the rest of one that is longer than it says.
    """
    try:
        connection = body._httpcore_stream._stream._connection  # noqa: SLF001 - httpcore itself does not look
        return connection if connection._h11_state.trailing_data[0] else None  # noqa: SLF001
    except AttributeError:  # It is no wire of httpx's, or speaks HTTP/2.
        return None
