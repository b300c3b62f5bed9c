"""The limits of a batch: `--rpm`, `--tpm`, `--in-flight`, the settings, and what is said when a store is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .job import Job, Server, server, summary

pytestmark = pytest.mark.real_time

NO_LIMIT = {"STKAI_RATE_LIMIT_ENABLED": "false"}


@pytest.fixture
def counting() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(5)
    return job


@pytest.mark.parametrize("option", ["--rpm", "--tpm", "--in-flight"])
@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "nan", "inf", ""])
def test_a_bad_number_is_refused_and_the_option_is_named(
    option: str, number: str, job: Job, counting: Server
) -> None:
    before = job.snapshot()
    result = job.run(f"{option}={number}")
    assert (result.returncode, option in result.stderr) == (2, True)
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
    assert "the quota 'team' continues with this process's own part" in result.stderr
    assert "cannot be reached" in result.stderr
    assert "hush" not in result.stderr


def test_duplicate_ids_are_reported_by_the_run(job: Job) -> None:
    job.input.write_text(job.input.read_text() * 2)
    result = job.run()
    assert (result.returncode, summary(result.stderr)) == (0, "10 done, 0 failed (0 unknown)")
    assert "lines with the custom_id of an earlier line: 6, 7, 8, 9, 10; use `id`" in result.stderr


@pytest.mark.parametrize(
    ("command", "usage"), [((), "batch [OPTIONS] INPUT"), (("merge",), "batch merge [OPTIONS] OUT...")]
)
def test_the_usage_of_the_commands_is_plain(command: tuple[str, ...], usage: str, job: Job) -> None:
    done = job.run_here(["", "", "", "batch", *command, "--help"], job.environment())
    assert done.stdout.splitlines()[0].endswith(usage) or usage in done.stdout
