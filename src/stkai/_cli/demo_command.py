"""`stkai demo`: several processes share a small quota, first without a limiter, then with each kind of limiter."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .demo import SEARCHING, STRATEGIES, Batch, StrategyRun

_KNOWS: Final = {
    "no limiter": "retries only",
    "token bucket": "given its part",
    "adaptive": "given the quota",
    SEARCHING: "given nothing",
    "shared": "permits through a file",
}
"""What each process of a strategy knows of the quota and of the others."""
_FIGURES: Final = ("sent", "ok", "429", "failed", "p50 s", "p95 s")
_NAMES: Final = 23
"""Width of the first column, in characters."""
_GAP: Final = 2
"""Characters between two columns."""
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"


def demo(
    requests: Annotated[int, typer.Option(min=1, help="Calls from each process.")] = 30,
    processes: Annotated[int, typer.Option(min=1, max=32, help="Processes that share the quota.")] = 4,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Threads in each process.")] = 8,
    quota: Annotated[int, typer.Option(min=1, help="Requests that the server accepts per window.")] = 20,
    window: Annotated[float, typer.Option(min=0.1, help="Length of the window, in seconds.")] = 1.0,
) -> None:
    """Send real requests from several processes to an embedded server with a small quota.

    First without a limiter, then with a token bucket, an adaptive limiter, one that has to find the quota, and a shared
    one.
    """
    console, batch = Console(), Batch(requests, processes, threads, quota, window)
    console.print(
        f"{batch.processes} processes of {batch.threads} threads make {batch.requests} calls each, with up to 4"
        f" attempts a call. A server on this machine accepts {batch.quota} requests per {batch.window:g} s; the"
        " rest get 429.\n",
        highlight=False,
    )
    runs: list[StrategyRun] = []
    with Live(console=console, refresh_per_second=8) as live:
        for strategy in STRATEGIES:
            bar, advance = _bar(batch, strategy)
            live.update(Group(_table(runs, batch, console.width), "", bar))
            runs.append(batch.run(strategy, advance))
        live.update(_table(runs, batch, console.width))
    lost = sum(run.lost for run in runs)
    if lost:
        console.print(f"\n[bold red]{lost} calls were lost: their outcome is unknown.[/]")
        raise typer.Exit(1)
    console.print(
        "\nA column one line high is the whole quota."
        "\nEvery call is accounted for: it succeeded, or its failure was reported.",
        highlight=False,
    )


def _table(runs: Sequence[StrategyRun], batch: Batch, width: int) -> Table:
    """A row of two lines for each strategy so far: its name and what it knows, its figures, its plot."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), leading=1
    )
    table.add_column("strategy", width=_NAMES)
    for name in _FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    cells = width - _NAMES - sum(len(name) for name in _FIGURES) - _GAP * (len(_FIGURES) + 2) + 1
    table.add_column(Text.assemble(("429", "red"), " / ", ("accepted", "green")), no_wrap=True)
    for run, plot in zip(runs, _plots(runs, batch, max(12, cells)), strict=True):
        cell = Text.assemble((run.name, "bold"), f"\n{_knowledge(run, batch)}")
        numbers = (run.sent, len(run.seconds), len(run.refused), run.failed)
        figures = (*(f"{count:,}" for count in numbers), f"{run.quantile(50):.1f}", f"{run.quantile(95):.1f}")
        table.add_row(cell, *figures, plot)
    return table


def _knowledge(run: StrategyRun, batch: Batch) -> str:
    """What the processes knew, or what they have found."""
    if run.found is None:
        return _KNOWS.get(run.name, "")
    return f"found {_rate(run.found)} of {_rate(batch.quota / batch.window)}/s"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 1000 else f"{per_second:.3g}"


def _plots(runs: Sequence[StrategyRun], batch: Batch, cells: int) -> list[Text]:
    """One plot per run, all to the same scale: refused requests above accepted ones."""
    end = max((instant for run in runs for instant in (*run.accepted, *run.refused)), default=0.0)
    # A bucket is never shorter than a window: within one, accepted requests may come in any pattern.
    buckets = max(1, min(cells, math.ceil(end / batch.window + 1e-9)))
    width = max(batch.window, end / buckets)

    def drawn(instants: Sequence[float]) -> str:
        return columns(counts(instants, width, buckets), batch.quota * width / batch.window, cells)

    return [Text.assemble((drawn(run.refused), "red"), "\n", (drawn(run.accepted), "green")) for run in runs]


def _bar(batch: Batch, strategy: str) -> tuple[Progress, Callable[[int, int], None]]:
    """The progress of a run, and what moves it."""
    progress = Progress(
        TextColumn("[bold]{task.description}[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[refused]} refused[/]"),
        TimeElapsedColumn(),
    )
    task = progress.add_task(strategy, total=batch.requests * batch.processes, refused=0)
    return progress, lambda accepted, refused: progress.update(task, completed=accepted, refused=refused)


def counts(instants: Sequence[float], width: float, buckets: int) -> list[int]:
    """How many of the instants fall into each bucket of `width` seconds; what is later counts in the last one."""
    found = [0] * buckets
    for instant in instants:
        found[min(buckets - 1, max(0, int(instant / width)))] += 1
    return found


def columns(counts: Sequence[int], top: float, cells: int) -> str:
    """A column for each count, in one line; `top` fills it, higher ones are cut off, and a single request shows."""
    heights = [min(8, math.ceil(8 * count / top - 1e-9)) for count in counts]
    return "".join(_EIGHTHS[heights[cell * len(heights) // cells]] for cell in range(cells))
