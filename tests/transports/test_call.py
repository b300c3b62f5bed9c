"""A call: copies of its request, its deadline, its options, its attempts and their record."""

import math
import pickle
from typing import Any

import httpx
import pytest

import stkai
from stkai import CallRecord, ConfigurationError, RequestOptions, RetryPolicy
from stkai.transports import Attempt, Call, can_resend, copy_request
from stkai.transports._options import OPTIONS

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/v1?key=hidden"


# Requests


@pytest.mark.parametrize("kind", [httpx.Request, type("Own", (httpx.Request,), {})])
def test_a_copy_shares_the_body_and_leaves_the_original_unchanged(kind: type[httpx.Request]) -> None:
    request = kind("POST", URL, headers={"A": "1"}, content=b"body", extensions={"timeout": {"read": 1.0}})
    before = dict(request.__dict__)
    copy = copy_request(request, headers=httpx.Headers({"B": "2"}), extensions={"x": 1})
    assert type(copy) is kind
    assert (copy.method, copy.url, copy.stream) == (request.method, request.url, request.stream)
    assert copy.content == b"body"
    assert (copy.headers, copy.extensions) == (httpx.Headers({"B": "2"}), {"x": 1})
    assert request.__dict__ == before
    assert "B" not in request.headers


def test_a_copy_keeps_what_is_not_replaced() -> None:
    request = httpx.Request("POST", URL, headers={"A": "1"}, extensions={"x": 1})
    assert copy_request(request).headers == request.headers
    assert copy_request(request).extensions == {"x": 1}


def test_a_copy_keeps_what_a_program_has_set_on_the_request() -> None:
    for content in (b"body", (part for part in [b"body"])):
        request = httpx.Request("POST", URL, content=content)
        request.__dict__["tenant"] = "mine"
        copy = copy_request(request, headers=httpx.Headers({"B": "2"}))
        assert copy.__dict__ == request.__dict__ | {"headers": httpx.Headers({"B": "2"})}


def test_only_bytes_can_be_sent_again() -> None:
    def chunks() -> Any:
        yield b"one"

    assert can_resend(httpx.Request("GET", URL))
    assert can_resend(httpx.Request("POST", URL, content=b"body"))
    assert can_resend(httpx.Request("POST", URL, json={}))
    assert can_resend(httpx.Request("POST", URL, data={"a": "b"}))
    assert not can_resend(httpx.Request("POST", URL, content=chunks()))
    assert not can_resend(httpx.Request("POST", URL, files={"file": b"content"}))
    assert not can_resend(pickle.loads(pickle.dumps(httpx.Request("POST", URL, content=chunks()))))  # noqa: S301


# Calls


def test_a_call_starts_with_the_options_of_its_request() -> None:
    options = RequestOptions(deadline=10.0)
    request = httpx.Request("GET", URL, extensions={OPTIONS: options})
    call = Call.start(request, 5.0)
    assert call.options is options
    assert call.request is request
    assert (call.started, call.deadline, call.time_left(8.0)) == (5.0, 15.0, 7.0)
    assert (call.method, call.host, call.buffered) == ("GET", "api.example.com", False)


def test_a_call_is_immutable_and_has_a_unique_id() -> None:
    request = httpx.Request("GET", URL)
    call, other = Call.start(request, 0.0), Call.start(request, 0.0)
    assert call.id != other.id
    for name in ("deadline", "options", "anything"):
        with pytest.raises(AttributeError):
            setattr(call, name, 1.0)
    bounded = call.within(3.0)
    assert (call.deadline, bounded.deadline, bounded.id) == (None, 3.0, call.id)


REDIRECT = httpx.Response(302, headers={"Location": "/elsewhere"})
CHALLENGE = httpx.Response(401, headers={"WWW-Authenticate": 'Digest realm="a"'})


def answered(request: httpx.Request, response: httpx.Response, now: float, *, queued: float = 0.0) -> Call:
    """A call that has been answered."""
    call = Call.start(request, now)
    attempt = Attempt(call)
    attempt.record.queued = queued
    attempt.finish(response, now)
    return call


def test_the_deadline_of_a_redirected_request_counts_from_the_first_hop() -> None:
    first = httpx.Request("GET", URL, extensions={OPTIONS: RequestOptions(deadline=10.0)})
    assert answered(first, REDIRECT, 100.0).deadline == 110.0
    # httpx passes the extensions on to the next hop's request.
    second = httpx.Request("GET", URL, extensions=first.extensions)
    assert Call.start(second, 104.0).deadline == 110.0
    assert Call.start(first, 200.0).deadline == 210.0, "the caller sends it anew"


