"""What `stkai batch` refuses before it sends or writes anything, and what it says about it."""

import json
import os
import sys
from pathlib import Path

import pytest

from .job import Job, Server

pytestmark = pytest.mark.real_time


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(2)
    (tmp_path / "prompts.csv").write_text("name,text\nann,hi\n")
    (tmp_path / "template.json").write_text('{"text": "{text}", "who": "{nobody}"}')
    (tmp_path / "broken.json").write_text('{"text": ')
    return job


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.jsonl",), "missing.jsonl"),
        ((".",), "cannot be read"),
        (("--base-url", "ftp://host"), "--base-url"),
        (("-o", "nowhere/out"), "nowhere"),
        (("-o", "./"), "is a directory"),
        (("-o", "/dev/null"), "is not a file"),
        (("-o", "x" * 300), "File name too long"),
        (("-o", "in.jsonl"), "both an input and an output"),
        (("-o", "in.jsonl", "--restart"), "both an input and an output"),
        (("--resume", "--restart"), "--restart"),
        (("--retry-failed", "--restart"), "--restart"),
        (("--resume", "-o", "-"), "-o OUT"),
        (("--shard", "2/2"), "--shard"),
        (("--shard", "x"), "--shard"),
        (("--max-in-flight", "0"), "max-in-flight"),
        (("--max-in-flight", "9" * 30), "--max-in-flight"),
        (("--rpm", "9" * 30), "--rpm"),
        (("--tpm", "9" * 30), "--tpm"),
        (("--deadline", "-1"), "--deadline"),
        (("--deadline", "nan"), "--deadline"),
        (("--price", "in=1"), "--price"),
        (("--unknown", "guess"), "unknown"),
        (("--quick-command", "a/b"), "--quick-command"),
        (("prompts.csv",), "--body"),
        (("prompts.csv", "--body", "template.json"), "nobody"),
        (("prompts.csv", "--body", "broken.json"), "broken.json"),
        (("prompts.csv", "--body", "missing.json"), "missing.json"),
        (("prompts.csv", "--body", "template.json", "--id-column", "no"), "no"),
    ],
)
def test_wrong_usage_ends_with_2_and_leaves_everything_as_it_was(
    arguments: tuple[str, ...], says: str, job: Job, counting: Server
) -> None:
    before = job.snapshot()
    if "-o" in arguments:
        arguments = tuple(str(job.folder / "in.jsonl") if a == "in.jsonl" else a for a in arguments)
    result = job.run(*arguments)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert (job.snapshot(), counting.seen) == (before, [])


def test_relative_urls_and_templates_need_a_base_url(job: Job) -> None:
    before = job.snapshot()
    for more in ((), ("--body", "template.json")):
        result = job.run(*more, base=False)
        assert (result.returncode, "--base-url" in result.stderr) == (2, True)
    assert job.snapshot() == before
    for url in ("/go", "/go?to=http://other"):
        job.input.write_text(f'\n\n{{"url": "{url}", "body": {{}}}}\n')
        result = job.run(base=False)
        assert (result.returncode, "line 3" in result.stderr) == (2, True)


@pytest.mark.parametrize("name", ["out.jsonl", "out.failed.jsonl"])
def test_an_output_without_a_journal_is_left_alone_without_restart(name: str, job: Job) -> None:
    (job.folder / name).write_text("mine\n")
    before = job.snapshot()
    result = job.run()
    assert (result.returncode, "--restart" in result.stderr) == (2, True)
    assert job.run("--resume").returncode == 2
    assert job.snapshot() == before
    assert job.run("--restart").returncode == 0
    assert sorted(job.done()) == [1, 2]


@pytest.mark.parametrize("name", ["out.jsonl", "out.failed.jsonl", "out.journal"])
def test_a_link_into_a_folder_that_is_missing_is_refused_before_anything_is_written(
    name: str, job: Job, counting: Server
) -> None:
    (job.folder / name).symlink_to(job.folder / "missing" / name)
    before = sorted(job.folder.iterdir())
    result = job.run()
    assert (result.returncode, f"{name} cannot be written" in result.stderr) == (2, True)
    assert (sorted(job.folder.iterdir()), counting.seen) == (before, [])


