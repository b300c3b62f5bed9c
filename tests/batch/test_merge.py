"""`stkai batch --shard` and `stkai batch merge`: no line lost, none twice, and gaps named."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ..support.forked import Forked
from .job import HANGS, Job, RefusalError, Server, echo, entries, summary

pytestmark = pytest.mark.real_time


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    return Job(tmp_path, counting.url)


def lines(job: Job, *content: Any) -> None:
    job.input.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in content))


def test_a_shard_takes_its_lines_under_their_own_numbers_and_merge_joins_them(
    job: Job, counting: Server
) -> None:
    job.write(10)
    for number in range(3):
        assert job.run("--shard", f"{number}/3", "-o", f"part-{number}").returncode == 0
    assert set(counting.executed.values()) == {1}
    parts = [f"part-{number}.jsonl" for number in range(3)]
    assert sorted(json.loads(line)["id"] for line in (job.folder / parts[1]).read_text().splitlines()) == [
        "line-2",
        "line-5",
        "line-8",
    ]
    assert job.run("--shard", "1/2", "-o", "part-1", "--resume").returncode == 2
    merged = merge(job, *parts, "-o", "all.jsonl")
    assert merged.returncode == 0, merged.stderr
    assert list(entries(job.folder / "all.jsonl")) == list(range(1, 11))
    assert (job.folder / "all.failed.jsonl").read_text() == ""


def merge(job: Job, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return job.run_here([sys.executable, "-m", "stkai", "batch", "merge", *arguments], job.environment())


def test_a_merge_shows_what_all_shards_have_used_if_their_journals_are_there(
    job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.json_response({"usage": {"prompt_tokens": 1_000_000, "completion_tokens": body["n"]}})

    counting.answer = answer
    job.write(2)
    for number in range(2):
        job.run("--shard", f"{number}/2", "-o", f"part-{number}")
    merged = merge(job, "part-0", "part-1", "-o", "all", "--price", "input=2")
    assert merged.stderr == "2.0M tokens $4.00\n2 done, 0 failed\n"
    (job.folder / "part-0.journal").unlink()
    assert merge(job, "part-0", "part-1", "-o", "other").stderr == "2 done, 0 failed\n"


def test_a_merge_that_cannot_be_finished_leaves_nothing_behind(job: Job) -> None:
    lines(job, {"url": "/x", "body": {}}, "oops")
    job.run()
    (job.folder / f"all.jsonl.{os.getpid()}.sorting").mkdir()
    before = {path.name for path in job.folder.iterdir()}
    result = merge(job, "out", "-o", "all")
    assert (result.returncode, "all.jsonl" in result.stderr) == (3, True)
    assert {path.name for path in job.folder.iterdir()} == before


KILLED = """
import os, runpy, signal, sys

name, calls = sys.argv.pop(1), []
original = getattr(os, name)

