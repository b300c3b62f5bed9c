"""`python -m benchmarks.adaptive.servers`: real processes, threads and servers that never say how long to wait.

Every process sends as fast as its limiter lets it, through its whole stack, in real time. The figures are counted where
the requests leave the stack. The machine has other work, and a run is only one run: repeat before you believe.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple

import httpx
import trio

from stkai import AimdLimiter, TokenBucket, build_transport
from stkai.stores import MemoryStore

from .._harness import Table, update
from .gateways import Gateway, HaProxy, Limits, Nginx, NginxInFlight
from .metrics import jain_index
from .page import DOCS
from .scenario import Scenario
from .strategies import BALANCED, BOTOCORE, RETRY, Site, Strategy
from .virtual import TrioClock

_START = 0.3
"""Seconds within which the processes start."""

_OK, _REFUSED = httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS


class Goal(NamedTuple):
    """What a row should reach: at least, at most, at least, at least. Zero, infinity: no goal."""

    used: float
    refused: float
    jain: float = 0.0
    least: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A server, and those who send to it.

    Attributes:
        name: for the command line.
        title: for the table.
        gateway: the server.
        processes: how many share it.
        threads: of each process.
        told: requests and seconds for strategies that know the quota; None for a server without one.
        seconds: length of a run.
        warm: seconds at its start that the second figure of what was used leaves out.
        goals: of the adaptive limiter, without and with numbers.
    """

    name: str
    title: str
    gateway: Gateway
    processes: int = 4
    threads: int = 4
    told: tuple[int, float] | None = None
    seconds: float = 60.0
    warm: float = 10.0
    goals: tuple[Goal | None, Goal | None] = (None, None)


_SECOND, _MINUTE = (20, 1.0), (100, 60.0)

ROWS = (
    Row(name="burst-alone", title="nginx, burst=5 nodelay, alone", gateway=Nginx(20, burst=5), processes=1, threads=8, told=_SECOND,
        warm=5.0, goals=(Goal(0.90, 0.08), None)),
    Row(name="burst", title="nginx, burst=5 nodelay", gateway=Nginx(20, burst=5), told=_SECOND,
        goals=(Goal(0.90, 0.10, 0.90, 0.5), Goal(0.95, 0.06, 0.95, 0.6))),
    Row(name="strict-alone", title="nginx, no burst, alone", gateway=Nginx(20), processes=1, threads=8, told=_SECOND,
        goals=(Goal(0.85, 0.10), Goal(0.85, 0.10))),
    Row(name="strict", title="nginx, no burst", gateway=Nginx(20), told=_SECOND,
        goals=(Goal(0.50, 1.0, 0.90, 0.5), Goal(0.55, 1.0))),
    Row(name="delayed", title="nginx, burst=20 delayed, alone", gateway=Nginx(20, burst=20, nodelay=False), processes=1,
        threads=64, told=_SECOND, warm=5.0, goals=(Goal(0.90, 0.08), None)),
    Row(name="minute", title="nginx, 100 per minute, burst=10", gateway=Nginx(100, "m", burst=10), told=_MINUTE, seconds=100.0,
        warm=1.0, goals=(Goal(0.90, 0.20, 0.85, 0.4), Goal(0.92, 0.10, 0.90, 0.5))),
    Row(name="slots-alone", title="nginx, 8 in flight, 0.2 s each, alone", gateway=NginxInFlight(8, 0.2), processes=1, threads=32,
        goals=(Goal(0.80, 0.15), None)),
    Row(name="slots", title="nginx, 8 in flight, 0.2 s each", gateway=NginxInFlight(8, 0.2), threads=8,
        goals=(Goal(0.75, 0.20, 0.85, 0.4), None)),
    Row(name="haproxy", title="HAProxy, 20 per 1 s", gateway=HaProxy(20, 1.0), told=_SECOND),
    Row(name="haproxy-10", title="HAProxy, 100 per 10 s", gateway=HaProxy(100, 10.0), told=(100, 10.0)),
    Row(name="fixed", title="limits, fixed window, 20 per 1 s", gateway=Limits("FixedWindow", 20, 1.0), told=_SECOND),
    Row(name="moving", title="limits, moving window, 100 per 10 s", gateway=Limits("MovingWindow", 100, 10.0), told=(100, 10.0)),
    Row(name="sliding", title="limits, sliding counter, 100 per 10 s", gateway=Limits("SlidingWindowCounter", 100, 10.0),
        told=(100, 10.0)),
)  # fmt: skip


class Place(NamedTuple):
    """What a strategy may know in its process: the row, and a directory that all processes of a run have in common."""

    row: Row
    directory: str


Make = Callable[[Place], "AimdLimiter | TokenBucket | None"]


def _numbers(place: Place) -> AimdLimiter:
    return AimdLimiter(*_told(place))


