"""What the retry layer does with bodies: those that break, those that can be sent once, and idempotency keys."""

import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from stkai import RetryPolicy
from stkai.testing import FakeClock
from stkai.transports import Context, RetryTransport

from ...support.world import World
from .bench import URL, Bench, broken, busy

pytestmark = pytest.mark.both_packages


async def test_a_buffered_body_is_read_within_the_attempt_so_a_break_is_retried(world: World) -> None:
    bench = Bench(world, broken(), httpx.Response(200, content=b"whole"))
    response = await bench.send_buffered()
    assert response.content == b"whole"
    assert response.is_closed
    assert (len(bench.wire.requests), bench.wire.open) == (2, 0)


async def test_a_buffered_body_that_always_breaks_raises_the_last_error(world: World) -> None:
    errors = [httpx.RemoteProtocolError(str(number)) for number in range(4)]
    bench = Bench(world, *(broken(error) for error in errors))
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await bench.send_buffered()
    assert caught.value is errors[-1]
    assert bench.wire.open == 0


@pytest.mark.parametrize(
    "error", [httpx.DecodingError("not gzip"), KeyboardInterrupt(), RuntimeError()], ids=repr
)
async def test_a_body_that_ends_in_a_final_error_is_closed_and_not_retried(
    world: World, error: BaseException
) -> None:
    for script in ([broken(error)], [503, broken(error)]):
        bench = Bench(world, *script)
        with pytest.raises(type(error)) as caught:
            await bench.send_buffered()
        assert caught.value is error
        assert bench.wire.open == 0
        assert len(bench.wire.requests) == len(script)


async def test_a_buffered_failure_can_be_read_when_it_is_the_last(world: World) -> None:
    bench = Bench(world, *(busy() for _ in range(4)))
    response = await bench.send_buffered()
    assert response.content == b"busy"
    assert bench.wire.open == 0


async def test_a_streamed_body_that_breaks_is_not_retried(world: World) -> None:
    bench = Bench(world, 503, broken())
    response = await bench.send()
    with pytest.raises(httpx.ReadError):
        await world.read(response)
    await world.close(response)
    assert (len(bench.wire.requests), bench.wire.open) == (2, 0)


# Idempotency keys


async def test_a_key_is_the_same_on_every_attempt_and_another_for_every_call(world: World) -> None:
    bench = Bench(world, 503, 503, 200, 200, policy=RetryPolicy(idempotency_header="Idempotency-Key"))
    requests = [httpx.Request("POST", URL), httpx.Request("POST", URL)]
    for request in requests:
        await bench.send(request)
        assert "Idempotency-Key" not in request.headers
    keys = [request.headers["idempotency-key"] for request in bench.wire.requests]
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert min(map(len, keys)) >= 32


async def test_the_callers_key_is_kept(world: World) -> None:
    bench = Bench(world, 503, 200, policy=RetryPolicy(idempotency_header="Idempotency-Key"))
    await bench.send(httpx.Request("POST", URL, headers={"idempotency-KEY": "mine"}))
    sent = [request.headers.get_list("Idempotency-Key") for request in bench.wire.requests]
    assert sent == [["mine"], ["mine"]]


async def test_no_key_is_added_unless_requested(world: World) -> None:
    bench = Bench(world, 503, 200)
    await bench.send()
    assert not any("idempotency-key" in request.headers for request in bench.wire.requests)


@pytest.mark.parametrize(
    ("method", "headers", "attempts"),
    [("GET", {}, 2), ("HEAD", {}, 2), ("GET", {"content-length": "1"}, 1), ("POST", {}, 1)],
)
async def test_a_stream_without_a_body_can_be_sent_again(
    world: World, method: str, headers: dict[str, str], attempts: int
) -> None:
    class Rebuilt(httpx.SyncByteStream, httpx.AsyncByteStream):
        """The body of a request that a cache above the stack has made anew: it can be read once."""

        parts = iter([b""])

        def __iter__(self) -> Iterator[bytes]:
            return self.parts

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self.parts:
                yield part

    bench = Bench(world, 503, 200)
    await bench.send(httpx.Request(method, URL, headers=headers, stream=Rebuilt()))
    assert len(bench.wire.requests) == attempts


def test_a_refusal_whose_body_is_in_memory_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, started, start = iter([503, 200, 503, 200]), [], threading.Thread.start
    wire = httpx.MockTransport(lambda _: httpx.Response(next(statuses), stream=httpx.ByteStream(b"body")))
    transport = RetryTransport(wire, context=Context(clock=FakeClock()))
    transport.handle_request(httpx.Request("GET", URL))  # Imports tenacity in a thread.

    def note(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    assert transport.handle_request(httpx.Request("GET", URL)).status_code == 200
    assert started == []