def called(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

setattr(os, name, called)
runpy.run_module("stkai", run_name="__main__")
"""
"""The command, killed when it calls a function of `os` for the second time."""


def test_a_merge_that_is_killed_leaves_no_incomplete_output(job: Job) -> None:
    lines(job, {"url": "/x", "body": {}}, "oops")
    job.run()
    for step, made in (("fsync", set[str]()), ("replace", {"all.failed.jsonl"})):
        command = [sys.executable, "-c", KILLED, step, "batch", "merge", "out", "-o", "all"]
        with Forked(command, cwd=job.folder, env=job.environment()) as killed:
            assert killed.wait(HANGS) == -signal.SIGKILL
        assert {path.name for path in job.folder.glob("all*.jsonl")} == made
    assert list(entries(job.folder / "all.failed.jsonl")) == [2]


@pytest.mark.parametrize("name", ["all.jsonl", "all.failed.jsonl"])
def test_a_merge_overwrites_no_file(name: str, job: Job) -> None:
    job.write(2)
    job.run()
    (job.folder / name).write_text("mine")
    before = job.snapshot()
    result = merge(job, "out", "-o", "all")
    assert (result.returncode, f"{name} exists" in result.stderr) == (2, True)
    assert job.snapshot() == before


def test_a_merge_to_stdout_is_wrong_usage(job: Job) -> None:
    job.run()
    before = job.snapshot()
    result = merge(job, "out", "-o", "-")
    assert (result.returncode, "a merge writes two files" in result.stderr) == (2, True)
    assert job.snapshot() == before


def test_an_output_that_the_system_refuses_is_wrong_usage(job: Job) -> None:
    result = merge(job, "x" * 300, "-o", "all")
    # From CPython 3.14 on, `Path.exists` is False for a name that the system refuses.
    problem = "File name too long" if sys.version_info < (3, 14) else "does not exist"
    assert (result.returncode, problem in result.stderr) == (2, True)
    assert "xxx" in result.stderr


def test_merge_reports_failures_and_refuses_to_lose_or_duplicate_lines(job: Job) -> None:
    lines(job, {"url": "/x", "body": {}}, "oops", {"url": "/x", "body": {}})
    job.run("--shard", "0/2", "-o", "a")
    job.run("--shard", "1/2", "-o", "b.jsonl")
    result = merge(job, "a", "b", "-o", "all")
    assert (result.returncode, summary(result.stderr)) == (1, "2 done, 1 failed")
    assert (list(entries(job.folder / "all.jsonl")), list(entries(job.folder / "all.failed.jsonl"))) == (
        [1, 3],
        [2],
    )
    for names, says in (
        (("a", "b", "-o", "all"), "exists"),
        (("a", "missing", "-o", "other"), "does not exist"),
        (("a", "b", "a", "-o", "other"), "line 1 is in two outputs"),
        (("in", "-o", "other"), "or not one of this file: pass another file"),
        (("a", "-o", "nowhere/other"), "not a directory"),
    ):
        before = job.snapshot()
        result = merge(job, *names)
        assert result.returncode == 2, names
        assert says in result.stderr
        assert job.snapshot() == before
    with (job.folder / "a.jsonl").open("a") as output:
        output.write('{"id": "line-9", "custom')
    result = merge(job, "a", "b", "-o", "other")
    assert (result.returncode, "cut off" in result.stderr) == (2, True)


@pytest.mark.parametrize("journals", [True, False])
def test_a_merge_of_a_job_that_halted_names_the_missing_lines(
    journals: bool, job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if 6 <= body["n"] <= 9:
            raise RefusalError(400)
        return await echo(request, body)

    counting.answer = answer
    job.write(20)
    for number in range(2):
        # Shard 0 has 7 and 9; it halts after these. Shard 1 has 6 and 8.
        options = ("--halt-after", "2", "--max-in-flight", "1") if number == 0 else ()
        code = job.run("--shard", f"{number}/2", "-o", f"part-{number}", *options).returncode
        assert code == (1 if number else 3)
    if not journals:
        for journal in job.folder.glob("*.journal"):
            journal.unlink()
    before = job.snapshot()
    result = merge(job, "part-0", "part-1", "-o", "all")
    assert result.returncode == 2
    assert "the input has 5 lines without an outcome (11, 13, 15, 17, 19)" in result.stderr
    assert "--partial" in result.stderr
    assert job.snapshot() == before
    result = merge(job, "part-0", "part-1", "-o", "all", "--partial")
    assert (result.returncode, summary(result.stderr)) == (1, "11 done, 4 failed")


def test_a_merge_without_one_of_the_shards_names_its_lines(job: Job) -> None:
    job.write(5)
    job.run("--shard", "0/2", "-o", "a")
    job.run("--shard", "1/2", "-o", "b")
    result = merge(job, "a", "-o", "all")
    assert (result.returncode, "2 lines without an outcome (2, 4)" in result.stderr) == (2, True)
    assert merge(job, "b", "-o", "all").returncode == 2
    assert merge(job, "a", "b", "-o", "all").returncode == 0


def test_a_merge_refuses_shards_of_different_inputs(job: Job) -> None:
    job.write(4)
    job.run("--shard", "0/2", "-o", "a")
    job.write(6)
    job.run("--shard", "1/2", "-o", "b")
    job.write(4)
    job.input.write_text(job.input.read_text().replace("/", "/v2/"))
    job.run("--shard", "1/2", "-o", "c")
    for other in "bc":
        result = merge(job, "a", other, "-o", "all")
        assert (result.returncode, f"a.jsonl and {other}.jsonl come from" in result.stderr) == (2, True)
    assert "or restart each" in result.stderr
    assert job.run("--shard", "0/2", "-o", "a", "--resume").returncode == 2
    assert merge(job, "a", "c", "-o", "all", "--partial").returncode == 0


def test_lines_missing_at_the_end_are_known_from_the_journal(job: Job, counting: Server) -> None:
    counting.answer = lambda request, body: halted()
    job.write(9)
    assert job.run("--halt-after", "2", "--max-in-flight", "1").returncode == 3
    result = merge(job, "out", "-o", "all")
    assert result.returncode == 2
    assert "7 lines without an outcome (3, 4, 5, 6, 7, 8, 9)" in result.stderr


async def halted() -> web.StreamResponse:
    raise RefusalError(404)


def test_blank_lines_of_a_finished_job_are_no_gap(job: Job) -> None:
    lines(job, {"url": "/x", "body": {}}, "", " ", {"url": "/x", "body": {}}, "")
    job.run()
    assert merge(job, "out", "-o", "all").returncode == 0


def test_more_shards_than_files_may_be_open_are_merged(job: Job, tmp_path: Path) -> None:
    names = []
    for number in range(1, 201):
        entry = {"id": f"line-{number}", "custom_id": None, "response": None, "error": None}
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(entry) + "\n")
        names.append(f"part-{number}")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(150, before[1]), before[1]))
    try:
        result = merge(job, *names, "-o", "all")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert result.returncode == 0, result.stderr
    assert list(entries(tmp_path / "all.jsonl")) == list(range(1, 201))


def test_entries_of_more_files_than_are_open_at_once_keep_their_order(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._batch.merge._OPEN_FILES", 2)
    job.write(40)
    for number in range(3):
        assert job.run("--shard", f"{number}/3", "-o", f"part-{number}").returncode == 0
    assert merge(job, *(f"part-{number}" for number in range(3)), "-o", "all").returncode == 0
    assert list(entries(tmp_path / "all.jsonl")) == list(range(1, 41))


def test_a_merged_output_is_as_private_as_its_parts(job: Job, tmp_path: Path) -> None:
    job.write(4)
    for number in range(2):
        job.run("--shard", f"{number}/2", "-o", f"part-{number}")
    (tmp_path / "part-0.jsonl").chmod(0o600)
    assert merge(job, "part-0", "part-1", "-o", "all").returncode == 0
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o777 == 0o600
