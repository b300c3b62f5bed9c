"""Quick commands as a batch: created once, polled until they end, even by a resumed job."""

import errno
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from stkai import AsyncHttpClient
from stkai._batch.append_file import AppendFile, WriteError

from .job import HANGS, Job, RefusalError, Server, broken, server, summary, until

pytestmark = pytest.mark.real_time


class Executions:
    """A service of quick commands: an execution ends with poll number `needed`."""

    def __init__(self, counting: Server) -> None:
        self.counting = counting
        self.bodies: dict[str, Any] = {}
        self.polls: Counter[str] = Counter()
        self.needed = 1
        self.status = "COMPLETED"
        counting.answer = self.answer

    async def answer(self, request: web.BaseRequest, body: Any) -> web.StreamResponse:
        place, _, name = request.path.rpartition("/")
        if request.method == "POST":
            assert place == "/v1/quick-commands/create-execution"
            assert name == "review-1"
            self.counting.execute(body)
            name = f"execution-{len(self.bodies) + 1}"
            self.bodies[name] = body
            return web.json_response(name)
        assert place == "/v1/quick-commands/callback"
        return await self.poll(request, name)

    async def poll(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        self.polls[name] += 1
        is_done = self.polls[name] >= self.needed
        status = self.status if is_done else "RUNNING"
        return web.json_response(
            {
                "execution_id": name,
                "progress": {"status": status},
                "result": self.bodies[name] if is_done else None,
            }
        )


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executions]:
    """A service that jobs in this process poll without the pause of a second."""
    monkeypatch.setattr("stkai._batch.batch_client._FIRST_PAUSE", 0.01)
    with server() as running:
        yield Executions(running)


@pytest.fixture
def job(executions: Executions, tmp_path: Path) -> Job:
    job = Job(tmp_path, executions.counting.url, ("--no-auth", "--quick-command", "review-1"))
    job.input.write_text(
        "".join(f'{{"custom_id": {n}, "body": {{"input_data": "code {n}"}}}}\n' for n in range(1, 4))
    )
    return job


def test_executions_are_created_and_polled_and_the_last_callback_is_the_answer(
    job: Job, executions: Executions
) -> None:
    result = job.run()
    assert result.returncode == 0, result.stderr
    assert executions.counting.executed == {f'{{"input_data": "code {n}"}}': 1 for n in range(1, 4)}
    answer = job.done()[2]
    assert answer["custom_id"] == 2
    assert answer["response"]["body"]["progress"] == {"status": "COMPLETED"}
    assert answer["response"]["body"]["result"] == {"input_data": "code 2"}
    assert sum(record.startswith("x ") for record in job.journal.read_text().splitlines()) == 3


def test_polls_need_no_permit(job: Job, executions: Executions) -> None:
    executions.needed = 2
    settings = {
        "STKAI_RATE_LIMIT_ENABLED": "true",
        "STKAI_RATE_LIMIT_MAX_REQUESTS": "3",
        "STKAI_RATE_LIMIT_TIME_WINDOW": "3600",
    }
    assert job.run(env=settings).returncode == 0


def test_an_execution_that_fails_is_a_failure_with_its_callback(job: Job, executions: Executions) -> None:
    executions.status = "FAILURE"
    assert job.run().returncode == 1
    failure = job.failures()[1]
    assert failure["error"]["code"] == "execution_failed"
    assert failure["response"]["body"]["progress"] == {"status": "FAILURE"}


def test_a_poll_that_fails_is_polled_again(job: Job, executions: Executions) -> None:
    well = executions.poll
    troubles = iter(["429", "500", "broken", "522", "529"])

    async def poll(request: web.BaseRequest, name: str) -> web.StreamResponse:
        trouble = next(troubles, "none")
        if trouble == "broken":
            return await broken(request)
        if trouble != "none":
            raise RefusalError(int(trouble))
        return await well(request, name)

    executions.poll = poll  # type: ignore[method-assign]
    assert job.run("--halt-after", "1").returncode == 0
    assert set(executions.counting.executed.values()) == {1}


