"""Real servers for the tests of stores, started once per session."""

from collections.abc import Iterator

import pytest

from ..support.redis_servers import KINDS, Server, installed


@pytest.fixture(scope="session", params=KINDS)
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server shared by all tests; each test empties it before use."""
    kind = request.param
    if not installed(kind):
        pytest.skip(f"{kind}-server is not installed: apt-get install {kind}-server")
    with Server(kind, tmp_path_factory.mktemp(kind)) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A real, empty server."""
    with shared_server.client() as client:
        client.flushall()
        client.script_flush()
    return shared_server
