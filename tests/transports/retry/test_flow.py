"""The retry layer: what is retried, when, and that nothing is lost, left open or reported twice on the way."""

import dataclasses
import errno
import itertools
import subprocess
import sys
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import stkai
from stkai import ConfigurationError, RequestOptions, RetryPolicy, RetryScheduled
from stkai.testing import FakeClock
from stkai.transports import AsyncRetryTransport, RetryTransport, retry

from ...support.event_log import CALL
from ...support.wire import Answer, Wire
from ...support.world import World
from .bench import URL, Bench, broken, busy

pytestmark = pytest.mark.both_packages

FINAL = [
    httpx.UnsupportedProtocol("ftp"),
    httpx.LocalProtocolError("bad header"),
    httpx.DecodingError("not gzip"),
    stkai.AuthenticationError("who are you"),
    stkai.DeadlineExceededError("too late"),
]


async def test_a_first_success_is_returned_unchanged_and_unread(world: World) -> None:
    bench = Bench(world, 200)
    response = await bench.send()
    assert response.status_code == 200
    assert (len(bench.wire.requests), bench.wire.open, bench.clock.sleeps) == (1, 1, [])
    assert response.extensions["stkai"].attempts == 1
    await world.close(response)
    assert bench.wire.open == 0


async def test_failures_are_retried_until_one_attempt_succeeds(world: World) -> None:
    bench = Bench(world, 503, httpx.ConnectError("refused"), 500, 200)
    response = await bench.send()
    assert response.status_code == 200
    assert bench.clock.sleeps == [0.5, 1.0, 2.0]
    assert bench.wire.bodies == [b"body"] * 4
    assert bench.wire.open == 1
    record = response.extensions["stkai"]
    assert (record.attempts, record.backed_off, record.on_wire) == (4, 3.5, 0.0)


async def test_an_sdk_that_retries_above_the_stack_is_a_warning_once_if_the_stack_retries(
    world: World, recwarn: pytest.WarningsRecorder
) -> None:
    bench = Bench(world, *[200] * 8)
    for retries in ("0", "1", "2"):
        request = httpx.Request("POST", URL, headers={"x-stainless-retry-count": retries})
        await bench.send(request, retry=None)
        await bench.send(request, retry=RetryPolicy(max_retries=0))
        assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="max_retries=0 on the SDK's client, or retry=None on the stack"):
        await bench.send(httpx.Request("POST", URL, headers={"x-stainless-retry-count": "1"}))
    await bench.send(httpx.Request("POST", URL, headers={"x-stainless-retry-count": "1"}))


async def test_an_sdk_may_retry_what_the_stack_sends_once_without_a_warning(
    world: World, recwarn: pytest.WarningsRecorder
) -> None:
    headers = {"x-stainless-retry-count": "1"}
    await Bench(world, 200).send(httpx.Request("POST", URL, headers=headers, files={"file": b"audio"}))
    assert len(recwarn) == 0


async def test_threads_that_look_for_an_sdk_at_the_same_moment_do_not_look_for_ever(world: World) -> None:
    bench = Bench(world, 200)
    bench.transport._searches_left = 1
    for _ in range(2):  # Both have seen the 1.
        bench.transport._detect_sdk_retries(httpx.Request("POST", URL), RetryPolicy())
    await bench.send()
    assert bench.transport._is_plain


async def test_the_record_separates_waits_from_time_on_the_wire(world: World) -> None:
    statuses = iter([503, 503, 200])

    async def wire(request: httpx.Request) -> Answer:
        await world.sleep(bench.clock, 2.0)
        return next(statuses)

    bench = Bench(world, wire)
    record = (await bench.send()).extensions["stkai"]
    assert (record.attempts, record.backed_off, record.on_wire) == (3, 1.5, 6.0)


async def test_each_retry_is_reported_with_its_delay_and_cause(world: World) -> None:
    bench = Bench(world, busy(429, 7), httpx.ReadError("reset"), 200)
    await bench.send()
    assert bench.log.of(RetryScheduled) == [
        RetryScheduled(call=CALL, attempt=1, delay=7.0, cause="429 Too Many Requests"),
        RetryScheduled(
            call=dataclasses.replace(CALL, attempt=2), attempt=2, delay=1.0, cause="ReadError: reset"
        ),
    ]


async def test_after_the_last_attempt_the_last_response_is_returned_unread(world: World) -> None:
    bench = Bench(world, 500, 502, 500, httpx.Response(503, headers={"X-Last": "1"}, content=b"sorry"))
    response = await bench.send()
    assert (response.status_code, response.headers["X-Last"]) == (503, "1")
    assert response.extensions["stkai"].attempts == 4
    assert bench.wire.open == 1
    assert not response.is_closed
    assert await world.read(response) == b"sorry"


