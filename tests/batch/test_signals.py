"""Signals, halts and a second run at once: how a run of `stkai batch` ends early, and continues later."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from stkai._abandonable import Latch
from stkai._batch.batch_client import BatchClient
from stkai._batch.job import BatchJob
from stkai._batch.options import Options
from stkai._batch.outputs import Entry, Outputs
from stkai._batch.runner import Runner

from .job import HANGS, Job, RefusalError, Server, echo, summary, until

pytestmark = pytest.mark.real_time


class Gate:
    """Holds requests until it is opened, and reports when so many are held."""

    def __init__(self, counting: Server) -> None:
        self.counting = counting
        self.opened = threading.Event()
        self.held = threading.Semaphore(0)
        counting.answer = self.answer

    async def answer(self, request: web.BaseRequest, body: Any) -> web.StreamResponse:
        self.held.release()
        await asyncio.get_running_loop().run_in_executor(None, self.opened.wait, 20.0)
        self.counting.execute(body)
        return await echo(request, body)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.held.acquire(timeout=HANGS)


@pytest.fixture
def gate(counting: Server) -> Iterator[Gate]:
    gate = Gate(counting)
    yield gate
    gate.opened.set()


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(10)
    return job


@pytest.mark.parametrize("retry_after", [None, "600"])
def test_a_signal_ends_the_wait_for_another_attempt(
    retry_after: str | None, job: Job, counting: Server
) -> None:
    """With `--unknown resend`, also if the server may have executed the first one."""

    async def fail(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(500, **({"Retry_After": retry_after} if retry_after else {}))

    counting.answer = fail
    job.write(1)
    slow = {
        "STKAI_RETRY_INITIAL_DELAY": "600",
        "STKAI_RETRY_MAX_DELAY": "600",
        "STKAI_RETRY_MAX_RETRY_AFTER": "600",
    }
    process = job.start("--unknown", "resend", env=slow)
    until(lambda: len(counting.seen) == 1, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, stderr = end(process)
    assert (code, "waiting for" in stderr, summary(stderr)) == (130, False, "0 done, 0 failed (0 unknown)")
    counting.answer = echo
    assert job.run("--unknown", "resend", "--resume").returncode == 0
    assert len(counting.seen) == 2


def end(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    _, stderr = process.communicate(timeout=HANGS)
    return process.returncode, stderr.decode()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_drains_what_is_in_flight_and_a_resume_sends_the_rest_once(
    name: str, job: Job, gate: Gate, counting: Server
) -> None:
    # Under `nohup`, the tests and what they start would ignore SIGHUP.
    before = f"import signal; signal.signal(signal.{name}, signal.SIG_DFL)"
    process = job.start("--max-in-flight", "3", before=before)
    gate.wait_for(3)
    process.send_signal(getattr(signal, name))
    gate.opened.set()
    code, stderr = end(process)
    assert code == 130
    assert f"interrupted by {name}" in stderr
    assert "--resume" in stderr
    assert summary(stderr) == "3 done, 0 failed (0 unknown)"
    assert sorted(job.done()) == [1, 2, 3]
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (0, "10 done, 0 failed (0 unknown)")
    assert sorted(job.done()) == list(range(1, 11))
    assert set(counting.executed.values()) == {1}


def test_a_terminal_that_is_closed_interrupts_the_run_like_any_signal(job: Job, gate: Gate) -> None:
    controller, terminal = pty.openpty()
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    process = job.start("--max-in-flight", "3", before=before, stderr=terminal, env={"TERM": "xterm"})
    os.close(terminal)
    gate.wait_for(3)
    os.close(controller)  # From now on, the process cannot write to it.
    for _ in range(2):  # The system sends one, and so does the shell.
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    gate.opened.set()
    process.communicate(timeout=HANGS)
    assert sorted(job.done()) == [1, 2, 3]


def test_signals_that_come_at_once_are_one(job: Job, gate: Gate) -> None:
    process = job.start("--max-in-flight", "3")
    gate.wait_for(3)
    for sent in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(sent)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    gate.opened.set()
    assert (end(process)[0], sorted(job.done())) == (130, [1, 2, 3])


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_the_first_signal_says_what_it_waits_for_and_a_second_one_aborts(
    job: Job, gate: Gate, options: tuple[str, ...]
) -> None:
    process = job.start("--max-in-flight", "3", *options)
    gate.wait_for(3)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGS) == 130
    gate.opened.set()
    assert b"waiting for the requests in flight; interrupt again to abort them" in process.communicate()[1]
    result = job.run("--resume")
    assert summary(result.stderr) == "7 done, 3 failed (3 unknown)"
    assert summary(job.run("--resume").stderr) == "7 done, 3 failed (0 unknown)", "this run has found none"
    assert job.codes() == dict.fromkeys([1, 2, 3], "unknown")
    assert [entry["custom_id"] for entry in job.failures().values()] == ["id-1", "id-2", "id-3"]


def test_an_aborted_run_writes_what_waited_for_an_earlier_line_and_sums_up(
    job: Job, counting: Server
) -> None:
    answered = threading.Semaphore(0)

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] == 1:
            await asyncio.sleep(30)
        answered.release()
        return await echo(request, body)

    counting.answer = answer
    process = job.start("-o", "-", "--order", "input")
    for _ in range(9):
        assert answered.acquire(timeout=HANGS)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    first, *others = map(json.loads, stdout.splitlines())
    assert (first["custom_id"], first["error"]["code"]) == ("id-1", "unknown"), "no later run could say so"
    assert "the server may have executed it" in first["error"]["message"]
    assert "--retry-failed" not in first["error"]["message"], "there are no files"
    assert [entry["custom_id"] for entry in others] == [f"id-{n}" for n in range(2, 11)]
    assert summary(stderr.decode()) == "9 done, 1 failed (1 unknown)"


def test_an_aborted_run_records_the_tokens_of_its_last_second(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] == 2:
            await asyncio.sleep(30)
        return web.json_response({"usage": {"prompt_tokens": 7, "completion_tokens": 1}})

    counting.answer = answer
    process = job.start("--max-in-flight", "2")
    until(lambda: job.out.exists() and len(job.out.read_bytes().splitlines()) == 9, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert b"72 tokens" in process.communicate(timeout=HANGS)[1]
    assert "72 tokens" in job.run("--resume").stderr


def test_what_waited_is_written_once_although_the_earlier_line_ends_meanwhile() -> None:
    written: list[int] = []

    class Slow(Outputs):
        async def _append(self, entry: Entry) -> None:
            await asyncio.sleep(0.001)
            written.append(entry.number)

    async def run() -> None:
        outputs = Slow(in_order=True)
        for number in range(1, 6):
            outputs.expect(number)
        entries = [Entry.of(number, "null", None) for number in range(1, 6)]
        for entry in entries[1:]:
            await outputs.write_outcome(entry.number, entry)
        await asyncio.gather(outputs.write_held(), outputs.write_outcome(1, entries[0]))

    asyncio.run(run())
    assert sorted(written) == [1, 2, 3, 4, 5]


def test_lines_that_wait_for_a_permit_are_dropped(job: Job, gate: Gate, counting: Server) -> None:
    settings = {
        "STKAI_RATE_LIMIT_ENABLED": "true",
        "STKAI_RATE_LIMIT_MAX_REQUESTS": "2",
        "STKAI_RATE_LIMIT_TIME_WINDOW": "3600",
        "STKAI_RATE_LIMIT_MAX_WAIT_TIME": "unlimited",
    }
    process = job.start(env=settings)
    gate.wait_for(2)
    process.send_signal(signal.SIGINT)
    gate.opened.set()
    assert end(process)[0] == 130
    assert sorted(job.done()) == [1, 2]
    assert job.run("--resume").returncode == 0
    assert set(counting.executed.values()) == {1}


def test_lines_that_back_off_after_a_refusal_are_shown_and_dropped(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(429, retry_after="50")

    counting.answer = answer
    often = "import stkai._batch.progress as progress; progress._LINE_INTERVAL = 0.1"
    process = job.start("--max-in-flight", "10", before=often)
    assert process.stderr is not None
    assert any(b"10 waiting, 10 after 429 | 0 failed" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    code, stderr = end(process)
    assert (code, summary(stderr)) == (130, "0 done, 0 failed (0 unknown)")
    counting.answer = echo
    assert summary(job.run("--resume").stderr) == "10 done, 0 failed (0 unknown)"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_comes_when_all_is_sent_interrupts_the_sorting(name: str, job: Job) -> None:
    before = (
        f"import signal, stkai._batch.job as job; signal.signal(signal.{name}, signal.SIG_DFL);"
        f" job.sort_file = lambda _: signal.raise_signal(signal.{name})"
    )
    code, stderr = end(job.start("--order", "input", before=before))
    assert (code, stderr.splitlines()[-1]) == (130, "stkai batch: interrupted")
    assert job.run("--resume", "--order", "input").returncode == 0
    assert list(job.done()) == list(range(1, 11))


def test_a_run_hears_signals_while_it_passes_over_finished_lines() -> None:
    lines = ((number, dict) for number in range(1, 30_001))
    state = SimpleNamespace(
        options=Options(source="in.jsonl", out="out"),
        outputs=SimpleNamespace(held=0),
        lines=lines,
        ending=Latch(),
        wants=lambda _: False,
    )

    async def run() -> None:
        runner = Runner(cast("BatchJob", state), cast("BatchClient", None))
        asyncio.get_running_loop().call_soon(runner.stop, 130, "interrupted")
        async for _ in runner._lines():
            raise AssertionError
        assert runner.stop_reason == (130, "interrupted")

    asyncio.run(run())


def test_ignored_signals_stay_ignored(job: Job, gate: Gate) -> None:
    process = job.start(before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    gate.wait_for(3)
    process.send_signal(signal.SIGHUP)
    gate.opened.set()
    assert end(process)[0] == 0


def test_a_second_run_of_the_same_job_is_refused(job: Job, gate: Gate) -> None:
    first = job.start()
    gate.wait_for(3)
    for option in ("--resume", "--restart", "--retry-failed", "--quiet"):
        result = job.run(option)
        assert (result.returncode, "another process" in result.stderr) == (2, True)
    gate.opened.set()
    assert end(first)[0] == 0
    assert sorted(job.done()) == list(range(1, 11))


def test_equal_failures_in_a_row_halt_the_run_and_a_resume_sends_the_rest(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(404)

    counting.answer = answer
    result = job.run("--halt-after", "4", "--max-in-flight", "1")
    assert result.returncode == 3
    assert "4 failures in a row with the code http_404" in result.stderr
    assert "--resume" in result.stderr
    assert summary(result.stderr) == "0 done, 4 failed (0 unknown)"
    counting.answer = echo
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (1, "6 done, 4 failed (0 unknown)")


def test_invalid_lines_halt_the_run_and_a_resume_reports_the_rest(job: Job) -> None:
    job.input.write_text("oops\n" * 9)
    result = job.run("--halt-after", "4")
    assert (result.returncode, summary(result.stderr)) == (3, "0 done, 4 failed (0 unknown)")
    assert "4 failures in a row with the code invalid_line" in result.stderr
    result = job.run("--resume", "--halt-after", "0")
    assert (result.returncode, summary(result.stderr)) == (1, "0 done, 9 failed (0 unknown)")


def test_different_failures_or_an_answer_in_between_do_not_halt_the_run(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["n"] % 3 == 0:
            return await echo(request, body)
        raise RefusalError(404 if body["n"] % 3 == 1 else 400)

    counting.answer = answer
    assert job.run("--halt-after", "2", "--max-in-flight", "1").returncode == 1
    assert (len(job.done()), len(job.failures())) == (3, 7)


def refuse(counting: Server, *numbers: int) -> None:
    """Answer 401 to these lines; the token endpoint works."""

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if "token" in request.path:
            return web.json_response({"access_token": "t", "token_type": "Bearer", "expires_in": 100})
        if body["n"] in numbers:
            raise RefusalError(401)
        return await echo(request, body)

    counting.answer = answer


@pytest.mark.parametrize("options", [("--no-auth",), ()])
def test_a_line_whose_credentials_are_refused_halts_the_run_at_once_and_was_not_sent(
    options: tuple[str, ...], job: Job, counting: Server
) -> None:
    refuse(counting, 3)
    job.options = options
    settings = {
        "STKAI_AUTH_CLIENT_ID": "me",
        "STKAI_AUTH_CLIENT_SECRET": "hush",
        "STKAI_AUTH_TOKEN_URL": f"{job.url}/token",
    }
    result = job.run("--max-in-flight", "1", env=settings)
    assert result.returncode == 3
    assert "401 to line 3" in result.stderr
    assert "STKAI_AUTH_CLIENT_ID" in result.stderr
    assert "STKAI_AUTH_TOKEN" in result.stderr
    assert "n 3\n" in job.journal.read_text()
    assert (sorted(job.done()), job.failures()) == ([1, 2], {})
    counting.answer = echo
    job.options = ("--no-auth",)
    assert summary(job.run("--resume").stderr) == "10 done, 0 failed (0 unknown)"


def test_lines_that_are_refused_beside_the_first_one_are_new_too(job: Job, counting: Server) -> None:
    refuse(counting, *range(1, 11))
    assert job.run().returncode == 3
    assert (job.done(), job.failures()) == ({}, {})


def test_lines_that_are_always_refused_halt_a_resumed_run_until_they_may_be_failures(
    job: Job, counting: Server
) -> None:
    refuse(counting, 3, 5)
    for option in ("--quiet", "--resume"):
        result = job.run(option, "--max-in-flight", "1")
        assert (result.returncode, "--halt-after 0" in result.stderr) == (3, True)
        assert job.failures() == {}
    assert job.run("--resume", "--halt-after", "0").returncode == 1
    assert job.codes() == dict.fromkeys((3, 5), "http_401")
    assert len(job.done()) == 8


def test_refused_lines_are_failures_if_nothing_is_to_halt_the_run(job: Job, counting: Server) -> None:
    refuse(counting, *range(1, 11))
    assert job.run("--halt-after", "0").returncode == 1
    assert len(job.failures()) == 10


def test_a_token_in_the_settings_signs_every_line_and_is_written_nowhere(job: Job, counting: Server) -> None:
    job.options = ()
    result = job.run(env={"STKAI_AUTH_TOKEN": "my-api-key"})
    assert (result.returncode, summary(result.stderr)) == (0, "10 done, 0 failed (0 unknown)")
    assert {seen.headers["Authorization"] for seen in counting.seen} == {"Bearer my-api-key"}
    written = b"".join(job.snapshot().values()).decode() + result.stderr + result.stdout
    assert "my-api-key" not in written


def test_a_line_whose_url_would_expose_the_token_fails_alone(job: Job, counting: Server) -> None:
    job.options = ()
    exposed = {"url": "http://api.example.com/x", "body": {}}
    job.input.write_text(f"{json.dumps(exposed)}\n{job.input.read_text()}")
    result = job.run(env={"STKAI_AUTH_TOKEN": "my-api-key"})
    assert (result.returncode, summary(result.stderr)) == (1, "10 done, 1 failed (0 unknown)")
    assert "unencrypted to http://api.example.com" in job.failures()[1]["error"]["message"]


def test_a_base_url_that_would_expose_the_token_is_wrong_usage(job: Job) -> None:
    job.options = ()
    before = job.snapshot()
    result = job.run("--base-url", "http://api.example.com/v1", env={"STKAI_AUTH_TOKEN": "my-api-key"})
    assert (result.returncode, "STKAI_AUTH_ALLOW_HTTP" in result.stderr) == (2, True)
    assert job.snapshot() == before


def test_a_token_beside_credentials_is_wrong_usage(job: Job, counting: Server) -> None:
    job.options = ()
    before = job.snapshot()
    settings = {"STKAI_AUTH_TOKEN": "hush", "STKAI_AUTH_CLIENT_ID": "me", "STKAI_AUTH_CLIENT_SECRET": "hush"}
    result = job.run(env=settings)
    assert result.returncode == 2
    assert "STKAI_AUTH_TOKEN is set, and so are STKAI_AUTH_CLIENT_ID" in result.stderr
    assert "hush" not in result.stderr
    assert (job.snapshot(), counting.seen) == (before, [])


def test_a_token_endpoint_that_refuses_halts_at_once(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        raise RefusalError(401)

    async def token(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": "invalid_client"}, status=401)

    counting.answer = answer
    settings = {
        "STKAI_AUTH_CLIENT_ID": "me",
        "STKAI_AUTH_CLIENT_SECRET": "hush",
        "STKAI_AUTH_TOKEN_URL": f"{job.url}/token",
    }
    job.options = ()
    result = job.run(env=settings)
    assert result.returncode == 3
    assert "if this is due to the credentials, check STKAI_AUTH_CLIENT_ID" in result.stderr
    assert (job.done(), job.failures()) == ({}, {})
    assert "hush" not in result.stderr
    counting.answer = echo
    job.options = ("--no-auth",)
    assert summary(job.run("--resume").stderr) == "10 done, 0 failed (0 unknown)"


def test_a_deadline_bounds_each_call(job: Job, gate: Gate) -> None:
    job.write(2)
    result = job.run("--deadline", "0.3", env={"STKAI_RETRY_DEADLINE": "60"})
    assert result.returncode == 1
    assert set(job.codes().values()) == {"DeadlineExceededError"}


def test_a_failure_says_that_the_deadline_is_that_of_the_settings(job: Job, gate: Gate) -> None:
    job.write(1)
    job.run(env={"STKAI_RETRY_DEADLINE": "0.3"})
    hint = " (STKAI_RETRY_DEADLINE; to wait longer, pass --deadline SECONDS)"
    assert f"at attempt number 1{hint}; the server may" in job.failures()[1]["error"]["message"]


def test_report_mode_never_retries_what_the_server_may_have_executed(job: Job, counting: Server) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        counting.execute(body)
        raise RefusalError(500)

    counting.answer = answer
    job.write(3)
    assert job.run().returncode == 1
    assert set(counting.executed.values()) == {1}
    counting.executed.clear()
    assert job.run("--restart", "--unknown", "resend").returncode == 1
    assert set(counting.executed.values()) == {4}


def test_refusals_are_retried_in_report_mode_too(job: Job, counting: Server) -> None:
    refused: set[str] = set()

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        key = json.dumps(body)
        if key not in refused:
            refused.add(key)
            raise RefusalError(503)
        return await echo(request, body)

    counting.answer = answer
    assert job.run().returncode == 0


def test_a_stderr_that_is_closed_changes_nothing(job: Job) -> None:
    process = job.start(before="import os, sys; os.close(2); sys.stderr = sys.__stderr__ = None")
    assert process.wait(HANGS) == 0
    process.communicate()
    assert sorted(job.done()) == list(range(1, 11))


def test_a_reader_that_closes_stdout_halts_the_run(job: Job, gate: Gate) -> None:
    reading, writing = os.pipe()
    process = job.start("-o", "-", stdout=writing)
    os.close(writing)
    os.close(reading)
    gate.opened.set()
    code, stderr = end(process)
    assert code == 3
    assert "stdout cannot be written" in stderr
    assert "Traceback" not in stderr
