"""`stkai batch` against the scripts that people write: `python -m benchmarks.batch`.

Lines per second, memory and resuming, on a server at loopback in a process of its own. The peers:

- a script of 35 lines, as people write it: httpx, a semaphore, and `gather` over all lines of the file;
- OpenAI's cookbook script, `api_request_parallel_processor.py`, if `--cookbook` says where it is. Its tokenizer is
  replaced by one that counts words, which is faster.

`--million` also sends a million lines, which takes some minutes, and resumes the finished job.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._harness import Table, interleave, ratios, show, update, versions
from benchmarks._server import serving
from stkai.testing import QuotaServer

_IMAGES = Path(__file__).parent.parent / "docs" / "images"
PICTURE = _IMAGES / "batch"
PROGRESS = _IMAGES / "batch-progress.svg"

SCRIPTS = "a script of 35 lines"

SCRIPT = """
import asyncio, json, sys
import httpx

source, target, url = sys.argv[1:]

async def main():
    gate = asyncio.Semaphore(32)
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=32)) as client:
        async def send(line):
            async with gate:
                request = json.loads(line)
                try:
                    response = await client.post(url + request["url"], json=request["body"])
                    return {"custom_id": request["custom_id"], "body": response.json()}
                except httpx.HTTPError as error:
                    return {"custom_id": request["custom_id"], "error": str(error)}
        with open(source) as lines:
            results = await asyncio.gather(*[send(line) for line in lines])
    with open(target, "w") as out:
        for result in results:
            out.write(json.dumps(result) + "\\n")

