"""The plot of requests over time, in a cell of the demo's table."""

from stkai._cli.demo_command import ROWS, columns, counts


def test_each_bucket_counts_its_instants_and_the_last_one_any_late_ones() -> None:
    assert counts([0.0, 0.9, 1.0, 7.5], 1.0, 3) == [2, 1, 1]


def test_accepted_requests_are_drawn_below_refused_ones() -> None:
    plot = columns([1, 0, 2], [1, 1, 0], top=2, cells=6)

    assert plot.plain.splitlines() == ["▒▒  ██", "██▒▒██"]


def test_two_kinds_share_a_character_if_one_ends_inside_it() -> None:
    plot = columns([1], [3], top=4, cells=1)

    assert plot.plain.splitlines() == ["▒", "▄"]
    assert str(plot.spans[-1].style) == "green on red"


def test_a_single_request_is_visible_and_high_bars_are_cut_off() -> None:
    plot = columns([1, 500], [0, 0], top=100, cells=2)

    assert plot.plain.splitlines() == [" █", "▁█"]


def test_nothing_is_drawn_if_nothing_was_sent() -> None:
    assert columns([0, 0], [0, 0], top=3, cells=4).plain.splitlines() == ["    "] * ROWS