def _shared(place: Place) -> AimdLimiter:
    return AimdLimiter(*_told(place), share="quota", store=f"file://{place.directory}")


def _told_share(place: Place) -> TokenBucket:
    quota, window = _told(place)
    return TokenBucket(quota / place.row.processes, window, burst=1)


def _told(place: Place) -> tuple[int, float]:
    if place.row.told is None:
        raise ValueError(f"{place.row.title} has no quota that could be told")
    return place.row.told


MINE: dict[str, Make] = {
    "none": lambda _: AimdLimiter(),
    "numbers": _numbers,
    "shared": _shared,
    "retries": lambda _: None,
    "share": _told_share,
}
"""Strategies of stkai, as threads: no numbers, numbers, shared through a file, retries alone, a share that is told."""

OTHERS: dict[str, Strategy] = {"botocore": BOTOCORE, "0.4.18": BALANCED}
"""Others, as tasks of trio, around the same wire."""

NEED_NUMBERS = frozenset({"numbers", "shared", "share", "0.4.18"})


class Report(NamedTuple):
    """What one process saw: instants of accepted and of refused requests, from the common start, and failed calls."""

    number: int
    accepted: list[float]
    refused: list[float]
    failed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run, or the mean of several."""

    used: float
    used_warm: float
    refused: float
    jain: float
    least: float
    failed: float


class _Record:
    """Notes every answer of a process."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int]] = []
        self.failed = 0

    def note(self, response: httpx.Response) -> httpx.Response:
        self.answers.append((time.monotonic(), response.status_code))
        return response

    def note_call(self, response: httpx.Response | None) -> None:
        self.failed += response is None or not response.is_success


class _Wire(httpx.HTTPTransport):
    def __init__(self, record: _Record) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
        self._record = record

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._record.note(super().handle_request(request))


class _AsyncWire(httpx.AsyncHTTPTransport):
    def __init__(self, record: _Record) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
        self._record = record

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._record.note(await super().handle_async_request(request))


def run(row: Row, strategy: str, seed: int) -> list[Report]:
    """Start the server and the processes, and return what each process saw."""
    context = multiprocessing.get_context("spawn")
    reports: Queue[Report] = context.Queue()
    ready = context.Barrier(row.processes)
    with row.gateway.serving() as url, tempfile.TemporaryDirectory(prefix="stkai-servers-") as directory:
        place = Place(row, directory)
        workers = [
            context.Process(target=_work, args=(place, strategy, seed, number, url, ready, reports), daemon=True)
            for number in range(row.processes)
        ]
        for worker in workers:
            worker.start()
        found = [reports.get(timeout=row.seconds + 60) for _ in workers]
        for worker in workers:
            worker.join()
    return sorted(found)


def _work(
    place: Place,
    strategy: str,
    seed: int,
    number: int,
    url: str,
    ready: threading.Barrier,
    reports: "Queue[Report]",
) -> None:
    row, record = place.row, _Record()
    chance = random.Random(repr((seed, number)))  # noqa: S311 - nothing here is a secret
    ready.wait(60)
    start = time.monotonic()
    time.sleep(chance.uniform(0, _START))
    send = _send_in_threads if strategy in MINE else _send_in_tasks
    sender = threading.Thread(target=send, args=(place, strategy, number, chance, url, record), daemon=True)
    sender.start()
    time.sleep(max(0.0, start + row.seconds - time.monotonic()))
    answers = [(instant - start, status) for instant, status in list(record.answers)]
    times = {
        status: [instant for instant, found in answers if found == status] for status in (_OK, _REFUSED)
    }
    reports.put(Report(number, times[_OK], times[_REFUSED], record.failed))
    reports.close()
    reports.join_thread()
    os._exit(0)  # Calls may still wait for a long time.


def _send_in_threads(
    place: Place, strategy: str, number: int, chance: random.Random, url: str, record: _Record
) -> None:
    limiter = MINE[strategy](place)
    transport = build_transport(auth=None, rate_limit=limiter, retry=RETRY, transport=_Wire(record))
    with httpx.Client(transport=transport) as client, ThreadPoolExecutor(place.row.threads) as pool:
        for _ in range(place.row.threads):
            pool.submit(_send, client, url, record)


def _send(client: httpx.Client, url: str, record: _Record) -> None:
    while True:
        try:
            record.note_call(client.post(url, json={}))
        except httpx.HTTPError:
            record.note_call(None)


def _send_in_tasks(
    place: Place, strategy: str, number: int, chance: random.Random, url: str, record: _Record
) -> None:
    trio.run(_tasks, place, strategy, number, chance, url, record)


