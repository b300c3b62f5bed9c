"""Many waiters, one limiter of 200 requests per second, burst 1: `python -m benchmarks.contention`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import httpx

import stkai
from benchmarks import _floor
from benchmarks import _subjects as subjects
from benchmarks._crowd import crowd_of_tasks, crowd_of_threads, median_of
from benchmarks._harness import Table, installed, interleave, ratios, run, show, versions
from benchmarks._original import NAME, original
from stkai.transports import (
    AdaptiveTransport,
    AsyncAdaptiveTransport,
    AsyncLayerTransport,
    AsyncTokenBucketTransport,
    Attempt,
    Flow,
    LayerTransport,
    Sleep,
    TokenBucketTransport,
    Turn,
)

T = TypeVar("T")

RATE = 200.0
FLOOR = "hand-written GCRA with one sleep"
LAYER = "the same in a layer of **stkai**"
COLUMNS = (
    "rate / configured",
    "sleeps per permit",
    "overtaken",
    "longest wait / fair",
    "CPU per permit",
    "ratio",
)
Report = dict[str, float]


def measure(quick: bool) -> Sequence[Table]:
    """How a limiter treats waiting requests, and what waiting costs."""
    threads, tasks, seconds, rounds = (64, 200, 1.5, 1) if quick else (64, 1_000, 5.0, 9)
    with ExitStack() as stack:
        old = stack.enter_context(original())
        runs: dict[str, Callable[[], Report]] = {
            name: partial(_threads, make, threads, seconds) for name, make in _available(_SYNC).items()
        }
        if old is not None:
            for kind in ("token_bucket", "adaptive"):
                asked = {"kind": kind, "rate": RATE, "threads": threads, "seconds": seconds}
                runs[f"{NAME}, {kind}"] = partial(old.ask, "contention", **asked)
        reports = interleave(runs, rounds)
    async_reports = interleave(
        {name: partial(crowd_of_tasks, prepare, RATE, tasks) for name, prepare in _available(_ASYNC).items()},
        rounds,
    )
    waiters, seconds = (2_000, 2.0) if quick else (10_000, 10.0)
    queues = interleave(
        {name: partial(_queue, prepare, waiters, seconds) for name, prepare in _available(_ASYNC).items()},
        max(1, rounds // 3),
    )
    note = f"{versions('pyrate-limiter', 'aiolimiter')}."
    return [
        _table("contention-threads", f"{threads} threads that come back for more", reports, note),
        _table("contention-tasks", f"{tasks:,} tasks that come at once", async_reports, note),
        _queues(f"{waiters:,} tasks in the queue", queues, note),
    ]


def _available(subjects: dict[str, T]) -> dict[str, T]:
    return {name: each for name, each in subjects.items() if name not in _NEEDS or installed(_NEEDS[name])}


def _threads(make: Callable[[], Callable[[], object]], threads: int, seconds: float) -> Report:
    return crowd_of_threads(make(), RATE, threads, seconds)


def _table(name: str, title: str, reports: dict[str, list[Report]], note: str) -> Table:
    more = ratios({name: [report["cpu"] for report in found] for name, found in reports.items()}, FLOOR)
    rows = []
    for subject, found in reports.items():
        rows.append(
            [
                subject,
                f"{median_of(found, 'rate'):.3f}",
                f"{median_of(found, 'sleeps'):.2f}",
                f"{median_of(found, 'overtaken'):.1%}",
                f"{median_of(found, 'longest'):.2f}",
                f"{median_of(found, 'cpu'):.0f} µs",
                show(more[subject]),
            ]
        )
    return Table(name, title, ["", *COLUMNS], rows, [note])


def _queue(prepare: Callable[[], Callable[[], Awaitable[object]]], waiters: int, seconds: float) -> Report:
    """What a long queue costs while it stays long: the part of a processor, and permits as a part of the rate."""

    async def main() -> Report:
        acquire = prepare()
        crowd = [asyncio.ensure_future(acquire()) for _ in range(waiters)]
        await asyncio.sleep(2.0)
        cpu, start, before = time.process_time(), time.perf_counter(), sum(task.done() for task in crowd)
        await asyncio.sleep(seconds)
        cpu, passed = time.process_time() - cpu, time.perf_counter() - start
        permits = sum(task.done() for task in crowd) - before
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return {"rate": permits / passed / RATE, "busy": cpu / passed, "cpu": cpu / permits * 1e6}

    return asyncio.run(main())


def _queues(title: str, reports: dict[str, list[Report]], note: str) -> Table:
    columns = ["", "rate / configured", "part of a processor", "CPU per permit"]
    rows = [
        [
            subject,
            f"{median_of(found, 'rate'):.3f}",
            f"{median_of(found, 'busy'):.1%}",
            f"{median_of(found, 'cpu'):.0f} µs",
        ]
        for subject, found in reports.items()
    ]
    return Table("contention-queue", title, columns, rows, [note])


def _request() -> httpx.Request:
    return httpx.Request("POST", subjects.URL, json={})


def _through(transport: httpx.BaseTransport) -> Callable[[], object]:
    request = _request()
    return lambda: transport.handle_request(request)


def _async_through(transport: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[object]]:
    request = _request()
    return lambda: transport.handle_async_request(request)


def _flow() -> Callable[[LayerTransport | AsyncLayerTransport, httpx.Request, Attempt], Flow]:
    """The floor's limiter as a layer's flow: what a call costs in a stack whose limiter costs next to nothing."""
    gcra = _floor.Gcra(RATE)

    def flow(layer: LayerTransport | AsyncLayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
        yield Sleep(gcra.reserve())
        return (yield from layer.forward(request, attempt))

    return flow


def _bucket() -> stkai.TokenBucket:
    return stkai.TokenBucket(RATE, 1.0, burst=1, max_wait_time=None)


def _aimd() -> stkai.AimdLimiter:
    """Plain AIMD, which starts at the full rate; its burst is used up before the measurement starts."""
    policy = stkai.AimdLimiter(RATE, 1.0, penalty_factor=0.3, recovery_factor=0.05, max_wait_time=None)
    now = time.monotonic()
    while policy.ask(turn := Turn(), now) == 0:
        pass
    policy.leave(turn, now)
    return policy


def _pyrate() -> Callable[[], object]:
    from pyrate_limiter import Limiter, Rate

    limiter = Limiter(Rate(1, round(1000 / RATE)))
    return lambda: limiter.try_acquire("request")


def _aiolimiter() -> Callable[[], Awaitable[object]]:
    from aiolimiter import AsyncLimiter

    acquire: Callable[[], Awaitable[object]] = AsyncLimiter(1, 1 / RATE).acquire
    return acquire


_SYNC: dict[str, Callable[[], Callable[[], object]]] = {
    FLOOR: lambda: _through(_floor.Limit(subjects.answer(), _floor.Gcra(RATE))),
    LAYER: lambda: _through(LayerTransport(subjects.answer(), _flow())),
    "**stkai** TokenBucket": lambda: _through(TokenBucketTransport(subjects.answer(), _bucket())),
    "**stkai** AimdLimiter": lambda: _through(AdaptiveTransport(subjects.answer(), _aimd())),
    "pyrate-limiter": _pyrate,
}

_ASYNC: dict[str, Callable[[], Callable[[], Awaitable[object]]]] = {
    FLOOR: lambda: _async_through(_floor.AsyncLimit(subjects.answer(), _floor.Gcra(RATE))),
    LAYER: lambda: _async_through(AsyncLayerTransport(subjects.answer(), _flow())),
    "**stkai** TokenBucket": lambda: _async_through(AsyncTokenBucketTransport(subjects.answer(), _bucket())),
    "**stkai** AimdLimiter": lambda: _async_through(AsyncAdaptiveTransport(subjects.answer(), _aimd())),
    "aiolimiter": _aiolimiter,
}

_NEEDS = {"pyrate-limiter": "pyrate_limiter", "aiolimiter": "aiolimiter"}
"""Packages of the group `bench`."""

if __name__ == "__main__":
    run(measure)
