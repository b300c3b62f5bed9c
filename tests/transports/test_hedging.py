"""Parallel attempts: with a hedging layer in the standard stack, every permit, connection and record is right."""

import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import stkai
from stkai import (
    AttemptFinished,
    CallFinished,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    StaticToken,
    TokenBucket,
)
from stkai.transports import auth, retry, token_bucket

from ..support.crowd import took
from ..support.event_log import EventLog
from ..support.threads import wait_until
from ..support.wire import Answer
from ..support.world import World
from . import hedge as hedging
from .hedge import hedge

URL = "https://api.example.com/v1"
pytestmark = [pytest.mark.real_time, pytest.mark.both_packages]


class Bench:
    """The standard stack with a hedging layer inside auth, on a wire whose answers come when the test says so."""

    def __init__(self, world: World, *answers: Any, max_retries: int = 0, burst: float = 10) -> None:
        self.world = world
        self.answers = list(answers)
        self.stopped = threading.Event()
        self.policy = TokenBucket(burst, 1000.0)
        self.log = EventLog()
        self.wire = world.wire(self._answer)
        stack = StackBuilder(
            (
                retry(RetryPolicy(max_retries, initial_delay=0)),
                auth(StaticToken("token")),
                hedge(0.05),
                token_bucket(self.policy),
            ),
            listener=self.log,
        )
        assert str(stack) == "retry > auth > hedge > token_bucket > wire"
        self.transport = world.build(stack, self.wire)
        self.arrived = 0
        self.lock = threading.Lock()

    def _answer(self, _: httpx.Request) -> Any:
        with self.lock:
            answer = self.answers[self.arrived]
            self.arrived += 1
        if not callable(answer):
            return answer
        return self._later(answer()) if self.world.is_async else self._slow(answer())

    async def _later(self, answer: Answer) -> Answer:
        await anyio.Event().wait()
        return answer

    def _slow(self, answer: Answer) -> Answer:
        assert self.stopped.wait(10)
        return answer

    async def send(self, **options: Any) -> httpx.Response:
        request = httpx.Request("POST", URL, content=b"body", extensions={"stkai": RequestOptions(**options)})
        return await self.world.send(self.transport, request)

    def permits(self) -> int:
        """How many are left."""
        left = 0
        while took(self.policy, stkai.SystemClock().monotonic()):
            left += 1
        return left

    def assert_closed(self) -> None:
        """Check that nothing is open, or will stay open."""
        if self.world.is_async:
            assert self.wire.open == 0
        else:
            wait_until(lambda: self.wire.open == 0)

    def settled(self) -> None:
        """Wait until the losing attempts have ended."""
        self.stopped.set()
        if not self.world.is_async:
            wait_until(lambda: self.wire.open <= 1)


def never() -> Answer:
    """An answer that comes too late."""
    return httpx.Response(200, headers={"X-Late": "1"})


def test_the_layer_has_at_most_sixty_lines() -> None:
    text = Path(hedging.__file__).read_text()
    assert len(text[text.index("def hedge(") :].splitlines()) <= 60


async def test_a_request_that_is_answered_in_time_is_not_hedged(world: World) -> None:
    bench = Bench(world, httpx.Response(200, content=b"first"))
    response = await bench.send()
    assert await world.read(response) == b"first"
    record = response.extensions["stkai"]
    assert (record.attempts, len(bench.wire.requests), bench.wire.open) == (1, 1, 0)
    assert bench.permits() == 9


async def test_the_second_attempt_wins_if_the_first_is_late(world: World) -> None:
    bench = Bench(world, never, httpx.Response(200, content=b"second"))
    response = await bench.send()
    bench.settled()
    assert await world.read(response) == b"second"
    assert response.extensions["stkai"].attempts == 2
    bench.assert_closed()
    assert {request.headers["authorization"] for request in bench.wire.requests} == {"Bearer token"}
    assert bench.wire.bodies == [b"body"] * 2
    assert bench.permits() == 8, "both were sent, so both have paid"
    assert bench.policy.waiting == 0
    (end,) = bench.log.of(CallFinished)
    assert (end.status, end.attempts) == (200, 2)


