"""The adaptive limiter's page: the benchmark writes its results into the tables, and nowhere else."""

import shutil
from pathlib import Path

import pytest
from benchmarks.adaptive import page
from benchmarks.adaptive.bounds import Verdict
from benchmarks.adaptive.goals import GOALS
from benchmarks.adaptive.metrics import Result, Summary, jain_index
from benchmarks.adaptive.sections import SECTIONS, Section

ROW = Summary("some", 20, 10, 5, 1, 0.987, 1.0, 2.0, 0.95)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page to write to."""
    path = tmp_path / "adaptive.md"
    shutil.copy(page.DOCS, path)
    monkeypatch.setattr(page, "DOCS", path)
    return path


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_section_is_written_if_the_page_has_a_place_for_it(copy: Path, section: Section) -> None:
    before = copy.read_text()
    shown = f"<!-- table: {section.name} -->" in before
    page.write_section(section, dict.fromkeys(section.cases, Result(ROW, ROW, 2.5, ())))
    after = copy.read_text()
    assert (after.count("| 0.500 | 9.1% | 98.7% | 1.0 | 2.0 | 0.95 |") == len(section.cases)) is shown
    assert before.partition("<!-- table")[0] == after.partition("<!-- table")[0]


def test_goals_and_real_runs_are_written(copy: Path) -> None:
    verdicts = [
        Verdict(goal.title, goal.bounds[0], value, goal.scenarios[0])
        for goal, value in zip(GOALS, range(len(GOALS)), strict=True)
    ]
    page.write_verdicts(verdicts, range(1001, 1021))
    page.write_real("real-20-1", "20 per 1 s", [ROW], [ROW])
    text = copy.read_text()
    met = sum(verdict.met for verdict in verdicts)
    assert f"{met} of {len(GOALS)} met; means of the seeds 1001 to 1020." in text
    assert text.count("| some | 0.500 |") == 2  # One row for the real run, one for the virtual one.


def test_jains_index_ranges_from_one_taker_to_equal_shares() -> None:
    assert jain_index([3, 3, 3]) == 1.0
    assert jain_index([4, 0, 0, 0]) == 0.25
    assert jain_index([0, 0]) is None
