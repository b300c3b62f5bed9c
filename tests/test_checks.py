"""The checks of arguments that the whole package shares."""

import math
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest

import stkai
import stkai.stores
import stkai.testing
from stkai import ConfigurationError, InvalidArgumentError, StkaiError
from stkai._checks import (
    AT_LEAST_ZERO,
    COUNT,
    FRACTION,
    POSITIVE,
    POSITIVE_COUNT,
    POSITIVE_SECONDS,
    SECONDS,
    Numbers,
    check_choice,
    check_flag,
    check_number,
    is_async,
    is_http_name,
)

ACCEPTED: list[tuple[Numbers, tuple[float, ...]]] = [
    (POSITIVE, (0.001, 1, 1.7e308, 10**300)),
    (AT_LEAST_ZERO, (0, 0.5, 10**300)),
    (SECONDS, (0, 0.5)),
    (POSITIVE_SECONDS, (0.5, 60)),
    (COUNT, (0, 1)),
    (POSITIVE_COUNT, (1, 10**9)),
    (FRACTION, (0.1, 1)),
]
REFUSED: list[tuple[Numbers, tuple[Any, ...]]] = [
    (POSITIVE, (0, -1)),
    (AT_LEAST_ZERO, (-0.001,)),
    (SECONDS, (-1,)),
    (POSITIVE_SECONDS, (0,)),
    (COUNT, (-1, 1.0)),
    (POSITIVE_COUNT, (0, 1.5)),
    (FRACTION, (0, 1.01)),
]


@pytest.mark.parametrize(("allowed", "values"), ACCEPTED, ids=lambda each: getattr(each, "words", "values"))
def test_an_accepted_number_is_returned_as_it_is(allowed: Numbers, values: tuple[float, ...]) -> None:
    assert [check_number("rate", value, allowed) for value in values] == list(values)


@pytest.mark.parametrize(("allowed", "values"), REFUSED, ids=lambda each: getattr(each, "words", "values"))
def test_any_other_number_is_refused_by_name(allowed: Numbers, values: tuple[Any, ...]) -> None:
    for value in (*values, True, None, "1", math.nan, math.inf):
        with pytest.raises(ConfigurationError) as caught:
            check_number("rate", value, allowed)
        assert str(caught.value) == f"rate must be {allowed.words}, not {value!r}"


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "float64"])
def test_numbers_of_numpy_are_numbers(kind: str) -> None:
    numpy = pytest.importorskip("numpy")
    number = check_number("rate", getattr(numpy, kind)(5), POSITIVE)
    assert isinstance(number, int if "int" in kind else float)
    assert number == 5
    five = getattr(numpy, kind)(5)
    assert stkai.RequestOptions(cost=five).cost == 5
    options = stkai.RequestOptions(deadline=five, max_wait_time=five)
    policy = stkai.RetryPolicy(initial_delay=five, max_delay=five, max_retry_after=five, deadline=five)
    kept = [options.deadline, options.max_wait_time, policy.initial_delay, policy.max_delay, policy.deadline]
    assert all(type(each) in {int, float} for each in kept), "a sum with np.float32 loses milliseconds"
    for bad in (numpy.float32("inf"), numpy.float32("nan"), numpy.bool_(True), numpy.int8(-1)):
        with pytest.raises(ConfigurationError, match=r"^rate must be a positive, finite number, not np\."):
            check_number("rate", bad, POSITIVE)


@pytest.mark.parametrize("is_shared", [False, True])
def test_limiters_take_numbers_of_numpy(tmp_path: Path, is_shared: bool) -> None:
    numpy = pytest.importorskip("numpy")
    five = numpy.int64(5)
    shared: Any = {"share": "mine", "store": stkai.stores.FileStore(tmp_path)} if is_shared else {}
    bucket = stkai.TokenBucket(
        five, five, max_cost=numpy.float32(5), burst=five, max_wait_time=five, **shared
    )
    with bucket.permit(cost=five) as permit:
        permit.settle(numpy.int32(4))
    bucket.update(max_requests=numpy.int64(6))
    adaptive = stkai.AimdLimiter(five, five, min_rate_floor=numpy.float32(0.5), **shared)
    places = stkai.InFlight(five)
    places.update(n=numpy.int64(6))
    numbers = [bucket.max_requests, bucket.time_window, bucket.max_cost, adaptive.max_requests, places.n]
    assert numbers == [6, 5, 5, 5, 6]
    assert all(type(each) in {int, float} for each in numbers)


@pytest.mark.parametrize("value", [Fraction(1, 2), Fraction(10**400), Fraction(1, 10**400)])
def test_a_fraction_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^rate must be a positive, finite number, not Fraction"):
        check_number("rate", value, POSITIVE)


@pytest.mark.parametrize("value", [10**400, -(10**5000)], ids=["large", "too_long_to_print"])
def test_an_integer_beyond_the_floats_is_refused_in_words(value: int) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"^cost must be a finite number of at least 0; .*not an integer"
    ):
        check_number("cost", value, AT_LEAST_ZERO, "; see the docs", error=InvalidArgumentError)


