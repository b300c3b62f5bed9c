"""The plots of the benchmarks and of the docs, drawn with matplotlib from the dependency group `bench`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.spines import Spine
from matplotlib.text import Text

COLOURS: Final = ("#9a9a9a", "#4477aa", "#ee8866", "#aa3377", "#bbaa33", "#228833", "#66ccee")
"""Colours that colour-blind readers can tell apart; the first one is for the baseline."""

_OTHERS: Final = "#8fa3b5"
_SUBJECT: Final = "#228833"
_INKS: Final = {"light": "#333333", "dark": "#d6d8de"}
"""The colour of text, axes and the quota, on a light and on a dark page."""


def rate_plot(
    series: Mapping[str, Sequence[float]],
    *,
    quota_rate: float | Sequence[tuple[float, float]],
    bucket_width: float,
    path: Path | str,
    title: str = "Accepted requests per second",
) -> None:
    """Draw the rate of accepted requests over time against the quota, one panel per strategy.

    The last strategy is the subject, and is highlighted.

    Args:
        series: For each strategy, when requests were accepted, in seconds from the start.
        quota_rate: Requests per second that the quota allows, or pairs of instant and rate if it changes.
        bucket_width: Seconds over which requests are counted.
        path: Where to write the two images: see `save`.
        title: Title of the figure.
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
            [rate for _, rate in steps],
            quota_edges,
            baseline=None,
            color=_INKS["light"],
            linestyle="--",
            linewidth=1.2,
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
    save(figure, path)


def _rates(instants: Sequence[float], width: float, buckets: int) -> list[float]:
    counts = [0] * buckets
    for instant in instants:
        counts[min(buckets - 1, int(instant / width))] += 1
    return [count / width for count in counts]


def new_figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure in the common style, with its size in inches, and its panels row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    return figure, panels


def save(figure: Figure, path: Path | str) -> None:
    """Write `name-light.svg` and `name-dark.svg`, both transparent, for a path that ends in `name`.

    A page shows one of them: `![...](images/name-light.svg#only-light)` and `![...](images/name-dark.svg#only-dark)`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep text as text, and write the same file for the same figure.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stkai", "font.family": "sans-serif"}):
        for mode, ink in _INKS.items():
            _draw_in(figure, ink)
            target = path.with_name(f"{path.name}-{mode}.svg")
            figure.savefig(target, transparent=True, metadata={"Date": None})
            target.write_text("".join(f"{line.rstrip()}\n" for line in target.read_text().splitlines()))


def _draw_in(figure: Figure, ink: str) -> None:
    """Give all text, axes and ticks one colour, and likewise all lines that had the colour of another mode."""
    inks = {to_hex(colour) for colour in (*_INKS.values(), "black")}
    for artist in figure.findobj(lambda artist: isinstance(artist, Text | Spine | Line2D | StepPatch)):
        if isinstance(artist, Text):
            artist.set_color(ink)
        elif isinstance(artist, Spine | StepPatch) and to_hex(artist.get_edgecolor()) in inks:
            artist.set_edgecolor(ink)
        elif isinstance(artist, Line2D) and to_hex(artist.get_color()) in inks:
            artist.set_color(ink)
            artist.set_markeredgecolor(ink)
