"""How strategies did against a quota, as a table: for `stkai demo` and for the benchmarks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Summary:
    """How one strategy did. Counts are floats: they may be means of several runs.

    Attributes:
        name: The strategy's name.
        sent: Requests that reached the server; each attempt counts.
        succeeded: Calls that succeeded.
        refused: 429 responses.
        failed: Calls that failed for good.
        goodput: Accepted requests as a share of the quota.
        p50: Median duration of a successful call in seconds, waiting included.
        p95: The 95th percentile of the same.
        jain: Jain's fairness index across processes: 1.0 if all got the same, 1/n if one got everything.
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
        """429s per successful call; infinite if every call was refused."""
        return ratio(self.refused, self.succeeded)

    @property
    def failed_share(self) -> float:
        """Failed calls as a share of all finished calls."""
        return self.failed / max(1e-9, self.failed + self.succeeded)


def ratio(part: float, whole: float) -> float:
    """`part / whole`; infinite if only `whole` is zero."""
    if whole:
        return part / whole
    return math.inf if part else 0.0


def summary_table(rows: Sequence[Summary], *, title: str | None = None) -> "Table":
    """One row per strategy; fits a terminal of 80 columns."""
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
