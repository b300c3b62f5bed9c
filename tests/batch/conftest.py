"""A server that counts executions, and a job of five lines for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .job import Job, Server, server


@pytest.fixture
def counting() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    job = Job(tmp_path, counting.url)
    job.write(5)
    return job
