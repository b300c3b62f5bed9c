"""The adaptive layer over scripted servers, in every world; and the arguments of its limiter."""

import math
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from stkai import (
    AimdLimiter,
    ConfigurationError,
    RateChanged,
    RequestOptions,
    RetryPolicy,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
    Waited,
)
from stkai.stores import MemoryStore
from stkai.testing import FakeClock
from stkai.transports import Turn, adaptive, retry, token_bucket

from ....support.event_log import CALL, EventLog
from ....support.gateways import LeakyBucket
from ....support.sender import QUOTA, answered
from ....support.wire import Wire
from ....support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/"


def limiter(**options: Any) -> AimdLimiter:
    return AimdLimiter(100, 60, **options)


def plain(penalty: float = 0.3, recovery: float = 0.05, **options: Any) -> AimdLimiter:
    return limiter(penalty_factor=penalty, recovery_factor=recovery, **options)


def use_up(policy: AimdLimiter, now: float) -> None:
    """Take all permits that are free at `now`."""
    turn = Turn()
    while not policy.ask(turn, now):
        turn = Turn()
    policy.leave(turn, now)


# The arguments


@pytest.mark.parametrize("value", [0, -0.1, 1.1, math.nan, True, "0.5"])
@pytest.mark.parametrize("name", ["min_rate_floor", "penalty_factor", "recovery_factor"])
def test_an_invalid_share_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a number above 0 and at most 1, not"):
        limiter(**{name: value})


def test_one_number_without_the_other_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match="time_window is missing"):
        AimdLimiter(100)
    with pytest.raises(ConfigurationError, match="max_requests is missing"):
        AimdLimiter(time_window=60)


@pytest.mark.parametrize("name", ["min_rate_floor", "penalty_factor", "recovery_factor", "max_cost"])
def test_a_share_of_an_unknown_quota_is_an_error_that_names_it(name: str) -> None:
    options: Any = {name: 0.5}
    with pytest.raises(ConfigurationError, match=f"{name} needs a quota"):
        AimdLimiter(**options)


def test_the_error_of_a_group_without_a_quota_says_what_to_do_if_it_is_unknown() -> None:
    with pytest.raises(
        ConfigurationError, match=r"share needs a quota: .*; if you do not know it, more than"
    ):
        AimdLimiter(share="team")


def test_with_units_alone_the_quota_of_requests_is_found() -> None:
    policy = AimdLimiter(None, 60, max_cost=1000)
    assert (policy.max_requests, policy.time_window, policy.max_cost) == (None, 60, 1000)
    assert repr(policy) == "AimdLimiter(quota not found yet, max_cost=1000 per 60 s, rate=5)"
    policy.update(max_cost=2000, time_window=30)
    assert (policy.max_cost, policy.time_window, policy.rate) == (2000, 30, 5)
    with pytest.raises(ConfigurationError, match="max_requests cannot be updated"):
        policy.update(max_requests=5)


def test_the_numbers_are_read_only_and_a_limiter_says_what_it_is() -> None:
    policy = AimdLimiter(600, 60, penalty_factor=0.5)
    assert repr(policy) == "AimdLimiter(600, 60, rate=10)"
    assert (policy.max_requests, policy.time_window, policy.rate) == (600, 60, 10)
    with pytest.raises(AttributeError):
        policy.max_requests = 5  # type: ignore[misc]
    assert (AimdLimiter().max_requests, AimdLimiter().time_window) == (None, None)
    assert repr(AimdLimiter()) == "AimdLimiter(quota not found yet, rate=5)"


@pytest.mark.parametrize(
    ("factors", "other"),
    [
        ({"penalty_factor": 0.4}, {"recovery_factor": 0.05}),
        ({"recovery_factor": 0.1}, {"penalty_factor": 0.3}),
    ],
)
def test_one_factor_alone_implies_the_default_of_the_other(
    factors: dict[str, float], other: dict[str, float]
) -> None:
    rates = []
    for policy in (limiter(**factors), limiter(**factors, **other)):
        policy.ask(turn := Turn(), 1.0)
        policy._adaptive.learn(turn, answered(429, 1.0, retry_after="0"))
        policy._adaptive.mode.release(1.0, 31.0, waiting=True)
        rates.append(policy.rate)
    assert rates[0] == rates[1] < QUOTA


