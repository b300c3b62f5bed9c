"""A stack under httpx's own clients: as their transport, mounted for one origin, and under redirects."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import stkai
from stkai import RequestOptions, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import auth, retry, token_bucket

from .support.wire import Wire
from .support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/v1/things"


class Provider(stkai.AuthProvider):
    def get_access_token(self) -> str:
        return "the-token"


@pytest.fixture
def other_server() -> Iterator[QuotaServer]:
    with QuotaServer() as server:
        yield server


def transport_for(world: World, server: QuotaServer, **options: Any) -> Any:
    """The standard stack on the default wire, with the credentials of the server."""
    build: Any = stkai.build_async_transport if world.is_async else stkai.build_transport
    provider = stkai.ClientCredentialsAuthProvider(server.client_id, server.client_secret, server.token_url)
    return build(auth=provider, **options)


async def test_a_stack_is_the_transport_of_an_httpx_client(world: World, server: QuotaServer) -> None:
    client = world.client(transport_for(world, server, rate_limit="adaptive"), base_url=server.url)
    created = await world.call(
        client.post, "/v1/quick-commands/create-execution/demo", json={"input_data": "x"}
    )
    polled = await world.call(client.get, f"/v1/quick-commands/callback/{created.json()}")
    assert (created.status_code, polled.status_code) == (200, 200)
    assert created.extensions["stkai"].attempts == 1
    assert created.elapsed is not None
    assert server.token_requests == 1
    await world.close(client)


async def test_a_stack_mounted_for_one_origin_does_not_affect_others(
    world: World, server: QuotaServer, other_server: QuotaServer
) -> None:
    client = world.client(mounts={server.url: transport_for(world, server)})
    ours = await world.call(client.post, server.url + "/echo")
    theirs = await world.call(client.post, other_server.url + "/echo")
    assert "authorization" in dict(ours.json()["headers"])
    assert "authorization" not in dict(theirs.json()["headers"])
    assert ("stkai" in ours.extensions, "stkai" in theirs.extensions) == (True, False)
    await world.close(client)


async def test_every_hop_of_a_redirect_goes_through_the_stack(world: World) -> None:
    clock, bucket = FakeClock(), TokenBucket(1, 10.0, burst=1, methods={"GET"})
    wire = world.wire(
        httpx.Response(302, headers={"Location": "/second"}),
        503,
        httpx.Response(302, headers={"Location": "/third"}),
        200,
    )
    stack = StackBuilder([retry(), auth(Provider()), token_bucket(bucket)], clock=clock)
    client = world.client(world.build(stack, wire), follow_redirects=True)
    response = await world.call(client.get, URL)
    assert [request.url.path for request in wire.requests] == ["/v1/things", "/second", "/second", "/third"]
    assert {request.headers["authorization"] for request in wire.requests} == {"Bearer the-token"}
    assert [hop.extensions["stkai"].attempts for hop in (*response.history, response)] == [1, 2, 1]
    assert sum(clock.sleeps) == pytest.approx(30.0), "each hop and each attempt has paid for a permit"
    assert wire.open == 0


async def test_the_clients_own_features_still_work(world: World) -> None:
    wire = world.wire(httpx.Response(200, headers={"Set-Cookie": "session=1"}), 200)
    seen: list[str] = []

    def hook(request: httpx.Request) -> None:
        seen.append(request.url.path)

    async def async_hook(request: httpx.Request) -> None:
        hook(request)

    transport = world.build(StackBuilder([retry()], clock=FakeClock()), wire)
    client = world.client(
        transport,
        headers={"X-Mine": "1"},
        params={"page": "1"},
        event_hooks={"request": [world.pick(hook, async_hook)]},
    )
    await world.call(client.get, URL)
    await world.call(client.post, URL, files={"file": ("a.txt", b"text")})
    assert wire.requests[1].headers["cookie"] == "session=1"
    assert {request.headers["x-mine"] for request in wire.requests} == {"1"}
    assert {request.url.query for request in wire.requests} == {b"page=1"}
    assert b"a.txt" in wire.bodies[1]
    assert seen == ["/v1/things", "/v1/things"]


async def test_options_travel_as_an_extension(world: World) -> None:
    wire = world.wire(503, 503, 200)
    client = world.client(world.build(StackBuilder([retry()], clock=FakeClock()), wire))
    once = await world.call(client.get, URL, extensions={"stkai": RequestOptions(retry=None)})
    often = await world.call(client.get, URL, extensions={"stkai": RequestOptions(retry=RetryPolicy(5))})
    assert (once.status_code, often.status_code) == (503, 200)
    assert [response.extensions["stkai"].attempts for response in (once, often)] == [1, 2]


def test_one_transport_serves_several_clients() -> None:
    wire = Wire(200, 200)
    transport = StackBuilder([retry()]).build(wire)
    for _ in range(2):
        assert httpx.Client(transport=transport).get(URL).status_code == 200


def test_a_refusal_tells_what_the_redirects_before_it_have_waited() -> None:
    redirect = httpx.Response(302, headers={"Location": "/next"})
    stack = stkai.build_transport(
        auth=None,
        rate_limit=stkai.TokenBucket(1, 1.0),
        transport=httpx.MockTransport(lambda _: redirect),
        clock=FakeClock(),
    )
    options = stkai.RequestOptions(max_wait_time=1.5)
    with (
        httpx.Client(transport=stack, follow_redirects=True) as client,
        pytest.raises(stkai.TokenAcquisitionTimeoutError) as caught,
    ):
        client.get("http://a.example/", extensions={"stkai": options})
    error = caught.value
    assert (error.waited, error.max_wait_time, error.required) == pytest.approx((1.0, 1.5, 2.0))
