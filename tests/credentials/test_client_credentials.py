"""Client credentials tokens: how they are requested, kept and renewed once for all callers, and what can go wrong."""

import _thread
import base64
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import stkai
from stkai import AuthConfig, AuthenticationError, ClientCredentialsAuthProvider, HttpConfig
from stkai._errors import ConfigurationError
from stkai.testing import FakeClock

from ..support.tokens import (
    ID,
    LIFETIME,
    MARGIN,
    SECRET,
    TOKEN_URL,
    Issuer,
    grant,
    provider_over,
    wait_for_followers,
)
from ..support.wire import Wire

# What is kept, and for how long


def test_a_token_is_fetched_once_and_kept() -> None:
    issuer = Issuer()
    provider = provider_over(issuer)
    assert provider.cached_access_token() is None
    assert [provider.get_access_token() for _ in range(3)] == ["token-1"] * 3
    assert provider.cached_access_token() == "token-1"
    assert provider.get_auth_headers() == {"Authorization": "Bearer token-1"}
    assert issuer.fetches == 1


def test_a_token_is_renewed_when_its_margin_begins_and_not_before() -> None:
    issuer, clock = Issuer(), FakeClock()
    provider = provider_over(issuer, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN - 0.001)
    assert provider.get_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token() is None
    assert provider.get_access_token() == "token-2"


def test_a_token_in_its_margin_is_used_while_it_is_being_renewed() -> None:
    clock = FakeClock()
    provider = provider_over(Issuer(), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - 0.001)
    assert provider.cached_access_token(renewing=True) == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token(renewing=True) is None


@pytest.mark.parametrize("margin", [60.0, 1e9])
def test_a_margin_longer_than_half_the_lifetime_is_cut_to_half(margin: float) -> None:
    issuer, clock = Issuer(expires_in=100), FakeClock()
    provider = provider_over(issuer, clock, refresh_margin=margin)
    provider.get_access_token()
    clock.advance(49.999)
    assert provider.get_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.get_access_token() == "token-2"


def test_without_a_margin_a_token_is_used_until_it_expires() -> None:
    clock = FakeClock()
    provider = provider_over(Issuer(expires_in=100), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(99.999)
    assert provider.get_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.get_access_token() == "token-2"


def test_the_lifetime_of_a_token_begins_when_it_is_requested_not_when_it_arrives() -> None:
    clock = FakeClock()
    provider = provider_over(Issuer(lambda _: clock.sleep(20.0), expires_in=100), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(79.999)
    assert provider.cached_access_token() == "token-1"
    clock.advance(0.001)
    assert provider.cached_access_token() is None


def test_the_lifetime_of_a_token_begins_with_the_attempt_that_succeeded() -> None:
    def fail_first(number: int) -> None:
        clock.sleep(10.0)
        if number == 1:
            raise httpx.ConnectError("refused")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_first, expires_in=100), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(89.9)
    assert provider.cached_access_token() == "token-2"
    clock.advance(0.2)
    assert provider.cached_access_token() is None


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (300, 300.0),
        (0.5, 0.5),
        ("300", 300.0),
        (..., 1199.0),
        (None, 1199.0),
        (0, 1199.0),
        (-1, 1199.0),
        (-1e400, 1199.0),
        (True, 1199.0),
        ("soon", 1199.0),
        ("nan", 1199.0),
        ("", 1199.0),
        ([], 1199.0),
        ({"seconds": 5}, 1199.0),
        (10**400, 1199.0),
        (86_401, 86_400.0),
        (1e18, 86_400.0),
        (1e400, 86_400.0),
    ],
    ids=str,
)
def test_the_lifetime_is_what_the_endpoint_says_if_that_is_valid(expires_in: object, life: float) -> None:
    content = {"access_token": "token", "expires_in": expires_in}
    clock = FakeClock()
    body = stdlib_json({name: value for name, value in content.items() if value is not ...})
    provider = provider_over(Wire(lambda _: httpx.Response(200, content=body)), clock, refresh_margin=0)
    provider.get_access_token()
    clock.advance(life * 0.999)
    assert provider.cached_access_token() == "token"
    clock.advance(life * 0.001 + 1e-6)
    assert provider.cached_access_token() is None


