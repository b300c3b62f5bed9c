"""What is retried, and when: the policy alone. Numbers and outcomes in, seconds or nothing out."""

import socket
import ssl
from datetime import UTC, datetime
from typing import Any

import h2.connection
import h2.exceptions
import h11
import httpcore
import httpx
import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

import stkai
from stkai import ConfigurationError, RetryPolicy, TokenAcquisitionTimeoutError
from stkai.transports._failures import Failure

NOW = datetime(2030, 1, 1, tzinfo=UTC)
URL = "https://api.example.com/v1"
FOREVER = float("inf")


def http2_error(reason: Exception) -> Exception:
    """What httpx makes of what httpcore makes of an error of h2."""
    error = httpx.LocalProtocolError(str(reason))
    error.__cause__ = httpcore.LocalProtocolError(reason)
    return error


NOT_SENT: list[Exception] = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.PoolTimeout("full"),
    httpx.ProxyError("502"),
    stkai.RetryableError("later"),
    stkai.ServerSideRateLimitError(None),
]
UNKNOWN: list[Exception] = [
    httpx.ReadTimeout("slow"),
    httpx.WriteTimeout("slow"),
    httpx.TimeoutException("slow"),
    httpx.ReadError("reset"),
    httpx.WriteError("reset"),
    httpx.CloseError("reset"),
    httpx.NetworkError("reset"),
    httpx.RemoteProtocolError("disconnected"),
    http2_error(h2.exceptions.StreamClosedError(3)),
    http2_error(h2.exceptions.TooManyStreamsError("Max outbound streams is 3, 3 open")),
    http2_error(
        h2.exceptions.ProtocolError(
            "Invalid input ConnectionInputs.RECV_DATA in state ConnectionState.CLOSED"
        )
    ),
]
FINAL: list[Exception] = [
    httpx.UnsupportedProtocol("ftp"),
    httpx.LocalProtocolError("bad header"),
    http2_error(h2.exceptions.ProtocolError("Header block must not contain uppercase names")),
    httpx.DecodingError("not gzip"),
    httpx.TooManyRedirects("loop"),
    stkai.AuthenticationError("who are you"),
    stkai.DeadlineExceededError("too late"),
    stkai.ClientSideRateLimitError("later"),
    TokenAcquisitionTimeoutError(0.0, 45.0, required=60.0),
    stkai.ConfigurationError("bad"),
    ValueError("bad"),
]


