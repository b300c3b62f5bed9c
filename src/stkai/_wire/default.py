"""The default wire: httpx's own transports, and the environment's proxies, which httpx ignores with `transport=`.

Each request leaves through the package that made it, httpx or httpx2.
"""

import os
import ssl
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from .._config import STKAI
from .._errors import ConfigurationError, missing_extra
from .._families import HTTPX, Family, alike, family_of
from .._urls import PROXIES, absolute_url
from .lifetimes import AsyncClosable, Closable, WirePerLoop
from .multiplexed import AsyncMultiplexed, Multiplexed
from .network import mended
from .pool import AsyncConnectionPool, ConnectionPool
from .proxies import AsyncProxyRouter, ProxyMap, ProxyRouter

if TYPE_CHECKING:
    from .._config.models import HttpConfig

T = TypeVar("T")


def default_wire(config: "HttpConfig | None" = None, family: Family = HTTPX) -> httpx.BaseTransport:
    """A sync wire with the verification, limits, HTTP/2 and proxies of `config`; by default of `STKAI.config.http`.

    Raises:
        ConfigurationError: the proxy or the certificates cannot be used, or a package is missing.
    """
    config = config or STKAI.config.http
    options, proxies = _options(config, family), proxies_of(config)

    def make(options: dict[str, Any]) -> httpx.BaseTransport:
        if config.http2:
            return Multiplexed(lambda: mended(family.HTTPTransport(**options)), family)
        one, limits = _for_one(family, options), options["limits"]
        family.HTTPTransport(**one).close()  # An unusable proxy, for example, fails here.
        return ConnectionPool(lambda: mended(family.HTTPTransport(**one)), limits, family)

    direct = make(options)
    proxied = through(proxies, lambda proxy: make({"proxy": proxy, **options}), options["verify"], family)
    return ProxyRouter(direct, proxied, proxies) if proxied else direct


def default_async_wire(
    config: "HttpConfig | None" = None, family: Family = HTTPX
) -> httpx.AsyncBaseTransport:
    """The async version of `default_wire`."""
    config = config or STKAI.config.http
    options, proxies = _options(config, family), proxies_of(config)

    def make(options: dict[str, Any]) -> httpx.AsyncBaseTransport:
        if config.http2:
            return WirePerLoop(
                lambda: AsyncMultiplexed(lambda: mended(family.AsyncHTTPTransport(**options)), family),
                family,
            )
        one, limits = _for_one(family, options), options["limits"]
        family.AsyncHTTPTransport(**one)  # It has no connection yet to close.
        return WirePerLoop(
            lambda: AsyncConnectionPool(lambda: mended(family.AsyncHTTPTransport(**one)), limits, family),
            family,
        )

    direct = make(options)
    proxied = through(proxies, lambda proxy: make({"proxy": proxy, **options}), options["verify"], family)
    return AsyncProxyRouter(direct, proxied, proxies) if proxied else direct


class WireByFamily(Closable):
    """The wire of a stack without `transport=`: that of httpx, plus one of httpx2 from the first httpx2 request on.

    Raises:
        ConfigurationError: as for `default_wire`.
    """

    family = None
    is_leaf = True

    def __init__(self, config: "HttpConfig | None" = None) -> None:
        self._config = config or STKAI.config.http
        # Made here, so that unusable settings fail here.
        self._wires: dict[Family, httpx.BaseTransport] = {HTTPX: default_wire(self._config)}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            # Two threads may get here at once; the wire that is not kept has no connections yet.
            wire = self._wires.setdefault(family, default_wire(self._config, family))
        return wire.handle_request(request)

    def _close(self) -> None:
        for wire in list(self._wires.values()):
            wire.close()