def test_what_an_auth_of_httpx_sends_again_has_the_same_deadline() -> None:
    request = httpx.Request("GET", URL, extensions={OPTIONS: RequestOptions(deadline=10.0)})
    assert answered(request, CHALLENGE, 100.0).deadline == 110.0
    request.headers["Authorization"] = "Digest first"
    assert answered(request, httpx.Response(200), 104.0).deadline == 110.0
    request.headers["Authorization"] = "Digest second"
    assert Call.start(request, 200.0).deadline == 210.0, "the caller sends it anew"


@pytest.mark.parametrize("response", [httpx.Response(200), CHALLENGE])
def test_a_new_request_with_the_extensions_of_an_old_one_has_a_deadline_of_its_own(
    response: httpx.Response,
) -> None:
    old = httpx.Request("GET", URL, extensions={OPTIONS: RequestOptions(deadline=10.0)})
    answered(old, response, 100.0)
    assert Call.start(httpx.Request("GET", URL, extensions=old.extensions), 200.0).deadline == 210.0


def test_the_redirects_of_a_call_share_its_allowance_for_waiting() -> None:
    first = httpx.Request("GET", URL)
    answered(first, REDIRECT, 100.0, queued=3.0)
    second = httpx.Request("GET", URL, extensions=first.extensions)
    answered(second, REDIRECT, 101.0, queued=2.0)
    third = Attempt(Call.start(httpx.Request("GET", URL, extensions=second.extensions), 102.0))
    third.record.queued = 1.0
    assert third.allowance(10.0) == 4.0
    assert third.allowance(None) == math.inf


def test_the_next_attempt_shares_the_record_and_returns_to_its_place() -> None:
    first = Attempt(Call.start(httpx.Request("GET", URL), 0.0))
    limiter = object()
    first.place = (limiter, 7)
    second = first.again()
    third = second.again()
    assert [attempt.number for attempt in (first, second, third)] == [1, 2, 3]
    assert first.record is second.record is third.record
    assert second.place == (limiter, 7)
    assert third.place == (limiter, 7), "an attempt that got no permit keeps the place"
    assert first.record.attempts == 3


def test_parallel_attempts_share_nothing_until_the_answer_of_one_is_used() -> None:
    attempt = Attempt(Call.start(httpx.Request("GET", URL), 0.0))
    attempt.record.queued = 1.0
    first, second = attempt.apart(), attempt.beside()
    assert [one.number for one in (attempt, first, second)] == [1, 1, 2]
    assert (second.call, second.place) == (attempt.call, None)
    first.record.queued += 7.0
    second.record.queued += 2.0
    second.record.authenticating = 0.5
    second.place = (object(), 7)
    assert attempt.record == CallRecord(attempts=2, queued=1.0)
    assert second.again().number == 3
    attempt.absorb(second)
    assert attempt.record == CallRecord(attempts=3, queued=3.0, authenticating=0.5)
    first.record.queued += 99.0
    assert attempt.record.queued == 3.0, "the attempt that lost goes on by itself"
    following = attempt.again()
    assert (following.number, following.place) == (4, second.place)


@pytest.mark.parametrize(
    "extensions", [{}, {OPTIONS: RequestOptions()}, {OPTIONS: RequestOptions(deadline=None)}]
)
def test_without_a_deadline_there_is_always_time(extensions: dict[str, Any]) -> None:
    call = Call.start(httpx.Request("GET", URL, extensions=extensions), 5.0)
    assert call.deadline is None
    assert call.time_left(1e9) == float("inf")


@pytest.mark.parametrize("options", [{"retry": None}, None, RetryPolicy()])
def test_options_of_another_type_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="RequestOptions"):
        Call.start(httpx.Request("GET", URL, extensions={OPTIONS: options}), 0.0)


@pytest.mark.parametrize("name", ["deadline", "max_wait_time"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "10", True])
def test_a_time_that_is_not_a_positive_number_of_seconds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(stkai.InvalidArgumentError, match=name):
        RequestOptions(**{name: value})


def test_the_repr_of_options_shows_which_are_unset() -> None:
    assert repr(RequestOptions(retry=None)).startswith(
        "RequestOptions(retry=None, deadline=..., max_wait_time=..."
    )


def test_the_record_says_where_the_time_went() -> None:
    attempt = Attempt(Call.start(httpx.Request("GET", URL), 100.0))
    attempt.record.queued, attempt.record.backed_off, attempt.record.authenticating = 1.0, 2.0, 3.0
    response = httpx.Response(200)
    attempt.finish(response, 110.0)
    record = CallRecord(attempts=1, queued=1.0, backed_off=2.0, authenticating=3.0, on_wire=4.0)
    assert response.extensions == {OPTIONS: record}


def test_the_time_on_the_wire_is_never_negative() -> None:
    attempt = Attempt(Call.start(httpx.Request("GET", URL), 0.0))
    attempt.record.queued = 0.1 + 0.2
    response = httpx.Response(200)
    attempt.finish(response, 0.3)
    assert response.extensions[OPTIONS].on_wire == 0.0