asyncio.run(main())
"""

TOKENIZER = """
class get_encoding:
    def __init__(self, name): pass
    def encode(self, text): return text.split()
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One process: how long it took, what it used, and how it ended."""

    lines: int
    seconds: float
    processor: float
    memory: int

    @property
    def rate(self) -> float:
        return self.lines / self.seconds


def timed(lines: int, *command: str, **variables: str) -> Run:
    """Run a command to its end; the memory is its peak, in bytes."""
    # Without bytecode, each process would compile stkai first, but not the installed packages.
    dropped = ("STKAI_", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # The scripts have no limiter; a batch would be adaptive.
    environment |= {"STKAI_RATE_LIMIT_ENABLED": "true", "STKAI_RATE_LIMIT_MAX_REQUESTS": "10000000"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env={**environment, **variables}, stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(
                f"{' '.join(command)} ended with {process.returncode}: {said.read().decode()[-2000:]}"
            )
    return Run(lines, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def batch(source: Path, out: Path, url: str, *options: str) -> list[str]:
    """The command."""
    given = ["--base-url", url, "--no-auth", "--quiet", *options]
    return [sys.executable, "-m", "stkai", "batch", str(source), "-o", str(out), *given]


def write(path: Path, count: int) -> Path:
    """An input of so many lines of 180 bytes each."""
    with path.open("w") as file:
        for number in range(count):
            body = {"model": "m", "messages": [{"role": "user", "content": f"Say something about {number}."}]}
            line = {
                "custom_id": f"id-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    return path


class Bench:
    """All runs, in a folder of their own."""

    def __init__(self, folder: Path, url: str, cookbook: Path | None, *, count: int, rounds: int) -> None:
        self.folder, self.url, self.cookbook, self.count, self.rounds = folder, url, cookbook, count, rounds
        self.source = write(folder / "in.jsonl", count)
        self._number = 0

    def run(self, *options: str, source: Path | None = None, count: int | None = None) -> Run:
        """A job of its own."""
        self._number += 1
        out = self.folder / f"out-{self._number}"
        return timed(count or self.count, *batch(source or self.source, out, self.url, *options))

    def script(self) -> Run:
        """The script that people usually write."""
        script = self.folder / "script.py"
        script.write_text(SCRIPT)
        out = self.folder / "script.jsonl"
        return timed(self.count, sys.executable, str(script), str(self.source), str(out), self.url)

    def of_cookbook(self, path: Path) -> Run:
        """OpenAI's script, on the same bodies; its own limits are set too high to matter."""
        (self.folder / "tiktoken.py").write_text(TOKENIZER)
        script = self.folder / "cookbook.py"
        script.write_text(path.read_text().replace("^https://", "^https?://"))  # The script insists on TLS.
        source, out = self.folder / "bodies.jsonl", self.folder / "cookbook.jsonl"
        out.unlink(missing_ok=True)
        with self.source.open() as lines:
            source.write_text("".join(json.dumps(json.loads(line)["body"]) + "\n" for line in lines))
        options = {
            "requests_filepath": source,
            "save_filepath": out,
            "request_url": f"{self.url}/v1/chat/completions",
            "api_key": "none",
            "max_requests_per_minute": 10**9,
            "max_tokens_per_minute": 10**12,
            "logging_level": 40,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return timed(self.count, sys.executable, str(script), *arguments, PYTHONPATH=str(self.folder))

    def rates(self) -> dict[str, list[Run]]:
        """Each subject in turn, round after round."""
        subjects = {
            "8 in flight": lambda: self.run("--max-in-flight", "8"),
            "32 in flight": lambda: self.run("--max-in-flight", "32"),
            "100 in flight": lambda: self.run("--max-in-flight", "100"),
            "32 in flight, --sync always": lambda: self.run("--sync", "always"),
            SCRIPTS: self.script,
        }
        cookbook = self.cookbook
        if cookbook is not None:
            subjects["OpenAI's cookbook script"] = lambda: self.of_cookbook(cookbook)
        return interleave(subjects, self.rounds)


def table_of(found: dict[str, list[Run]], count: int) -> Table:
    """Medians, by subject; and the processor time relative to the script's of the same round."""
    relative = ratios({name: [run.processor for run in runs] for name, runs in found.items()}, SCRIPTS)
    rows = [
        [
            name,
            f"{statistics.median(run.rate for run in runs):,.0f}",
            f"{statistics.median(run.processor / run.lines for run in runs) * 1e6:,.0f} µs",
            show(relative[name]),
            f"{max(run.memory for run in runs) / 2**20:.0f} MiB",
        ]
        for name, runs in found.items()
    ]
    note = f"{count:,} lines on loopback, start-up included. {versions('httpx', 'aiohttp')}."
    columns = ["", "lines/s", "processor per line", "relative", "memory"]
    return Table("batch", "Lines per second", columns, rows, [note])


def million(bench: Bench, count: int) -> Table:
    """One long job: how long it takes, whether memory grows, and how long a resume of the finished job takes."""
    source = write(bench.folder / "million.jsonl", count)
    small = bench.run()
    out = bench.folder / "long"
    whole = timed(count, *batch(source, out, bench.url))
    again = timed(count, *batch(source, out, bench.url, "--resume"))
    rows = [
        [
            f"{count:,} lines",
            f"{whole.seconds:,.0f} s",
            f"{whole.rate:,.0f}",
            f"{whole.memory / 2**20:.1f} MiB",
        ],
        [
            f"{bench.count:,} lines, for comparison",
            f"{small.seconds:,.1f} s",
            f"{small.rate:,.0f}",
            f"{small.memory / 2**20:.1f} MiB",
        ],
        ["the finished job resumed", f"{again.seconds:,.1f} s", "", f"{again.memory / 2**20:.1f} MiB"],
    ]
    return Table("batch-million", "A long job", ["", "time", "lines/s", "memory"], rows, [])


def several(folder: Path, processes: int, lines: int, quota: int) -> Table:
    """Batches side by side on one quota, which they share through a file: how long all of them take."""
    source = write(folder / "shared.jsonl", lines)
    rows = []
    for strategy in ("token_bucket", "adaptive"):
        with QuotaServer(quota, 1.0) as server:
            settings = {
                **server.env(),
                "STKAI_RATE_LIMIT_ENABLED": "true",
                "STKAI_RATE_LIMIT_STRATEGY": strategy,
                "STKAI_RATE_LIMIT_MAX_REQUESTS": str(quota),
                "STKAI_RATE_LIMIT_TIME_WINDOW": "1",
                "STKAI_RATE_LIMIT_SHARE": f"batch-{strategy}",
                "STKAI_RATE_LIMIT_STORE": f"file://{folder}/quota",
            }
            given = ["--base-url", server.url, "--quiet"]
            running = [
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "stkai",
                        "batch",
                        str(source),
                        "-o",
                        f"{folder}/{strategy}-{n}",
                        *given,
                    ],
                    env={**os.environ, **settings},
                )
                for n in range(processes)
            ]
            codes = [process.wait() for process in running]
            chats = [seen for seen in server.requests if seen.path.startswith("/v1")]
        if any(codes):
            raise SystemExit(f"{strategy}: the batches ended with {codes}")
        times = sorted(seen.time for seen in chats if seen.status == 200)
        # The first window's quota needs no wait.
        took, ideal = times[-1] - times[0], (processes * lines - quota) / quota
        refused = sum(seen.status == 429 for seen in chats)
        rows.append([strategy, f"{took:.1f} s", f"{ideal:.1f} s", f"{took / ideal:.2f}", str(refused)])
    title = f"{processes} batches of {lines} lines share {quota} requests per second"
    return Table("batch-several", title, ["", "time", "ideal", "ratio", "refused"], rows, [])


