"""`stkai demo`: several processes share a small quota, first without a limiter, then with each kind of limiter.

They send real requests to an embedded server.
"""

import math
import multiprocessing
import signal
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Annotated, Final

import httpx
import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .._auth import ClientCredentialsAuthProvider
from .._batch.send_all import send_all
from .._builder import build_client
from .._errors import digits
from ..stores import FileStore
from ..testing import QuotaServer
from ..transports._limits.quota_limiters import AimdLimiter, TokenBucket

_PATH: Final = "/v1/quick-commands"
_FIGURES: Final = ("sent", "ok", "429", "failed", "p50 s", "p95 s")
_NAMES: Final = 23  # Width of the first column, in characters.
_GAP: Final = 2  # Characters between two columns.
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
_ASCII: Final = " .:-=+*#@"


@dataclass(frozen=True, slots=True)
class StrategyRun:
    """The result of one strategy: numbers of requests and calls, and times in seconds from the first request."""

    name: str
    sent: int  # Requests that reached the server; each attempt counts.
    accepted: list[float]
    refused: list[float]
    seconds: list[float]  # The durations of the calls that succeeded, waiting included, in ascending order.
    failed: int = 0
    lost: int = 0  # Calls with an unknown outcome.
    found: float | None = None  # Requests/s that all processes found together; None without a search.
    senders: Sequence[str | None] = ()  # The `Authorization` of `accepted`, which differs between processes.

    def quantile(self, percent: int) -> float:
        if len(self.seconds) < 2:
            return self.seconds[0] if self.seconds else 0.0
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests and threads of each process, and the server's quota per `window` seconds."""

    requests: int
    processes: int
    threads: int
    quota: int
    window: float

    def run(self, strategy: str) -> StrategyRun:
        """Send the batch with one strategy to a new server."""
        with (
            QuotaServer(self.quota, self.window, latency=(0.01, 0.03)) as server,
            tempfile.TemporaryDirectory(prefix="stkai-demo-") as directory,
            ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn")) as pool,
        ):
            url, credentials = server.create_url(), (server.client_id, server.client_secret, server.token_url)
            # Ctrl-C reaches every process. The new ones inherit that they ignore it, and this one kills them.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            workers = [
                pool.submit(_work, self, strategy, url, credentials, directory) for _ in range(self.processes)
            ]
            signal.signal(signal.SIGINT, before)
            try:
                wait(workers)
            except BaseException:
                for process in multiprocessing.active_children():
                    process.kill()
                raise
            reports = [worker.result() for worker in workers if worker.exception() is None]
            return self._result_of(strategy, reports, server)

    def _result_of(self, strategy: str, reports: list["_Report"], server: QuotaServer) -> StrategyRun:
        rates = [rate for _, rate in reports if rate is not None]
        records = [record for record in server.requests if record.path.startswith(_PATH)]
        records.sort(key=lambda record: record.time)
        start = records[0].time if records else 0.0
        accepted = [record for record in records if record.status == httpx.codes.OK]
        refused = [record for record in records if record.status == httpx.codes.TOO_MANY_REQUESTS]
        seconds = sorted(duration for durations, _ in reports for duration in durations)
        return StrategyRun(
            strategy,
            sent=len(records),
            accepted=[record.time - start for record in accepted],
            refused=[record.time - start for record in refused],
            seconds=seconds,
            senders=[record.authorization for record in accepted],
            failed=self.requests * len(reports) - len(seconds),
            lost=self.requests * (self.processes - len(reports)),
            found=sum(rates) if rates else None,
        )


SEARCHING: Final = "adaptive, no numbers"
_LIMITERS: Final[dict[str, tuple[str, Callable[[Batch, str], TokenBucket | AimdLimiter | None]]]] = {
    "no limiter": ("retries only", lambda *_: None),
    "token bucket": (
        "given its part",
        lambda batch, _: TokenBucket(batch.quota / batch.processes, batch.window, burst=1),
    ),
    "adaptive": ("given the quota", lambda batch, _: AimdLimiter(batch.quota, batch.window)),
    SEARCHING: ("given nothing", lambda *_: AimdLimiter()),
    "shared": (
        "permits through a file",
        lambda batch, folder: TokenBucket(
            batch.quota, batch.window, burst=1, share="demo", store=FileStore(folder)
        ),
    ),
}
"""For each strategy, what each process knows about the quota and the other processes, and its limiter."""

STRATEGIES: Final = tuple(_LIMITERS)


_Report = tuple[list[float], float | None]
"""The durations of a process's successful calls, in seconds, and the rate that it found, if it searched."""


