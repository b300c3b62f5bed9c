"""A limit of the requests that are on their way: no slot is ever lost, and none is taken twice."""

import asyncio
import gc
import sys
import threading
from collections import deque
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import stkai
from stkai import (
    AimdLimiter,
    AllOf,
    ConfigurationError,
    DeadlineExceededError,
    InFlight,
    RetryPolicy,
    StackBuilder,
    TokenAcquisitionTimeoutError,
    TokenBucket,
)
from stkai.testing import FakeClock
from stkai.transports import Attempt, Call, Turn, limiter, play, retry

from ...support.clients import Body
from ...support.crowd import took
from ...support.wire import finish
from ...support.world import World

URL = "https://api.example.com/v1"


def streamed(status: int = 200, *more: Exception) -> httpx.Response:
    return httpx.Response(status, stream=Body(b"x", b"x", b"x", *more))


def post() -> httpx.Request:
    return httpx.Request("POST", URL)


def stack_of(world: World, policy: stkai.Limiter, *answers: Any, clock: FakeClock | None = None) -> Any:
    stack = StackBuilder([retry(RetryPolicy(initial_delay=0)), limiter(policy)], clock=clock or FakeClock())
    return world.build(stack, world.wire(*answers))


async def test_a_slot_is_taken_until_the_body_has_been_read(world: World) -> None:
    policy = InFlight(2)
    transport = stack_of(world, policy, streamed(), 200)
    response = await world.send(transport, post())
    assert policy.busy == 1
    await world.read(response)
    assert policy.busy == 0
    second = await world.send(transport, post())
    assert policy.busy == 1, "a body that is known to be empty is still to be read"
    await world.close(second)
    assert policy.busy == 0


async def test_an_error_of_the_deadline_says_what_was_not_sent(world: World) -> None:
    transport = stack_of(world, InFlight(1), streamed(), 200)
    held = await world.send(transport, post())
    with stkai.options(deadline=2.0), pytest.raises(DeadlineExceededError, match="of 2 s: nothing was sent"):
        await world.send(transport, post())
    await world.close(held)
    transport = stack_of(world, TokenBucket(1, 10.0), 503)
    with stkai.options(deadline=3.0), pytest.raises(DeadlineExceededError, match="number 2 was not sent"):
        await world.send(transport, post())


async def test_a_body_in_memory_that_was_not_read_yet_keeps_its_slot_until_it_is_closed(
    world: World,
) -> None:
    policy = InFlight(1)
    answer = httpx.Response(200, stream=httpx.ByteStream(b"x"))
    transport = world.build(StackBuilder([limiter(policy)]), httpx.MockTransport(lambda request: answer))
    response = await world.send(transport, post())
    assert policy.busy == 1
    await world.close(response)
    assert policy.busy == 0


async def test_an_answer_that_is_complete_in_memory_when_it_arrives_holds_no_slot(world: World) -> None:
    policy = InFlight(1)
    transport = world.build(
        StackBuilder([limiter(policy)]), httpx.MockTransport(lambda _: httpx.Response(200, text="x"))
    )
    response = await world.send(transport, post())
    assert (policy.busy, response.text) == (0, "x")


async def test_a_slot_is_free_when_the_body_is_closed_early_and_only_once(world: World) -> None:
    policy = InFlight(3)
    transport = stack_of(world, policy, streamed(), streamed())
    first, second = [await world.send(transport, post()) for _ in range(2)]
    for _ in range(3):
        await world.close(first)
    assert policy.busy == 1
    await world.close(second)
    assert policy.busy == 0


async def test_a_slot_is_free_when_the_body_breaks(world: World) -> None:
    policy = InFlight(1)
    transport = stack_of(world, policy, streamed(200, httpx.ReadError("reset")))
    response = await world.send(transport, post())
    with pytest.raises(httpx.ReadError):
        await world.chunks(response)
    assert policy.busy == 0


@pytest.mark.real_time
def test_the_number_in_flight_is_never_negative_although_other_threads_send_and_drop_responses() -> None:
    policy, others = InFlight(2), list[threading.Thread]()

    def send_and_drop() -> None:
        policy.ask(Turn(sources=policy.sources), 0.0)

    class Lost(deque[Any]):
        def __len__(self) -> int:
            if not others:  # Between the two numbers of which `busy` is the difference.
                others.append(threading.Thread(target=send_and_drop))
                others[0].start()
                others[0].join(0.1)
            return super().__len__()

    slots = policy._slots
    slots._lost = lost = Lost()
    slots._note_lost = lost.append
    assert policy.busy == 0
    others[0].join()
    assert policy.busy == 0


async def test_a_slot_is_free_when_the_response_is_dropped_unread(world: World) -> None:
    policy = InFlight(1)
    transport = stack_of(world, policy, streamed())
    response = await world.send(transport, post())
    assert policy.busy == 1
    del response
    gc.collect()
    assert took(policy, 0.0)


