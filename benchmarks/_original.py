"""stkai 0.4.18, which has the same name and therefore runs in its own process.

It is downloaded once into the system's temporary directory, and needs Python 3.12. Without it, its rows are left out.
Run as a program, this module is that process: it reads one JSON command per line, and answers in JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

VERSION = "0.4.18"
NAME = f"stkai {VERSION}"
_URL = "http://null.example.com/v1/quick-commands/create-execution/explain-this-code"


class Original:
    """The process, and a way to send it commands."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command in the process.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{NAME} died on {command!r}")
        return json.loads(line)


@contextmanager
def original() -> Iterator[Original | None]:
    """stkai 0.4.18, ready for commands; or None, with a printed reason, if it is not available."""
    folder = _download()
    if folder is None:
        yield None
        return
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._original"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    with process:
        yield Original(process)
        if process.stdin is not None:
            process.stdin.close()


def _download() -> Path | None:
    if sys.version_info < (3, 12):
        print(f"{NAME} needs Python 3.12: left out")
        return None
    folder = Path(tempfile.gettempdir()) / f"stkai-benchmarks-{VERSION}"
    if (folder / "stkai").is_dir():
        return folder
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads]
        done = subprocess.run([*pip, f"stkai=={VERSION}"], check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if done.returncode or not wheels:
            print(f"{NAME} could not be downloaded: left out")
            return None
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(folder)
    return folder


def _client(max_requests: float = 1e9, kind: str = "adaptive", delegate: Any = None) -> Any:
    http, limits = import_module("stkai._http"), import_module("stkai._rate_limit")
    delegate = delegate or http.StandaloneHttpClient(_provider())
    options = {"max_requests": max_requests, "time_window": 1.0}
    if kind == "adaptive":
        return limits.AdaptiveRateLimitedHttpClient(delegate, min_rate_floor=0.1, **options)
    return limits.TokenBucketRateLimitedHttpClient(delegate, **options)


def _provider() -> Any:
    base = import_module("stkai._auth").AuthProvider
    return type("Provider", (base,), {"get_access_token": lambda self: "t" * 800})()


def _post(client: Any, url: str, data: Any) -> Any:
    for attempt in import_module("stkai._retry").Retrying(max_retries=3):
        with attempt:
            response = client.post(url, data=data)
            response.raise_for_status()
            return response  # Otherwise it continues with the next attempt.
    raise RuntimeError("no attempt succeeded")


def _overhead(count: int, data: Any) -> float:
    """Microseconds of CPU per request, with a ready answer in place of the network."""
    import requests

    from benchmarks._server import BODY

    def send(self: Any, request: Any, **options: Any) -> Any:
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response._content = BODY
        return response

    vars(requests.adapters)["HTTPAdapter"].send = send
    client = _client()
    start = time.process_time()
    for _ in range(count):
        _post(client, _URL, data)
    return (time.process_time() - start) / count * 1e6


def _loopback(url: str, threads: int, count: int, data: Any, trusted: str | None) -> float:
    """Requests per second."""
    import certifi

    from benchmarks._crowd import throughput

    client = _client()
    with tempfile.NamedTemporaryFile("w") as bundle:
        if trusted is not None:
            # With the certificates that every user has, because it reads them for each connection.
            bundle.write(certifi.contents() + Path(trusted).read_text())
            bundle.flush()
            os.environ["REQUESTS_CA_BUNDLE"] = bundle.name
        return throughput(lambda: _post(client, url, data), threads, count)


def _contention(kind: str, rate: float, threads: int, seconds: float) -> Any:
    from benchmarks._crowd import crowd_of_threads

    class Nothing:
        def post(self, *arguments: Any) -> Any:
            return type("Response", (), {"status_code": 200})

    client = _client(rate, kind, Nothing())
    client.max_wait_time = None
    client._tokens = 0.0
    return crowd_of_threads(lambda: client.post("u"), rate, threads, seconds)


def _serve() -> None:
    commands: dict[str, Callable[..., Any]] = {
        "overhead": _overhead,
        "loopback": _loopback,
        "contention": _contention,
    }
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("command")](**arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
