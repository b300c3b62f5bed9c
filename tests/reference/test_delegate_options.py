"""What a client around another one passes on to it: the options of a call."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

import stkai
from stkai import AdaptiveRateLimitedHttpClient, HttpClient, RetryPolicy, TokenBucketRateLimitedHttpClient
from stkai.testing import FakeClock

URL = "https://api.example/a"


@pytest.fixture(params=[TokenBucketRateLimitedHttpClient, AdaptiveRateLimitedHttpClient])
def decorator(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return lambda delegate: request.param(delegate, 1000, 1.0)


class Answers:
    """A transport that plays statuses, and counts."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.requests = list(statuses), list[httpx.Request]()

    def transport(self) -> httpx.MockTransport:
        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return httpx.Response(self.statuses.pop(0) if self.statuses else 200)

        return httpx.MockTransport(answer)

    def retrying_client(self) -> HttpClient:
        """A delegate that retries by itself."""
        clock = FakeClock()
        return stkai.build_client(auth=None, rate_limit=None, transport=self.transport(), clock=clock)


@pytest.mark.parametrize("verb", ["post", "get", "post_stream"])
def test_a_call_without_retries_is_sent_once_even_if_the_delegate_retries(
    decorator: Callable[..., Any], verb: str
) -> None:
    answers = Answers(503, 503, 503, 503, 503)
    client = decorator(answers.retrying_client())
    response = getattr(client, verb)(URL, retry=None)
    assert response.status_code == 503
    assert len(answers.requests) == 1


def test_a_call_with_a_policy_is_retried_by_that_policy_alone(decorator: Callable[..., Any]) -> None:
    answers = Answers(*[503] * 20)
    client = decorator(answers.retrying_client())
    policy = RetryPolicy(2, initial_delay=0.0)
    assert client.post(URL, {}, retry=policy).status_code == 503
    assert len(answers.requests) == 3


@pytest.mark.parametrize("verb", ["post", "get"])
def test_the_policy_of_a_block_is_that_of_its_calls(decorator: Callable[..., Any], verb: str) -> None:
    answers = Answers(*[503] * 20)
    client = decorator(answers.retrying_client())
    with stkai.options(retry=RetryPolicy(2, initial_delay=0.0)):
        response = getattr(client, verb)(URL)
    assert (response.status_code, len(answers.requests)) == (503, 3)
    assert response.extensions["stkai"].attempts == 3, "each with a permit of its own"


def test_a_block_adds_nothing_to_what_a_delegate_passes_on(decorator: Callable[..., Any]) -> None:
    answers = Answers(*[503] * 20)
    retrying = answers.retrying_client()

    class PassesOn(HttpClient):
        def get(self, *args: Any, **more: Any) -> Any:
            raise NotImplementedError

        def post(
            self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, **more: Any
        ) -> Any:
            assert not more, "requests.post() knows no such argument"
            return retrying.post(url, data, headers, timeout)

    with stkai.options(retry=RetryPolicy(2, initial_delay=0.0)):
        assert decorator(PassesOn()).post(URL).status_code == 503
    assert len(answers.requests) == 3


def test_a_block_reaches_a_delegate_that_takes_no_options(decorator: Callable[..., Any]) -> None:
    answers = Answers(503, 503)
    sending = HttpClient(answers.transport())

    class AsInTheReference(HttpClient):
        def get(self, url: str, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
            return sending.get(url, headers, timeout)

        def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
            return sending.post(url, data, headers, timeout)

    with stkai.options(retry=RetryPolicy(2, initial_delay=0.0)):
        assert decorator(AsInTheReference()).post(URL).status_code == 200


def test_a_call_that_says_nothing_leaves_the_delegate_its_own_retries(decorator: Callable[..., Any]) -> None:
    answers = Answers(503, 503)
    assert decorator(answers.retrying_client()).post(URL, {}).status_code == 200
    assert len(answers.requests) == 3


def test_options_reach_a_method_that_takes_them_and_no_other(decorator: Callable[..., Any]) -> None:
    class Taking(HttpClient):
        def get(self, url: str, headers: Any = None, timeout: float = 30, **options: Any) -> Any:
            seen.append(options)
            return httpx.Response(200)

        def post(  # type: ignore[override]
            self, url: str, data: Any = None, headers: Any = None, timeout: float = 30, deadline: Any = None
        ) -> Any:
            seen.append({"deadline": deadline})
            return httpx.Response(200)

    class AsInTheReference(HttpClient):
        def get(self, url: str, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
            return httpx.Response(200)

        def post(self, url: str, data: Any = None, headers: Any = None, timeout: float = 30) -> Any:  # type: ignore[override]
            return httpx.Response(200)

    seen: list[dict[str, Any]] = []
    client = decorator(Taking())
    client.get(URL, deadline=60.0, priority="low", retry=RetryPolicy(1))
    client.post(URL, {}, deadline=60.0, priority="low")
    client.get(URL)
    assert seen == [{"deadline": 60.0, "priority": "low", "retry": None}, {"deadline": 60.0}, {}]
    plain = decorator(AsInTheReference())
    assert plain.get(URL, deadline=60.0).status_code == plain.post(URL, deadline=60.0).status_code == 200


def test_a_client_around_another_one_cannot_send_a_complete_request(decorator: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match=r"has no send\(\): use get, post or post_stream"):
        decorator(Answers().retrying_client()).send(httpx.Request("GET", URL))
