"""The pages on batches are true: files are written, commands run and print what the page shows, Python runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from stkai.testing import QuotaServer

from ..support.forked import Forked
from .job import HANGS, ROOT, Job, entries

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


def test_the_scripts_for_schedulers_run_their_shards_and_merge_them(tmp_path: Path) -> None:
    with QuotaServer() as server:
        job = Job(tmp_path, server.url)
        environment = command(tmp_path, job.environment(**server.env()))
        page = {block.title: block.text for block in blocks("batch-clusters.md")}
        slurm = page["shards.sbatch"]
        pod = " ".join(re.findall(r"^ {14}(.*)$", page["job.yaml"], re.MULTILINE)).replace("/8 ", "/2 ")
        for scheduler, script, index in (
            ("slurm", slurm, "SLURM_ARRAY_TASK"),
            ("pods", pod, "JOB_COMPLETION"),
        ):
            folder = tmp_path / scheduler
            folder.mkdir()
            lines = [f'{{"url": "/echo", "body": {{"n": {number}}}}}\n' for number in range(5)]
            (folder / "prompts.jsonl").write_text("".join([*lines, "oops\n"]))
            # Without a store: sharing a quota has tests of its own.
            text = re.sub("^export .*$", "", script, flags=re.MULTILINE).replace(
                "https://api.example.com", server.url
            )
            for number in range(2):
                names = {f"{index}_ID": str(number), f"{index}_COUNT": "2", f"{index}_INDEX": str(number)}
                done = subprocess.run(
                    ["/bin/bash", "-c", text],
                    check=False,
                    cwd=folder,
                    env={**environment, **names},
                    capture_output=True,
                    timeout=HANGS,
                )
                # Line 6 is invalid; its shard is done all the same.
                assert done.returncode == (1 if number and scheduler == "slurm" else 0), done.stderr
            merged = subprocess.run(
                ["/bin/bash", "-c", page["merge.sbatch"]],
                check=False,
                cwd=folder,
                env=environment,
                timeout=HANGS,
            )
            assert merged.returncode == 1
            assert list(entries(folder / "answers.jsonl")) == [1, 2, 3, 4, 5]
            assert list(entries(folder / "answers.failed.jsonl")) == [6]