async def _tasks(
    place: Place, strategy: str, number: int, chance: random.Random, url: str, record: _Record
) -> None:
    row = place.row
    quota, window = row.told or (0, 1.0)
    scenario = Scenario(processes=row.processes, workers=row.threads, quota=quota, window=window)
    clock = TrioClock()
    site = Site(scenario, _AsyncWire(record), clock, chance, number, MemoryStore(clock))
    async with httpx.AsyncClient(transport=OTHERS[strategy].build(site)) as client, trio.open_nursery() as nursery:
        for _ in range(row.threads):
            nursery.start_soon(_send_asynchronously, client, url, record)


async def _send_asynchronously(client: httpx.AsyncClient, url: str, record: _Record) -> None:
    while True:
        try:
            record.note_call(await client.post(url, json={}))
        except httpx.HTTPError:
            record.note_call(None)


def figures(row: Row, reports: Sequence[Report]) -> Figures:
    """The figures of a run."""
    counts = [len(report.accepted) for report in reports]
    total = max(1, sum(counts))
    warm = sum(instant >= row.warm for report in reports for instant in report.accepted)
    return Figures(
        used=sum(counts) / (row.gateway.capacity * row.seconds),
        used_warm=warm / (row.gateway.capacity * (row.seconds - row.warm)),
        refused=sum(len(report.refused) for report in reports) / total,
        jain=jain_index(counts) or 0.0,
        least=min(counts) * len(counts) / total,
        failed=sum(report.failed for report in reports) / total,
    )


def mean(runs: Sequence[Figures]) -> Figures:
    """The mean of each figure; of the least share, the worst run."""
    names = ("used", "used_warm", "refused", "jain", "failed")
    means = {name: statistics.fmean(getattr(run, name) for run in runs) for name in names}
    return replace(Figures(**means, least=0.0), least=min(run.least for run in runs))


def cells(row: Row, strategy: str, found: Figures) -> list[str]:
    """A line of the table; a figure that misses its goal is bold."""
    goal = row.goals[strategy == "numbers"] if strategy in ("none", "numbers") else None
    goal = goal or Goal(0.0, float("inf"))
    crowd = row.processes > 1
    return [
        strategy,
        f"{found.used:.2f}",
        _marked(found.used_warm, goal.used, at_least=True),
        _marked(found.refused, goal.refused),
        _marked(found.jain, goal.jain, at_least=True) if crowd else "",
        _marked(found.least, goal.least, at_least=True) if crowd else "",
        f"{found.failed:.1%}",
    ]


def _marked(value: float, limit: float, *, at_least: bool = False) -> str:
    text = f"{value:.2f}"
    met = round(value, 2) >= limit if at_least else round(value, 2) <= limit
    return text if met else f"**{text}**"


COLUMNS = ("", "quota used", "after the start", "429 per success", "Jain", "least/mean", "failed")


def main(argv: Sequence[str] | None = None) -> None:
    """Run every strategy on every server, and print the table."""
    arguments = _parse(argv)
    rows = []
    for row in ROWS:
        if arguments.rows and row.name not in arguments.rows:
            continue
        if row.gateway.missing:
            print(f"{row.title}: skipped, {row.gateway.missing} is not installed")
            continue
        row = _adjusted(row, arguments)  # noqa: PLW2901 - the same row, as asked for
        rows.append([f"*{row.title}: {row.processes} x {row.threads}*", *([""] * (len(COLUMNS) - 1))])
        for strategy in arguments.strategies:
            if row.told is None and strategy in NEED_NUMBERS:
                continue
            runs = [
                figures(row, run(row, strategy, seed))
                for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
            ]
            rows.append(cells(row, strategy, mean(runs)))
            print(f"{row.name:13}", *(f"{cell:>9}" for cell in rows[-1]), f"  load {os.getloadavg()[0]:.1f}", flush=True)
    note = f"Means of {arguments.seeds} run(s); of the least share, the worst."
    table = Table("servers", "Servers that never say how long to wait", COLUMNS, rows, [note])
    table.show()
    if arguments.markdown:
        arguments.markdown.write_text(table.markdown() + "\n")
    if arguments.update:
        update([table], DOCS)


def _adjusted(row: Row, arguments: argparse.Namespace) -> Row:
    processes, threads = arguments.crowd or (row.processes, row.threads)
    seconds = arguments.seconds or row.seconds
    return replace(row, processes=processes, threads=threads, seconds=seconds, warm=min(row.warm, seconds / 2))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive.servers", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="these servers only")
    names = [*MINE, *OTHERS]
    parser.add_argument("--strategies", nargs="+", choices=names, default=names[:4], help="these strategies only")
    parser.add_argument("--seconds", type=float, help="length of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, whose mean is shown")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--crowd", type=_crowd, metavar="4x4", help="processes x threads, instead of each row's own")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--update", action="store_true", help="put the table into the page")
    return parser.parse_args(argv)


def _crowd(text: str) -> tuple[int, int]:
    processes, _, threads = text.partition("x")
    return int(processes), int(threads)


if __name__ == "__main__":
    main()
