"""What the drills do to a store or to a member."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.redis_servers import Server

from stkai.stores import RedisStore

OUTAGE = 4.0
"""Seconds that the trouble lasts."""

STEP = 2
"""Seconds by which a clock is set forward, and later back."""

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
"""Debian's package libfaketime."""


def faketime(directory: Path) -> dict[str, str]:
    """The environment of a process whose wall clock `set_clock` sets; its monotonic clock stays right."""
    directory.mkdir(parents=True, exist_ok=True)
    set_clock(directory, 0)
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(directory / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(directory: Path, seconds: int) -> None:
    """Set the clock of the processes there ahead of the real one, or behind it."""
    new = directory / "clock.new"
    new.write_text(f"{seconds:+d}\n")
    new.rename(directory / "clock")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a drill acts on."""

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


def suspend_member(scene: Scene) -> None:
    """A member is suspended while it holds permits, and continues after the outage."""
    member = scene.members[0].pid
    assert member is not None
    os.kill(member, signal.SIGSTOP)
    time.sleep(OUTAGE)
    os.kill(member, signal.SIGCONT)


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


class SteppedStore(RedisStore):
    """A Redis whose clock `set_clock` sets. redis-server does not start under libfaketime, so it is told the time."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url)
        directory.mkdir(parents=True)
        set_clock(directory, 0)
        run = self._server.run

        def stepped(command: str, *words: Any) -> Any:
            """Run the script, the only command of members, whose seventh word is the time."""
            instant = repr(time.time() + float((directory / "clock").read_text()))
            return run(command, *words[:6], instant, *words[7:])

        self._server.run = stepped  # type: ignore[method-assign]


def step_clock(scene: Scene) -> None:
    """The wall clock is set forward by two seconds, and after the outage back by four."""
    set_clock(scene.directory / "clock", STEP)
    time.sleep(OUTAGE)
    set_clock(scene.directory / "clock", -STEP)


def fill_disk(scene: Scene) -> None:
    """The disk is full, and the state file is deleted, so that a new one needs space; then there is space again."""
    ballast = scene.directory / "store" / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            pass
    state = next(path for path in ballast.parent.iterdir() if path != ballast)
    size = state.stat().st_size
    state.unlink()
    with ballast.open("ab", buffering=0) as file:
        for _ in range(size // 1024 + 1):
            try:
                file.write(bytes(1024))
            except OSError:
                break
    time.sleep(OUTAGE)
    ballast.unlink()


class SmallDisk:
    """A file system of 64 KiB in memory, mounted at a directory; only root may mount it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700)
        options = "size=64k,mode=0700"
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["/bin/umount", "--lazy", str(self._directory)], check=True)


class Delay:
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
