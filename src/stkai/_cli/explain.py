"""`stkai explain`: shows the effective settings, where each comes from, and the resulting stack."""

import math

import typer
from rich.console import Console
from rich.text import Text

from .._batch.progress import show_time
from .._builder import StackBuilder
from .._config import STKAI
from .._errors import ConfigurationError, digits
from .._standard import NO_AUTHENTICATION, AuthChoice
from ..transports._limits.all_of import AllOf
from ..transports._limits.queue_limiter import QuotaLimiter
from ..transports._limits.saved_rate import SavedRate


def explain() -> None:
    """Show the effective settings, where each value comes from, and the resulting stack."""
    console = Console()
    try:
        settings = STKAI.config
        table = _settings(console.width if console.is_terminal else math.inf)
        choice = AuthChoice.automatic(settings, own_wire=False)
        stack = StackBuilder.standard(settings, auth=None if choice.kind == "none" else "auto")
        stack.build().close()  # Fails if packages or certificates are missing.
    except ConfigurationError as error:
        message = Text.assemble(("The configuration cannot work: ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from error
    console.print(table, soft_wrap=True)
    _print(console, "\nAuthentication: ", f"{choice.kind} - {choice.why}.")
    if choice.kind == "none":
        _print(console, "", f"With these settings, build_client() raises: {NO_AUTHENTICATION}")
    for layer in stack.layers:
        policy = layer.policy
        for limiter in policy.parts if isinstance(policy, AllOf) else [policy]:
            if isinstance(limiter, QuotaLimiter) and limiter.share is not None:
                # Do not wrap lines, even in a narrow terminal.
                console.print(Text.assemble(("Shared quota: ", "bold"), _described(limiter)), soft_wrap=True)
    wire = "StackSpot CLI" if stack.by_cli else "httpx"
    if not stack.by_cli and settings.http.trust_env and settings.http.proxy is None:
        wire += ", with the proxies of the environment"
    _print(console, "Stack: ", f"{stack}  (outermost first; the wire is {wire})")
    limit = settings.rate_limit
    if (warning := limit.without_effect()) is not None:
        _print(console, "Rate limit: ", warning)
    if limit.enabled:
        if limit.strategy == "adaptive" and limit.quota()[0] is None:
            text = "not given, so the adaptive limiter finds it; the default numbers are not used."
            _print(console, "Quota: ", text)
        if limit.warm_start is not None:
            _print(console, "Warm start: ", _remembered(limit.warm_start, limit.share))


def _settings(width: float) -> Text:
    """One line per setting; values that are not defaults are bold, ignored variables yellow.

    Lines longer than `width` are not aligned. The terminal folds them at its edge, so that long values can be copied.
    """
    rows = STKAI.provenance()
    first = max(len(name) for name, _, _ in rows)
    fits = (len(value) for _, value, source in rows if first + len(value) + len(source) + 4 <= width)
    second = max(fits, default=0)
    table = Text.assemble((f"{'variable':<{first}}  {'value':<{second}}  from", "italic"))
    for name, value, source in rows:
        style = {"default": ""}.get(source, "yellow" if "not a setting of stkai" in source else "bold")
        # As Text, because rich parses brackets in a plain string as markup.
        table.append(f"\n{name:<{first}}  {value:<{second}}  {source}", style)
    return table


def _remembered(name: str, share: str | None) -> str:
    """A description of the rate that an earlier program saved."""
    if share is not None:
        return "the store of the shared quota keeps its rate for a day; see stkai quota."
    saved = SavedRate(name)
    if saved.path is None:
        return "impossible, because this user has no home directory; set XDG_CACHE_HOME."
    found = saved.read()
    if found is None:
        return f"nothing from the last day in {saved.path}."
    limit = (f", {found.finding}" if found.finding else "") if found.refused else ", without a refusal"
    return (
        f"{digits(found.rate)} requests per second{limit}, window {found.window:g} s, saved {show_time(found.age)} ago"
        f" in {saved.path}."
    )


def _described(limiter: QuotaLimiter) -> str:
    """The name of the shared quota, its store, and its number of members, with the one that these settings describe."""
    store, share = limiter.store, str(limiter.share)
    heading = f"{share}, in {store!r}"
    try:
        seen, has_older = store.look(share), store.has_older_members(share)
    except Exception as error:  # noqa: BLE001 - any error: show the rest anyway
        return f"{heading}, which cannot be reached: {error}"
    older = "\nmembers of stkai 2 also use it; they do not share with these" if has_older else ""
    return f"{heading}\nmembers seen: {1 + (0 if seen is None else seen.members)}{older}"


def _print(console: Console, heading: str, text: str) -> None:
    console.print(Text.assemble((heading, "bold"), text), soft_wrap=not console.is_terminal)
