"""Stdin as the input: what a run that ends early leaves of it to the next one."""

import asyncio
import io
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from .job import HANGS, Job, RefusalError, Server, echo, summary, until

pytestmark = pytest.mark.real_time

LEFT_OUT = b"stdin had not ended: pass it again, or only the lines that were copied are sent"


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(5)
    return job


@pytest.fixture
def open_ended(job: Job, counting: Server) -> subprocess.Popen[bytes]:
    """A run that has sent five lines of stdin, which has not ended."""
    process = job.start("-", stdin=subprocess.PIPE)
    assert isinstance(process.stdin, io.BufferedIOBase)
    process.stdin.write(job.input.read_bytes())
    process.stdin.flush()
    until(lambda: len(counting.seen) >= 5, process)
    return process


def test_stdin_that_was_cut_off_is_reported_and_what_was_copied_is_sent(
    job: Job, counting: Server, open_ended: subprocess.Popen[bytes]
) -> None:
    open_ended.kill()
    open_ended.communicate()
    result = job.run("-", "--resume")
    assert "stdin was cut off" in result.stderr
    assert sorted([*job.done(), *job.failures()]) == [1, 2, 3, 4, 5]
    assert set(counting.executed.values()) == {1}
    assert "cut off" in job.run("-", "--resume").stderr


@pytest.mark.parametrize("copied", [0, 1, 100, 250])
def test_stdin_may_be_passed_again_after_a_run_without_it(copied: int, job: Job, counting: Server) -> None:
    whole = job.input.read_bytes()
    cut_off(job, whole[:copied])
    result = job.run("-", "--resume")
    assert (result.returncode, job.failures()) == (0, {}), "the start of a line is no line"
    result = job.run("-", "--resume", stdin=whole)
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert set(counting.executed.values()) == {1}


@pytest.mark.parametrize("copied", [0, 1, 100, 250, 10_000])
def test_stdin_that_was_cut_off_anywhere_and_is_passed_again_is_sent_to_its_end(
    copied: int, job: Job, counting: Server
) -> None:
    whole = job.input.read_bytes()
    cut_off(job, whole[:copied])
    result = job.run("-", "--resume", stdin=whole)
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert set(counting.executed.values()) == {1}
    assert (job.folder / "out.stdin.jsonl").read_bytes() == whole
    assert "cut off" not in job.run("-", "--resume").stderr


def test_a_job_that_was_killed_before_it_copied_stdin_is_resumed(job: Job, counting: Server) -> None:
    killed = "from stkai._batch import job; import os; job.StdinCopy = lambda *a, **k: os._exit(9)"
    with job.start("-", before=killed) as process:
        assert process.wait(HANGS) == 9
    result = job.run("-", "--resume", stdin=job.input.read_bytes())
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert set(counting.executed.values()) == {1}


@pytest.mark.parametrize("other", [b"x", b'{"custom_id": "id-1"', b"[]" * 200])
def test_of_a_stdin_other_than_the_one_that_was_cut_off_nothing_is_sent(
    other: bytes, job: Job, counting: Server
) -> None:
    whole = job.input.read_bytes()
    cut_off(job, whole[:120])
    result = job.run("-", "--resume", stdin=other)
    assert (result.returncode, "stdin does not begin with" in result.stderr) == (3, True)
    assert (sorted(job.done()), job.failures()) == ([1], {})
    assert (job.folder / "out.stdin.jsonl").read_bytes() == whole[:120]
    result = job.run("-", "--resume", stdin=whole)
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert set(counting.executed.values()) == {1}


