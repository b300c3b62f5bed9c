"""How the wire copes with many requests in flight: `python -m benchmarks.concurrency`."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._crowd import async_throughput, throughput
from benchmarks._harness import Table, counted, interleave, ratios, run, show, versions
from benchmarks._server import serving

AT_ONCE = (1, 8, 32, 100)
THREADS = (1, 32)
LIMITS = {"200 connections, all kept": (200, 200), "httpx's defaults: 100, of which 20 kept": (100, 20)}
BARE = "httpx"


def measure(quick: bool) -> Sequence[Table]:
    """Requests per second by the number in flight, through the wires of httpx and httpx2 and stkai's default one."""
    rounds = 3 if quick else 11
    rows = []
    columns: list[str] = []
    with serving() as url:
        for title, limits in LIMITS.items():
            runs = {counted(number, "task"): _tasks(url, limits, number) for number in AT_ONCE}
            runs |= {counted(number, "thread"): _threads(url, limits, number) for number in THREADS}
            for name, clients in runs.items():
                samples = interleave(clients, rounds)
                faster = ratios(samples, BARE)
                del faster[BARE]
                columns = list(faster)
                rows.append([title, name, show(samples[BARE], 0), *map(show, faster.values())])
    note = f"Without layers. {versions('httpx', 'httpcore', 'httpx2', 'httpcore2')}."
    titles = ["limits", "at once", f"{BARE}, requests/s", *columns]
    return [Table("concurrency", "Requests in flight, the same limits for all", titles, rows, [note])]


def configure(limits: tuple[int, int], package: Any = httpx) -> Any:
    """Set stkai's limits, and return the same for a client of the package."""
    most, kept = limits
    stkai.STKAI.configure(http={"max_connections": most, "max_keepalive_connections": kept})
    return package.Limits(max_connections=most, max_keepalive_connections=kept)


def _tasks(url: str, limits: tuple[int, int], at_once: int) -> dict[str, Callable[[], float]]:
    async def send(new_client: Callable[[], Any], **body: object) -> float:
        async with new_client() as client:
            count = max(300, 8 * at_once)
            return await async_throughput(lambda: client.post(url, **body), at_once, count)

    return _runs("AsyncClient", limits, lambda *client, **body: asyncio.run(send(*client, **body)))


def _threads(url: str, limits: tuple[int, int], threads: int) -> dict[str, Callable[[], float]]:
    def send(new_client: Callable[[], Any], **body: object) -> float:
        with new_client() as client:
            return throughput(lambda: client.post(url, **body), threads, max(300, 15 * threads))

    return _runs("Client", limits, send)


def _runs(kind: str, limits: tuple[int, int], send: Callable[..., float]) -> dict[str, Callable[[], float]]:
    """One run for each client: `send` takes a function that makes the client, and the body of its requests."""
    import httpx2

    is_async = kind == "AsyncClient"
    build = stkai.build_async_transport if is_async else stkai.build_transport
    own_client = stkai.AsyncHttpClient if is_async else stkai.HttpClient

    def bare(package: Any) -> Any:
        return getattr(package, kind)(limits=configure(limits, package))

    def over_wire(client: Callable[..., Any]) -> Any:
        configure(limits)
        return client(transport=build(auth=None, rate_limit=None, retry=None))

    runs = {}
    for package in (httpx, httpx2):
        name, client = package.__name__, getattr(package, kind)
        runs[name] = partial(send, partial(bare, package), json=subjects.DATA)
        runs[f"{name} over stkai's wire"] = partial(send, partial(over_wire, client), json=subjects.DATA)
    runs["stkai's client over that"] = partial(send, partial(over_wire, own_client), data=subjects.DATA)
    return runs


if __name__ == "__main__":
    run(measure)