async def test_after_the_last_attempt_the_last_error_itself_is_raised(world: World) -> None:
    errors = [httpx.ConnectError(str(number)) for number in range(4)]
    bench = Bench(world, *errors)
    request = httpx.Request("POST", URL)
    with pytest.raises(httpx.ConnectError) as caught:
        await bench.send(request)
    assert caught.value is errors[-1]
    assert caught.value.request is request
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert bench.wire.open == 0


@pytest.mark.parametrize("error", FINAL, ids=repr)
async def test_a_final_error_is_raised_unchanged_at_once(world: World, error: httpx.RequestError) -> None:
    for script in ([error], [503, error]):
        bench = Bench(world, *script)
        with pytest.raises(httpx.RequestError) as caught:
            await bench.send()
        assert caught.value is error
        assert bench.wire.open == 0


@pytest.mark.parametrize("first", [500, httpx.ReadError("reset")], ids=repr)
async def test_a_request_that_the_server_may_have_acted_on_is_sent_once_if_the_policy_says_so(
    world: World, first: int | Exception
) -> None:
    bench = Bench(world, first, policy=RetryPolicy(retry_unknown=False))
    if isinstance(first, int):
        assert (await bench.send()).status_code == first
    else:
        with pytest.raises(httpx.ReadError) as caught:
            await bench.send()
        assert caught.value is first
    assert len(bench.wire.requests) == 1


async def test_the_wait_is_never_shorter_than_the_server_asks(world: World) -> None:
    bench = Bench(
        world,
        busy(429, 2.5),
        busy(503, "Tue, 01 Jan 2030 00:00:30 GMT"),
        busy(500, 1),
        200,
        random=lambda: 0.5,
    )
    await bench.send()
    assert bench.clock.sleeps == pytest.approx([2.5 + 0.0625, 27.4375 + 0.125, 2.25])


@pytest.mark.parametrize("where", ["listener", "random", "sleep"])
async def test_an_interrupt_outside_the_attempts_leaves_nothing_open(world: World, where: str) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*args: object) -> Any:
        raise Interrupt

    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            raise Interrupt

        async def asleep(self, seconds: float) -> None:
            raise Interrupt

    def listen(event: object) -> None:
        if isinstance(event, RetryScheduled):
            raise Interrupt

    contexts: dict[str, dict[str, Any]] = {
        "sleep": {"clock": Clock()},
        "listener": {"listener": listen},
        "random": {"random": interrupt},
    }
    bench = Bench(world, 503, 200, **contexts[where])
    with pytest.raises(Interrupt):
        await bench.send()
    assert bench.wire.open == 0
    assert len(bench.wire.requests) == 1


# Options of one call


async def test_a_call_can_be_sent_once_or_with_its_own_policy(world: World) -> None:
    bench = Bench(world, 503, 503, 409, 200)
    assert (await bench.send(retry=None)).status_code == 503
    assert (await bench.send(retry=RetryPolicy(max_retries=0))).status_code == 503
    only_409 = RetryPolicy(1, initial_delay=3.0, retry_on_status_codes=[409])
    assert (await bench.send(retry=only_409)).status_code == 200
    assert bench.clock.sleeps == [3.0]


async def test_a_call_that_is_sent_once_raises_the_error_itself(world: World) -> None:
    error = httpx.ConnectError("refused")
    bench = Bench(world, error)
    with pytest.raises(httpx.ConnectError) as caught:
        await bench.send(retry=None)
    assert caught.value is error


@pytest.mark.parametrize("given", [3, False, "no", RetryPolicy])
def test_a_retry_option_that_is_not_a_policy_is_refused(given: Any) -> None:
    with pytest.raises(stkai.InvalidArgumentError, match="RetryPolicy"):
        RequestOptions(retry=given)


@pytest.mark.parametrize("given", [3, "no", RetryPolicy])
def test_a_layer_refuses_anything_but_a_policy(given: Any) -> None:
    wire = Wire()
    for make in (retry, lambda it: RetryTransport(wire, it), lambda it: AsyncRetryTransport(wire, it)):
        with pytest.raises(ConfigurationError, match="RetryPolicy"):
            make(given)


def test_the_default_policy_is_used_if_none_is_given() -> None:
    assert (
        retry().policy == RetryTransport(Wire()).policy == AsyncRetryTransport(Wire()).policy == RetryPolicy()
    )


# The rest


