r"""A batch split over the workers of Ray or Dask, with one quota for all of them in Redis, and one output in the end.

    pip install "stkai[cli,redis]" "ray[default]"           # or: distributed
    python examples/batch_shards.py ray prompts.jsonl -o answers.jsonl --base-url https://api.example.com \
        --shards 8 --store redis://quota.internal --share team

Each shard is the command `stkai batch --shard I/N --resume`. If a worker dies, the engine starts its shard again
elsewhere, and `--resume` continues where it stopped. The outputs must therefore be on storage that all workers see.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RESUMABLE = (3, 130)
"""Exit codes of a shard that can be resumed: halted, interrupted."""

ATTEMPTS = 3


def run_shard(command: list[str], settings: dict[str, str], number: int, count: int, out: str) -> int:
    """Send one shard; returns its exit code, 0 or 1.

    Raises:
        RuntimeError: the shard can be resumed, so the engine has to start it again; or its usage is wrong.
    """
    shard = [*command, "-o", out, "--shard", f"{number}/{count}", "--resume"]
    done = subprocess.run(shard, env={**os.environ, **settings}, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode in (0, 1):
        return done.returncode
    again = "starts again" if done.returncode in RESUMABLE else "cannot run"
    raise RuntimeError(f"shard {number}/{count} {again}: {done.stderr[-2000:]}")


def on_ray(work: Callable[[int], int], count: int, address: str | None) -> list[int]:
    """Run all shards as tasks of Ray."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=0.5, max_retries=ATTEMPTS, retry_exceptions=True)(work)
        return list(ray.get([task.remote(number) for number in range(count)]))
    finally:
        ray.shutdown()


def on_dask(work: Callable[[int], int], count: int, address: str | None) -> list[int]:
    """Run all shards as tasks of Dask; without an address, on this machine."""
    from distributed import Client

    given = {"n_workers": 2, "threads_per_worker": 4} if address is None else {"address": address}
    with Client(**given, dashboard_address=None) as client:
        return list(client.gather(client.map(work, range(count), retries=ATTEMPTS, pure=False)))


def main() -> int:
    """Run the shards, then merge their outputs; the exit code is that of the merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=["ray", "dask"])
    parser.add_argument("input")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--share", default="batch", help="the name of the quota")
    parser.add_argument(
        "--store", help="where the quota is, such as redis://host; by default, each shard has its own"
    )
    parser.add_argument("--address", help="of the cluster; by default, this machine")
    options, more = parser.parse_known_args()

    source, out = Path(options.input).resolve(), Path(options.out).resolve()
    command = [sys.executable, "-m", "stkai", "batch", str(source), "--base-url", options.base_url, *more]
    settings = {"STKAI_RATE_LIMIT_ENABLED": "true"}
    if options.store is not None:
        settings |= {"STKAI_RATE_LIMIT_SHARE": options.share, "STKAI_RATE_LIMIT_STORE": options.store}
    outs = [str(out.with_name(f"{out.stem}-{number}.jsonl")) for number in range(options.shards)]

    def work(number: int) -> int:
        return run_shard(command, settings, number, options.shards, outs[number])

    on_engine = on_ray if options.engine == "ray" else on_dask
    on_engine(work, options.shards, options.address)
    merge = [sys.executable, "-m", "stkai", "batch", "merge", *outs, "-o", str(out)]
    return subprocess.run(merge, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
