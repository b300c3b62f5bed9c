"""How the cost grows with layers, waiters, retries and requests in flight: `python -m benchmarks.scaling`."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._crowd import async_throughput
from benchmarks._harness import PAGE, Table, interleave, run, show, versions
from benchmarks._plots import new_figure, save
from benchmarks._server import serving
from benchmarks.concurrency import configure
from stkai.testing import FakeClock
from stkai.transports import LayerTransport, RetryTransport
from stkai.transports._limits.limiter import Turn

PICTURE = PAGE.parent / "images" / "scaling"
LAYERS = (1, 2, 4, 6, 8)
WAITERS = (10, 100, 1_000, 10_000)
RETRIES = (0, 1, 2, 4, 8)
AT_ONCE = (1, 8, 32, 64, 100)
OURS, BARE = "stkai's wire", "httpx's wire"

Curve = dict[int, list[float]]


def measure(quick: bool) -> Sequence[Table]:
    """How the cost grows."""
    count, rounds = (100, 3) if quick else (500, 15)
    layers = _curve(LAYERS, lambda number: _layers(number, count), rounds)
    waiters = _curve(WAITERS, lambda number: _waiters(number, count), rounds)
    retries = _curve(RETRIES, lambda number: _retries(number, count), rounds)
    with serving() as url:
        flight = {
            name: _curve(AT_ONCE, partial(_in_flight, url, wire), 1 if quick else 5)
            for name, wire in _WIRES.items()
        }
    _plot(layers, waiters, retries, flight, PICTURE)
    rows = [
        _row("layers that do nothing", "µs per request", layers),
        _row("requests in one queue", "µs per permit", waiters),
        _row("retries of one request", "µs per request", retries),
        *(_row(f"requests in flight, {name}", "µs per request", curve) for name, curve in flight.items()),
    ]
    return [Table("scaling", "How the cost grows", ["", "unit", "cost"], rows, [f"{versions('httpx')}."])]


def _row(what: str, unit: str, curve: Curve) -> list[str]:
    points = ", ".join(f"{number:,}: {show(values, 1)}" for number, values in curve.items())
    return [what, unit, points]


def _curve(numbers: Sequence[int], make: Callable[[int], Callable[[], float]], rounds: int) -> Curve:
    samples = interleave({str(number): make(number) for number in numbers}, rounds)
    return {number: samples[str(number)] for number in numbers}


def _per_call(call: Callable[[], object], count: int) -> Callable[[], float]:
    def batch() -> float:
        start = time.process_time_ns()
        for _ in range(count):
            call()
        return (time.process_time_ns() - start) / count / 1e3

    return batch


def _layers(number: int, count: int) -> Callable[[], float]:
    transport: httpx.BaseTransport = subjects.answer()
    for _ in range(number):
        transport = LayerTransport(transport)
    return _sending(transport, count)


def _sending(transport: httpx.BaseTransport, count: int) -> Callable[[], float]:
    request = httpx.Request("POST", subjects.URL, json=subjects.DATA)
    return _per_call(lambda: transport.handle_request(request), count)


def _waiters(number: int, count: int) -> Callable[[], float]:
    """With this many in the queue, the first goes and another arrives in each turn."""
    queue = stkai.TokenBucket(1, 1.0, burst=1, max_wait_time=None)
    tickets = [Turn() for _ in range(number)]
    now = 0.0
    for ticket in tickets:
        queue.ask(ticket, now)
    place = 0

    def turn() -> None:
        nonlocal now, place
        now += 1.0
        if queue.ask(tickets[place], now):
            raise RuntimeError("the first in the queue has to wait")
        tickets[place] = Turn()
        queue.ask(tickets[place], now)
        place = (place + 1) % number

    # The first of them took the burst.
    tickets[0] = Turn()
    queue.ask(tickets[0], now)
    place = 1
    return _per_call(turn, count)


def _retries(number: int, count: int) -> Callable[[], float]:
    """Answer 503 this many times, then 200."""
    left = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal left
        left = number if left < 0 else left
        left -= 1
        return httpx.Response(200 if left < 0 else 503)

    policy = stkai.RetryPolicy(number, initial_delay=0.0)
    context = stkai.Context(clock=FakeClock(), listener=lambda event: None)
    left = -1
    return _sending(RetryTransport(httpx.MockTransport(respond), policy, context=context), count // 5)


def _ours() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=stkai.build_async_transport(auth=None, rate_limit=None, retry=None))


_WIRES: dict[str, Callable[[], httpx.AsyncClient]] = {
    OURS: _ours,
    BARE: lambda: httpx.AsyncClient(limits=configure((200, 200))),
}


def _in_flight(url: str, wire: Callable[[], httpx.AsyncClient], at_once: int) -> Callable[[], float]:
    """Microseconds per request with this many at once."""

    async def send() -> float:
        configure((200, 200))
        async with wire() as client:
            count = max(200, 4 * at_once)
            rate = await async_throughput(lambda: client.post(url, json=subjects.DATA), at_once, count)
            return 1e6 / rate

    return lambda: asyncio.run(send())


def _plot(layers: Curve, waiters: Curve, retries: Curve, flight: dict[str, Curve], file: Path) -> None:
    figure, axes = new_figure(2, 2, width=9, height=6.5)
    panels = [
        ("layers", {"": layers}, "linear"),
        ("requests waiting in one queue", {"": waiters}, "log"),
        ("retries of one request", {"": retries}, "linear"),
        ("requests in flight", flight, "linear"),
    ]
    for axis, (title, curves, scale) in zip(axes, panels, strict=True):
        for name, curve in curves.items():
            middle = [statistics.median(values) for values in curve.values()]
            axis.plot(list(curve), middle, marker="o", markersize=4, label=name)
        axis.set(xlabel=title, ylabel="µs", xscale=scale, ylim=(0, None))
        if len(curves) > 1:
            axis.legend(framealpha=0)
    save(figure, file)


if __name__ == "__main__":
    run(measure)
