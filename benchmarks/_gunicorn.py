"""gunicorn with --preload: the parent uses the quota before it forks, and one of its workers is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
from tests.support.redis_servers import free_port

from benchmarks._members import Report

WORKERS, THREADS = 4, 4


def run_gunicorn(directory: Path, rate: float, seconds: float, trouble: float) -> Report:
    """Keep all threads of all workers busy; a worker that is killed at `trouble` is replaced by another fork."""
    port, seen, report = free_port(), set[int](), Report()
    command = [sys.executable, "-m", "gunicorn", "benchmarks._gunicorn_app:app", "--preload"]
    command += ["--workers", str(WORKERS), "--threads", str(THREADS), "--bind", f"127.0.0.1:{port}"]
    environment = {**os.environ, "STKAI_DRILL": str(directory), "STKAI_DRILL_RATE": str(rate)}
    with subprocess.Popen([*command, "--log-level", "critical"], env=environment) as parent:
        try:
            _wait_for(port)
            start = time.monotonic()
            until = start + seconds
            clients = [
                threading.Thread(target=_ask, args=(port, until, seen, report.errors))
                for _ in range(2 * WORKERS * THREADS)
            ]
            for client in clients:
                client.start()
            time.sleep(max(0.0, start + trouble - time.monotonic()))
            if seen:
                os.kill(min(seen), signal.SIGKILL)
            for client in clients:
                client.join(seconds + 10)
        finally:
            parent.terminate()
            parent.wait(30)
    for number, file in enumerate(sorted(directory.glob("*.grants"))):
        instants = [float(line) - start for line in file.read_text().split()]
        report.grants[number] = [instant for instant in instants if 0 <= instant < seconds]
    return report


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5.0)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("gunicorn did not start within 30 s")


def _ask(port: int, until: float, seen: set[int], errors: list[str]) -> None:
    while time.monotonic() < until:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/", timeout=30.0)
        except httpx.TransportError:
            continue  # Its worker was killed.
        if response.status_code == 200:
            seen.add(int(response.text.split()[0]))
        else:
            errors.append(f"{response.status_code} {response.text[:80]}")
