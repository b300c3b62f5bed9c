"""Clients around other clients, including requests: the options of a call, and what they refuse."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
import requests

import stkai
from stkai import (
    AdaptiveRateLimitedHttpClient,
    HttpClient,
    RetryPolicy,
    ServerSideRateLimitError,
    StandaloneHttpClient,
    StaticToken,
    SystemClock,
    TokenAcquisitionTimeoutError,
    TokenBucketRateLimitedHttpClient,
)
from stkai.testing import Answer, QuotaServer

from ..reliability.hostile import hostile
from ..support.ids import spelled

pytestmark = pytest.mark.without_auth

URL = "https://api.example/a"
DECORATORS: list[Callable[..., HttpClient]] = [
    TokenBucketRateLimitedHttpClient,
    AdaptiveRateLimitedHttpClient,
]
each_decorator = pytest.mark.parametrize("decorator", DECORATORS)


class WithRequests(HttpClient):
    """The example in the reference, to the letter."""

    def get(self, url: str, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
        return requests.get(url, headers=headers, timeout=timeout)

    def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
        return requests.post(url, json=data, headers=headers, timeout=timeout)

    def post_stream(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
        return requests.post(url, json=data, headers=headers, timeout=timeout, stream=True)


class Scripted(HttpClient):
    """A client that returns or raises one thing after another, and then repeats the last one."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, Any, float]] = []

    def get(self, url: str, headers: Any = None, timeout: float = 30, **_: Any) -> Any:
        return self._next("GET", headers, timeout)

    def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any) -> Any:
        return self._next("POST", headers, timeout)

    def _next(self, verb: str, headers: Any, timeout: float) -> Any:
        self.calls.append((verb, headers, timeout))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def theirs(status: int, **headers: str) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer._content = status, b"body"
    answer.headers.update(headers)
    return answer


# Responses from requests


@each_decorator
def test_the_example_of_the_reference_returns_the_responses_of_requests(
    server: QuotaServer, decorator: Callable[..., Any]
) -> None:
    client = decorator(WithRequests(), max_requests=100, time_window=60.0)
    response = client.post(f"{server.url}/echo", data={"a": 1}, headers={"X-A": "1"}, timeout=10)
    assert isinstance(response, requests.Response)
    assert response.json()["body"] == '{"a": 1}'
    assert isinstance(client.get(f"{server.url}/none"), requests.Response)


@each_decorator
def test_a_stream_from_requests_is_passed_on_unread(
    server: QuotaServer, decorator: Callable[..., Any]
) -> None:
    client = decorator(WithRequests(), 100, 60.0)
    with client.post_stream(server.chat_url(), {"user_prompt": "a b c", "streaming": True}) as response:
        assert not response._content_consumed
        assert len([line for line in response.iter_lines(decode_unicode=True) if line]) == 4


@pytest.mark.parametrize("verb", ["post", "post_stream"])
def test_a_429_from_requests_is_learned_from_and_raised_with_its_body(server: QuotaServer, verb: str) -> None:
    server.fail_with(Answer(429, headers={"Retry-After": "7"}, body="too much"), path="/echo")
    client = AdaptiveRateLimitedHttpClient(WithRequests(), 100, 60.0, max_wait_time=5.0)
    with pytest.raises(ServerSideRateLimitError) as refused:
        getattr(client, verb)(f"{server.url}/echo", {})
    assert isinstance(refused.value.response, requests.Response)
    assert refused.value.response.headers["Retry-After"] == "7"
    assert refused.value.response.text == "too much"
    with pytest.raises(TokenAcquisitionTimeoutError) as waiting:
        client.post(f"{server.url}/echo", {})
    assert waiting.value.required > 6.5


