"""Which proxy a URL goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as curl and httpx read them.

Requests to this machine use no proxy, as in browsers: secrets for a server on localhost would leave the machine, and
the proxy would look for that server on its own machine.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, Self
from urllib.request import getproxies

import httpx

from .._event_loops import anyio
from .._families import adopt, alike, family_of_wire
from .._urls import DEFAULT_PORTS, address_of, is_this_machine, show_origin
from .lifetimes import AsyncClosable, Closable
from .network import HANDSHAKES, SocksStream


class ProxyMap:
    """Proxies by the scheme of the requests they carry, and the places that are reached directly.

    Args:
        proxies: proxy URLs by scheme; "all" stands for every scheme that has none of its own.
        no_proxy: places that are reached directly, separated by commas or blanks: a host (with its subdomains), an
            address, a network such as 10.0.0.0/8, each optionally with a port or a scheme; or * for everything.
    """

    def __init__(self, proxies: Mapping[str, str], no_proxy: str = "") -> None:
        self._proxies = {scheme: url if "://" in url else f"http://{url}" for scheme, url in proxies.items()}
        # Separated by blanks as well, as curl does.
        self._direct = [_Place(entry) for entry in no_proxy.replace(",", " ").split()]
        # A program talks to few places, and the answer never changes.
        self._choose = lru_cache(maxsize=256)(self._choose_anew)

    @classmethod
    def from_environment(cls) -> Self:
        """The proxies in the environment variables, and on macOS and Windows in the system's settings."""
        found = getproxies()
        proxies = {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
        return cls(proxies, found.get("no", ""))

    @property
    def urls(self) -> frozenset[str]:
        """The URLs of all the proxies."""
        return frozenset(self._proxies.values())

    def proxy_for(self, url: httpx.URL) -> str | None:
        """The URL of the proxy to use; None to connect directly."""
        return self._choose(url.scheme, url.host, url.port)

    def _choose_anew(self, scheme: str, host: str, port: int | None) -> str | None:
        if is_this_machine(host) or any(place.covers(scheme, host, port) for place in self._direct):
            return None
        return self._proxies.get(scheme, self._proxies.get("all"))


class _Place:
    """One entry of NO_PROXY."""

    def __init__(self, entry: str) -> None:
        self._scheme, _, place = entry.lower().rpartition("://")
        host, colon, port = place.rpartition(":")
        has_port = bool(colon) and port.isdecimal() and (":" not in host or host.endswith("]"))
        self._port = int(port) if has_port else None
        # curl and urllib read .example.com as example.com and everything below it.
        self._host = (host if has_port else place).strip("[]").lstrip("*").strip(".")
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


class _Router:
    """What the routers share: the wires, and which one a request takes."""

    def __init__(self, direct: Any, proxied: Mapping[str, Any], proxies: ProxyMap) -> None:
        self._direct, self._proxied, self._proxies = direct, proxied, proxies
        self._names = {url: show_origin(httpx.URL(url)) for url in proxied}
        self.family = family_of_wire(direct)

    def _wire_for(self, url: httpx.URL) -> Any:
        # Not where the request is sent: tracebacks show variables, and a proxy's URL may contain a password.
        proxy = self._proxies.proxy_for(url)
        return self._direct if proxy is None else self._proxied[proxy]

    def _name_proxy(self, error: Exception, url: httpx.URL) -> None:
        """Say in an error of a connection that it is about one to a proxy, or through it."""
        name = self._names.get(self._proxies.proxy_for(url) or "")
        if name is not None and isinstance(error, alike(*_CONNECTING)):
            error.args = (f"{error} (through the proxy {name})".lstrip(),)

    def _socks_error(self, error: Exception, request: httpx.Request) -> Exception:
        """What comes of an error while a SOCKS proxy is asked for a connection; some are none of httpx's."""
        failure: httpx.TransportError = httpx.ProxyError(str(error), request=request)
        if isinstance(error, alike(httpx.TimeoutException)):
            failure = httpx.ConnectTimeout("the SOCKS proxy did not answer in time", request=request)
        adopt(failure, request)
        self._name_proxy(failure, request.url)
        return failure


_CONNECTING: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


class ProxyRouter(_Router, Closable):
    """Sends each request directly, or through its proxy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        streams: list[SocksStream] = []
        token = HANDSHAKES.set(streams)
        try:
            response: httpx.Response = self._wire_for(request.url).handle_request(request)
        except BaseException as error:
            for stream in [stream for stream in streams if stream.in_handshake]:
                stream.close()
                if isinstance(error, Exception):  # Without its frames, which hold the password.
                    raise self._socks_error(error, request) from None
            if isinstance(error, Exception):
                self._name_proxy(error, request.url)
            raise
        finally:
            HANDSHAKES.reset(token)
        return response

    def _close(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            wire.close()


class AsyncProxyRouter(_Router, AsyncClosable):
    """Sends each request directly, or through its proxy."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        streams: list[SocksStream] = []
        token = HANDSHAKES.set(streams)
        try:
            response: httpx.Response = await self._wire_for(request.url).handle_async_request(request)
        except BaseException as error:
            for stream in [stream for stream in streams if stream.in_handshake]:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
                if isinstance(error, Exception):
                    raise self._socks_error(error, request) from None
            if isinstance(error, Exception):
                self._name_proxy(error, request.url)
            raise
        finally:
            HANDSHAKES.reset(token)
        return response

    async def _aclose(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            await wire.aclose()
