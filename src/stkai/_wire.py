"""The default wire: httpx's own transports, with the proxies of the environment that `transport=` loses in httpx."""

import ssl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

import httpx

if TYPE_CHECKING:
    from ._config import HttpConfig


def default_wire(config: "HttpConfig | None" = None) -> httpx.BaseTransport:
    """A sync wire as `config` says: verification, limits, HTTP/2, and proxies, also those of the environment."""
    options, proxies, routes = _plan(config)
    direct = httpx.HTTPTransport(**options)
    proxied = {scheme: httpx.HTTPTransport(proxy=url, **options) for scheme, url in proxies.items()}
    return ProxyRouter(direct, proxied, routes) if proxied else direct


def default_async_wire(config: "HttpConfig | None" = None) -> httpx.AsyncBaseTransport:
    """The same for the async world."""
    options, proxies, routes = _plan(config)
    direct = httpx.AsyncHTTPTransport(**options)
    proxied = {scheme: httpx.AsyncHTTPTransport(proxy=url, **options) for scheme, url in proxies.items()}
    return AsyncProxyRouter(direct, proxied, routes) if proxied else direct


def _plan(config: "HttpConfig | None") -> tuple[dict[str, Any], dict[str, str], "_Routes"]:
    proxies = _proxies(config)
    return _options(config), proxies, _Routes(proxies.keys(), bypass=config is None or config.proxy is None)


def _options(config: "HttpConfig | None") -> dict[str, Any]:
    """The keywords of httpx's transports, for direct and proxied ones alike."""
    if config is None:
        return {}
    limits = httpx.Limits(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_keepalive_connections,
        keepalive_expiry=config.keepalive_expiry,
    )
    # One context for all the transports of a wire: loading the certificates is the slow part.
    verify = httpx.create_ssl_context(verify=_verify(config.verify), trust_env=config.trust_env)
    return {"verify": verify, "trust_env": config.trust_env, "http2": config.http2, "limits": limits}


def _verify(verify: bool | str) -> bool | ssl.SSLContext:
    if isinstance(verify, bool):
        return verify
    path = Path(verify)
    return (
        ssl.create_default_context(capath=path) if path.is_dir() else ssl.create_default_context(cafile=path)
    )


def _proxies(config: "HttpConfig | None") -> dict[str, str]:
    """Proxy URLs by scheme; "all" is for every scheme that has none of its own."""
    if config is not None and config.proxy is not None:
        return {"all": config.proxy}
    if config is not None and not config.trust_env:
        return {}
    found = {
        scheme: url for scheme, url in getproxies().items() if scheme in {"http", "https", "all"} and url
    }
    return {scheme: url if "://" in url else f"http://{url}" for scheme, url in found.items()}


class _Routes:
    """Which way a URL goes: through the proxy of its scheme, or straight where `NO_PROXY` names its host."""

    def __init__(self, schemes: Collection[str], *, bypass: bool) -> None:
        self._schemes = schemes
        self._bypass = bypass
        self._known: dict[tuple[str, str], str | None] = {}

    def scheme_for(self, url: httpx.URL) -> str | None:
        """The key of the proxy to use; None for none."""
        place = (url.scheme, url.netloc.decode("ascii"))
        if place not in self._known:
            scheme = url.scheme if url.scheme in self._schemes else "all"
            direct = scheme not in self._schemes or (self._bypass and proxy_bypass(place[1]))
            self._known[place] = None if direct else scheme
        return self._known[place]


class ProxyRouter(httpx.BaseTransport):
    """Sends each request straight, or through the proxy of its scheme."""

    def __init__(
        self, direct: httpx.BaseTransport, proxied: Mapping[str, httpx.BaseTransport], routes: _Routes
    ) -> None:
        self._direct, self._proxied, self._routes = direct, proxied, routes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        scheme = self._routes.scheme_for(request.url)
        wire = self._direct if scheme is None else self._proxied[scheme]
        return wire.handle_request(request)

    def close(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            wire.close()


class AsyncProxyRouter(httpx.AsyncBaseTransport):
    """Sends each request straight, or through the proxy of its scheme."""

    def __init__(
        self,
        direct: httpx.AsyncBaseTransport,
        proxied: Mapping[str, httpx.AsyncBaseTransport],
        routes: _Routes,
    ) -> None:
        self._direct, self._proxied, self._routes = direct, proxied, routes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        scheme = self._routes.scheme_for(request.url)
        wire = self._direct if scheme is None else self._proxied[scheme]
        return await wire.handle_async_request(request)

    async def aclose(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            await wire.aclose()
