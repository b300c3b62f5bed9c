"""The table of the benchmarks."""

import io
import math

import pytest
from benchmarks.adaptive.metrics import Summary, ratio
from benchmarks.adaptive.table import summary_table
from rich.console import Console

ROW = Summary("adaptive", 2100.4, 2000, 100, 0, 0.981, 0.31, 12.3, 0.97)


def _render(*rows: Summary) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(summary_table(rows, title="fixed window"))
    return captured.get().rstrip().splitlines()


def test_a_table_has_a_line_for_each_strategy_with_its_ratios() -> None:
    line = next(line for line in _render(ROW) if "adaptive" in line)

    assert line.split() == [
        "adaptive",
        "2,100",
        "2,000",
        "100",
        "0.050",
        "0.0%",
        "98%",
        "0.3",
        "12.3",
        "0.97",
    ]


def test_a_table_fits_in_eighty_columns() -> None:
    lines = _render(ROW, Summary("no limiter", 62901, 1500, 61401, 15000, 1.0, 0.3, 179.8, None))

    assert not any("…" in line for line in lines)
    assert lines[-1].split()[-1] == "-"


def test_the_share_of_failed_calls_is_relative_to_all_finished_calls() -> None:
    assert Summary("x", 0, 75, 0, 25, 1, 0, 0, None).failed_share == pytest.approx(0.25)


def test_a_strategy_that_sent_nothing_has_no_ratios_to_divide_by() -> None:
    nothing = Summary("x", 0, 0, 0, 0, 0, 0, 0, None)

    assert (nothing.refused_per_success, nothing.failed_share) == (0.0, 0.0)


def test_refusals_without_a_success_count_as_infinitely_many_per_success() -> None:
    assert ratio(3, 0) == math.inf
