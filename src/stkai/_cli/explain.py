"""`stkai explain`: shows the effective settings, where each comes from, and the resulting stack."""

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._builder import StackBuilder
from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._standard import NO_AUTHENTICATION, AuthChoice, Parts
from ..transports._limit.sharing import SharingQueue
from .quota import describe


def explain() -> None:
    """Show the effective settings, where each value comes from, and the resulting stack."""
    console = Console()
    try:
        settings = STKAI.config
        table = _settings()
        choice = AuthChoice.automatic(settings, own_wire=False)
        parts = Parts.choose(settings, auth=None if choice.kind == "none" else "auto")
        stack = StackBuilder(parts.layers)
    except ConfigurationError as error:
        message = Text.assemble(("The configuration cannot work: ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from error
    console.print(table)
    _print(console, "\nAuthentication: ", f"{choice.kind} - {choice.why}.")
    if choice.kind == "none":
        _print(console, "", f"With these settings, build_client() raises: {NO_AUTHENTICATION}")
    for layer in parts.layers:
        if isinstance(layer.policy, SharingQueue) and layer.policy.share is not None:
            # One line each, without wrapping, even in a narrow terminal.
            console.print(Text.assemble(("Shared quota: ", "bold"), _share(layer.policy)), soft_wrap=True)
    wire = "StackSpot CLI" if parts.by_cli else "httpx, with the proxies of the environment"
    _print(console, "Stack: ", f"{stack}  (outermost first; the wire is {wire})")
    limit = settings.rate_limit
    if limit.enabled and limit.quota() == (None, None):
        _print(
            console,
            "Quota: ",
            "not given, so the adaptive limiter finds it; the default numbers are not used.",
        )


def _settings() -> Table:
    """One row per setting, in 80 columns; values that are not defaults are bold, ignored variables yellow."""
    table = Table(
        title="Settings", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for row in STKAI.provenance():
        style = {"default": ""}.get(row.source, "yellow" if row.value == "ignored" else "bold")
        # Text, because rich parses brackets in a plain string as markup.
        table.add_row(*(Text(cell, style) for cell in (row.variable, row.value, row.source)))
    return table


def _share(limiter: SharingQueue) -> str:
    """The name of the shared quota, its store, and its number of members."""
    store, share = limiter.store, str(limiter.share)
    heading = f"{share}, in {describe(store)}"
    try:
        seen = store.look(share)
    except Exception as error:  # noqa: BLE001 - any error: show the rest anyway
        return f"{heading}, which cannot be reached: {error}"
    return f"{heading}\nmembers seen: {1 + (0 if seen is None else seen.members)}"


def _print(console: Console, heading: str, text: str) -> None:
    console.print(Text.assemble((heading, "bold"), text))