def test_what_was_copied_is_sent_while_a_resumed_run_waits_for_stdin(job: Job, counting: Server) -> None:
    whole = job.input.read_bytes()
    cut_off(job, whole[:250])
    with job.start("-", "--resume", stdin=subprocess.PIPE) as process:
        until(lambda: len(counting.seen) == 3, process)
        process.communicate(whole, timeout=HANGS)
    assert (process.returncode, sorted(job.done())) == (0, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("kind", ["terminal", "nohup"])
def test_a_terminal_and_what_nohup_replaces_it_by_are_not_stdin_passed_again(
    kind: str, job: Job, counting: Server
) -> None:
    cut_off(job, job.input.read_bytes()[:100])
    opened = pty.openpty() if kind == "terminal" else (os.open(os.devnull, os.O_WRONLY),)
    with job.start("-", "--resume", stdin=opened[-1]) as process:
        assert process.wait(HANGS) == 0
    for descriptor in opened:
        os.close(descriptor)
    assert (sorted(job.done()), job.codes()) == ([1], {})


def test_stdin_for_which_there_is_no_room_is_sent_by_the_next_run_with_the_line_that_was_torn(
    job: Job, counting: Server
) -> None:
    job.write(300, text="x" * 1000)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    with job.input.open("rb") as stdin:
        process = job.start("-", before=limit, stdin=stdin)
        assert b"out.stdin.jsonl cannot be written: File too large" in process.communicate(timeout=HANGS)[1]
    assert (process.returncode, job.codes()) == (3, {})
    assert 50 < len(job.done()) < 100
    result = job.run("-", "--resume", stdin=job.input.read_bytes())
    assert (result.returncode, summary(result.stderr)) == (0, "300 done, 0 failed (0 unknown)")
    assert set(counting.executed.values()) == {1}


def test_a_merge_refuses_a_job_whose_stdin_had_not_ended(job: Job) -> None:
    cut_off(job, job.input.read_bytes()[:250])
    assert job.run("-", "--resume").returncode == 0
    merge = ["python", "-m", "stkai", "batch", "merge", "out", "-o", "all"]
    refused = job.run_here(merge, job.environment())
    assert (refused.returncode, "stdin had not ended" in refused.stderr) == (2, True)
    assert job.run_here([*merge, "--partial"], job.environment()).returncode == 0


def test_a_merge_passes_over_the_copies_of_stdin(job: Job) -> None:
    for number in range(2):
        part = ("--shard", f"{number}/2", "-o", f"part-{number}")
        assert job.run("-", *part, stdin=job.input.read_bytes()).returncode == 0
    names = sorted(path.name for path in job.folder.glob("part-*.jsonl"))
    assert len(names) == 6
    merged = job.run_here(["python", "-m", "stkai", "batch", "merge", *names, "-o", "all"], job.environment())
    assert (merged.returncode, summary(merged.stderr)) == (0, "5 done, 0 failed")


@pytest.mark.parametrize("more", [[], ["--restart"]])
def test_the_output_of_another_job_is_not_overwritten_by_stdin(more: list[str], job: Job) -> None:
    assert job.run("-o", "out.stdin").returncode == 0
    before = (job.folder / "out.stdin.jsonl").read_bytes()
    result = job.run("-", *more, stdin=job.input.read_bytes())
    assert (result.returncode, "the output of another job" in result.stderr) == (2, True)
    assert job.run(*more).returncode == 0
    assert (job.folder / "out.stdin.jsonl").read_bytes() == before


def test_a_job_that_starts_over_deletes_its_own_copy_of_stdin_only(job: Job) -> None:
    copy = job.folder / "out.stdin.jsonl"
    copy.write_text("precious")
    assert job.run().returncode == 0
    assert job.run("--restart").returncode == 0
    assert copy.read_text() == "precious"
    assert job.run("-", "--restart", stdin=job.input.read_bytes()).returncode == 0
    assert job.run("--restart").returncode == 0
    assert not copy.exists()


def test_a_resumed_job_that_has_all_of_stdin_says_that_it_reads_no_more(job: Job, counting: Server) -> None:
    whole = job.input.read_bytes()
    assert "not read" not in job.run("-", stdin=whole).stderr
    result = job.run("-", "--resume", stdin=whole * 2)
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert "stdin is not read: an earlier run has copied all of it to" in result.stderr


def test_a_run_that_is_aborted_leaves_no_copy_of_stdin_where_it_keeps_no_files(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    is_over, folder = threading.Event(), tmp_path / "temporary"
    folder.mkdir()

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.get_running_loop().run_in_executor(None, is_over.wait, HANGS)
        return await echo(request, body)

    counting.answer = answer
    with job.start("-", "-o", "-", stdin=subprocess.PIPE, env={"TMPDIR": str(folder)}) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(job.input.read_bytes())
        process.stdin.flush()
        until(lambda: len(counting.seen) == 5, process)
        assert len(list(folder.glob("*/stdin.jsonl"))) == 1
        process.send_signal(signal.SIGTERM)
        process.stderr.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS) == 130
    is_over.set()
    assert list(folder.iterdir()) == []


def cut_off(job: Job, copied: bytes) -> None:
    """The files of a job that was killed when it had copied this, and before it sent anything."""
    assert job.run("-", stdin=b"").returncode == 0
    job.journal.write_bytes(job.journal.read_bytes().splitlines(keepends=True)[0])
    (job.folder / "out.stdin.jsonl").write_bytes(copied)


@pytest.fixture
def halted(job: Job, counting: Server) -> Iterator[subprocess.Popen[bytes]]:
    """A run that a 401 has halted while stdin still arrives."""

    async def refuse(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(401)

    counting.answer = refuse
    with job.start("-", stdin=subprocess.PIPE) as process:
        assert isinstance(process.stdin, io.BufferedIOBase)
        assert process.stderr is not None
        process.stdin.write(job.input.read_bytes().splitlines(keepends=True)[0])
        process.stdin.flush()
        assert b"copying the rest of stdin" in process.stderr.readline()
        yield process


def test_a_run_that_halts_copies_the_rest_of_stdin_for_the_next_one(
    job: Job, counting: Server, halted: subprocess.Popen[bytes]
) -> None:
    halted.communicate(b"".join(job.input.read_bytes().splitlines(keepends=True)[1:]), timeout=HANGS)
    assert halted.returncode == 3
    counting.answer = echo
    result = job.run("-", "--resume")
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert "cut off" not in result.stderr


def test_an_interrupt_of_the_copying_leaves_the_rest_out_and_the_run_says_so(
    halted: subprocess.Popen[bytes],
) -> None:
    halted.send_signal(signal.SIGINT)
    assert halted.wait(HANGS) == 3
    said = halted.communicate()[1]
    assert LEFT_OUT in said
    assert b"0 done, 0 failed" in said


@pytest.mark.parametrize("order", ["writer first", "writer last"])
def test_a_run_that_is_interrupted_with_the_writer_of_stdin_says_so_as_well(
    order: str, job: Job, counting: Server
) -> None:
    """Its end, which comes at the same moment, may have been read first."""
    is_over, copied = threading.Event(), job.folder / "copied"
    before = (
        "import pathlib, stkai._batch.input_lines as lines, stkai._cli.batch as command; command._SYNC_EVERY = 1e9;"
        " run = lines.StdinCopy.run; lines.StdinCopy.run = lambda copy: (run(copy), pathlib.Path('copied').touch())"
    )

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.get_running_loop().run_in_executor(None, is_over.wait, HANGS)
        return await echo(request, body)

    counting.answer = answer
    with job.start("-", before=before, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(job.input.read_bytes())
        process.stdin.flush()
        until(lambda: len(counting.seen) == 5, process)
        if order == "writer first":
            process.stdin.close()
            until(copied.exists, process)
        process.send_signal(signal.SIGINT)
        assert b"interrupted by SIGINT" in process.stderr.readline()
        process.stdin.close()
        is_over.set()
        said = process.stderr.read()
    assert LEFT_OUT in said
    whole = job.input.read_bytes() + b'{"url": "/x", "body": {"n": 6}}\n'
    result = job.run("-", "--resume", stdin=whole)
    assert (result.returncode, summary(result.stderr)) == (0, "6 done, 0 failed (0 unknown)")


def test_an_interrupted_run_says_that_stdin_was_not_copied_to_its_end(
    open_ended: subprocess.Popen[bytes],
) -> None:
    open_ended.send_signal(signal.SIGINT)
    assert open_ended.wait(HANGS) == 130
    assert LEFT_OUT in open_ended.communicate()[1]
