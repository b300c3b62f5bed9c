"""`stkai batch`: thousands of requests from a file, and `stkai batch merge` for the outputs of shards."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .usage import PlainUsage

_RUN = "run"


class _DefaultCommand(TyperGroup):
    """A group that passes anything but a command name to `run`, so that `stkai batch INPUT` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == _RUN else name, command, rest


batch = typer.Typer(
    cls=_DefaultCommand, help="Send the requests in a file; lose none, and report any that may run twice."
)


@batch.command(_RUN, cls=PlainUsage)
def run(  # noqa: PLR0913, PLR0917 - each option of the command is a parameter
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A .jsonl or .csv file, or - for stdin.")],
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Write answers here; - for stdout.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Base for relative urls.")] = None,
    quick_command: Annotated[str | None, typer.Option(metavar="SLUG", help="Run this quick command.")] = None,
    body: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON template; {column} in strings is replaced.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column, or member, to use as custom_id.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Send only every Nth line, starting with line I.")
    ] = None,
    max_in_flight: Annotated[
        int, typer.Option(metavar="N", min=1, help="Lines worked on at once, waiting or being sent.")
    ] = 32,
    rpm: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Send at most this many requests per minute.")
    ] = None,
    tpm: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Use at most this many tokens of a language model per minute."),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Have at most this many requests at the server at once."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the job that writes OUT.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over and overwrite the outputs.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Resume, and send the failed lines again.")
    ] = False,
    unknown: Annotated[
        Literal["report", "resend"],
        typer.Option(help="What to do with lines that the server may have executed."),
    ] = "report",
    order: Annotated[Literal["done", "input"], typer.Option(help="Order of the outputs.")] = "done",
    halt_after: Annotated[
        int, typer.Option(metavar="N", min=0, help="Halt after N equal failures in a row; 0: never.")
    ] = 20,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Limit for each call, waits included.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="PRICE", help="Dollars per million tokens, such as input=0.15,output=0.6."),
    ] = None,
    sync: Annotated[
        Literal["1s", "always", "never"], typer.Option(help="How often to flush files to disk.")
    ] = "1s",
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Send no token.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line; send nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Send the requests in INPUT. Write the answers to OUT.jsonl and the failures to OUT.failed.jsonl.

    --resume continues a job that was interrupted or halted; --retry-failed sends its failed lines again. A line that
    the server may have executed is not sent twice: one that was in flight when a run was killed, and one that ended in
    a 500 or a broken connection, is a failure. With --unknown resend, it is sent again. `stkai batch merge` joins the
    outputs of shards.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 3 halted and resumable, 130 interrupted.
    """
    given = locals()  # These parameters are the fields of Options.
    from .._batch.command import REFUSED, complain, run_batch
    from .._batch.errors import UsageError
    from .._batch.options import Options
    from .._batch.progress import Price

    try:
        options = Options(**{**given, "price": None if price is None else Price.parse(price)})
    except UsageError as error:
        complain(str(error))
        raise typer.Exit(REFUSED) from error
    raise typer.Exit(run_batch(options))


@batch.command("merge", cls=PlainUsage)
def merge(
    outs: Annotated[
        list[str], typer.Argument(metavar="OUT...", help="Outputs of the shards, as passed to -o.")
    ],
    out: Annotated[str, typer.Option("-o", "--out", metavar="ALL", help="Write the joined output here.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Join what there is, although lines of the input are missing.")
    ] = False,
) -> None:
    """Join the outputs of shards, both answers and failures, in input order.

    Exit codes: 0 all done, 1 some failed, 2 an output or a line is missing, ALL exists, or a line occurs twice.
    """
    from .._batch.command import run_merge

    raise typer.Exit(run_merge(outs, out, partial=partial))