@pytest.mark.parametrize(("is_old", "found_after"), [(False, 10.0), (True, 40.0)])
async def test_a_request_that_waits_finds_the_slot_of_a_response_that_was_dropped_in_a_cycle(
    world: World, is_old: bool, found_after: float
) -> None:
    """As is an SDK's stream that is left early; a program whose requests all wait collects no garbage by itself."""
    clock = FakeClock()
    transport = stack_of(world, InFlight(1), streamed(), streamed(), clock=clock)
    gc.disable()
    try:
        cycle: list[Any] = [await world.send(transport, post())]
        cycle.append(cycle)
        if is_old:
            gc.collect()
        del cycle
        with stkai.options(max_wait_time=60.0):
            await world.send(transport, post())
    finally:
        gc.enable()
    assert clock.monotonic() < found_after


async def test_a_slot_is_free_when_the_response_after_an_error_is_dropped_unread(world: World) -> None:
    """Even if the wire keeps the error, whose traceback refers to the frames of the call."""
    policy, kept = InFlight(1), httpx.ReadError("reset")
    transport = stack_of(world, policy, kept, streamed())
    response = await world.send(transport, post())
    assert policy.busy == 1
    del response
    gc.collect()
    assert took(policy, 0.0)


def test_a_slot_is_free_when_a_permit_is_dropped_beside_an_adaptive_limiter() -> None:
    clock, policy = FakeClock(), InFlight(1)
    limits = AllOf(AimdLimiter(100, 1), policy)
    with limits.permit(clock=clock) as refused:
        refused.refused()  # From now on, the limiter looks for requests whose answers are late.
    clock.advance(5.0)
    permit = limits.permit(clock=clock).__enter__()
    assert policy.busy == 1
    del permit
    gc.collect()
    assert policy.busy == 0


async def test_a_slot_is_free_when_nothing_came_back(world: World) -> None:
    policy = InFlight(1)
    errors = [httpx.ConnectError("no"), httpx.ReadTimeout("slow"), RuntimeError("a bug"), KeyError("a bug")]
    for error in errors:
        transport = world.build(StackBuilder([limiter(policy)], clock=FakeClock()), world.wire(error))
        with pytest.raises(type(error)):
            await world.send(transport, post())
        assert policy.busy == 0


async def test_a_refused_attempt_gives_its_slot_back_before_the_next_one(world: World) -> None:
    policy = InFlight(1)
    transport = stack_of(world, policy, streamed(503), streamed(429), streamed())
    response = await world.send(transport, post())
    assert (response.status_code, response.extensions["stkai"].attempts, policy.busy) == (200, 3, 1)
    await world.close(response)
    assert policy.busy == 0


async def test_no_more_than_n_are_on_their_way_at_once_and_all_get_their_turn(world: World) -> None:
    clock, policy = FakeClock(), InFlight(3)
    most = now = 0
    lock = threading.Lock()

    async def answer(request: httpx.Request) -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        await world.sleep(clock, 1.0)
        with lock:
            now -= 1
        return 200

    def blocking(request: httpx.Request) -> int:
        return finish(answer(request))

    transport = world.build(
        StackBuilder([limiter(policy)], clock=clock), world.wire(answer if world.is_async else blocking)
    )

    async def one() -> None:
        await world.read(await world.send(transport, post()))

    await world.gather(*[one for _ in range(20)])
    assert most <= 3
    assert (policy.busy, policy.waiting) == (0, 0)


async def test_cancelled_requests_lose_no_slot(event_loop: World) -> None:
    clock, policy = FakeClock(), InFlight(2)
    held = [streamed() for _ in range(40)]
    transport = event_loop.build(StackBuilder([limiter(policy)], clock=clock), event_loop.wire(*held))

    responses = [await event_loop.send(transport, post()) for _ in range(2)]
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(event_loop.send, transport, post())
        await clock.asleep(5.0)
        group.cancel_scope.cancel()
    assert (policy.busy, policy.waiting) == (2, 0)
    for response in responses:
        await response.aclose()
    response = await event_loop.send(transport, post())
    await response.aclose()
    assert policy.busy == 0


class SlowToClose(Body):
    closed = False

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        return await super().__anext__()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


@pytest.mark.parametrize("status", [200, 503])
async def test_a_body_is_closed_if_its_call_is_cancelled_while_it_is_read(
    event_loop: World, status: int
) -> None:
    with anyio.CancelScope() as scope:
        body = SlowToClose(b"x", b"x", before=scope.cancel)
        wire = httpx.MockTransport(lambda _: httpx.Response(status, stream=body))
        stack = StackBuilder([retry(), limiter(InFlight(1))], clock=FakeClock())
        await stkai.AsyncHttpClient(event_loop.build(stack, wire)).post(URL)
    assert scope.cancelled_caught
    assert body.closed


