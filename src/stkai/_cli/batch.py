"""`stkai batch`: thousands of requests from a file, and `stkai batch merge` for the outputs of shards."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_RUN = "run"


class _DefaultCommand(TyperGroup):
    """A group in which whatever is not the name of a command goes to `run`: `stkai batch INPUT` needs no name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == _RUN else name, command, rest


batch = typer.Typer(
    cls=_DefaultCommand, help="Send the requests of a file: none lost, none sent twice unnoticed."
)


class Unknown(StrEnum):
    REPORT = "report"
    RESEND = "resend"


class Order(StrEnum):
    DONE = "done"
    INPUT = "input"


class Sync(StrEnum):
    EACH_SECOND = "1s"
    ALWAYS = "always"
    NEVER = "never"


@batch.command(_RUN)
def run(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A .jsonl or .csv file, or - for stdin.")],
    out: Annotated[str | None, typer.Option("-o", "--out", help="Where answers go; - for stdout.")] = None,
    base_url: Annotated[str | None, typer.Option(help="What relative urls are appended to.")] = None,
    quick_command: Annotated[str | None, typer.Option(metavar="SLUG", help="Run this quick command.")] = None,
    body: Annotated[
        Path | None, typer.Option(help="A template: {column} in its strings is replaced.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The column, or member, that is the custom_id.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every Nth line, from number I on.")
    ] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job of OUT.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin it anew; its outputs are overwritten.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send the failed lines again.")
    ] = False,
    unknown: Annotated[Unknown, typer.Option(help="Lines that were in flight at a kill.")] = Unknown.REPORT,
    order: Annotated[Order, typer.Option(help="Of the outputs.")] = Order.DONE,
    halt_after: Annotated[int, typer.Option(min=0, help="Equal failures in a row; 0 for never.")] = 20,
    deadline: Annotated[float | None, typer.Option(help="Seconds for each call, with all its waits.")] = None,
    price: Annotated[
        str | None, typer.Option(help="Dollars per million tokens, such as input=0.15,output=0.6.")
    ] = None,
    sync: Annotated[
        Sync, typer.Option(help="How often the disk is told to keep what it has.")
    ] = Sync.EACH_SECOND,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Send no token.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line, and send nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing as long as all is well.")] = False,
) -> None:
    """Send the requests of INPUT, and write their answers to OUT. `stkai batch merge` joins the outputs of shards.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 3 halted and resumable, 130 interrupted.
    """
    from .._batch.errors import UsageError
    from .._batch.job import REFUSED, complain, run_batch
    from .._batch.options import Options
    from .._batch.price import Price

    try:
        options = Options(
            source=source,
            out=out,
            base_url=base_url,
            quick_command=quick_command,
            body=body,
            id_column=id_column,
            shard=shard,
            max_in_flight=max_in_flight,
            resume=resume,
            restart=restart,
            retry_failed=retry_failed,
            unknown=unknown.value,
            order=order.value,
            halt_after=halt_after,
            deadline=deadline,
            price=None if price is None else Price.parse(price),
            sync=sync.value,
            no_auth=no_auth,
            dry_run=dry_run,
            quiet=quiet,
        )
    except UsageError as error:
        complain(str(error))
        raise typer.Exit(REFUSED) from error
    raise typer.Exit(run_batch(options))


@batch.command("merge")
def merge(
    outs: Annotated[list[str], typer.Argument(metavar="OUT...", help="The outputs, as -o named them.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="ALL", help="Where all of it goes.")],
) -> None:
    """Join the outputs of shards, answers and failures, in the order of the lines.

    Exit codes: 0 all done, 1 some failed, 2 an output is missing, ALL exists, or a line is there twice.
    """
    from .._batch.job import run_merge

    raise typer.Exit(run_merge(outs, out))
