"""Common to the benchmarks: interleaved runs, medians with their spread, and tables for the terminal and the docs.

In each round, the subjects of a table run one after the other in a new random order, and each figure is divided by the
baseline's of the same round: anything that slows the machine for a while slows both.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

Samples = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """One table; `name` marks its place in the docs."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [self.columns, ["---", *("---:" for _ in self.columns[1:])], *self.rows]
        rows = ["| " + " | ".join(cells) + " |" for cells in lines]
        return "\n".join([*rows, "", *self.notes])

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)


def interleave(subjects: Mapping[str, Callable[[], R]], rounds: int) -> dict[str, list[R]]:
    """Run each subject once per round and keep what it returns, after one round to warm up."""
    samples: dict[str, list[R]] = {name: [] for name in subjects}
    names = list(subjects)
    # In a fixed order, each subject would always inherit the processor's caches from the same predecessor.
    chance = random.Random(1)  # noqa: S311 - it only shuffles
    for subject in subjects.values():
        subject()
    for _ in range(rounds):
        chance.shuffle(names)
        for name in names:
            samples[name].append(subjects[name]())
    return samples


def ratios(samples: Samples, base: str, *, inverse: bool = False) -> dict[str, list[float]]:
    """Each figure divided by the baseline's of the same round; inverse for figures where less is better."""
    return {
        name: [(ref / own if inverse else own / ref) for own, ref in zip(values, samples[base], strict=True)]
        for name, values in samples.items()
    }


def show(values: Sequence[float], digits: int = 2) -> str:
    """The median, and half the distance between the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ±{(high - low) / 2:.{digits}f}"


def counted(number: int, noun: str) -> str:
    """For example "1 thread" or "8 threads"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def versions(*packages: str) -> str:
    """The versions of the interpreter and of these packages, on one line."""
    found = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return ", ".join(found)


def installed(package: str) -> bool:
    """Whether a package of the group `bench` can be imported; otherwise its rows are left out."""
    if importlib.util.find_spec(package) is not None:
        return True
    print(f"{package} is not installed: left out")
    return False


def run(measure: Callable[[bool], Sequence[Table]]) -> None:
    """The command line of a benchmark: measure, show the tables, and write them to the given places."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--quick", action="store_true", help="few, short runs for a first look")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the tables as JSON")
    parser.add_argument("--update", action="store_true", help="also put the tables into the pages of docs/")
    options = parser.parse_args()
    tables = measure(options.quick)
    for table in tables:
        table.show()
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(table) for table in tables], indent=2) + "\n")
    if options.update:
        update(tables)


def update(tables: Sequence[Table], page: Path | None = None) -> None:
    """Replace the tables between the markers of their pages, `<!-- table: name -->` and `<!-- end -->`.

    A table goes to the page with its markers, or to `page`.
    """
    for table in tables:
        start, end = f"<!-- table: {table.name} -->\n", "<!-- end -->"
        pages = [page for page in PAGE.parent.glob("*.md") if start in page.read_text(encoding="utf-8")]
        place = page or next(iter(pages), PAGE)
        text = place.read_text(encoding="utf-8")
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{place} has no place for the table {table.name!r}: {start.strip()} ... {end}")
        text = f"{before}{start}\n{table.markdown().rstrip()}\n\n{end}{after}"
        place.write_text(text, encoding="utf-8")
