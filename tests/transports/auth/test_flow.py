"""The auth layer: signing, one renewal after a 401, and one shared fetch, in threads and tasks."""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

import stkai
from stkai import (
    AuthenticationError,
    AuthProvider,
    BearerAuth,
    ConfigurationError,
    DeadlineExceededError,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenRenewed,
)
from stkai.testing import FakeClock, QuotaServer
from stkai.transports import (
    AsyncAuthTransport,
    AuthTransport,
    Context,
    auth,
    retry,
)

from ...support.heard import CALL, Heard
from ...support.tokens import LIFETIME, MARGIN, Crowd, Issuer, provider_over
from ...support.wire import Answer, Wire
from ...support.world import World

URL = "https://api.example.com/v1/chat"


def bearer(request: httpx.Request) -> str | None:
    value: str | None = request.headers.get("authorization")
    return value


def post(**options: Any) -> httpx.Request:
    return httpx.Request("POST", URL, json={"a": 1}, **options)


def layer(world: World, wire: Any, policy: Any, **options: Any) -> Any:
    return world.pick(AuthTransport, AsyncAuthTransport)(wire, policy, **options)


class Static(AuthProvider):
    """A sync-only provider that exposes no cached token and counts its calls."""

    def __init__(self, *tokens: Any) -> None:
        self.tokens = iter(tokens)
        self.last: Any = None
        self.asked = 0
        self.threads: set[int] = set()
        self.forgotten: list[str] = []

    def get_access_token(self) -> str:
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.last = next(self.tokens, self.last)
        if isinstance(self.last, Exception):
            raise self.last
        token: str = self.last
        return token

    def forget(self, token: str) -> None:
        self.forgotten.append(token)


class Server(Wire):
    """An API that refuses some tokens."""

    def __init__(self, *refused: str) -> None:
        self.refused = {f"Bearer {token}" for token in refused}
        super().__init__(lambda request: 401 if bearer(request) in self.refused else 200)

    @property
    def tokens(self) -> list[str | None]:
        return [bearer(request) for request in self.requests]


class Together:
    """Lets the first of a world's bodies continue together."""

    def __init__(self, world: World, size: int) -> None:
        self.world, self.missing = world, size
        self.crowd = Crowd(size)
        self.all_here: Any = None

    async def meet(self) -> None:
        if not self.world.is_async:
            self.crowd.arrive()
            self.crowd.wait()
            return
        self.all_here = self.all_here or anyio.Event()
        self.missing -= 1
        if self.missing == 0:
            self.all_here.set()
        await self.all_here.wait()


# Signing


async def test_a_copy_of_the_request_is_signed_and_the_original_is_unchanged(world: World) -> None:
    wire, request = world.wire(200), post()
    before = dict(request.headers)
    await world.send(layer(world, wire, provider_over(Issuer())), request)
    assert bearer(wire.requests[0]) == "Bearer token-1"
    assert wire.bodies == [request.content]
    assert dict(request.headers) == before


async def test_the_users_own_authorization_header_is_replaced(world: World) -> None:
    headers = [("authorization", "Basic abc"), ("X-Other", "1"), ("AUTHORIZATION", "Digest def")]
    wire = world.wire(200)
    await world.send(layer(world, wire, provider_over(Issuer())), httpx.Request("GET", URL, headers=headers))
    assert wire.requests[0].headers.get_list("authorization") == ["Bearer token-1"]
    assert wire.requests[0].headers["x-other"] == "1"


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
    clock, heard = FakeClock(), Heard()
    context = Context(clock=clock, listener=heard)
    issuer = Issuer(lambda _: clock.sleep(0.25))
    transport = layer(world, world.wire(200, 401, 200), provider_over(issuer, clock), context=context)
    await world.send(transport, post())
    await world.send(transport, post())
    assert heard.of(TokenRenewed) == [
        TokenRenewed(call=CALL, seconds=0.25, reason="none was valid"),
        TokenRenewed(call=CALL, seconds=0.25, reason="the server refused the old one"),
    ]


async def test_a_token_that_has_not_changed_is_not_reported(world: World) -> None:
    heard = Heard()
    context = Context(listener=heard)
    transport = layer(world, world.wire(200, 200, 200), Static("same"), context=context)
    for _ in range(3):
        await world.send(transport, post())
    assert len(heard.of(TokenRenewed)) == 1


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


