"""The deadline of a call: every wait counts, and none exceeds it."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai import DeadlineExceededError, RequestOptions, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import (
    AsyncLayerTransport,
    Attempt,
    Call,
    Context,
    Flow,
    Layer,
    LayerTransport,
    Sleep,
    retry,
    token_bucket,
)
from stkai.transports._bodies import limited, reset_timeouts
from stkai.transports._call import ATTEMPT

from ..support.wire import Answer, Handler, Wire, of_streams
from ..support.world import World

pytestmark = pytest.mark.both_packages

URL = "https://api.example.com/v1"
PLAIN = Layer("plain", LayerTransport, AsyncLayerTransport)
KEYS = ("connect", "read", "write", "pool")


class Bench:
    """A stack of some layers over a scripted wire, on a clock that jumps."""

    def __init__(self, world: World, *layers: Layer) -> None:
        self.world, self.layers, self.clock = world, layers, FakeClock(1000.0)
        self.wire = Wire()

    def script(self, *script: Answer | Handler) -> None:
        self.wire = self.world.wire(*script)

    async def send(
        self, timeout: float | None = None, *, buffered: bool = False, **options: Any
    ) -> httpx.Response:
        request = httpx.Request("POST", URL, extensions={"stkai": RequestOptions(**options)})
        if timeout is not None:
            request.extensions["timeout"] = dict.fromkeys(KEYS, timeout)
        if buffered:
            call = Call.start(request, self.clock.monotonic(), buffered=True)
            request.extensions[ATTEMPT] = Attempt(call)
        stack = StackBuilder(self.layers, clock=self.clock, random=lambda: 0.0)
        return await self.world.send(self.world.build(stack, self.wire), request)

    @property
    def spent(self) -> float:
        return self.clock.monotonic() - 1000.0

    def timeouts(self, key: str = "read") -> list[float | None]:
        return [timeout[key] for timeout in self.wire.timeouts]

    def after(self, seconds: float, answer: Answer) -> Handler:
        """An answer that is slow, but within the read timeout."""

        async def handler(request: httpx.Request) -> Answer:
            allowed = request.extensions["timeout"]["read"]
            await self.world.sleep(self.clock, min(seconds, allowed))
            return answer if seconds < allowed else httpx.ReadTimeout("slow")

        return handler


class Slow(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of ten bytes that arrive one by one, each after a delay; then a timeout, if there is one to raise."""

    def __init__(self, clock: FakeClock, seconds: float, error: Exception | None = None) -> None:
        self.clock, self.seconds, self.error = clock, seconds, error

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(10):
            self.clock.advance(self.seconds)
            yield b"."
        if self.error:
            raise self.error

    def __aiter__(self) -> AsyncIterator[bytes]:
        return Chunks(iter(self))