def test_the_quota_changes_and_the_share_of_it_stays() -> None:
    policy = AimdLimiter(100, 60)
    rate = policy.rate
    policy.update(max_requests=200)
    assert policy.rate == pytest.approx(2 * rate)
    assert policy.max_requests == 200
    with pytest.raises(ConfigurationError, match="max_requests cannot be updated"):
        AimdLimiter().update(max_requests=200)


# The layer


class Bench:
    """An adaptive layer, under retry if asked for, over a scripted wire that records when each request arrives."""

    def __init__(
        self, world: World, policy: AimdLimiter, answers: Sequence[int | httpx.Response], **options: Any
    ) -> None:
        self.world, self.policy = world, policy
        self.clock = FakeClock(options.get("start", 0.0))
        self.log = EventLog()
        self.sent: list[tuple[float, int]] = []
        self._answers = list(answers)
        self.wire = Wire(self._answer)
        layers = [adaptive(policy)]
        if options.get("retry"):
            layers.insert(0, retry(options["retry"]))
        stack = StackBuilder(layers, clock=self.clock, listener=self.log, random=lambda: 0.0)
        self.transport = world.build(stack, self.wire)

    def _answer(self, request: httpx.Request) -> int | httpx.Response:
        self.sent.append((self.clock.monotonic(), int(request.url.path[1:] or 0)))
        return self._answers.pop(0) if self._answers else 200

    async def send(self, number: int = 0, method: str = "POST", **options: Any) -> httpx.Response:
        extensions = {"stkai": RequestOptions(**options)} if options else {}
        request = httpx.Request(method, f"{URL}{number}", extensions=extensions)
        return await self.world.send(self.transport, request)


def refusal(seconds: str | None = None) -> httpx.Response:
    return httpx.Response(429, headers={} if seconds is None else {"Retry-After": seconds})


async def test_a_refusal_is_a_response_and_holds_back_the_next_request(world: World) -> None:
    bench = Bench(world, limiter(), [refusal("7")])
    assert (await bench.send()).status_code == 429
    response = await bench.send()
    assert [instant for instant, _ in bench.sent] == [0, 7.0]
    assert response.extensions["stkai"].queued == 7.0


async def test_the_listener_is_notified_of_cuts_and_waits(world: World) -> None:
    bench = Bench(world, plain(), [refusal("7")])
    await bench.send()
    await bench.send()
    cut = RateChanged(call=CALL, old=QUOTA, new=QUOTA * (1 - 0.3), reason="429 Too Many Requests")
    assert bench.log.of(RateChanged) == [cut]
    assert sum(event.seconds for event in bench.log.of(Waited)) == 7.0


async def test_the_listener_is_notified_of_growth(world: World) -> None:
    bench = Bench(world, AimdLimiter(60, 60), [])
    for _ in range(30):
        await bench.send()
    changes = bench.log.of(RateChanged)
    assert changes
    assert all(event.new > 1.1 * event.old and event.reason == "no refusal since" for event in changes)
    assert [event.old for event in changes[1:]] == [event.new for event in changes[:-1]]
    assert bench.policy.rate > 0.5


async def test_a_429_tells_retry_that_the_wait_is_kept_and_another_answer_does_not(world: World) -> None:
    bench = Bench(world, plain(), [refusal("3"), 503, 200], retry=RetryPolicy(initial_delay=0.5))
    response = await bench.send()
    assert response.status_code == 200
    record = response.extensions["stkai"]
    assert record.attempts == 3
    assert record.queued == pytest.approx(3.0)
    assert record.backed_off == pytest.approx(1.0)
    assert bench.wire.open == 1


