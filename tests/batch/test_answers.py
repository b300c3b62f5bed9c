"""What a server may send: nothing of it ends a batch, counts as done if it is not, or reaches the terminal as it is."""

import base64
import gc
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from stkai._batch.outputs import Entry, LineFailure, body_of, code_in
from stkai._batch.progress import say
from stkai._batch.request_formats import join_url
from stkai._batch.runner import failure_from_error
from stkai._errors import visible

from .job import HANGS, Job, RefusalError, Server, echo, summary

pytestmark = pytest.mark.real_time


def answers(counting: Server, number: int, response: Any) -> None:
    """Give this answer to one line."""

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return response() if body["n"] == number else await echo(request, body)

    counting.answer = answer


def test_odd_charsets_do_not_end_the_run(job: Job, counting: Server) -> None:
    charsets = [
        "hex",
        "rot13",
        "undefined",
        "idna",
        "unicode_escape",
        "utf-7",
        "klingon",
        '"a\\b%00"',
        "x" * 5000,
    ]

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        kind = {"Content-Type": f"text/plain; charset={charsets[body['n'] - 1]}"}
        return web.Response(body=b"plain text", headers=kind)

    counting.answer = answer
    job.write(len(charsets))
    assert job.run().returncode == 0
    assert all("plain" in json.dumps(entry["response"]["body"]) for entry in job.done().values())
    assert len(job.done()) == len(charsets)


def test_the_text_of_an_answer_is_decoded_as_declared() -> None:
    kind = {"Content-Type": "text/plain; charset=iso-8859-1"}
    assert json.loads(body_of(httpx.Response(200, content=b"caf\xe9", headers=kind)).text) == "café"


@pytest.mark.parametrize("status", [200, 400])
def test_a_binary_answer_is_kept_with_its_content_type(status: int, job: Job, counting: Server) -> None:
    picture = bytes(range(256))
    answers(counting, 2, lambda: web.Response(body=picture, content_type="image/png", status=status))
    job.run()
    entry = job.done()[2] if status == 200 else job.failures()[2]
    assert entry["response"]["body"] == {
        "content_type": "image/png",
        "base64": base64.b64encode(picture).decode(),
    }


@given(st.binary(max_size=200), st.text(max_size=30), st.sampled_from([200, 204, 301, 404, 500]))
def test_no_answer_is_too_odd_for_a_line(content: bytes, kind: str, status: int) -> None:
    headers = [(b"content-type", kind.encode()), (b"x-request-id", content[:20])]
    response = httpx.Response(status, content=content, headers=headers)
    json.loads(body_of(response).text)


def test_an_answer_that_cannot_be_read_fails_alone(job: Job, counting: Server) -> None:
    headers = {"Content-Encoding": "gzip"}
    answers(counting, 2, lambda: web.Response(body=b"no gzip", headers=headers))
    assert job.run().returncode == 1
    assert list(job.codes()) == [2]
    assert len(job.done()) == 4


