"""Kills members in the middle of their leases, and counts what is lost: `python -m benchmarks.kills [--kills 300]`.

Eight processes take permits from one file as fast as they can, and one after another is killed and replaced. No permit
may be granted twice, at most one lost per kill, and the state must stay readable.
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from stkai.stores import Ask, FileStore

WORKERS = 8
RATE = 0.001
"""Permits per second: so few that the wait for each shows which permit it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the permits.

    Attributes:
        kills: how many members were killed.
        granted: permits that members wrote down.
        twice: permits that two members wrote down.
        lost: permits that no member wrote down.
        restarts: how often the state was lost.
    """

    kills: int
    granted: int
    twice: int
    lost: int
    restarts: int

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.granted} permits: {self.twice} granted twice, {self.lost} lost,"
            f" state lost {self.restarts} times"
        )


def kill_members(kills: int, directory: Path) -> Outcome:
    """Kill that many members, each after up to 30 ms of work."""
    context = multiprocessing.get_context("fork")
    store = directory / "store"
    number = 0

    def start() -> BaseProcess:
        nonlocal number
        number += 1
        process = context.Process(target=_work, args=(store, directory / f"{number}.grants"), daemon=True)
        process.start()
        return process

    members = [start() for _ in range(WORKERS)]
    try:
        for _ in range(kills):
            time.sleep(random.uniform(0, 0.03))  # noqa: S311 - nothing here is a secret
            place = random.randrange(WORKERS)  # noqa: S311
            members[place].kill()
            members[place].join(10)
            members[place] = start()
        time.sleep(0.2)
    finally:
        for member in members:
            member.terminate()
        for member in members:
            member.join(10)
    rows = [line.split() for file in directory.glob("*.grants") for line in file.read_text().splitlines()]
    permits = sorted(int(row[0]) for row in rows if len(row) == 2)
    different = set(permits)
    last = max(different, default=0)
    return Outcome(
        kills=kills,
        granted=len(permits),
        twice=len(permits) - len(different),
        lost=last + 1 - len(different),
        restarts=len({row[1] for row in rows if len(row) == 2}) - 1,
    )


def _work(directory: Path, notes: Path) -> None:
    """Take permits until the end; a polite end (SIGTERM) does not come in the middle of a lease."""
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    store, fd = FileStore(directory), os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ask = Ask(share="drill", rate=RATE, burst=1.0, member=notes.name, want=1)
    while going:
        try:
            lease = store.lease(ask)
        except TimeoutError:
            continue  # The machine is busy.
        for first, _, _ in lease.ranges:
            os.write(fd, f"{round(first * RATE)} {lease.epoch}\n".encode())
        ask = ask._replace(seq=ask.seq + 1, lease_id=lease.id, used=ask.used + lease.count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        outcome = kill_members(options.kills, Path(place))
    print(outcome)
    if outcome.twice or outcome.restarts or outcome.lost > outcome.kills:
        raise SystemExit("a permit was granted twice, or more was lost than one per kill")


if __name__ == "__main__":
    main()
