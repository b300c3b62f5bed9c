"""Whatever servers, networks and callers do, in any order, the promises hold: a whole stack in virtual time."""

import itertools
import math
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from stkai import AimdLimiter, RetryPolicy, TokenBucket
from stkai.testing import FakeClock

from ..conftest import MORE
from ..support.crowd import most_in_excess
from ..support.wire import Wire
from ..support.world import World
from .scripted import Ledger, Sending, Step, Tokens, conserved
from .stacks import client_of, transport_of

TICK = 1e-6
RATE = 2.0

afters = st.sampled_from(["1", "0.5", "7", "30", "100", "0", "-1", "nan", "soon", "1e3"])
statuses = st.sampled_from([200, 200, 201, 400, 401, 404, 408, 429, 429, 500, 503, 503])
steps = st.builds(
    Step,
    status=statuses,
    after=st.none() | afters,
    delay=st.sampled_from([0.0, 0.0, 0.1, 3.0, 40.0]),
    breaks=st.sampled_from([None, None, None, "connect", "before", "body", "gzip"]),
)
scripts = st.lists(steps, max_size=12)
policies = st.builds(
    RetryPolicy,
    st.integers(0, 4),
    initial_delay=st.sampled_from([0.0, 0.5, 4.0]),
    retry_unknown=st.booleans(),
    max_retry_after=st.sampled_from([5.0, 60.0]),
)
limiters = st.sampled_from(["none", "bucket", "adaptive", "aimd"])
chances = st.sampled_from([0.0, 0.5, 0.999])


def limiter_of(kind: str, max_wait_time: float | None) -> TokenBucket | AimdLimiter | None:
    if kind == "bucket":
        return TokenBucket(RATE * 10, 10.0, burst=3, max_wait_time=max_wait_time)
    if kind == "adaptive":
        return AimdLimiter(RATE * 10, 10.0, max_wait_time=max_wait_time)
    if kind == "aimd":
        return AimdLimiter(RATE * 10, 10.0, max_wait_time=max_wait_time, penalty_factor=0.5)
    return None


# What must hold


def check_attempts(sendings: list[Sending], policy: RetryPolicy) -> None:
    refused = sum(sending.step.status == 401 for sending in sendings)
    assert len(sendings) <= policy.max_retries + 1 + refused, "attempts <= max, and one more after each 401"


def check_patience(
    sendings: list[Sending], policy: RetryPolicy, queue: TokenBucket | AimdLimiter | None
) -> None:
    for before, after in itertools.pairwise(sendings):
        if before.answered < math.inf and before.step.status in {408, 429, 500, 503}:
            assert after.sent >= before.answered + before.step.asked - TICK, "never earlier than asked"
            if before.step.status != 429 or not isinstance(
                queue, AimdLimiter
            ):  # It decides how long to wait.
                assert before.step.asked <= policy.max_retry_after


def check_pauses(sendings: list[Sending]) -> None:
    for refused in sendings:
        if refused.step.status == 429 and refused.answered < math.inf:
            until = refused.answered + refused.step.asked - TICK
            early = [s.sent for s in sendings if refused.answered < s.sent < until]
            assert early == [], (
                "under the adaptive limiter nobody comes back before the instant that a 429 named"
            )


def check_rate(sendings: list[Sending], limiter: TokenBucket | AimdLimiter) -> None:
    # Gaps vary by a tenth under the adaptive limiter, and its burst by its rate.
    adaptive = isinstance(limiter, AimdLimiter)
    spread, burst = (0.9, max(3.0, 6 * RATE)) if adaptive else (1.0, 3.0)
    # What was never sent is in no window.
    instants = [sending.sent for sending in sendings if sending.step.breaks != "connect"]
    assert most_in_excess(instants, RATE / spread) <= burst / spread + TICK, "never above the rate"


def check_outcome(outcome: Any, sendings: list[Sending]) -> None:
    if isinstance(outcome, httpx.Response):
        last = sendings[-1].step
        assert (outcome.status_code, last.breaks) == (last.status, None), "the last answer is what comes out"
        assert outcome.content == b"whole"
        assert len(sendings) <= outcome.extensions["stkai"].attempts
    else:
        assert isinstance(outcome, httpx.TransportError), repr(outcome)
        assert "authorization" not in outcome.request.headers


# Sequential callers, in plain sync code


@given(
    script=scripts,
    calls=st.integers(1, 4),
    policy=policies,
    limiter=limiters,
    max_wait_time=st.sampled_from([None, 5.0, 45.0]),
    deadline=st.none() | st.sampled_from([0.25, 5.0, 60.0]),
    token_delay=st.sampled_from([0.0, 2.0]),
    chance=chances,
)
@settings(max_examples=100 * MORE)
def test_the_promises_hold_for_any_sequence_of_calls(
    script: list[Step],
    calls: int,
    policy: RetryPolicy,
    limiter: str,
    max_wait_time: float | None,
    deadline: float | None,
    token_delay: float,
    chance: float,
) -> None:
    clock = FakeClock(1000.0)
    world = World("sync")
    ledger = Ledger(world, clock, script)
    queue = limiter_of(limiter, max_wait_time)
    if deadline is not None:
        token_delay = 0.0  # A provider that moves the clock in one step cannot be abandoned half-way.
    client = client_of(
        world,
        auth=None if limiter == "none" else Tokens(clock, token_delay),
        rate_limit=queue,
        retry=policy,
        transport=ledger.wire,
        clock=clock,
        random=lambda: chance,
        listener=lambda _: None,
    )
    for number in range(calls):
        start = clock.monotonic()
        try:
            outcome: object = client.post(f"https://api.example.com/{number}", deadline=deadline)
        except httpx.TransportError as error:
            outcome = error
        own = ledger.of(f"/{number}")
        event(type(outcome).__name__)
        check_outcome(outcome, own) if own else None
        check_attempts(own, policy)
        check_patience(own, policy, queue)
        if deadline is not None:
            assert clock.monotonic() <= start + deadline + TICK, "the deadline holds to within a tick"
    if queue is not None:
        check_rate(ledger.sendings, queue)
        assert conserved(queue, clock.monotonic())
    if isinstance(queue, AimdLimiter):
        check_pauses(ledger.sendings)
    assert ledger.wire.open == 0, "everything is closed"


