"""`python -m benchmarks.adaptive.warm`: what a program gains by starting where the last one ended.

Four processes learn for fifteen windows, or for two minutes if that is longer, and end. Then four others send a batch:
cold, or from the rates that the first four saved.
"""

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial

import httpx

from stkai import AimdLimiter

from .._harness import Table, update
from .metrics import Result, measure
from .page import DOCS
from .scenario import Scenario
from .site import Site
from .strategies import Strategy, build_stack

_SEEDS = range(1001, 1006)
_SHORTEST = 24.0
"""Seconds that the batch takes at least, at the whole quota."""

_QUOTAS = ((100, 60.0), (40, 4.0), (20, 1.0))


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive.warm", description=__doc__)
    parser.add_argument("--update", action="store_true", help="put the table into docs/research/adaptive.md")
    arguments = parser.parse_args(argv)
    rows = [
        _row(told=told, quota=quota, window=window) for told in (True, False) for quota, window in _QUOTAS
    ]
    columns = ("", "cold: time / ideal", "429 per success", "warm: time / ideal", "429 per success")
    table = Table("warm", "A batch, cold and from a saved rate", columns, rows)
    table.show()
    if arguments.update:
        update([table], DOCS)


def _row(*, told: bool, quota: int, window: float) -> list[str]:
    windows = max(3.0, _SHORTEST / window)
    learning = Scenario(processes=4, quota=quota, window=window, windows=round(5 * windows), cold=1)
    batch = Scenario(processes=4, quota=quota, window=window, batch=windows)
    strategies = [
        Strategy(name, partial(_build, told=told, warm=name == "warm")) for name in ("cold", "warm")
    ]
    cold, warm = list[Result](), list[Result]()
    for seed in _SEEDS:
        with tempfile.TemporaryDirectory(prefix="stkai-warm-") as directory:
            os.environ["XDG_CACHE_HOME"] = directory
            measure(learning, strategies[1], seed)
            gc.collect()  # A limiter saves its rate at the end of its life.
            warm.append(measure(batch, strategies[1], seed))
            gc.collect()
        cold.append(measure(batch, strategies[0], seed))
    numbers = "" if told else ", no numbers"
    return [f"{quota} per {window:g} s{numbers}", *_figures(cold), *_figures(warm)]


def _figures(results: Sequence[Result]) -> list[str]:
    time = statistics.fmean(result.batch or 0.0 for result in results)
    refused = statistics.fmean(result.steady.refused_per_success for result in results)
    return [f"{time:.2f}", f"{refused:.3f}"]


def _build(site: Site, *, told: bool, warm: bool) -> httpx.AsyncBaseTransport:
    """The stack of a process, which may start where the last process with its number ended."""
    numbers = (site.scenario.quota, site.scenario.window) if told else ()
    name = f"process-{site.number}" if warm else None
    return build_stack(site, AimdLimiter(*numbers, warm_start=name))


if __name__ == "__main__":
    main()