async def test_a_token_that_is_always_refused_does_not_loop(world: World) -> None:
    issuer, wire = Issuer(), Wire(lambda _: httpx.Response(401, text="no entry"))
    response = await world.send(layer(world, wire, provider_over(issuer)), post())
    assert response.status_code == 401
    assert await world.read(response) == b"no entry"
    assert len(wire.requests) == 2
    assert issuer.fetches == 2


async def test_a_provider_without_another_token_is_not_asked_again(world: World) -> None:
    provider, wire = Static("same"), world.wire(httpx.Response(401, text="no entry"))
    response = await world.send(layer(world, wire, provider), post())
    assert response.status_code == 401
    assert await world.read(response) == b"no entry"
    assert provider.forgotten == ["same"]


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


async def test_a_401_is_closed_when_the_renewal_after_it_fails(world: World) -> None:
    wire = world.wire(401)
    with pytest.raises(AuthenticationError, match="no more") as caught:
        await world.send(layer(world, wire, Static("a", AuthenticationError("no more"))), post())
    assert wire.open == 0
    assert caught.value.request.url == URL


async def test_a_401_is_closed_before_the_request_is_sent_again(world: World) -> None:
    def answer(_: httpx.Request) -> Answer:
        assert wire.open == 0
        return 401 if len(wire.requests) == 1 else 200

    wire = Wire(answer)
    await world.send(layer(world, wire, Static("a", "b")), post())
    assert len(wire.requests) == 2


async def test_64_refusals_of_the_same_token_renew_it_once(world: World) -> None:
    together = Together(world, 64)

    async def answer(request: httpx.Request) -> Answer:
        if bearer(request) != "Bearer token-1":
            return 200
        await together.meet()
        return 401

    issuer, wire = Issuer(), Wire(answer)
    transport = layer(world, wire, provider_over(issuer))

    async def call() -> int:
        response: httpx.Response = await world.send(transport, post())
        return response.status_code

    assert await world.gather(*[call] * 64) == [200] * 64
    assert issuer.fetches == 2
    assert len(wire.requests) == 128
    assert wire.open == 64


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


async def test_the_retry_layer_adds_nothing_to_a_401(world: World) -> None:
    wire = Wire(lambda _: 401)
    stack = StackBuilder((retry(RetryPolicy()), auth(provider_over(Issuer()))), clock=FakeClock())
    response = await world.send(world.build(stack, wire), post())
    assert response.status_code == 401
    assert len(wire.requests) == 2


async def test_every_retry_attempt_carries_a_currently_valid_token(world: World) -> None:
    clock = FakeClock()
    issuer, wire = Issuer(expires_in=100), world.wire(503, 200)
    stack = StackBuilder(
        (retry(RetryPolicy(initial_delay=80.0, max_delay=200.0)), auth(provider_over(issuer, clock))),
        clock=clock,
    )
    await world.send(world.build(stack, wire), post())
    assert [bearer(request) for request in wire.requests] == ["Bearer token-1", "Bearer token-2"]


# One fetch for all


@pytest.mark.parametrize("count", [64, 1000])
async def test_callers_that_start_together_fetch_one_token(world: World, count: int) -> None:
    count = count if world.is_async else min(count, 64)  # Nobody runs a thousand threads.
    crowd, heard = Crowd(count), Heard()
    issuer, wire = Issuer(lambda _: crowd.wait()), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer), context=Context(listener=heard))

    async def call() -> None:
        crowd.arrive()
        await world.send(transport, post())

    await world.gather(*[call] * count)
    assert issuer.fetches == 1
    assert {bearer(request) for request in wire.requests} == {"Bearer token-1"}
    assert len(wire.requests) == count
    assert len(heard.of(TokenRenewed)) == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_a_thousand_tasks_wait_in_at_most_one_thread(world: World) -> None:
    crowd = Crowd(1000)

    class Slow(Static):
        def get_access_token(self) -> str:
            crowd.wait()
            return super().get_access_token()

    provider, wire = Slow("t"), Wire(lambda _: 200)
    transport = layer(world, wire, provider)

    async def call() -> None:
        crowd.arrive()
        await world.send(transport, post())

    await world.gather(*[call] * 1000)
    assert provider.asked == 1
    assert threading.get_ident() not in provider.threads


