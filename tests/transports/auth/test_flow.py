"""The auth layer: signing, one renewal after a 401, deadlines, and a real server."""

from functools import partial
from itertools import cycle
from typing import Any, NoReturn

import httpx
import pytest

from stkai import (
    AuthenticationError,
    AuthProvider,
    BearerAuth,
    ConfigurationError,
    DeadlineExceededError,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenBucket,
    TokenRenewed,
)
from stkai.testing import FakeClock
from stkai.transports import AsyncAuthTransport, AuthTransport, Context, auth, limiter, retry

from ...support.clients import Body
from ...support.event_log import CALL, EventLog
from ...support.tokens import Issuer, provider_over
from ...support.wire import Answer, Wire
from ...support.world import World
from .bench import URL, Server, Static, bearer, layer, post

pytestmark = pytest.mark.both_packages


async def test_a_copy_of_the_request_is_signed_and_the_original_is_unchanged(world: World) -> None:
    wire, request = world.wire(200), post()
    before = dict(request.headers)
    await world.send(layer(world, wire, provider_over(Issuer())), request)
    assert bearer(wire.requests[0]) == "Bearer token-1"
    assert wire.bodies == [request.content]
    assert dict(request.headers) == before


async def test_later_requests_use_the_same_token_and_record_no_time_for_it(world: World) -> None:
    clock = FakeClock()
    issuer, wire = Issuer(lambda _: clock.sleep(0.3)), world.wire(200, 200)
    transport = layer(world, wire, provider_over(issuer, clock), context=Context(clock=clock))
    first = await world.send(transport, post())
    second = await world.send(transport, post())
    assert [bearer(request) for request in wire.requests] == ["Bearer token-1"] * 2
    assert first.extensions["stkai"].authenticating == pytest.approx(0.3)
    assert second.extensions["stkai"].authenticating == 0
    assert issuer.fetches == 1


async def test_a_provider_without_a_cached_token_is_asked_for_each_request(world: World) -> None:
    wire = world.wire(200, 200)
    transport = layer(world, wire, Static("a", "b"))
    for _ in range(2):
        await world.send(transport, post())
    assert [bearer(request) for request in wire.requests] == ["Bearer a", "Bearer b"]


async def test_a_fetched_token_is_reported_once(world: World) -> None:
    clock, log = FakeClock(), EventLog()
    context = Context(clock=clock, listener=log)
    issuer = Issuer(lambda _: clock.sleep(0.25))
    transport = layer(world, world.wire(200, 401, 200), provider_over(issuer, clock), context=context)
    await world.send(transport, post())
    await world.send(transport, post())
    assert log.of(TokenRenewed) == [
        TokenRenewed(call=CALL, seconds=0.25, reason="none was valid"),
        TokenRenewed(call=CALL, seconds=0.25, reason="the server refused the old one"),
    ]


async def test_a_token_that_has_not_changed_is_not_reported(world: World) -> None:
    log = EventLog()
    context = Context(listener=log)
    transport = layer(world, world.wire(200, 200, 200), Static("same"), context=context)
    for _ in range(3):
        await world.send(transport, post())
    assert len(log.of(TokenRenewed)) == 1


async def test_each_of_several_tokens_in_turn_is_reported_once(world: World) -> None:
    log, tokens = EventLog(), cycle(f"of-tenant-{number}" for number in range(5))

    class PerTenant(AuthProvider):
        def get_access_token(self) -> str:
            return next(tokens)

    transport = layer(world, world.wire(*[200] * 20), PerTenant(), context=Context(listener=log))
    for _ in range(20):
        await world.send(transport, post())
    assert len(log.of(TokenRenewed)) == 5


# After a 401


async def test_a_refused_token_is_renewed_once_and_the_request_sent_once_more(world: World) -> None:
    issuer, server = Issuer(), Server("token-1")
    response = await world.send(layer(world, server, provider_over(issuer)), post())
    assert response.status_code == 200
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    assert server.bodies[0] == server.bodies[1]
    assert response.extensions["stkai"].attempts == 2
    assert server.open == 1  # the one that was returned
    assert issuer.fetches == 2


async def test_a_provider_without_another_token_is_not_asked_again(world: World) -> None:
    provider, wire = Static("same"), world.wire(httpx.Response(401, text="no entry"))
    response = await world.send(layer(world, wire, provider), post())
    assert response.status_code == 401
    assert await world.read(response) == b"no entry"
    assert provider.forgotten == ["same"]


async def test_a_long_401_is_returned_whole_where_there_is_no_other_token(world: World) -> None:
    parts = [b"no entry " * 10_000] * 20
    headers = {"content-length": "1800000"}
    wire = world.wire(lambda _: httpx.Response(401, headers=headers, stream=Body(*parts)))
    response = await world.send(layer(world, wire, Static("same")), post())
    assert (response.status_code, len(wire.requests)) == (401, 1)
    assert await world.read(response) == b"".join(parts)
    assert wire.open == 0


