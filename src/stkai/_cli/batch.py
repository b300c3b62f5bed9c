"""`stkai batch`: thousands of requests from a file, and `stkai batch merge` for the outputs of shards."""

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .._batch.command import run_batch, run_merge
from .._batch.options import Options

_RUN = "run"


class _DefaultCommand(TyperGroup):
    """A group that passes anything but a command name to `run`, so that `stkai batch INPUT` works."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


class _Run(TyperCommand):
    """Shows its usage as `stkai batch`, as it is typed."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return super().make_context(parent.info_name, args, parent.parent, **extra)


batch = typer.Typer(
    cls=_DefaultCommand, help="Send the requests in a file; lose none, and report any that may run twice."
)


@batch.command(_RUN, cls=_Run)
def run(**given: Any) -> None:
    """Send the requests in INPUT. Write the answers to OUT.jsonl and the failures to OUT.failed.jsonl.

    --resume continues a job that was interrupted or halted; --retry-failed sends its failed lines again. A line that
    the server may have executed is not sent twice: one that was in flight when a run was killed, and one that ended in
    a 500 or a broken connection, is a failure. With --unknown resend, it is sent again. `stkai batch merge` joins the
    outputs of shards.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 3 halted and resumable, 130 interrupted.
    """
    raise typer.Exit(run_batch(given))


# Typer reads the parameters of the command from it.
run.__signature__ = inspect.signature(Options)  # type: ignore[attr-defined]


@batch.command("merge")
def merge(
    outs: Annotated[list[str], typer.Argument(metavar="OUT", help="Outputs of the shards, as passed to -o.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="ALL", help="Write the joined output here.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Join what there is, although lines of the input are missing.")
    ] = False,
) -> None:
    """Join the outputs of shards, both answers and failures, in input order.

    Exit codes: 0 all done, 1 some failed, 2 an output or a line is missing, ALL exists, or a line occurs twice.
    """
    raise typer.Exit(run_merge(outs, out, partial=partial))
