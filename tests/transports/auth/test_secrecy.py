"""Where the token and the client secret must not appear: requests, errors, pickles, logs, variables of frames."""

import logging
import pickle
from dataclasses import dataclass
from typing import Any, NoReturn

import httpcore
import httpx
import pytest

import stkai
from stkai import AuthenticationError, AuthProvider, BearerAuth, StackBuilder
from stkai.testing import FakeClock, QuotaServer, Reset
from stkai.transports import AsyncAuthTransport, AuthTransport, auth, retry

from ...support.secrecy import shown_by
from ...support.tokens import SECRET, grant, provider_over
from ...support.wire import Answer, Wire
from ...support.world import World

TOKEN = "eyJ-the-token"
URL = "https://api.example.com/v1"


class Fixed(AuthProvider):
    def get_access_token(self) -> str:
        return TOKEN


class Odd(AuthProvider):
    """A token that cannot be sent is still a secret."""

    def get_access_token(self) -> str:
        return f"{TOKEN}\n"


@dataclass
class Talkative(AuthProvider):
    """Its repr shows the token."""

    token: str = TOKEN

    def get_access_token(self) -> str:
        return self.token


def layer(world: World, wire: Any, policy: Any) -> Any:
    return world.pick(AuthTransport, AsyncAuthTransport)(wire, policy)


def stack_over(world: World, wire: Any, provider: AuthProvider) -> Any:
    return world.build(StackBuilder((retry(), auth(provider)), clock=FakeClock()), wire)


def pickled(thing: object) -> str:
    return pickle.dumps(thing).decode("latin-1")


def assert_hidden(text: str, *hidden: str) -> None:
    for words in (TOKEN, SECRET, "s3cret", *hidden):
        assert words not in text


# What the caller gets


async def test_the_request_of_a_response_and_of_its_history_holds_no_token(world: World) -> None:
    wire = world.wire(httpx.Response(302, headers={"location": "/next"}), 200)
    client = world.client(layer(world, wire, Fixed()), follow_redirects=True)
    response = await world.call(client.get, URL)
    for one in (response, *response.history):
        assert "authorization" not in one.request.headers
        assert_hidden(repr(one.request.headers) + repr(one.request.extensions) + pickled(one))
    assert [request.headers["authorization"] for request in wire.requests] == [f"Bearer {TOKEN}"] * 2


async def test_a_wire_that_names_the_request_does_not_expose_the_signed_one(world: World) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.url.path == "/v1" else 401, request=request)

    for url in (URL, f"{URL}/refused"):
        response = await world.send(
            layer(world, httpx.MockTransport(answer), Fixed()), httpx.Request("GET", url)
        )
        assert response.request.url == url
        assert "authorization" not in response.request.headers


async def test_the_request_of_an_error_holds_no_token(world: World) -> None:
    def fail(request: httpx.Request) -> NoReturn:
        raise httpx.ReadError("broken", request=request)

    for make in (layer, stack_over):
        request = httpx.Request("GET", URL)
        with pytest.raises(httpx.ReadError) as caught:
            await world.send(make(world, httpx.MockTransport(fail), Fixed()), request)
        assert caught.value.request is request
        assert_hidden(pickled(caught.value))


async def test_a_pickled_error_holds_neither_token_nor_secret(world: World) -> None:
    def answer(_: httpx.Request) -> Answer:
        return httpx.Response(400, json={"error": SECRET})

    provider = provider_over(Wire(answer))
    with pytest.raises(AuthenticationError) as caught:
        await world.send(layer(world, Wire(), provider), httpx.Request("GET", URL))
    assert_hidden(pickled(caught.value) + repr(caught.value) + str(caught.value) + repr(vars(caught.value)))


@pytest.mark.parametrize(
    "provider", [Fixed(), Talkative(), provider_over(Wire(grant(TOKEN)))], ids=lambda p: type(p).__name__
)
def test_no_representation_shows_the_token(provider: AuthProvider) -> None:
    policy = BearerAuth(provider)
    token = policy.token(provider.get_access_token())
    transport, recipe = AuthTransport(Wire(), policy), auth(policy)
    shown = [token, policy, transport, recipe, StackBuilder((recipe,)), AsyncAuthTransport(Wire(), policy)]
    for thing in shown:
        assert_hidden(f"{thing} {thing!r} {thing:}")
    assert repr(token) == "<access token>"
    assert repr(policy) == f"BearerAuth({type(provider).__name__})"


# Logs