@pytest.mark.parametrize("status", [401, 403, 407, 408, 500, 503, 529])
async def test_an_answer_that_says_nothing_about_the_quota_ends_no_back_off(
    world: World, status: int
) -> None:
    policy = plain()
    bench = Bench(world, policy, [refusal("5"), status, refusal("5")])
    for _ in range(3):
        await bench.send()
    assert policy.rate == pytest.approx(0.7 * QUOTA, rel=0.01)
    assert policy._adaptive.mode.paused_until == pytest.approx(bench.sent[2][0] + 10.0)


@pytest.mark.parametrize("numbers", [(), (1200, 60)])
async def test_many_503s_without_any_429_are_warned_about_once(
    world: World, numbers: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(world, AimdLimiter(*numbers), [200, 503] * 100)
    for _ in range(39):
        bench.clock.advance(0.05)
        await bench.send()
    assert not caplog.records
    for _ in range(161):
        bench.clock.advance(0.05)
        await bench.send()
    assert len(caplog.records) == 1
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.messages[0].startswith(
        "20 answers were 503 and none was 429: the adaptive limiter does not treat 503 as"
    )


@pytest.mark.parametrize(
    "answer",
    [refusal("1"), refusal(), httpx.Response(200, headers={"RateLimit": "limit=10, remaining=5, reset=1"})],
)
async def test_a_server_that_refuses_otherwise_may_answer_503(
    world: World, answer: httpx.Response, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(world, AimdLimiter(), [503] * 19 + [answer] + [503] * 30)
    for _ in range(50):
        bench.clock.advance(0.05)
        await bench.send()
    assert not caplog.records


@pytest.mark.parametrize("status", [200, 302, 400, 404, 422])
async def test_an_answer_to_the_request_itself_was_accepted_by_the_quota(world: World, status: int) -> None:
    bench = Bench(world, plain(), [refusal("1"), status, refusal("1"), refusal("1")])
    for expected in (0.7, 0.7, 0.49, 0.49):
        await bench.send()
        assert bench.policy.rate == pytest.approx(expected * QUOTA, rel=0.01)


async def test_a_method_that_is_not_counted_needs_no_permit_and_teaches_nothing(world: World) -> None:
    bench = Bench(world, plain(methods={"POST"}), [refusal("30"), refusal("30")])
    for _ in range(2):
        assert (await bench.send(method="GET")).status_code == 429
    assert bench.policy.rate == QUOTA
    await bench.send()
    assert [instant for instant, _ in bench.sent] == [0, 0, 0]


@pytest.mark.parametrize("start", [0.0, 0.1, 1000.1, 123456.7])
async def test_a_pause_as_long_as_the_limit_is_waited_for(world: World, start: float) -> None:
    bench = Bench(world, limiter(max_wait_time=33.3), [refusal("33.3")], start=start)
    await bench.send()
    await bench.send()
    assert bench.sent[1][0] == pytest.approx(start + 33.3)


async def rejections_of(calls: int, transport: Any, world: World, clock: FakeClock) -> list[float]:
    """When those of so many simultaneous calls were rejected that were."""
    rejected: list[float] = []

    async def call() -> None:
        try:
            response = await world.send(transport, httpx.Request("POST", URL))
        except TokenAcquisitionTimeoutError:
            rejected.append(clock.monotonic())
        else:
            assert response.is_success

    async with anyio.create_task_group() as tasks:
        for _ in range(calls):
            tasks.start_soon(call)
    return rejected


async def test_at_a_start_a_call_is_rejected_once_successes_cannot_release_its_permit_in_time(
    event_loop: World,
) -> None:
    clock, sent = FakeClock(), list[float]()

    async def answer(_: httpx.Request) -> int:
        sent.append(clock.monotonic())
        await clock.asleep(0.1)
        return 200

    transport = event_loop.build(
        StackBuilder([adaptive(limiter(max_wait_time=5.0))], clock=clock), Wire(answer)
    )
    rejected = await rejections_of(60, transport, event_loop, clock)
    assert len(sent) >= 15
    assert rejected.count(0.0) >= 25
    assert max(sent + rejected) <= 5.0


@pytest.mark.parametrize(("burst", "most"), [(0, 20.0), (5, 10.0)])
async def test_while_the_rate_of_a_silent_server_is_to_be_found_no_call_is_rejected_for_it(
    event_loop: World, burst: int, most: float
) -> None:
    clock, bucket = FakeClock(), LeakyBucket(20.0, burst)

    async def answer(_: httpx.Request) -> int:
        status = 200 if bucket.admits(clock.monotonic()) else 429
        await clock.asleep(0.1 if status == 200 else 0.001)
        return status

    layers = [retry(RetryPolicy()), adaptive(AimdLimiter(max_wait_time=most))]
    transport = event_loop.build(StackBuilder(layers, clock=clock), Wire(answer))
    assert await rejections_of(60, transport, event_loop, clock) == []


async def test_a_call_of_a_group_is_rejected_only_if_the_whole_quota_would_be_too_slow_for_it(
    event_loop: World,
) -> None:
    clock, sent = FakeClock(), list[float]()
    group = AimdLimiter(300, 60, share="team", store=MemoryStore(clock), max_wait_time=10.0)

    def answer(_: httpx.Request) -> int:
        sent.append(clock.monotonic())
        return 200

    transport = event_loop.build(StackBuilder([adaptive(group)], clock=clock), Wire(answer))
    rejected = await rejections_of(100, transport, event_loop, clock)
    assert len(sent) >= 15
    assert rejected.count(0.0) >= 25


async def test_a_refused_call_comes_back_at_the_head_of_the_queue(event_loop: World) -> None:
    policy = plain(max_wait_time=None)
    bench = Bench(event_loop, policy, [refusal("10")], retry=RetryPolicy())
    use_up(policy, 0.0)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(bench.send, number)
            while policy.waiting <= number:
                await anyio.lowlevel.checkpoint()
    assert [number for _, number in bench.sent] == [0, 0, 1, 2, 3, 4]
    refused, again = bench.sent[0][0], bench.sent[1][0]
    assert again >= refused + 10.0


async def test_eight_refusals_at_once_cut_once_and_come_back_in_their_order(event_loop: World) -> None:
    policy, clock = plain(), FakeClock()
    log = EventLog()
    sent: list[tuple[float, int]] = []

    async def answer(request: httpx.Request) -> int | httpx.Response:
        sent.append((clock.monotonic(), int(request.url.path[1:])))
        if len(sent) > 8:
            return 200
        while len(sent) < 8:
            await anyio.lowlevel.checkpoint()
        return refusal("10")

    stack = StackBuilder(
        (retry(RetryPolicy()), adaptive(policy)), clock=clock, listener=log, random=lambda: 0.0
    )
    transport = event_loop.build(stack, Wire(answer))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(event_loop.send, transport, httpx.Request("POST", f"{URL}{number}"))
            while len(sent) <= number:
                await anyio.lowlevel.checkpoint()
    assert len(log.of(RateChanged)) == 1
    assert [number for _, number in sorted(sent[8:])] == list(range(8))
    assert sent[8][0] == pytest.approx(10.0)
    assert all(instant >= 10.0 for instant, _ in sent[8:])


async def test_a_turn_of_one_limiter_is_no_place_in_the_queue_of_another(world: World) -> None:
    clock, inner = FakeClock(start=100.0), TokenBucket(1, 5.0)
    for number in range(21):
        assert inner.ask(Turn(), 5.0 * number) == 0.0
    inner.ask(Turn(), 100.0)
    transport = world.build(StackBuilder((adaptive(plain()), token_bucket(inner)), clock=clock), Wire(200))
    request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(max_wait_time=1.0)})
    with pytest.raises(TokenAcquisitionTimeoutError) as caught:
        await world.send(transport, request)
    assert caught.value.required == 10.0
