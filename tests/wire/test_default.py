"""The default wire on loopback: proxies, certificates, limits."""

import shutil
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

import stkai
from stkai import STKAI, ConfigurationError, HttpConfig, StackBuilder
from stkai._event_loops import running_loop
from stkai._wire import AsyncDefaultWire, DefaultWire
from stkai.testing import QuotaServer

from ..support import servers
from ..support.servers import CERTIFICATE, Proxy
from ..support.world import World

HASHED_NAME = "ce275665.0"
"""The name by which OpenSSL looks for the test certificate in a directory."""


@pytest.fixture
def proxy() -> Iterator[tuple[str, Proxy]]:
    with servers.proxy() as both:
        yield both


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no name server: only addresses can be resolved."""
    resolve: Any = socket.getaddrinfo

    def without_names(host: Any, *args: Any, **kwargs: Any) -> Any:
        if "example" in str(host):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", without_names)


@pytest.fixture
def tls_url() -> Iterator[str]:
    with servers.tls_server() as url:
        yield url


def wire_of(world: World, **config: Any) -> Any:
    make: Any = AsyncDefaultWire if world.is_async else DefaultWire
    return make(HttpConfig(**config) if config else None)


def pool_of(world: World, wire: Any) -> Any:
    """The running loop's pool in an async wire."""
    return wire._by_loop[running_loop()] if world.is_async else wire


def wires_in(wire: Any) -> list[Any]:
    """The direct wire and the proxied ones, of httpx."""
    (wires,) = wire._wires.values()
    return list(wires.values())


def transport_of(wire: Any) -> Any:
    """An httpx transport, as a wire makes it."""
    made = wire._make() if hasattr(wire, "_by_loop") else wire
    made = made._make() if hasattr(made, "discard_all") else made
    return made._wires.all()[0] if hasattr(made, "_wires") else made


def client_of(world: World, wire: Any) -> Any:
    kind: Any = stkai.AsyncHttpClient if world.is_async else stkai.HttpClient
    return kind(wire)


async def get(world: World, url: str, **config: Any) -> httpx.Response:
    """One GET through a new wire."""
    client = client_of(world, wire_of(world, **config))
    try:
        response: httpx.Response = await world.call(client.get, url, timeout=5)
    finally:
        await world.close(client)
    return response


# Proxies

UPSTREAM = "http://upstream.example"


