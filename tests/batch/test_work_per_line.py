"""How much work a line is: counted, since times depend on the machine."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from .job import Job, Server

pytestmark = [pytest.mark.real_time, pytest.mark.no_cover]

MOST = 520
"""Calls of Python functions per line, ours and those of all packages; httpcore's connections would take 1,500."""


def calls_of(job: Job, lines: int) -> int:
    """The calls of one run in this thread."""
    job.write(lines)
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = job.run("--restart")
    finally:
        sys.setprofile(before)
    assert result.returncode == 0, result.stderr
    return calls


def test_a_line_takes_no_more_calls_than_when_this_was_measured(counting: Server, tmp_path: Path) -> None:
    job = Job(tmp_path, counting.url, ("--no-auth", "--quiet"))
    calls_of(job, 10)  # The first run imports.
    # On a busy machine, the event loop wakes more often.
    assert any((calls_of(job, 130) - calls_of(job, 30)) / 100 < MOST for _ in range(3))
