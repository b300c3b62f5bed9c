"""The retry layer over limiters: waits are not waited twice, and refusals of one's own are not retried."""

import httpx
import pytest

from stkai import (
    AimdLimiter,
    RetryPolicy,
    RetryScheduled,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import Attempt, Flow, Layer, LayerTransport, adaptive, retry, token_bucket

from ...support.event_log import CALL, EventLog
from ...support.world import World
from .bench import URL, busy

pytestmark = pytest.mark.both_packages


async def test_a_paced_response_needs_no_separate_sleep(world: World) -> None:
    log = EventLog()
    clock = FakeClock()
    limiter = AimdLimiter(60, 60)
    stack = StackBuilder((retry(), adaptive(limiter)), clock=clock, listener=log, random=lambda: 0.0)
    wire = world.wire(busy(429, 5), 200)
    response = await world.send(world.build(stack, wire), httpx.Request("POST", URL))
    assert response.status_code == 200
    assert log.of(RetryScheduled) == [
        RetryScheduled(call=CALL, attempt=1, delay=0.0, cause="429 Too Many Requests")
    ]
    record = response.extensions["stkai"]
    assert (record.attempts, record.backed_off) == (2, 0.0)
    assert record.queued == pytest.approx(sum(clock.sleeps))
    assert clock.monotonic() >= 5.0
    assert wire.open == 1


def pacing(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
    """A layer that handles the wait after a 429, and ignores other failures."""
    response = yield from layer.forward(request, attempt)
    if response.status_code == 429:
        attempt.paced = True
    return response


async def test_a_paced_failure_does_not_pace_the_next_one(world: World) -> None:
    clock = FakeClock()
    stack = StackBuilder((retry(), Layer("pacing", pacing)), clock=clock, random=lambda: 0.0)
    response = await world.send(world.build(stack, world.wire(429, 503, 200)), httpx.Request("POST", URL))
    assert clock.sleeps == [1.0]
    assert response.extensions["stkai"].backed_off == 1.0


async def test_a_refusal_that_a_limiter_excuses_uses_up_no_retry(world: World) -> None:
    def excusing(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
        response = yield from layer.forward(request, attempt)
        attempt.paced = attempt.excused = response.status_code == 429
        return response

    wire = world.wire(429, 503, 429, 429, 503, 503)
    stack = StackBuilder((retry(RetryPolicy(2)), Layer("excusing", excusing)), clock=FakeClock())
    response = await world.send(world.build(stack, wire), httpx.Request("POST", URL))
    assert (response.status_code, len(wire.requests)) == (503, 6), (
        "three refusals are excused, two are retried"
    )


@pytest.mark.parametrize("limit", [1.0, 599.0])
async def test_a_refused_wait_is_not_retried(world: World, limit: float) -> None:
    clock = FakeClock()
    bucket = TokenBucket(1, 600, burst=1, max_wait_time=limit)
    stack = StackBuilder((retry(), token_bucket(bucket)), clock=clock)
    wire = world.wire(200)
    transport = world.build(stack, wire)
    await world.send(transport, httpx.Request("POST", URL))
    request = httpx.Request("POST", URL)
    with pytest.raises(TokenAcquisitionTimeoutError) as caught:
        await world.send(transport, request)
    assert caught.value.request is request
    assert (clock.sleeps, len(wire.requests)) == ([], 1)


async def test_the_attempts_of_a_call_share_its_maximum_wait(world: World) -> None:
    clock = FakeClock()
    bucket = TokenBucket(1, 10, burst=1, max_wait_time=15.0)
    stack = StackBuilder((retry(RetryPolicy(initial_delay=0)), token_bucket(bucket)), clock=clock)
    transport = world.build(stack, world.wire(200, 503, 503))
    await world.send(transport, httpx.Request("POST", URL))
    with pytest.raises(TokenAcquisitionTimeoutError) as caught:
        await world.send(transport, httpx.Request("POST", URL))
    assert [caught.value.waited, caught.value.required] == pytest.approx([10.0, 20.0])
    assert sum(clock.sleeps) == pytest.approx(10.0)


@pytest.mark.no_cover
@pytest.mark.worlds("asyncio", "trio")
async def test_a_batch_with_a_queue_longer_than_the_maximum_wait_completes(world: World) -> None:
    clock = FakeClock()
    chances = iter(number * 0.618 % 1 for number in range(10_000))
    stack = StackBuilder(
        (retry(), token_bucket(TokenBucket(10, 60, burst=1))), clock=clock, random=lambda: next(chances)
    )
    transport = world.build(stack, world.wire(lambda _: 200))
    statuses = await world.gather(*[lambda: world.send(transport, httpx.Request("POST", URL))] * 28)
    assert [response.status_code for response in statuses] == [200] * 28
    assert clock.monotonic() == pytest.approx(27 * 6.0)