def test_tenacity_is_imported_for_a_second_attempt_even_if_an_import_of_it_was_interrupted() -> None:
    program = """if True:
        import os, signal, sys, httpx, stkai, stkai._retry
        from stkai.transports import RetryTransport

        class CtrlC:
            def find_spec(self, name, *_):
                if name == "tenacity.wait":
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), signal.SIGINT)

        def send():
            return transport.handle_request(httpx.Request("GET", "http://localhost")).status_code

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, CtrlC())
        statuses = iter([200, 503, 503, 200])
        wire = httpx.MockTransport(lambda request: httpx.Response(next(statuses)))
        transport = RetryTransport(wire, stkai.RetryPolicy(initial_delay=0))
        print(send(), "tenacity" in sys.modules)
        try:
            send()
        except KeyboardInterrupt:
            print(send(), "tenacity" in sys.modules)
    """
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert output.stdout.split() == ["200", "False", "200", "True"]


async def test_a_refused_answer_is_closed_if_the_import_of_tenacity_is_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stkai.transports._retry.flow._tenacity", interrupt)
    bench = Bench(world, 503)
    with pytest.raises(KeyboardInterrupt):
        await bench.send()
    assert (len(bench.wire.requests), bench.wire.open) == (1, 0)


@pytest.mark.parametrize("reading", range(1, 12))
async def test_an_interrupt_while_the_clock_is_read_leaves_no_answer_open(
    world: World, reading: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(world, 503, 200)
    read, readings = bench.clock.monotonic, itertools.count(1)

    def interrupted() -> float:
        if next(readings) == reading:
            raise KeyboardInterrupt
        return read()

    monkeypatch.setattr(bench.clock, "monotonic", interrupted)
    try:
        response = await bench.send()
    except KeyboardInterrupt:
        pass
    else:
        await world.close(response)
    assert bench.wire.open == 0


async def test_the_outcome_of_a_call_stands_if_no_file_can_be_opened_to_import_tenacity(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("stkai.transports._retry.flow._tenacity", fail)
    bench = Bench(world, httpx.ConnectError("refused"), 503)
    with pytest.raises(httpx.ConnectError):
        await bench.send()
    response = await bench.send()
    assert (response.status_code, len(bench.wire.requests), bench.wire.open) == (503, 2, 1)
    await world.close(response)


OUTCOMES = st.sampled_from(
    [
        200,
        404,
        408,
        429,
        500,
        503,
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        "final",
        "broken",
    ]
)


@given(
    script=st.lists(st.tuples(OUTCOMES, st.none() | st.integers(0, 100)), min_size=1, max_size=6),
    retries=st.integers(0, 4),
    chance=st.floats(0, 1, exclude_max=True),
    deadline=st.none() | st.integers(1, 100),
    buffered=st.booleans(),
    unknown=st.booleans(),
)
def test_whatever_happens_attempts_and_waits_are_bounded_and_the_last_outcome_is_returned(
    script: list[tuple[Any, int | None]],
    retries: int,
    chance: float,
    deadline: int | None,
    buffered: bool,
    unknown: bool,
) -> None:
    assume(buffered or not any(outcome == "broken" for outcome, _ in script))
    asked = [after if isinstance(outcome, int) else None for outcome, after in script]
    answers: list[Answer] = []
    for outcome, after in script:
        if outcome == "broken":
            answers.append(broken())
        elif outcome == "final":
            answers.append(httpx.UnsupportedProtocol("ftp"))
        else:
            answers.append(busy(outcome, after) if isinstance(outcome, int) else outcome)
    world = World("sync")
    policy = RetryPolicy(retries, deadline=deadline, retry_unknown=unknown)
    bench = Bench(world, *answers, *[200] * 5, policy=policy, random=lambda: chance)
    result: httpx.Response | httpx.RequestError
    try:
        result = world.run(bench.send_buffered() if buffered else bench.send())
    except httpx.RequestError as error:
        result = error
    sent = len(bench.wire.requests)
    assert sent <= retries + 1
    assert len(bench.clock.sleeps) == sent - 1
    for attempt, seconds in enumerate(bench.clock.sleeps):
        assert seconds >= max(policy.backoff(attempt + 1), asked[attempt] or 0)
    assert deadline is None or bench.clock.monotonic() < deadline
    last = [*answers, *[200] * 5][sent - 1]
    if isinstance(result, httpx.Response):
        status = last.status_code if isinstance(last, httpx.Response) else last
        assert (result.status_code, result.extensions["stkai"].attempts) == (status, sent)
        assert bench.wire.open == (0 if buffered else 1)
    else:
        assert result is last or isinstance(result, httpx.ReadError)
        assert bench.wire.open == 0
