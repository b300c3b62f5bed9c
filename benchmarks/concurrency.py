"""How the wire copes with many requests in flight: `python -m benchmarks.concurrency`."""

import asyncio
from collections.abc import Callable, Sequence

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._crowd import async_throughput, throughput
from benchmarks._harness import Table, counted, interleave, ratios, run, show, versions
from benchmarks._server import serving

AT_ONCE = (1, 8, 32, 100)
THREADS = (1, 32)
LIMITS = {"200 connections, all kept": (200, 200), "httpx's defaults: 100, of which 20 kept": (100, 20)}
BARE, MOUNTED, OWN = "httpx", "mounted", "own"


def measure(quick: bool) -> Sequence[Table]:
    """Requests per second by the number in flight, through httpx's own wire and through stkai's default one."""
    rounds = 3 if quick else 11
    rows = []
    with serving() as url:
        for title, limits in LIMITS.items():
            runs = {counted(number, "task"): _tasks(url, limits, number) for number in AT_ONCE}
            runs |= {counted(number, "thread"): _threads(url, limits, number) for number in THREADS}
            rows += [[title, name, *_cells(run_, rounds)] for name, run_ in runs.items()]
    columns = [
        "limits",
        "at once",
        "httpx, requests/s",
        "httpx over stkai's wire",
        "stkai's client over that",
    ]
    note = f"Without layers. {versions('httpx', 'httpcore')}."
    return [Table("concurrency", "Requests in flight, the same limits for all", columns, rows, [note])]


def _cells(runs: dict[str, Callable[[], float]], rounds: int) -> list[str]:
    samples = interleave(runs, rounds)
    faster = ratios(samples, BARE)
    return [show(samples[BARE], 0), show(faster[MOUNTED]), show(faster[OWN])]


def configure(limits: tuple[int, int]) -> httpx.Limits:
    """Set stkai's limits, and return the same for httpx."""
    most, kept = limits
    stkai.STKAI.configure(http={"max_connections": most, "max_keepalive_connections": kept})
    return httpx.Limits(max_connections=most, max_keepalive_connections=kept)


def _tasks(url: str, limits: tuple[int, int], at_once: int) -> dict[str, Callable[[], float]]:
    count = max(300, 8 * at_once)

    async def through_httpx(client: httpx.AsyncClient) -> float:
        async with client:
            return await async_throughput(lambda: client.post(url, json=subjects.DATA), at_once, count)

    async def through_ours(client: stkai.AsyncHttpClient) -> float:
        async with client:
            return await async_throughput(lambda: client.post(url, data=subjects.DATA), at_once, count)

    def wire() -> httpx.AsyncBaseTransport:
        configure(limits)
        return stkai.build_async_transport(auth=None, rate_limit=None, retry=None)

    return {
        BARE: lambda: asyncio.run(through_httpx(httpx.AsyncClient(limits=configure(limits)))),
        MOUNTED: lambda: asyncio.run(through_httpx(httpx.AsyncClient(transport=wire()))),
        OWN: lambda: asyncio.run(through_ours(stkai.AsyncHttpClient(wire()))),
    }


def _threads(url: str, limits: tuple[int, int], threads: int) -> dict[str, Callable[[], float]]:
    count = max(300, 15 * threads)

    def through_httpx(client: httpx.Client) -> float:
        with client:
            return throughput(lambda: client.post(url, json=subjects.DATA), threads, count)

    def through_ours(client: stkai.HttpClient) -> float:
        with client:
            return throughput(lambda: client.post(url, data=subjects.DATA), threads, count)

    def wire() -> httpx.BaseTransport:
        configure(limits)
        return stkai.build_transport(auth=None, rate_limit=None, retry=None)

    return {
        BARE: lambda: through_httpx(httpx.Client(limits=configure(limits))),
        MOUNTED: lambda: through_httpx(httpx.Client(transport=wire())),
        OWN: lambda: through_ours(stkai.HttpClient(wire())),
    }


if __name__ == "__main__":
    run(measure)
