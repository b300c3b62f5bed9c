"""Which proxy a URL goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as curl and httpx read them.

Requests to this machine use no proxy, as in browsers: secrets for a server on localhost would leave the machine, and
the proxy would look for that server on its own machine.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Self
from urllib.request import getproxies

import httpx

from .._urls import DEFAULT_PORTS, address_of, is_this_machine

if TYPE_CHECKING:
    from .._config.models import HttpConfig


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
    def of(cls, config: "HttpConfig") -> Self:
        """The proxy of `config`, or those of the environment (on macOS and Windows, also of the system's settings)."""
        if config.proxy is not None:
            return cls({"all": config.proxy})
        found = getproxies() if config.trust_env else {}
        proxies = {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
        return cls(proxies, found.get("no", ""))

    @property
    def urls(self) -> frozenset[str]:
        """The URLs of all the proxies."""
        return frozenset(self._proxies.values())

    @property
    def has_socks(self) -> bool:
        """Whether a SOCKS proxy is among them."""
        return any(url.lower().startswith("socks") for url in self.urls)

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
