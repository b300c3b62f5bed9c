"""A warm start across real processes, however they end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stkai import AimdLimiter

from ..support.forked import Forked
from ..support.threads import wait_until

pytestmark = pytest.mark.real_time

PROGRAM = """
import os, signal, sys, time
import httpx
import stkai
from stkai.transports import AdaptiveTransport

calls = 0

def answer(request):
    global calls
    calls += 1
    return httpx.Response(200) if calls <= 5 else httpx.Response(429, headers={"Retry-After": "59"})

limiter = stkai.AimdLimiter(warm_start="team key")
print(limiter.rate, flush=True)
if sys.argv[1] != "look":
    with httpx.Client(transport=AdaptiveTransport(httpx.MockTransport(answer), limiter)) as client:
        for _ in range(6):
            client.post("https://api.test/")
    print(limiter.rate, flush=True)
"""

ENDS = {
    "return": "",
    "sys.exit": "sys.exit(3)",
    "error": "raise RuntimeError('a bug')",
    "wait": "time.sleep(60)",
    "fork": "pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)",
}


def start(
    cache: Path, end: str, program: str = PROGRAM, kind: type["subprocess.Popen[str]"] = Forked
) -> "subprocess.Popen[str]":
    return kind(
        [sys.executable, "-c", program + ENDS.get(end, ""), end],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rates(process: "subprocess.Popen[str]") -> list[float]:
    """The rate at the start of a program, and the rate at its end if it sent anything."""
    out, _ = process.communicate(timeout=60)
    return [float(line) for line in out.split()]


def next_rate(cache: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The rate at which a limiter of this process starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return AimdLimiter(warm_start="team key").rate


def saved(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_the_next_program_starts_at_the_rate_of_the_last(tmp_path: Path) -> None:
    cold, found = rates(start(tmp_path, "return"))
    (warm,) = rates(start(tmp_path, "look"))
    assert warm == pytest.approx(found)
    assert warm != pytest.approx(cold)


@pytest.mark.parametrize("end", ["return", "sys.exit", "error", "fork"])
def test_the_rate_is_saved_however_a_program_ends(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold, found = rates(start(tmp_path, end, kind=subprocess.Popen))
    assert found != pytest.approx(cold)
    assert next_rate(tmp_path, monkeypatch) == pytest.approx(found)
    assert len(saved(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_program_has_already_saved_its_rate(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path, "wait")
    assert process.stdout is not None
    _, found = (float(process.stdout.readline()) for _ in range(2))
    wait_until(lambda: any(path.suffix == ".json" for path in saved(tmp_path)))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert next_rate(tmp_path, monkeypatch) == pytest.approx(found)


def test_programs_that_end_at_once_leave_one_complete_file(tmp_path: Path) -> None:
    processes = [start(tmp_path, "return") for _ in range(3)]
    ends = [rates(process)[1] for process in processes]
    (path,) = saved(tmp_path)
    assert json.loads(path.read_text())["rate"] in ends


def test_a_program_that_cannot_save_ends_normally_and_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    process = start(
        blocked, "return", "import logging; logging.basicConfig(level=logging.WARNING)\n" + PROGRAM
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "set XDG_CACHE_HOME to a directory that can be written" in errors
    assert errors.count("warm_start") == 1
    assert "Traceback" not in errors
