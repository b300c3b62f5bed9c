"""Token sources: what a custom provider needs, and the provider for a token that never changes."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import stkai
from stkai import AuthProvider, ConfigurationError, RequestOptions, StaticToken

from ...support.threads import own_threads
from ...support.world import World

URL = "https://api.example.com/v1/chat"


class Minimal(AuthProvider):
    def get_access_token(self) -> str:
        return "mine"


def test_a_provider_only_needs_to_return_a_token() -> None:
    provider = Minimal()
    assert provider.get_auth_headers() == {"Authorization": "Bearer mine"}
    assert provider.cached_access_token() is None
    provider.forget("mine")


def test_a_provider_without_get_access_token_cannot_be_created() -> None:
    with pytest.raises(TypeError, match="get_access_token"):
        AuthProvider()  # type: ignore[abstract]


def test_an_async_get_access_token_is_refused_since_it_is_never_awaited() -> None:
    class Async(AuthProvider):
        async def get_access_token(self) -> str:  # type: ignore[override]
            return "mine"

    with pytest.raises(ConfigurationError, match="rename the async one to aget_access_token"):
        stkai.build_client(auth=Async())


@dataclass
class Unhashable(AuthProvider):
    token: str

    def get_access_token(self) -> str:
        return self.token


async def test_a_provider_need_not_be_hashable(world: World) -> None:
    for options in (RequestOptions(), RequestOptions(deadline=60.0)):
        wire = world.wire(200)
        kind: Any = world.pick(stkai.transports.AuthTransport, stkai.transports.AsyncAuthTransport)
        transport = kind(wire, Unhashable("t"))
        await world.send(transport, httpx.Request("GET", URL, extensions={"stkai": options}))
        assert wire.requests[0].headers["authorization"] == "Bearer t"


# A fixed token


async def test_a_static_token_signs_every_request_without_a_thread(world: World) -> None:
    wire = world.wire(lambda _: 200)
    kind: Any = world.pick(stkai.transports.AuthTransport, stkai.transports.AsyncAuthTransport)
    transport = kind(wire, StaticToken("abc.def-_~+/="))
    with own_threads() as running:
        for _ in range(3):
            await world.send(transport, httpx.Request("GET", URL))
        assert running() == []
    assert {request.headers["authorization"] for request in wire.requests} == {"Bearer abc.def-_~+/="}


@pytest.mark.worlds("asyncio", "trio")
async def test_a_static_token_can_be_awaited(world: World) -> None:
    assert await StaticToken("abc").aget_access_token() == "abc"


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "Bearer s3cret", "s3cret\n", "\u00e9", "nul\0", None, 7, b"s3cret"], ids=repr
)
def test_a_static_token_that_cannot_be_a_header_value_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="StaticToken takes the token as a string") as caught:
        StaticToken(value)
    assert "s3cret" not in str(caught.value)
