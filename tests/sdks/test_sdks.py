"""What every SDK gets from a stack: its token, its retries, its limit, and errors of the SDK's own types."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

import stkai
from stkai.testing import FakeClock, QuotaServer, Reset

from ..support.world import World
from .sdks import SDKS, Sdk

pytestmark = pytest.mark.worlds("sync", "asyncio")
"""The SDKs do not support trio."""

TEXT = "one word after another"
RETRIES = 2


class Slow(stkai.AuthProvider):
    """Takes ten seconds for a token."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def get_access_token(self) -> str:
        self._clock.advance(10.0)
        return "late"


def stack(world: World, server: QuotaServer, clock: FakeClock, **options: Any) -> Any:
    """The standard stack, on the default wire."""
    provider = stkai.ClientCredentialsAuthProvider(
        server.client_id, server.client_secret, server.token_url, clock=clock
    )
    build: Any = world.pick(stkai.build_transport, stkai.build_async_transport)
    given = {"auth": provider, "rate_limit": None, "retry": stkai.RetryPolicy(RETRIES), **options}
    return build(**given, clock=clock)


@asynccontextmanager
async def connected(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock, **options: Any
) -> AsyncIterator[Any]:
    """A client of the SDK over a stack."""
    transport = stack(world, server, clock, **options)
    try:
        yield sdk.client(world, server.url, transport)
    finally:
        await world.close(transport)