class Chunks:
    """An async iterator that is not a generator: abandoned in the middle, it leaves nothing behind."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration


async def test_an_answer_that_comes_after_the_deadline_is_closed_and_refused(world: World) -> None:
    bench = Bench(world, PLAIN)

    def late(_: httpx.Request) -> int:
        bench.clock.advance(10.0)
        return 200

    bench.script(late)
    with pytest.raises(DeadlineExceededError):
        await bench.send(deadline=5.0)
    assert bench.wire.open == 0


# Timeouts


@pytest.mark.worlds("sync")
async def test_a_request_whose_thread_begins_after_the_deadline_is_not_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, late = Bench(world, PLAIN), list[Callable[[], object]]()
    bench.script(200)

    def start(work: Callable[[], object]) -> None:
        late.append(work)
        bench.clock.advance(5.0)

    monkeypatch.setattr("stkai._abandonable.start_in_thread", start)
    with pytest.raises(DeadlineExceededError):
        await bench.send(deadline=1.0)
    late.pop()()
    assert bench.wire.requests == []


async def test_timeouts_are_cut_to_the_time_left(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(503, 503, 200)
    await bench.send(timeout=9.0, deadline=10.0)
    for key in KEYS:
        assert bench.timeouts(key) == [9.0, 9.0, 8.5]


async def test_a_request_without_timeouts_gets_the_time_left(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(503, 200)
    await bench.send(deadline=10.0)
    assert bench.timeouts() == [10.0, 9.5]
    assert bench.timeouts("pool") == [10.0, 9.5]


def test_a_disabled_timeout_is_cut_as_well_and_the_request_is_unchanged() -> None:
    timeout = {"connect": 3.0, "read": None}
    request = httpx.Request("GET", URL, extensions={"timeout": timeout, "x": 1})
    sent = limited(request, 4.0)
    assert sent.extensions == {"timeout": {"connect": 3.0, "read": 4.0, "write": 4.0, "pool": 4.0}, "x": 1}
    assert request.extensions == {"timeout": {"connect": 3.0, "read": None}, "x": 1}
    reset_timeouts(request, sent)
    assert sent.extensions["timeout"] == {"connect": 3.0, "read": None, "write": None, "pool": None}
    assert request.extensions == {"timeout": {"connect": 3.0, "read": None}, "x": 1}


async def test_without_a_deadline_timeouts_are_unchanged(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(deadline=5.0)))
    bench.script(200, 200)
    await bench.send(timeout=30.0, deadline=None)
    await bench.send(timeout=30.0)
    assert bench.timeouts() == [30.0, 5.0]


# The time left


async def test_no_attempt_starts_that_cannot_finish_in_time_and_the_last_response_is_returned(
    world: World,
) -> None:
    bench = Bench(world, retry())
    bench.script(503, httpx.Response(503, content=b"last"))
    response = await bench.send(deadline=1.5)
    assert await world.read(response) == b"last"
    assert (len(bench.wire.requests), bench.spent) == (2, 0.5)


async def test_no_attempt_starts_that_cannot_finish_in_time_and_the_last_error_is_raised(
    world: World,
) -> None:
    bench = Bench(world, retry())
    error = httpx.ConnectError("refused")
    bench.script(503, error)
    with pytest.raises(httpx.ConnectError) as caught:
        await bench.send(deadline=1.5)
    assert caught.value is error
    assert (bench.spent, bench.wire.open) == (0.5, 0)


async def test_a_retry_after_within_the_deadline_is_waited_for(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(httpx.Response(429, headers={"Retry-After": "9"}), 200)
    assert (await bench.send(deadline=10.0)).status_code == 200
    assert bench.timeouts() == [10.0, 1.0]


async def test_a_slow_answer_uses_up_the_time_of_later_attempts(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(bench.after(4.0, 503), bench.after(4.0, 503), bench.after(4.0, 503))
    with pytest.raises(DeadlineExceededError) as caught:
        await bench.send(timeout=30.0, deadline=10.0)
    assert bench.timeouts() == [10.0, 5.5, 0.5]
    assert bench.spent == 10.0
    assert isinstance(caught.value.__cause__, httpx.ReadTimeout)
    assert "deadline of 10 s" in str(caught.value)
    assert "attempt number 3" in str(caught.value)
    assert bench.wire.open == 0


async def test_a_timeout_before_the_deadline_is_an_ordinary_timeout_and_is_retried(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(retry_timeouts=True)))
    bench.script(bench.after(9.0, 200), bench.after(1.0, 200))
    assert (await bench.send(timeout=3.0, deadline=10.0)).status_code == 200
    assert bench.spent == 4.5


@pytest.mark.parametrize("number", [1, 3])
async def test_whatever_the_layers_there_is_one_error_that_names_the_request(
    world: World, number: int
) -> None:
    bench = Bench(world, *(Layer(str(count), LayerTransport, AsyncLayerTransport) for count in range(number)))
    timeout = httpx.ReadTimeout("slow")
    bench.script(bench.after(99.0, 200))
    with pytest.raises(DeadlineExceededError) as caught:
        await bench.send(deadline=2.0)
    assert isinstance(caught.value, httpx.TimeoutException)
    assert type(caught.value.__cause__) is type(timeout)
    assert caught.value.request.url == URL
    assert ATTEMPT not in caught.value.request.extensions


async def test_a_layer_that_takes_all_the_time_leaves_none_to_send(world: World) -> None:
    bench = Bench(world, retry(), Layer("lazy", lazy))
    bench.script()
    with pytest.raises(DeadlineExceededError):
        await bench.send(deadline=3.0)
    assert bench.spent == 3.0
    assert bench.wire.requests == []


def lazy(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
    yield Sleep(5.0)
    return (yield from layer.forward(request, attempt))


# Whose deadline


async def test_the_policy_may_bound_every_call(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(deadline=1.0)))
    bench.script(503, 503)
    await bench.send()
    assert bench.spent == 0.5
    assert bench.timeouts() == [1.0, 0.5]


async def test_the_deadline_of_a_call_takes_precedence_over_the_policys(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(deadline=1.0)))
    bench.script(503, 503, 200)
    assert (await bench.send(deadline=10.0)).status_code == 200
    bench.script(503, 503, 200)
    assert (await bench.send(deadline=None)).status_code == 200


async def test_a_call_that_is_sent_once_keeps_the_deadline_of_the_stack(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(deadline=1.0)))
    bench.script(200)
    await bench.send(retry=None)
    assert bench.timeouts() == [1.0]


async def test_a_policy_for_one_call_has_its_own_deadline(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(deadline=1.0)))
    bench.script(200, 200)
    await bench.send(timeout=30.0, retry=RetryPolicy(deadline=7.0))
    await bench.send(timeout=30.0, retry=RetryPolicy())
    assert bench.timeouts() == [7.0, 30.0]


async def test_a_one_shot_body_has_the_deadline_of_the_policy_too(world: World) -> None:
    bench = Bench(world)
    wire = world.wire(200)
    transport = world.layer(retry(RetryPolicy(deadline=1.0)), wire, context=Context(clock=bench.clock))
    await world.send(transport, httpx.Request("POST", URL, files={"file": b"content"}))
    assert wire.timeouts[0]["read"] == 1.0


# Limiters


async def test_a_wait_for_a_permit_leaves_less_time_for_the_answer(world: World) -> None:
    bench = Bench(world, retry(), token_bucket(TokenBucket(1, 6, burst=1)))
    bench.script(200, 200)
    await bench.send(deadline=10.0)
    await bench.send(deadline=10.0)
    assert bench.timeouts() == [10.0, pytest.approx(4.0)]


# Bodies


async def test_a_buffered_body_that_trickles_is_given_up_at_the_deadline(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(httpx.Response(200, stream=Slow(bench.clock, 1.0)))
    with pytest.raises(DeadlineExceededError):
        await bench.send(timeout=30.0, deadline=4.5, buffered=True)
    assert bench.spent >= 5.0
    assert bench.wire.open == 0


async def test_a_buffered_body_may_come_from_any_async_iterator(world: World) -> None:
    clock = FakeClock()
    wire = httpx.MockTransport(lambda _: httpx.Response(200, stream=of_streams(Slow)(clock, 1.0)))
    request = httpx.Request("GET", URL)
    request.extensions["stkai"] = RequestOptions(deadline=10.5)
    request.extensions[ATTEMPT] = Attempt(Call.start(request, 0.0, buffered=True))
    response = await world.send(world.layer(PLAIN, wire, context=Context(clock=clock)), request)
    assert await world.read(response) == b"." * 10


async def test_a_body_that_the_wire_has_read_is_not_read_again(world: World) -> None:
    class Once(Slow):
        def __iter__(self) -> Iterator[bytes]:
            assert self.clock.monotonic() == 0.0, "the connection belongs to others now"
            return super().__iter__()

    def read(_: httpx.Request) -> httpx.Response:
        response = httpx.Response(200, stream=of_streams(Once)(clock, 0.1))
        response.read()
        return response

    clock, request = FakeClock(), httpx.Request("GET", URL)
    request.extensions["stkai"] = RequestOptions(deadline=10.0)
    request.extensions[ATTEMPT] = Attempt(Call.start(request, 0.0, buffered=True))
    layer = world.layer(retry(), httpx.MockTransport(read), context=Context(clock=clock))
    assert await world.read(await world.send(layer, request)) == b"." * 10


async def test_a_timeout_in_a_buffered_body_after_the_deadline_is_a_deadline_error(world: World) -> None:
    bench = Bench(world, retry(RetryPolicy(max_retries=1)))

    def script(*errors: Exception) -> None:
        bench.script(*(httpx.Response(200, stream=Slow(bench.clock, 0.1, error)) for error in errors))

    in_time = [httpx.ReadTimeout("slow"), httpx.ReadTimeout("slow")]
    script(*in_time)
    with pytest.raises(httpx.ReadTimeout) as caught:
        await bench.send(deadline=10.0, buffered=True)
    assert caught.value is in_time[0], "a POST that may have been served is not sent again"

    class Late(Slow):
        def __iter__(self) -> Iterator[bytes]:
            yield b"."
            self.clock.advance(99.0)
            raise httpx.ReadTimeout("slow")

    bench.script(httpx.Response(200, stream=Late(bench.clock, 0.0)))
    with pytest.raises(DeadlineExceededError) as late:
        await bench.send(deadline=10.0, buffered=True)
    assert isinstance(late.value.__cause__, httpx.ReadTimeout)
    assert bench.wire.open == 0


async def test_a_streamed_body_has_no_deadline_once_it_is_returned(world: World) -> None:
    bench = Bench(world, retry())
    bench.script(httpx.Response(200, stream=Slow(bench.clock, 1.0)))
    response = await bench.send(deadline=2.0)
    assert await world.read(response) == b"." * 10


@given(
    script=st.lists(
        st.tuples(st.floats(0, 8), st.sampled_from([200, 429, 500, 503])), min_size=1, max_size=5
    ),
    after=st.none() | st.integers(0, 20),
    deadline=st.floats(0.1, 20),
)
def test_no_call_takes_longer_than_its_deadline_if_the_wire_honours_its_timeouts(
    script: list[tuple[float, int]], after: int | None, deadline: float
) -> None:
    world = World("sync")
    bench = Bench(world, retry(), token_bucket(TokenBucket(1, 2, burst=1)))
    headers = {} if after is None else {"Retry-After": str(after)}
    answers = [bench.after(seconds, httpx.Response(status, headers=headers)) for seconds, status in script]
    bench.script(*answers, *[bench.after(1.0, 200)] * 4)
    try:
        world.run(bench.send(deadline=deadline))
    except httpx.TransportError:
        assert bench.wire.open == 0
    else:
        assert bench.wire.open == 1
    assert bench.spent <= deadline + 1e-9