def stdlib_json(content: object) -> str:
    """JSON with Infinity, which httpx refuses to write and servers do not."""
    import json

    return json.dumps(content)


def test_forgetting_drops_only_the_token_in_use() -> None:
    issuer = Issuer()
    provider = provider_over(issuer)
    provider.get_access_token()
    provider.forget("token-0")
    assert provider.cached_access_token() == "token-1"
    provider.forget("token-1")
    assert provider.cached_access_token(renewing=True) is None
    assert provider.get_access_token() == "token-2"
    provider.forget("token-1")
    assert provider.cached_access_token() == "token-2"
    assert issuer.fetches == 2


# One fetch for all callers


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns or raises in this many threads that start together."""
    together = threading.Barrier(count)

    def run() -> Any:
        together.wait()
        try:
            return work()
        except AuthenticationError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(count)]]


def test_64_threads_starting_together_fetch_one_token() -> None:
    issuer = Issuer(lambda _: wait_for_followers(provider, 63))
    provider = provider_over(issuer)
    assert in_threads(64, provider.get_access_token) == ["token-1"] * 64
    assert issuer.fetches == 1


def test_a_caller_that_arrives_just_after_a_renewal_does_not_renew_again() -> None:
    class Interleaved(FakeClock):
        """On its first reading, somebody else fetches a token between the cache check and the fetch."""

        armed = True

        def monotonic(self) -> float:
            now = super().monotonic()
            if self.armed:
                self.armed = False
                provider.get_access_token()
            return now

    issuer = Issuer()
    provider = provider_over(issuer, Interleaved())
    assert provider.get_access_token() == "token-1"
    assert issuer.fetches == 1


def test_while_one_caller_renews_the_others_use_the_expiring_token() -> None:
    def watch(number: int) -> None:
        if number == 2:
            with ThreadPoolExecutor(1) as pool:
                served.append(pool.submit(provider.get_access_token).result(timeout=10))
            served.append(provider.cached_access_token())

    served: list[str | None] = []
    clock = FakeClock()
    issuer = Issuer(watch)
    provider = provider_over(issuer, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert provider.get_access_token() == "token-2"
    assert served == ["token-1", "token-1"]
    assert issuer.fetches == 2


def test_a_failed_fetch_wakes_all_waiters_and_each_gets_its_own_error() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        wait_for_followers(provider, 15)
        return httpx.Response(400, json={"error": "invalid_scope"})

    wire = Wire(refuse)
    provider = provider_over(wire)
    errors = in_threads(16, provider.get_access_token)
    assert len(wire.requests) == 1
    assert {type(error) for error in errors} == {AuthenticationError}
    assert len({id(error) for error in errors}) == 16
    assert {str(error) for error in errors} == {f"the token endpoint {TOKEN_URL} answered 400: invalid_scope"}


def test_the_error_of_a_waiter_keeps_its_cause() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        wait_for_followers(provider, 3)
        raise httpx.ConnectError("refused")

    provider = provider_over(Wire(fail))
    errors = in_threads(4, provider.get_access_token)
    assert {type(error.cause) for error in errors} == {httpx.ConnectError}
    assert {error.__cause__ is error.cause for error in errors} == {True}


def test_after_a_failed_fetch_the_next_caller_asks_again() -> None:
    provider = provider_over(Wire(404, grant("token-1")))
    with pytest.raises(AuthenticationError):
        provider.get_access_token()
    assert provider.get_access_token() == "token-1"


def test_ctrl_c_ends_the_wait_of_the_main_thread_and_leaves_the_fetch_to_the_others() -> None:
    def interrupt(_: int) -> None:
        wait_for_followers(provider, 2)
        _thread.interrupt_main()
        interrupted.wait(10)

    interrupted = threading.Event()
    issuer = Issuer(interrupt)
    provider = provider_over(issuer)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(provider.get_access_token)
        with pytest.raises(KeyboardInterrupt):
            provider.get_access_token()
        interrupted.set()
        assert other.result(timeout=10) == "token-1"
    assert issuer.fetches == 1


def test_an_interrupt_that_a_provider_raises_reaches_all_waiters() -> None:
    def stop(_: int) -> None:
        wait_for_followers(provider, 4)
        raise SystemExit(3)

    def get() -> object:
        try:
            return provider.get_access_token()
        except SystemExit as error:
            return error.code

    provider = provider_over(Issuer(stop))
    assert in_threads(4, get) == [3] * 4


def test_a_forked_child_does_not_wait_for_its_parents_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fork(number: int) -> None:
        if number == 1:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: -1)
                in_child.append(provider.get_access_token())

    in_child: list[str] = []
    provider = provider_over(Issuer(fork))
    assert provider.get_access_token() == "token-1"
    assert in_child == ["token-2"]


# A refusal of the credentials is remembered

REFUSED = httpx.Response(401, json={"error": "invalid_client", "error_description": "wrong secret"})


def attempts(provider: ClientCredentialsAuthProvider, count: int) -> list[str]:
    """The errors of this many sequential calls."""
    said = []
    for _ in range(count):
        with pytest.raises(AuthenticationError) as caught:
            provider.get_access_token()
        assert caught.value.message == str(caught.value)
        said.append(caught.value.message)
    return said


def test_twenty_calls_with_a_wrong_secret_make_one_sign_in_and_the_errors_say_so() -> None:
    clock, wire = FakeClock(), Wire(REFUSED)
    provider = provider_over(wire, clock)
    first, *others = attempts(provider, 20)
    assert len(wire.requests) == 1
    assert first.endswith("answered 401: invalid_client: wrong secret; check client_id and client_secret")
    assert {message.startswith(first) for message in others} == {True}
    clock.advance(12.0)
    (late,) = attempts(provider, 1)
    assert "12 s ago" in late
    assert "not asked again for another 18 s" in late
    assert len(wire.requests) == 1


def test_after_30_seconds_the_endpoint_is_asked_again() -> None:
    clock = FakeClock()
    wire = Wire(REFUSED, grant("token-1"))
    provider = provider_over(wire, clock)
    attempts(provider, 3)
    clock.advance(29.9)
    attempts(provider, 1)
    clock.advance(0.1)
    assert provider.get_access_token() == "token-1"
    assert len(wire.requests) == 2


def test_threads_that_start_together_with_a_wrong_secret_make_one_sign_in() -> None:
    wire = Wire(lambda _: REFUSED)
    provider = provider_over(wire)
    assert {type(error) for error in in_threads(20, provider.get_access_token)} == {AuthenticationError}
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("answer", "sign_ins"),
    [
        (httpx.Response(401), 1),
        (httpx.Response(400, json={"error": "invalid_client"}), 1),
        (httpx.Response(403, json={"error": "access_denied"}), 1),
        (httpx.Response(400, json={"error": "invalid_scope"}), 3),
        (httpx.Response(400, json={"error": {"code": 1}}), 3),
        (httpx.Response(403), 3),
        (httpx.Response(404, json={"error": "invalid_client"}), 3),
        (httpx.Response(200, json={"error": "invalid_client"}), 3),
    ],
)
def test_only_a_refusal_of_the_client_itself_is_remembered(answer: httpx.Response, sign_ins: int) -> None:
    wire = Wire(lambda _: answer)
    attempts(provider_over(wire), 3)
    assert len(wire.requests) == sign_ins


def test_a_refused_renewal_leaves_the_old_token_in_use_and_is_remembered_too() -> None:
    clock = FakeClock()
    wire = Wire(grant("token-1"), REFUSED, grant("token-2"))
    provider = provider_over(wire, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert [provider.get_access_token() for _ in range(3)] == ["token-1"] * 3
    provider.forget("token-1")
    attempts(provider, 3)
    assert len(wire.requests) == 2
    clock.advance(30.0)
    assert provider.get_access_token() == "token-2"


# When a renewal fails while the old token is still valid


def test_a_token_that_cannot_be_renewed_is_used_until_it_expires(caplog: pytest.LogCaptureFixture) -> None:
    def fail_from_the_second(number: int) -> None:
        if number > 1:
            raise httpx.ReadError("broken")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_from_the_second), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert provider.get_access_token() == "token-1"
    assert "could not be renewed" in caplog.text
    clock.advance(MARGIN)
    with pytest.raises(AuthenticationError, match="ReadError: broken"):
        provider.get_access_token()


def test_while_the_endpoint_is_down_a_valid_token_does_not_delay_every_call() -> None:
    def fail_from_the_second(number: int) -> None:
        if number > 1:
            raise RuntimeError("down")

    clock = FakeClock()
    issuer = Issuer(fail_from_the_second)
    provider = provider_over(issuer, clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    for _ in range(5):
        provider.get_access_token()
    assert issuer.fetches == 2
    clock.advance(10.0)
    provider.get_access_token()
    assert issuer.fetches == 3


def test_those_who_wait_for_a_failed_renewal_get_the_token_that_is_still_valid() -> None:
    def fail_the_second(number: int) -> None:
        if number == 2:
            raise RuntimeError("down")

    clock = FakeClock()
    provider = provider_over(Issuer(fail_the_second), clock)
    provider.get_access_token()
    clock.advance(LIFETIME - MARGIN)
    assert in_threads(16, provider.get_access_token) == ["token-1"] * 16


# How a token is requested


def test_a_token_is_requested_with_the_client_credentials_grant() -> None:
    issuer = Issuer()
    provider_over(issuer).get_access_token()
    (request,) = issuer.requests
    assert (request.method, str(request.url)) == ("POST", TOKEN_URL)
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert dict(form) == {"grant_type": "client_credentials", "client_id": ID, "client_secret": SECRET}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"]
    assert "authorization" not in request.headers
    assert max(request.extensions["timeout"].values()) <= 30


def test_a_scope_and_an_audience_are_requested() -> None:
    issuer = Issuer()
    provider_over(issuer, scope="read write", audience="https://api.example.com").get_access_token()
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert (form["scope"], form["audience"]) == ("read write", "https://api.example.com")


def test_the_credentials_can_be_sent_as_basic_authentication() -> None:
    issuer = Issuer()
    provider_over(issuer, client_auth="basic").get_access_token()
    (request,) = issuer.requests
    scheme, _, encoded = request.headers["authorization"].partition(" ")
    pair = base64.b64decode(encoded).decode()
    assert (scheme, pair) == ("Basic", f"{ID}:s3cret%2F%2B%26%3D%C3%A9")
    assert dict(httpx.QueryParams(issuer.bodies[0].decode())) == {"grant_type": "client_credentials"}


def test_basic_credentials_that_the_endpoint_repeats_are_not_shown() -> None:
    def repeat(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": f"bad header {request.headers['authorization']}"})

    with pytest.raises(AuthenticationError) as caught:
        provider_over(Wire(repeat), client_auth="basic").get_access_token()
    assert str(caught.value).endswith("answered 400: bad header Basic [secret]")


def test_white_space_around_the_credentials_is_removed() -> None:
    issuer = Issuer()
    provider = ClientCredentialsAuthProvider(f" {ID}\r\n", f"{SECRET}\n", TOKEN_URL, transport=issuer)
    provider.get_access_token()
    form = httpx.QueryParams(issuer.bodies[0].decode())
    assert (form["client_id"], form["client_secret"]) == (ID, SECRET)


def test_the_answer_is_closed_whether_it_is_a_token_or_not() -> None:
    for answer in (grant(), httpx.Response(400), httpx.Response(200, content=b"x" * 300_000)):
        wire = Wire(answer)
        provider = provider_over(wire)
        in_threads(1, provider.get_access_token)
        assert wire.open == 0


def test_only_the_default_wire_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Issuer()
    provider_over(mine).get_access_token()
    assert not mine.closed

    made, configs = Issuer(), []

    def default_wire(config: HttpConfig | None) -> httpx.BaseTransport:
        configs.append(config)
        return made

    monkeypatch.setattr("stkai._wire.default.default_wire", default_wire)
    http = HttpConfig(verify=False)
    provider = ClientCredentialsAuthProvider(ID, SECRET, TOKEN_URL, http=http, clock=FakeClock())
    provider.get_access_token()
    assert made.closed
    assert configs == [http]


# Transient failures are retried briefly


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_transient_status_is_retried(status: int) -> None:
    clock = FakeClock()
    wire = Wire(status, status, grant())
    assert provider_over(wire, clock).get_access_token() == "token-1"
    assert len(clock.sleeps) == 2
    assert sum(clock.sleeps) < 1.0
    assert wire.bodies[0] == wire.bodies[1] == wire.bodies[2]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut off")]
)
def test_a_broken_connection_is_retried(error: Exception) -> None:
    assert provider_over(Wire(error, error, grant())).get_access_token() == "token-1"


class Breaking(httpx.SyncByteStream):
    def __iter__(self) -> Any:
        yield b'{"access_'
        raise httpx.ReadError("cut off")


def test_a_truncated_answer_is_retried() -> None:
    wire = Wire(httpx.Response(200, stream=Breaking()), grant())
    assert provider_over(wire).get_access_token() == "token-1"
    assert wire.open == 0


def test_at_most_three_attempts_are_made() -> None:
    wire = Wire(503, 503, httpx.Response(503, json={"error": "temporarily_unavailable"}))
    with pytest.raises(AuthenticationError, match="answered 503: temporarily_unavailable"):
        provider_over(wire).get_access_token()


def test_a_short_retry_after_is_honoured() -> None:
    clock = FakeClock()
    provider_over(Wire(httpx.Response(503, headers={"Retry-After": "4"}), grant()), clock).get_access_token()
    assert clock.sleeps[0] >= 4.0
    with pytest.raises(AuthenticationError, match="answered 503"):
        provider_over(Wire(httpx.Response(503, headers={"Retry-After": "6"}))).get_access_token()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_a_refusal_is_final(status: int) -> None:
    with pytest.raises(AuthenticationError, match=f"answered {status}"):
        provider_over(Wire(status)).get_access_token()


# What an endpoint can do wrong


def failure(*answers: Any, clock: FakeClock | None = None) -> AuthenticationError:
    """The error caused by an endpoint with these answers; it never shows the secret."""
    wire = Wire(*answers)
    with pytest.raises(AuthenticationError) as caught:
        provider_over(wire, clock).get_access_token()
    assert wire.open == 0
    assert SECRET not in str(caught.value)
    assert caught.value.message == str(caught.value)
    assert TOKEN_URL in caught.value.message
    return caught.value


def test_a_refusal_shows_the_status_the_error_and_its_description() -> None:
    answer = httpx.Response(400, json={"error": "invalid_client", "error_description": "no such client"})
    assert str(failure(answer)).endswith("answered 400: invalid_client: no such client")


def test_a_401_says_what_to_check() -> None:
    error = failure(httpx.Response(401, json={"error": "invalid_client"}))
    assert str(error).endswith("answered 401: invalid_client; check client_id and client_secret")


@pytest.mark.parametrize(
    "body", [b"", b"<html>Forbidden</html>", b"[1]", b'{"error": {"code": 3}, "error_description": null}']
)
def test_a_refusal_without_reasons_shows_the_status(body: bytes) -> None:
    assert str(failure(httpx.Response(403, content=body))).endswith("answered 403")


def test_a_secret_that_the_endpoint_repeats_is_not_shown() -> None:
    encoded = "s3cret%2F%2B%26%3D%C3%A9"
    words = {"error": f"wrong {SECRET}", "error_description": f"in body: client_secret={encoded}&x"}
    error = failure(httpx.Response(400, json=words))
    assert str(error).endswith("answered 400: wrong [secret]: in body: client_secret=[secret]&x")


def test_an_endpoints_words_are_shortened_and_shown_on_one_line() -> None:
    words = {"error": "bad\r\nFATAL: forged \x1b[31mline", "error_description": "x" * 10_000}
    error = str(failure(httpx.Response(400, json=words)))
    assert error.isprintable()
    assert "bad  FATAL: forged" in error
    assert len(error) < 600


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    answer = httpx.Response(status, headers={"location": "https://evil.example.net/token"})
    assert "a redirect, which is not followed" in str(failure(answer))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{]",
        b"<html><h1>Please log in</h1></html>",
        b'"token"',
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 200_000,
    ],
    ids=["empty", "broken", "html", "string", "list", "null", "bytes", "deep"],
)
def test_an_answer_that_is_not_a_json_object_is_reported_without_its_content(body: bytes) -> None:
    error = failure(httpx.Response(200, content=body))
    assert str(error).endswith("answered 200 with something that is not a JSON object: check token_url")


@pytest.mark.parametrize(
    "token",
    [..., None, "", 7, True, ["t"], "two words", "line\nbreak", "\u00fcnicode", "nul\0"],
    ids=repr,
)
def test_an_answer_without_a_usable_token_is_reported(token: object) -> None:
    error = failure(grant(token))
    assert str(error).endswith("answered 200 without a usable access_token")


def test_success_is_any_2xx() -> None:
    assert provider_over(Wire(httpx.Response(201, json={"access_token": "t"}))).get_access_token() == "t"
    assert "answered 204 with something that is not a JSON object" in str(failure(204))


class Endless(httpx.SyncByteStream):
    def __init__(self, clock: FakeClock | None = None) -> None:
        self.pieces = 0
        self._clock = clock

    def __iter__(self) -> Any:
        while True:
            self.pieces += 1
            if self._clock:
                self._clock.sleep(9.0)
            yield b" " * (1 if self._clock else 65_536)


def test_reading_a_huge_answer_stops_at_a_limit() -> None:
    body = Endless()
    error = failure(httpx.Response(200, stream=body))
    assert "the answer is longer than 262,144 bytes" in str(error)
    assert body.pieces == 5


def test_an_answer_that_is_huge_when_decompressed_is_refused() -> None:
    import gzip

    bomb = gzip.compress(b" " * 5_000_000)
    answer = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(bomb))
    assert "the answer is longer than" in str(failure(answer))


def test_an_unrequested_compressed_answer_is_still_read() -> None:
    import gzip

    body = gzip.compress(grant().content)
    answer = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(body))
    assert provider_over(Wire(answer)).get_access_token() == "token-1"


def test_an_answer_that_drips_is_abandoned_after_30_seconds() -> None:
    clock = FakeClock()
    error = failure(httpx.Response(200, stream=Endless(clock)), clock=clock)
    assert "30 s" in str(error)
    assert clock.monotonic() < 40.0


def test_all_attempts_together_take_at_most_30_seconds() -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        clock.sleep(12.0)
        raise httpx.ReadTimeout("slow")

    clock = FakeClock()
    wire = Wire(slow)
    with pytest.raises(AuthenticationError, match="failed: "):
        provider_over(wire, clock).get_access_token()
    left = [request.extensions["timeout"]["read"] for request in wire.requests]
    assert left[0] == 30.0
    assert left[1] < 18.0
    assert left[-1] < 6.0


def test_an_endpoint_that_is_down_says_so_and_keeps_the_cause() -> None:
    refused = httpx.ConnectError("[Errno 111] Connection refused")
    error = failure(refused, refused, refused)
    assert str(error).endswith("failed: ConnectError: [Errno 111] Connection refused")
    assert error.cause is refused
    assert error.__cause__ is refused


def test_any_other_exception_of_the_wire_becomes_an_authentication_error() -> None:
    error = failure(RuntimeError("a bug"))
    assert str(error).endswith("failed: RuntimeError: a bug")


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client_id": ""}, "client_id must be"),
        ({"client_id": None}, "client_id must be"),
        ({"client_secret": ""}, "client_secret must be"),
        ({"client_secret": 7}, "client_secret must be"),
        ({"client_secret": " \n"}, "client_secret must be"),
        ({"scope": ""}, "scope must be"),
        ({"audience": 7}, "audience must be"),
        ({"client_auth": "header"}, "client_auth must be 'body' or 'basic'"),
        ({"token_url": ""}, "token_url must be"),
        ({"token_url": "/token"}, "token_url must be an absolute"),
        ({"token_url": "idm.example.com/token"}, "token_url must be an absolute"),
        ({"token_url": "ftp://idm.example.com/token"}, "token_url must be an absolute"),
        ({"token_url": "https://"}, "token_url must be an absolute"),
        ({"token_url": "https://idm.example.com:port/"}, "port is not a number"),
        ({"token_url": "https://me:hunter2@idm.example.com/"}, "without a user name or password"),
        ({"token_url": "http://idm.example.com/token"}, "client secret unencrypted: use https://"),
        ({"token_url": "http://localhost.example.com/"}, "unencrypted"),
        ({"token_url": "http://127.0.0.1.example.com/"}, "unencrypted"),
        ({"token_url": "http://10.0.0.1/"}, "unencrypted"),
        ({"refresh_margin": -1}, "refresh_margin must be"),
        ({"refresh_margin": float("nan")}, "refresh_margin must be"),
        ({"refresh_margin": float("inf")}, "refresh_margin must be"),
        ({"refresh_margin": "60"}, "refresh_margin must be"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_by_the_constructor(arguments: dict[str, Any], message: str) -> None:
    good = {"client_id": ID, "client_secret": SECRET, "token_url": TOKEN_URL}
    with pytest.raises(ConfigurationError, match=message) as caught:
        ClientCredentialsAuthProvider(**{**good, **arguments})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [
        ("https://idm.example.com/token", False),
        ("HTTPS://idm.example.com:443/token", False),
        ("http://localhost/token", False),
        ("http://LOCALHOST:8080/token", False),
        ("http://127.0.0.1:8080/token", False),
        ("http://127.8.9.1/token", False),
        ("http://[::1]:8080/token", False),
        ("http://[0:0:0:0:0:0:0:1]/token", False),
        ("http://idm.example.com/token", True),
    ],
)
def test_the_secret_is_sent_only_over_a_private_connection_unless_allowed(url: str, allow_http: bool) -> None:
    issuer = Issuer()
    provider = provider_over(issuer, token_url=url, allow_http=allow_http)
    assert provider.get_access_token() == "token-1"
    assert issuer.requests[0].url == httpx.URL(url)


def test_the_query_of_a_token_url_is_sent_and_not_shown() -> None:
    wire = Wire(400)
    with pytest.raises(AuthenticationError) as caught:
        provider_over(wire, token_url="https://id.example.com/token?key=hunter2").get_access_token()
    assert wire.requests[0].url.query == b"key=hunter2"
    assert "https://id.example.com/token answered 400" in str(caught.value)


def test_the_defaults_are_those_of_the_reference() -> None:
    provider = ClientCredentialsAuthProvider(ID, SECRET)
    assert provider.token_url == ClientCredentialsAuthProvider.DEFAULT_TOKEN_URL
    assert provider.refresh_margin == ClientCredentialsAuthProvider.DEFAULT_REFRESH_MARGIN == 60


# The provider from the settings


def test_create_standalone_auth_takes_everything_from_its_config() -> None:
    config = AuthConfig(
        client_id=ID,
        client_secret=SecretStr(SECRET),
        token_url="http://id.example.com/",
        refresh_margin=5,
        allow_http=True,
        scope="read",
        audience="api",
        client_auth="basic",
    )
    provider = stkai.create_standalone_auth(config)
    assert provider.client_id == ID
    assert provider.token_url == "http://id.example.com/"
    assert provider.refresh_margin == 5


def test_create_standalone_auth_without_a_config_uses_the_process_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def default_wire(config: HttpConfig | None) -> httpx.BaseTransport:
        made.append(config)
        return Issuer()

    monkeypatch.setattr("stkai._wire.default.default_wire", default_wire)
    stkai.STKAI.configure(auth={"client_id": ID, "client_secret": SECRET}, http={"verify": False})
    provider = stkai.create_standalone_auth(clock=FakeClock())
    assert provider.get_access_token() == "token-1"
    assert made == [stkai.STKAI.config.http]


@pytest.mark.parametrize("config", [None, AuthConfig()])
def test_create_standalone_auth_without_credentials_says_what_to_set(config: AuthConfig | None) -> None:
    with pytest.raises(ValueError, match="STKAI_AUTH_CLIENT_ID"):
        stkai.create_standalone_auth(config)


# Secrecy


def test_neither_secret_nor_token_is_in_any_representation_or_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    provider = provider_over(Wire(503, grant("the-token")))
    provider.get_access_token()
    texts = [repr(provider), str(provider), caplog.text, repr(vars(provider)), f"{provider._endpoint!r}"]
    assert ID in texts[0]
    for text in texts:
        assert SECRET not in text
        assert "the-token" not in text