async def test_a_one_shot_body_is_sent_once_and_the_next_call_gets_a_new_token(world: World) -> None:
    def sync_body() -> Any:
        yield b"once"

    async def async_body() -> Any:
        yield b"once"

    issuer, server = Issuer(), Server("token-1")
    transport = layer(world, server, provider_over(issuer))
    body = world.pick(sync_body, async_body)()
    response = await world.send(transport, httpx.Request("POST", URL, content=body))
    assert response.status_code == 401
    assert server.tokens == ["Bearer token-1"]
    assert issuer.fetches == 1
    await world.send(transport, post())
    assert server.tokens[-1] == "Bearer token-2"


async def test_a_late_refusal_does_not_drop_the_new_token(world: World) -> None:
    issuer = Issuer()
    provider = provider_over(issuer)

    def answer(request: httpx.Request) -> Answer:
        if bearer(request) == "Bearer token-1":
            provider.forget("token-1")  # another request was refused first
            assert provider.get_access_token() == "token-2"  # and has renewed
            return 401
        return 200

    response = await world.send(layer(world, Wire(answer), provider), post())
    assert response.status_code == 200
    assert issuer.fetches == 2


async def test_every_retry_attempt_carries_a_currently_valid_token(world: World) -> None:
    clock = FakeClock()
    issuer, wire = Issuer(expires_in=100), world.wire(503, 200)
    stack = StackBuilder(
        (retry(RetryPolicy(initial_delay=80.0, max_delay=200.0)), auth(provider_over(issuer, clock))),
        clock=clock,
    )
    await world.send(world.build(stack, wire), post())
    assert [bearer(request) for request in wire.requests] == ["Bearer token-1", "Bearer token-2"]


# Providers that fail


@pytest.mark.parametrize(
    "error", [RuntimeError("no vault"), httpx.ReadError("no vault"), KeyError("no vault")]
)
async def test_whatever_a_provider_raises_is_an_authentication_error_for_all(
    world: World, error: Exception
) -> None:
    provider = Static(error)
    transport = layer(world, Wire(), provider)
    with pytest.raises(AuthenticationError, match="Static could not get a token: ") as caught:
        await world.send(transport, post())
    assert "no vault" in str(caught.value)
    assert caught.value.cause is error
    assert caught.value.__cause__ is error
    assert caught.value.request.url == URL


async def test_the_retry_layer_does_not_ask_again_for_a_token_that_could_not_be_fetched(world: World) -> None:
    provider, clock = Static(AuthenticationError("no token")), FakeClock()
    stack = StackBuilder((retry(RetryPolicy()), auth(provider)), clock=clock)
    with pytest.raises(AuthenticationError):
        await world.send(world.build(stack, Wire()), post())
    assert provider.asked == 1
    assert clock.sleeps == []


NO_TOKENS = (
    "",
    None,
    7,
    b"bytes",
    ["list"],
    "a b",
    "Bearer abc",
    "line\n",
    " padded",
    "\u00fcnicode",
    "nul\0",
)


async def test_a_token_that_cannot_be_sent_is_reported_but_not_shown(world: World) -> None:
    for token in NO_TOKENS:
        message = "Static returned a token that cannot be sent"
        with pytest.raises(AuthenticationError, match=message) as caught:
            await world.send(layer(world, Wire(), Static(token)), post())
        assert "nicode" not in str(caught.value)
        assert "padded" not in str(caught.value)


# Deadlines


async def test_no_token_is_requested_after_the_deadline(world: World) -> None:
    def refuse_late(_: httpx.Request) -> Answer:
        clock.advance(2.0)
        return 401

    clock, provider, wire = FakeClock(), Static("a", "b"), Wire(refuse_late)
    transport = layer(world, wire, provider, context=Context(clock=clock))
    with pytest.raises(DeadlineExceededError, match="deadline"):
        await world.send(transport, post(extensions={"stkai": RequestOptions(deadline=1.0)}))
    assert provider.asked == 1
    assert wire.open == 0


# Building


def test_something_other_than_a_provider_is_refused_without_being_shown() -> None:
    for thing, kind in (
        ("the-token", "a value of type str"),
        (None, "a value of type NoneType"),
        (Static, "the class Static"),
        (object(), "a value of type object"),
    ):
        wrong: Any = thing
        with pytest.raises(ConfigurationError, match=rf"AuthProvider, such as .* not {kind}") as caught:
            BearerAuth(wrong)
        assert "the-token" not in str(caught.value)
        with pytest.raises(ConfigurationError):
            AuthTransport(Wire(), wrong)
        with pytest.raises(ConfigurationError):
            AsyncAuthTransport(Wire(), wrong)
        with pytest.raises(ConfigurationError):
            auth(wrong)


