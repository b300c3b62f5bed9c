"""`kill -9` at random instants: every line is in the outputs exactly once, and nothing is executed twice unnoticed.

The server mixes in 500s, 429s and bodies that break off. `python -m tests.batch.test_kill 50 2000` runs it for longer:
fifty kills, two thousand lines.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web

from .job import Job, RefusalError, Server, broken, echo, server

LINES = 40
KILLS = 3


class Unreliable:
    """A server that executes most requests, refuses some, and breaks off some answers."""

    def __init__(self, counting: Server, chance: random.Random) -> None:
        self.counting, self.chance = counting, chance
        self.doubtful: Counter[str] = Counter()
        """How often each body was executed without an answer; a policy that repeats such requests may repeat these."""

    async def answer(self, request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.sleep(0.01)  # Otherwise a fast machine is done before it can be killed.
        chance = self.chance.random()
        if chance < 0.05:
            raise RefusalError(429, retry_after="0")
        self.counting.execute(body)
        if chance < 0.08:
            self.doubtful[json.dumps(body)] += 1
            raise RefusalError(500)
        if chance < 0.11:
            self.doubtful[json.dumps(body)] += 1
            return await broken(request)
        return await echo(request, body)


def unknown_now(job: Job, before: set[int]) -> set[int]:
    """The lines that were sent, and have neither an answer nor a failure."""
    sent: set[int] = set(before)
    for record in job.journal.read_text().splitlines()[1:]:
        kind, _, rest = record.partition(" ")
        if kind == "s":
            sent.add(int(rest))
        elif kind == "n":
            sent.discard(int(rest))
    return sent - {int(line.split('"')[3][5:]) for out in (job.out, job.failed) for line in complete(out)}


def complete(path: Path) -> list[str]:
    """The complete lines of a file."""
    return [] if not path.exists() else [line for line in path.read_text().split("\n")[:-1] if line]


def rehearse(
    folder: Path, kills: int, count: int, seed: int, unknown: Literal["report", "resend"]
) -> tuple[int, int]:
    """Run one job with so many kills; return how many happened, and how many lines were in flight at a kill."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    with server() as counting:
        unreliable = Unreliable(counting, chance)
        counting.answer = unreliable.answer
        job = Job(folder, counting.url)
        job.write(count)
        options = ("--unknown", unknown, "--max-in-flight", "8", "--halt-after", "0", "--resume")
        in_flight: Counter[int] = Counter()
        happened = 0
        for number in range(kills):
            process = job.start(*options)
            target = len(counting.seen) + chance.randrange(1, max(2, 2 * count // kills))
            ticks = (
                chance.randrange(1500) if chance.random() < 0.2 else 20_000
            )  # Some before anything is sent.
            while process.poll() is None and len(counting.seen) < target and ticks:
                time.sleep(0.001)
                ticks -= 1
            process.kill()
            process.communicate()
            happened += process.returncode == -9
            if job.journal.exists() and job.journal.read_text().count("\n"):
                lost = unknown_now(job, set())
                assert len(lost) <= 8, (number, lost)
                in_flight.update(lost)
        result = job.run(*options)
        assert result.returncode in {0, 1}, result.stderr
        check(job, counting, unreliable, in_flight, count, unknown)
        return happened, len(in_flight)


def check(
    job: Job, counting: Server, unreliable: Unreliable, in_flight: Counter[int], count: int, unknown: str
) -> None:
    done, failures = job.done(), job.failures()
    assert not done.keys() & failures.keys()
    assert sorted([*done, *failures]) == list(range(1, count + 1))
    codes = set(job.codes().values())
    if unknown == "report":
        assert set(counting.executed.values()) <= {1}
        assert {number for number, code in job.codes().items() if code == "unknown"} == set(in_flight)
        return
    assert "unknown" not in codes
    for body, times in counting.executed.items():
        number = json.loads(body)["n"]
        # Once, and again after each kill that hit it in flight, and after each doubtful answer.
        assert times <= 1 + in_flight[number] + unreliable.doubtful[body], (number, times)


@pytest.mark.no_cover
@pytest.mark.real_time
@pytest.mark.parametrize("unknown", ["report", "resend"])
def test_a_job_survives_kill_9_at_random_instants(
    unknown: Literal["report", "resend"], tmp_path: Path
) -> None:
    happened, _ = rehearse(tmp_path, KILLS, LINES, 1, unknown)
    assert happened > KILLS // 2


def main(kills: int, count: int) -> None:
    """Run the long version of this test."""
    for unknown in ("report", "resend"):
        for seed in range(3):
            with tempfile.TemporaryDirectory() as folder:
                happened, in_flight = rehearse(Path(folder), kills, count, seed, unknown)
                print(
                    f"{unknown}, seed {seed}: {happened} kills, {in_flight} lines in flight at one: held",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
