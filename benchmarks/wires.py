"""The wires of asyncio clients, and the SDK of OpenAI over them: `python -m benchmarks.wires`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

import stkai
from benchmarks import _subjects as subjects
from benchmarks._crowd import async_throughput
from benchmarks._harness import Table, counted, interleave, ratios, run, show, versions
from benchmarks._server import serving
from benchmarks.concurrency import configure

AT_ONCE = (1, 8, 32)
LIMITS = (200, 200)
BARE, DEFAULT, AIOHTTP = "httpx", "default", "aiohttp"

Figures = tuple[float, float]
"""Requests per second, and seconds of CPU per request."""

Send = Callable[[], Awaitable[object]]


def measure(quick: bool) -> Sequence[Table]:
    """Throughput and CPU time per request on loopback, by the wire."""
    rounds = 3 if quick else 9
    with serving() as url:
        clients = [[counted(number, "task"), *_cells(_clients(url, number), rounds)] for number in AT_ONCE]
        sdk = [[counted(number, "task"), *_cells(_openai(url, number), rounds)] for number in AT_ONCE[::2]]
    columns = ["in flight", "throughput, default wire", "aiohttp", "CPU per request, default wire", "aiohttp"]
    return [
        Table(
            "wires",
            "stkai.AsyncHttpClient over both wires, ratio to bare httpx",
            columns,
            clients,
            [f"On loopback, 200 connections, without layers. {versions('httpx', 'aiohttp')}."],
        ),
        Table(
            "openai",
            "openai.AsyncOpenAI over stkai, ratio to its own client",
            columns,
            sdk,
            [f"On loopback; over stkai with quotas and retry. {versions('openai', 'httpx', 'aiohttp')}."],
        ),
    ]


def _cells(runs: dict[str, Callable[[], Figures]], rounds: int) -> list[str]:
    samples = interleave(runs, rounds)
    cells = []
    for each in (0, 1):
        relative = ratios({name: [found[each] for found in values] for name, values in samples.items()}, BARE)
        cells += [show(relative[DEFAULT]), show(relative[AIOHTTP])]
    return cells


async def _figures(send: Send, at_once: int) -> Figures:
    count = max(300, 8 * at_once)
    start = time.process_time()
    rate = await async_throughput(send, at_once, count)
    return rate, (time.process_time() - start) / (count + 2 * at_once)


def _clients(url: str, at_once: int) -> dict[str, Callable[[], Figures]]:
    async def through_httpx() -> Figures:
        async with httpx.AsyncClient(limits=configure(LIMITS)) as client:
            return await _figures(lambda: client.post(url, json=subjects.DATA), at_once)

    async def through_ours(transport: Any) -> Figures:
        configure(LIMITS)
        options: Any = {"auth": None, "rate_limit": None, "retry": None, "transport": transport}
        async with stkai.build_async_client(**options) as client:
            return await _figures(lambda: client.post(url, data=subjects.DATA), at_once)

    return {
        BARE: lambda: asyncio.run(through_httpx()),
        DEFAULT: lambda: asyncio.run(through_ours(None)),
        AIOHTTP: lambda: asyncio.run(through_ours(stkai.wires.aiohttp())),
    }


def _openai(url: str, at_once: int) -> dict[str, Callable[[], Figures]]:
    import httpx2
    import openai

    messages: Any = [{"role": "user", "content": subjects.DATA["input_data"]}]

    async def through(client: Any) -> Figures:
        async with client:
            return await _figures(
                lambda: client.chat.completions.create(model="gpt-5", messages=messages), at_once
            )

    def over(transport: Any) -> Any:
        configure(LIMITS)
        limit = stkai.TokenBucket(1e9, 60, max_cost=1e12, cost=stkai.costs.llm_tokens())
        stack = stkai.build_async_transport(auth=None, rate_limit=limit, transport=transport)
        http_client = httpx2.AsyncClient(transport=stack)
        return openai.AsyncOpenAI(api_key="k", base_url=url, http_client=http_client, max_retries=0)

    def own() -> Any:
        most, kept = LIMITS
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=kept)
        http_client = openai.DefaultAsyncHttpxClient(limits=limits)
        return openai.AsyncOpenAI(api_key="k", base_url=url, http_client=http_client)

    return {
        BARE: lambda: asyncio.run(through(own())),
        DEFAULT: lambda: asyncio.run(through(over(None))),
        AIOHTTP: lambda: asyncio.run(through(over(stkai.wires.aiohttp()))),
    }


if __name__ == "__main__":
    run(measure)
