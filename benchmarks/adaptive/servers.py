"""`python -m benchmarks.adaptive.servers`: real processes, threads and servers that say badly how long to wait.

Every process sends as fast as its limiter lets it, through its whole stack, in real time. The figures are counted where
the requests leave the stack. The machine has other work, and a run is only one run: repeat before you believe.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .._harness import Table
from .crowd import MINE, NEED_NUMBERS, OTHERS, Report, run
from .distance import Distant
from .metrics import jain_index
from .rows import ROWS, Goal, Row


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run, or the mean of several."""

    used: float
    used_warm: float
    refused: float
    jain: float
    least: float
    failed: float


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
            print(
                f"{row.name:13}",
                *(f"{cell:>9}" for cell in rows[-1]),
                f"  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    note = f"Means of {arguments.seeds} run(s); of the least share, the worst."
    table = Table("servers", "Servers that say badly, or not at all, how long to wait", COLUMNS, rows, [note])
    table.show()
    if arguments.markdown:
        arguments.markdown.write_text(table.markdown() + "\n")


def _adjusted(row: Row, arguments: argparse.Namespace) -> Row:
    if arguments.distance:
        row = replace(row, gateway=Distant(row.gateway, *arguments.distance))
    processes, threads = arguments.crowd or (row.processes, row.threads)
    seconds = arguments.seconds or row.seconds
    return replace(
        row, processes=processes, threads=threads, seconds=seconds, warm=min(row.warm, seconds / 2)
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive.servers", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="these servers only")
    names = [*MINE, *OTHERS]
    parser.add_argument("--strategies", nargs="+", choices=names, default=names, help="these strategies only")
    parser.add_argument("--seconds", type=float, help="length of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, whose mean is shown")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument(
        "--crowd", type=_crowd, metavar="4x4", help="processes x threads, instead of each row's own"
    )
    parser.add_argument(
        "--distance",
        type=float,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="seconds that the network takes each way",
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    return parser.parse_args(argv)


def _crowd(text: str) -> tuple[int, int]:
    processes, _, threads = text.partition("x")
    return int(processes), int(threads)


if __name__ == "__main__":
    main()