@pytest.mark.parametrize(
    ("link", "target"),
    [("out.failed.jsonl", "out.jsonl"), ("out.jsonl", "out.failed.jsonl"), ("out.journal", "out.jsonl")],
)
def test_links_that_make_one_file_of_two_are_refused_before_anything_is_written(
    link: str, target: str, job: Job, counting: Server
) -> None:
    (job.folder / link).symlink_to(target)
    before = sorted(job.folder.iterdir())
    result = job.run()
    assert result.returncode == 2
    assert f"{job.folder / link} is a link to another file of the job" in result.stderr
    assert (sorted(job.folder.iterdir()), counting.seen) == (before, [])


def test_a_link_to_itself_is_refused(job: Job) -> None:
    job.out.symlink_to(job.out.name)
    result = job.run()
    assert (result.returncode, f"{job.out} " in result.stderr) == (2, True)


def test_an_existing_journal_needs_resume_or_restart(job: Job) -> None:
    job.run()
    before = job.snapshot()
    result = job.run()
    assert result.returncode == 2
    assert "--resume" in result.stderr
    assert "--restart" in result.stderr
    assert job.snapshot() == before


@pytest.mark.parametrize("journal", [b"", b'{"stk'])
def test_a_journal_with_an_incomplete_header_is_not_a_job(journal: bytes, job: Job) -> None:
    job.journal.write_bytes(journal)
    assert job.run().returncode == 0
    job.journal.write_bytes(journal)
    assert job.run("--resume").returncode == 2


@pytest.mark.parametrize("journal", [b"shopping list\n", b"milk", b'{"stkai": "batch"}\n', b"[]\n"])
def test_a_file_that_is_not_a_journal_is_left_alone(journal: bytes, job: Job) -> None:
    job.journal.write_bytes(journal)
    before = job.snapshot()
    assert job.run("--resume").returncode == 2
    assert job.snapshot() == before


def test_a_journal_in_another_format_can_only_be_restarted(job: Job) -> None:
    job.run()
    job.journal.write_text(job.journal.read_text().replace('"version": 1', '"version": 2', 1))
    result = job.run("--resume")
    assert (result.returncode, "--restart" in result.stderr) == (2, True)
    assert job.run("--restart").returncode == 0


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "record",
    [
        b"what is this",
        b"w 4",  # An `s` with one bit changed: line 4 was sent.
        b"s 4\r",
        b"s \x004",
        b"s 4 5",
        b"n " + b"9" * 5_000,
        b"s " + b"9" * 15,  # Its state would need a thousand terabytes.
        b"u 20",
        b"u 20 3o",
        b"u 20 " + b"9" * 5_000,
        b"x 4",
        b"x 4 \xff\xfe",
        b"i 20 abc",
    ],
)
def test_a_damaged_record_in_the_journal_is_named_and_nothing_is_sent(
    record: bytes, job: Job, counting: Server
) -> None:
    assert job.run().returncode == 0
    with job.journal.open("ab") as journal:
        journal.write(record + b"\ns 4\n")
    line = job.journal.read_bytes().count(b"\n") - 1
    before, seen = job.snapshot(), len(counting.seen)
    result = job.run("--resume")
    assert (result.returncode, f"{job.journal}, line {line} is damaged" in result.stderr) == (2, True)
    assert "--restart" in result.stderr
    assert (job.snapshot(), len(counting.seen)) == (before, seen)
    assert job.run("--restart").returncode == 0


@pytest.mark.parametrize(
    "record",
    [
        f"f {sys.maxsize}",  # Of an earlier version.
        "u 2700000000000000 3000000000000000",  # Servers say what they like.
        "x 4 an id, \N{REPLACEMENT CHARACTER} and \N{GRINNING FACE}",
    ],
)
def test_an_unusual_record_in_the_journal_is_not_a_damaged_one(record: str, job: Job) -> None:
    assert job.run().returncode == 0
    with job.journal.open("ab") as journal:
        journal.write(f"{record}\n".encode())
    assert job.run("--resume").returncode == 0


def test_a_first_line_that_is_nested_too_deeply_is_no_header(job: Job) -> None:
    job.journal.write_bytes(b"[" * 100_000 + b"\n")
    result = job.run("--resume")
    assert (result.returncode, "is not a stkai journal" in result.stderr) == (2, True)


