"""The clients over real sockets, against the embedded server: connections, streaming, broken bodies."""

import json
from typing import Any

import httpx
import pytest
import respx

import stkai
from stkai.testing import QuotaServer, Reset

from .support.world import World

pytestmark = pytest.mark.without_auth

ONE_CONNECTION = httpx.Limits(max_connections=1)


def build(world: World, *, retry: Any = None, **options: Any) -> Any:
    """A client over httpx's own transport."""
    kind: Any = httpx.AsyncHTTPTransport if world.is_async else httpx.HTTPTransport
    return client_of(world, auth=None, retry=retry, transport=kind(**options))


def client_of(world: World, **options: Any) -> Any:
    make: Any = stkai.build_async_client if world.is_async else stkai.build_client
    return make(**options)


async def test_sequential_requests_and_server_sent_events_share_one_connection(
    world: World, server: QuotaServer
) -> None:
    client = build(world)
    for _ in range(5):
        execution = (await world.call(client.post, server.create_url(), data={"input_data": "x"})).json()
        await world.call(client.get, server.callback_url(execution))
        streamed = await world.call(
            client.post_stream, server.chat_url(), data={"user_prompt": "a b", "streaming": True}
        )
        assert streamed.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in streamed.aiter_lines()] if world.is_async else streamed.iter_lines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert "".join(event["message"] for event in events) == "a b"
    assert (len(server.requests), server.connections) == (15, 1)
    await world.close(client)


async def test_with_credentials_a_client_needs_one_token_and_one_connection_to_the_service(
    world: World,
) -> None:
    with QuotaServer() as server:
        provider = stkai.ClientCredentialsAuthProvider(
            server.client_id, server.client_secret, server.token_url
        )
        client = client_of(world, auth=provider)
        for _ in range(3):
            response = await world.call(client.post, server.create_url(), data={"input_data": "x"})
            assert response.status_code == 200
        assert server.token_requests == 1
        assert server.connections == 2
        await world.close(client)


async def test_a_streamed_body_arrives_before_it_is_complete(world: World, server: QuotaServer) -> None:
    server.fail_with(Reset("body", after=20))
    client = build(world, retry=stkai.RetryPolicy())
    prompt = {"user_prompt": "one two three four", "streaming": True}
    response = await world.call(client.post_stream, server.chat_url(), data=prompt)
    with pytest.raises(httpx.TransportError):
        await world.read(response)
    assert response.num_bytes_downloaded == 20, "they had been handed up when the connection broke"
    assert server.count(method="POST") == 1, "what has been handed up is not sent again"
    await world.close(response)
    await world.close(client)


# httpx leaves its generators to the garbage collector, and trio warns about that.
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"], ids=["straight", "through a proxy"])
async def test_respx_can_stand_in_for_the_network(
    world: World, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy is not None:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    client = build(world, retry=stkai.RetryPolicy(initial_delay=0))
    with respx.mock:
        route = respx.post("https://api.example.com/things")
        route.side_effect = [httpx.ConnectError("refused"), httpx.Response(201, json={"id": 7})]
        response = await world.call(client.post, "https://api.example.com/things", data={"a": 1})
        streamed = respx.post("https://api.example.com/streams").mock(httpx.Response(200, text="a\nb"))
        lines = await world.call(client.post_stream, "https://api.example.com/streams")
        assert await world.read(lines) == b"a\nb"
    assert (response.status_code, response.json(), response.extensions["stkai"].attempts) == (
        201,
        {"id": 7},
        2,
    )
    assert [json.loads(call.request.content) for call in route.calls] == [{"a": 1}, {"a": 1}]
    assert streamed.called
    await world.close(client)
