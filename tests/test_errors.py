"""The exceptions: their tree, what they say, and that they can be pickled, copied and shared."""

import copy
import math
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NoReturn

import httpx
import pytest

from stkai import _errors
from stkai._errors import (
    AuthenticationError,
    ClientSideRateLimitError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    MaxRetriesExceededError,
    NotSent,
    OutcomeUnknownError,
    RetryableError,
    ServerSideRateLimitError,
    StkaiError,
    TokenAcquisitionTimeoutError,
    TransportError,
    digits,
    hide_frames,
)

REQUEST = httpx.Request("POST", "https://api.example.com/v1?q=1", json={"a": 1})
REFUSAL = httpx.Response(429, json={"error": "slow down"}, request=REQUEST)

EXAMPLES: list[StkaiError] = [
    StkaiError("something"),
    ConfigurationError("bad settings"),
    InvalidArgumentError("bad argument"),
    TransportError("broken", request=REQUEST),
    AuthenticationError("no token", ValueError("why"), request=REQUEST),
    DeadlineExceededError("too late", request=REQUEST),
    RetryableError("again", request=REQUEST),
    RetryableError("again", 7, request=REQUEST),
    ClientSideRateLimitError("not now", request=REQUEST),
    TokenAcquisitionTimeoutError(1.5, 45.0, required=60.0, request=REQUEST),
    ServerSideRateLimitError(REFUSAL, request=REQUEST),
    MaxRetriesExceededError("given up", KeyError("k")),
    OutcomeUnknownError("request 3 was in flight"),
    NotSent("nothing to send"),
]
each_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def classes() -> list[type[StkaiError]]:
    return [
        value
        for value in vars(_errors).values()
        if isinstance(value, type) and issubclass(value, StkaiError) and value.__module__ == _errors.__name__
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, as far as pickling preserves them."""
    if isinstance(one, BaseException):
        return type(one) is type(other) and one.args == other.args and same(vars(one), vars(other))
    if isinstance(one, httpx.Request):
        return (one.method, one.url, one.headers) == (other.method, other.url, other.headers)
    if isinstance(one, httpx.Response):
        return bool((one.status_code, one.content) == (other.status_code, other.content))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def round_trip(error: StkaiError, protocol: int | None = None) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - made by the line itself


def test_every_exception_is_among_the_examples_of_this_test() -> None:
    assert {type(error) for error in EXAMPLES} == set(classes())


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (ConfigurationError, (StkaiError, ValueError)),
        (InvalidArgumentError, (StkaiError, ValueError, AssertionError)),
        (AuthenticationError, (StkaiError, httpx.TransportError)),
        (DeadlineExceededError, (StkaiError, httpx.TimeoutException, httpx.TransportError)),
        (RetryableError, (StkaiError, httpx.TransportError)),
        (ClientSideRateLimitError, (RetryableError,)),
        (TokenAcquisitionTimeoutError, (ClientSideRateLimitError,)),
        (ServerSideRateLimitError, (RetryableError,)),
        (MaxRetriesExceededError, (StkaiError,)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_exception_can_be_caught_by_its_documented_bases(
    kind: type[StkaiError], bases: tuple[type, ...]
) -> None:
    assert all(issubclass(kind, base) for base in bases)


@pytest.mark.parametrize("kind", [ConfigurationError, MaxRetriesExceededError, InvalidArgumentError])
def test_errors_outside_transports_are_not_httpx_errors(kind: type[StkaiError]) -> None:
    assert not issubclass(kind, httpx.HTTPError)


def test_a_refused_token_and_a_missed_deadline_are_not_retried() -> None:
    assert not issubclass(AuthenticationError, RetryableError)
    assert not issubclass(DeadlineExceededError, RetryableError)


def test_a_refusal_by_the_server_differs_from_one_by_a_limiter() -> None:
    assert not issubclass(ServerSideRateLimitError, ClientSideRateLimitError)


@each_error
def test_every_error_keeps_all_its_attributes_when_pickled(error: StkaiError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = round_trip(error, protocol)
        assert twin is not error
        assert same(error, twin)
        assert str(twin) == str(error)


@each_error
def test_every_error_keeps_all_its_attributes_when_copied(error: StkaiError) -> None:
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert twin is not error
        assert same(error, twin)


@each_error
def test_a_copied_request_shares_no_later_changes(error: StkaiError) -> None:
    twin: Any = copy.copy(error)
    twin.extra = 1
    assert not hasattr(error, "extra")


def _raise_the_worst() -> NoReturn:
    response = httpx.Response(500, request=REQUEST)
    raise MaxRetriesExceededError(
        "given up", httpx.HTTPStatusError("500", request=REQUEST, response=response)
    )


@pytest.mark.real_time
def test_an_error_leaves_a_worker_process_even_if_its_cause_cannot_be_pickled() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(_raise_the_worst).exception()
    assert type(error) is MaxRetriesExceededError
    assert str(error.last_exception) == "HTTPStatusError: 500"


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (httpx.HTTPStatusError("500", request=REQUEST, response=REFUSAL), "HTTPStatusError: 500"),
        (type("Local", (Exception,), {})("from inside a function"), "Local: from inside a function"),
        (ValueError(threading.Lock()), "ValueError: <unlocked"),
    ],
    ids=["cannot be read back", "has no importable class", "holds a lock"],
)
def test_a_cause_that_cannot_be_pickled_is_pickled_as_text(cause: Exception, shown: str) -> None:
    error = AuthenticationError("no token", cause)
    twin = round_trip(error)
    assert type(twin.cause) is StkaiError
    assert str(twin.cause).startswith(shown)
    assert copy.copy(error).cause is cause


def test_other_values_that_cannot_be_pickled_are_dropped() -> None:
    twin = round_trip(ServerSideRateLimitError(threading.Lock()))
    assert type(twin) is ServerSideRateLimitError
    assert twin.response is None


def test_notes_survive_pickling() -> None:
    error = AuthenticationError("no token")
    error.add_note("seen twice")
    assert round_trip(error).__notes__ == ["seen twice"]


def test_an_error_has_its_request_or_raises_what_httpx_raises() -> None:
    assert TransportError("x", request=REQUEST).request is REQUEST
    with pytest.raises(RuntimeError, match="request"):
        _ = AuthenticationError("x").request


def test_an_authentication_error_says_what_failed_and_why() -> None:
    cause = OSError("down")
    error = AuthenticationError("no token", cause)
    assert (error.message, error.cause, str(error)) == ("no token", cause, "no token")
    assert AuthenticationError("no token").cause is None


def test_a_refused_wait_reports_its_four_numbers() -> None:
    error = TokenAcquisitionTimeoutError(1.0, 45.0, required=65.0)
    assert (error.waited, error.max_wait_time, error.required) == (1.0, 45.0, 65.0)
    assert error.retry_after == 20.0
    for part in ("45 s", "65 s", "1 s", "20 s", "max_wait_time"):
        assert part in str(error)


def test_without_required_the_retry_after_of_a_refused_wait_is_zero() -> None:
    error = TokenAcquisitionTimeoutError(2.0, 45.0)
    assert error.required == 2.0
    assert error.retry_after == 0.0


def test_a_long_wait_is_shown_in_plain_digits() -> None:
    error = TokenAcquisitionTimeoutError(0.125, 10.0, required=86_400.0)

    assert "it would have taken 86,400 s (waited 0.125 s); try again in 86,390 s" in str(error)
    assert [digits(number) for number in (0.58342, 999.4, 999.6, math.inf)] == [
        "0.583",
        "999",
        "1,000",
        "inf",
    ]


def test_a_429_error_has_a_message_and_a_readable_body() -> None:
    error = ServerSideRateLimitError(REFUSAL)
    assert "429" in str(error)
    assert error.response.json() == {"error": "slow down"}
    assert str(ServerSideRateLimitError(REFUSAL, "the quota is gone")) == "the quota is gone"


def test_an_exhausted_loop_has_its_last_exception() -> None:
    last = ValueError("x")
    assert MaxRetriesExceededError("given up", last).last_exception is last
    assert MaxRetriesExceededError("given up").last_exception is None


def test_a_retryable_error_needs_no_message() -> None:
    assert str(RetryableError()) == ""


def test_a_retryable_error_takes_several_arguments_like_any_exception() -> None:
    class QuotaError(RetryableError):
        def __init__(self, code: str, seconds: float) -> None:
            super().__init__(code, seconds)

    assert QuotaError("busy", 5.0).args == ("busy", 5.0)


def test_an_invalid_argument_is_an_assertion_error_for_old_code() -> None:
    with pytest.raises(AssertionError):
        raise InvalidArgumentError("url must be absolute")
    with pytest.raises(ValueError, match="absolute"):
        raise InvalidArgumentError("url must be absolute")


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_hiding_frames_hides_those_of_all_causes_and_keeps_the_chain() -> None:
    root = raised(OSError("refused"))
    middle = raised(ConnectionError("lower"), root)
    top = raised(httpx.ConnectError("upper"), middle)
    hide_frames(top)
    assert top.__traceback__ is not None
    assert (middle.__traceback__, root.__traceback__) == (None, None)
    assert top.__cause__ is middle
    assert middle.__cause__ is root


def test_hiding_frames_does_not_touch_the_context() -> None:
    try:
        raise KeyError("the user's own")
    except KeyError as earlier:
        error = raised(httpx.ConnectError("upper"), raised(OSError("refused")))
        hide_frames(error)
        frames = earlier.__traceback__
    assert frames is not None
    assert error.__cause__ is not None
    assert isinstance(error.__cause__.__context__, KeyError)


def test_hiding_frames_ends_at_a_circular_chain() -> None:
    error = raised(ValueError("x"))
    error.__cause__ = error
    hide_frames(error)
    assert error.__traceback__ is None
