"""The example runs: shards on Dask and on Ray, with one quota in Redis, merged in the order of the lines."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stkai.testing import QuotaServer

from ..batch.job import ROOT, Job, entries
from ..support.redis_servers import KINDS, Server, installed

ENGINES = [engine for engine, package in (("dask", "distributed"), ("ray", "ray")) if find_spec(package)]
STORE = next((kind for kind in KINDS if installed(kind)), "")
LINES = 30


@pytest.mark.real_time
@pytest.mark.skipif(not STORE, reason="needs redis-server or valkey-server")
@pytest.mark.parametrize("engine", ENGINES)
def test_shards_share_a_quota_and_their_outputs_are_merged(engine: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [
        {"custom_id": number, "url": "/v1/chat/completions", "body": {"messages": [{"content": str(number)}]}}
        for number in range(LINES)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (
        QuotaServer(max_requests=LINES, time_window=1.0) as quota,
        Server(STORE, tmp_path / "redis") as store,
    ):
        settings = {
            **quota.env(),
            "STKAI_RATE_LIMIT_MAX_REQUESTS": str(LINES),
            "STKAI_RATE_LIMIT_TIME_WINDOW": "1",
            "RAY_AUTH_MODE": "disabled",
            "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver",  # Starts faster.
        }
        done = subprocess.run(
            [
                *(sys.executable, str(ROOT / "examples" / "batch_shards.py"), engine, str(source)),
                *("-o", str(tmp_path / "out.jsonl"), "--base-url", quota.url, "--shards", "2"),
                *("--share", "team", "--store", store.url),
            ],
            check=False,
            cwd=tmp_path,
            env=Job(tmp_path, quota.url).environment(**settings),
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert quota.count(path="/v1/chat", status=200) == LINES
    merged = entries(tmp_path / "out.jsonl")
    assert list(merged) == list(range(1, LINES + 1))
    assert [entry["custom_id"] for entry in merged.values()] == list(range(LINES))