class AsyncWireByFamily(AsyncClosable):
    """The async version of `WireByFamily`.

    Args:
        make: makes the wire of a package.
    """

    family = None
    is_leaf = True

    def __init__(
        self,
        config: "HttpConfig | None" = None,
        make: "Callable[[HttpConfig, Family], httpx.AsyncBaseTransport]" = default_async_wire,
    ) -> None:
        self._config, self._make = config or STKAI.config.http, make
        self._wires: dict[Family, httpx.AsyncBaseTransport] = {HTTPX: make(self._config, HTTPX)}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.require_open()
        family = family_of(request)
        wire = self._wires.get(family)
        if wire is None:
            wire = self._wires.setdefault(family, self._make(self._config, family))
        return await wire.handle_async_request(request)

    async def _aclose(self) -> None:
        for wire in list(self._wires.values()):
            await wire.aclose()


def _for_one(family: Family, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a transport with room for one connection."""
    expiry = options["limits"].keepalive_expiry
    limits = family.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=expiry)
    return {**options, "limits": limits}


def _options(config: "HttpConfig", family: Family) -> dict[str, Any]:
    """The keywords of httpx's transports, direct or through a proxy."""
    if config.http2 and find_spec("h2") is None:
        raise missing_extra("HTTP/2 (STKAI_HTTP_HTTP2)", "http2")
    # All transports of a wire share one context: loading the certificates is the slow part.
    return {
        "verify": context_of(config),
        "trust_env": config.trust_env,
        "http2": config.http2,
        "limits": limits_of(config, family),
    }


def limits_of(config: "HttpConfig", family: Family) -> httpx.Limits:
    """How many connections there may be, and how long they stay open while idle."""
    return family.Limits(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_keepalive_connections,
        keepalive_expiry=config.keepalive_expiry,
    )


def context_of(config: "HttpConfig") -> ssl.SSLContext:
    """How TLS verifies the server.

    Raises:
        ConfigurationError: the certificates cannot be read.
    """
    try:
        return httpx.create_ssl_context(verify=_verify(config.verify), trust_env=config.trust_env)
    except OSError as error:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        msg = f"{name} must name certificates in PEM form, and {os.environ.get(name)!r} does not: {error}"
        raise ConfigurationError(msg) from error


def _verify(verify: bool | str) -> bool | ssl.SSLContext:
    if isinstance(verify, bool):
        return verify
    is_dir = Path(verify).is_dir()
    try:
        return ssl.create_default_context(
            capath=verify if is_dir else None, cafile=None if is_dir else verify
        )
    except OSError as error:
        msg = f"verify (STKAI_HTTP_VERIFY) must name a file of certificates in PEM form; {verify!r}: {error}"
        raise ConfigurationError(msg) from error


def proxies_of(config: "HttpConfig") -> ProxyMap:
    """The proxies of the settings, or of the environment."""
    if config.proxy is not None:
        return ProxyMap({"all": config.proxy})
    return ProxyMap.from_environment() if config.trust_env else ProxyMap({})


def through(
    proxies: ProxyMap, make: Callable[[httpx.Proxy], T], context: ssl.SSLContext, family: Family
) -> dict[str, T]:
    """A transport for each proxy, by the proxy's URL. The certificate of a proxy is checked like a server's.

    Raises:
        ConfigurationError: one cannot be used. Neither the message nor a variable of the traceback shows its URL, which
            may contain a password.
    """
    problems: list[str] = []
    made = _make_each(proxies, make, context, family, problems)
    if problems:
        msg = f"a proxy (of STKAI_HTTP_PROXY, HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) cannot be used: {problems[0]}"
        raise ConfigurationError(msg)
    return made


def _make_each(
    proxies: ProxyMap,
    make: Callable[[httpx.Proxy], T],
    context: ssl.SSLContext,
    family: Family,
    problems: list[str],
) -> dict[str, T]:
    made = {}
    for url in proxies.urls:
        try:
            absolute_url(url, PROXIES)
            verify = context if url.lower().startswith("https://") else None
            made[url] = make(family.Proxy(url, ssl_context=verify))
        except alike(httpx.InvalidURL, ValueError, ImportError) as error:
            problems.append(str(error))
            return {}
    return made
