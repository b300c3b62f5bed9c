"""Tokens over real sockets: never sent to another origin, renewed, and never visible."""

import logging
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

import stkai
from stkai import AuthenticationError, ClientCredentialsAuthProvider, RetryPolicy
from stkai._auth import token_endpoint
from stkai.testing import Answer, Edit, FakeClock, QuotaServer, Reset

from ..support.secrecy import shown_by
from ..support.world import World
from .hostile import drip, hostile
from .stacks import client_of, provider_of, transport_of, wire_of

MANY = httpx.Limits(max_connections=50)


@pytest.fixture
def server() -> Iterator[QuotaServer]:
    with QuotaServer(client_secret="s3cret-of-the-client") as server:
        yield server


@pytest.fixture
def stranger() -> Iterator[QuotaServer]:
    with QuotaServer(auth_required=False) as server:
        yield server


async def test_a_token_endpoint_whose_head_arrives_byte_by_byte_holds_no_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_endpoint, "_TIMEOUT", 0.1)

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        drip(connection, stopped, b"x" * 10_000, 0.02)

    before = threading.enumerate()
    with hostile(talk) as url:
        provider = ClientCredentialsAuthProvider("id", "secret", url)
        client = world.client(transport_of(world, auth=provider, retry=None))
        with pytest.raises(AuthenticationError, match=r"no answer within the deadline of 0\.1 s"):
            await world.call(client.get, url)
        for thread in threading.enumerate():
            if thread.name in {"stkai-token", "stkai-call"} and thread not in before:
                thread.join(10)
                assert not thread.is_alive()
        await world.close(client)


# Redirects

PLACES: dict[str, Callable[[QuotaServer, QuotaServer], str]] = {
    "another port": lambda _, stranger: f"{stranger.url}/echo",
    "another name of the same machine": lambda server, _: f"{server.url}/echo".replace(
        "127.0.0.1", "localhost"
    ),
    "our host as its user name": lambda server, stranger: (
        f"{server.url}@{stranger.url.removeprefix('http://')}/echo".replace(
            "http://127.0.0.1:", "http://127.0.0.1%3A"
        )
    ),
}


def tokens_at(server: QuotaServer, path: str = "/echo") -> list[str]:
    """The bearer tokens that the server received at a path."""
    seen = [record.authorization for record in server.requests if record.path == path]
    return [value for value in seen if value is not None and value.startswith("Bearer ")]


@pytest.mark.parametrize("status", [303, 307])  # A GET follows, or the POST again.
@pytest.mark.parametrize("place", PLACES)
async def test_no_redirect_takes_the_token_to_another_origin(
    world: World, server: QuotaServer, stranger: QuotaServer, status: int, place: str
) -> None:
    server.fail_with(Answer(status, headers={"location": PLACES[place](server, stranger)}))
    transport = transport_of(world, auth=provider_of(server), retry=RetryPolicy())
    client = world.client(transport, follow_redirects=True)
    response = await world.call(client.post, server.create_url(), json={})
    assert (response.status_code, len(response.history)) == (200, 1)
    assert len(tokens_at(server, server.create_url().removeprefix(server.url))) == 1
    assert tokens_at(server) + tokens_at(stranger) == []
    await world.close(client)


# Refusals


async def test_a_storm_of_401s_renews_the_token_once(world: World, server: QuotaServer) -> None:
    wire = wire_of(world, limits=MANY)
    client = client_of(world, auth=provider_of(server), retry=RetryPolicy(), transport=wire)
    await world.call(client.post, server.create_url())
    for storm in range(3):
        server.revoke_tokens()
        responses = await world.gather(
            *[lambda: world.call(client.post, server.create_url(), timeout=30)] * 30
        )
        assert [response.status_code for response in responses] == [200] * 30
        assert server.token_requests == 2 + storm
    await world.close(client)


async def test_a_token_that_is_always_refused_is_renewed_once_per_call(
    world: World, server: QuotaServer
) -> None:
    server.fail_with(*[401] * 100)
    client = client_of(world, auth=provider_of(server), retry=RetryPolicy(), transport=wire_of(world))
    for number in range(1, 4):
        response = await world.call(client.post, server.create_url())
        assert response.status_code == 401
        assert server.count(path="/v1") == 2 * number
        assert server.token_requests == 1 + number
    await world.close(client)


# The token endpoint

USELESS: dict[str, Answer | Edit | Reset] = {
    "down": Answer(500),
    "redirecting": Answer(302, headers={"location": "/elsewhere"}),
    "a page": Answer(200, headers={"content-type": "text/html"}, body="<html>Please log in</html>"),
    "huge": Answer(200, body=b'{"access_token": "' + b"x" * 1_000_000 + b'"}'),
    "a token with a line break": Edit({"access_token": "a\r\nX-Evil: 1"}),
    "breaking off": Reset("body", after=4),
}
"""One of each kind; tests/auth/test_endpoint_answers.py has all of them."""


