"""What happens to a shared quota when its store or a member fails: `python -m benchmarks.drills [NAME ...]`.

In each drill, processes use up 50 requests per second while something goes wrong for four seconds. The output is the
grants of each second; `--plot PATH` draws them, with the limit as a line.
"""

import argparse
import fcntl
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.redis_servers import Server, free_port

from benchmarks._members import Group, Report, run_group
from benchmarks._plots import rate_plot

RATE = 50
SECONDS = 12
TROUBLE, OUTAGE = 3.2, 4.0
"""Seconds: when the trouble begins, counted from the start, and how long it lasts."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a drill takes place."""

    directory: Path
    server: Server | None
    members: list[BaseProcess]

    @property
    def state_file(self) -> Path:
        """The file of the share."""
        (found,) = (self.directory / "store").iterdir()
        return found


def kill_server(scene: Scene) -> None:
    """Redis is killed, and started again."""
    assert scene.server is not None
    scene.server.kill()
    time.sleep(OUTAGE)
    scene.server.start()


def stop_server(scene: Scene) -> None:
    """Redis is suspended: it accepts connections and does not answer."""
    assert scene.server is not None
    scene.server.send_signal(signal.SIGSTOP)
    time.sleep(OUTAGE)
    scene.server.send_signal(signal.SIGCONT)


def read_only(scene: Scene) -> None:
    """Redis becomes a read-only replica of a server that does not exist."""
    assert scene.server is not None
    with scene.server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(OUTAGE)
        client.execute_command("REPLICAOF", "NO", "ONE")


def out_of_memory(scene: Scene) -> None:
    """Redis refuses to write."""
    assert scene.server is not None
    with scene.server.client() as client:
        client.config_set("maxmemory", 1)
        time.sleep(OUTAGE)
        client.config_set("maxmemory", 0)


def flushed(scene: Scene) -> None:
    """All keys and scripts are deleted, ten times a second."""
    assert scene.server is not None
    with scene.server.client() as client:
        until = time.monotonic() + OUTAGE
        while time.monotonic() < until:
            client.flushall()
            client.script_flush()
            time.sleep(0.1)


def kill_member(scene: Scene) -> None:
    """A member is killed with 100 requests waiting."""
    scene.members[0].kill()


def hold_lock(scene: Scene) -> None:
    """Another process holds the lock of the state file, as a suspended one would."""
    with scene.state_file.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(OUTAGE)


def truncate(scene: Scene) -> None:
    """The state file is emptied."""
    os.truncate(scene.state_file, 0)


def scribble(scene: Scene) -> None:
    """The state file is filled with garbage."""
    scene.state_file.write_bytes(os.urandom(20_000))


def delete_file(scene: Scene) -> None:
    """The state file is deleted."""
    scene.state_file.unlink()


def delete_directory(scene: Scene) -> None:
    """The directory is deleted."""
    shutil.rmtree(scene.directory / "store")


def nothing(scene: Scene) -> None:
    """Nothing goes wrong."""


REDIS: dict[str, Callable[[Scene], None]] = {
    "redis-well": nothing,
    "redis-killed": kill_server,
    "redis-stopped": stop_server,
    "redis-read-only": read_only,
    "redis-out-of-memory": out_of_memory,
    "redis-flushed": flushed,
    "redis-slow": nothing,
    "redis-member-killed": kill_member,
}
FILE: dict[str, Callable[[Scene], None]] = {
    "file-well": nothing,
    "file-lock-held": hold_lock,
    "file-truncated": truncate,
    "file-scribbled": scribble,
    "file-deleted": delete_file,
    "file-directory-deleted": delete_directory,
    "file-member-killed": kill_member,
}
OTHER: dict[str, Callable[[Scene], None]] = {"redis-never-reached": nothing}


def drill(name: str, processes: int = 8) -> Report:
    """Run one drill."""
    trouble = {**REDIS, **FILE, **OTHER}[name]
    directory = Path(tempfile.mkdtemp(prefix="stkai-drill-"))
    server = Server("redis", directory / "redis") if name in REDIS else None
    slow = None
    try:
        store = f"file://{directory / 'store'}"
        if server is not None:
            server.start()
            store = server.url
        if name == "redis-never-reached":
            store = f"redis://127.0.0.1:{free_port()}/0"
        if name == "redis-slow" and server is not None:
            slow = _Delay(server.port, 0.2)
            store = f"redis://127.0.0.1:{slow.port}/0"

        def during(start: float, members: list[BaseProcess]) -> None:
            time.sleep(max(0.0, start + TROUBLE - time.monotonic()))
            trouble(Scene(directory, server, members))

        workers = 100 if name.endswith("member-killed") else 4
        processes = 5 if name.endswith("member-killed") else processes
        group = Group(processes=processes, store=store, rate=RATE, seconds=SECONDS, workers=workers)
        return run_group(group, during)
    finally:
        if server is not None:
            server.kill()
        if slow is not None:
            slow.close()
        shutil.rmtree(directory, ignore_errors=True)


class _Delay:
    """A relay that delays each answer."""

    def __init__(self, port: int, seconds: float) -> None:
        self._target, self._seconds = port, seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, delay in ((near, far, 0.0), (far, near, self._seconds)):
                threading.Thread(target=self._relay, args=(source, sink, delay), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        try:
            while data := source.recv(65536):
                time.sleep(delay)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()


def main() -> None:
    names = [*REDIS, *FILE, *OTHER]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="draw them into PATH-light.svg and PATH-dark.svg")
    options = parser.parse_args()
    series = {}
    for name in options.names or names:
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