def test_all_transports_of_a_layer_share_one_policy() -> None:
    policy = BearerAuth(Static("t"))
    recipe = auth(policy)
    sync, asynchronous = recipe.sync(Wire()), recipe.asynchronous(Wire())
    assert isinstance(sync, AuthTransport)
    assert isinstance(asynchronous, AsyncAuthTransport)
    assert sync.policy is asynchronous.policy is recipe.policy is policy
    assert str(sync) == str(asynchronous) == "auth > wire"
    assert isinstance(auth(Static("t")).policy, BearerAuth)


def test_only_the_latest_tokens_are_remembered() -> None:
    policy = BearerAuth(Static())
    for number in range(300):
        policy.token(f"token-{number}")
    assert list(policy._tokens) == [f"token-{number}" for number in range(200, 300)]
    assert policy.token("token-299") is policy.token("token-299")


class Lasting(AuthProvider):
    """Tokens that are valid for a second each, and take 0.3 s to get."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.until, self.given = clock, -1.0, 0

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        return f"token-{self.given}" if self.clock.monotonic() < self.until else None

    def get_access_token(self) -> str:
        self.given += 1
        self.until = self.clock.monotonic() + 1.0
        return f"token-{self.given}"

    async def aget_access_token(self) -> str:
        # In no thread, during which the other tasks would let any number of seconds pass on the clock.
        await self.clock.asleep(0.3)
        return self.get_access_token()


@pytest.mark.worlds("asyncio", "trio")
async def test_requests_that_wait_longer_for_permits_than_tokens_last_are_each_sent_once(
    world: World,
) -> None:
    clock = FakeClock()
    provider = Lasting(clock)

    def answer(request: httpx.Request) -> int:
        return 200 if bearer(request) == f"Bearer {provider.cached_access_token()}" else 401

    wire = Wire(answer)
    stack = StackBuilder([auth(provider), limiter(TokenBucket(5, 1, burst=1))], clock=clock)
    transport = world.build(stack, wire)
    answers = await world.outcomes(*[partial(world.send, transport, post()) for _ in range(40)])
    assert [getattr(answer, "status_code", answer) for answer in answers] == [200] * 40
    assert len(wire.requests) == 40


class Tenant(AuthProvider):
    """Signs with a second header, and renews a token that is forgotten."""

    def __init__(self) -> None:
        self.number = 1

    def get_access_token(self) -> str:
        return f"token-{self.number}"

    def cached_access_token(self, *, renewing: bool = False) -> str:
        return f"token-{self.number}"

    def get_auth_headers(self) -> dict[str, str]:
        return {"Authorization": f"Token {self.get_access_token()}", "X-Tenant": "t"}

    def forget(self, token: str) -> None:
        self.number += token == f"token-{self.number}"


async def test_a_refused_token_is_forgotten_whatever_headers_carry_it(world: World) -> None:
    wire = Wire(lambda request: 401 if bearer(request) == "Token token-1" else 200)
    response = await world.send(layer(world, wire, Tenant()), post())
    assert (response.status_code, len(wire.requests)) == (200, 2)


@pytest.mark.parametrize("method", ["cached_access_token", "forget"])
async def test_what_any_method_of_a_provider_raises_is_an_authentication_error(
    world: World, method: str
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("the vault is broken")

    provider = Static("token")
    setattr(provider, method, fail)
    with pytest.raises(AuthenticationError, match="the vault is broken"):
        await world.send(layer(world, Wire(401), provider), post())


WITHIN_A_MINUTE = {"stkai": RequestOptions(deadline=60.0)}


class WithoutArgument(AuthProvider):
    def get_access_token(self) -> str:
        return "token-1"

    def cached_access_token(self) -> None:  # type: ignore[override]
        return None


class Mistaken(WithoutArgument):
    def cached_access_token(self, *, renewing: bool = False) -> None:
        if renewing:
            raise TypeError("'NoneType' object is not subscriptable")


async def test_a_provider_may_leave_out_the_argument_of_cached_access_token(world: World) -> None:
    request = post(extensions=WITHIN_A_MINUTE)
    wire = world.wire(200)
    await world.send(layer(world, wire, WithoutArgument()), request)
    assert bearer(wire.requests[0]) == "Bearer token-1"


async def test_a_type_error_of_cached_access_token_is_not_taken_for_a_missing_argument(world: World) -> None:
    with pytest.raises(AuthenticationError, match="Mistaken could not get a token: TypeError: 'NoneType'"):
        await world.send(layer(world, world.wire(), Mistaken()), post(extensions=WITHIN_A_MINUTE))