class WithHttpx2(WithRequests):
    def __init__(self) -> None:
        self.client = httpx2.Client()

    def post_stream(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
        request = self.client.build_request("POST", url, json=data, headers=headers, timeout=timeout)
        return self.client.send(request, stream=True)

    def close(self) -> None:
        self.client.close()


@pytest.mark.parametrize("length", [3, 100], ids=["whole", "broken"])
@pytest.mark.parametrize(
    "delegate",
    [WithRequests, WithHttpx2, lambda: StandaloneHttpClient(StaticToken("t"))],
    ids=["requests", "httpx2", "httpx"],
)
def test_a_streamed_429_is_raised_even_if_its_body_breaks_off(
    delegate: Callable[[], HttpClient], length: int
) -> None:
    answer = b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\ntoo" % length
    with (
        hostile(lambda connection, _: connection.sendall(answer)) as url,
        AdaptiveRateLimitedHttpClient(delegate(), 100, 60.0) as client,
        pytest.raises(ServerSideRateLimitError) as refused,
    ):
        client.post_stream(url, {})
    assert refused.value.response.headers["Retry-After"] == "7"


def raised_by(answer: Any) -> Exception:
    """What `raise_for_status()` raises."""
    with pytest.raises((requests.HTTPError, httpx.HTTPStatusError)) as caught:
        answer.raise_for_status()
    return caught.value


def ours(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, request=httpx.Request("POST", URL))


@pytest.mark.parametrize("kind", [theirs, ours])
def test_a_429_that_a_client_raises_is_learned_from_like_one_that_it_returns(kind: Any) -> None:
    error = raised_by(kind(429, **{"Retry-After": "7"}))
    client = AdaptiveRateLimitedHttpClient(Scripted(error), 100, 60.0, max_wait_time=5.0)
    with pytest.raises(type(error)) as refused:
        client.post(URL)
    assert refused.value is error
    with pytest.raises(TokenAcquisitionTimeoutError) as waiting:
        client.post(URL)
    assert waiting.value.required > 6.5


@each_decorator
@pytest.mark.parametrize("kind", [theirs, ours])
def test_a_status_that_a_client_raises_is_retried_like_one_that_it_returns(
    decorator: Callable[..., Any], kind: Any
) -> None:
    errors = [raised_by(kind(503)) for _ in range(3)]
    inner = Scripted(*errors)
    client, policy = decorator(inner, 1000, 1.0), RetryPolicy(1, initial_delay=0)
    for error in (errors[1], errors[2]):
        with pytest.raises(type(error)) as caught:
            client.post(URL, retry=policy)
        assert caught.value is error
    assert len(inner.calls) == 4


@pytest.mark.parametrize("other", ["plain", "caf\xe9"])
def test_the_retry_layer_waits_as_long_as_a_refusal_from_requests_asks(other: str) -> None:
    response = theirs(429, **{"Retry-After": "5", "X-Other": other})
    failure = RetryPolicy().failure_of(None, ServerSideRateLimitError(response), SystemClock().utcnow())
    assert failure is not None
    assert failure.requested_wait == 5.0


@each_decorator
@pytest.mark.parametrize("answer", [None, {"a": 1}, theirs(200), httpx.Response(200)], ids=str)
def test_whatever_a_client_returns_is_returned(decorator: Callable[..., Any], answer: Any) -> None:
    assert decorator(Scripted(answer), 10, 1.0).post(URL) is answer


@each_decorator
def test_an_exception_of_requests_is_raised_unchanged(decorator: Callable[..., Any]) -> None:
    error = requests.ConnectionError("refused")
    with pytest.raises(requests.ConnectionError) as caught:
        decorator(Scripted(error), 10, 1.0).post(URL)
    assert caught.value is error


@each_decorator
@pytest.mark.parametrize("retry", [None, RetryPolicy(1, initial_delay=0)], ids=["once", "twice"])
@pytest.mark.parametrize(
    "error", [stkai.AuthenticationError("no token"), httpx.ConnectError("refused")], ids=spelled
)
def test_an_error_that_an_error_of_requests_caused_is_raised_unchanged_too(
    decorator: Callable[..., Any], error: Exception, retry: RetryPolicy | None
) -> None:
    error.__cause__ = requests.ConnectionError("refused")
    with pytest.raises(type(error)) as caught:
        decorator(Scripted(error), 10, 1.0).post(URL, retry=retry)
    assert caught.value is error


# The options of a call


@each_decorator
@pytest.mark.parametrize("verb", ["get", "post"])
@pytest.mark.parametrize(
    "failure",
    [httpx.Response(503), theirs(503), httpx.ConnectError("refused"), requests.ReadTimeout("slow")],
    ids=spelled,
)
def test_a_call_with_a_retry_policy_is_retried(
    decorator: Callable[..., Any], verb: str, failure: Any
) -> None:
    inner = Scripted(failure, httpx.Response(200))
    client = decorator(inner, 1000, 1.0)
    policy = RetryPolicy(initial_delay=0, retry_timeouts=True)
    assert getattr(client, verb)(URL, retry=policy).status_code == 200
    assert len(inner.calls) == 2


@each_decorator
def test_a_call_without_a_retry_policy_is_sent_once(decorator: Callable[..., Any]) -> None:
    inner = Scripted(httpx.Response(503), httpx.Response(200))
    assert decorator(inner, 1000, 1.0).post(URL).status_code == 503
    assert len(inner.calls) == 1


@each_decorator
def test_an_idempotency_key_reaches_the_client(decorator: Callable[..., Any]) -> None:
    inner = Scripted(httpx.Response(503), httpx.Response(200))
    policy = RetryPolicy(initial_delay=0, idempotency_header="Idempotency-Key")
    decorator(inner, 1000, 1.0).post(URL, headers={"X-A": "1"}, retry=policy)
    (_, first, _), (_, second, _) = inner.calls
    assert first == second
    assert {name.lower() for name in first} == {"x-a", "idempotency-key"}


def post_again_and_again(client: HttpClient, **options: Any) -> None:
    """More often than any burst allows."""
    for _ in range(5):
        client.post(URL, **options)


@each_decorator
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_wait_time": 0.5}, TokenAcquisitionTimeoutError),
        ({"deadline": 5.0}, stkai.DeadlineExceededError),
    ],
)
def test_a_call_may_refuse_a_wait_that_is_too_long(
    decorator: Callable[..., Any], options: Any, error: type[Exception]
) -> None:
    client = decorator(Scripted(httpx.Response(200)), 1, 3600.0, max_wait_time=None)
    client.post(URL, **options)
    with pytest.raises(error):
        post_again_and_again(client, **options)


