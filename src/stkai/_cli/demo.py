"""Real requests from several processes to an embedded server, through one strategy after another."""

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

import httpx

from .._auth import ClientCredentialsAuthProvider
from .._builder import build_client
from .._clock import SystemClock
from ..stores import FileStore
from ..testing import QuotaServer
from ..transports._limits.aimd import AimdLimiter
from ..transports._limits.token_bucket import TokenBucket

SEARCHING: Final = "adaptive, no numbers"
STRATEGIES: Final = ("no limiter", "token bucket", "adaptive", SEARCHING, "shared")
_PATH: Final = "/v1/quick-commands"
_STATUSES: Final = (httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS)
_REFRESH: Final = 0.1
"""Seconds between two reports of the progress."""


@dataclass(frozen=True, slots=True)
class StrategyRun:
    """How one strategy did.

    Attributes:
        sent: Requests that reached the server; each attempt counts.
        accepted: When the server accepted a request, in seconds from the first one.
        refused: When it answered one with 429.
        seconds: The durations of the calls that succeeded, waiting included, in ascending order.
        failed: How many calls failed for good.
        lost: How many calls vanished.
        found: The sum of the rates that the processes had found at their ends, in requests per second; None if they
            were not searching.
        senders: What the requests in `accepted` were signed with, which differs between the processes.
    """

    name: str
    sent: int
    accepted: list[float]
    refused: list[float]
    seconds: list[float]
    failed: int = 0
    lost: int = 0
    found: float | None = None
    senders: Sequence[str | None] = ()

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

    def run(self, strategy: str, show: Callable[[int, int], None]) -> StrategyRun:
        """Send the batch through one strategy to a server of its own.

        `show` is called ten times a second, with how many requests the server has accepted and refused so far.
        """
        with (
            QuotaServer(self.quota, self.window, latency=(0.01, 0.03)) as server,
            tempfile.TemporaryDirectory(prefix="stkai-demo-") as directory,
            ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), max_tasks_per_child=1
            ) as pool,
        ):
            target = _Endpoint(
                server.create_url(), server.token_url, server.client_id, server.client_secret, directory
            )
            workers = [pool.submit(_work, self, strategy, target) for _ in range(self.processes)]
            while wait(workers, _REFRESH).not_done:
                show(*(server.count(path=_PATH, status=status) for status in _STATUSES))
            reports = [worker.result() for worker in workers if worker.exception() is None]
            return self._judge(strategy, reports, server)

    def _judge(self, strategy: str, reports: list["_Report"], server: QuotaServer) -> StrategyRun:
        rates = [report.rate for report in reports if report.rate is not None]
        records = [record for record in server.requests if record.path.startswith(_PATH)]
        records.sort(key=lambda record: record.time)
        start = records[0].time if records else 0.0
        accepted, refused = (
            [record for record in records if record.status == status] for status in _STATUSES
        )
        seconds = sorted(duration for report in reports for duration in report.seconds)
        failed = sum(report.failed for report in reports)
        return StrategyRun(
            strategy,
            sent=len(records),
            accepted=[record.time - start for record in accepted],
            refused=[record.time - start for record in refused],
            seconds=seconds,
            senders=[record.authorization for record in accepted],
            failed=failed,
            lost=self.requests * self.processes - len(seconds) - failed,
            found=sum(rates) if rates else None,
        )


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where a worker sends, its credentials, and the directory of the shared quota."""

    url: str
    token_url: str
    client_id: str
    client_secret: str
    directory: str


@dataclass(frozen=True, slots=True)
class _Report:
    """How long a process's successful calls took, how many failed, and the rate that it has found, if it had to."""

    seconds: list[float]
    failed: int
    rate: float | None


def _work(batch: Batch, strategy: str, target: _Endpoint) -> _Report:
    """One process: a client of its own, shared by its threads."""
    clock = SystemClock()
    provider = ClientCredentialsAuthProvider(target.client_id, target.client_secret, target.token_url)
    limiter = _limiter(batch, strategy, target.directory)
    with (
        build_client(auth=provider, rate_limit=limiter) as client,
        ThreadPoolExecutor(batch.threads) as pool,
    ):

        def send(request: int) -> float | None:
            """The duration of a call; None if it failed."""
            start = clock.monotonic()
            try:
                answer = client.post(target.url, {"input_data": f"request {request}"})
            except httpx.HTTPError:
                return None
            return clock.monotonic() - start if answer.is_success else None

        durations = list(pool.map(send, range(batch.requests)))
    seconds = [duration for duration in durations if duration is not None]
    rate = limiter.rate if limiter is not None and strategy == SEARCHING else None
    return _Report(seconds, len(durations) - len(seconds), rate)


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
