"""Real Redis and Valkey servers on a free loopback port, each in its own directory."""

import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

KINDS = ("redis", "valkey")


def installed(kind: str) -> bool:
    """Whether the server is installed."""
    return shutil.which(f"{kind}-server") is not None


def free_port() -> int:
    """A port that is not in use, from below those that the system gives to all who ask for any: it stays free."""
    while True:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_000)))
            port: int = found.getsockname()[1]
            return port


class Server:
    """One server, or a Sentinel; a context manager that stops it and leaves nothing behind."""

    def __init__(self, kind: str, directory: Path, *options: str, sentinel: str = "") -> None:
        self.kind, self.directory, self.options, self.sentinel = kind, directory, options, sentinel
        self.port, self.cluster_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the same port as before if it was stopped, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [f"{self.kind}-server"]
        if self.sentinel:
            config = self.directory / "sentinel.conf"
            config.write_text(self.sentinel)
            command += [str(config), "--sentinel"]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        if not self.sentinel:
            command += ["--save", "", "--appendonly", "no"]
        if "--cluster-enabled" in self.options:
            command += ["--cluster-port", str(self.cluster_port)]
        log = self.directory / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen([*command, *self.options], stdout=file, stderr=subprocess.STDOUT)
        end = time.monotonic() + 10
        probe = self.client(retry=Retry(ConstantBackoff(0.01), 5), socket_timeout=1)
        with probe as client, ExitStack() as failed:
            failed.callback(self.kill)
            while self._process.poll() is None and time.monotonic() < end:
                with suppress(redis.RedisError):
                    found = client.info("server")["process_id"]
                    assert found == self._process.pid, f"another server has the port {self.port}"
                    failed.pop_all()
                    return
        raise RuntimeError(f"{command[0]} did not start: {log.read_text()}")

    def client(self, **options: Any) -> "redis.Redis":
        """A separate client for the test."""
        return redis.Redis(port=self.port, **{"protocol": 2, **options})

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except RuntimeError:  # Another process has taken one of its ports in the meantime.
            self.port, self.cluster_port = free_port(), free_port()
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