def test_a_poll_that_a_proxy_does_not_let_through_is_polled_again(
    job: Job, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, refused = AsyncHttpClient.get, iter([httpx.ProxyError("502 Bad Gateway")])

    async def through_a_proxy(self: AsyncHttpClient, *args: Any) -> httpx.Response:
        for error in refused:
            raise error
        return await get(self, *args)

    monkeypatch.setattr(AsyncHttpClient, "get", through_a_proxy)
    assert job.run().returncode == 0
    assert set(executions.counting.executed.values()) == {1}


def test_a_new_execution_that_is_not_found_yet_is_polled_again(job: Job, executions: Executions) -> None:
    well, unaware = executions.poll, Counter[str]()

    async def poll(request: web.BaseRequest, name: str) -> web.StreamResponse:
        unaware[name] += 1
        if unaware[name] <= 3:
            raise RefusalError(404)
        return await well(request, name)

    executions.poll = poll  # type: ignore[method-assign]
    result = job.run("--halt-after", "1")
    assert result.returncode == 0, result.stderr
    assert set(executions.counting.executed.values()) == {1}


@pytest.mark.parametrize("status", [403, 404])
def test_a_poll_that_is_refused_says_that_there_is_an_execution(
    job: Job, executions: Executions, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("stkai._batch.batch_client._MAX_PAUSE", 0.02)

    async def poll(request: web.BaseRequest, name: str) -> web.StreamResponse:
        raise RefusalError(status)

    executions.poll = poll  # type: ignore[method-assign]
    assert job.run().returncode == 1
    assert set(job.codes().values()) == {f"http_{status}"}
    messages = [failure["error"]["message"] for failure in job.failures().values()]
    assert all("has been created, and --retry-failed creates another one" in message for message in messages)


def test_a_signal_does_not_wait_for_executions_and_a_resume_polls_on(
    job: Job, executions: Executions
) -> None:
    executions.needed = 10_000
    process = job.start()
    until(lambda: len(executions.polls) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert summary(stderr.decode()) == "0 done, 0 failed (0 unknown)"
    executions.needed = 1
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (0, "3 done, 0 failed (0 unknown)")
    assert set(executions.counting.executed.values()) == {1}


def test_a_signal_waits_for_executions_that_no_resume_could_poll(job: Job, executions: Executions) -> None:
    executions.needed = 10_000
    process = job.start("-o", "-")
    until(lambda: len(executions.polls) >= 3, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    executions.needed = 1
    stdout, stderr = process.communicate(timeout=HANGS)
    assert (process.returncode, len(stdout.splitlines())) == (130, 3)
    assert summary(stderr.decode()) == "3 done, 0 failed (0 unknown)"


@pytest.mark.parametrize("trouble", ["401", "no token"])
def test_an_execution_that_no_later_run_can_poll_is_an_outcome_even_if_the_run_halts(
    job: Job, executions: Executions, trouble: str
) -> None:
    answer, tokens = executions.answer, iter(["first"])

    async def without_a_second_token(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if request.path != "/token":
            return await answer(request, body)
        for token in tokens:
            return web.json_response({"access_token": token, "expires_in": 1000})
        raise RefusalError(400)

    async def poll(request: web.BaseRequest, name: str) -> web.StreamResponse:
        raise RefusalError(401)

    executions.counting.answer = without_a_second_token
    executions.poll = poll  # type: ignore[method-assign]
    if trouble == "no token":
        job.options = job.options[1:]
    result = job.run(
        "-o",
        "-",
        env={
            "STKAI_AUTH_CLIENT_ID": "id",
            "STKAI_AUTH_CLIENT_SECRET": "secret",
            "STKAI_AUTH_TOKEN_URL": f"{job.url}/token",
        },
    )
    assert result.returncode == 3
    messages = [json.loads(line)["error"]["message"] for line in result.stdout.splitlines()]
    created = {
        name for name in executions.bodies if any(f"execution {name} has" in each for each in messages)
    }
    assert created == set(executions.bodies)


def test_an_aborted_run_without_files_names_its_executions(job: Job, executions: Executions) -> None:
    executions.needed = 10_000
    process = job.start("-o", "-")
    until(lambda: len(executions.polls) >= 3, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=HANGS)
    assert (process.returncode, summary(stderr.decode())) == (130, "0 done, 3 failed (3 unknown)")
    assert all(f"execution {name} has been created" in stdout.decode() for name in executions.bodies)


def test_after_kill_9_a_resume_polls_on_and_only_an_id_that_was_lost_is_unknown(
    job: Job, executions: Executions
) -> None:
    executions.needed = 10_000
    process = job.start()
    until(lambda: len(executions.polls) >= 3, process)
    process.kill()
    process.communicate()
    records = job.journal.read_text().splitlines()
    job.journal.write_text("".join(f"{record}\n" for record in records if not record.startswith("x 2 ")))
    executions.needed = 1
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (1, "2 done, 1 failed (1 unknown)")
    assert job.codes() == {2: "unknown"}
    assert job.failures()[2]["custom_id"] == 2
    assert set(executions.counting.executed.values()) == {1}


def test_a_creation_that_is_refused_or_names_no_execution_is_a_failure(
    job: Job, executions: Executions
) -> None:
    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        if body["input_data"] == "code 1":
            raise RefusalError(404)
        return web.json_response({"oops": 1})

    executions.counting.answer = answer
    assert job.run().returncode == 1
    assert job.codes() == {1: "http_404", 2: "NoExecutionError", 3: "NoExecutionError"}
    assert job.failures()[2]["response"]["body"] == {"oops": 1}
    said = {
        number: "may have executed it" in entry["error"]["message"]
        for number, entry in job.failures().items()
    }
    assert said == {1: False, 2: True, 3: True}


def test_an_execution_whose_id_cannot_be_recorded_is_polled_to_its_end(
    job: Job, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, fullness = AppendFile.append, [False]

    def fill(self: AppendFile, record: bytes) -> None:
        fullness[0] = fullness[0] or record.startswith(b"x 1 ")
        if fullness[0]:
            raise WriteError(self.path, OSError(errno.ENOSPC, ""))
        append(self, record)

    monkeypatch.setattr(AppendFile, "append", fill)
    result = job.run("--max-in-flight", "1")
    assert (result.returncode, "No space left on device" in result.stderr) == (3, True)
    (outcome,) = (json.loads(line) for line in result.stderr.splitlines() if line.startswith("{"))
    assert outcome["response"]["body"]["execution_id"] == "execution-1"
    assert len(executions.bodies) == 1


def test_a_deadline_bounds_the_whole_execution(job: Job, executions: Executions) -> None:
    executions.needed = 10_000
    assert job.run("--deadline", "0.3").returncode == 1
    assert set(job.codes().values()) == {"DeadlineExceededError"}


def test_an_execution_that_ended_before_its_deadline_is_found_although_no_poll_was_due(
    job: Job, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._batch.batch_client._FIRST_PAUSE", 60.0)
    assert job.run("--deadline", "0.5").returncode == 0
    assert set(executions.polls.values()) == {1}


def test_an_execution_that_never_ends_is_a_failure_that_says_how_to_wait_longer(
    job: Job, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stkai._batch.batch_client._EXECUTION_TIMEOUT", 0.2)
    executions.needed = 10_000
    assert job.run().returncode == 1
    error = job.failures()[1]["error"]
    assert error["code"] == "DeadlineExceededError"
    assert " did not end within 0.2 s: to wait longer, pass --deadline" in error["message"]
    assert "the execution execution-" in error["message"]


def test_a_template_makes_the_body_of_the_creation(job: Job, executions: Executions, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"input_data": "check: {code}"}')
    (tmp_path / "code.csv").write_text("code\nx = 1\n")
    assert job.run("code.csv", "--body", "body.json").returncode == 0
    assert executions.counting.executed == {'{"input_data": "check: x = 1"}': 1}


def test_an_execution_whose_failure_is_removed_is_polled_on(job: Job, executions: Executions) -> None:
    executions.needed = 10_000
    assert job.run("--deadline", "0.3").returncode == 1
    job.failed.unlink()
    executions.needed = 1
    result = job.run("--resume")
    assert (result.returncode, summary(result.stderr)) == (0, "3 done, 0 failed (0 unknown)")
    assert set(executions.counting.executed.values()) == {1}
