"""The files of a batch: appended, committed, locked, copied and sorted, even when the system refuses."""

import errno
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest
from aiohttp import web

from stkai import ConfigurationError
from stkai._batch.append_file import AppendFile, WriteError
from stkai._batch.input_lines import StdinCopy
from stkai._batch.journal import Journal
from stkai._batch.outputs import Entry, LineFailure, StdoutOutputs

from .job import Job, Server, echo, summary

pytestmark = pytest.mark.real_time


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(20)
    return job


@pytest.mark.parametrize("sync", ["always", "1s", "never"])
def test_a_job_can_be_committed_always_each_second_or_never(
    sync: str, job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def count(descriptor: int) -> None:
        synced.append(len(counting.seen))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    assert job.run("--sync", sync, "--max-in-flight", "1").returncode == 0
    if sync == "always":
        assert {0, 1, 2, 19} <= set(synced)  # Before each request.
    else:
        assert bool(synced) == (sync == "1s")


@pytest.mark.parametrize("sync", ["always", "1s"])
def test_a_failed_fsync_halts_the_run(
    sync: str, job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        result = job.run("--sync", sync)
    assert result.returncode == 3
    assert "Input/output error" in result.stderr
    assert len(counting.seen) == (0 if sync == "always" else 20)


def test_concurrent_commits_share_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "file")
    synced = 0

    def fsync(_: int) -> None:
        nonlocal synced
        synced += 1

    monkeypatch.setattr(os, "fsync", fsync)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                file.append(b"record\n")
                group.start_soon(file.commit)

    anyio.run(main)
    assert 1 <= synced <= 2
    file.close()


def test_after_a_failed_fsync_a_file_never_counts_as_safe_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppendFile(tmp_path / "file")
    file.append(b"record\n")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(WriteError):
            file.sync()
    with pytest.raises(WriteError, match="Input/output error"):
        file.sync()
    file.close()


def test_a_partly_written_record_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "file")
    file.append(b"first\n")
    write = os.write
    parts = iter([3, 2])

    def some(descriptor: int, data: bytes) -> int:
        part = next(parts, None)
        if part is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data)[:part])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", some)
        with pytest.raises(WriteError, match="No space left"):
            file.append(b"second record\n")
    assert file.path.read_bytes() == b"first\n"
    with monkeypatch.context() as patch:
        parts = iter([3, 2, 100])
        patch.setattr(os, "write", some)
        file.append(b"second record\n")
    assert file.path.read_bytes() == b"first\nsecond record\n"
    file.close()


@pytest.mark.parametrize("part", [3, 100])
def test_an_interrupt_leaves_no_part_of_a_record_and_takes_none_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    file, write = AppendFile(tmp_path / "file"), os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:part])
        raise KeyboardInterrupt

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for failing, error in ((interrupted, KeyboardInterrupt), (full, WriteError)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing)
            with pytest.raises(error):
                file.append(b"lost\n")
        file.append(b"kept\n")
    assert file.path.read_bytes() == b"kept\nkept\n"
    file.close()


def test_nothing_follows_a_part_of_a_record_that_cannot_be_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = AppendFile(tmp_path / "file"), os.write

    def stale(descriptor: int, data: Any) -> NoReturn:
        if isinstance(data, bytes):
            write(descriptor, data[:3])
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", stale)
        patch.setattr(os, "ftruncate", stale)
        for _ in range(2):
            with pytest.raises(WriteError):
                file.append(b"lost\n")
        assert file.path.read_bytes() == b"los"
    file.append(b"kept\n")
    assert file.path.read_bytes() == b"kept\n"
    file.close()


def test_a_closed_file_writes_nothing_into_the_file_that_has_its_number_next(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "file")
    number = file.descriptor
    file.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    assert other == number
    with pytest.raises(WriteError):
        file.append(b"lost\n")
    assert os.fstat(other).st_size == 0
    os.close(other)


def test_a_file_system_that_counts_no_names_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless(descriptor: int) -> os.stat_result:
        return os.stat_result([*os.stat(descriptor)[:3], 0, *os.stat(descriptor)[4:]])

    monkeypatch.setattr(os, "fstat", nameless)
    file = AppendFile(tmp_path / "file")
    file.append(b"kept\n")
    assert file.path.read_bytes() == b"kept\n"
    file.close()


def test_a_journal_is_locked_until_nothing_more_can_be_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, unlocked = Journal(tmp_path / "journal"), list[int]()

    def unlock(descriptor: int) -> None:
        unlocked.append(descriptor)
        with pytest.raises(WriteError):
            journal.write("s", 1)

    monkeypatch.setattr("stkai.stores._file.unlock", unlock)
    journal.close()
    assert len(unlocked) == 1