@pytest.mark.parametrize("kind", USELESS)
async def test_a_useless_token_endpoint_is_a_clear_error_and_nothing_is_sent(
    world: World, server: QuotaServer, kind: str
) -> None:
    server.fail_with(*[USELESS[kind]] * 3, path=server.token_path)
    clock = FakeClock()
    client = client_of(
        world,
        auth=provider_of(server, clock=clock),
        retry=RetryPolicy(),
        transport=wire_of(world),
        clock=clock,
    )
    with pytest.raises(AuthenticationError) as caught:
        await world.call(client.post, server.create_url())
    assert server.token_url in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.request.url == server.create_url()
    assert server.count(path="/v1") + server.count(path="/elsewhere") == 0
    while server.faults_left:
        with suppress(httpx.HTTPError):
            httpx.post(server.token_url)  # noqa: ASYNC210
    assert (await world.call(client.post, server.create_url())).status_code == 200, "and then as usual"
    await world.close(client)


# Secrets


@pytest.mark.worlds("sync", "asyncio")
async def test_no_failure_exposes_a_token_or_the_secret(
    world: World, server: QuotaServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    seen: list[str] = [stkai.STKAI.explain(), repr(stkai.STKAI.config), str(stkai.STKAI.config)]
    clock = FakeClock()
    stack = stkai.StackBuilder.standard(clock=clock, listener=lambda event: seen.append(repr(event)))
    transport = world.build(stack)
    client = world.pick(stkai.HttpClient, stkai.AsyncHttpClient)(transport)
    plain = world.client(transport, follow_redirects=True)
    server.fail_with(503, 401, 429)
    server.fail_with(Reset("body"), path="/none/1")
    server.fail_with(*[Reset("start")] * 4, path="/none/2")
    server.fail_with(Answer(307, headers={"location": "/none/3"}), path="/v1/moved")
    calls: list[Callable[[], Any]] = [
        lambda: world.call(client.post, server.create_url(), data={}),
        lambda: world.call(client.get, f"{server.url}/none/1"),
        lambda: world.call(client.post, f"{server.url}/none/2"),
        lambda: world.call(plain.post, f"{server.url}/v1/moved"),
        lambda: world.call(client.post, server.create_url(), data={}),
    ]
    for number, call in enumerate(calls):
        if number == 4:
            server.revoke_tokens()
            server.fail_with(401, path=server.token_path)
        (outcome,) = await world.outcomes(call)
        seen += inspected(outcome)
    for thing in (stkai, stack, transport, client, *stack.layers, *(layer.policy for layer in stack.layers)):
        seen += [repr(thing), str(thing)]
    await world.close(client)

    tokens = {record.authorization for record in server.requests} - {None}
    assert len(tokens) == 2
    text = "\n".join([*seen, caplog.text])
    for sign in (
        "RetryScheduled",
        "TokenRenewed",
        "ReadError",
        "answered 401",
        world.pick("handle_request", "handle_async_request"),
        "httpcore",
    ):
        assert sign in text, f"nothing was looked at: no {sign}"
    for secret in (server.client_secret, *(str(token).removeprefix("Bearer ") for token in tokens)):
        assert secret not in text


def inspected(outcome: Any) -> list[str]:
    """Everything that any tool can show of a response or an error."""
    request = outcome.request
    seen = [repr(outcome), str(outcome), repr(request), repr(request.headers), repr(request.extensions)]
    seen += [repr(vars(outcome)), repr(vars(request))]
    if not isinstance(outcome, httpx.Response):
        return [*seen, shown_by(outcome)]
    seen.append(pickle.dumps(outcome).decode("latin-1"))
    return seen + [text for past in outcome.history for text in inspected(past)]


# A refusal that never ends

REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 10\r\n\r\nhalf"
WELCOME = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Tokens(stkai.AuthProvider):
    """Returns these tokens, one after the other; keeps none."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = iter(tokens)

    def get_access_token(self) -> str:
        return next(self._tokens)


@pytest.mark.usefixtures("quick_drain")
@pytest.mark.parametrize("deadline", [None, 25.0])
async def test_a_refusal_whose_body_stalls_does_not_hold_up_the_next_attempt(
    world: World, deadline: float | None
) -> None:
    ended = threading.Event()
    answers = iter((REFUSAL, WELCOME))

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        answer = next(answers)
        connection.sendall(answer)
        if answer is REFUSAL:
            stopped.wait(20.0)
            ended.set()

    with hostile(talk) as url:
        client = client_of(world, auth=Tokens("old", "new"), retry=None)
        response = await world.call(client.get, url, deadline=deadline)
        assert (response.status_code, response.content) == (200, b"ok")
        assert not ended.is_set(), "the body of the refusal never ended"
        await world.close(client)


@pytest.mark.usefixtures("quick_drain")
async def test_a_refusal_whose_body_stalls_is_returned_as_far_as_it_came(world: World) -> None:
    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(REFUSAL)
        stopped.wait(20.0)

    with hostile(talk) as url:
        client = client_of(world, auth=Tokens("old", "old"), retry=None)
        response = await world.call(client.get, url)
        assert (response.status_code, response.content) == (401, b"half")
        await world.close(client)
