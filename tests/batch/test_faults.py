"""What a batch does when files are torn, a disk is full, or stdin ends early."""

import errno
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unittest.mock import Mock

import pytest
from aiohttp import web

from stkai._batch import input_lines
from stkai._cli.batch import run_batch

from .job import HANGS, Job, Server, echo, entries, summary

pytestmark = pytest.mark.real_time

ENTRY = '{{"id": "line-{0}", "custom_id": "id-{0}", "response": null, "error": {1}}}\n'


def resume(job: Job, unknown: Literal["report", "resend"] = "report", max_in_flight: int = 2) -> int:
    """Resume the job in this process."""
    options = {
        "source": str(job.input),
        "out": str(job.out),
        "base_url": job.url,
        "resume": True,
        "unknown": unknown,
        "no_auth": True,
        "max_in_flight": max_in_flight,
    }
    return run_batch(options)


def interrupted(job: Job) -> None:
    """The files of a job that was killed when line 4 was in flight, two at once: 1 and 2 are done, 3 has failed."""
    assert resume(job) == 0
    header = job.journal.read_bytes().splitlines(keepends=True)[0]
    job.journal.write_bytes(header + b"s 1\ns 2\ns 3\ns 4\n")
    job.out.write_text("".join(ENTRY.format(n, "null") for n in (1, 2)))
    job.failed.write_text(ENTRY.format(3, '{"code": "http_400", "message": "no"}'))


@pytest.fixture
def killed(job: Job, counting: Server) -> Job:
    interrupted(job)
    counting.executed.clear()
    counting.executed.update({json.dumps({"n": n}): 1 for n in (1, 2, 3, 4)})
    return job


def every_cut_of_the_last_record(path: Path) -> Iterator[bytes]:
    """The file without its last byte, without its last two, and so on, until one byte of its last record is left."""
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1 if content.count(b"\n") > 1 else 0
    for end in range(start + 1, len(content)):
        yield content[:end]


