"""SOCKS proxies: httpcore gives no time limit to what it says to one, and its errors there are not always httpx's."""

from contextvars import ContextVar
from typing import Any, Final

import httpx

from .._clock import SystemClock
from .._families import adopt, alike
from .lifetimes import AsyncClosable, Closable

HANDSHAKES: Final[ContextVar[list["SocksStream"]]] = ContextVar("stkai.handshakes")
"""The connections to SOCKS proxies that the request of this context has opened."""

_NONE_GIVEN: Any = object()


class SocksStream:
    """A connection to a SOCKS proxy, sync or async.

    httpcore gives no time limit to what it says to the proxy: it has what is left of the connect timeout.
    """

    in_handshake = True

    def __init__(self, stream: Any, seconds: float | None) -> None:
        self._stream = stream
        self._end = None if seconds is None else SystemClock.monotonic() + seconds
        self.close = self.aclose = stream.aclose if hasattr(stream, "aclose") else stream.close
        self.get_extra_info = stream.get_extra_info
        HANDSHAKES.get([]).append(self)

    def read(self, max_bytes: int, timeout: float | None = _NONE_GIVEN) -> Any:
        return self._stream.read(max_bytes, self._limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = _NONE_GIVEN) -> Any:
        return self._stream.write(buffer, self._limit(timeout))

    def start_tls(self, *args: Any, **options: Any) -> Any:
        self.in_handshake = False
        return self._stream.start_tls(*args, **options)

    def _limit(self, timeout: float | None) -> float | None:
        self.in_handshake = self.in_handshake and timeout is _NONE_GIVEN
        if not self.in_handshake or self._end is None:
            return None if timeout is _NONE_GIVEN else timeout
        return max(0.001, self._end - SystemClock.monotonic())


class SocksWire(Closable):
    """Turns what goes wrong while the proxy is asked for a connection into errors of httpx that say so.

    Args:
        wire: sends through the proxy.
    """

    def __init__(self, wire: httpx.BaseTransport) -> None:
        self._wire = wire

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        streams: list[SocksStream] = []
        token = HANDSHAKES.set(streams)
        try:
            return self._wire.handle_request(request)
        except BaseException as error:
            if any(stream.in_handshake for stream in streams) and isinstance(error, Exception):
                # Without its frames, which hold the password.
                raise _failure(error, request) from None
            raise
        finally:
            HANDSHAKES.reset(token)

    def _close(self) -> None:
        self._wire.close()


class AsyncSocksWire(AsyncClosable):
    """The async version."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        self._wire = wire

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        streams: list[SocksStream] = []
        token = HANDSHAKES.set(streams)
        try:
            return await self._wire.handle_async_request(request)
        except BaseException as error:
            if any(stream.in_handshake for stream in streams) and isinstance(error, Exception):
                raise _failure(error, request) from None
            raise
        finally:
            HANDSHAKES.reset(token)

    async def _aclose(self) -> None:
        await self._wire.aclose()


def is_socks(proxy: httpx.Proxy | None) -> bool:
    """Whether it is a SOCKS proxy."""
    return proxy is not None and proxy.url.scheme.startswith("socks")


def _failure(error: Exception, request: httpx.Request) -> httpx.TransportError:
    """What comes of an error while the proxy is asked for a connection; some are none of httpx's."""
    failure: httpx.TransportError = httpx.ProxyError(str(error), request=request)
    if isinstance(error, alike(httpx.TimeoutException)):
        failure = httpx.ConnectTimeout("the SOCKS proxy did not answer in time", request=request)
    adopt(failure, request)
    return failure
