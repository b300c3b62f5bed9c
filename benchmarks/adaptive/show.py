"""Tables and plots of the results."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .._plots import COLOURS, new_figure, rate_plot, save
from .bounds import Results, Verdict
from .metrics import Summary
from .runner import Case
from .scenario import Scenario
from .sections import Section
from .table import summary_table

_WORTH_A_PLOT = 0.001
"""The lowest ratio that the logarithmic axis shows."""


def print_section(console: Console, section: Section, results: Results) -> None:
    """For every scenario a table of the steady state, and one of the cold start if that is reported separately."""
    console.rule(f"[bold]{section.title}", align="left")
    for scenario in section.scenarios:
        cases = [(scenario, strategy) for strategy in section.strategies]
        console.print()
        console.print(
            summary_table([results[case].steady for case in cases], title=f"{scenario}: steady state")
        )
        if scenario.step is not None:
            regained = [
                f"{strategy.name} {results[scenario, strategy].regained:.1f}" for _, strategy in cases
            ]
            console.print(
                f"Windows until the new quota was well used, with few refusals: {'; '.join(regained)}\n",
                highlight=False,
            )
        else:
            rows = [results[case].cold for case in cases]
            console.print(summary_table(rows, title=f"the first {scenario.cold} windows"))


def print_cases(console: Console, cases: Sequence[Case], results: Results) -> None:
    """A line for every scenario."""
    rows = [replace(results[case].steady, name=_full_name(case)) for case in cases]
    console.print(summary_table(rows, title="steady state"))


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """The goals, and whether they are met."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for column in ("case", "goal", "measured", "", "worst in"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    before = ""
    for verdict in verdicts:
        met = "[green]met[/]" if verdict.met else "[bold red]missed[/]"
        name = verdict.goal if verdict.goal != before else ""
        table.add_row(name, str(verdict.bound), f"{verdict.value:.4f}", met, str(verdict.scenario))
        before = verdict.goal
    console.print(table)
    console.print(f"{sum(verdict.met for verdict in verdicts)} of {len(verdicts)} met", highlight=False)


def draw_sharing(section: Section, results: Results, path: Path) -> None:
    """Goodput, refusals and fairness side by side: a group of bars for every scenario, a bar for every strategy."""
    figure, panels = new_figure(3, 1, width=9.5, height=8.0)
    figures: tuple[tuple[str, Callable[[Summary], float]], ...] = (
        ("share of the quota that was used", lambda row: row.goodput),
        (
            "429s per success (logarithmic; 0.001 stands for all that is less)",
            lambda row: max(_WORTH_A_PLOT, row.refused_per_success),
        ),
        ("fairness between processes (Jain's index)", lambda row: row.jain or 0.0),
    )
    width = 0.8 / len(section.strategies)
    for panel, (title, read) in zip(panels, figures, strict=True):
        for number, strategy in enumerate(section.strategies):
            rows = [results[scenario, strategy].steady for scenario in section.scenarios]
            places = [group + (number + 0.5) * width - 0.4 for group in range(len(rows))]
            panel.bar(places, [read(row) for row in rows], width, color=COLOURS[number], label=strategy.name)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xticks(range(len(section.scenarios)), [str(scenario) for scenario in section.scenarios])
    panels[1].set_yscale("log")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    save(figure, path)


def draw_rates(section: Section, scenario: Scenario, results: Results, path: Path) -> None:
    """Accepted requests per second over time, of the first seed, under each strategy."""
    rate_plot(
        {strategy.name: results[scenario, strategy].accepted for strategy in section.strategies},
        quota_rate=[(instant, quota / scenario.window) for instant, quota in scenario.quotas],
        bucket_width=scenario.window / 4,
        path=path,
        title=f"Accepted requests per second: {scenario}",
    )


def _full_name(case: Case) -> str:
    scenario, strategy = case
    return f"{scenario}: {strategy}"
