"""For whom a token is: callers with context variables of their own, with little time, and the provider itself."""

import threading
from collections.abc import Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import httpx
import pytest

import stkai
from stkai import (
    AuthenticationError,
    AuthProvider,
    BearerAuth,
    ClientCredentialsAuthProvider,
    ConfigurationError,
    StaticToken,
)
from stkai._headers import with_fields
from stkai.testing import FakeClock
from stkai.transports import AsyncAuthTransport, AuthTransport
from stkai.transports._auth import aget_token, get_token
from stkai.transports._auth.single_flight import join, key_of

from ...support.threads import together
from ...support.tokens import ID, LIFETIME, MARGIN, SECRET, TOKEN_URL, Issuer, provider_over
from ...support.world import World

URL = "https://api.example.com/v1"
user: ContextVar[str] = ContextVar("user", default="nobody")


def transport(world: World, wire: Any, provider: AuthProvider) -> Any:
    return world.pick(AuthTransport, AsyncAuthTransport)(wire, provider)


# Context variables


class PerUser(AuthProvider):
    """Gets a token for the user in a context variable, slowly."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.together = threading.Barrier(2)

    def get_access_token(self) -> str:
        self.asked.append(user.get())
        self.together.wait(10)
        return f"token-of-{user.get()}"


class PerUserAsync(PerUser):
    """The same, as a coroutine."""

    async def aget_access_token(self) -> str:
        self.asked.append(user.get())
        while len(self.asked) < 2:
            await anyio.lowlevel.checkpoint()
        return f"token-of-{user.get()}"


@pytest.mark.real_time
@pytest.mark.worlds("asyncio", "trio")
@pytest.mark.parametrize("kind", [PerUser, PerUserAsync])
async def test_concurrent_callers_with_different_context_variables_get_their_own_tokens(
    world: World, kind: type[PerUser]
) -> None:
    provider, wire = kind(), world.wire(200, 200)

    async def call(name: str) -> None:
        user.set(name)
        await world.send(transport(world, wire, provider), httpx.Request("GET", f"{URL}/{name}"))

    await world.gather(lambda: call("alice"), lambda: call("bob"))
    sent = {request.url.path[4:]: request.headers["authorization"] for request in wire.requests}
    assert sent == {"alice": "Bearer token-of-alice", "bob": "Bearer token-of-bob"}
    assert sorted(provider.asked) == ["alice", "bob"]


@pytest.mark.real_time
def test_threads_with_different_context_variables_get_their_own_tokens() -> None:
    provider = PerUser()

    def call(name: str) -> Any:
        user.set(name)
        return get_token(provider, 10.0)

    names = "alice", "bob"
    assert together(*[partial(call, name) for name in names]) == [f"token-of-{name}" for name in names]


def test_callers_share_a_fetch_if_their_variables_are_the_same_or_the_token_is_for_all() -> None:
    def key(work: Any, name: str) -> Any:
        def set_and_look() -> Any:
            user.set(name)
            return key_of(work)

        return copy_context().run(set_and_look)

    own, for_all = PerUser().get_access_token, provider_over(Issuer()).get_access_token
    assert key(own, "alice") == key(own, "alice") != key(own, "bob")
    assert key(for_all, "alice") == key(for_all, "bob")


def test_values_that_cannot_be_compared_do_not_matter() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    variable: ContextVar[Any] = ContextVar("array")
    array, own = Array(), PerUser().get_access_token

    def look(value: Any) -> Any:
        return copy_context().run(lambda: (variable.set(value), key_of(own))[1])

    assert look(array) == look(array) != look(Array())


def test_the_options_of_a_call_make_no_difference_and_do_not_reach_the_providers_own_calls() -> None:
    class Own(AuthProvider):
        seen: Any = None

        def get_access_token(self) -> str:
            client = stkai.HttpClient(httpx.MockTransport(lambda request: httpx.Response(200)))
            self.seen = client.get("https://id.example.com").request.extensions.get("stkai")
            return "token"

    own = Own()
    key = key_of(own.get_access_token)
    with stkai.options(deadline=5.0):
        assert key_of(own.get_access_token) == key
        fetch = join(own.get_access_token)
        fetch.wait()
    assert fetch.result() == "token"
    assert own.seen is None


# Callers with little time


@pytest.mark.real_time
async def test_the_caller_that_leads_a_renewal_sends_with_the_old_token_if_it_takes_too_long(
    world: World,
) -> None:
    """It gives the renewal half of its time; later callers use the new token."""
    hangs, clock = threading.Event(), FakeClock()
    issuer = Issuer(lambda number: number == 2 and hangs.wait(10))
    provider = provider_over(issuer, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    ask: Any = world.pick(get_token, aget_token)
    try:
        assert await world.call(ask, provider, 0.1) == "token-1"
        assert await world.call(ask, provider, 0.1) == "token-1"
    finally:
        hangs.set()
        join(provider.get_access_token).wait()
    assert provider.get_access_token() == "token-2"
    assert issuer.fetches == 2


@pytest.mark.real_time
async def test_the_caller_that_leads_a_renewal_does_not_wait_longer_for_headers_of_a_providers_own(
    world: World,
) -> None:
    class Own(ClientCredentialsAuthProvider):
        def get_auth_headers(self) -> dict[str, str]:
            return {"X-Api-Key": self.get_access_token()}

    hangs, clock = threading.Event(), FakeClock()
    issuer = Issuer(lambda number: number == 2 and hangs.wait(10))
    provider = Own(ID, SECRET, TOKEN_URL, MARGIN, transport=issuer, clock=clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    ask: Any = world.pick(get_token, aget_token)
    try:
        assert await world.call(ask, provider, 0.2) == {"X-Api-Key": "token-1"}
    finally:
        hangs.set()
        join(provider.get_auth_headers).wait()


async def test_an_override_of_cached_access_token_without_its_argument_works(world: World) -> None:
    class Own(AuthProvider):
        def get_access_token(self) -> str:
            return "token"

        def cached_access_token(self) -> str | None:  # type: ignore[override]
            return None

    ask: Any = world.pick(get_token, aget_token)
    assert await world.call(ask, Own(), 10.0) == "token"


# A provider that sends through the client that it signs for


class Circular(AuthProvider):
    """Its token request goes through the client that needs the token."""

    client: Any
    runs_task = False

    def get_access_token(self) -> str:
        return str(self.client.post(URL, json={}).json()["token"])

    async def aget_access_token(self) -> str:
        response = await self.client.post(URL, json={})
        return str(response.json()["token"])


@pytest.mark.parametrize("deadline", [None, 10.0])
async def test_a_provider_that_sends_through_its_own_client_is_an_error_and_does_not_hang(
    world: World, deadline: float | None
) -> None:
    provider = Circular()
    stack = stkai.StackBuilder.standard(auth=provider, retry=None, rate_limit=None)
    provider.client = world.client(world.build(stack, world.wire(200)))
    options = {"stkai": stkai.RequestOptions(deadline=deadline)}
    message = "Circular is asked for a token while it gets one: .*give it another one, without auth"
    with pytest.raises(AuthenticationError, match=message):
        await world.call(provider.client.get, URL, extensions=options)
    await world.close(provider.client)


@pytest.mark.real_time
def test_such_a_provider_does_not_hang_either_once_its_caller_has_given_up() -> None:
    class Slow(Circular):
        token_is_for_all = True
        go = threading.Event()

        def get_access_token(self) -> str:
            self.go.wait(10)
            self.client.get(URL)
            return "token"

    provider = Slow()
    stack = stkai.StackBuilder.standard(auth=provider, retry=None, rate_limit=None)
    provider.client = stkai.HttpClient(stack.build(httpx.MockTransport(lambda _: httpx.Response(200))))
    with pytest.raises(stkai.DeadlineExceededError):
        provider.client.get(URL, deadline=0.05)
    fetch = join(provider.get_access_token)
    waiting = threading.Thread(target=fetch.wait, daemon=True)
    waiting.start()
    provider.go.set()
    waiting.join(10)
    assert not waiting.is_alive(), "it hangs"
    with pytest.raises(AuthenticationError, match="Slow is asked for a token while it gets one"):
        fetch.result()


@pytest.mark.worlds("asyncio", "trio")
async def test_a_task_that_a_provider_has_started_may_use_the_client_afterwards(world: World) -> None:
    class Keeping(AuthProvider):
        """Starts a task that outlives the fetch, in a copy of its context."""

        started = False

        def get_access_token(self) -> str:
            return "token"

        async def aget_access_token(self) -> str:
            if not self.started:
                self.started = True
                group.start_soon(later)
            return "token"

    async def later() -> None:
        await fetched.wait()
        await world.send(outer, httpx.Request("GET", URL))

    fetched = anyio.Event()
    outer = transport(world, world.wire(200, 200), Keeping())
    async with anyio.create_task_group() as group:
        await world.send(outer, httpx.Request("GET", URL))
        fetched.set()


# Headers of one's own


class ApiKey(StaticToken):
    """Signs with a header of its own."""

    def get_auth_headers(self) -> dict[str, str]:
        return {"X-Api-Key": self.get_access_token(), "X-Tenant": "t1"}


class Fetched(AuthProvider):
    """The same, without a cached token."""

    asked = 0

    def get_access_token(self) -> str:
        self.asked += 1
        return f"key-{self.asked}"

    def get_auth_headers(self) -> dict[str, str]:
        return {"X-Api-Key": self.get_access_token(), "X-Tenant": "t1"}


@pytest.mark.parametrize("deadline", [None, 10.0])
@pytest.mark.parametrize("make", [lambda: ApiKey("key-1"), Fetched], ids=["cached", "fetched"])
async def test_headers_of_a_providers_own_sign_the_requests(
    world: World, make: Any, deadline: float | None
) -> None:
    wire = world.wire(200)
    options = {"stkai": stkai.RequestOptions(deadline=deadline)}
    request = httpx.Request(
        "GET", URL, headers={"x-tenant": "mine", "Authorization": "own"}, extensions=options
    )
    await world.send(transport(world, wire, make()), request)
    sent = wire.requests[0].headers
    assert (sent["x-api-key"], sent.get_list("x-tenant"), sent["authorization"]) == ("key-1", ["t1"], "own")
    assert request.headers["x-tenant"] == "mine"


async def test_after_a_401_the_headers_are_fetched_again(world: World) -> None:
    wire = world.wire(401, 200)
    await world.send(transport(world, wire, Fetched()), httpx.Request("GET", URL))
    assert [request.headers["x-api-key"] for request in wire.requests] == ["key-1", "key-2"]


@pytest.mark.parametrize(
    "headers", [*({"X-Api-Key": value} for value in ("k3y\nb", "k3é", 5, ["k3y"])), {"X Api": "k3y"}, None]
)
async def test_headers_that_cannot_be_sent_are_an_error_that_does_not_show_them(
    world: World, headers: Any
) -> None:
    class Wrong(StaticToken):
        def get_auth_headers(self) -> Any:
            return headers

    with pytest.raises(AuthenticationError, match="Wrong returned a token that cannot be sent") as caught:
        await world.send(transport(world, world.wire(), Wrong("key")), httpx.Request("GET", URL))
    assert "k3" not in str(caught.value)


# The copy of the headers


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_signing_replaces_every_authorization_and_keeps_the_rest_in_order(name: str) -> None:
    package: Any = import_module(name)
    given = package.Headers(
        [("A", "1"), ("authorization", "x"), ("B", "2"), ("AUTHORIZATION", "y"), ("a", "3")]
    )
    fields = BearerAuth(StaticToken("t")).token("t").fields
    assert fields is not None
    signed = with_fields(given, fields)
    assert type(signed) is package.Headers
    assert signed.raw == [(b"A", b"1"), (b"B", b"2"), (b"a", b"3"), (b"Authorization", b"Bearer t")]
    assert signed["authorization"] == "Bearer t"
    assert given.get_list("authorization") == ["x", "y"], "the caller's own are unchanged"
    signed["C"] = "4"
    assert "c" not in given


def test_headers_that_keep_their_list_elsewhere_are_signed_through_their_public_methods() -> None:
    class Later(dict[str, str]):
        """Headers of a later version of httpx."""

        def copy(self) -> "Later":
            return Later(self)

    given: Mapping[str, str] = Later({"A": "1", "Authorization": "x"})
    fields = BearerAuth(StaticToken("t")).token("t").fields
    assert fields is not None
    assert with_fields(given, fields) == {"A": "1", "Authorization": "Bearer t"}  # type: ignore[arg-type]
    assert given["Authorization"] == "x"


def test_the_bytes_of_a_token_are_shared_by_all_requests() -> None:
    policy = BearerAuth(StaticToken("t"))
    one, other = (policy.sign(httpx.Request("GET", URL), policy.token("t")) for _ in range(2))
    assert one.headers.raw[-1][1] is other.headers.raw[-1][1]


async def test_what_a_provider_raises_instead_of_headers_names_the_provider(world: World) -> None:
    class Broken(StaticToken):
        def get_auth_headers(self) -> dict[str, str]:
            raise RuntimeError("a bug")

    with pytest.raises(AuthenticationError, match="Broken could not get a token: RuntimeError: a bug"):
        await world.send(transport(world, world.wire(), Broken("key")), httpx.Request("GET", URL))


def test_headers_are_looked_up_without_await() -> None:
    class Async(StaticToken):
        async def get_auth_headers(self) -> Any:  # type: ignore[override]
            return {}

    with pytest.raises(ConfigurationError, match=r"Async\.get_auth_headers must be a plain method"):
        BearerAuth(Async("key"))
