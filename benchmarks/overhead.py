"""CPU time per request over a wire that answers at once: `python -m benchmarks.overhead`."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._harness import Table, interleave, ratios, run, show, versions
from benchmarks._original import NAME, original

BARE = "bare httpx client"
LEAN = "**stkai**'s own client over that stack"
DEADLINE = "the same, each call with a deadline"
_Calls = dict[str, Callable[[], float]]


def measure(quick: bool) -> Sequence[Table]:
    """CPU time per request over a wire that answers at once."""
    count, rounds = (200, 9) if quick else (500, 41)
    with ExitStack() as stack:
        sync = _sync(count)
        old = stack.enter_context(original())
        if old is not None:
            sync[NAME] = lambda: float(old.ask("overhead", count=count // 5, data=subjects.DATA))
        samples = interleave(sync, rounds)
    with asyncio.Runner() as runner:
        async_samples = interleave(_async(runner, count), rounds)
    with asyncio.Runner() as runner:
        layers = interleave(_layers(runner, count), rounds)
    return [_table(samples, async_samples), _layer_table(layers)]


def _table(samples: dict[str, list[float]], async_samples: dict[str, list[float]]) -> Table:
    both = [ratios(samples, BARE), ratios(async_samples, BARE)]
    names = [*samples, *(name for name in async_samples if name not in samples)]
    rows = [[name, *(show(found[name]) if name in found else "-" for found in both)] for name in names]
    bare = [statistics.median(found[BARE]) for found in (samples, async_samples)]
    return Table(
        "overhead",
        "CPU per request over a null wire, ratio to bare httpx",
        ["", "sync", "async"],
        rows,
        [f"Bare httpx: {bare[0]:.0f} µs, async {bare[1]:.0f} µs. {versions(*subjects.PEERS)}."],
    )


def _layer_table(samples: dict[str, list[float]]) -> Table:
    names = [name for name in samples if not name.endswith("wire")]
    rows = []
    for name in names:
        wire = "async wire" if name.startswith("async") else "wire"
        own = [value - base for value, base in zip(samples[name], samples[wire], strict=True)]
        floor = samples["async floor" if name.startswith("async") else "floor"]
        least = [value - base for value, base in zip(floor, samples[wire], strict=True)]
        rows.append([name, show(own), show([a / b for a, b in zip(own, least, strict=True)])])
    return Table(
        "layers",
        "The layers alone, called without a client",
        ["", "µs", "ratio to the floor"],
        rows,
        ["Everything is in the CPU caches here; under a client, the same code takes several times as long."],
    )


def _timed(call: Callable[[], object], count: int) -> Callable[[], float]:
    """Microseconds of CPU per call, once the processor is warm."""

    def batch() -> float:
        for _ in range(count // 5):
            call()
        start = time.process_time_ns()
        for _ in range(count):
            call()
        return (time.process_time_ns() - start) / count / 1e3

    return batch


def _async_timed(
    runner: asyncio.Runner, call: Callable[[], Awaitable[object]], count: int
) -> Callable[[], float]:
    async def batch() -> float:
        for _ in range(count // 5):
            await call()
        start = time.process_time_ns()
        for _ in range(count):
            await call()
        return (time.process_time_ns() - start) / count / 1e3

    return lambda: runner.run(batch())


def _sync(count: int) -> _Calls:
    url, data = subjects.URL, subjects.DATA

    def over(wire: httpx.BaseTransport) -> Callable[[], object]:
        client = httpx.Client(transport=wire)
        return lambda: client.post(url, json=data)

    calls: dict[str, Callable[[], object]] = {BARE: over(subjects.answer())}
    for name, (mount, _) in subjects.MOUNTED.items():
        calls[name] = over(mount(subjects.answer()))
    lean = stkai.HttpClient(subjects.standard(subjects.answer()))
    calls[LEAN] = lambda: lean.post(url, data=data)
    calls[DEADLINE] = lambda: lean.post(url, data=data, deadline=60)
    import httpx2

    client2 = httpx2.Client(transport=subjects.answer(httpx2))
    calls["bare httpx2 client"] = lambda: client2.post(url, json=data)
    return {name: _timed(call, count) for name, call in calls.items()}


def _async(runner: asyncio.Runner, count: int) -> _Calls:
    url, data = subjects.URL, subjects.DATA

    def over(wire: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[object]]:
        client = httpx.AsyncClient(transport=wire)
        return lambda: client.post(url, json=data)

    calls: dict[str, Callable[[], Awaitable[object]]] = {BARE: over(subjects.answer())}
    for name, (_, mount) in subjects.MOUNTED.items():
        calls[name] = over(mount(subjects.answer()))
    lean = stkai.AsyncHttpClient(subjects.async_standard(subjects.answer()))
    calls[LEAN] = lambda: lean.post(url, data=data)
    calls[DEADLINE] = lambda: lean.post(url, data=data, deadline=60)
    import httpx2

    client2 = httpx2.AsyncClient(transport=subjects.answer(httpx2))
    calls["bare httpx2 client"] = lambda: client2.post(url, json=data)
    return {name: _async_timed(runner, call, count) for name, call in calls.items()}


def _layers(runner: asyncio.Runner, count: int) -> _Calls:
    def request() -> httpx.Request:
        return httpx.Client().build_request("POST", subjects.URL, json=subjects.DATA)

    def sync(wire: httpx.BaseTransport) -> Callable[[], float]:
        own = request()
        return _timed(lambda: wire.handle_request(own), count)

    def asynchronous(wire: httpx.AsyncBaseTransport) -> Callable[[], float]:
        own = request()
        return _async_timed(runner, lambda: wire.handle_async_request(own), count)

    wire = subjects.answer
    return {
        "wire": sync(wire()),
        "floor": sync(subjects.floor(wire())),
        "**stkai**": sync(subjects.standard(wire())),
        "async wire": asynchronous(wire()),
        "async floor": asynchronous(subjects.async_floor(wire())),
        "async **stkai**": asynchronous(subjects.async_standard(wire())),
    }


if __name__ == "__main__":
    run(measure)