@pytest.mark.parametrize("by_hand", [False, True])
def test_slots_of_a_loop_that_was_closed_with_calls_pending_are_free(by_hand: bool) -> None:
    clock, policy = FakeClock(), InFlight(2)

    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    client = httpx.AsyncClient(
        transport=StackBuilder([limiter(policy)], clock=clock).build_async(httpx.MockTransport(never))
    )

    async def hold() -> None:
        async with policy.permit(clock=clock):
            await asyncio.get_running_loop().create_future()

    async def start() -> list[asyncio.Task[Any]]:
        pending = [asyncio.ensure_future(hold() if by_hand else client.send(post())) for _ in range(2)]
        await clock.asleep(1.0)
        assert policy.busy == 2
        return pending

    async def take() -> None:
        async with policy.permit(clock=clock, max_wait_time=0.01):
            assert policy.busy == 1

    loop = asyncio.new_event_loop()
    pending = loop.run_until_complete(start())
    with pytest.raises(TokenAcquisitionTimeoutError):
        loop.run_until_complete(take())
    loop.close()
    clock.advance(1.0)
    asyncio.run(take())
    assert policy.busy == 0
    for task in pending:
        task._log_destroy_pending = False  # type: ignore[attr-defined] # Nobody can end them.


async def test_a_flow_that_is_played_by_hand_takes_a_slot(world: World) -> None:
    policy = InFlight(1)
    stack = world.build(StackBuilder([limiter(policy)]), world.wire())
    request = post()

    def played() -> None:
        operations, _ = play(stack.flow(request, Attempt(Call.start(request, 0.0))), httpx.Response(200))
        assert len(operations) == 1

    await anyio.to_thread.run_sync(played) if world.is_async else played()
    assert policy.busy == 0


async def test_the_wait_for_a_slot_ends_when_the_time_is_up_and_not_before(world: World) -> None:
    clock, policy = FakeClock(), InFlight(1, max_wait_time=7.0)
    transport = world.build(StackBuilder([limiter(policy)], clock=clock), world.wire(streamed()))
    response = await world.send(transport, post())
    with pytest.raises(TokenAcquisitionTimeoutError):
        await world.send(transport, post())
    assert clock.monotonic() == pytest.approx(7.0)
    await world.close(response)
    assert (policy.busy, policy.waiting) == (0, 0)


def test_a_slot_is_free_when_an_interrupt_cuts_off_what_was_to_free_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the finalizer of a body, or after the slot was taken."""
    policy = InFlight(1)
    stack = StackBuilder([limiter(policy)])
    client = httpx.Client(transport=stack.build(httpx.MockTransport(lambda _: streamed())))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # That of pytest keeps what it is shown.
    response: httpx.Response | None = client.send(post(), stream=True)
    with monkeypatch.context() as patch:
        patch.setattr(InFlight, "end", interrupted)
        del response
        gc.collect()
    gc.collect()
    assert policy.busy == 0
    turn: Turn | None = Turn()
    turn.sources = policy.sources  # type: ignore[union-attr]
    assert policy.ask(turn, 0.0) == 0.0  # type: ignore[arg-type]
    turn = None
    assert client.send(post()).status_code == 200
    assert policy.busy == 0


def test_a_finalizer_that_runs_in_the_middle_of_the_arithmetic_is_attended_to_later() -> None:
    policy = InFlight(1)
    turn = Turn()
    assert policy.ask(turn, 0.0) == 0.0
    with policy.lock:
        policy.end(turn, 1.0)
        assert policy.busy == 1
    assert took(policy, 1.0)


def test_a_signal_handler_cannot_ask_in_the_middle_of_the_arithmetic() -> None:
    policy = InFlight(1)
    with (
        policy.lock,
        pytest.raises(RuntimeError, match="a signal handler cannot use the client that it interrupted"),
    ):
        policy.ask(Turn(), 0.0)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3", None, float("nan"), float("inf")])
def test_n_is_a_whole_number_of_at_least_one(n: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^n must be a positive whole number, not"):
        InFlight(n)
    policy = InFlight(2)
    with pytest.raises(ConfigurationError, match=r"^n must be"):
        policy.update(n=n)
    assert policy.n == 2


def test_more_slots_are_used_at_once_and_fewer_as_requests_end() -> None:
    policy, turns = InFlight(1), [Turn() for _ in range(4)]
    assert [policy.ask(turn, 0.0) == 0 for turn in turns] == [True, False, False, False]
    policy.update(n=3)
    assert [policy.ask(turn, 1.0) == 0 for turn in turns[1:]] == [True, True, False]
    policy.update(n=1)
    for turn in turns[:2]:
        policy.end(turn, 2.0)
    assert policy.ask(turns[3], 2.0) != 0
    policy.end(turns[2], 3.0)
    assert policy.ask(turns[3], 3.0) == 0


def test_its_numbers_are_read_only_and_shown() -> None:
    policy: Any = InFlight(16, methods={"POST"})
    assert (policy.n, policy.methods, policy.max_wait_time) == (16, {"POST"}, None)
    assert repr(policy) == "InFlight(16, methods=['POST'])"
    assert repr(InFlight(2)) == "InFlight(2)"
    for name in ("n", "methods", "max_wait_time"):
        with pytest.raises(AttributeError):
            setattr(policy, name, 5)
    assert isinstance(policy, stkai.Limiter)