def test_a_flag_and_a_choice_are_refused_with_what_is_allowed() -> None:
    check_flag("strict", False)
    check_choice("kind", "b", "a", "b")
    with pytest.raises(ConfigurationError, match=r"^strict must be True or False, not 1$"):
        check_flag("strict", 1)
    with pytest.raises(InvalidArgumentError, match=r"^kind must be one of 'a', 'b', None, not 'c'$"):
        check_choice("kind", "c", "a", "b", None, error=InvalidArgumentError)
    with pytest.raises(ConfigurationError, match=r"^kind must be 'a' or 'b', not 'c'$"):
        check_choice("kind", "c", "a", "b")


CLOCKS: list[Callable[[Any], object]] = [
    lambda clock: stkai.build_client(auth=None, clock=clock),
    lambda clock: stkai.build_async_transport(auth=None, clock=clock),
    lambda clock: stkai.StackBuilder(clock=clock),
    lambda clock: stkai.TokenBucket(1, 1).permit(clock=clock),
    lambda clock: stkai.ClientCredentialsAuthProvider("id", "secret", clock=clock),
    lambda clock: stkai.Retrying(clock=clock),
    lambda clock: stkai.testing.QuotaServer(clock=clock),
    stkai.stores.MemoryStore,
]


@pytest.mark.parametrize(
    ("make", "clock"),
    [*zip(CLOCKS, cycle([3, 0, "now", time.monotonic, datetime.now, stkai.testing.FakeClock]), strict=False)],
)
def test_what_is_no_clock_is_refused_with_what_a_clock_needs(
    make: Callable[[Any], object], clock: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"clock must be .* utcnow\(\), .*has no monotonic\(\)"):
        make(clock)


def test_a_token_is_the_name_of_a_header_or_a_method() -> None:
    assert all(map(is_http_name, ("POST", "x-request-id", "!#$%&'*+.^_`|~9")))
    assert not any(map(is_http_name, ("", "a b", "a:b", "é", "a\n", b"POST", None)))


class Tenants:
    """Functions that a user's program passes to limiters and stacks."""

    def key(self, _: object) -> str:
        return "a"

    async def sleep(self, _: object) -> str:
        return "a"


class AsyncCallable:
    async def __call__(self, _: object) -> None:
        """Never runs, since nothing awaits it."""


def test_an_object_whose_call_must_be_awaited_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="listener must be a plain function"):
        stkai.build_client(auth=None, listener=AsyncCallable())  # type: ignore[arg-type]


def test_a_mock_of_a_plain_function_is_not_async() -> None:
    mocked, tenants = create_autospec(Tenants, instance=True), Tenants()
    plain = (tenants.key, partial(tenants.key), Mock(), Mock(spec=Tenants.key), MagicMock(spec=Tenants.key))
    assert not any(map(is_async, (*plain, mocked.key, None, 5)))
    assert all(map(is_async, (tenants.sleep, partial(tenants.sleep), mocked.sleep, AsyncMock())))
    mocked.key.return_value = "a"
    policy = stkai.PerKey(mocked.key, lambda _: stkai.TokenBucket(1, 1, max_cost=1, cost=mocked.key))
    stkai.build_client(auth=None, rate_limit=policy, cost=mocked.key, listener=mocked.key).close()


def test_a_provider_that_is_given_an_async_method_later_is_refused() -> None:
    provider: Any = stkai.StaticToken("token")
    provider.get_access_token = Tenants().sleep
    with pytest.raises(ConfigurationError, match="rename the async one"):
        stkai.BearerAuth(provider)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("TokenBucket", lambda: stkai.TokenBucket(-1, 1)),
        ("AimdLimiter", lambda: stkai.AimdLimiter(1, 1, methods=[])),
        ("InFlight", lambda: stkai.InFlight(0)),
        ("AllOf", lambda: stkai.AllOf(5)),
        ("PerKey", lambda: stkai.PerKey(cast("Any", 1), cast("Any", 2))),
        ("PerHost", lambda: stkai.PerHost(cast("Any", 1))),
        ("Permit", lambda: stkai.TokenBucket(1, 1, max_cost=5).permit()),
        ("RetryBudget", lambda: stkai.RetryBudget(ratio=-1)),
        ("StackBuilder", lambda: stkai.StackBuilder(cast("Any", 5))),
        ("FileStore", lambda: stkai.stores.FileStore(cast("Any", 5))),
        ("RedisStore", lambda: stkai.stores.RedisStore("redis://host:x")),
        ("RetryTransport", lambda: stkai.transports.RetryTransport(cast("Any", 5))),
        ("Layer", lambda: stkai.Layer("", cast("Any", 5))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_traceback_can_show_an_object_whose_constructor_raises(kind: str, make: Callable[[], Any]) -> None:
    with pytest.raises((StkaiError, TypeError)) as caught:
        make()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert f"<{kind}, not fully constructed>" in shown
