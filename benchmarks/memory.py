"""Memory per waiting task, by tracemalloc: `python -m benchmarks.memory`."""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._harness import Table, run, versions
from stkai.transports import AsyncAdaptiveTransport, AsyncTokenBucketTransport

Prepare = Callable[[], Callable[[], Awaitable[object]]]


def measure(quick: bool) -> Sequence[Table]:
    """Bytes per task that waits for a permit."""
    tasks = 1_000 if quick else 10_000
    groups: dict[str, dict[str, Prepare]] = {
        "a future and its timer (`asyncio.sleep`)": {
            "TokenBucket, without a client": lambda: _stuck(AsyncTokenBucketTransport(_wire(), _bucket())),
            "AimdLimiter, without a client": lambda: _stuck(AsyncAdaptiveTransport(_wire(), _aimd())),
        },
        "httpx.AsyncClient, stuck at the wire": {
            "httpx.AsyncClient, waiting in a TokenBucket": lambda: _mounted(
                AsyncTokenBucketTransport(_wire(), _bucket())
            ),
            "httpx.AsyncClient, waiting in the whole stack": lambda: _mounted(_stack()),
            "stkai.AsyncHttpClient, waiting in the whole stack": lambda: _own(_stack()),
        },
    }
    bases: list[Prepare] = [lambda: lambda: asyncio.sleep(3600), lambda: _mounted(_StuckWire())]
    rows = []
    for (base, others), prepare in zip(groups.items(), bases, strict=True):
        least = _bytes_per_task(prepare, tasks)
        rows.append([base, f"{least:,.0f}", "1.00"])
        for name, other in others.items():
            used = _bytes_per_task(other, tasks)
            rows.append([f"**stkai**: {name}", f"{used:,.0f}", f"{used / least:.2f}"])
    note = f"{tasks:,} tasks, each with its own request if there is a client. {versions('httpx', 'anyio')}."
    return [Table("memory", "Memory of tasks that wait", ["", "bytes per task", "ratio"], rows, [note])]


def _bytes_per_task(prepare: Prepare, tasks: int) -> float:
    async def main() -> float:
        wait = prepare()
        crowd = [asyncio.ensure_future(wait()) for _ in range(2)]
        await asyncio.sleep(0.01)
        gc.collect()
        tracemalloc.start()
        try:
            crowd += [asyncio.ensure_future(wait()) for _ in range(tasks)]
            await asyncio.sleep(0.05)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        stuck = sum(not task.done() for task in crowd)
        if stuck < tasks:
            raise RuntimeError(f"only {stuck} of {tasks} tasks wait")
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return used / tasks

    return asyncio.run(main())


class _StuckWire(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        return httpx.Response(200)


def _wire() -> Any:
    return subjects.answer()


def _bucket() -> stkai.TokenBucket:
    return stkai.TokenBucket(1, 3600.0, burst=1, max_wait_time=None)


def _aimd() -> stkai.AimdLimiter:
    return stkai.AimdLimiter(1, 3600.0, penalty_factor=0.3, max_wait_time=None)


def _stack() -> httpx.AsyncBaseTransport:
    return stkai.build_async_transport(auth=subjects.provider(), rate_limit=_bucket(), transport=_wire())


def _stuck(transport: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[object]]:
    request = httpx.Request("POST", subjects.URL, json=subjects.DATA)
    return lambda: transport.handle_async_request(request)


def _mounted(transport: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[object]]:
    client = httpx.AsyncClient(transport=transport)
    return lambda: client.post(subjects.URL, json=subjects.DATA)


def _own(transport: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[object]]:
    client = stkai.AsyncHttpClient(transport)
    return lambda: client.post(subjects.URL, data=subjects.DATA)


if __name__ == "__main__":
    run(measure)
