"""The deadline ends any operation but clean-up, and a flow may only shorten it."""

from typing import Any

import httpx
import pytest

from stkai import DeadlineExceededError, RequestOptions, SystemClock
from stkai.testing import FakeClock
from stkai.transports import Attempt, Context, Flow, Layer, Run, Until

from ...support.world import NAMES, World
from .bench import STALLING, URL, Bench

pytestmark = [pytest.mark.both_packages, pytest.mark.worlds(*NAMES)]

SHORT = 0.05
"""Seconds of real time; a deadline that passes soon."""


@pytest.mark.real_time
@pytest.mark.parametrize("kind", STALLING)
async def test_at_the_deadline_any_operation_is_abandoned_and_the_flow_cleans_up(
    world: World, kind: str
) -> None:
    bench = Bench(world, kind)
    bench.clock = FakeClock() if kind == "sleep" else SystemClock()
    if kind == "run" and not world.is_async:
        # A thread cannot be cancelled: work in a thread gets its deadline as an argument.
        bench.stall.sync = too_late  # type: ignore[method-assign]
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await bench.send(deadline=SHORT)
    finally:
        bench.stall.released.set()
    assert caught.value.request.url == URL
    assert bench.body.closed
    assert bench.log == ["begun", "DeadlineExceededError", "cleaned up"]
    assert bench.given_back == 1


def too_late(left: float) -> None:
    assert left <= SHORT
    raise DeadlineExceededError("not in time")


@pytest.mark.real_time
async def test_an_unwanted_body_is_abandoned_well_before_the_deadline(world: World) -> None:
    bench = Bench(world, "drain")
    bench.clock = SystemClock()
    try:
        await bench.send(deadline=1.0)
    finally:
        bench.stall.released.set()
    assert bench.log == ["begun", "done"]
    assert len(bench.wire.requests) == 1


@pytest.mark.parametrize("kind", [*STALLING, "drain", "close", "clean-up run"])
async def test_after_the_deadline_only_clean_up_starts(world: World, kind: str) -> None:
    bench = Bench(world, kind)

    def late(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        bench.clock.advance(2.0)
        response: httpx.Response = yield from layer.forward(request, attempt)
        return response

    request = httpx.Request("GET", URL, extensions={"stkai": RequestOptions(deadline=1.0)})
    with pytest.raises(DeadlineExceededError):
        await world.send(bench.transport(Layer("late", late)), request)
    assert not bench.stall.entered
    assert bench.wire.requests == []
    if kind in {"drain", "close", "clean-up run"}:
        assert bench.log == ["begun", "done"]
        assert bench.stalling.closed == (kind != "clean-up run")
    else:
        assert bench.log == ["begun", "DeadlineExceededError", "cleaned up"]
        assert bench.body.closed
        assert bench.given_back == 1


async def test_a_flow_may_set_an_earlier_deadline_but_never_a_later_one(world: World) -> None:
    left: list[float] = []

    async def later(seconds: float) -> None:
        left.append(seconds)

    def flow(layer: Any, request: httpx.Request, attempt: Attempt) -> Flow:
        for deadline in (30.0, 10.0, 20.0):
            yield Until(deadline)
            yield Run(left.append, later)
        response: httpx.Response = yield from layer.forward(request, attempt)
        return response

    transport = world.layer(Layer("own", flow), world.wire(200, 200), context=Context(clock=FakeClock()))
    await world.send(transport, httpx.Request("GET", URL))
    options = {"stkai": RequestOptions(deadline=15.0)}
    await world.send(transport, httpx.Request("GET", URL, extensions=options))
    assert left == [30.0, 10.0, 10.0, 15.0, 10.0, 10.0]
