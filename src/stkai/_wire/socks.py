"""Connections through a SOCKS5 proxy (RFC 1928, RFC 1929), made within the time limit of a connection.

httpcore waits for such a proxy without a limit, leaves the connection open if the proxy refuses, and takes half a reply
for a broken one.
"""

import math
from collections.abc import Callable, Generator
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any, Final

import httpx

from .._clock import SystemClock
from .._event_loops import anyio
from .._urls import address_of

Steps = Generator[bytes | int, bytes, None]
"""What to send, or how many bytes to read."""

_DEFAULT_PORT: Final = 1080

_VERSION: Final = b"\x05"
_LOGIN, _REJECTED, _GRANTED = 2, 0xFF, 0

_REASONS: Final = (
    "", "the SOCKS proxy failed", "the rules of the SOCKS proxy do not allow the connection",
    "the network cannot be reached", "the host cannot be reached", "connection refused", "the time to live expired",
    "the SOCKS proxy cannot connect", "the SOCKS proxy does not know this kind of address",
)  # fmt: skip
"""What the codes of a reply mean; RFC 1928, section 6."""


class RefusedError(Exception):
    """The proxy does not open the connection; the message says why."""


def steps(proxy: httpx.Proxy, host: str, port: int) -> Steps:
    """What is said to the proxy before it has connected to a host, which it looks up itself.

    Raises:
        RefusedError: it does not connect.
    """
    # The credentials are no variables: tracebacks show those.
    yield _VERSION + (b"\x01\x00" if proxy.raw_auth is None else b"\x02\x00\x02")
    version, method = yield 2
    if version != _VERSION[0]:
        raise RefusedError("the proxy does not speak SOCKS5")
    if method == _REJECTED or (method == _LOGIN and proxy.raw_auth is None):
        raise RefusedError("the SOCKS proxy wants other credentials, or a user name and a password")
    if method == _LOGIN and proxy.raw_auth is not None:
        yield b"\x01" + b"".join(bytes([len(part)]) + part for part in proxy.raw_auth)
        _, status = yield 2
        if status != _GRANTED:
            raise RefusedError("the SOCKS proxy rejects the user name or the password")
    yield _VERSION + b"\x01\x00" + _address(host) + port.to_bytes(2, "big")
    _, code, _, kind = yield 4
    if code != _GRANTED:
        raise RefusedError(
            _REASONS[code] if code < len(_REASONS) else f"the SOCKS proxy answered with code {code}"
        )
    length = {1: 4, 4: 16}.get(kind)
    yield (yield 1)[0] + 2 if length is None else length + 2


def _address(host: str) -> bytes:
    address = address_of(host)
    if address is None:
        return b"\x03" + bytes([len(host)]) + host.encode("ascii")
    return (b"\x01" if isinstance(address, IPv4Address) else b"\x04") + address.packed


class _Way:
    """What both versions share: the network backend of httpcore, its errors, and the proxy."""

    def __init__(self, backend: Any, errors: Any, proxy: httpx.Proxy) -> None:
        self._backend, self._errors, self._proxy = backend, errors, proxy
        self._place = proxy.url.host, proxy.url.port or _DEFAULT_PORT
        self.sleep = backend.sleep

    def _failure(self, error: Exception) -> Exception:
        """What httpcore raises for it. Without the original, whose frames hold what was sent."""
        errors = self._errors
        failure: Exception
        if isinstance(error, (errors.ReadTimeout, errors.WriteTimeout)):
            failure = errors.ConnectTimeout("the SOCKS proxy did not answer in time")
        else:
            failure = errors.ProxyError(str(error) or "the SOCKS proxy closed the connection")
        return failure


class Socks(_Way):
    """A network backend whose connections go through the proxy."""

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        """A connection to a host."""
        left = _countdown(timeout)
        stream = self._backend.connect_tcp(*self._place, timeout=timeout, **options)
        try:
            self._talk(stream, steps(self._proxy, host, port), left)
        except BaseException as error:
            stream.close()
            if isinstance(error, Exception):
                raise self._failure(error) from None
            raise
        return stream

    def _talk(self, stream: Any, talk: Steps, left: Callable[[], float | None]) -> None:
        answer: Any = None
        with suppress(StopIteration):
            while True:
                part, answer = talk.send(answer), b""
                if isinstance(part, bytes):
                    stream.write(part, timeout=left())
                    answer = None
                while isinstance(part, int) and len(answer) < part:
                    answer += stream.read(part - len(answer), timeout=left()) or _ended()


class AsyncSocks(_Way):
    """The async version."""

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        """A connection to a host."""
        left = _countdown(timeout)
        stream = await self._backend.connect_tcp(*self._place, timeout=timeout, **options)
        try:
            await self._talk(stream, steps(self._proxy, host, port), left)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            if isinstance(error, Exception):
                raise self._failure(error) from None
            raise
        return stream

    async def _talk(self, stream: Any, talk: Steps, left: Callable[[], float | None]) -> None:
        answer: Any = None
        with suppress(StopIteration):
            while True:
                part, answer = talk.send(answer), b""
                if isinstance(part, bytes):
                    await stream.write(part, timeout=left())
                    answer = None
                while isinstance(part, int) and len(answer) < part:
                    answer += await stream.read(part - len(answer), timeout=left()) or _ended()


def _ended() -> bytes:
    raise RefusedError("the SOCKS proxy closed the connection")


def _countdown(seconds: float | None) -> Callable[[], float | None]:
    """How many of the seconds are left; None for no limit."""
    end = math.inf if seconds is None else SystemClock.monotonic() + seconds
    return lambda: None if end == math.inf else max(0.001, end - SystemClock.monotonic())
