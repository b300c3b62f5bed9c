"""What the command line offers, and how it looks."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .._builder import StackBuilder
from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._standard import NO_AUTHENTICATION, AuthChoice, Parts
from .batch import batch as batch_commands
from .demo import STRATEGIES, Batch, Outcome, Run
from .report import rate_plot, summary_table

app = typer.Typer(
    help="stkai: a resilient pipeline under any httpx client.", no_args_is_help=True, add_completion=False
)
app.add_typer(batch_commands, name="batch")


@app.command()
def explain() -> None:
    """Show the configuration in force, where each value comes from, and the stack that it makes."""
    console = Console()
    try:
        settings = STKAI.config
        table = Table(title="Settings", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("variable", no_wrap=True)
        table.add_column("value", overflow="fold")
        table.add_column("from", overflow="fold")
        for row in STKAI.provenance():
            table.add_row(
                row.variable, row.value, row.source, style=None if row.source == "default" else "bold"
            )
        choice = AuthChoice.automatic(settings, own_wire=False)
        parts = Parts.choose(settings, auth=None if choice.kind == "none" else "auto")
        stack = StackBuilder(parts.layers)
    except ConfigurationError as error:
        Console(stderr=True).print(f"[bold red]The configuration cannot work:[/] {error}", highlight=False)
        raise typer.Exit(2) from error
    console.print(table)
    console.print(f"\n[bold]Authentication:[/] {choice.kind} - {choice.why}.", highlight=False)
    if choice.kind == "none":
        console.print(f"As it stands, [bold]build_client()[/] refuses: {NO_AUTHENTICATION}", highlight=False)
    wire = "StackSpot CLI" if parts.by_cli else "httpx, with the proxies of the environment"
    console.print(f"[bold]Stack:[/] {stack}  (outermost first; the wire is {wire})", highlight=False)


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=1, help="Requests of each process.")] = 40,
    processes: Annotated[int, typer.Option(min=1, max=32, help="Processes that share the quota.")] = 4,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Threads of each process.")] = 8,
    quota: Annotated[int, typer.Option(min=1, help="Requests that the server allows per window.")] = 20,
    window: Annotated[float, typer.Option(min=0.1, help="Length of the window, in seconds.")] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw requests per second over time into this file.")
    ] = None,
) -> None:
    """Send real requests from several processes to an embedded server with a small quota.

    Once without a limiter, once through a token bucket, once through the adaptive limiter.
    """
    console = Console()
    batch = Batch(requests=requests, processes=processes, threads=threads, quota=quota, window=window)
    console.print(
        f"{processes} processes of {threads} threads, {requests} requests each, share one quota of"
        f" {quota} per {window:g} s on a server at loopback.\n",
        highlight=False,
    )
    runs = [_show(console, batch, strategy) for strategy in STRATEGIES]
    console.print()
    console.print(summary_table([run.summary for run in runs]))
    if plot is not None:
        rate_plot(
            {run.summary.name: run.accepted for run in runs},
            quota_rate=quota / window,
            bucket_width=max(window, 1.0),
            path=plot,
        )
        console.print(f"\nRequests per second over time: {plot}", highlight=False)
    lost = sum(run.lost for run in runs)
    if lost:
        console.print(f"\n[bold red]{lost} requests were lost: nobody knows what became of them.[/]")
        raise typer.Exit(1)
    console.print(
        "\nEvery request is accounted for: it succeeded, or its failure was reported.", highlight=False
    )


def _show(console: Console, batch: Batch, strategy: str) -> Run:
    """One run, with a progress bar for each process."""
    columns = (
        TextColumn("[bold]{task.fields[strategy]:<13}[/] process {task.fields[number]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        failed = [0] * batch.processes
        bars = [
            progress.add_task("", total=batch.requests, strategy=strategy, number=number + 1, failed="")
            for number in range(batch.processes)
        ]

        def advance(outcome: Outcome) -> None:
            failed[outcome.process] += not outcome.succeeded
            text = f"[red]{failed[outcome.process]} failed[/]" if failed[outcome.process] else ""
            progress.update(bars[outcome.process], advance=1, failed=text)

        return batch.run(strategy, advance)
