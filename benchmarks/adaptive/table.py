"""The figures of strategies, as a table in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from .metrics import Summary


def summary_table(rows: Sequence[Summary], *, title: str | None = None) -> Table:
    """One row per strategy; fits a terminal of 80 columns."""
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
