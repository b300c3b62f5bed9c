"""What happens to a shared quota when its store or a member fails: `python -m benchmarks.drills [NAME ...]`.

In each drill, processes use up 50 requests per second while something goes wrong for four seconds. The output is the
grants of each second; `--plot PATH` draws them, with the limit as a line. Clocks are set with libfaketime (Debian's
package), the full disk is a tmpfs, which only root can mount, and gunicorn is in the dependency group `bench`.
`python -m benchmarks.kills` is a drill of its own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.redis_servers import Server, free_port

from benchmarks._gunicorn import run_gunicorn
from benchmarks._members import Group, Report, run_group
from benchmarks._plots import rate_plot
from benchmarks._troubles import (
    Delay,
    Scene,
    SmallDisk,
    SteppedStore,
    delete_directory,
    delete_file,
    faketime,
    fill_disk,
    flushed,
    hold_lock,
    kill_member,
    kill_server,
    nothing,
    out_of_memory,
    read_only,
    scribble,
    step_clock,
    stop_server,
    suspend_member,
    truncate,
)

RATE = 50
SECONDS = 12
TROUBLE = 3.2
"""Seconds from the start until the trouble begins."""

CROWD = 200
"""Tasks of one process that wait beside the others, and are cancelled together ..."""

PATIENCE = 0.3
"""... or give up after so many seconds, each for itself, and come again at once."""

REDIS: dict[str, Callable[[Scene], None]] = {
    "redis-well": nothing,
    "redis-killed": kill_server,
    "redis-stopped": stop_server,
    "redis-read-only": read_only,
    "redis-out-of-memory": out_of_memory,
    "redis-flushed": flushed,
    "redis-slow": nothing,
    "redis-clock-stepped": step_clock,
    "redis-member-suspended": suspend_member,
    "redis-member-killed": kill_member,
    "redis-crowd-cancelled": nothing,
    "redis-storm": nothing,
}
FILE: dict[str, Callable[[Scene], None]] = {
    "file-well": nothing,
    "file-lock-held": hold_lock,
    "file-truncated": truncate,
    "file-scribbled": scribble,
    "file-deleted": delete_file,
    "file-directory-deleted": delete_directory,
    "file-disk-full": fill_disk,
    "file-clock-stepped": step_clock,
    "file-member-suspended": suspend_member,
    "file-member-killed": kill_member,
    "file-crowd-cancelled": nothing,
    "file-storm": nothing,
}
OTHER: dict[str, Callable[[Scene], None]] = {"redis-never-reached": nothing, "gunicorn-preload": nothing}


def drill(name: str, processes: int = 8) -> Report:
    """Run one drill."""
    trouble = {**REDIS, **FILE, **OTHER}[name]
    directory = Path(tempfile.mkdtemp(prefix="stkai-drill-"))
    server = Server("redis", directory / "redis") if name in REDIS else None
    slow = disk = None
    try:
        if name == "gunicorn-preload":
            return run_gunicorn(directory, RATE, SECONDS, TROUBLE)
        if name == "file-disk-full":
            disk = SmallDisk(directory / "store")
        store: Any = f"file://{directory / 'store'}"
        if server is not None:
            server.start()
            store = server.url
        if name == "redis-never-reached":
            store = f"redis://127.0.0.1:{free_port()}/0"
        if name == "redis-clock-stepped":
            store = SteppedStore(store, directory / "clock")
        if name == "redis-slow" and server is not None:
            slow = Delay(server.port, 0.2)
            store = f"redis://127.0.0.1:{slow.port}/0"

        def during(start: float, members: list[BaseProcess]) -> None:
            time.sleep(max(0.0, start + TROUBLE - time.monotonic()))
            clock = os.environ.get("FAKETIME_TIMESTAMP_FILE")  # That of the members, which are forked.
            place = directory if clock is None else Path(clock).parent.parent
            trouble(Scene(place if trouble is step_clock else directory, server, members))

        workers = 100 if name.endswith("member-killed") else 4
        processes = 5 if name.endswith("member-killed") else processes
        group = Group(processes=processes, store=store, rate=RATE, seconds=SECONDS, workers=workers)
        if name.endswith("crowd-cancelled"):
            group = replace(group, world="asyncio", crowd=CROWD, cancel_at=TROUBLE)
        elif name.endswith("storm"):
            group = replace(group, world="asyncio", crowd=CROWD, patience=PATIENCE)
        return run_group(group, during)
    finally:
        if server is not None:
            server.kill()
        if slow is not None:
            slow.close()
        if disk is not None:
            disk.close()
        shutil.rmtree(directory, ignore_errors=True)


def _run_with_a_clock_of_its_own(name: str, processes: int) -> None:
    """Run a drill whose members see a wall clock that can be set."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, **faketime(Path(place) / "clock")}
        command = [sys.executable, "-m", "benchmarks.drills", name, "--processes", str(processes)]
        subprocess.run(command, env=environment, check=True)


def main() -> None:
    names = [*REDIS, *FILE, *OTHER]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="draw them into PATH-light.svg and PATH-dark.svg")
    options = parser.parse_args()
    series = {}
    for name in options.names or names:
        if name == "file-clock-stepped" and "LD_PRELOAD" not in os.environ:
            _run_with_a_clock_of_its_own(name, options.processes)
            continue
        report = drill(name, options.processes)
        print(
            f"{name:24} {report.per_second(SECONDS)}  most in a second: {report.most_in_a_second}"
            f"  events: {dict(report.events)}  errors: {report.errors[:2] or 'none'}",
            flush=True,
        )
        series[name] = report.all
    if options.plot is not None:
        rate_plot(series, quota_rate=RATE, bucket_width=1.0, path=options.plot, title="Grants per second")


if __name__ == "__main__":
    main()