async def test_debug_logs_of_a_whole_exchange_contain_neither_token_nor_secret(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with QuotaServer(client_secret=SECRET) as server:
        provider = stkai.ClientCredentialsAuthProvider(
            server.client_id, SECRET, server.token_url, clock=FakeClock()
        )
        server.fail_with(503, path=server.token_path)
        server.fail_with(Reset("start"))
        transport = stack_over(world, world.pick(httpx.HTTPTransport, httpx.AsyncHTTPTransport)(), provider)
        client = world.client(transport)
        response = await world.call(client.post, server.create_url(), json={})
        server.revoke_tokens()
        response = await world.call(client.post, server.create_url(), json={})
        await world.close(client)
        assert response.status_code == 200
        tokens = {
            str(record.authorization)[len("Bearer ") :] for record in server.requests if record.authorization
        }
    assert len(tokens) == 2
    names = {record.name.split(".")[0] for record in caplog.records}
    assert {"stkai", "httpx", "httpcore"} <= names
    assert_hidden(caplog.text, *tokens)
    assert_hidden(repr([vars(record) for record in caplog.records]), *tokens)


# The variables of the frames in a traceback


class StuckStream(httpcore.NetworkStream):
    """A connection that accepts a limited number of writes; httpcore's frames then hold the unsent data."""

    def __init__(self, taken: int) -> None:
        self._left = taken

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left -= 1
        if self._left >= 0:
            return
        try:
            raise TimeoutError(110, "Connection timed out")
        except OSError as error:
            raise httpcore.WriteTimeout("stuck") from error

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class AsyncStuckStream(httpcore.AsyncNetworkStream):
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        StuckStream(0).write(buffer, timeout)

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class Backend(httpcore.NetworkBackend):
    def __init__(self, taken: int) -> None:
        self._taken = taken

    def connect_tcp(self, *_: Any, **__: Any) -> Any:
        return StuckStream(self._taken)


class AsyncBackend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(self, *_: Any, **__: Any) -> Any:
        return AsyncStuckStream()


def stuck_wire(taken: int = 0) -> httpx.HTTPTransport:
    wire = httpx.HTTPTransport()
    wire._pool = httpcore.ConnectionPool(network_backend=Backend(taken))
    return wire


def async_stuck_wire() -> httpx.AsyncHTTPTransport:
    wire = httpx.AsyncHTTPTransport()
    wire._pool = httpcore.AsyncConnectionPool(network_backend=AsyncBackend())
    return wire


def stuck(world: World) -> Any:
    return async_stuck_wire() if world.is_async else stuck_wire()


LOCAL = "http://localhost:9/v1"


async def traceback_of(world: World, transport: Any, url: str = LOCAL) -> str:
    with pytest.raises(httpx.TransportError) as caught:
        await world.send(transport, httpx.Request("POST", url, json={}))
    return shown_by(caught.value)


async def test_the_variables_in_a_traceback_of_the_wire_hold_no_token(world: World) -> None:
    for make in (layer, stack_over):
        text = await traceback_of(world, make(world, stuck(world), Fixed()))
        assert "stuck" in text
        assert "<access token>" in text
        assert_hidden(text)


async def test_they_would_hold_it_if_the_frames_of_the_wire_were_not_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai.transports._auth.flow.hide_frames", lambda _: None)
    text = await traceback_of(world, layer(world, stuck(world), Fixed()))
    assert TOKEN in text


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, LookupError])
async def test_the_variables_in_a_traceback_of_an_interrupt_or_a_bug_while_the_wire_sends_hold_no_token(
    world: World, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    def write(*_: Any, **__: Any) -> NoReturn:
        raise interrupt("in the middle")

    monkeypatch.setattr(StuckStream, "write", write)
    with pytest.raises(interrupt) as caught:
        await world.send(stack_over(world, stuck(world), Fixed()), httpx.Request("POST", LOCAL, json={}))
    text = shown_by(caught.value)
    assert "_send_request_headers" in text, "the frames themselves are kept"
    assert_hidden(text)


async def test_the_variables_in_a_traceback_of_the_token_endpoint_hold_no_secret(world: World) -> None:
    # The server stops accepting before the head, then before the body, which holds the secret.
    for taken in (0, 1):
        provider = provider_over(stuck_wire(taken), token_url="http://localhost:9/token")
        text = await traceback_of(world, layer(world, Wire(), provider), URL)
        assert "stuck" in text
        assert_hidden(text, "client_secret=")


async def test_the_variables_of_a_custom_wire_are_not_shown_either(world: World) -> None:
    def fail(request: httpx.Request) -> NoReturn:
        form = httpx.QueryParams(request.content.decode())
        raise RuntimeError(f"a bug in {len(form)} fields")

    text = await traceback_of(world, layer(world, Wire(), provider_over(httpx.MockTransport(fail))), URL)
    assert "a bug in 3 fields" in text
    assert_hidden(text)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(400, json={"error": SECRET, "error_description": "x"}),
        httpx.Response(200, json={"access_token": f"{TOKEN}\n"}),
        httpx.Response(200, text=f"<p>{TOKEN}"),
        httpx.RemoteProtocolError(f'illegal status line: bytearray(b\'{{"access_token": "{TOKEN}"}}\')'),
        RuntimeError("a bug"),
    ],
    ids=["refused", "no usable token", "no JSON", "no HTTP", "raised"],
)
async def test_the_variables_in_a_traceback_hold_nothing_of_a_bad_answer(world: World, answer: Any) -> None:
    text = await traceback_of(world, layer(world, Wire(), provider_over(Wire(*[answer] * 3))), URL)
    assert_hidden(text)


async def test_the_variables_in_a_traceback_after_a_401_hold_no_token(world: World) -> None:
    class Once(AuthProvider):
        """Returns one token, and then none."""

        used = False

        def get_access_token(self) -> str:
            if self.used:
                raise AuthenticationError("no more")
            self.used = True
            return TOKEN

    text = await traceback_of(world, layer(world, world.wire(401), Once()), URL)
    assert "<access token>" in text
    assert_hidden(text)


async def test_the_variables_around_an_unsendable_token_do_not_hold_it(world: World) -> None:
    text = await traceback_of(world, layer(world, Wire(), Odd()), URL)
    assert "cannot be sent" in text
    assert_hidden(text)


async def test_no_variable_holds_a_provider_that_shows_its_token(world: World) -> None:
    assert_hidden(await traceback_of(world, layer(world, stuck(world), Talkative())))