@pytest.mark.no_cover
@pytest.mark.parametrize("unknown", ["report", "resend"])
@pytest.mark.parametrize("name", ["out.journal", "out.jsonl", "out.failed.jsonl"])
def test_a_last_record_torn_at_any_byte_leaves_every_line_once(
    name: str, unknown: Literal["report", "resend"], killed: Job, counting: Server
) -> None:
    whole = killed.snapshot()
    executed = counting.executed.copy()
    if name == "out.journal":  # A line is sent after its record.
        del executed[json.dumps({"n": 4})]
    cuts = list(every_cut_of_the_last_record(killed.folder / name))
    for cut in cuts if name == "out.journal" else cuts[:: max(1, len(cuts) // 15)]:
        for file, content in whole.items():
            (killed.folder / file).write_bytes(cut if file == name else content)
        counting.executed.clear()
        counting.executed.update(executed)
        assert resume(killed, unknown) == 1 or unknown == "resend"
        done, failures = killed.done(), killed.failures()
        assert sorted([*done, *failures]) == [1, 2, 3, 4, 5], cut[-30:]
        lost = {"out.journal": set[int](), "out.jsonl": {2, 4}, "out.failed.jsonl": {3, 4}}[name]
        if unknown == "report":
            assert set(counting.executed.values()) == {1}, cut[-30:]
            assert {number for number, code in killed.codes().items() if code == "unknown"} == lost
        else:
            twice = {json.loads(body)["n"] for body, times in counting.executed.items() if times > 1}
            assert twice == lost


def test_lines_that_were_refused_are_new(killed: Job) -> None:
    with killed.journal.open("ab") as journal:
        journal.write(b"n 4\n")
    assert resume(killed) == 1
    assert sorted(killed.done()) == [1, 2, 4, 5]


def limit_files(size: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


@pytest.mark.no_cover
@pytest.mark.parametrize("full", ["outputs", "journal"])
def test_on_a_full_disk_nothing_more_is_sent_and_what_is_drained_goes_to_stderr(
    full: str, job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        counting.execute(body)
        return web.json_response({"text": "x" * (400 if full == "outputs" else 1)})

    counting.answer = answer
    limit = 12_000
    if full == "journal":
        job.write(1)
        assert job.run().returncode == 0
        with job.journal.open("ab") as journal:
            journal.write(b"n 7\n" * 5_000)
        limit = job.journal.stat().st_size + 100
        job.options = ("--no-auth", "--resume")
    job.write(200)
    process = job.start("--max-in-flight", "4", before=limit_files(limit))
    _, stderr = process.communicate(timeout=HANGS)
    text = stderr.decode()
    assert process.returncode == 3, text
    assert "File too large" in text
    assert "--resume" in text
    lines = [line for line in text.splitlines(keepends=True) if line.startswith('{"id": ')]
    drained = [int(json.loads(line)["id"][5:]) for line in lines]
    done = job.done()
    assert len(done) + len(drained) == len(counting.executed)
    assert (full == "outputs") == bool(drained)
    for path in (job.out, job.failed, job.journal):
        assert path.read_bytes()[-1:] in {b"\n", b""}
    assert ("could not be written and went to stderr: append" in text) == bool(drained)
    with job.out.open("a") as output:  # What the user appends, as the message asks, is done.
        output.writelines(lines[::2])
    result = job.run("--resume")
    lost = sorted(drained[1::2])
    assert sorted(job.failures()) == lost
    assert result.returncode == (1 if lost else 0)
    assert set(counting.executed.values()) == {1}
    assert sorted([*job.done(), *job.failures()]) == list(range(1, 201))


def file_on_a_full_disk(**_: Any) -> BinaryIO:
    return Path("/dev/full").open("wb")


def test_a_run_that_starts_on_a_full_disk_sends_nothing_although_its_journal_can_be_written(
    killed: Job, counting: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = counting.executed.copy()
    with monkeypatch.context() as full:
        full.setattr("tempfile.TemporaryFile", file_on_a_full_disk)
        assert resume(killed, "resend") == 3
        assert f"{killed.out} cannot be written: No space left on device" in capsys.readouterr().err
        assert counting.executed == before
    assert resume(killed, "resend") == 1
    assert sorted([*killed.done(), *killed.failures()]) == [1, 2, 3, 4, 5]
    monkeypatch.setattr("tempfile.TemporaryFile", file_on_a_full_disk)
    assert resume(killed) == 1, "there is nothing left to write"


@pytest.mark.parametrize("file", ["out", "journal"])
def test_a_file_that_another_program_replaces_during_the_run_halts_it(
    file: str, job: Job, counting: Server
) -> None:
    job.write(30)
    path: Path = getattr(job, file)

    def replace() -> None:  # As `sed -i` and many editors do.
        copy = path.with_suffix(".new")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        counting.execute(body)
        if len(counting.executed) == 10:
            replace()
        return web.json_response({})

    counting.answer = answer
    result = job.run("--max-in-flight", "1")
    assert result.returncode == 3
    assert f"{path} cannot be written: another program has deleted or replaced it; nothing" in result.stderr
    assert len(counting.executed) == 10
    lost = {10: "unknown"} if file == "out" else {}  # Unless the user appends what went to stderr.
    assert ('{"id": "line-10"' in result.stderr) == bool(lost)
    assert job.run("--resume").returncode == bool(lost)
    assert set(counting.executed.values()) == {1}
    assert sorted([*job.done(), *job.failures()]) == list(range(1, 31))
    assert job.codes() == lost


def test_a_disk_that_is_full_from_the_start_halts_the_run_before_anything_is_sent(
    job: Job, counting: Server
) -> None:
    process = job.start(before=limit_files(10))
    _, stderr = process.communicate(timeout=HANGS)
    assert process.returncode == 3, stderr
    assert counting.seen == []
    assert job.run().returncode == 0


def test_a_dry_run_that_cannot_copy_stdin_says_so(job: Job) -> None:
    with job.input.open("rb") as stdin:
        process = job.start("-", "--dry-run", before=limit_files(100), stdin=stdin)
    stdout, stderr = process.communicate(timeout=HANGS)
    assert (process.returncode, stdout) == (3, b""), stderr
    assert b"File too large" in stderr
    assert b"request" not in stderr, "that would be an estimate of what was copied"


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_stream_that_is_closed_is_wrong_usage(stream: str, job: Job, counting: Server) -> None:
    close = f"import os, sys; os.close({int(stream == 'stdout')}); sys.{stream} = None"
    arguments = ["-"] if stream == "stdin" else ["-o", "-"]
    before = job.snapshot()
    process = job.start(*arguments, before=close)
    _, stderr = process.communicate(timeout=HANGS)
    assert (process.returncode, f"{stream} is closed" in stderr.decode()) == (2, True), stderr
    assert (job.snapshot(), counting.seen) == (before, [])


@pytest.mark.parametrize("option", ["--quiet", "--dry-run"])
def test_stdin_that_cannot_be_read_to_its_end_is_no_complete_input(option: str, job: Job) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = job.start("-", option, stdin=reading)
    _, stderr = process.communicate(timeout=HANGS)
    os.close(reading)
    os.close(writing)
    assert process.returncode == 3
    assert "stkai batch: stdin cannot be read: Resource temporarily unavailable" in stderr.decode()


def test_a_fault_of_the_command_itself_does_not_end_it_as_if_the_job_were_done(
    job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("stkai._batch.runner.Runner._entry", Mock(side_effect=MemoryError))
        result = job.run("--max-in-flight", "1")
    assert result.returncode == 3
    assert "if a job has begun, --resume continues it\n" in result.stderr
    assert "MemoryError" in result.stderr
    assert job.run("--resume").returncode == 1
    assert "unknown" in job.codes().values()
    assert len(job.done()) + len(job.failures()) == 5
    assert len(counting.seen) == 5


@pytest.fixture
def resolvers_only(counting: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system allows no threads but those in which asyncio resolves hosts."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if not thread.name.startswith("asyncio_"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.usefixtures("resolvers_only")
@pytest.mark.parametrize("more", [(), ("--sync", "always"), ("-o", "-")], ids=["files", "sync", "stdout"])
def test_a_run_goes_on_if_the_system_allows_no_more_threads(
    more: tuple[str, ...], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._cli.batch._SYNC_EVERY", 0.0)
    monkeypatch.setattr("stkai._batch.progress.Display.pause", 0.001)
    job.write(30)
    result = job.run(*more, "--base-url", job.url.replace("127.0.0.1", "localhost"))
    assert (result.returncode, summary(result.stderr)) == (0, "30 done, 0 failed (0 unknown)")


@pytest.mark.usefixtures("resolvers_only")
def test_stdin_for_which_there_is_no_thread_halts_the_run(job: Job, counting: Server) -> None:
    result = job.run("-", stdin=job.input.read_bytes())
    assert result.returncode == 3
    assert "stdin cannot be read: no thread could be started (can't start new thread)" in result.stderr
    assert not counting.seen


def test_outputs_that_are_gone_when_they_are_to_be_sorted_halt_the_run(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        job.failed.unlink(missing_ok=True)
        return await echo(request, body)

    counting.answer = answer
    result = job.run("--order", "input")
    assert (result.returncode, summary(result.stderr)) == (3, "5 done, 0 failed (0 unknown)")
    assert f"No such file or directory: '{job.failed}'" in result.stderr


@pytest.mark.no_cover
def test_an_input_that_loses_lines_during_the_run_is_not_done(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        os.truncate(job.input, 100)
        return await echo(request, body)

    counting.answer = answer
    job.write(300, text="x" * 4000)
    whole = job.input.read_bytes()
    result = job.run("--max-in-flight", "1", "--order", "input")
    assert result.returncode == 3
    assert f" lines of {job.input} could not be read: it has changed during the run" in result.stderr
    job.input.write_bytes(whole)
    counting.answer = echo
    # The last one that was read may have been cut off.
    assert job.run("--retry-failed").returncode == 0
    assert len(job.done()) == len(counting.seen) == 300


def test_an_input_that_cannot_be_read_to_its_end_halts_the_run(
    job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(size: int | None, file: BinaryIO) -> Iterator[bytes]:
        yield from itertools.islice(whole(size, file), 3)
        if next(passes):  # The first one is that of the survey, before anything is sent.
            raise OSError(errno.EIO, "Input/output error")
        yield from whole(size, file)

    whole, passes = input_lines._up_to, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(input_lines, "_up_to", failing)
        result = job.run()
    assert result.returncode == 3
    assert f"{job.input} cannot be read: Input/output error" in result.stderr
    assert summary(job.run("--resume").stderr) == "5 done, 0 failed (0 unknown)"
    assert set(counting.executed.values()) == {1}


def test_an_error_of_the_system_that_names_no_file_halts_the_run_before_anything_is_sent(
    job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(input_lines, "sha256", failing)
        result = job.run()
    assert (result.returncode, result.stderr) == (3, "stkai batch: [Errno 5] Input/output error\n")
    assert counting.seen == []
    assert job.run().returncode == 0


def test_retry_failed_that_was_killed_before_it_emptied_the_failures_changes_nothing(killed: Job) -> None:
    with killed.journal.open("ab") as journal:
        journal.write(b"n 3\n")
    assert resume(killed) == 1
    assert killed.codes() == {3: "http_400", 4: "unknown"}


def test_retry_failed_that_was_killed_after_it_emptied_the_failures_sends_them(killed: Job) -> None:
    with killed.journal.open("ab") as journal:
        journal.write(b"n 3\nn 4\n")
    killed.failed.write_text("")
    assert resume(killed) == 0
    assert sorted(killed.done()) == [1, 2, 3, 4, 5]


def test_retry_failed_sends_unknown_lines_too(killed: Job, counting: Server) -> None:
    assert resume(killed) == 1
    counting.answer = echo
    result = killed.run("--retry-failed")
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert sorted(entries(killed.out)) == [1, 2, 3, 4, 5]
