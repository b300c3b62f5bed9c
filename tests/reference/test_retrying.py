"""`Retrying`: retries a block of user code."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import requests
import trio

import stkai
from stkai import InvalidArgumentError, MaxRetriesExceededError, RetryableError, TokenAcquisitionTimeoutError
from stkai._retry import Retrying, RetryingAttempt
from stkai.testing import FakeClock

from ..support.world import World

REQUEST = httpx.Request("POST", "https://api.example.com/v1?key=hidden")


class OwnError(RetryableError):
    """A user-defined error that says that a retry may help."""


def answer(status: int, **headers: str) -> httpx.HTTPStatusError:
    response = httpx.Response(status, headers=headers, request=REQUEST)
    return httpx.HTTPStatusError(f"{status} for {REQUEST.url}", request=REQUEST, response=response)


class Bench:
    """A loop over a block that raises the errors of a script, one per attempt, and then succeeds."""

    def __init__(self, world: World, *errors: BaseException, **options: Any) -> None:
        self.world = world
        self.clock = FakeClock()
        given: dict[str, Any] = {"clock": self.clock, "random": lambda: 0.0}
        self.retrying = Retrying(**given | options)
        self.errors = list(errors)
        self.attempts: list[RetryingAttempt] = []
        self.after = 0

    def block(self, attempt: RetryingAttempt) -> str:
        self.attempts.append(attempt)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def run(self) -> str | None:
        result = None
        if self.world.is_async:
            async for attempt in self.retrying:
                with attempt:
                    result = self.block(attempt)
                self.after += 1
        else:
            for attempt in self.retrying:
                with attempt:
                    result = self.block(attempt)
                self.after += 1
        return result


async def test_a_block_that_succeeds_runs_once(world: World) -> None:
    bench = Bench(world)
    assert await bench.run() == "done"
    assert (len(bench.attempts), bench.clock.sleeps, bench.after) == (1, [], 1)


@pytest.mark.parametrize(
    "error",
    [
        OwnError("later"),
        stkai.ClientSideRateLimitError("later"),
        stkai.ServerSideRateLimitError(None),
        stkai.ServerSideRateLimitError(httpx.Response(429)),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        stkai.DeadlineExceededError("this call took too long"),
        answer(429),
        answer(503),
    ],
    ids=repr,
)
async def test_transient_errors_are_retried_after_doubling_delays(world: World, error: Exception) -> None:
    bench = Bench(world, error, error, error)
    assert await bench.run() == "done"
    assert bench.clock.sleeps == [0.5, 1.0, 2.0]
    assert [attempt.attempt_number for attempt in bench.attempts] == [1, 2, 3, 4]
    assert bench.after == 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        answer(404),
        answer(401),
        stkai.AuthenticationError("who are you"),
        httpx.UnsupportedProtocol("ftp"),
        httpx.DecodingError("not gzip"),
        stkai.ConfigurationError("bad"),
    ],
    ids=repr,
)
async def test_other_errors_are_raised_unchanged(world: World, error: Exception) -> None:
    for errors in ([error], [OwnError("later"), error]):
        bench = Bench(world, *errors)
        with pytest.raises(type(error)) as caught:
            await bench.run()
        assert caught.value is error
        assert len(bench.attempts) == len(errors)
        assert bench.after == len(errors) - 1  # nothing after the failing line has run


async def test_an_interrupt_ends_the_loop_at_once(world: World) -> None:
    interrupt = KeyboardInterrupt()
    bench = Bench(world, OwnError("later"), interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        await bench.run()
    assert caught.value is interrupt
    assert (len(bench.attempts), bench.after) == (2, 1)


async def test_the_final_error_names_the_last_failure(world: World) -> None:
    errors = [OwnError(str(number)) for number in range(4)]
    bench = Bench(world, *errors)
    with pytest.raises(
        MaxRetriesExceededError, match="all 4 attempts failed, the last by OwnError: 3"
    ) as caught:
        await bench.run()
    assert caught.value.last_exception is caught.value.__cause__ is errors[-1]
    assert bench.clock.sleeps == [0.5, 1.0, 2.0]
    assert bench.after == 3


async def test_without_retries_the_error_is_raised_unchanged(world: World) -> None:
    error = OwnError("later")
    bench = Bench(world, error, max_retries=0)
    assert not bench.retrying.enabled
    with pytest.raises(OwnError) as caught:
        await bench.run()
    assert caught.value is error


async def test_each_attempt_knows_its_number_and_whether_it_is_the_last(world: World) -> None:
    bench = Bench(world, OwnError(), OwnError(), max_retries=2)
    await bench.run()
    assert (bench.retrying.enabled, bench.retrying.max_attempts) == (True, 3)
    assert [attempt.max_attempts for attempt in bench.attempts] == [3, 3, 3]
    assert [attempt.is_last_attempt for attempt in bench.attempts] == [False, False, True]


# How long it waits


async def test_no_attempt_starts_before_retry_after_has_passed(world: World) -> None:
    date = {"Date": "Tue, 01 Jan 2030 01:00:00 GMT", "Retry-After": "Tue, 01 Jan 2030 01:00:20 GMT"}
    limited = stkai.ServerSideRateLimitError(httpx.Response(429, headers={"Retry-After": "3.5"}))
    bench = Bench(world, answer(503, **{"Retry-After": "7"}), answer(429, **date), limited)
    await bench.run()
    assert bench.clock.sleeps == [7.0, 20.0, 3.5]


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "7"}, Mock()], ids=["none", "some", "a mock"])
async def test_mocks_stand_in_for_responses(world: World, headers: Any) -> None:
    stub = Mock(spec=httpx.Response, status_code=429, headers=headers)
    errors = httpx.HTTPStatusError("x", request=REQUEST, response=stub), stkai.ServerSideRateLimitError(stub)
    bench = Bench(world, *errors)
    assert await bench.run() == "done"
    assert bench.clock.sleeps == ([7.0, 7.0] if headers == {"Retry-After": "7"} else [0.5, 1.0])


async def test_a_retry_after_shorter_than_the_delay_does_not_shorten_it(world: World) -> None:
    bench = Bench(world, answer(429, **{"Retry-After": "0"}), answer(429, **{"Retry-After": "nan"}))
    await bench.run()
    assert bench.clock.sleeps == [0.5, 1.0]


async def test_an_error_that_asks_for_too_long_a_wait_is_raised_unchanged(world: World) -> None:
    error = answer(429, **{"Retry-After": "61"})
    bench = Bench(world, error)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await bench.run()
    assert caught.value is error
    assert bench.clock.sleeps == []
    assert await Bench(world, error, max_retry_after=61.0).run() == "done"


async def test_a_refusal_by_a_full_queue_is_retried_once_the_wait_would_be_short_enough(world: World) -> None:
    bench = Bench(world, TokenAcquisitionTimeoutError(0.0, 45.0, required=60.0), random=lambda: 0.2)
    await bench.run()
    assert bench.clock.sleeps == [24.0]


async def test_jitter_and_the_longest_delay_are_those_of_the_policy(world: World) -> None:
    bench = Bench(
        world, OwnError(), OwnError(), OwnError(), initial_delay=1.0, max_delay=2.5, random=lambda: 0.8
    )
    await bench.run()
    assert bench.clock.sleeps == pytest.approx([1.2, 2.4, 2.4])


async def test_no_attempt_begins_after_the_deadline(world: World) -> None:
    error = OwnError("later")
    bench = Bench(world, error, error, deadline=1.5)
    with pytest.raises(OwnError):
        await bench.run()
    assert bench.clock.sleeps == [0.5]


# What is retried


async def test_the_statuses_and_exceptions_to_retry_can_be_chosen(world: World) -> None:
    options: dict[str, Any] = {"retry_on_status_codes": (409,), "retry_on_exceptions": (KeyError,)}
    assert await Bench(world, answer(409), KeyError("x"), OwnError(), **options).run() == "done"
    for error in (answer(503), httpx.ConnectError("refused")):
        with pytest.raises(type(error)):
            await Bench(world, error, **options).run()


async def test_an_http_status_error_is_judged_by_its_status_not_by_its_class(world: World) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await Bench(world, answer(404), retry_on_exceptions=(httpx.HTTPError,)).run()


@pytest.mark.parametrize("error", [OwnError(), answer(503), httpx.ReadTimeout("slow")], ids=repr)
async def test_skipped_exceptions_are_never_retried(world: World, error: Exception) -> None:
    with pytest.raises(type(error)):
        await Bench(world, error, skip_retry_on_exceptions=(type(error),)).run()


def test_its_arguments_may_be_given_in_order() -> None:
    retrying = Retrying(1, 2.0, (503,), (KeyError,), (OwnError,), "me")
    assert retrying.policy == stkai.RetryPolicy(1, initial_delay=2.0, retry_on_status_codes=[503])
    assert (retrying.retry_on_exceptions, retrying.skip_retry_on_exceptions) == ((KeyError,), (OwnError,))
    assert retrying.logger_prefix == "me"
    assert (retrying.max_retries, retrying.initial_delay) == (1, 2.0)
    assert retrying.retry_on_status_codes == (503,)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"initial_delay": 0},
        {"initial_delay": -1},
        {"retry_on_status_codes": None},
        {"retry_on_status_codes": (1000,)},
        {"retry_on_exceptions": None},
        {"retry_on_exceptions": ("ValueError",)},
        {"retry_on_exceptions": ValueError},
        {"skip_retry_on_exceptions": (KeyboardInterrupt,)},
        {"deadline": 0},
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))) as caught:
        Retrying(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)


# Errors from requests


def refused_by(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError("refused"),
        requests.ConnectTimeout("slow"),
        requests.ReadTimeout("slow"),
        requests.Timeout("slow"),
        requests.exceptions.ChunkedEncodingError("cut off"),
        refused_by(429),
        refused_by(503),
    ],
    ids=repr,
)
async def test_exceptions_from_requests_are_retried(world: World, error: Exception) -> None:
    bench = Bench(world, error, error)
    assert await bench.run() == "done"
    assert bench.clock.sleeps == [0.5, 1.0]


@pytest.mark.parametrize(
    "error",
    [
        refused_by(404),
        requests.exceptions.InvalidURL("bad"),
        requests.TooManyRedirects("round"),
        requests.RequestException("something"),
    ],
    ids=repr,
)
async def test_other_exceptions_of_requests_are_raised_unchanged(world: World, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await Bench(world, error).run()
    assert caught.value is error


async def test_a_retry_after_is_read_from_a_response_of_requests(world: World) -> None:
    limited = refused_by(429, **{"Retry-After": "5"})
    bench = Bench(
        world,
        refused_by(503, **{"Retry-After": "7"}),
        stkai.ServerSideRateLimitError(limited.response),
        initial_delay=0.1,
    )
    await bench.run()
    assert bench.clock.sleeps == [7.0, 5.0]


# Loops


async def test_a_loop_can_be_left_by_break_and_by_return(world: World) -> None:
    bench = Bench(world)

    async def leave_by_return() -> str:
        if world.is_async:
            async for attempt in bench.retrying:
                with attempt:
                    return "returned"
        for attempt in bench.retrying:
            with attempt:
                return "returned"
        return "never"

    assert await leave_by_return() == "returned"
    count = 0
    if world.is_async:
        async for attempt in bench.retrying:
            with attempt:
                count += 1
                break
    else:
        for attempt in bench.retrying:
            with attempt:
                count += 1
                break
    assert count == 1


async def test_an_attempt_that_is_never_entered_ends_the_loop(world: World) -> None:
    retrying = Bench(world).retrying
    attempts = [attempt async for attempt in aiter(retrying)] if world.is_async else list(retrying)
    assert len(attempts) == 1


async def test_one_object_serves_many_loops_at_once(world: World) -> None:
    retrying = Retrying(max_retries=5, clock=FakeClock())

    async def loop(number: int) -> int:
        bench = Bench(world, *[OwnError()] * (number % 5))
        bench.retrying = retrying
        await bench.run()
        return len(bench.attempts)

    thunks = [lambda number=number: loop(number) for number in range(64)]
    assert await world.gather(*thunks) == [number % 5 + 1 for number in range(64)]


async def test_the_log_names_the_attempt_and_the_cause_but_no_query_string(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await Bench(world, answer(503), logger_prefix="my agent").run()
    assert caplog.messages == [
        "my agent | attempt 1 of 4 failed by 503 Service Unavailable; the next one starts in 0.5 s"
    ]


@pytest.mark.parametrize(
    "run", [asyncio.run, lambda coroutine: trio.run(lambda: coroutine)], ids=["asyncio", "trio"]
)
def test_a_cancelled_wait_ends_the_loop(run: Callable[[Any], None]) -> None:
    import anyio

    clock = FakeClock(autojump=False)
    attempts = 0

    async def loop() -> None:
        nonlocal attempts
        async for attempt in Retrying(clock=clock):
            with attempt:
                attempts += 1
                raise OwnError

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(loop)
            while not clock.sleepers:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    run(main())
    assert attempts == 1


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs the signal of a timer")
@pytest.mark.parametrize("package", [httpx, requests], ids=["httpx", "requests"])
def test_an_exception_of_a_signal_handler_ends_the_loop_even_if_the_package_wraps_it(package: Any) -> None:
    def expire(*_: object) -> None:
        raise TimeoutError("the time of this task is up")

    def receive() -> None:
        """As the package does."""
        try:
            signal.raise_signal(signal.SIGALRM)
        except TimeoutError as error:
            if package is requests:
                raise requests.ReadTimeout(error)  # noqa: B904
            raise httpx.ReadTimeout(str(error)) from error

    attempts: list[RetryingAttempt] = []

    def run() -> None:
        for attempt in Retrying(clock=FakeClock()):
            with attempt:
                attempts.append(attempt)
                receive()

    before = signal.signal(signal.SIGALRM, expire)
    try:
        with pytest.raises(TimeoutError, match="the time of this task is up") as caught:
            run()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert type(caught.value) is TimeoutError
    assert len(attempts) == 1
