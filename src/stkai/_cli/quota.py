"""`stkai quota`: shows the state of a shared quota, once for scripts or live in a terminal."""

import json
from contextlib import suppress
from typing import Annotated, Any, Final, cast

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .._batch.progress import count
from .._clock import SystemClock
from .._config.sources import load
from .._errors import ConfigurationError, digits
from ..stores import URLS, FileStore, RedisStore, Snapshot, store_from
from ..stores._protocol import UNLIMITED, check_share

_REFRESH_INTERVAL: Final = 0.5  # Seconds between updates.
_UNNOTICEABLE: Final = 0.001  # Seconds; a shorter wait counts as none.


def quota(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the share.")],
    store: Annotated[
        str | None,
        typer.Option(
            help=f"The store: 'file' (this machine), or a URL: {URLS}. The default is STKAI_RATE_LIMIT_STORE."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it once, as JSON.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Delete its state.")] = False,
) -> None:
    """Show a shared quota: members, rate, use, units of cost, queue, pause and the last 429."""
    console = Console()
    try:
        share = check_share(name)
        if store is None:  # The settings allow no store without a share.
            store = load({"rate_limit": {"share": share, "warm_start": None}}).settings.rate_limit.store
        found = cast(FileStore | RedisStore, store_from(store))
        is_known = reset and found.reset(share)
        seen = None if reset else found.look(share)
    except ConfigurationError as error:
        Console(stderr=True).print(Text(str(error)), soft_wrap=True)
        raise typer.Exit(2) from error
    except Exception as error:
        message = f"{found!r} cannot be reached: {error}"
        Console(stderr=True).print(Text(message), soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        state = {"share": share, "reset": is_known} if reset else as_dict(share, seen)
        typer.echo(json.dumps(state))
    elif reset:
        done = f"The quota {share!r} is reset; its members start over." if is_known else _unused(share, found)
        console.print(Text(done), soft_wrap=True)
    elif once or not console.is_terminal:
        console.print(as_table(share, seen, found))
    else:
        _show_live(console, share, found)


def as_dict(share: str, seen: Snapshot | None) -> dict[str, Any]:
    """The state, for scripts; in seconds, requests per second and units of cost."""
    if seen is None:
        return {"share": share, "known": False}
    quota = seen.quota._asdict()
    return {"share": share, "known": True, **seen._asdict(), "quota": quota.pop("rate"), **quota}


def as_table(share: str, seen: Snapshot | None, store: FileStore | RedisStore) -> Table | Text:
    if seen is None:
        return Text(_unused(share, store))
    quota = seen.quota
    refused = "none" if seen.refused is None else f"{seen.refused:.0f} s ago"
    wait = f"wait for {digits(seen.queue)} s" if seen.queue >= _UNNOTICEABLE else "not have to wait"
    # Processes take turns, so a request waits longer behind others of its own process.
    where = " in an idle process" if seen.waiting else ""
    terms = [f"quota {digits(quota.rate, 4)}", f"burst {digits(quota.burst, 4)}"]
    if quota.window:
        terms.append(f"at most {digits(quota.rate * quota.window, 6)} in {digits(quota.window, 4)} s")
    rows = {
        "members": str(seen.members),
        "rate": f"{digits(seen.rate, 4)} requests/s ({', '.join(terms)})",
        "in use": f"{digits(seen.used, 4)} requests/s (average of about 10 s)",
        "units": f"{seen.units:,.0f} of {quota.max_cost:,.0f} left; {digits(quota.cost_rate, 4)} more per second",
        "queue": f"{count(seen.waiting, 'request')} waiting; a new one would {wait}{where}",
        "pause": f"{digits(seen.pause)} s" if seen.pause else "none",
        "last 429": refused,
    }
    if quota.rate >= UNLIMITED:
        rows["rate"] = "unlimited; only units of cost count"
    if not quota.max_cost:
        del rows["units"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=True)
    table.add_column("quota")
    table.add_column(Text(share), overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def _unused(share: str, store: FileStore | RedisStore) -> str:
    return f"No process has used the quota {share!r} in {store!r} recently; --store names another store."


def _show_live(console: Console, share: str, store: FileStore | RedisStore) -> None:
    """Update the table until Ctrl-C, even while the store cannot be reached."""
    clock = SystemClock()
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                shown = as_table(share, store.look(share), store)
            except Exception as error:  # noqa: BLE001 - any error of a store
                shown = Text(f"{store!r} cannot be reached: {error}")
            live.update(shown, refresh=True)
            clock.sleep(_REFRESH_INTERVAL)
