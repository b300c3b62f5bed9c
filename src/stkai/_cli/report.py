"""Shows how strategies did against a quota: a table and plots, for `stkai demo` and for the benchmarks.

rich and matplotlib are imported when they are needed; they come with the extra `cli`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

COLOURS: Final = ("#9a9a9a", "#4477aa", "#ee8866", "#aa3377", "#bbaa33", "#228833", "#66ccee")
"""Told apart by people who see colours differently, too; the first is for what others are compared with."""

_INK: Final = "#333333"
_OTHERS: Final = "#8fa3b5"
_SUBJECT: Final = "#228833"


@dataclass(frozen=True, slots=True)
class Summary:
    """How one strategy did; a mean of several runs may have fractions of requests.

    Attributes:
        name: of the strategy.
        sent: requests that reached the server, attempts counted singly.
        succeeded: calls that ended well.
        refused: answers 429.
        failed: calls that finally failed.
        goodput: accepted requests, as a share of the quota.
        p50: median seconds that a successful call took, with its waits.
        p95: the 95th percentile of the same.
        jain: Jain's fairness index between the processes: 1.0 where all got the same, 1/n where one got all.
    """

    name: str
    sent: float
    succeeded: float
    refused: float
    failed: float
    goodput: float
    p50: float
    p95: float
    jain: float | None

    @property
    def refused_per_success(self) -> float:
        """429s for each call that ended well; infinite where only refusals came back."""
        return ratio(self.refused, self.succeeded)

    @property
    def failed_share(self) -> float:
        """Calls that finally failed, as a share of those that ended."""
        return self.failed / max(1e-9, self.failed + self.succeeded)


def ratio(part: float, whole: float) -> float:
    """`part / whole`; infinite where there is a part of nothing."""
    if whole:
        return part / whole
    return math.inf if part else 0.0


def summary_table(rows: Sequence[Summary], *, title: str | None = None) -> "Table":
    """A row for each strategy; fits a terminal of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("strategy", no_wrap=True)
    columns = ("sent", "ok", "429", "429/ok", "failed", "used", "p50 s", "p95 s", "Jain")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.sent:,.0f}",
            f"{row.succeeded:,.0f}",
            f"{row.refused:,.0f}",
            f"{row.refused_per_success:.3f}",
            f"{row.failed_share:.1%}",
            f"{row.goodput:.0%}",
            f"{row.p50:.1f}",
            f"{row.p95:.1f}",
            "-" if row.jain is None else f"{row.jain:.2f}",
        )
    return table


def rate_plot(
    series: Mapping[str, Sequence[float]],
    *,
    quota_rate: float | Sequence[tuple[float, float]],
    bucket_width: float,
    path: Path | str,
    title: str = "Accepted requests per second",
) -> None:
    """Draw the rate of accepted requests over time, one panel for each strategy, against the quota.

    The last strategy is the one that is of interest, and stands out.

    Args:
        series: for each strategy the instants of the accepted requests, in seconds from the start.
        quota_rate: requests per second that the quota allows; where it changes, pairs of instant and rate.
        bucket_width: seconds over which requests are counted.
        path: of the image; its ending says which kind (.png, .svg).
        title: of the whole.
    """
    end = max((instants[-1] for instants in map(sorted, series.values()) if instants), default=0.0)
    buckets = max(1, math.ceil(end / bucket_width + 1e-9))
    figure, panels = new_figure(len(series), 1, width=8.0, height=max(2.0, 1.25 * len(series) + 0.9))
    steps = [(0.0, quota_rate)] if isinstance(quota_rate, int | float) else list(quota_rate)
    edges = [bucket_width * number for number in range(buckets + 1)]
    for number, (panel, (name, instants)) in enumerate(zip(panels, series.items(), strict=True)):
        panel.stairs(
            _rates(instants, bucket_width, buckets),
            edges,
            fill=True,
            color=_SUBJECT if number == len(series) - 1 else _OTHERS,
            alpha=0.85,
        )
        quota_edges = [*(instant for instant, _ in steps), max(edges[-1], steps[-1][0])]
        panel.stairs(
            [rate for _, rate in steps], quota_edges, baseline=None, color=_INK, linestyle="--", linewidth=1.2
        )
        panel.set_title(name, loc="left", fontsize=9)
        panel.set_xlim(0, edges[-1])
    top = 1.08 * max([rate for _, rate in steps] + [panel.get_ylim()[1] / 1.05 for panel in panels])
    for panel in panels:
        panel.set_ylim(0, top)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    panels[-1].set_xlabel("seconds; the dashed line is the quota")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=120)


def _rates(instants: Sequence[float], width: float, buckets: int) -> list[float]:
    counts = [0] * buckets
    for instant in instants:
        counts[min(buckets - 1, int(instant / width))] += 1
    return [count / width for count in counts]


def new_figure(rows: int, columns: int, *, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure in inches, in the style of all plots here, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8, colors=_INK)
    return figure, panels