def test_delays_double_from_the_initial_one_up_to_the_longest() -> None:
    policy = RetryPolicy(initial_delay=0.5, max_delay=10.0)
    assert [policy.backoff(attempt) for attempt in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert policy.backoff(10_000) == 8.0


@given(attempt=st.integers(1, 100), chance=st.floats(0, 1, exclude_max=True))
def test_jitter_adds_up_to_a_quarter_and_never_exceeds_the_longest_delay(attempt: int, chance: float) -> None:
    policy = RetryPolicy(initial_delay=0.5, max_delay=60.0)
    bare = policy.backoff(attempt)
    assert bare <= policy.backoff(attempt, chance) <= min(bare * 1.25, 60.0)
    assert policy.backoff(attempt, 0.999) > bare


@given(
    asked=st.none() | st.floats(0, 100),
    paced=st.booleans(),
    attempt=st.integers(1, 6),
    left=st.floats(0, 300) | st.just(FOREVER),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_no_attempt_comes_earlier_than_asked_or_later_than_the_deadline(
    asked: float | None, paced: bool, attempt: int, left: float, chance: float
) -> None:
    policy = RetryPolicy(max_retries=5)
    failure = Failure("503", acted=False, requested_wait=asked, paced=paced)
    delay = policy.delay(failure, attempt, left, chance)
    if attempt > 5 or (asked or 0) >= left or (not paced and (asked or 0) > 60):
        assert delay is None
    elif paced:
        assert delay == 0.0
    elif delay is not None:
        assert max(asked or 0.0, policy.backoff(attempt)) <= delay < left
        assert delay <= max((asked or 0) + policy.backoff(attempt) / 4, policy.backoff(attempt, 1))
    else:
        assert left < FOREVER


def test_jitter_is_added_to_the_requested_wait() -> None:
    policy = RetryPolicy(initial_delay=1.0)
    failure = Failure("429", acted=False, requested_wait=7.0)
    assert policy.delay(failure, 1, FOREVER, 0.0) == 7.0
    assert policy.delay(failure, 1, FOREVER, 0.8) == pytest.approx(7.2)


@pytest.mark.parametrize("error", NOT_SENT, ids=repr)
def test_a_request_that_was_never_sent_is_always_safe_to_retry(error: Exception) -> None:
    failure = RetryPolicy().failure_of(None, error, NOW)
    assert failure is not None
    assert not failure.acted
    assert failure.cause.startswith(type(error).__name__)


def test_a_cause_without_a_message_is_the_name_of_the_error() -> None:
    failure = RetryPolicy().failure_of(None, httpx.ReadTimeout(""), NOW)
    assert failure is not None
    assert failure.cause == "ReadTimeout"


@pytest.mark.parametrize("error", UNKNOWN, ids=repr)
def test_after_a_broken_connection_the_server_may_have_acted(error: Exception) -> None:
    failure = RetryPolicy().failure_of(None, error, NOW)
    assert failure is not None
    assert failure.acted


@pytest.mark.parametrize("error", [*FINAL, KeyboardInterrupt()], ids=repr)
def test_other_errors_are_final(error: BaseException) -> None:
    assert RetryPolicy().failure_of(None, error, NOW) is None


# What a retry could not change, or might do twice


def untrusted() -> httpx.ConnectError:
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.__cause__ = httpcore.ConnectError("certificate verify failed")
    error.__cause__.__context__ = ssl.SSLCertVerificationError(1, "certificate verify failed")
    return error


def caused(error: Exception, *causes: Exception) -> Exception:
    """An error as httpx raises it: each cause below the one before."""
    above = error
    for cause in causes:
        above.__cause__ = cause
        above = cause
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


def no_host(number: int) -> Exception:
    return caused(httpx.ConnectError("no host"), httpcore.ConnectError(), socket.gaierror(number, "no host"))


def unreadable(message: str = "illegal status line") -> Exception:
    return caused(
        httpx.RemoteProtocolError(message),
        httpcore.RemoteProtocolError(message),
        h11.RemoteProtocolError(message),
    )


def unreadable_by_http2(arriving: Frame) -> Exception:
    """The error of an answer that breaks the rules of HTTP/2."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.send_headers(
        1, [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")]
    )
    connection.receive_data(SettingsFrame().serialize())
    with pytest.raises(h2.exceptions.ProtocolError) as caught:
        connection.receive_data(arriving.serialize())
    return http2_error(caught.value)


HOPELESS = [
    untrusted(),
    no_host(socket.EAI_NONAME),
    caused(httpx.ConnectError("[SSL]"), httpcore.ConnectError(), tls_error("WRONG_VERSION_NUMBER")),
    caused(httpx.ReadError("[SSL]"), httpcore.ReadError(), tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED")),
    caused(httpx.ConnectError("[SSL]"), httpcore.ConnectError(), tls_error("TLSV1_ALERT_UNKNOWN_CA")),
    unreadable("illegal status line: bytearray(b'\\x15\\x03\\x03\\x00\\x02\\x02F')"),
    httpx.ProxyError("407 Proxy Authentication Required"),
    httpx.ProxyError("403 Forbidden"),
    httpx.ProxyError("Invalid username/password"),
]


@pytest.mark.parametrize("error", HOPELESS, ids=repr)
def test_a_failure_that_would_repeat_is_not_retried(error: Exception) -> None:
    assert RetryPolicy().failure_of(None, error, NOW) is None


@pytest.mark.parametrize(
    "error",
    [
        httpx.ProxyError("502 Bad Gateway"),
        httpx.ProxyError("429 Too Many Requests"),
        httpx.ProxyError("408 Request Timeout"),
        httpx.ConnectError("[SSL] record layer failure"),
        caused(httpx.ConnectError("[SSL]"), tls_error("UNEXPECTED_EOF_WHILE_READING")),
        caused(httpx.ConnectError("[SSL]"), tls_error("TLSV1_ALERT_INTERNAL_ERROR")),
        no_host(socket.EAI_AGAIN),
        unreadable(),
    ],
    ids=repr,
)
def test_a_failure_that_may_not_repeat_is_retried(error: Exception) -> None:
    assert RetryPolicy().failure_of(None, error, NOW) is not None


def sent(method: str, policy: RetryPolicy, **headers: str) -> bool:
    return policy.is_repeatable(httpx.Request(method, URL, headers=headers))


def test_what_the_program_was_handling_is_no_cause_of_an_error() -> None:
    error = httpx.ConnectError("refused")
    error.__context__ = socket.gaierror(socket.EAI_NONAME, "another host")
    assert RetryPolicy().failure_of(None, error, NOW) is not None


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(504), None),
        (None, unreadable()),
        (None, unreadable_by_http2(DataFrame(1, data=b"before the head"))),
        (None, unreadable_by_http2(HeadersFrame(1, data=b"\xff" * 9, flags=["END_HEADERS"]))),
        (None, httpx.ReadTimeout("slow")),
        (None, httpx.TimeoutException("slow")),  # As wires of other packages raise it.
    ],
    ids=["504", "unreadable", "no head", "unreadable head", "read timeout", "timeout"],
)
def test_a_request_that_was_not_answered_is_repeated_only_if_that_does_no_harm(
    response: httpx.Response | None, error: Exception | None
) -> None:
    plain, keyed, bold = (
        RetryPolicy(),
        RetryPolicy(idempotency_header="X-Key"),
        RetryPolicy(retry_timeouts=True),
    )
    for method in ("POST", "PATCH", "QUERY"):
        assert plain.failure_of(response, error, NOW, repeatable=sent(method, plain)) is None
    for policy, repeatable in (
        *((plain, sent(method, plain)) for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")),
        (plain, sent("POST", plain, **{"Idempotency-Key": "1"})),
        (keyed, sent("POST", keyed, **{"x-key": "1"})),
        (bold, sent("POST", bold)),
    ):
        failure = policy.failure_of(response, error, NOW, repeatable=repeatable)
        assert failure is not None
        assert failure.acted


@pytest.mark.parametrize(
    "error", [httpx.ConnectTimeout("slow"), httpx.WriteTimeout("slow"), httpx.ReadError("reset")], ids=repr
)
def test_a_post_is_sent_again_after_any_other_failure_of_a_connection(error: Exception) -> None:
    policy = RetryPolicy()
    assert policy.failure_of(None, error, NOW, repeatable=sent("POST", policy)) is not None


@pytest.mark.parametrize(
    "message",
    [
        "Server disconnected without sending a response.",
        "peer closed connection without sending complete message body",
        "peer unexpectedly closed connection",
        "<ConnectionTerminated error_code:0, last_stream_id:41, additional_data:None>",
    ],
)
def test_a_connection_that_breaks_in_an_answer_is_retried(message: str) -> None:
    policy = RetryPolicy()
    assert policy.failure_of(None, unreadable(message), NOW, repeatable=sent("POST", policy)) is not None


# Errors by wire


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("dropped"), httpx.ConnectTimeout("dropped"), httpx.ProxyError("502")],
    ids=repr,
)
def test_a_connection_error_of_an_unknown_wire_may_come_after_the_request(error: Exception) -> None:
    policy = RetryPolicy()
    failure = policy.failure_of(None, error, NOW, sound_wire=False)
    assert failure is not None
    assert failure.acted


@pytest.mark.parametrize("error", [httpx.PoolTimeout("full"), stkai.RetryableError("later")], ids=repr)
def test_a_pool_timeout_of_any_wire_means_that_nothing_was_sent(error: Exception) -> None:
    failure = RetryPolicy().failure_of(None, error, NOW, sound_wire=False)
    assert failure is not None
    assert not failure.acted


def test_the_policy_may_trust_the_connection_errors_of_any_wire() -> None:
    for trusts in (False, True):
        policy = RetryPolicy(trust_connect_errors=trusts)
        failure = policy.failure_of(None, httpx.ConnectError("dropped"), NOW, sound_wire=False)
        assert failure is not None
        assert failure.acted is not trusts


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_refused_request_is_always_safe_to_retry(status: int) -> None:
    failure = RetryPolicy().failure_of(httpx.Response(status), None, NOW)
    assert failure is not None
    assert not failure.acted


@pytest.mark.parametrize("status", [500, 502, 504, 599])
def test_after_a_server_error_the_server_may_have_acted(status: int) -> None:
    failure = RetryPolicy(retry_on_status_codes=[status]).failure_of(httpx.Response(status), None, NOW)
    assert failure is not None
    assert failure.acted


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 404, 409, 501, 505])
def test_other_answers_are_final(status: int) -> None:
    assert RetryPolicy().failure_of(httpx.Response(status), None, NOW) is None


def test_the_status_codes_to_retry_can_be_chosen() -> None:
    policy = RetryPolicy(retry_on_status_codes={409})
    assert policy.failure_of(httpx.Response(503), None, NOW) is None
    assert policy.failure_of(httpx.Response(409), None, NOW) == Failure("409 Conflict", acted=True)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("verdict", "retries"), [("false", False), (" False", False), ("true", True), ("no", True)]
)
def test_a_failure_that_the_server_says_would_repeat_is_not_retried(
    status: int, verdict: str, *, retries: bool
) -> None:
    response = httpx.Response(status, headers={"x-should-retry": verdict})
    raised = stkai.ServerSideRateLimitError(response)
    for failure in RetryPolicy().failure_of(response, None, NOW), RetryPolicy().failure_of(None, raised, NOW):
        assert (failure is not None) is retries


@pytest.mark.parametrize("status", [400, 409, 504])
def test_a_server_cannot_ask_for_a_retry_that_the_policy_does_not_make(status: int) -> None:
    response = httpx.Response(status, headers={"x-should-retry": "true"})
    assert RetryPolicy().failure_of(response, None, NOW, repeatable=False) is None


def test_without_an_outcome_there_is_no_failure() -> None:
    assert RetryPolicy().failure_of(None, None, NOW) is None


def test_the_retry_after_of_a_response_inside_an_error_is_used() -> None:
    policy = RetryPolicy()
    response = httpx.Response(429, headers={"Retry-After": "7"}, request=httpx.Request("GET", URL))
    raised = httpx.HTTPStatusError("429", request=response.request, response=response)
    for error in (raised, stkai.ServerSideRateLimitError(response)):
        failure = policy.failure_of(None, error, NOW)
        assert failure is not None
        assert (failure.requested_wait, failure.acted) == (7.0, False)
    response = httpx.Response(404, request=httpx.Request("GET", URL))
    missing = httpx.HTTPStatusError("404", request=response.request, response=response)
    assert policy.failure_of(None, missing, NOW) is None


def test_unknown_outcomes_are_not_retried_if_the_policy_says_so() -> None:
    policy = RetryPolicy(retry_unknown=False)
    assert policy.delay(Failure("500", acted=True), 1, FOREVER) is None
    assert policy.delay(Failure("503", acted=False), 1, FOREVER) is not None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 1.5}, "whole number"),
        ({"max_retries": True}, "max_retries"),
        ({"max_retries": "3"}, "max_retries"),
        ({"initial_delay": -0.1}, "initial_delay"),
        ({"initial_delay": float("nan")}, "initial_delay"),
        ({"max_delay": float("inf")}, "max_delay"),
        ({"max_retry_after": None}, "max_retry_after"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": -1}, "deadline"),
        ({"deadline": float("inf")}, "deadline"),
        ({"retry_on_status_codes": (99,)}, "retry_on_status_codes"),
        ({"retry_on_status_codes": (600,)}, "retry_on_status_codes"),
        ({"retry_on_status_codes": "429"}, "retry_on_status_codes"),
        ({"retry_on_status_codes": 429}, "retry_on_status_codes"),
        ({"retry_on_status_codes": (True,)}, "retry_on_status_codes"),
        ({"retry_on_status_codes": ([],)}, "retry_on_status_codes"),
        ({"retry_unknown": "false"}, "retry_unknown"),
        ({"retry_timeouts": 1}, "retry_timeouts"),
        ({"trust_connect_errors": "yes"}, "trust_connect_errors"),
        ({"budget": 0.2}, "RetryBudget"),
        ({"idempotency_header": ""}, "idempotency_header"),
        ({"idempotency_header": "two words"}, "idempotency_header"),
        ({"idempotency_header": "a:\r\nb"}, "idempotency_header"),
        ({"idempotency_header": True}, "idempotency_header"),
        ({"idempotency_header": "'Idempotency-Key'"}, "idempotency_header"),
        ({"idempotency_header": "false"}, "idempotency_header"),
        ({"idempotency_header": "host"}, "carries nothing else"),
        ({"idempotency_header": "Authorization"}, "carries nothing else"),
        ({"idempotency_header": "Content-Type"}, "carries nothing else"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        RetryPolicy(**options)


def test_a_policy_is_an_immutable_value() -> None:
    policy = RetryPolicy(2, retry_on_status_codes=[503, 429])
    assert policy == RetryPolicy(2, retry_on_status_codes=(429, 503))
    assert repr(policy) == "RetryPolicy(max_retries=2, retry_on_status_codes=(429, 503))"
    assert policy.retry_on_status_codes == (429, 503)
    assert RetryPolicy().retry_on_status_codes == (408, 429, 500, 502, 503, 504)
    assert repr(RetryPolicy()) == "RetryPolicy()"
    with pytest.raises(AttributeError):
        policy.max_retries = 5  # type: ignore[misc]
