"""A call that is closed, dropped or finished leaves nothing behind."""

import asyncio
import gc
from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from stkai import RequestOptions, RetryPolicy, StackBuilder, TokenBucket
from stkai.testing import FakeClock
from stkai.transports import Context, Layer, retry, token_bucket

from ...support.crowd import took
from ...support.world import NAMES, World
from .bench import URL, Bench

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]


class Pause:
    """An awaitable that suspends its coroutine, without an event loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.worlds("asyncio")
@pytest.mark.parametrize("kind", ["send", "run"])
@pytest.mark.parametrize("outer", [0, 2])
def test_a_coroutine_that_is_closed_ends_its_flow(world: World, kind: str, outer: int) -> None:
    """Whatever is outside it: `yield from` would close the flow inside, and not let it clean up."""
    bench = Bench(world, kind)
    through = [
        Layer(f"outer {number}", lambda layer, request, attempt: layer.forward(request, attempt))
        for number in range(outer)
    ]

    async def pause(*_: Any) -> Any:
        await Pause()

    bench.stall.wait = pause  # type: ignore[method-assign]
    coroutine = bench.transport(*through).handle_async_request(httpx.Request("GET", URL))
    coroutine.send(None)
    coroutine.close()
    assert bench.log == ["begun", "AbandonedCallError", "cleaned up"], "it cleans up what needs no waiting"


@pytest.mark.worlds("asyncio")
def test_a_call_that_is_dropped_while_queued_gives_up_its_place(world: World) -> None:
    policy = TokenBucket(1, 10.0)
    assert took(policy, 0.0)

    class Clock(FakeClock):
        async def asleep(self, seconds: float) -> None:
            await Pause()

    transport = world.layer(token_bucket(policy), world.wire(), context=Context(clock=Clock()))
    coroutine = transport.handle_async_request(httpx.Request("POST", URL))
    coroutine.send(None)
    assert policy.waiting == 1
    coroutine.close()
    assert policy.waiting == 0


OUTCOMES: dict[str, Callable[[], Any]] = {
    "an error": lambda: httpx.ReadError("reset"),
    "a final error": lambda: httpx.UnsupportedProtocol("ftp"),
    "a cancellation error": asyncio.CancelledError,
    "an answer": lambda: 200,
    "a refusal": lambda: 503,
}


@pytest.mark.no_cover
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_a_call_leaves_no_reference_cycle_behind(
    world: World, outcome: str, deadline: float | None
) -> None:
    layers = (retry(RetryPolicy(1)), token_bucket(TokenBucket(100, 1.0)))
    wire = httpx.MockTransport(lambda _: answer())
    transport = world.build(StackBuilder(layers, clock=FakeClock(), listener=[]), wire)

    made = OUTCOMES[outcome]

    def answer() -> httpx.Response:
        if "error" in outcome:
            raise made()
        return httpx.Response(made(), content=b"body")

    async def call() -> None:
        extensions = {"stkai": RequestOptions(deadline=deadline)}
        try:
            response = await world.send(transport, httpx.Request("GET", URL, extensions=extensions))
            await world.read(response)
        except (httpx.TransportError, asyncio.CancelledError):
            pass

    await call()  # Imports, caches.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        await call()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [thing for thing in gc.garbage if _is_ours(thing)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        if was_enabled:
            gc.enable()
    assert ours == []


def _is_ours(thing: object) -> bool:
    module = getattr(type(thing), "__module__", None) or ""
    return module.split(".")[0] in {"stkai", "httpx", "httpx2", "tenacity"} or isinstance(
        thing, BaseException
    )