async def test_an_error_before_the_second_attempt_is_the_outcome(world: World) -> None:
    error = httpx.ReadError("reset")
    bench = Bench(world, error)
    with pytest.raises(httpx.ReadError) as caught:
        await bench.send()
    assert caught.value is error
    assert len(bench.wire.requests) == 1


async def test_retry_goes_on_after_a_hedge_and_counts_all_attempts(world: World) -> None:
    bench = Bench(world, never, 503, 200, max_retries=1)
    response = await bench.send()
    bench.settled()
    record = response.extensions["stkai"]
    assert (response.status_code, record.attempts) == (200, 3)
    await world.close(response)
    bench.assert_closed()
    numbers = [event.call.attempt for event in bench.log.events if type(event).__name__ == "AttemptStarted"]
    assert sorted(numbers) == [1, 2, 3], "no two attempts have one number"


async def test_an_error_of_one_attempt_leaves_the_answer_to_the_other(world: World) -> None:
    bench = Bench(world, never, httpx.ConnectError("refused"))

    def has_failed() -> bool:
        """Whether the second attempt has."""
        return len(bench.log.of(AttemptFinished)) > 0

    if world.is_async:

        async def later(answer: Answer) -> Answer:
            await world.until(has_failed)
            return answer

        bench._later = later  # type: ignore[method-assign]
    else:

        def release() -> None:
            wait_until(has_failed)
            bench.stopped.set()

        threading.Thread(target=release).start()
    response = await bench.send()
    assert response.headers["X-Late"] == "1"
    assert response.extensions["stkai"].attempts == 2
    await world.close(response)
    bench.assert_closed()


async def test_a_call_whose_permit_is_late_takes_one_permit_per_attempt_and_leaves_none_waiting(
    world: World,
) -> None:
    bench = Bench(world, 200, 200, 200, burst=1)
    await bench.send()
    with pytest.raises(stkai.TokenAcquisitionTimeoutError):
        await bench.send(max_wait_time=1.0)
    assert bench.policy.waiting == 0
    assert len(bench.wire.requests) == 1


async def test_the_record_has_the_times_of_the_attempt_that_won(world: World) -> None:
    bench = Bench(world, 200, 200, 200, burst=1)
    bench.policy = TokenBucket(3, 1.0, burst=1)  # The second request has to wait on a busy machine, too.
    stack = StackBuilder((hedge(0.02), token_bucket(bench.policy)), listener=[])
    bench.transport = world.build(stack, bench.wire)
    await world.close(await bench.send())
    start = time.monotonic()
    response = await bench.send()
    elapsed = time.monotonic() - start
    record = response.extensions["stkai"]
    assert record.attempts == 2
    assert 0.0 < record.queued <= elapsed, "one wait, not the sum of two at the same time"
    await world.close(response)


@pytest.mark.worlds("asyncio", "trio")
async def test_a_cancelled_hedge_cancels_both_attempts(world: World) -> None:
    bench = Bench(world, never, never)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.send)
        while bench.arrived < 2:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    bench.assert_closed()
    assert bench.policy.waiting == 0


async def test_the_deadline_ends_both_attempts(world: World) -> None:
    bench = Bench(world, never, never)
    with pytest.raises(stkai.DeadlineExceededError):
        await bench.send(deadline=0.2)
    bench.settled()
    bench.assert_closed()


async def test_a_one_shot_body_is_not_hedged(world: World) -> None:
    def chunks() -> Any:
        yield b"one"

    async def async_chunks() -> Any:
        yield b"one"

    bench = Bench(world, 200)
    request = httpx.Request("POST", URL, content=world.pick(chunks, async_chunks)())
    assert (await world.send(bench.transport, request)).status_code == 200
    assert bench.wire.bodies == [b"one"]
