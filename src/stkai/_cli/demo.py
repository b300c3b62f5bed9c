"""Real requests from several processes to an embedded server, through one strategy after another."""

import multiprocessing
import queue
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Final

import httpx

from .._auth import ClientCredentialsAuthProvider
from .._builder import build_client
from .._clock import SystemClock
from ..stores import FileStore
from ..testing import QuotaServer
from ..transports._limits.aimd import AimdLimiter
from ..transports._limits.token_bucket import TokenBucket

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

SEARCHING: Final = "adaptive, no numbers"
STRATEGIES: Final = ("no limiter", "token bucket", "adaptive", SEARCHING, "shared")
_PATIENCE: Final = 120.0
"""Seconds without a message after which the rest of a run is given up and counted as lost."""


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of one call: whether it succeeded, after how many seconds, and in which process.

    Attributes:
        rate: the rate that the process had found by then, in requests per second; None if it was not searching.
    """

    process: int
    succeeded: bool
    seconds: float
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class StrategyRun:
    """How one strategy did.

    Attributes:
        name: The strategy's name.
        sent: Requests that reached the server; each attempt counts.
        accepted: When the server accepted a request, in seconds from the first one.
        refused: When it answered one with 429.
        seconds: The durations of the calls that succeeded, waiting included, in ascending order.
        failed: How many calls failed for good.
        lost: How many calls vanished.
        found: The sum of the rates that the processes had found at their ends, in requests per second; None if they
            were not searching.
    """

    name: str
    sent: int
    accepted: list[float]
    refused: list[float]
    seconds: list[float]
    failed: int = 0
    lost: int = 0
    found: float | None = None

    def quantile(self, percent: int) -> float:
        """The duration that this percentage of the calls that succeeded did not exceed, in seconds."""
        if len(self.seconds) < 2:
            return self.seconds[0] if self.seconds else 0.0
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, slots=True)
class Batch:
    """So many calls from each process, sent by so many threads, against a quota per window of seconds."""

    requests: int
    processes: int
    threads: int
    quota: int
    window: float

    def run(self, strategy: str, advance: Callable[[CallEnd], None]) -> StrategyRun:
        """Send the batch through one strategy to a server of its own; `advance` is called with every outcome."""
        clock = SystemClock()
        with (
            QuotaServer(self.quota, self.window, latency=(0.01, 0.03)) as server,
            tempfile.TemporaryDirectory(prefix="stkai-demo-") as directory,
        ):
            context = multiprocessing.get_context("spawn")
            outcomes: Queue[CallEnd] = context.Queue()
            target = _Endpoint(
                server.create_url(), server.token_url, server.client_id, server.client_secret, directory
            )
            workers = [
                context.Process(target=_work, args=(self, strategy, target, number, outcomes), daemon=True)
                for number in range(self.processes)
            ]
            for worker in workers:
                worker.start()
            ends = list(_collect(self.requests * self.processes, outcomes, workers, advance, clock))
            for worker in workers:
                worker.join(1.0)
                worker.terminate()
            return self._judge(strategy, ends, server)

    def _judge(self, strategy: str, ends: list[CallEnd], server: QuotaServer) -> StrategyRun:
        rates = {end.process: end.rate for end in ends if end.rate is not None}
        records = [record for record in server.requests if record.path.startswith("/v1/quick-commands")]
        start = min((record.time for record in records), default=0.0)

        def instants(status: int) -> list[float]:
            return sorted(record.time - start for record in records if record.status == status)

        return StrategyRun(
            strategy,
            sent=len(records),
            accepted=instants(httpx.codes.OK),
            refused=instants(httpx.codes.TOO_MANY_REQUESTS),
            seconds=sorted(end.seconds for end in ends if end.succeeded),
            failed=sum(not end.succeeded for end in ends),
            lost=self.requests * self.processes - len(ends),
            found=sum(rates.values()) if rates else None,
        )


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where a worker sends, its credentials, and the directory of the shared quota."""

    url: str
    token_url: str
    client_id: str
    client_secret: str
    directory: str


def _collect(
    expected: int,
    outcomes: "Queue[CallEnd]",
    workers: Sequence[BaseProcess],
    advance: Callable[[CallEnd], None],
    clock: SystemClock,
) -> Iterator[CallEnd]:
    """Yield each outcome as it arrives, until all have arrived or no more can, and pass it to `advance`."""
    last = clock.monotonic()
    while expected:
        try:
            end = outcomes.get(timeout=0.2)
        except queue.Empty:
            alive = any(worker.is_alive() for worker in workers)
            if not alive or clock.monotonic() - last > _PATIENCE:
                return
            continue
        last = clock.monotonic()
        expected -= 1
        advance(end)
        yield end


def _work(batch: Batch, strategy: str, target: _Endpoint, number: int, outcomes: "Queue[CallEnd]") -> None:
    """One process: a client of its own, shared by its threads."""
    clock = SystemClock()
    provider = ClientCredentialsAuthProvider(target.client_id, target.client_secret, target.token_url)
    limiter = _limiter(batch, strategy, target.directory)
    with (
        build_client(auth=provider, rate_limit=limiter) as client,
        ThreadPoolExecutor(batch.threads) as pool,
    ):

        def send(request: int) -> None:
            start = clock.monotonic()
            try:
                answer = client.post(target.url, {"input_data": f"request {request} of process {number}"})
                succeeded = answer.is_success
            except httpx.HTTPError:
                succeeded = False
            rate = limiter.rate if limiter is not None and strategy == SEARCHING else None
            outcomes.put(CallEnd(number, succeeded, clock.monotonic() - start, rate))

        list(pool.map(send, range(batch.requests)))


def _limiter(batch: Batch, strategy: str, directory: str) -> TokenBucket | AimdLimiter | None:
    """What each process knows: its part of the quota, the quota, or nothing."""
    match strategy:
        case "token bucket":
            return TokenBucket(batch.quota / batch.processes, batch.window, burst=1)
        case "adaptive":
            return AimdLimiter(batch.quota, batch.window)
        case strategy if strategy == SEARCHING:
            return AimdLimiter()
        case "shared":
            store = FileStore(directory)
            return TokenBucket(batch.quota, batch.window, burst=1, share="demo", store=store)
        case _:
            return None