@pytest.mark.worlds("asyncio", "trio")
async def test_a_sync_only_provider_never_blocks_the_event_loop(world: World) -> None:
    go = threading.Event()

    class Blocking(Static):
        def get_access_token(self) -> str:
            assert go.wait(10), "the loop stood still"
            return super().get_access_token()

    transport = layer(world, world.wire(200), Blocking("t"))

    async def call() -> None:
        await world.send(transport, post())

    async def elsewhere() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        go.set()

    await world.gather(call, elsewhere)


@pytest.mark.worlds("asyncio", "trio")
async def test_a_token_is_fetched_even_if_all_the_programs_worker_threads_are_busy(world: World) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    try:
        async with limiter:
            response = await world.send(layer(world, world.wire(200), Static("t")), post())
    finally:
        limiter.total_tokens = 40
    assert response.status_code == 200


async def test_while_one_caller_renews_the_others_use_the_expiring_token(world: World) -> None:
    clock, others_done = FakeClock(), threading.Event()

    def wait_for_the_others(number: int) -> None:
        if number == 2:
            assert others_done.wait(10), "the others were held up"

    issuer, wire = Issuer(wait_for_the_others), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer, clock), context=Context(clock=clock))
    await world.send(transport, post())
    clock.advance(LIFETIME - MARGIN)
    renewing = threading.Event()

    async def one() -> None:
        renewing.set()
        await world.send(transport, post())

    async def others() -> None:
        if world.is_async:
            while issuer.fetches < 2:
                await anyio.lowlevel.checkpoint()
        else:
            while issuer.fetches < 2:
                renewing.wait(10)
        for _ in range(5):
            await world.send(transport, post())
        others_done.set()

    await world.gather(one, others)
    tokens = [bearer(request) for request in wire.requests]
    assert tokens == ["Bearer token-1"] * 6 + ["Bearer token-2"]
    assert issuer.fetches == 2


async def test_a_failed_fetch_wakes_all_waiters_and_each_error_names_its_own_request(world: World) -> None:
    crowd = Crowd(50)

    class Failing(Static):
        def get_access_token(self) -> str:
            crowd.wait()
            return super().get_access_token()

    provider = Failing(*[AuthenticationError("no token", OSError("down"))] * 50)
    transport = layer(world, Wire(), provider)

    def call(number: int) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            crowd.arrive()
            await world.send(transport, httpx.Request("GET", f"{URL}/{number}"))

        return body

    errors: list[Any] = await world.outcomes(*map(call, range(50)))
    assert {str(error) for error in errors} == {"no token"}
    assert {str(error.cause) for error in errors} == {"down"}
    if world.is_async:
        assert [error.request.url.path for error in errors] == [f"/v1/chat/{n}" for n in range(50)]
        assert provider.asked == 1


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


@pytest.mark.parametrize(
    "token",
    ["", None, 7, b"bytes", ["list"], "a b", "Bearer abc", "line\n", " padded", "\u00fcnicode", "nul\0"],
    ids=repr,
)
async def test_a_token_that_cannot_be_sent_is_reported_but_not_shown(world: World, token: object) -> None:
    with pytest.raises(AuthenticationError, match="Static returned a token that cannot be sent") as caught:
        await world.send(layer(world, Wire(), Static(token)), post())
    assert "nicode" not in str(caught.value)
    assert "padded" not in str(caught.value)


# Async providers, and cancelled leaders


class Native(AuthProvider):
    """An async provider."""

    def __init__(self) -> None:
        self.asked = 0
        self.stuck = 0

    def get_access_token(self) -> str:
        pytest.fail("the async variant is there")

    async def aget_access_token(self) -> str:
        self.asked += 1
        number = self.asked
        await anyio.lowlevel.checkpoint()
        if number <= self.stuck:
            await anyio.Event().wait()
        return f"native-{number}"


@pytest.mark.worlds("asyncio", "trio")
async def test_an_async_provider_is_awaited(world: World) -> None:
    provider, wire = Native(), Wire(lambda _: 200)
    transport = layer(world, wire, provider)

    async def call() -> None:
        await world.send(transport, post())

    await world.gather(*[call] * 20)
    assert provider.asked == 1
    assert {bearer(request) for request in wire.requests} == {"Bearer native-1"}


async def cancel_the_leader(
    world: World, transport: Any, leading: Callable[[], bool], then: Callable[[], object] = lambda: None
) -> None:
    """Ten requests wait for the renewal of an eleventh, which is cancelled."""

    async def call() -> None:
        await world.send(transport, post())

    async def leader(scope: anyio.CancelScope) -> None:
        with scope:
            await call()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(leader, scope)
        while not leading():
            await anyio.lowlevel.checkpoint()
        for _ in range(10):
            group.start_soon(call)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        then()


