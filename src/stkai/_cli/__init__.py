"""The command line: `app` registers the subcommands, each of which has a module here."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._lazy import installed_version
from . import batch, demo, explain, quota


class _Commands(TyperGroup):
    """Also finds `batch merge`, a command whose name has two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:2] == ["batch", "merge"]:
            args = ["batch merge", *args[2:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # They may be secrets, and older versions of Typer show them.
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stkai {installed_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """A resilient pipeline under any httpx client."""


# The first sentences of their docstrings are too long for the list of commands.
app.command(short_help="Show the settings in force, and where each comes from.")(explain.explain)
app.command(short_help="Compare the limiters on an embedded server.")(demo.demo)
app.command(short_help="Show or reset a shared quota.")(quota.quota)
app.command(short_help="Send the requests in a file, and lose none.")(batch.batch)
app.command("batch merge", short_help="Join the outputs of shards.")(batch.merge_outputs)
