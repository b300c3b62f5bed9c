"""Helpers of the tests in this folder: clients over real sockets or a script, and what they leave open."""

from typing import Any

import httpx

import stkai
from stkai.testing import QuotaServer

from ..support.world import World

ONE_CONNECTION = httpx.Limits(max_connections=1, max_keepalive_connections=1)
NO_DELAY = stkai.RetryPolicy(initial_delay=0)


def wire_of(world: World, **options: Any) -> Any:
    """httpx's own transport, over sockets; with one connection by default."""
    kind: Any = httpx.AsyncHTTPTransport if world.is_async else httpx.HTTPTransport
    return kind(**{"limits": ONE_CONNECTION, **options})


def client_of(world: World, **options: Any) -> Any:
    """stkai's client in this world over the standard stack; bare by default."""
    build: Any = stkai.build_async_client if world.is_async else stkai.build_client
    return build(**{"auth": None, "rate_limit": None, "retry": None, **options})


def transport_of(world: World, **options: Any) -> Any:
    """The same as a transport, for an httpx client."""
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    return build(**{"auth": None, "rate_limit": None, "retry": None, **options})


def provider_of(server: QuotaServer, **options: Any) -> stkai.ClientCredentialsAuthProvider:
    """Gets its tokens from the server."""
    return stkai.ClientCredentialsAuthProvider(
        server.client_id, server.client_secret, server.token_url, **options
    )


def busy_connections(wire: Any) -> list[str]:
    """The connections of an httpx transport that are still in use; httpx itself does not say."""
    return [str(connection) for connection in wire._pool.connections if not connection.is_idle()]
