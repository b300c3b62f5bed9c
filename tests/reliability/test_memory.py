"""What a task that waits for its permit costs, by tracemalloc."""

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import httpx

import stkai
from stkai.transports import Turn

ROOT = Path(__file__).parents[2]

MOST = 11_300
"""Bytes per task: 10,700 as `benchmarks.memory` measures it, of which a client of httpx takes 7,000; and some more,
since versions of Python differ, and the lists and sets of a small crowd grow in larger steps."""

MOST_OF_TURN = 450
"""Bytes; one whose values are in a dict of their own takes 400 more."""

TASKS = 600


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200)


async def bytes_per_task() -> float:
    stack = stkai.build_async_transport(
        auth=stkai.StaticToken("t" * 800),
        rate_limit=stkai.TokenBucket(1, 3600, burst=1),
        transport=httpx.MockTransport(answer),
    )
    async with httpx.AsyncClient(transport=stack) as client:

        def wait() -> "asyncio.Task[Any]":
            return asyncio.create_task(client.post("https://api.example.com/v1", json={"a": "x" * 400}))

        crowd = [wait(), wait()]
        await asyncio.sleep(0)
        await crowd[0]
        gc.collect()
        tracemalloc.start()
        try:
            crowd += [wait() for _ in range(TASKS)]
            for _ in range(20):  # Each task now waits for its permit.
                await asyncio.sleep(0)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert sum(task.done() for task in crowd) == 1
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return used / TASKS


def bytes_per_turn() -> float:
    """What a turn that waits takes, after many that did not wait."""
    fast, full = stkai.TokenBucket(1e6, 1), stkai.TokenBucket(1, 3600, burst=1)
    for policy in [full, *(fast for _ in range(100))]:
        assert policy.ask(Turn(), 0.0) == 0
    turns = list[Turn]()
    tracemalloc.start()
    try:
        for _ in range(TASKS):
            turns.append(Turn())
            assert full.ask(turns[-1], 0.0) != 0
        return tracemalloc.get_traced_memory()[0] / TASKS
    finally:
        tracemalloc.stop()


def test_what_waits_for_a_permit_needs_little_memory() -> None:
    # In a process of its own: in one that has run other tests, objects share the keys of their attributes less.
    command = [sys.executable, "-m", "tests.reliability.test_memory"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    turn, task = map(float, ended.stdout.split())
    assert turn <= MOST_OF_TURN
    assert task <= MOST


if __name__ == "__main__":
    print(bytes_per_turn(), asyncio.run(bytes_per_task()))