def test_redirects_are_failures(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.Response(status=300 + body["n"], headers={"Location": "/v2/do?key=secret"})

    counting.answer = answer
    job.write(8)
    assert job.run().returncode == 1
    assert job.codes() == {n: f"http_{300 + n}" for n in range(1, 9)}
    message = job.failures()[8]["error"]["message"]
    assert f"follows no redirects: use {job.url}/v2/do instead" in message
    assert set(counting.paths) == {"/v1/do"}


def test_redirects_of_all_lines_halt_the_run(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.Response(status=308)

    counting.answer = answer
    job.write(50)
    result = job.run("--max-in-flight", "1")
    assert (result.returncode, summary(result.stderr)) == (3, "0 done, 20 failed (0 unknown)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\n500 done, 0 failed (0 unknown)", r"a\n500 done, 0 failed (0 unknown)"),
        ("\x9b31m\x85\u2028\u202e", r"\x9b31m\x85\u2028\u202e"),
        ("é 漢 😀", "é 漢 😀"),
        ("x" * 600, "x" * 500 + "..."),
    ],
)
def test_what_a_server_says_is_shown_on_one_line_without_control_characters(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("where", ["message", "reason", "text"])
def test_escapes_and_forged_lines_of_a_server_do_not_reach_the_terminal(
    where: str, job: Job, counting: Server
) -> None:
    evil = "\x1b]0;owned\x07\n500 done, 0 failed (0 unknown)\r\x9b2J"

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if where == "message":
            return web.json_response({"error": {"message": evil}}, status=400)
        if where == "reason":
            return web.Response(status=400, reason="\x9b2J\x7f\x1b[2J")
        return web.Response(status=400, text=evil)

    counting.answer = answer
    result = job.run("--halt-after", "2", "-o", "-")
    assert result.returncode == 3
    for text in (result.stderr, result.stdout):
        assert not {"\x1b", "\x07", "\r", "\x9b", "\x7f"} & set(text)
    assert "500 done, 0 failed (0 unknown)" not in result.stderr.splitlines()


def test_a_message_keeps_its_own_lines_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\n  two\x1b[0m")
    assert capsys.readouterr().err == "one\n  two\\x1b[0m\n"


def test_json_with_characters_that_terminals_obey_is_escaped_in_the_output(
    job: Job, counting: Server
) -> None:
    text = '{"a": "\x9b2J\x7f"}'
    job.input.write_text('{"custom_id": "\x9b\u2028", "url": "/x", "body": {"n": 1}}\n')
    answers(counting, 1, lambda: web.Response(body=text.encode(), content_type="application/json"))
    assert job.run().returncode == 0
    assert not {"\x9b", "\x7f", "\u2028"} & set(job.out.read_text())
    assert job.done()[1]["response"]["body"] == {"a": "\x9b2J\x7f"}
    assert job.done()[1]["custom_id"] == "\x9b\u2028"


def test_a_404_says_which_url_was_sent(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(404)

    counting.answer = answer
    job.run("--base-url", f"{job.url}/v1?key=secret")
    message = job.failures()[1]["error"]["message"]
    assert message.endswith(f"sent to {job.url}/v1/v1/do")
    assert "secret" not in message


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("http://h/v1?api=2", "/chat", "http://h/v1/chat?api=2"),
        ("http://h/v1/?api=2", "chat?x=1", "http://h/v1/chat?x=1&api=2"),
        ("http://h?api=2", "/chat", "http://h/chat?api=2"),
        ("http://h/v1", "?x=1", "http://h/v1?x=1"),
    ],
)
def test_the_query_of_a_base_url_stays_behind_the_path(base: str, path: str, url: str) -> None:
    assert join_url(base, path) == url


def test_a_timeout_says_how_long_it_was_and_what_to_set() -> None:
    timeouts = {"read": 600.0, "connect": 30.0}
    code, message = failure_from_error(httpx.ReadTimeout("timed out"), timeouts)
    assert (code, message) == ("ReadTimeout", "no answer for 600 s: to wait longer, pass --deadline SECONDS")
    assert "30 s" in failure_from_error(httpx.ConnectTimeout(""), timeouts)[1]
    assert failure_from_error(httpx.ReadError(""), timeouts)[1] == "ReadError, without a message"


def test_the_code_is_read_from_a_line_whatever_else_it_contains() -> None:
    forged = '"error": {"code": "x", "message": "y"}}'
    assert code_in(Entry.of(7, json.dumps(forged), LineFailure("http_400", forged)).line) == "http_400"


def test_a_slow_reader_of_stdout_does_not_use_up_the_deadline_of_calls(job: Job, counting: Server) -> None:
    job.write(100, text="x" * 4000)
    process = job.start("-o", "-", "--deadline", "1", "--max-in-flight", "8")
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    # The pipe holds some 16 lines; all others wait for this reader, for longer than the deadline.
    for _ in range(150):
        if len(counting.seen) >= 24:
            break
        assert process.poll() is None
        pause()
    for _ in range(120):
        pause()
    stdout, stderr = process.communicate(timeout=HANGS)
    assert (process.returncode, summary(stderr.decode())) == (0, "100 done, 0 failed (0 unknown)")
    assert len((first + stdout).splitlines()) == 100


def pause() -> None:
    import time

    time.sleep(0.01)


def test_lines_that_a_closed_reader_did_not_get_are_not_done(job: Job, counting: Server) -> None:
    job.write(300, text="x" * 2000)
    process = job.start("-o", "-", "--max-in-flight", "4")
    assert process.stdout is not None
    read = os.read(process.stdout.fileno(), 20_000)
    while len(read) < 20_000:
        read += os.read(process.stdout.fileno(), 20_000 - len(read))
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(HANGS) == 3
    done = int(summary(stderr).split()[0])
    printed = sum(line.startswith('{"id": ') for line in stderr.splitlines())
    # A pipe holds at most 64 KiB that nobody has read.
    assert read.count(b"\n") <= done <= (len(read) + 65_536) // 2000
    assert done + printed == len(counting.seen)


def test_a_halt_counts_only_failures_of_the_same_kind(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.Response(status=400 if body["n"] == 4 else 200)

    counting.answer = answer
    job.write(6)
    result = job.run("--halt-after", "1", "--max-in-flight", "1")
    assert result.returncode == 3
    assert "stkai batch: a failure with the code http_400" in result.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux shows what is open")
def test_a_run_that_halts_closes_its_input(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        return web.Response(status=400)

    counting.answer = answer
    job.write(6)
    gc.disable()
    try:
        assert job.run("--halt-after", "1", "--max-in-flight", "1").returncode == 3
        opened = [link.resolve().name for link in Path("/proc/self/fd").iterdir()]
    finally:
        gc.enable()
    assert "in.jsonl" not in opened
