"""`python -m benchmarks.adaptive.real`: real processes and threads over the embedded server, next to virtual ones.

It confirms the ranking of the strategies with real time, threads and sockets. It is not a measurement: the machine has
other work, and a run is only one run.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stkai._cli.demo import STRATEGIES, Batch, StrategyRun

from .._plots import rate_plot
from . import page
from .metrics import Summary, jain_index
from .runner import run_cases
from .scenario import Scenario
from .strategies import ADAPTIVE, FIXED_SHARE, NO_LIMITER
from .table import summary_table

_COUNTERPARTS = dict(zip(STRATEGIES[:3], (NO_LIMITER, FIXED_SHARE, ADAPTIVE), strict=True))
_SEEDS = range(1001, 1006)

PAGE = (
    ("--quota", "20", "--window", "1", "--seconds", "30", "--runs", "5"),
    ("--quota", "100", "--window", "10", "--seconds", "100", "--runs", "3"),
    ("--quota", "100", "--window", "60", "--seconds", "300", "--runs", "3"),
)
"""Arguments of the runs that are on docs/research/adaptive.md."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run every strategy for real, then in virtual time, and print both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive.real", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="that the quota needs for all requests")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=8, help="of each process")
    parser.add_argument("--quota", type=int, default=20, help="requests per window, of all together")
    parser.add_argument("--window", type=float, default=1.0, help="seconds")
    parser.add_argument("--runs", type=int, default=1, help="of the adaptive limiter, to see how they differ")
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/adaptive"), help="folder of the table and the plot"
    )
    parser.add_argument("--update", action="store_true", help="put the table into docs/research/adaptive.md")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=100)

    windows = max(2, round(arguments.seconds / arguments.window))
    requests = arguments.quota * windows // arguments.processes
    batch = Batch(requests, arguments.processes, arguments.threads, arguments.quota, arguments.window)
    runs = [_run(batch, strategy) for strategy in _COUNTERPARTS]
    rows = [summary for _, summary in runs]
    again = [_run(batch, "adaptive")[1] for _ in range(arguments.runs - 1)]
    rows += [replace(row, name=f"adaptive, run {number}") for number, row in enumerate(again, start=2)]
    console.print(summary_table(rows, title=f"{_describe(batch)}: real processes and threads"))
    virtual = _virtual(batch, windows)
    console.print(summary_table(virtual, title="the same in virtual time"))
    if arguments.update:
        name = f"real-{batch.quota}-{batch.window:g}"
        page.write_real(name, f"{batch.quota} per {batch.window:g} s", rows, virtual)
    console.save_text(str(arguments.out / f"real-{batch.quota}-{batch.window:g}.txt"))
    rate_plot(
        {run.name: run.accepted for run, _ in runs},
        quota_rate=batch.quota / batch.window,
        bucket_width=batch.window,
        path=arguments.out / f"real-{batch.quota}-{batch.window:g}",
        title=f"Accepted requests per second, for real: {_describe(batch)}",
    )


def _run(batch: Batch, strategy: str) -> tuple[StrategyRun, Summary]:
    """One run, and how fair it was: all processes have equally many requests, so only those before the end can tell."""
    run = batch.run(strategy)
    counts = [*Counter(run.senders[: len(run.senders) // 2]).values(), *[0] * batch.processes]
    duration = max(batch.window, *run.accepted)
    summary = Summary(
        name=strategy,
        sent=run.sent,
        succeeded=len(run.seconds),
        refused=len(run.refused),
        failed=run.failed,
        goodput=len(run.accepted) / (batch.quota * duration / batch.window),
        p50=run.quantile(50),
        p95=run.quantile(95),
        jain=jain_index(counts[: batch.processes]),
    )
    return run, summary


def _virtual(batch: Batch, windows: int) -> list[Summary]:
    scenario = Scenario(
        processes=batch.processes,
        workers=batch.threads,
        quota=batch.quota,
        window=batch.window,
        windows=windows,
        cold=1,
    )
    results = run_cases([(scenario, strategy) for strategy in _COUNTERPARTS.values()], _SEEDS)
    return [
        replace(results[scenario, counterpart].steady, name=name)
        for name, counterpart in _COUNTERPARTS.items()
    ]


def _describe(batch: Batch) -> str:
    return f"{batch.processes} processes of {batch.threads} threads, {batch.quota} requests per {batch.window:g} s"


if __name__ == "__main__":
    main()