def _work(
    batch: Batch, strategy: str, url: str, credentials: tuple[str, str, str], directory: str
) -> _Report:
    """One process: a client that its threads share; `directory` is that of the shared quota."""
    limiter, auth = _LIMITERS[strategy][1](batch, directory), ClientCredentialsAuthProvider(*credentials)
    requests = (
        httpx.Request("POST", url, json={"input_data": f"request {number}"})
        for number in range(batch.requests)
    )
    with build_client(auth=auth, rate_limit=limiter) as client:
        outcomes = list(send_all(client, requests, max_in_flight=batch.threads))
    answers = [outcome.response for outcome in outcomes if outcome.response is not None]
    rate = limiter.rate if limiter is not None and strategy == SEARCHING else None
    return [answer.elapsed.total_seconds() for answer in answers if answer.is_success], rate


def demo(
    requests: Annotated[int, typer.Option(min=1, help="Calls from each process.")] = 30,
    processes: Annotated[int, typer.Option(min=1, max=32, help="Processes that share the quota.")] = 4,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Threads in each process.")] = 8,
    quota: Annotated[int, typer.Option(min=1, max=100_000, help="Requests accepted per window.")] = 20,
    window: Annotated[float, typer.Option(min=0.1, max=3600, help="Length of the window, in seconds.")] = 1.0,
) -> None:
    """Send real requests from several processes to an embedded server with a small quota.

    First without a limiter, then with a token bucket, an adaptive limiter, one that has to find the quota, and a shared
    one.
    """
    console, batch = Console(), Batch(requests, processes, threads, quota, window)
    console.print(
        f"{processes} processes of {threads} threads make {requests} calls each, with up to 4 attempts a call."
        f" A server on this machine accepts {quota} requests per {window:g} s; the rest get 429.\n",
        highlight=False,
    )
    runs: list[StrategyRun] = []
    with Live(console=console, refresh_per_second=8) as live:
        for strategy in STRATEGIES:
            live.update(Group(_table(runs, batch, console), f"\n{strategy} ..."))
            runs.append(batch.run(strategy))
        live.update(_table(runs, batch, console))
    lost = sum(run.lost for run in runs)
    if lost:
        console.print(f"\n[bold red]{lost} calls were lost: their outcome is unknown.[/]")
        raise typer.Exit(1)
    console.print(
        "\nA column one line high is the whole quota."
        "\nEvery call is accounted for: it succeeded, or its failure was reported.",
        highlight=False,
    )


def _table(runs: Sequence[StrategyRun], batch: Batch, console: Console) -> Table:
    """A row of two lines for each strategy so far: its name and what it knows, its figures and its plot."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), leading=1
    )
    figures = [_figures(run) for run in runs]
    widths = [max(map(len, column)) for column in zip(_FIGURES, *figures, strict=True)]
    cells = max(1, console.width - _NAMES - sum(widths) - _GAP * (len(_FIGURES) + 1))
    table.add_column("strategy", width=_NAMES)
    for name, width in zip(_FIGURES, widths, strict=True):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    heading = Text.assemble(("429", "red"), " / ", ("accepted", "green"))
    table.add_column(heading, no_wrap=True, max_width=cells)  # Narrower if the numbers need the space.
    plots = _plots(runs, batch, cells, _ASCII if console.options.ascii_only else _EIGHTHS)
    for run, numbers, plot in zip(runs, figures, plots, strict=True):
        known = _LIMITERS[run.name][0]
        if run.found is not None:
            known = f"found {digits(run.found)} of {digits(batch.quota / batch.window)}/s"
        cell = Text.assemble((run.name, "bold"), f"\n{known}")
        table.add_row(cell, *numbers, plot)
    return table


def _figures(run: StrategyRun) -> tuple[str, ...]:
    counts = (run.sent, len(run.seconds), len(run.refused), run.failed)
    return (*(f"{count:,}" for count in counts), f"{run.quantile(50):.1f}", f"{run.quantile(95):.1f}")


def _plots(runs: Sequence[StrategyRun], batch: Batch, cells: int, levels: str) -> list[Text]:
    """One plot per run, all with the same scale: refused requests above accepted ones."""
    end = max((instant for run in runs for instant in (*run.accepted, *run.refused)), default=0.0)
    # A bucket is at least as long as a window, within which accepted requests may come in any pattern.
    buckets = max(1, min(cells, math.ceil(end / batch.window + 1e-9)))
    width = max(batch.window, end / buckets)

    def drawn(instants: Sequence[float]) -> str:
        return columns(counts(instants, width, buckets), batch.quota * width / batch.window, cells, levels)

    return [Text.assemble((drawn(run.refused), "red"), "\n", (drawn(run.accepted), "green")) for run in runs]


def counts(instants: Sequence[float], width: float, buckets: int) -> list[int]:
    """How many instants fall into each bucket of `width` seconds; later ones count in the last bucket."""
    found = Counter(min(buckets - 1, max(0, int(instant / width))) for instant in instants)
    return [found[bucket] for bucket in range(buckets)]


def columns(counts: Sequence[int], top: float, cells: int, levels: str = _EIGHTHS) -> str:
    """A column for each count, in one line; `top` or more fills it, and a single request is visible."""
    heights = [min(8, math.ceil(8 * count / top - 1e-9)) for count in counts]
    return "".join(levels[heights[cell * len(heights) // cells]] for cell in range(cells))