# Concurrent callers, some of whom give up


starts = st.sampled_from([0.0, 0.0, 0.05, 1.0, 10.0])
patience = st.none() | st.sampled_from([0.0, 0.05, 0.7, 2.0, 20.0])


@pytest.mark.parametrize("name", ["asyncio", "trio"])
@given(
    script=scripts,
    callers=st.lists(st.tuples(starts, patience), min_size=1, max_size=6),
    policy=policies,
    limiter=limiters,
    token_delay=st.sampled_from([0.0, 2.0]),
    chance=chances,
)
@settings(max_examples=40 * MORE, suppress_health_check=[HealthCheck.too_slow])
def test_the_promises_hold_for_concurrent_calls_and_cancellations(
    name: Any,
    script: list[Step],
    callers: list[tuple[float, float | None]],
    policy: RetryPolicy,
    limiter: str,
    token_delay: float,
    chance: float,
) -> None:
    clock = FakeClock(1000.0)
    world = World(name)
    ledger = Ledger(world, clock, script)
    queue = limiter_of(limiter, None)
    client = client_of(
        world,
        auth=Tokens(clock, token_delay),
        rate_limit=queue,
        retry=policy,
        transport=ledger.wire,
        clock=clock,
        random=lambda: chance,
        listener=lambda _: None,
    )
    outcomes: dict[int, object] = {}

    async def call(number: int, start: float) -> None:
        await clock.asleep(start)
        try:
            outcomes[number] = await client.post(f"https://api.example.com/{number}")
        except httpx.TransportError as error:
            outcomes[number] = error

    async def caller(number: int, start: float, seconds: float | None) -> None:
        async with anyio.create_task_group() as group:

            async def give_up(seconds: float) -> None:
                await clock.asleep(start + seconds)
                group.cancel_scope.cancel()

            if seconds is not None:
                group.start_soon(give_up, seconds)
            await call(number, start)
            group.cancel_scope.cancel()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number, (start, seconds) in enumerate(callers):
                group.start_soon(caller, number, start, seconds)

    world.run(main())
    for number, (_, seconds) in enumerate(callers):
        own = ledger.of(f"/{number}")
        check_attempts(own, policy)
        check_patience(own, policy, queue)
        assert number in outcomes or seconds is not None, (
            "every call ends in an answer, an error, or as was asked"
        )
        if number in outcomes:
            check_outcome(outcomes[number], own)
        event(type(outcomes.get(number, "cancelled")).__name__)
    if queue is not None:
        check_rate(ledger.sendings, queue)
        assert conserved(queue, clock.monotonic())
    if isinstance(queue, AimdLimiter):
        check_pauses(ledger.sendings)
    assert ledger.wire.open == 0, "everything is closed"


# Headers

NAMES = (
    *(b"Retry-After", b"Date", b"RateLimit", b"RateLimit-Policy"),
    *(b"RateLimit-Limit", b"RateLimit-Remaining", b"RateLimit-Reset"),
    *(b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset"),
    *(b"X-RateLimit-Limit-Requests", b"X-RateLimit-Remaining-Requests", b"X-RateLimit-Reset-Requests"),
    *(b"Anthropic-RateLimit-Requests-Limit", b"Anthropic-RateLimit-Requests-Remaining"),
    b"Anthropic-RateLimit-Requests-Reset",
)
pieces = st.sampled_from(
    [
        *("1", "9", "1e9", "-1", "nan", "inf", "\u0663", "+9999", "99999999999999999999", "1m30s", "20ms"),
        *(",", ";", "=", '"', ":", " ", "r=", "t=", "q=", "w=", "default", "GMT"),
        "Fri, 31 Dec 1999 23:59:59 GMT",
    ]
)
values = st.lists(pieces, max_size=6).map(lambda words: "".join(words).strip().encode()) | st.binary(
    max_size=30
)
fields = st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=8)


@given(answers=st.lists(st.tuples(st.sampled_from([200, 429, 503]), fields), max_size=4), limiter=limiters)
@settings(max_examples=100 * MORE)
def test_no_header_breaks_a_call_or_makes_it_wait_longer_than_allowed(
    answers: list[tuple[int, list[tuple[bytes, bytes]]]], limiter: str
) -> None:
    clock = FakeClock(1000.0)
    world = World("sync")
    policy = RetryPolicy(max_retries=4, max_retry_after=20.0)
    wire = Wire(*(httpx.Response(status, headers=headers) for status, headers in answers), 200, 200)
    transport = transport_of(
        world,
        rate_limit=limiter_of(limiter, 30.0),
        retry=policy,
        transport=wire,
        clock=clock,
        listener=lambda _: None,
    )
    with httpx.Client(transport=transport) as client:
        try:
            response = client.post("https://api.example.com/")
        except httpx.TransportError:
            pass
        else:
            assert response.status_code in {200, 429, 503}
    # Each of the five attempts waits at most for a permit, and then for a Retry-After with its jitter.
    assert clock.monotonic() - 1000.0 <= 5 * (30.0 + 20.0 + 16.0)
    assert wire.open == 0
