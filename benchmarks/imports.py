"""The cost of `import stkai`, and of the first use: `python -m benchmarks.imports`."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from benchmarks._harness import Table, interleave, ratios, run, show, versions

BASE = "import httpx"
_SUBJECTS = {
    BASE: "import httpx",
    "import stkai": "import stkai",
    "import stkai; its settings (pydantic)": "import stkai; stkai.STKAI.config",
    "import stkai; a client with the standard stack": (
        "import stkai; stkai.build_client(rate_limit='adaptive',"
        " auth=stkai.ClientCredentialsAuthProvider('id', 'secret', 'https://id.example.com'))"
    ),
    "import httpx; httpx.Client()": "import httpx; httpx.Client()",
}
_PROGRAM = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def measure(quick: bool) -> Sequence[Table]:
    """CPU time of the first import, in a new interpreter each time."""
    with tempfile.TemporaryDirectory() as cache:
        # Use bytecode for all modules, whatever the environment says; the warm-up compiles it.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        runs = {name: _importing(code, environment) for name, code in _SUBJECTS.items()}
        samples = interleave(runs, 5 if quick else 31)
    relative = ratios(samples, BASE)
    rows = [
        [name, f"{statistics.median(samples[name]) * 1e3:.0f} ms", show(relative[name])] for name in samples
    ]
    note = f"With bytecode already compiled. {versions('httpx', 'pydantic', 'tenacity')}."
    return [Table("imports", "CPU time in a new interpreter", ["", "time", "ratio"], rows, [note])]


def _importing(code: str, environment: dict[str, str]) -> Callable[[], float]:
    """Seconds of CPU, without the start of the interpreter."""

    def once() -> float:
        command = [sys.executable, "-c", _PROGRAM.format(code)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout)

    return once


if __name__ == "__main__":
    run(measure)
