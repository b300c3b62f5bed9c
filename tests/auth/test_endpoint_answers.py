"""What a token endpoint can do wrong, and what the error says about it."""

import gzip
import json
import re
import tracemalloc
import zlib
from base64 import b64encode
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest

from stkai import AuthenticationError
from stkai._errors import causes
from stkai.testing import FakeClock

from ..support.secrecy import shown_by
from ..support.tokens import ID, SECRET, TOKEN_URL, grant, provider_over
from ..support.wire import Wire


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


@pytest.mark.parametrize(("status", "what"), [(401, "client_id and client_secret"), (404, "token_url")])
def test_a_401_and_a_404_say_what_to_check(status: int, what: str) -> None:
    error = failure(httpx.Response(status, json={"error": "some_code"}))
    assert str(error).endswith(f"answered {status}: some_code; check {what}")


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


@pytest.mark.parametrize(
    "encoded",
    [
        "".join(f"%{byte:02x}" for byte in SECRET.encode()),
        quote(SECRET, safe=""),
        quote_plus(SECRET).lower(),
        escape(SECRET),
        "".join(f"&#{ord(char)};" for char in SECRET),
        json.dumps(SECRET)[1:-1],
    ],
    ids=["every byte", "percent", "lower case", "html", "numbers", "json"],
)
def test_words_that_repeat_the_secret_in_another_form_are_not_shown(encoded: str) -> None:
    error = failure(httpx.Response(400, json={"error": f"wrong {encoded}", "error_description": "sorry"}))
    shown = r"answered 400: (\[words that repeat the secret\]|wrong \[secret\]): sorry$"
    assert re.search(shown, str(error))
    assert encoded not in repr(vars(error))


def test_words_of_the_wire_that_repeat_the_secret_are_not_shown() -> None:
    error = failure(*[httpx.RemoteProtocolError(f"illegal status line: {SECRET}")] * 3)
    assert "RemoteProtocolError: illegal status line: [secret]" in str(error)
    assert (error.cause, error.__cause__, error.__suppress_context__) == (None, None, True)


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
    [..., None, "", 7, True, ["t"], "two words", "line\nbreak", "\u00fcnicode", "nul\0", "t" * 65_537],
    ids=lambda token: repr(token)[:20],
)
def test_an_answer_without_a_usable_token_is_reported(token: object) -> None:
    error = failure(grant(token))
    assert str(error).endswith("answered 200 without a usable access_token")


def test_an_empty_object_is_reported_as_an_answer_without_a_token() -> None:
    error = failure(httpx.Response(200, json={}))
    assert str(error).endswith("answered 200 without a usable access_token")


def test_an_endpoint_that_answers_200_with_an_error_is_quoted() -> None:
    error = failure(httpx.Response(200, json={"error": "bad_client", "error_description": f"not {SECRET}"}))
    assert str(error).endswith("answered 200 without a usable access_token: bad_client: not [secret]")


def test_success_is_any_2xx() -> None:
    assert provider_over(Wire(httpx.Response(201, json={"access_token": "t"}))).get_access_token() == "t"
    assert "answered 204 with something that is not a JSON object" in str(failure(204))


class Endless(httpx.SyncByteStream):
    pieces = 0

    def __iter__(self) -> Any:
        while self.pieces < 1000:
            self.pieces += 1
            yield b" " * 65_536


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "answered 200 with something that is not a JSON object"), (400, "answered 400")],
)
def test_no_more_than_256_kib_of_an_answer_are_read(status: int, said: str) -> None:
    body = Endless()
    error = failure(httpx.Response(status, stream=body))
    assert said in str(error)
    assert body.pieces == 4


class Dripping(httpx.SyncByteStream):
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def __iter__(self) -> Any:
        while True:
            self._clock.sleep(9.0)
            yield b" "


def packed(body: bytes, coding: str = "gzip") -> httpx.Response:
    return httpx.Response(200, headers={"content-encoding": coding}, stream=httpx.ByteStream(body))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_an_unrequested_compressed_answer_is_still_read(pack: Any) -> None:
    answer = packed(pack(grant().content), "gzip" if pack is gzip.compress else "deflate")
    assert provider_over(Wire(answer)).get_access_token() == "token-1"


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
def test_no_more_than_256_kib_of_a_compressed_answer_are_unpacked(coding: str) -> None:
    bomb = gzip.compress(b"{" + b" " * 2**25)
    for _ in coding.split(",")[1:]:
        bomb = gzip.compress(bomb)
    assert len(bomb) < 2**16
    tracemalloc.start()
    error = failure(packed(bomb, coding))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(error).endswith("with something that is not a JSON object: check token_url")
    assert peak < 2**22


def test_a_compressed_answer_that_cannot_be_unpacked_is_reported_without_its_content() -> None:
    error = failure(packed(b"not gzip"))
    assert str(error).endswith("with something that is not a JSON object: check token_url")


def test_an_answer_that_drips_is_abandoned_after_30_seconds() -> None:
    clock = FakeClock()
    error = failure(httpx.Response(200, stream=Dripping(clock)), clock=clock)
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


@pytest.mark.parametrize("client_auth", ["body", "basic"])
def test_the_cause_of_a_failure_holds_no_request_with_the_secret(client_auth: str) -> None:
    """Nor does a pickle of the error, as a task queue keeps one."""
    sent: list[bytes] = []

    def fails(request: httpx.Request) -> httpx.Response:
        sent.append(b"%r %b" % (request.headers.raw, request.read()))
        refused = httpx.HTTPStatusError("500", request=request, response=httpx.Response(500, request=request))
        raise httpx.ConnectError("refused", request=request) from refused

    with pytest.raises(AuthenticationError) as caught:
        provider_over(Wire(fails), client_auth=client_auth).get_access_token()
    assert caught.value.cause is not None
    below = [each for each in causes(caught.value.cause) if isinstance(each, httpx.HTTPError)]
    requests = [each.request for each in below]
    assert len(requests) == 2
    text = shown_by(caught.value, own=__file__)
    text += "".join(f"{request.headers.raw} {request.read()!r}" for request in requests)
    basic = b64encode(f"{ID}:{quote_plus(SECRET)}".encode()).decode()
    forms = (SECRET, quote_plus(SECRET), basic)
    assert any(form.encode() in sent[0] for form in forms)
    assert not any(form in text for form in forms)


def test_any_other_exception_of_the_wire_becomes_an_authentication_error() -> None:
    error = failure(RuntimeError("a bug"))
    assert str(error).endswith("failed: RuntimeError: a bug")
