"""The command `stkai`, also `python -m stkai`. Each subcommand has a module in `_cli`; `build_app` lists them."""

import sys
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from typer import Typer


def main() -> None:
    """Run the command line, or say what to install if a package of the extra `cli` is missing."""
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        sys.exit(f'stkai: {error.name} is missing; the command line needs: pip install "stkai[cli]"')
    app()


def build_app() -> "Typer":
    """The command line with all its subcommands.

    Raises:
        ModuleNotFoundError: a package of the extra `cli` is missing.
    """
    import typer

    from ._cli import batch, demo, explain, quota

    def show_version(wanted: bool) -> None:
        if wanted:
            from . import __version__

            typer.echo(f"stkai {__version__}")
            raise typer.Exit

    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the version and exit.", callback=show_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        """A resilient pipeline under any httpx client."""

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    # The first sentences of their docstrings would be cut off in the list of commands.
    app.command(short_help="Show the settings in force, and where each comes from.")(explain.explain)
    app.command(short_help="Compare the limiters on an embedded server.")(demo.demo)
    app.command(short_help="Show or reset a shared quota.", cls=batch.PlainUsage)(quota.quota)
    app.add_typer(batch.batch, name="batch", short_help="Send the requests in a file, and lose none.")
    return app


if __name__ == "__main__":
    main()