@pytest.mark.worlds("asyncio", "trio")
async def test_when_the_leading_task_is_cancelled_another_takes_over_and_nobody_is_stranded(
    world: World,
) -> None:
    provider, wire = Native(), Wire(lambda _: 200)
    provider.stuck = 1
    transport = layer(world, wire, provider)
    await cancel_the_leader(world, transport, lambda: provider.asked == 1)
    assert [bearer(request) for request in wire.requests] == ["Bearer native-2"] * 10
    assert provider.asked == 2


@pytest.mark.worlds("asyncio", "trio")
async def test_the_fetch_of_a_cancelled_leader_serves_those_who_waited(world: World) -> None:
    go = threading.Event()
    issuer, wire = Issuer(lambda _: go.wait(10)), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer))
    await cancel_the_leader(world, transport, lambda: issuer.fetches == 1, then=go.set)
    assert [bearer(request) for request in wire.requests] == ["Bearer token-1"] * 10
    assert issuer.fetches == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_that_is_cancelled_while_it_waits_does_not_affect_others(world: World) -> None:
    go = threading.Event()
    issuer, wire = Issuer(lambda _: go.wait(10)), Wire(lambda _: 200)
    transport = layer(world, wire, provider_over(issuer))

    async def call() -> None:
        await world.send(transport, post())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        while issuer.fetches < 1:
            await anyio.lowlevel.checkpoint()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        go.set()
    assert len(wire.requests) == 1


@pytest.mark.worlds("asyncio", "trio")
async def test_threads_tasks_and_stacks_share_one_fetch_per_provider(world: World) -> None:
    crowd = Crowd(20)
    issuer, wire = Issuer(lambda _: crowd.wait()), Wire(lambda _: 200)
    provider = provider_over(issuer)
    transports = [AsyncAuthTransport(wire, provider), AsyncAuthTransport(wire, BearerAuth(provider))]
    sync = AuthTransport(wire, provider)

    def task(number: int) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            crowd.arrive()
            await world.send(transports[number % 2], post())

        return body

    async def thread() -> None:
        crowd.arrive()
        await anyio.to_thread.run_sync(sync.handle_request, post())

    await world.gather(*map(task, range(10)), *[thread] * 10)
    assert issuer.fetches == 1
    assert len(wire.requests) == 20


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


@pytest.mark.real_time
async def test_a_distant_deadline_changes_nothing(world: World) -> None:
    class Slow(Static):
        def get_access_token(self) -> str:
            time.sleep(0.01)
            return super().get_access_token()

    wire = world.wire(200)
    transport = layer(world, wire, Slow("t"), context=Context(clock=FakeClock()))
    await world.send(transport, post(extensions={"stkai": RequestOptions(deadline=1e12)}))
    assert bearer(wire.requests[0]) == "Bearer t"


async def test_an_error_of_the_provider_under_a_deadline_is_raised_unchanged(world: World) -> None:
    transport = layer(world, Wire(), Static(OSError("down")), context=Context(clock=FakeClock()))
    with pytest.raises(AuthenticationError, match="OSError: down"):
        await world.send(transport, post(extensions={"stkai": RequestOptions(deadline=60.0)}))


@pytest.mark.real_time
async def test_a_deadline_applies_during_a_fetch_and_the_fetch_serves_later_callers(
    world: World,
) -> None:
    go = threading.Event()
    issuer, wire = Issuer(lambda _: go.wait(10)), Wire(lambda _: 200)
    provider = provider_over(issuer)
    transport = layer(world, wire, provider)
    with pytest.raises(DeadlineExceededError, match="deadline") as caught:
        await world.send(transport, post(extensions={"stkai": RequestOptions(deadline=0.05)}))
    assert caught.value.request.url == URL
    assert wire.requests == []
    go.set()
    await world.send(transport, post())
    assert bearer(wire.requests[0]) == "Bearer token-1"
    assert issuer.fetches == 1


# Building


