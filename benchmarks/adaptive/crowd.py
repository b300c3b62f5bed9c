"""Real processes that send to one real server, each as fast as its limiter lets it, through its whole stack."""

import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import Queue
from typing import NamedTuple

import httpx
import trio

from stkai import AimdLimiter, TokenBucket, build_transport
from stkai.stores import MemoryStore

from .rows import Row
from .scenario import Scenario
from .site import RETRY, Site
from .strategies import BALANCED, BOTOCORE, Strategy
from .virtual import TrioClock

_START = 0.3
"""Seconds within which the processes start."""

_OK, _REFUSED = httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS


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


class _Record:
    """Notes every answer of a process.

    Args:
        ready: all processes of the run meet here, once each has its stack.
        delay: seconds after which this one then starts.
    """

    def __init__(self, ready: threading.Barrier, delay: float) -> None:
        self._ready, self._delay = ready, delay
        self.begun = threading.Event()
        self.start = 0.0
        self.answers: list[tuple[float, int]] = []
        self.failed = 0

    def begin(self) -> None:
        """Wait for the others, and for one's turn."""
        self._ready.wait(60)
        self.start = time.monotonic()
        self.begun.set()
        time.sleep(self._delay)

    def note(self, response: httpx.Response) -> httpx.Response:
        self.answers.append((time.monotonic() - self.start, response.status_code))
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
            context.Process(
                target=_work, args=(place, strategy, seed, number, url, ready, reports), daemon=True
            )
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
    chance = random.Random(repr((seed, number)))  # noqa: S311 - nothing here is a secret
    record = _Record(ready, chance.uniform(0, _START))
    send = _send_in_threads if strategy in MINE else _send_in_tasks
    sender = threading.Thread(target=send, args=(place, strategy, number, chance, url, record), daemon=True)
    sender.start()
    record.begun.wait(60)
    time.sleep(max(0.0, record.start + place.row.seconds - time.monotonic()))
    answers = list(record.answers)
    times = {status: [instant for instant, found in answers if found == status] for status in (_OK, _REFUSED)}
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
        record.begin()
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
    async with (
        httpx.AsyncClient(transport=OTHERS[strategy].build(site)) as client,
        trio.open_nursery() as nursery,
    ):
        record.begin()
        for _ in range(row.threads):
            nursery.start_soon(_send_asynchronously, client, url, record)


async def _send_asynchronously(client: httpx.AsyncClient, url: str, record: _Record) -> None:
    while True:
        try:
            record.note_call(await client.post(url, json={}))
        except httpx.HTTPError:
            record.note_call(None)