def test_a_torn_tail_of_any_length_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, kept in (
        (b"", b""),
        (b"torn", b""),
        (b"a\n" + b"x" * 200_000, b"a\n"),
        (b"a\nb\n", b"a\nb\n"),
    ):
        path.write_bytes(content)
        file = AppendFile(path)
        file.cut_torn_tail()
        assert path.read_bytes() == kept
        file.close()


def test_stdout_keeps_the_order_and_counts_what_was_written(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    outputs = StdoutOutputs(in_order=True, descriptor=writing)

    async def write(*entries: Entry) -> None:
        for entry in entries:
            await outputs.write_outcome(entry.number, entry)

    for number in (1, 2, 3, 4):
        outputs.expect(number)
    failure = Entry(2, b"two\n", LineFailure("http_400", "no"))
    anyio.run(write, Entry(3, b"three\n", None), failure)
    assert (outputs.held, outputs.done) == (2, 0)
    anyio.run(outputs.write_outcome, 1, None)
    assert os.read(reading, 100) == b"two\nthree\n"
    assert (outputs.held, outputs.done, outputs.codes) == (0, 1, {"http_400": 1})
    os.close(reading)
    for number in (5, 6):
        outputs.expect(number)
    anyio.run(write, *(Entry(number, b"lost %d\n" % number, None) for number in (6, 5, 4)))
    assert capfd.readouterr().err == "lost 4\nlost 5\nlost 6\n"
    assert (outputs.held, outputs.done, str(outputs.error)) == (0, 1, "stdout cannot be written: Broken pipe")
    os.close(writing)


def test_a_full_stdout_is_waited_for_also_if_it_does_not_block() -> None:
    """Another process that has the same pipe may have made it so."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outputs, line, read = StdoutOutputs(in_order=False, descriptor=writing), b"x" * 300_000, bytearray()

    def read_all() -> None:
        while block := os.read(reading, 65_536):
            read.extend(block)

    reader = threading.Timer(0.05, read_all)
    reader.start()
    anyio.run(outputs.write_outcome, 1, Entry(1, line, None))
    os.close(writing)
    reader.join()
    os.close(reading)
    assert (outputs.error, bytes(read)) == (None, line)


def test_a_copy_copies_to_the_end_and_reports_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    copy = StdinCopy(tmp_path / "copy", descriptor=reading)
    copy.start()
    os.write(writing, b"some")
    os.write(writing, b" more")
    os.close(writing)
    copy.join(10)
    assert copy.path.read_bytes() == b"some more"
    os.close(reading)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    empty = StdinCopy(tmp_path / "none", descriptor=reading)
    empty.start()
    empty.join(10)
    assert "stdin cannot be read: Resource temporarily unavailable" in str(empty.error)
    os.set_blocking(reading, True)

    def fail(_: AppendFile, record: bytes) -> None:
        raise WriteError("copy", OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(AppendFile, "append", fail)
    full = StdinCopy(tmp_path / "full", descriptor=reading)
    full.start()
    os.write(writing, b"x")
    full.join(10)
    assert "No space left" in str(full.error)
    os.close(reading)
    os.close(writing)


def test_a_system_without_file_locks_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "O_CLOEXEC")  # Windows has none.
    with pytest.raises(ConfigurationError, match="Linux"):
        Journal(tmp_path / "journal")


def test_a_file_system_without_locks_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("stkai.stores._file.try_lock", fail)
    with pytest.raises(ConfigurationError, match="No locks available"):
        Journal(tmp_path / "journal")


def test_a_dry_run_lists_its_first_findings_and_counts_them_all(job: Job) -> None:
    job.input.write_text("oops\n" * 30 + '{"url": "/x", "body": {}}\n' * 2)
    result = job.run("--dry-run", "--shard", "0/2")
    assert result.stderr.count("this is not JSON") == 15
    result = job.run("--dry-run")
    assert result.stderr.count("this is not JSON") == 20
    assert "30 invalid lines" in result.stderr


def test_a_disk_without_room_for_a_sorted_copy_leaves_the_outputs_as_they_are(
    job: Job, counting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await anyio.sleep(0.2 if body["n"] == 1 else 0)
        return await echo(request, body)

    counting.answer = answer

    def fail(_: Path, __: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        result = job.run("--order", "input")
    assert (result.returncode, summary(result.stderr)) == (3, "20 done, 0 failed (0 unknown)")
    assert not (job.folder / "out.jsonl.sorting").exists()
    assert job.run("--order", "input", "--resume").returncode == 0
    assert list(job.done()) == list(range(1, 21))
