"""`stkai batch`: what it sends, what it writes, and how it ends."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from .job import Job, RefusalError, Server, echo, summary

pytestmark = pytest.mark.real_time


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    return Job(tmp_path, counting.url)


def lines(job: Job, *content: Any) -> None:
    job.input.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in content))


def test_every_line_is_answered_in_the_output_with_its_id(job: Job, counting: Server) -> None:
    job.write(40)
    result = job.run()
    assert result.returncode == 0, result.stderr
    assert summary(result.stderr) == "40 done, 0 failed (0 unknown)"
    assert result.stdout == ""
    done = job.done()
    assert sorted(done) == list(range(1, 41))
    assert done[7] == {
        "id": "line-7",
        "custom_id": "id-7",
        "response": {"status_code": 200, "request_id": "request-1", "body": {"echo": {"n": 7}}},
        "error": None,
    }
    assert job.failed.read_text() == ""
    assert set(counting.executed.values()) == {1}
    assert set(counting.paths) == {"/v1/do"}


def test_the_body_is_sent_as_it_was_written(job: Job, counting: Server) -> None:
    body = (
        '{"z": 1.0, "a": 12345678901234567890.10, "e": 1E5, "t": "\\u00e9 é", "a ": {"b": [ ]}, "big": 1e999}'
    )
    lines(job, f'{{"custom_id": 1, "method": "POST", "url": "/x", "body": {body}}}')
    assert job.run().returncode == 0
    assert [seen.body.decode() for seen in counting.seen] == [body]
    assert counting.seen[0].headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "own_id", ["7", "1.50", "null", '"a"', '{"a": [1]}', "[1.0]", "true", '"\\ud83d\\u2028"']
)
def test_a_custom_id_of_any_type_comes_back_unchanged(own_id: str, job: Job) -> None:
    lines(job, f'{{"custom_id": {own_id}, "url": "/x", "body": {{}}}}')
    assert job.run().returncode == 0
    assert f'"custom_id": {own_id}, ' in job.out.read_text()


def test_a_line_without_custom_id_has_null(job: Job) -> None:
    lines(job, {"url": "/x", "body": {}})
    job.run()
    assert job.done()[1]["custom_id"] is None


def test_relative_urls_are_appended_to_the_base_with_its_path_and_absolute_ones_left_alone(
    job: Job, counting: Server
) -> None:
    lines(job, {"url": "/chat?x=1", "body": {}}, {"url": f"{counting.url}/abs", "body": {}})
    assert job.run("--base-url", f"{counting.url}/v1/", "--max-in-flight", "1").returncode == 0
    assert counting.paths == ["/v1/chat?x=1", "/abs"]


def test_each_line_has_its_own_idempotency_key_and_a_restarted_job_does_not_reuse_it(
    job: Job, counting: Server
) -> None:
    job.write(3)
    expected = set[str]()
    for option in ("--resume", "--restart"):
        assert job.run(option).returncode == 0
        name = uuid.UUID(json.loads(job.journal.read_text().partition("\n")[0])["job"])
        expected |= {str(uuid.uuid5(name, f"line-{number}")) for number in (1, 2, 3)}
    assert len(expected) == 6
    assert {seen.headers["Idempotency-Key"] for seen in counting.seen} == expected


def test_the_header_of_the_settings_carries_the_key_of_the_line_too(job: Job, counting: Server) -> None:
    job.write(2)
    assert job.run(env={"STKAI_RETRY_IDEMPOTENCY_HEADER": "X-Request-Key"}).returncode == 0
    keys = [(seen.headers["Idempotency-Key"], seen.headers["X-Request-Key"]) for seen in counting.seen]
    assert [first for first, _ in keys] == [second for _, second in keys]
    assert len(set(keys)) == 2


def test_a_failure_is_written_to_the_failures_with_its_answer_and_the_run_continues(
    job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] == 2:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        if body["n"] == 3:
            return web.Response(status=204)
        return await echo(request, body)

    counting.answer = answer
    job.write(4)
    result = job.run()
    assert result.returncode == 1
    assert summary(result.stderr) == "3 done, 1 failed (0 unknown)"
    failure = job.failures()[2]
    assert failure["custom_id"] == "id-2"
    assert failure["response"] == {
        "status_code": 400,
        "request_id": None,
        "body": {"error": {"message": "too long"}},
    }
    assert failure["error"] == {
        "code": "http_400",
        "message": "the server answered 400 Bad Request: too long",
    }
    assert job.done()[3]["response"] == {"status_code": 204, "request_id": None, "body": ""}


@pytest.mark.parametrize(
    ("content", "body"),
    [
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a": 1e999}', '{"a": 1e999}'),
        ("plain text", "plain text"),
        ('{\n "a": "b",\r\n "c": 1\n}', {"a": "b", "c": 1}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ('{"a": "\u2028\u0085"}', {"a": "\u2028\u0085"}),
        ('{"a": "\\ud83d"}', {"a": "\ud83d"}),
        ("[" * 100_000, "[" * 100_000),
        ("9" * 5000, None),
    ],
)
def test_an_answer_is_parsed_if_it_is_strict_json_and_kept_as_text_otherwise(
    content: str, body: Any, job: Job, counting: Server
) -> None:
    async def answer(request: web.BaseRequest, _: Any) -> web.StreamResponse:
        return web.Response(body=content.encode(), content_type="application/json")

    counting.answer = answer
    job.write(1)
    assert job.run().returncode == 0
    text = job.out.read_text()
    assert len(text.splitlines()) == 1
    if body is None:
        assert f'"body": {content}' in text
    else:
        assert json.loads(text)["response"]["body"] == body


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "not JSON"),
        ('{"url": "/x", "body": {"a": NaN}}', "NaN"),
        ('{"url": "/x", "body": {}} {}', "Extra data, at column"),
        (r'{"url": "/x", "bo\dy": {}}', r"Invalid \escape, at column 18"),
        ('{"url": "/x", "body": {}', "delimiter, at column 25"),
        ('{"url": "/x", "body": "tru', "Unterminated string starting, at column 23"),
        ("[1]", "not an object"),
        ("7", "not an object"),
        ('{"custom_id": "id-2", "body": {}}', "url"),
        ('{"custom_id": "id-2", "url": 5, "body": {}}', "url"),
        ('{"custom_id": "id-2", "url": "http://", "body": {}}', "url"),
        ('{"custom_id": "id-2", "url": "ftp://host/x", "body": {}}', "https://"),
        ('{"custom_id": "id-2", "url": "http://127.0.0.1:99999/", "body": {}}', "port"),
        ('{"custom_id": "id-2", "url": "http://a..b/", "body": {}}', "host name"),
        ('{"custom_id": "id-2", "url": "/x"}', "body"),
        ('{"custom_id": "id-2", "url": "/x", "method": "JUMP", "body": {}}', "method"),
        ("[" * 100_000, "deep"),
    ],
)
def test_an_invalid_line_fails_alone_and_the_message_names_file_line_and_remedy(
    line: str, says: str, job: Job, counting: Server
) -> None:
    lines(job, {"url": "/x", "body": {"n": 1}}, line, {"url": "/x", "body": {"n": 3}})
    assert job.run().returncode == 1
    assert sorted(job.done()) == [1, 3]
    failure = job.failures()[2]
    assert failure["error"]["code"] == "invalid_line"
    assert f"{job.input}, line 2: " in failure["error"]["message"]
    assert says in failure["error"]["message"]
    assert failure["response"] is None
    assert failure["custom_id"] == ("id-2" if "id-2" in line else None)


def test_a_password_in_a_url_that_cannot_be_read_is_not_shown(job: Job, counting: Server) -> None:
    lines(job, {"url": "http://me:hunter2/x@127.0.0.1/", "body": {}})
    result = job.run()
    assert job.codes() == {1: "invalid_line"}
    for text in (job.failed.read_text(), job.journal.read_text(), result.stderr):
        assert "hunter2" not in text


def test_crlf_a_bom_blank_lines_and_no_last_newline_leave_the_numbers_right(
    job: Job, counting: Server
) -> None:
    line = b'{"custom_id": %d, "url": "/x", "body": {"n": %d}}'
    job.input.write_bytes(
        b"\xef\xbb\xbf" + line % (1, 1) + b"\r\n\r\n  \t\r\n" + line % (4, 4) + b"\n\n" + line % (6, 6)
    )
    assert job.run().returncode == 0
    assert {number: entry["custom_id"] for number, entry in job.done().items()} == {1: 1, 4: 4, 6: 6}


def test_a_line_of_many_megabytes_is_sent(job: Job, counting: Server) -> None:
    lines(
        job,
        {"custom_id": "small", "url": "/x", "body": {"n": 1}},
        {"url": "/x", "body": {"text": "x" * 12_000_000}},
    )

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.json_response(len(body.get("text", "")))

    counting.answer = answer
    assert job.run().returncode == 0
    assert job.done()[2]["response"]["body"] == 12_000_000


def test_an_empty_input_is_done_at_once(job: Job) -> None:
    job.input.write_text("\n")
    result = job.run()
    assert result.returncode == 0
    assert summary(result.stderr) == "0 done, 0 failed (0 unknown)"


def test_quiet_says_nothing_when_all_is_well(job: Job) -> None:
    job.write(3)
    result = job.run("--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_quiet_still_says_that_some_failed(job: Job) -> None:
    lines(job, "x")
    assert summary(job.run("--quiet").stderr) == "0 done, 1 failed (0 unknown)"


@pytest.mark.real_time
@pytest.mark.parametrize("order", ["done", "input"])
def test_the_outputs_can_keep_the_order_of_the_input(order: str, job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.sleep(0.3 if body["n"] in {1, 2} else 0)
        return web.json_response(body, status=400 if body["n"] % 2 else 200)

    counting.answer = answer
    job.write(12)
    job.run("--order", order)
    in_order = [[*job.done()], [*job.failures()]]
    assert (in_order == [[2, 4, 6, 8, 10, 12], [1, 3, 5, 7, 9, 11]]) == (order == "input")


@pytest.mark.real_time
@pytest.mark.parametrize("order", ["done", "input"])
def test_every_outcome_can_go_to_stdout_instead(order: str, job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.sleep(0.3 if body["n"] == 1 else 0)
        return web.json_response(body, status=400 if body["n"] == 3 else 200)

    counting.answer = answer
    job.write(6)
    before = job.snapshot()
    result = job.run("--order", order, "-o", "-")
    assert result.returncode == 1
    numbers = [json.loads(line)["id"] for line in result.stdout.splitlines()]
    assert sorted(numbers) == [f"line-{n}" for n in range(1, 7)]
    assert (numbers == sorted(numbers)) == (order == "input")
    assert job.snapshot() == before
    assert summary(result.stderr) == "5 done, 1 failed (0 unknown)"


def test_stdin_is_copied_next_to_the_output_so_that_a_job_resumes_without_it(
    job: Job, counting: Server
) -> None:
    job.write(5)
    given = job.input.read_bytes()
    assert job.run("-", stdin=given).returncode == 0
    assert sorted(job.done()) == [1, 2, 3, 4, 5]
    failure = '"error": {"code": "http_400", "message": "no"}'
    job.failed.write_text(job.out.read_text().splitlines()[0].replace('"error": null', failure) + "\n")
    job.out.write_text("".join(line + "\n" for line in job.out.read_text().splitlines()[1:]))
    assert job.run("-", "--retry-failed").returncode == 0
    assert sorted(job.done()) == [1, 2, 3, 4, 5]
    assert job.run(str(job.input), "--resume").returncode == 2


def test_stdin_can_go_straight_to_stdout(job: Job) -> None:
    job.write(5)
    result = job.run("-", "-o", "-", stdin=job.input.read_bytes())
    assert len(result.stdout.splitlines()) == 5
    assert sorted(path.name for path in job.folder.iterdir()) == ["in.jsonl"]


def test_retry_failed_sends_the_failures_again_and_removes_them_at_once(job: Job, counting: Server) -> None:
    fails = True

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] % 2 and fails:
            raise RefusalError(400)
        return await echo(request, body)

    counting.answer = answer
    job.write(6)
    assert job.run().returncode == 1
    sent = len(counting.seen)
    fails = False
    result = job.run("--retry-failed")
    assert result.returncode == 0, result.stderr
    assert len(counting.seen) == sent + 3
    assert sorted(job.done()) == [1, 2, 3, 4, 5, 6]
    assert job.failures() == {}


def test_resuming_a_finished_job_sends_and_changes_nothing_and_ends_as_before(
    job: Job, counting: Server
) -> None:
    lines(job, {"url": "/x", "body": {}}, "broken")
    assert job.run().returncode == 1
    before, sent = job.snapshot(), len(counting.seen)
    result = job.run("--resume")
    assert result.returncode == 1
    assert summary(result.stderr) == "1 done, 1 failed (0 unknown)"
    assert (job.snapshot(), len(counting.seen)) == (before, sent)


def test_resume_starts_a_job_if_there_is_none(job: Job) -> None:
    job.write(2)
    assert job.run("--resume").returncode == 0
    assert sorted(job.done()) == [1, 2]


def test_without_authentication_it_refuses_and_names_the_way_out(job: Job) -> None:
    job.write(1)
    job.options = ()
    result = job.run()
    assert result.returncode == 2
    assert "--no-auth" in result.stderr
    assert "STKAI_AUTH_CLIENT_ID" in result.stderr
    assert not job.journal.exists()


def test_tokens_and_their_price_come_from_the_usage(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.json_response({"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}})

    counting.answer = answer
    job.write(2)
    result = job.run("--price", "input=0.15,output=0.6")
    assert "3.0M tokens $0.90" in result.stderr


@pytest.mark.parametrize(("name", "form"), [("--price", "dollars per million"), ("--shard", "I/N")])
def test_the_error_for_a_wrong_value_says_what_the_option_takes(job: Job, name: str, form: str) -> None:
    result = job.run("--dry-run", name, "4")
    assert result.returncode == 2
    assert f"'{name}': {name} must be {form}" in result.stderr


def test_a_dry_run_checks_every_line_and_sends_and_writes_nothing(job: Job, counting: Server) -> None:
    lines(
        job, {"custom_id": "a", "url": "/x", "body": {}}, {"custom_id": "a", "url": "/x", "body": {}}, "oops"
    )
    before = job.snapshot()
    result = job.run("--dry-run", "--price", "input=1000")
    assert result.returncode == 1
    assert 'line 2: duplicate custom_id "a", as in line 1' in result.stderr
    assert "line 3: this is not JSON" in result.stderr
    assert "2 requests" in result.stderr
    assert "$" in result.stderr
    assert job.snapshot() == before
    assert counting.seen == []


def test_a_dry_run_of_valid_lines_ends_with_0(job: Job) -> None:
    job.write(3)
    assert job.run("--dry-run").returncode == 0
    assert job.run("-", "--dry-run", stdin=job.input.read_bytes()).returncode == 0


def test_a_dry_run_finds_settings_that_a_run_would_refuse(job: Job) -> None:
    job.write(1)
    result = job.run("--dry-run", env={"STKAI_RATE_LIMIT_MAX_REQUESTS": "many"})
    assert result.returncode == 2
    assert "STKAI_RATE_LIMIT_MAX_REQUESTS" in result.stderr


def test_http2_and_socks_proxies_which_aiohttp_cannot_speak_go_by_the_default_wire(job: Job) -> None:
    job.write(3)
    assert job.run(env={"STKAI_HTTP_HTTP2": "true"}).returncode == 0
    once = {"STKAI_RETRY_MAX_RETRIES": "0", "ALL_PROXY": "SOCKS5://127.0.0.1:1"}
    result = job.run("--restart", "--base-url", "http://example.test", env=once)
    assert (result.returncode, set(job.codes().values())) == (1, {"ConnectError"}), result.stderr
