"""What many requests in flight do to the wire: `python -m benchmarks.concurrency`."""

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
BARE, OURS = "bare", "ours"


def measure(quick: bool) -> Sequence[Table]:
    """Requests per second with so many in flight, through stkai's default wire and through httpx's own."""
    rounds = 3 if quick else 11
    rows = []
    with serving() as url:
        for title, limits in LIMITS.items():
            runs = {counted(number, "task"): _tasks(url, limits, number) for number in AT_ONCE}
            runs |= {counted(number, "thread"): _threads(url, limits, number) for number in THREADS}
            rows += [[title, name, *_cells(run_, rounds)] for name, run_ in runs.items()]
    columns = ["limits", "at once", "httpx, requests/s", "stkai's wire, requests/s", "ratio"]
    note = f"Both wires under an httpx client, without layers. {versions('httpx', 'httpcore')}."
    return [Table("concurrency", "Requests in flight, the same limits for both", columns, rows, [note])]


def _cells(runs: dict[str, Callable[[], float]], rounds: int) -> list[str]:
    samples = interleave(runs, rounds)
    return [show(samples[BARE], 0), show(samples[OURS], 0), show(ratios(samples, BARE)[OURS])]


def configure(limits: tuple[int, int]) -> httpx.Limits:
    """Set stkai's limits, and return the same for httpx."""
    most, kept = limits
    stkai.STKAI.configure(http={"max_connections": most, "max_keepalive_connections": kept})
    return httpx.Limits(max_connections=most, max_keepalive_connections=kept)


def _tasks(url: str, limits: tuple[int, int], at_once: int) -> dict[str, Callable[[], float]]:
    count = max(300, 8 * at_once)

    async def send(client: httpx.AsyncClient) -> float:
        async with client:
            return await async_throughput(lambda: client.post(url, json=subjects.DATA), at_once, count)

    def bare() -> float:
        return asyncio.run(send(httpx.AsyncClient(limits=configure(limits))))

    def ours() -> float:
        configure(limits)
        wire = stkai.build_async_transport(auth=None, rate_limit=None, retry=None)
        return asyncio.run(send(httpx.AsyncClient(transport=wire)))

    return {BARE: bare, OURS: ours}


def _threads(url: str, limits: tuple[int, int], threads: int) -> dict[str, Callable[[], float]]:
    count = max(300, 15 * threads)

    def send(client: httpx.Client) -> float:
        with client:
            return throughput(lambda: client.post(url, json=subjects.DATA), threads, count)

    def bare() -> float:
        return send(httpx.Client(limits=configure(limits)))

    def ours() -> float:
        configure(limits)
        return send(httpx.Client(transport=stkai.build_transport(auth=None, rate_limit=None, retry=None)))

    return {BARE: bare, OURS: ours}


if __name__ == "__main__":
    run(measure)
