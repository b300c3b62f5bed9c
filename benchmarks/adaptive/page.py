"""Puts the results into docs/research/adaptive.md, between its markers, and the plots next to it."""

from collections.abc import Sequence

from .._harness import PAGE, Table, update
from .bounds import Results, Verdict
from .metrics import Summary
from .sections import Section

DOCS = PAGE.parent / "research" / "adaptive.md"
IMAGES = PAGE.parent / "images"
"""Plots are `adaptive-*-light.svg` and `adaptive-*-dark.svg` there."""

_SHOWN = ("sharing", "steps", "late", "shared", "arrivals", "overload", "random")
"""The comparisons that have a place on the page."""

_COLUMNS = ("429 per success", "failed", "quota used", "p50 s", "p95 s", "Jain")


def write_section(section: Section, results: Results) -> None:
    """Write a row for every scenario under every strategy, if the page has a place for the section."""
    if section.name not in _SHOWN:
        return
    steps = any(scenario.step is not None for scenario in section.scenarios)
    rows = []
    for scenario in section.scenarios:
        rows.append([f"*{scenario}*", *([""] * (len(_COLUMNS) + steps))])
        for strategy in section.strategies:
            result = results[scenario, strategy]
            regained = [f"{result.regained:.1f}" if result.regained else "-"] if steps else []
            rows.append([strategy.name, *_figures(result.steady), *regained])
    columns = ["", *_COLUMNS, *(["windows to regain"] if steps else [])]
    update([Table(section.name, section.title, columns, rows)], DOCS)


def write_verdicts(verdicts: Sequence[Verdict], seeds: range) -> None:
    """The goals, and whether they are met."""
    rows, before = [], ""
    for verdict in verdicts:
        name = verdict.goal if verdict.goal != before else ""
        measured = f"{verdict.value:.4f}" if verdict.value < 0.01 else f"{verdict.value:.3f}"
        outcome = "met" if verdict.met else "**missed**"
        rows.append([name, str(verdict.bound), measured, outcome, str(verdict.scenario)])
        before = verdict.goal
    met = sum(verdict.met for verdict in verdicts)
    note = f"{met} of {len(verdicts)} met; means of the seeds {seeds[0]} to {seeds[-1]}."
    columns = ("case", "goal", "measured", "", "worst in")
    update([Table("goals", "goals", columns, rows, [note])], DOCS)


def write_real(name: str, title: str, real: Sequence[Summary], virtual: Sequence[Summary]) -> None:
    """The strategies over real sockets, and in virtual time."""
    rows = []
    for kind, summaries in (("real processes and threads", real), ("virtual time", virtual)):
        rows.append([f"*{title}: {kind}*", *([""] * len(_COLUMNS))])
        rows += [[row.name, *_figures(row)] for row in summaries]
    update([Table(name, title, ("", *_COLUMNS), rows)], DOCS)


def _figures(row: Summary) -> list[str]:
    return [
        f"{row.refused_per_success:.3f}",
        f"{row.failed_share:.1%}",
        f"{row.goodput:.1%}",
        f"{row.p50:.1f}",
        f"{row.p95:.1f}",
        "-" if row.jain is None else f"{row.jain:.2f}",
    ]
