"""The pages on batches are true: files are written, commands run and print what the page shows, Python runs."""

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from stkai.testing import QuotaServer

from ..support.forked import Forked
from .job import HANGS, ROOT, Job, echo, entries, server, until

pytestmark = pytest.mark.real_time

_BLOCK = re.compile(
    r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_INSTALLS = "$ pip install"


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    title: str | None
    text: str


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer((ROOT / "docs" / page).read_text()):
        yield Block(found["kind"], found["title"], found["text"])


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, with the lines that it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *printed = part.splitlines()
        yield command, printed


def shows(printed: list[str], output: str) -> bool:
    """Whether these lines are in the output, in this order; `...` stands for anything."""
    pattern = r".*?\n".join(r".*?".join(map(re.escape, line.split("..."))) for line in printed)
    return re.search(pattern, output + "\n", re.DOTALL) is not None


def command(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment with this interpreter's `stkai` command in its path."""
    (folder / "stkai").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stkai "$@"\n')
    (folder / "stkai").chmod(0o755)
    return {**environment, "PATH": f"{folder}:{environment['PATH']}"}


def run(line: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code and the output of a command; one that needs no shell runs in this process."""
    if line.startswith("stkai ") and not set(line) & set("|<>&'"):
        here = Job(folder, "").run_here(["", "", *line.split()], environment)
        return here.returncode, here.stdout + here.stderr
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        check=False,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGS,
    )
    return done.returncode, done.stdout


def test_the_page_runs_from_its_first_block_to_its_last(tmp_path: Path) -> None:
    with QuotaServer() as server:
        folder = tmp_path / "work"
        folder.mkdir()
        environment = command(tmp_path, Job(folder, server.url).environment(**server.env()))
        ran = 0
        for block in blocks("batch.md"):
            text = block.text.replace("https://api.example.com", server.url)
            if block.title is not None:
                (folder / block.title).write_text(text)
            elif block.kind == "python" and "answers.jsonl" in text:  # The others run in tests/test_docs.py.
                with Forked([sys.executable, "-c", text], cwd=folder, env=environment) as process:
                    assert process.wait(HANGS) == 0
            elif block.kind == "console" and not text.startswith(_INSTALLS):
                for line, printed in commands(text):
                    code, output = run(line, folder, environment)
                    assert code == 0, (line, output)
                    assert shows(printed, output), (line, printed, output)
                    ran += 1
        assert ran > 10


def pod_script(url: str) -> str:
    """What a pod of the page runs, as one of two shards."""
    page = {block.title: block.text for block in blocks("batch-clusters.md")}
    text = " ".join(re.findall(r"^ {14}(.*)$", page["job.yaml"], re.MULTILINE))
    return text.replace("/8 ", "/2 ").replace("https://api.example.com", url)


def test_a_pod_that_is_evicted_finishes_the_requests_in_flight(tmp_path: Path) -> None:
    is_over = threading.Event()

    async def answer(request: web.BaseRequest, body: Any) -> web.StreamResponse:
        await asyncio.get_running_loop().run_in_executor(None, is_over.wait, HANGS)
        return await echo(request, body)

    with server(answer) as running:
        job = Job(tmp_path, running.url)
        job.write(4)
        job.input.rename(tmp_path / "prompts.jsonl")
        names = {"STKAI_AUTH_TOKEN": "any", "JOB_COMPLETION_INDEX": "0"}
        environment, log = command(tmp_path, job.environment(**names)), tmp_path / "log"
        with log.open("wb") as stderr:
            shell = ["/bin/sh", "-c", pod_script(running.url)]
            pod = subprocess.Popen(shell, cwd=tmp_path, env=environment, stderr=stderr)
        until(lambda: len(running.seen) == 2, pod)
        pod.terminate()
        try:
            until(lambda: b"waiting for the requests in flight" in log.read_bytes(), pod)
        finally:
            is_over.set()
        assert pod.wait(HANGS) == 130
    assert sorted(entries(tmp_path / "part-0.jsonl")) == [1, 3]


def test_the_scripts_for_schedulers_run_their_shards_and_merge_them(tmp_path: Path) -> None:
    with QuotaServer() as server:
        environment = command(tmp_path, Job(tmp_path, server.url).environment(**server.env()))
        page = {block.title: block.text for block in blocks("batch-clusters.md")}
        folder = tmp_path / "work"
        folder.mkdir()
        lines = [f'{{"url": "/echo", "body": {{"n": {number}}}}}\n' for number in range(5)]
        (folder / "prompts.jsonl").write_text("".join([*lines, "oops\n", "oops\n"]))

        def run_script(script: str, **names: str) -> int:
            # Without a store: sharing a quota has tests of its own.
            text = re.sub("^export .*$", "", script, flags=re.MULTILINE)
            text = text.replace("https://api.example.com", server.url)
            return subprocess.run(
                ["/bin/bash", "-c", text],
                check=False,
                cwd=folder,
                env={**environment, **names},
                timeout=HANGS,
            ).returncode

        assert run_script(page["shard.sh"], SHARD="3") == 0
        assert list(entries(folder / "answers-3.jsonl")) == [4]
        # Each shard is done, with an invalid line; for a pod, that is no failure.
        assert run_script(page["shards.sbatch"], SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_TASK_COUNT="2") == 1
        assert run_script(pod_script(server.url), JOB_COMPLETION_INDEX="1") == 0
        assert run_script(page["merge.sbatch"]) == 1
        assert list(entries(folder / "answers.jsonl")) == [1, 2, 3, 4, 5]
        assert list(entries(folder / "answers.failed.jsonl")) == [6, 7]
