"""Which proxy a URL goes through: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, as curl and httpx read them."""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.request import getproxies

import httpx

_PORTS = {"http": 80, "https": 443}


class ProxyMap:
    """Proxies by the scheme of what they carry, and the places to which there is a direct way.

    Args:
        proxies: proxy URLs by scheme; "all" is for every scheme that has none of its own.
        no_proxy: places that need no proxy, separated by commas: a host (with its sub-domains), an address, a network
            such as 10.0.0.0/8, each with a port or a scheme if need be; or * for everything.
    """

    def __init__(self, proxies: Mapping[str, str], no_proxy: str = "") -> None:
        self._proxies = {scheme: url if "://" in url else f"http://{url}" for scheme, url in proxies.items()}
        self._direct = [_Place(entry.strip()) for entry in no_proxy.split(",") if entry.strip()]
        # One program talks to few places, and the answer is always the same.
        self._choose = lru_cache(maxsize=256)(self._choose_anew)

    @classmethod
    def from_environment(cls) -> Self:
        """What the variables (on macOS and Windows also the system's settings) say."""
        found = getproxies()
        proxies = {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}
        return cls(proxies, found.get("no", ""))

    @property
    def urls(self) -> frozenset[str]:
        """The URLs of all the proxies."""
        return frozenset(self._proxies.values())

    def proxy_for(self, url: httpx.URL) -> str | None:
        """The URL of the proxy to use; None for the direct way."""
        return self._choose(url.scheme, url.host, url.port)

    def _choose_anew(self, scheme: str, host: str, port: int | None) -> str | None:
        if any(place.covers(scheme, host, port) for place in self._direct):
            return None
        return self._proxies.get(scheme, self._proxies.get("all"))


class _Place:
    """One entry of NO_PROXY."""

    def __init__(self, entry: str) -> None:
        self._scheme, _, place = entry.lower().rpartition("://")
        host, colon, port = place.rpartition(":")
        has_port = bool(colon) and port.isdecimal() and (":" not in host or host.endswith("]"))
        self._port = int(port) if has_port else None
        # curl and urllib take .example.com for example.com and all below it.
        self._host = (host if has_port else place).strip("[]").lstrip("*").lstrip(".")
        self._network = _network(self._host)

    def covers(self, scheme: str, host: str, port: int | None) -> bool:
        if self._scheme not in {"", "all", scheme}:
            return False
        if self._port not in {None, port or _PORTS.get(scheme)}:
            return False
        if self._network is not None:
            address = _address(host)
            return address is not None and address in self._network
        return self._host in {"", host} or host.endswith(f".{self._host}")


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