def draw(found: dict[str, list[Run]], path: Path) -> None:
    """Lines per second, as bars."""
    from benchmarks._plots import new_figure, save

    figure, (panel,) = new_figure(1, 1, width=8.0, height=0.5 * len(found) + 1.0)
    names = list(reversed(found))
    rates = [statistics.median(run.rate for run in found[name]) for name in names]
    colours = ["#228833" if "in flight" in name else "#8fa3b5" for name in names]
    bars = panel.barh(names, rates, color=colours)
    panel.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("lines per second; green: stkai batch")
    save(figure, path)


def record(path: Path) -> None:
    """Draw the progress bar as an SVG."""
    from rich.console import Console

    from stkai._batch.progress import Bar, Progress

    console = Console(record=True, force_terminal=True, width=112, file=io.StringIO())
    command = "stkai batch prompts.jsonl -o answers.jsonl --price input=0.15,output=0.6"
    console.print(f"[bold]$[/] {command}", highlight=False)
    bar = Bar(Console(force_terminal=True, file=io.StringIO()))
    for second in range(3):
        finished = 411_520 + 406 * second
        bar.show(second * 0.5, Progress(finished, 1_000_000, 3, 9, "12.4M tokens $1.86"))
    console.print(bar._bars.get_renderable())
    bar.close()
    console.save_svg(str(path), title="stkai batch")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only a few short runs")
    parser.add_argument("--rounds", type=int, default=5, help="number of runs per subject")
    parser.add_argument(
        "--cookbook", type=Path, metavar="FILE", help="OpenAI's api_request_parallel_processor.py"
    )
    parser.add_argument("--million", action="store_true", help="also send a million lines")
    parser.add_argument("--several", action="store_true", help="also run several batches on one quota")
    parser.add_argument("--update", action="store_true", help="also put tables and picture into the docs")
    options = parser.parse_args(arguments)
    count, rounds = (1_000, 1) if options.quick else (10_000, options.rounds)
    with tempfile.TemporaryDirectory() as folder, serving() as url:
        bench = Bench(Path(folder), url, options.cookbook, count=count, rounds=rounds)
        found = bench.rates()
        tables = [table_of(found, count)]
        if options.million:
            tables.append(million(bench, 20_000 if options.quick else 1_000_000))
        if options.several:
            tables.append(several(Path(folder), 4, 100 if options.quick else 300, 50))
    for table in tables:
        table.show()
    if options.update:
        update(tables)
        draw(found, PICTURE)
        record(PROGRESS)


if __name__ == "__main__":
    main()