def through_the_proxy(server: QuotaServer, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure a proxy that knows the server under the name of another machine."""
    url, log = proxy
    log.upstream = server.url
    settings = {**server.env(), "STKAI_HTTP_PROXY": url, "STKAI_AUTH_ALLOW_HTTP": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace(server.url, UPSTREAM))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_the_environments_proxy_gets_requests_in_absolute_form(
    world: World, proxy: tuple[str, Proxy], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = proxy
    monkeypatch.setenv(name, url)
    response = await get(world, "http://service.example/things?page=1")
    assert response.text == "by proxy: http://service.example/things?page=1"
    assert log.asked == [("GET", "http://service.example/things?page=1")]


async def test_a_proxy_may_be_named_without_its_scheme(
    world: World, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy[0].removeprefix("http://"))
    assert (await get(world, "http://service.example/")).text.startswith("by proxy")


def test_a_proxy_that_is_refused_without_a_reason_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:1")
    monkeypatch.setattr(httpx, "Proxy", Mock(side_effect=ValueError))
    with pytest.raises(ConfigurationError, match="a proxy"):
        DefaultWire()


async def test_https_goes_through_a_tunnel_of_the_https_proxy(
    world: World, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = proxy
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(httpx.ProxyError, match="403"):
        await get(world, "https://service.example/")
    assert log.asked == [("CONNECT", "service.example:443")]


async def test_an_error_of_a_connection_names_the_proxy_without_its_password(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    for url in ("http://service.example/", "https://service.example/"):
        with pytest.raises(httpx.ConnectError) as caught:
            await get(world, url, proxy=f"http://me:secret@{place}")
        assert str(caught.value).endswith(f" (through the proxy http://{place})")
        assert "secret" not in str(caught.value)


async def test_a_proxy_gets_its_credentials(world: World, proxy: tuple[str, Proxy]) -> None:
    url, log = proxy
    await get(world, "http://service.example/", proxy=url.replace("http://", "http://me:secret@"))
    assert log.credentials == ["Basic bWU6c2VjcmV0"]


@pytest.mark.usefixtures("no_names")
async def test_hosts_in_no_proxy_are_reached_directly(
    world: World, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = proxy
    monkeypatch.setenv("ALL_PROXY", url)
    monkeypatch.setenv("NO_PROXY", "example.com,upstream.example")
    client = client_of(world, wire_of(world))
    with pytest.raises(httpx.ConnectError):
        await world.call(client.get, "http://upstream.example/echo")
    assert log.asked == []
    await world.call(client.get, "http://service.example/")
    assert len(log.asked) == 1
    await world.close(client)


@pytest.mark.usefixtures("no_names")
async def test_the_environments_proxies_are_ignored_unless_it_is_trusted(
    world: World, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = proxy
    monkeypatch.setenv("ALL_PROXY", url)
    with pytest.raises(httpx.ConnectError):
        await get(world, "http://upstream.example/echo", trust_env=False)
    assert log.asked == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "STKAI_HTTP_PROXY"])
async def test_neither_a_request_nor_the_secret_for_this_machine_goes_to_a_proxy(
    world: World,
    server: QuotaServer,
    proxy: tuple[str, Proxy],
    host: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, log = proxy
    for variable, value in {**server.env(), name: url}.items():
        monkeypatch.setenv(
            variable, value.replace("//127.0.0.1:", f"//{host}:") if variable != name else value
        )
    client = (stkai.build_async_client if world.is_async else stkai.build_client)()
    address = server.create_url().replace("127.0.0.1", host)
    assert (await world.call(client.post, address, data={"input_data": "x"})).status_code == 200
    assert log.asked == []
    await world.close(client)


async def test_a_proxy_in_the_settings_overrides_the_environment_and_applies_to_everything(
    world: World, server: QuotaServer, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = proxy
    log.upstream = server.url
    monkeypatch.setenv("STKAI_HTTP_PROXY", url)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    await get(world, UPSTREAM + "/echo")
    assert log.asked == [("GET", UPSTREAM + "/echo")]


async def test_a_client_from_build_client_and_its_token_go_through_the_proxy(
    world: World, server: QuotaServer, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, log = proxy
    through_the_proxy(server, proxy, monkeypatch)
    client = (stkai.build_async_client if world.is_async else stkai.build_client)()
    create_url = server.create_url().replace(server.url, UPSTREAM)
    response = await world.call(client.post, create_url, data={"input_data": "x"})
    assert response.status_code == 200
    assert log.asked == [("POST", server.token_url.replace(server.url, UPSTREAM)), ("POST", create_url)]
    await world.close(client)


@pytest.mark.parametrize("standard", [True, False])
async def test_a_builders_default_wire_also_follows_the_settings(
    world: World,
    server: QuotaServer,
    proxy: tuple[str, Proxy],
    standard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, log = proxy
    through_the_proxy(server, proxy, monkeypatch)
    client = client_of(world, world.build(StackBuilder.standard() if standard else StackBuilder()))
    await world.call(client.get, UPSTREAM + "/echo")
    assert ("GET", UPSTREAM + "/echo") in log.asked
    await world.close(client)


async def test_one_proxy_for_several_schemes_has_one_connection_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    wire = wire_of(world)
    assert len(wires_in(wire)) == 2
    await world.close(wire)


@pytest.mark.worlds("sync", "asyncio")
@pytest.mark.parametrize(
    "url", ["gopher://me:secret@proxy", "http://me:secret@proxy:port", "socks5://me:secret@proxy"]
)
async def test_a_proxy_that_cannot_be_used_is_an_error_without_its_password(
    world: World, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", url)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(stkai.ConfigurationError, match="HTTPS_PROXY or ALL_PROXY") as caught:
        wire_of(world)
    assert "secret" not in str(caught.value)
    assert ('pip install "stkai[socks]"' in str(caught.value)) == url.startswith("socks5")


async def test_closing_the_wire_closes_its_proxied_connections(
    world: World, proxy: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy[0])
    wire = wire_of(world)
    client = client_of(world, wire)
    await world.call(client.get, "http://service.example/")
    _, proxied = wires_in(wire)
    (one,) = pool_of(world, proxied).connections
    assert not one._pool.held.is_closed()
    held = one._pool.held
    await world.close(client)
    assert held.is_closed()


async def test_another_scheme_than_http_is_not_supported(world: World) -> None:
    wire = wire_of(world)
    for url in ("ftp://service.example/", "mailto:somebody"):
        with pytest.raises(httpx.UnsupportedProtocol):
            await world.send(wire, httpx.Request("GET", url))
    await world.close(wire)


# Certificates


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_verify_takes_a_file_and_a_directory_of_certificates(
    world: World, tls_url: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CERTIFICATE, tmp_path / HASHED_NAME)
    monkeypatch.setenv("STKAI_HTTP_VERIFY", str(CERTIFICATE if kind == "file" else tmp_path))
    assert (await get(world, tls_url)).text == "by TLS"


async def test_the_environments_ca_bundle_is_used_if_the_environment_is_trusted(
    world: World, tls_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert (await get(world, tls_url)).text == "by TLS"
    with pytest.raises(httpx.ConnectError):
        await get(world, tls_url, trust_env=False)


async def test_verify_also_applies_to_the_token_endpoint(world: World, tls_url: str) -> None:
    STKAI.configure(
        auth={"client_id": "id", "client_secret": "secret", "token_url": tls_url},
        http={"verify": str(CERTIFICATE)},
    )
    client = (stkai.build_async_client if world.is_async else stkai.build_client)()
    with pytest.raises(stkai.AuthenticationError, match="not a JSON object"):
        await world.call(client.get, tls_url)
    await world.close(client)


async def test_certificates_are_loaded_once_for_all_proxies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    wire = wire_of(world)
    pools = [transport_of(each)._pool.pool for each in wires_in(wire)]
    assert len(pools) == 3
    assert len({id(pool._ssl_context) for pool in pools}) == 1
    assert isinstance(pools[0]._ssl_context, ssl.SSLContext)
    await world.close(wire)


# Limits and HTTP/2


@pytest.mark.parametrize(
    ("config", "connections"),
    [({"trust_env": True}, 1), ({"max_keepalive_connections": 0}, 3), ({"keepalive_expiry": 0}, 3)],
    ids=["default", "none kept", "expired at once"],
)
async def test_the_keep_alive_limits_hold(
    world: World, server: QuotaServer, config: dict[str, Any], connections: int
) -> None:
    client = client_of(world, wire_of(world, **config))
    for _ in range(3):
        await world.call(client.get, server.url + "/echo")
    assert server.connections == connections
    await world.close(client)


async def test_http2_is_used_if_its_package_is_installed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._wire.find_spec", lambda _: object())
    for http2 in (True, False):
        wire = wire_of(world, http2=http2)
        assert transport_of(wires_in(wire)[0])._pool.pool._http2 is http2
        await world.close(wire)


async def test_http2_without_its_package_is_an_error_that_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._wire.find_spec", lambda _: None)
    with pytest.raises(stkai.ConfigurationError, match=r'pip install "stkai\[http2\]"'):
        wire_of(world, http2=True)


@pytest.mark.worlds("asyncio", "trio")
async def test_an_error_that_is_not_of_the_network_is_raised_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a test that may not use the network, where pytest-socket raises an error of its own."""

    def refuse(*_: Any) -> None:
        raise LookupError("not in a test")

    wire = wire_of(world)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(LookupError, match="not in a test"):
        await world.send(wire, httpx.Request("GET", "http://127.0.0.1:9/"))
