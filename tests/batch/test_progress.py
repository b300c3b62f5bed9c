"""The words of the progress display, prices, and the bar on a terminal."""

import io
import json
import os
import pty
from pathlib import Path

import pytest
from rich.console import Console

from stkai._batch.progress import (
    Bar,
    Display,
    Price,
    Progress,
    Usage,
    display,
    say,
    show_count,
    show_dollars,
    show_time,
)

from .job import HANGS, Job, server


def test_a_line_of_progress_says_how_far_how_fast_and_how_long() -> None:
    progress = Progress(872, 3_000, failed=3, waiting=9, tokens="12.4M tokens $1.86")
    assert progress.text(20.0) == (
        "29 % 872/3,000 | 20/s | 9 waiting | 3 failed | 12.4M tokens $1.86 | ETA 1:46"
    )


def test_progress_says_after_which_refusals_lines_wait() -> None:
    progress = Progress(0, 100, waiting=32, refusals={503: 1, 429: 5})
    assert progress.text(0.0) == "0 % 0/100 | 32 waiting, 5 after 429, 1 after 503 | 0 failed"


def test_unknown_figures_are_left_out() -> None:
    assert Progress(7).text(0.0) == "7 | 0 failed"


@pytest.mark.parametrize(("finished", "shown"), [(0, "0 %"), (2_999, "99 %"), (3_000, "100 %")])
def test_the_share_is_that_of_the_finished_lines(finished: int, shown: str) -> None:
    assert Progress(finished, 3_000).text(0.5).startswith(f"{shown} {finished:,}/3,000 | 0.5/s | ")


def test_without_a_terminal_there_is_a_plain_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Display(10.0)
    for second in range(31):
        plain.show(100.0 + second, Progress(second * 10, 400))
    assert capsys.readouterr().err.splitlines() == [
        "25 % 100/400 | 10/s | 0 failed | ETA 0:30",
        "50 % 200/400 | 10/s | 0 failed | ETA 0:20",
        "75 % 300/400 | 10/s | 0 failed | ETA 0:10",
    ]
    plain.close()


def test_the_time_left_follows_the_lines_of_this_run() -> None:
    shown = Display()
    assert "ETA" not in shown.text(1.0, Progress(500, 1_000))
    assert "ETA" not in shown.text(2.0, Progress(500, 1_000))
    assert shown.text(3.0, Progress(750, 1_000)).endswith("ETA 0:02")
    assert "ETA" not in shown.text(4.0, Progress(750))


def test_the_bar_shows_the_same_words() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Bar(console)
    bar.show(1.0, Progress(10, 20, 1))
    bar.show(2.0, Progress(20, None, 1))
    say("a message")
    bar.close()
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "50 % 10/20 | 1 failed" in shown
    assert shown.index("a message") < shown.rindex("10/s | 1 failed"), "it stands above the bar"
    silent = Display()
    silent.show(1.0, Progress(0))
    silent.close()


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_times_are_shown_as_on_a_clock(seconds: float, shown: str) -> None:
    assert show_time(seconds) == shown


def test_counts_and_dollars_are_short() -> None:
    assert [show_count(count) for count in (0, 812, 9_999, 41_234, 999_949, 999_950, 12_400_000)] == [
        "0",
        "812",
        "9,999",
        "41.2k",
        "999.9k",
        "1.0M",
        "12.4M",
    ]
    assert [show_dollars(amount) for amount in (0, 0.0123, 1.86, 1234.5)] == [
        "$0.00",
        "$0.0123",
        "$1.86",
        "$1,234.50",
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}},
        {"usage": {"input_tokens": 10, "output_tokens": 4}},
        {"tokens": {"user": 7, "enrichment": 3, "output": 4}},
        'data: {"choices": []}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}\n',
    ],
)
def test_usage_is_read_from_the_answers_of_several_services(body: object) -> None:
    usage = Usage()
    for other in (
        body,
        None,
        [],
        {"usage": None},
        {"usage": {"prompt_tokens": "many", "completion_tokens": True}},
    ):
        usage = usage.plus(other, other.encode() if isinstance(other, str) else b"")
    assert usage == (10, 4)
    assert usage.text(Price(1.0, 2.0)) == "14 tokens $0.0000"
    assert usage.text(None) == "14 tokens"


@pytest.mark.parametrize("text", ["", "input", "input=x", "input=-1", "in=1", "input=nan", "input=1e9"])
def test_a_price_is_dollars_per_million_tokens(text: str) -> None:
    assert Price.parse("input=0.15, output=0.6") == Price(0.15, 0.6)
    assert Price.parse("output=2") == Price(0.0, 2.0)
    with pytest.raises(ValueError, match="--price"):
        Price.parse(text)


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding, errors="backslashreplace")

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    for term, kind in (("dumb", Display), ("xterm", Bar)):
        monkeypatch.setenv("TERM", term)
        assert type(display(quiet=False)) is kind


@pytest.mark.parametrize("width", [20, 100])
def test_a_bar_is_ascii_where_the_terminal_takes_nothing_else(width: int) -> None:
    terminal = Terminal("latin-1")
    bar = Bar(Console(file=terminal, force_terminal=True, width=width))
    bar.show(0.0, Progress(finished=1, total=2, failed=1_000_000))
    bar.close()
    terminal.flush()
    assert b"\\u" not in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_on_a_terminal_there_is_a_bar_to_the_end_and_the_summary_comes_last(tmp_path: Path) -> None:
    with server() as running:
        job = Job(tmp_path, running.url)
        job.write(20)
        seen = on_terminal(job)
    assert b"\x1b[" in seen
    assert b"100 % 20/20" in seen
    assert seen.decode().splitlines()[-1].endswith("20 done, 0 failed (0 unknown)")


def test_outcomes_on_the_terminal_are_lines_of_their_own(tmp_path: Path) -> None:
    with server() as running:
        job = Job(tmp_path, running.url)
        job.write(3)
        seen = on_terminal(job, "-o", "-").decode().splitlines()
    assert sorted(json.loads(line)["id"] for line in seen[:3]) == ["line-1", "line-2", "line-3"]
    assert seen[3:] == ["3 done, 0 failed (0 unknown)"]


@pytest.mark.no_cover
def test_outcomes_that_cannot_be_written_are_lines_of_their_own_below_the_bar(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    with server() as running:
        job = Job(tmp_path, running.url)
        job.write(50)
        seen = on_terminal(job, before=limit, code=3).decode()
    assert "went to stderr" in seen
    lines = [line for line in seen.replace("\x1b[?25h", "").splitlines() if '"response"' in line]
    assert lines
    assert all(line.startswith("{") for line in lines)


def on_terminal(job: Job, *more: str, before: str = "", code: int = 0) -> bytes:
    """Run the command on a terminal, and return what that shows."""
    controller, terminal = pty.openpty()
    process = job.start(*more, before=before, stderr=terminal, stdout=terminal, env={"TERM": "xterm"})
    os.close(terminal)
    seen = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # This is how a terminal ends on Linux.
            block = b""
        if not block:
            break
        seen += block
    os.close(controller)
    assert process.wait(HANGS) == code
    return seen
