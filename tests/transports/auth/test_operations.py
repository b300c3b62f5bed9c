"""The auth flow alone: tokens and answers go in, operations come out."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stkai import AuthenticationError, AuthProvider, DeadlineExceededError
from stkai.testing import FakeClock
from stkai.transports import Attempt, AuthTransport, Call, Context

from ...support.flows import Outcome, Played, play
from ...support.wire import Wire

URL = "https://api.example.com/v1"


class Tokens(AuthProvider):
    """Issues the tokens one by one, and keeps the last one."""

    def __init__(self, *tokens: str | Exception) -> None:
        self.tokens = iter(tokens)
        self.kept: str | None = None

    def get_access_token(self) -> str:
        token = next(self.tokens)
        if isinstance(token, Exception):
            raise token
        self.kept = token
        return token

    def cached_access_token(self, *, renewing: bool = False) -> str | None:
        return self.kept

    def forget(self, token: str) -> None:
        if token == self.kept:
            self.kept = None


def run(provider: AuthProvider, *answers: Outcome, content: Any = b"body", **options: Any) -> Played:
    layer = AuthTransport(Wire(), provider, context=Context(clock=FakeClock(), listener=print))
    request = httpx.Request("POST", URL, content=content)
    return play(layer.flow(request, Attempt(Call.start(request, 0.0))), *answers, **options)


def sent(played: Played) -> list[str]:
    return [request.headers["authorization"] for request in played.sent]


def test_a_token_is_fetched_and_then_sent() -> None:
    played = run(Tokens("a"), httpx.Response(200))
    assert (played.asked, sent(played)) == (["run", "send"], ["Bearer a"])


def test_a_cached_token_needs_no_fetch() -> None:
    provider = Tokens("a")
    provider.get_access_token()
    played = run(provider, httpx.Response(200))
    assert (played.asked, sent(played)) == (["send"], ["Bearer a"])


def test_after_a_401_the_connection_is_returned_before_a_token_is_fetched() -> None:
    played = run(Tokens("a", "b"), httpx.Response(401), httpx.Response(200))
    assert played.asked == ["run", "send", "load", "run", "drain", "send"]
    assert sent(played) == ["Bearer a", "Bearer b"]


def test_a_second_401_is_returned() -> None:
    last = httpx.Response(401)
    played = run(Tokens("a", "b"), httpx.Response(401), last)
    assert played.response is last


def test_a_401_is_closed_when_there_is_no_other_token() -> None:
    error = AuthenticationError("no more")
    played = run(Tokens("a", error), httpx.Response(401))
    assert (played.asked, played.error) == (["run", "send", "load", "run", "close"], error)


def breaking(error: Exception) -> Callable[[str], None]:
    def at(asked: str) -> None:
        if asked == "load":
            raise error

    return at


def test_a_401_whose_body_breaks_off_is_sent_again_with_another_token() -> None:
    played = run(
        Tokens("a", "b"), httpx.Response(401), httpx.Response(200), at=breaking(httpx.ReadError("reset"))
    )
    assert played.asked == ["run", "send", "load", "run", "drain", "send"]
    assert sent(played) == ["Bearer a", "Bearer b"]


def test_a_401_whose_body_breaks_off_is_that_error_where_there_is_no_other_token() -> None:
    error = httpx.ReadError("reset")
    played = run(Tokens("a", "a"), httpx.Response(401), at=breaking(error))
    assert (played.asked, played.error) == (["run", "send", "load", "run", "close"], error)


def test_a_deadline_that_passes_in_the_body_of_a_401_ends_the_call() -> None:
    error = DeadlineExceededError("too late")
    played = run(Tokens("a", "b"), httpx.Response(401), at=breaking(error))
    assert (played.asked, played.error) == (["run", "send", "load", "close"], error)


@pytest.mark.parametrize("where", ["load", "run", "drain"])
def test_an_interrupt_after_a_401_closes_it(where: str) -> None:
    error = KeyboardInterrupt()

    def at(asked: str) -> None:
        seen.append(asked)
        if asked == where and "send" in seen:
            raise error

    seen: list[str] = []
    played = run(Tokens("a", "b"), httpx.Response(401), at=at)
    assert played.error is error
    assert played.asked[-1] in {"close", "drain"}


@pytest.mark.parametrize("method", ["forget", "cached_access_token"])
def test_a_401_is_closed_when_the_provider_itself_fails(method: str) -> None:
    class Broken(Tokens):
        def forget(self, token: str) -> None:
            if method == "forget":
                raise OSError("the vault is shut")
            self.kept = None
            self.is_shut = True

        def cached_access_token(self, *, renewing: bool = False) -> str | None:
            if getattr(self, "is_shut", False):
                raise OSError("the vault is shut")
            return self.kept

    played = run(Broken("a", "b"), httpx.Response(401))
    assert played.asked == ["run", "send", "close"]
    assert isinstance(played.error, OSError | AuthenticationError)
    assert "the vault is shut" in str(played.error)
