"""The limits of a batch: `--rpm`, `--tpm`, `--in-flight`, the settings, and what is said when a store is lost."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from stkai import ConfigurationError, RateLimitConfig, Settings
from stkai._batch.batch_client import allow_files, limits
from stkai._batch.options import Options

from .job import HANGS, Job, Server, echo, summary, until

pytestmark = pytest.mark.real_time

NO_LIMIT = {"STKAI_RATE_LIMIT_ENABLED": "false"}


@pytest.mark.parametrize("option", ["--rpm", "--tpm", "--in-flight"])
def test_a_bad_number_is_refused_and_the_option_is_named(option: str, job: Job, counting: Server) -> None:
    before = job.snapshot()
    for number in ("0", "-1", "x", "1.5", "nan", "inf", ""):
        result = job.run(f"{option}={number}")
        assert (result.returncode, option in result.stderr) == (2, True), number
    assert (job.snapshot(), counting.seen) == (before, [])


def test_a_maximum_wait_in_the_settings_fails_no_line(job: Job, counting: Server) -> None:
    settings = {
        "STKAI_RATE_LIMIT_MAX_REQUESTS": "2",
        "STKAI_RATE_LIMIT_TIME_WINDOW": "0.5",
        "STKAI_RATE_LIMIT_MAX_WAIT_TIME": "0.1",
    }
    result = job.run(env=settings)
    assert (result.returncode, summary(result.stderr)) == (0, "5 done, 0 failed (0 unknown)")


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_store_that_is_lost_is_reported(quiet: tuple[str, ...], job: Job) -> None:
    settings = {"STKAI_RATE_LIMIT_SHARE": "team", "STKAI_RATE_LIMIT_STORE": "redis://:hush@127.0.0.1:1"}
    result = job.run(*quiet, env=settings)
    assert result.returncode == 0
    assert "the quota 'team' is not shared: RedisStore('127.0.0.1:1') cannot be reached" in result.stderr
    assert "hush" not in result.stderr


def test_lines_with_the_same_id_are_all_sent(job: Job) -> None:
    job.input.write_text(job.input.read_text() * 2)
    result = job.run()
    assert (result.returncode, summary(result.stderr)) == (0, "10 done, 0 failed (0 unknown)")


def limits_of(*arguments: Any, **settings: Any) -> Any:
    options = Options(source="in.jsonl", out="out", **dict(zip(arguments[::2], arguments[1::2], strict=True)))
    return limits(options, Settings(rate_limit=RateLimitConfig(**settings)))


def test_without_numbers_a_batch_adapts_to_the_server() -> None:
    assert limits_of() == "adaptive"


def test_numbers_make_limits_and_the_limiter_of_the_settings_stays_in_force() -> None:
    (bucket,) = limits_of("rpm", 30)
    assert (bucket.max_requests, bucket.time_window, bucket.max_cost) == (30, 60, None)
    bucket, in_flight = limits_of("tpm", 1000, "in_flight", 3)
    assert (bucket.max_requests, bucket.time_window, bucket.max_cost) == (None, 60, 1000)
    assert in_flight.n == 3
    of_settings, bucket = limits_of("rpm", 30, "tpm", 1000, enabled=True, max_requests=7, time_window=1.0)
    assert (of_settings.max_requests, of_settings.time_window) == (7, 1.0)
    assert (bucket.max_requests, bucket.max_cost) == (30, 1000)


@pytest.mark.parametrize("options", [(), ("--rpm", "9"), ("--in-flight", "9")])
def test_a_share_without_a_limiter_is_refused(job: Job, options: tuple[str, ...]) -> None:
    result = job.run(*options, env={**NO_LIMIT, "STKAI_RATE_LIMIT_SHARE": "team"})
    assert (result.returncode, "STKAI_RATE_LIMIT_ENABLED" in result.stderr) == (2, True)


def test_a_batch_that_adapts_sends_all_lines(job: Job, counting: Server) -> None:
    assert job.run(env=NO_LIMIT).returncode == 0
    assert len(counting.seen) == 5


@pytest.mark.parametrize(("limit", "count"), [(("--rpm", "3"), 3), (("--tpm", "250"), 2)])
def test_lines_beyond_the_requests_or_tokens_per_minute_wait(
    job: Job, counting: Server, limit: tuple[str, str], count: int
) -> None:
    job.write(5, text="x" * 400)
    process = job.start(*limit)
    until(lambda: len(counting.seen) >= count, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANGS)
    assert summary(stderr.decode()) == f"{count} done, 0 failed (0 unknown)"


def test_at_most_so_many_requests_are_at_the_server(job: Job, counting: Server) -> None:
    here, most = 0, 0

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0.02)
        here -= 1
        return await echo(request, body)

    counting.answer = answer
    job.write(12)
    assert job.run("--in-flight", "2", env=NO_LIMIT).returncode == 0
    assert most == 2


def _refused_above(most: int) -> Callable[[int, tuple[int, int]], None]:
    def setrlimit(_: int, pair: tuple[int, int]) -> None:
        if pair[0] > most:
            raise ValueError("current limit exceeds maximum limit")

    return setrlimit


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_batch_needs_no_more_files_than_the_settings_allow_connections(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 1_000))
    monkeypatch.setattr("resource.setrlimit", _refused_above(1_000))
    few = {"STKAI_HTTP_MAX_CONNECTIONS": "50", "STKAI_HTTP_MAX_KEEPALIVE_CONNECTIONS": "50"}
    assert job.run("--max-in-flight", "2000", env=few).returncode == 0
    assert job.run("--max-in-flight", "2000", "--restart").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_batch_may_open_as_many_files_as_it_has_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = (256, 1_000)

    def allow(kind: int, pair: tuple[int, int]) -> None:
        nonlocal allowed
        _refused_above(1_000)(kind, pair)
        allowed = pair

    monkeypatch.setattr("resource.getrlimit", lambda _: allowed)
    monkeypatch.setattr("resource.setrlimit", allow)
    allow_files(200)
    assert allowed == (256, 1_000)
    allow_files(400)
    assert allowed == (400, 1_000)
    with pytest.raises(ConfigurationError, match="max-in-flight needs up to 1100 open files"):
        allow_files(1_100)
