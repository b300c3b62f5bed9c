"""What a resumed job compares, counts and reports: its input, its copy of stdin, its totals, its modes."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stkai._batch.input_lines import Shard, Survey, json_lines

from .job import Job, RefusalError, Server, echo, summary

pytestmark = pytest.mark.real_time

LINE = '{{"custom_id": "id-{0}", "url": "/x", "body": {{"n": {0}, "text": "{1}"}}}}'


@pytest.mark.no_cover
def test_a_change_anywhere_in_the_input_is_refused(job: Job, counting: Server) -> None:
    lines = [LINE.format(n, "x" * 1000) for n in range(1, 201)]
    job.input.write_text("\n".join(lines) + "\n")
    assert job.run().returncode == 0
    before = job.snapshot()
    for changed in (
        [*lines[:150], LINE.format(999, "inserted"), *lines[150:]],
        [*lines[:150], *lines[151:], lines[150]],
        lines[:199],
        [*lines[:199], LINE.format(200, "y" * 1000)],
    ):
        job.input.write_text("\n".join(changed) + "\n")
        result = job.run("--resume")
        assert (result.returncode, "has changed" in result.stderr) == (2, True)
        job.input.write_bytes(before["in.jsonl"])
    assert job.snapshot() == before
    assert len(counting.seen) == 200


@pytest.mark.parametrize(
    ("end", "added", "code", "sent"),
    [
        ("\n", LINE.format(3, "") + "\n", 0, [1, 2, 3]),
        ("\n", LINE.format(3, ""), 0, [1, 2, 3]),
        ("", "\n" + LINE.format(3, "") + "\n", 0, [1, 2, 3]),
        ("", "\r\n" + LINE.format(3, ""), 0, [1, 2, 3]),
        ("", "\n", 0, [1, 2]),
        ("", LINE.format(3, "") + "\n", 2, [1, 2]),
        ("", " ", 2, [1, 2]),
    ],
)
def test_lines_added_after_a_complete_last_line_are_new_and_a_longer_last_line_is_refused(
    end: str, added: str, code: int, sent: list[int], job: Job, counting: Server
) -> None:
    job.input.write_text(LINE.format(1, "") + "\n" + LINE.format(2, "") + end)
    assert job.run().returncode == 0
    with job.input.open("a") as file:
        file.write(added)
    result = job.run("--resume")
    assert (result.returncode, "line break" in result.stderr) == (code, code == 2)
    assert sorted(body["n"] for body in counting.bodies) == sent
    with job.input.open("a") as file:
        file.write("\n" + LINE.format(4, "") + "\n")
    if code == 0:
        assert job.run("--resume").returncode == 0
        assert sorted(body["n"] for body in counting.bodies) == [*sent, 4]


def test_lines_that_a_resumed_run_has_read_must_stay_as_well(job: Job) -> None:
    assert job.run().returncode == 0
    job.write(8)
    assert job.run("--resume").returncode == 0
    job.input.write_text(job.input.read_text().replace("id-7", "id-x"))
    assert job.run("--resume").returncode == 2


def test_lines_added_while_a_job_runs_wait_for_the_next_run(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] == 1:
            job.write(9)
        return await echo(request, body)

    counting.answer = answer
    assert summary(job.run("--max-in-flight", "1").stderr) == "5 done, 0 failed (0 unknown)"
    assert summary(job.run("--resume").stderr) == "9 done, 0 failed (0 unknown)"


def test_a_change_in_a_csv_is_refused_and_rows_may_be_added(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "body.json").write_text('{"n": "{a}"}')
    path = tmp_path / "rows.csv"
    path.write_text('a\n1\n"2\n2"\n')
    arguments = ("rows.csv", "--body", "body.json")
    assert job.run(*arguments).returncode == 0
    path.write_text('a\n1\n"2\n2"\n3\n')
    assert job.run(*arguments, "--resume").returncode == 0
    assert sorted(body["n"] for body in counting.bodies) == ["1", "2\n2", "3"]
    path.write_text('a\n1\n"2\n3"\n3\n')
    assert job.run(*arguments, "--resume").returncode == 2


def test_the_lines_of_a_shard_are_counted_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join([LINE.format(1, ""), "", LINE.format(3, ""), " ", LINE.format(5, "")]))
    size = path.stat().st_size
    for shard, expected in (((0, 1), (3, 5)), ((0, 4), (2, 5)), ((1, 4), (0, 5))):
        assert Survey.of(path, size, json_lines(path, size), Shard(*shard))[2:] == expected
    assert Survey.of(path, 5, json_lines(path, 5), Shard(0, 1))[2:] == (1, 1)


# stdin


def test_a_copy_of_stdin_that_was_left_behind_is_not_sent_again(job: Job, counting: Server) -> None:
    job.write(3)
    assert job.run("-", stdin=job.input.read_bytes()).returncode == 0
    for path in (job.out, job.failed, job.journal):
        path.unlink()
    assert job.run("-", stdin=LINE.format(9, "").encode()).returncode == 0
    assert (sorted(job.done()), counting.bodies[-1]["n"], len(counting.seen)) == ([1], 9, 4)


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_a_copy_of_stdin_that_is_missing_or_changed_is_refused(
    change: str, job: Job, counting: Server
) -> None:
    assert job.run("-", stdin=job.input.read_bytes()).returncode == 0
    copy = job.folder / "out.stdin.jsonl"
    if change == "missing":
        copy.unlink()
    else:
        copy.write_bytes(copy.read_bytes().replace(b"id-2", b"id-9"))
    result = job.run("-", "--resume")
    assert (result.returncode, f"stdin {copy}" in result.stderr) == (2, True)
    assert len(counting.seen) == 5


# What was in flight


def test_retry_failed_after_a_kill_reports_what_was_in_flight_instead_of_sending_it(
    job: Job, counting: Server
) -> None:
    fails = True

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        counting.execute(body)
        if body["n"] == 2 and fails:
            raise RefusalError(400)
        return await echo(request, body)

    counting.answer = answer
    assert job.run().returncode == 1
    # As if it had been killed before the answer to line 4 was written.
    job.out.write_text("".join(line for line in job.out.read_text().splitlines(True) if "line-4" not in line))
    fails = False
    result = job.run("--retry-failed")
    assert (result.returncode, summary(result.stderr)) == (1, "4 done, 1 failed (1 unknown)")
    assert job.codes() == {4: "unknown"}
    assert counting.executed['{"n": 4}'] == 1
    result = job.run("--retry-failed")
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")
    assert counting.executed['{"n": 4}'] == 2


def test_a_refusal_of_what_is_sent_again_does_not_prove_that_it_never_ran(job: Job, counting: Server) -> None:
    assert job.run().returncode == 0
    # As if it had been killed before the answer to line 4 was written.
    job.out.write_text("".join(line for line in job.out.read_text().splitlines(True) if "line-4" not in line))

    async def refuse(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(401)

    well, counting.answer = counting.answer, refuse
    assert job.run("--resume", "--unknown", "resend").returncode == 3
    counting.answer = well
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (1, "4 done, 1 failed (1 unknown)")
    assert set(counting.executed.values()) == {1}


# Totals


def test_tokens_and_costs_are_those_of_the_whole_job(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] > 3 and limited:
            raise RefusalError(404)
        return web.json_response({"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}})

    counting.answer = answer
    limited = True
    price = ("--price", "input=1", "--max-in-flight", "1")
    assert "3.0M tokens $3.00" in job.run(*price).stderr
    limited = False
    assert "5.0M tokens $5.00" in job.run("--retry-failed", *price).stderr
    assert "5.0M tokens $5.00" in job.run("--resume", *price).stderr


def test_failures_are_explained_with_their_file_and_the_option_for_the_next_step(
    job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] in {2, 4}:
            raise RefusalError(500)
        return await echo(request, body)

    counting.answer = answer
    job.input.write_text(job.input.read_text() + "oops\n")
    for option in ("--restart", "--resume"):
        result = job.run(option, "--max-in-flight", "3")
        *_, where, how, total = result.stderr.splitlines()
        assert where == f"failed, in {job.failed}: 2 http_500, 1 invalid_line"
        assert how == "to send them again: run the same command with --retry-failed"
        assert total == "3 done, 3 failed (0 unknown)"
    message = job.failures()[2]["error"]["message"]
    assert "500" in message
    assert "may have executed it" in message
    assert "--retry-failed" in message


def test_the_lines_of_stdin_are_counted_once_all_of_it_is_copied(job: Job) -> None:
    assert job.run("-", stdin=b"\n" + job.input.read_bytes()).returncode == 0
    (record,) = [line for line in job.journal.read_text().splitlines() if line.startswith("i ")]
    assert record.split()[3:] == ["5", "6"]


# Modes


@pytest.mark.parametrize("option", ["--resume", "--restart"])
def test_outputs_keep_their_mode(option: str, job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] == 3:
            job.out.chmod(0o600)
            job.failed.chmod(0o600)
        return web.json_response(body, status=400 if body["n"] % 2 else 200)

    counting.answer = answer
    job.input.write_text("".join(reversed(job.input.read_text().splitlines(keepends=True))))
    job.run("--max-in-flight", "1")
    job.out.write_text("".join(reversed(job.out.read_text().splitlines(keepends=True))))
    job.run(option, "--order", "input")
    assert [path.stat().st_mode & 0o777 for path in (job.out, job.failed)] == [0o600, 0o600]
    assert list(job.done()) == sorted(job.done())


def test_sorting_replaces_the_file_and_not_a_link_to_it(job: Job, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real.jsonl"
    target.touch()
    job.out.symlink_to(target)
    assert job.run("--restart").returncode == 0
    job.out.write_text("".join(reversed(job.out.read_text().splitlines(keepends=True))))
    assert job.run("--resume", "--order", "input").returncode == 0
    assert job.out.is_symlink()
    assert target.read_text().startswith('{"id": "line-1"')