@pytest.mark.real_time
@each_decorator
@pytest.mark.parametrize("verb", ["get", "post", "post_stream"])
def test_a_deadline_ends_the_wait_for_the_other_client(decorator: Callable[..., Any], verb: str) -> None:
    class Slow(Scripted):
        def _next(self, verb: str, headers: Any, timeout: float) -> Any:
            go.wait(10)
            return super()._next(verb, headers, timeout)

        def post_stream(
            self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **_: Any
        ) -> Any:
            return self._next("POST", headers, timeout)

    go = threading.Event()
    inner = Slow(httpx.Response(200))
    with pytest.raises(stkai.DeadlineExceededError):
        getattr(decorator(inner, 10, 1.0), verb)(URL, deadline=0.05)
    go.set()


@each_decorator
def test_a_deadline_shortens_the_timeout(decorator: Callable[..., Any]) -> None:
    inner = Scripted(httpx.Response(200))
    decorator(inner, 10, 1.0).post(URL, timeout=30, deadline=5.0)
    assert inner.calls[0][2] <= 5.0


@each_decorator
def test_an_option_that_does_not_exist_is_a_type_error(decorator: Callable[..., Any]) -> None:
    client = decorator(Scripted(httpx.Response(200)), 10, 1.0)
    with pytest.raises(TypeError, match="json"):
        client.post(URL, json={})


# What can be wrapped, and what stays available


def test_a_client_keeps_its_numbers_as_attributes() -> None:
    inner = Scripted(None)
    bucket = TokenBucketRateLimitedHttpClient(inner, 10, 1.0)
    assert (bucket.delegate, bucket.max_requests, bucket.time_window, bucket.max_wait_time) == (
        inner,
        10,
        1.0,
        45.0,
    )
    adaptive = AdaptiveRateLimitedHttpClient(inner, 10, 1.0, max_wait_time=None)
    assert (adaptive.delegate, adaptive.max_wait_time) == (inner, None)
    assert (adaptive.min_rate_floor, adaptive.penalty_factor, adaptive.recovery_factor) == (0.1, 0.3, 0.05)


class Duck:
    """A client without a base class."""

    def get(self, url: str, headers: Any = None, timeout: float = 30) -> Any:
        return "got"

    def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:
        return "posted"


class Coroutines(Duck):
    async def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:
        return "posted"


class MySession(requests.Session):
    """Still a client that sends forms."""


@each_decorator
@pytest.mark.parametrize(
    "delegate",
    [
        requests.Session(),
        MySession(),
        httpx.Client(),
        httpx.AsyncClient(),
        requests,
        Coroutines(),
        SimpleNamespace(get=Coroutines().get, post=Coroutines().post),
        stkai.AsyncHttpClient(httpx.AsyncHTTPTransport()),
        requests.Session,
        object(),
    ],
    ids=spelled,
)
def test_a_delegate_that_would_not_send_json_is_refused_by_the_constructor(
    decorator: Callable[..., Any], delegate: Any
) -> None:
    with pytest.raises(AssertionError, match="delegate must be an HttpClient") as refused:
        decorator(delegate, 10, 1.0)
    assert isinstance(refused.value, ValueError)
    assert "stkai.HttpClient" in str(refused.value)


@each_decorator
def test_a_client_needs_no_base_class_to_be_wrapped(decorator: Callable[..., Any]) -> None:
    client = decorator(Duck(), 10, 1.0)
    assert (client.get(URL), client.post(URL)) == ("got", "posted")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.post(URL)
