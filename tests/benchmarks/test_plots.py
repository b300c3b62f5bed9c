"""The images of the docs."""

from pathlib import Path

import pytest


@pytest.mark.parametrize("quota", [2.0, [(0.0, 2.0), (15.0, 1.0)]], ids=["constant", "changing"])
def test_a_plot_of_rates_is_written_for_light_and_for_dark_pages(
    tmp_path: Path, quota: float | list[tuple[float, float]]
) -> None:
    from benchmarks._plots import rate_plot  # Imports matplotlib.

    series = {"some": [0.5, 1.0, 29.0], "none": []}

    rate_plot(series, quota_rate=quota, bucket_width=5, path=tmp_path / "step-0.5", title="Rates")

    light, dark = ((tmp_path / f"step-0.5-{mode}.svg").read_text() for mode in ("light", "dark"))
    assert "#333333" in light
    assert "#333333" not in dark
    assert "Rates" in dark


def test_the_same_figure_makes_the_same_files(tmp_path: Path) -> None:
    from benchmarks._plots import new_figure, save

    for name in ("one", "two"):
        figure, (panel,) = new_figure(1, 1, width=2, height=2)
        panel.plot([1, 2], [3, 4])
        save(figure, tmp_path / name)

    assert (tmp_path / "one-dark.svg").read_bytes() == (tmp_path / "two-dark.svg").read_bytes()