async def outcome(world: World, sdk: Sdk, client: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        await sdk.ask(world, client, TEXT)
    return caught.value


async def test_an_answer_arrives_and_the_request_was_signed_by_the_stack(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        assert await sdk.ask(world, client, TEXT) == TEXT
        sent = server.requests[-1]
        assert sent.path == sdk.path
        assert sent.authorization is not None
        assert "of the SDK" not in sent.authorization
        assert server.token_requests == 1


async def test_a_streamed_answer_arrives_in_pieces(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        assert await sdk.stream(world, client, TEXT) == ["one ", "word ", "after ", "another"]


@pytest.mark.parametrize("status", [429, 503])
async def test_the_stack_retries_until_there_is_an_answer(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock, status: int
) -> None:
    async with connected(world, sdk, server, clock) as client:
        server.fail_with(*[status] * RETRIES, path=sdk.path)
        assert await sdk.ask(world, client, TEXT) == TEXT
        server.fail_with(*[status] * RETRIES, path=sdk.path)
        assert "".join(await sdk.stream(world, client, TEXT)) == TEXT
        assert server.count(path=sdk.path) == 2 * (RETRIES + 1)


@pytest.mark.parametrize(("status", "kind"), [(429, "refused"), (503, "unavailable"), (401, "unauthorized")])
async def test_a_persistent_status_is_an_sdk_error_and_only_the_stack_retries(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock, status: int, kind: str
) -> None:
    async with connected(world, sdk, server, clock) as client:
        server.fail_with(*[status] * 20, path=sdk.path)
        assert isinstance(await outcome(world, sdk, client), sdk.errors[kind])
        attempts = 2 if status == 401 else RETRIES + 1  # The auth layer renews the token once.
        assert server.count(path=sdk.path) == attempts


async def test_a_broken_connection_is_retried_and_then_an_sdk_error(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        server.fail_with(Reset(), path=sdk.path)
        assert await sdk.ask(world, client, TEXT) == TEXT
        assert server.count(path=sdk.path) == 2
        server.fail_with(*[Reset()] * 20, path=sdk.path)
        assert isinstance(await outcome(world, sdk, client), sdk.errors["unreachable"])
        assert server.count(path=sdk.path) == 2 + RETRIES + 1


async def test_a_truncated_stream_is_an_error_and_is_not_restarted(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        server.fail_with(Reset("body", after=300), path=sdk.path)
        with pytest.raises(sdk.errors["broken"]):
            await sdk.stream(world, client, TEXT)
        assert server.count(path=sdk.path) == 1


async def test_an_expired_token_is_renewed_once(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        assert await sdk.ask(world, client, TEXT) == TEXT
        server.revoke_tokens()
        assert await sdk.ask(world, client, TEXT) == TEXT
        assert "".join(await sdk.stream(world, client, TEXT)) == TEXT
        assert (server.token_requests, server.count(path=sdk.path)) == (2, 4)


async def test_a_limiters_refusal_is_an_sdk_error_with_the_reason_as_its_cause(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    limiter = stkai.TokenBucket(1, 60, max_wait_time=1.0)
    async with connected(world, sdk, server, clock, rate_limit=limiter, retry=None) as client:
        await sdk.ask(world, client, TEXT)
        error = await outcome(world, sdk, client)
        assert isinstance(error, sdk.errors["unreachable"])
        reason = next(each for each in causes(error) if isinstance(each, stkai.TokenAcquisitionTimeoutError))
        assert isinstance(reason, sdk.package.TransportError)
        assert reason.retry_after == pytest.approx(59)
        assert server.count(path=sdk.path) == 1


async def test_a_failed_sign_in_is_an_sdk_error_with_the_reason_as_its_cause(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    async with connected(world, sdk, server, clock) as client:
        server.fail_with(*[401] * 20, path=server.token_path)
        error = await outcome(world, sdk, client)
        assert isinstance(error, sdk.errors["unreachable"])
        assert any(isinstance(each, stkai.AuthenticationError) for each in causes(error))
        assert server.count(path=sdk.path) == 0


async def test_a_missed_deadline_is_an_sdk_timeout(
    world: World, sdk: Sdk, server: QuotaServer, clock: FakeClock
) -> None:
    policy = stkai.RetryPolicy(RETRIES, deadline=5.0)
    async with connected(world, sdk, server, clock, retry=policy, auth=Slow(clock)) as client:
        assert isinstance(await outcome(world, sdk, client), sdk.errors["late"])
        assert server.count(path=sdk.path) == 0


def causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


async def test_two_sdks_of_two_packages_share_one_limit_and_one_token(
    world: World, server: QuotaServer, clock: FakeClock
) -> None:
    by_name = {sdk.name: sdk for sdk in SDKS}
    limiter = stkai.TokenBucket(2, 1.0, burst=1, max_wait_time=None)
    transport = stack(world, server, clock, rate_limit=limiter)
    used = [by_name["anthropic"], by_name["groq"]]
    clients = [(sdk, sdk.client(world, server.url, transport)) for sdk in used]
    try:
        for _ in range(4):
            for sdk, client in clients:
                assert await sdk.ask(world, client, TEXT) == TEXT
    finally:
        await world.close(transport)
    times = [request.time for request in server.requests if request.path != server.token_path]
    assert len(times) == 8
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([0.5] * 7)
    assert server.token_requests == 1


@pytest.mark.parametrize("name", ["openai-httpx2", "openai-httpx", "anthropic", "groq", "together"])
async def test_a_raw_response_has_the_record_of_its_call(
    world: World, name: str, server: QuotaServer, clock: FakeClock
) -> None:
    sdk = next(sdk for sdk in SDKS if sdk.name == name)
    async with connected(world, sdk, server, clock) as client:
        resource = client.messages if name == "anthropic" else client.chat.completions
        server.fail_with(503, path=sdk.path)
        create = resource.with_raw_response.create
        raw = await world.call(create, model="m", max_tokens=9, messages=[{"role": "user", "content": TEXT}])
        assert stkai.record(raw).attempts == 2


@pytest.mark.parametrize("name", ["openai-httpx2", "openai-httpx", "anthropic", "groq", "together"])
async def test_a_stream_has_the_record_of_its_call(
    world: World, name: str, server: QuotaServer, clock: FakeClock
) -> None:
    sdk = next(sdk for sdk in SDKS if sdk.name == name)
    async with connected(world, sdk, server, clock) as client:
        create = client.messages.create if name == "anthropic" else client.chat.completions.create
        messages = [{"role": "user", "content": TEXT}]
        stream = await world.call(create, model="m", max_tokens=9, messages=messages, stream=True)
        assert stkai.record(stream).attempts == 1
        await world.call(stream.close)
