"""Which proxy a URL goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as curl and httpx read them.

Requests to this machine use no proxy, as in browsers: secrets for a server on localhost would leave the machine, and
the proxy would look for that server on its own machine.

Also the connection to a proxy: httpcore reports a proxy that does not connect as a server that does not answer.
"""

import math
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.request import getproxies

import httpx

from .._clock import SystemClock
from .._urls import DEFAULT_PORTS, address_of, is_this_machine

if TYPE_CHECKING:
    from .._config.models import HttpConfig


class ProxyMap:
    """Proxies by the scheme of the requests they carry, and the destinations that are reached directly.

    Args:
        proxies: proxy URLs by scheme; "all" stands for every scheme that has none of its own.
        no_proxy: destinations that are reached directly, separated by commas or blanks: a host (with its subdomains),
            an address, a network such as 10.0.0.0/8, each optionally with a port or a scheme; or * for everything.
    """

    def __init__(self, proxies: Mapping[str, str], no_proxy: str = "") -> None:
        self._proxies = {scheme: url if "://" in url else f"http://{url}" for scheme, url in proxies.items()}
        # curl accepts blanks as separators, too.
        self._direct = [_NoProxyEntry(entry) for entry in no_proxy.replace(",", " ").split()]
        # A program talks to few hosts, and the choice for each never changes.
        self._choose = lru_cache(maxsize=256)(self._choose_anew)

    @classmethod
    def of(cls, config: "HttpConfig") -> Self:
        """The proxy of `config`, or those of the environment (on macOS and Windows, also of the system's settings)."""
        if config.proxy is not None:
            return cls({"all": config.proxy})
        found = getproxies() if config.trust_env else {}
        proxies = {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
        return cls(proxies, found.get("no", ""))

    @property
    def urls(self) -> frozenset[str]:
        return frozenset(self._proxies.values())

    @property
    def has_socks(self) -> bool:
        return any(url.lower().startswith("socks") for url in self.urls)

    def proxy_for(self, url: httpx.URL) -> str | None:
        """The URL of the proxy to use; None to connect directly."""
        return self._choose(url.scheme, url.host, url.port)

    def _choose_anew(self, scheme: str, host: str, port: int | None) -> str | None:
        if is_this_machine(host) or any(entry.covers(scheme, host, port) for entry in self._direct):
            return None
        return self._proxies.get(scheme, self._proxies.get("all"))


class _NoProxyEntry:
    """One entry of NO_PROXY."""

    def __init__(self, entry: str) -> None:
        self._scheme, _, address = entry.lower().rpartition("://")
        host, colon, port = address.rpartition(":")
        has_port = bool(colon) and port.isdecimal() and (":" not in host or host.endswith("]"))
        self._port = int(port) if has_port else None
        # curl and urllib read .example.com as example.com and everything below it.
        self._host = (host if has_port else address).strip("[]").lstrip("*").strip(".")
        self._network = _network(self._host)

    def covers(self, scheme: str, host: str, port: int | None) -> bool:
        if self._scheme not in {"", "all", scheme}:
            return False
        if self._port not in {None, port or DEFAULT_PORTS.get(scheme)}:
            return False
        if self._network is not None:
            address = address_of(host)
            return address is not None and address in self._network
        return not self._host or f".{host.rstrip('.')}".endswith(f".{self._host}")


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


_ASKS: Final = re.compile(rb"[\x01\x05]|CONNECT [^/ ]+:[0-9]+ HTTP/")
"""The start of a SOCKS message (RFC 1928 and 1929), or of a request for a tunnel (RFC 9110, section 9.3.6). A request
that a proxy forwards contains a whole URL instead."""


def headers_for(proxy: httpx.Proxy) -> dict[str, str]:
    """The headers that only the proxy gets: its own, and its credentials (RFC 7617)."""
    if proxy.raw_auth is None:
        return dict(proxy.headers)
    credentials = b64encode(b":".join(proxy.raw_auth)).decode("ascii")
    return {"Proxy-Authorization": f"Basic {credentials}", **proxy.headers}


class ProxyStream:
    """A connection to a proxy; for `errors`, see `Network`; `seconds` is the time limit for connecting.

    Until the proxy has connected, nothing of the request is sent: a failure is a connect error, and the exchange may
    take what is left of the connect timeout. httpcore sets no time limit for the exchange with a SOCKS proxy.
    """

    _asks: re.Match[bytes] | None = None  # The start of the message to it; None once it has connected.

    _is_connected = False

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
        """The same connection over TLS: to the server or, before that, to the proxy."""
        return stream if self._asks else type(self)(stream, self._errors, self._left())

    def _begins(self, buffer: bytes) -> None:
        if buffer and not self._is_connected:  # The end of a request may be written as empty bytes.
            self._asks = _ASKS.match(buffer)
            self._is_connected = self._asks is None

    def _limit(self, timeout: float | None) -> float | None:
        if not self._asks:
            return timeout
        seconds = self._left() if timeout is None else min(timeout, self._left())
        return None if seconds == math.inf else seconds

    def _left(self) -> float:
        return max(0.001, self._end - SystemClock.monotonic())

    def _arrived(self, data: bytes) -> bytes:
        if not data and self._asks:
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
    async def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        with self._connecting():
            return self._arrived(await self._stream.read(max_bytes, self._limit(timeout)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        self._begins(buffer)
        with self._connecting():
            return await self._stream.write(buffer, self._limit(timeout))

    async def start_tls(self, *args: Any, **options: Any) -> Any:
        return self._above(await self._stream.start_tls(*args, **options))