def test_something_other_than_a_provider_is_refused_without_being_shown() -> None:
    for thing, kind in (
        ("the-token", "a str"),
        (None, "a NoneType"),
        (Static, "Static"),
        (object(), "a object"),
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
    for number in range(10):
        policy.token(f"token-{number}")
    assert list(policy._tokens) == ["token-8", "token-9"]
    assert policy.token("token-9") is policy.token("token-9")


# End to end


@pytest.fixture
def server() -> Iterator[QuotaServer]:
    with QuotaServer() as server:
        yield server


def client_of(world: World, server: QuotaServer) -> Any:
    """A client that gets its tokens from the server, and retries there without real waits."""
    provider = stkai.ClientCredentialsAuthProvider(
        server.client_id, server.client_secret, server.token_url, clock=FakeClock()
    )
    return world.client(layer(world, world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)(), provider))


async def test_a_real_server_issues_a_new_token_after_the_first_was_revoked(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, server)
    for _ in range(2):
        response = await world.call(client.post, server.create_url(), json={})
        assert response.status_code == 200
    server.revoke_tokens()
    response = await world.call(client.post, server.create_url(), json={})
    assert response.status_code == 200
    assert server.token_requests == 2
    assert [record.status for record in server.requests if record.path.startswith("/v1")] == [
        200,
        200,
        401,
        200,
    ]
    await world.close(client)


async def test_callers_that_start_together_ask_a_real_server_for_one_token(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, server)

    async def call() -> int:
        response: httpx.Response = await world.call(client.post, server.create_url(), json={})
        return response.status_code

    assert await world.gather(*[call] * 20) == [200] * 20
    assert server.token_requests == 1
    server.revoke_tokens()
    assert await world.gather(*[call] * 20) == [200] * 20
    assert server.token_requests == 2
    await world.close(client)


async def test_a_token_with_a_limited_life_from_a_real_server_is_renewed_in_time(world: World) -> None:
    clock = FakeClock()
    with QuotaServer(token_lifetime=100, clock=clock) as server:
        provider = stkai.ClientCredentialsAuthProvider(
            server.client_id, server.client_secret, server.token_url, clock=clock
        )
        wire = world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)()
        client = world.client(layer(world, wire, provider))
        for _ in range(4):
            response = await world.call(client.post, server.create_url(), json={})
            assert response.status_code == 200
            clock.advance(45.0)
        assert server.token_requests == 2
        assert server.count(status=401) == 0
        await world.close(client)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (400, "answered 400: fault: Bad Request"),
        (401, "check client_id and client_secret"),
        ("html", "not a JSON object"),
        ("garbage", "not a JSON object"),
        ("empty", "not a JSON object"),
        ("huge", "longer than"),
        ("no_token", "without a usable access_token"),
    ],
)
async def test_if_the_token_endpoint_answers_nonsense_the_request_fails_before_it_is_sent(
    world: World, server: QuotaServer, fault: Any, message: str
) -> None:
    client = client_of(world, server)
    server.fail_tokens(fault)
    with pytest.raises(AuthenticationError, match=message) as caught:
        await world.call(client.post, server.create_url(), json={})
    assert server.client_secret not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert [record.path for record in server.requests] == [server.token_path]
    response = await world.call(client.post, server.create_url(), json={})
    assert response.status_code == 200
    await world.close(client)


@pytest.mark.parametrize("fault", [503, "no_expiry", "negative_expiry"])
async def test_a_token_endpoint_with_a_transient_failure_fails_no_request(
    world: World, server: QuotaServer, fault: Any
) -> None:
    client = client_of(world, server)
    server.fail_tokens(fault)
    response = await world.call(client.post, server.create_url(), json={})
    assert response.status_code == 200
    await world.close(client)


async def test_connections_that_the_token_endpoint_resets_are_retried(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, server)
    server.reset("start", path=server.token_path)
    server.reset("body", path=server.token_path)
    response = await world.call(client.post, server.create_url(), json={})
    assert response.status_code == 200
    assert server.token_requests == 3
    await world.close(client)


async def test_if_the_token_endpoint_redirects_nobody_else_gets_the_secret(
    world: World, server: QuotaServer
) -> None:
    client = client_of(world, server)
    server.fail_with(307, headers={"location": f"{server.url}/echo"}, path=server.token_path)
    with pytest.raises(AuthenticationError, match="redirect"):
        await world.call(client.post, server.create_url(), json={})
    assert server.count(path="/echo") == 0
    await world.close(client)


async def test_a_token_endpoint_that_is_down_says_so(world: World, server: QuotaServer) -> None:
    client, url = client_of(world, server), server.create_url()
    server.close()
    with pytest.raises(AuthenticationError, match="failed: ConnectError"):
        await world.call(client.post, url, json={})
    await world.close(client)