@pytest.mark.parametrize("more", [b"{}\n", b'{"id": "line-' + b"9" * 5_000 + b'", "custom_id": null}\n'])
def test_a_foreign_line_in_an_output_is_named(more: bytes, job: Job) -> None:
    assert job.run().returncode == 0
    with job.out.open("ab") as out:
        out.write(more)
    result = job.run("--resume")
    assert (result.returncode, f"{job.out}, line 3: this is not an output line" in result.stderr) == (2, True)
    job.out.write_bytes(job.out.read_bytes().removesuffix(more) + job.out.read_bytes().splitlines(True)[0])
    assert "twice" in job.run("--resume").stderr


def test_outputs_that_were_mixed_up_are_refused(job: Job, counting: Server) -> None:
    job.input.write_text(job.input.read_text() + "oops\n")
    assert job.run().returncode == 1
    answers, failures = job.out.read_bytes(), job.failed.read_bytes()
    for out, failed, name in ((failures, answers, job.out), (answers, answers, job.failed)):
        job.out.write_bytes(out)
        job.failed.write_bytes(failed)
        result = job.run("--retry-failed")  # It would send all answers again.
        assert (result.returncode, f"{name}, line 1: this is not" in result.stderr) == (2, True)
    assert len(counting.seen) == 2


def test_outputs_may_have_the_line_breaks_of_windows(job: Job, counting: Server) -> None:
    job.input.write_text(job.input.read_text() + "oops\n")
    assert job.run().returncode == 1
    for path in (job.out, job.failed):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    before = job.snapshot()
    assert job.run("--resume").returncode == 1
    assert (job.snapshot(), len(counting.seen)) == (before, 2)


def test_the_code_of_a_failure_may_be_damaged(job: Job) -> None:
    job.input.write_text("oops\n")
    assert job.run().returncode == 1
    job.failed.write_bytes(job.failed.read_bytes().replace(b'"invalid_line"', b'"inval\xffd_line"'))
    result = job.run("--resume")
    assert (result.returncode, "1 inval\ufffdd_line" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--base-url", "http://127.0.0.1:9/other"),
        ("--shard", "0/2"),
        ("--id-column", "n"),
        ("--quick-command", "x"),
    ],
)
def test_a_job_resumes_only_with_the_options_that_made_its_requests(
    option: str, value: str, job: Job
) -> None:
    job.run()
    before = job.snapshot()
    result = job.run(option, value, "--resume")
    assert (result.returncode, option in result.stderr) == (2, True)
    assert job.snapshot() == before


def test_a_job_resumes_only_with_the_same_template(job: Job, tmp_path: Path) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"a": 1}')
    assert job.run("--body", "body.json").returncode == 0
    template.write_text('{"a": 2}')
    result = job.run("--body", "body.json", "--resume")
    assert (result.returncode, "--body" in result.stderr) == (2, True)
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert job.run("--body", "other.json", "--resume").returncode == 0


def test_all_other_options_may_differ(job: Job) -> None:
    job.run()
    more = "--max-in-flight 2 --sync always --unknown resend --halt-after 0 --deadline 5"
    assert job.run("--resume", *more.split()).returncode == 0


def test_nothing_secret_is_in_the_journal(job: Job, counting: Server) -> None:
    job.input.write_text(json.dumps({"custom_id": "user-7", "url": "/x", "body": {"text": "private"}}) + "\n")
    base = job.url.replace("http://", "http://me:hunter2@") + "/v1"
    assert job.run("--base-url", base).returncode == 0
    assert counting.seen[0].headers["Authorization"] == "Basic bWU6aHVudGVyMg=="
    journal = job.journal.read_text()
    assert json.loads(journal.splitlines()[0])["stkai"] == "batch"
    for secret in ("hunter2", "user-7", "private", "me:"):
        assert secret not in journal
    other = job.url.replace("http://", "http://me:changed@") + "/v1"
    assert job.run("--base-url", other, "--resume").returncode == 0


def test_a_named_pipe_without_a_writer_is_refused_at_once(job: Job) -> None:
    os.mkfifo(job.folder / "pipe.jsonl")
    result = job.run("pipe.jsonl")
    assert result.returncode == 2
    assert "pipe.jsonl cannot be read: it is not a file; for a pipe, pass -" in result.stderr
