"""The default wire: httpx's own transports, and the environment's proxies, which httpx ignores with `transport=`."""

import os
import ssl
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._families import HTTPX, Family, alike, family_of_wire
from .._urls import PROXIES, absolute_url
from .closing import AsyncClosable, Closable
from .loops import WirePerLoop
from .multiplexed import AsyncMultiplexed, Multiplexed
from .pool import AsyncConnectionPool, ConnectionPool
from .proxies import ProxyMap

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
            return Multiplexed(lambda: family.HTTPTransport(**options), family)
        one, limits = _for_one(family, options), options["limits"]
        family.HTTPTransport(**one).close()  # An unusable proxy, for example, fails here.
        return ConnectionPool(lambda: family.HTTPTransport(**one), limits, family)

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
            return WirePerLoop(lambda: AsyncMultiplexed(family.AsyncHTTPTransport(**options), family), family)
        one, limits = _for_one(family, options), options["limits"]
        family.AsyncHTTPTransport(**one)  # It has no connection yet to close.
        return WirePerLoop(
            lambda: AsyncConnectionPool(lambda: family.AsyncHTTPTransport(**one), limits, family), family
        )

    direct = make(options)
    proxied = through(proxies, lambda proxy: make({"proxy": proxy, **options}), options["verify"], family)
    return AsyncProxyRouter(direct, proxied, proxies) if proxied else direct


def _for_one(family: Family, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a transport with room for one connection."""
    expiry = options["limits"].keepalive_expiry
    limits = family.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=expiry)
    return {**options, "limits": limits}


def _options(config: "HttpConfig", family: Family) -> dict[str, Any]:
    """The keywords of httpx's transports, direct or through a proxy."""
    if config.http2 and find_spec("h2") is None:
        msg = 'HTTP/2 (STKAI_HTTP_HTTP2) needs a package that is not installed: pip install "stkai[http2]"'
        raise ConfigurationError(msg)
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


class _Router:
    """What the routers share: the wires, and which one a request takes."""

    def __init__(self, direct: Any, proxied: Mapping[str, Any], proxies: ProxyMap) -> None:
        self._direct, self._proxied, self._proxies = direct, proxied, proxies
        self.family = family_of_wire(direct)

    def _wire_for(self, url: httpx.URL) -> Any:
        # Not where the request is sent: tracebacks show variables, and a proxy's URL may contain a password.
        proxy = self._proxies.proxy_for(url)
        return self._direct if proxy is None else self._proxied[proxy]


class ProxyRouter(_Router, Closable):
    """Sends each request directly, or through its proxy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = self._wire_for(request.url).handle_request(request)
        return response

    def _close(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            wire.close()


class AsyncProxyRouter(_Router, AsyncClosable):
    """Sends each request directly, or through its proxy."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._wire_for(request.url).handle_async_request(request)
        return response

    async def _aclose(self) -> None:
        for wire in (self._direct, *self._proxied.values()):
            await wire.aclose()
