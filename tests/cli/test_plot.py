"""The plot of requests over time, in a cell of the demo's table."""

from stkai._cli.demo import columns, counts


def test_each_bucket_counts_its_instants_and_the_last_one_any_late_ones() -> None:
    assert counts([0.0, 0.9, 1.0, 7.5], 1.0, 3) == [2, 1, 1]


def test_the_columns_fill_the_line() -> None:
    assert columns([1, 0, 2], 2, 6) == "▄▄  ██"


def test_a_single_request_is_visible_and_high_columns_are_cut_off() -> None:
    assert columns([1, 500], 100, 2) == "▁█"


def test_nothing_is_drawn_if_nothing_was_sent() -> None:
    assert columns([0, 0], 3, 4) == "    "
