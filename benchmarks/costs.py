"""How well limiters keep to 20,000 tokens per second, and how much of them they use: `python -m benchmarks.costs`.

Each call is estimated at 400 tokens and uses between 50 and 450. More calls wait than the limit allows at any time.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import httpx
import trio

import stkai
from benchmarks._harness import Table, run, versions
from benchmarks._model import LATENCY, LEAST, MOST, model
from benchmarks.adaptive.virtual import TrioClock, run_virtually, stream

LIMIT = 20_000.0
ESTIMATE = 400
SLICE = 0.05
"""Seconds: the window of limiters with a choice of window. A longer one lets more through in its first second."""

WORKERS = 150
BODY = {
    "model": "echo",
    "messages": [{"role": "user", "content": "Why? " * 80}],
    "max_tokens": ESTIMATE - 100,
}

Call = Callable[[], Awaitable[object]]


def measure(quick: bool) -> Sequence[Table]:
    """How well a limit in tokens per second is kept, and how much of it is used."""
    seconds = 8 if quick else 30
    rows = []
    with model() as url:
        for name, make in SUBJECTS.items():
            used, failed = asyncio.run(_load(url, make, seconds))
            rows.append(_row(name, [used[:seconds]], failed))
    for window in (SLICE, 1.0):
        runs = [simulate(window, seed, seconds) for seed in range(1, 2 if quick else 6)]
        rows.append(_row(f"**stkai**, a window of {window:g} s, in virtual time", runs, 0))
    taking = versions("litellm", "aiolimiter", "httpx")
    note = (
        f"{seconds} s, {WORKERS} calls in flight or waiting at any time. What a call uses is not known before it ends:"
        f" with 16 calls under way, that alone moves a second by 3 % either way. {taking}."
    )
    columns = ["", "first second", "mean", "least and most", "seconds within 0.9-1.05", "refusals"]
    return [Table("costs", "Tokens used per second, as a share of the limit", columns, rows, [note])]


def _row(name: str, runs: Sequence[Sequence[float]], failed: int) -> list[str]:
    shares = [tokens / LIMIT for used in runs for tokens in used[1:]] or [0.0]
    kept = sum(0.9 <= share <= 1.05 for share in shares) / len(shares)
    first = statistics.mean(used[0] / LIMIT if used else 0.0 for used in runs)
    return [
        name,
        f"{first:.2f}",
        f"{statistics.mean(shares):.2f}",
        f"{min(shares):.2f} - {max(shares):.2f}",
        f"{kept:.0%}",
        f"{failed:,}",
    ]


def simulate(window: float, seed: int, seconds: int) -> list[float]:
    """What is used in each second, on a machine that has nothing else to do."""
    chance, latency = stream("used", seed), stream("latency", seed)
    used = [0.0] * seconds

    async def answer(request: httpx.Request) -> httpx.Response:
        tokens = chance.randint(LEAST, MOST)
        used[int(trio.current_time())] += tokens
        await trio.sleep(LATENCY * latency.uniform(0.8, 1.2))
        return httpx.Response(200, json={"usage": {"total_tokens": tokens}})

    async def main() -> None:
        limiter = stkai.TokenBucket(1e6 * window, window, max_cost=LIMIT * window)
        client = stkai.build_async_client(
            auth=None,
            rate_limit=limiter,
            retry=None,
            transport=httpx.MockTransport(answer),
            clock=TrioClock(),
            listener=[],
            **stkai.costs.llm_tokens(),
        )

        async def work() -> None:
            while True:
                await client.post("https://api.example.com", data=BODY)

        # Just short of it: a call that begins in the last instant belongs to the next second.
        with trio.move_on_at(seconds - 1e-9):
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(work)

    run_virtually(main, seed)
    return used


async def _load(
    url: str, make: Callable[[AsyncExitStack, str], Awaitable[Call]], seconds: float
) -> tuple[list[float], int]:
    """What the model used in each second, and how many calls failed."""
    failed = 0

    async def work(call: Call) -> None:
        nonlocal failed
        while True:
            try:
                await call()
            except Exception:  # any error of the library
                failed += 1
                await asyncio.sleep(0.1)

    async with AsyncExitStack() as stack, httpx.AsyncClient() as admin:
        await admin.delete(f"{url}/used")
        call = await make(stack, url)
        tasks = [asyncio.create_task(work(call)) for _ in range(WORKERS)]
        await asyncio.sleep(seconds)
        used: list[float] = (await admin.get(f"{url}/used")).json()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return used, failed


def _stkai(window: float, *, settles: bool = True) -> Callable[[AsyncExitStack, str], Awaitable[Call]]:
    async def make(stack: AsyncExitStack, url: str) -> Call:
        limiter = stkai.TokenBucket(1e6 * window, window, max_cost=LIMIT * window)
        costs = stkai.costs.llm_tokens()
        client = stkai.build_async_client(
            auth=None,
            rate_limit=limiter,
            cost=costs["cost"],
            settle=costs["settle"] if settles else None,
        )
        await stack.enter_async_context(client)
        return lambda: client.post(f"{url}/v1/chat/completions", data=BODY)

    return make


async def _aiolimiter(stack: AsyncExitStack, url: str) -> Call:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(LIMIT * SLICE, SLICE)
    limits = httpx.Limits(max_connections=WORKERS)
    client = await stack.enter_async_context(httpx.AsyncClient(limits=limits))

    async def call() -> None:
        await limiter.acquire(ESTIMATE)
        await client.post(f"{url}/v1/chat/completions", json=BODY)

    return call


async def _litellm(stack: AsyncExitStack, url: str) -> Call:
    import litellm

    litellm.suppress_debug_info = True
    parameters = {
        "model": "openai/echo",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "tpm": int(60 * LIMIT),
        "rpm": 1_000_000,
    }
    router = litellm.Router(
        model_list=[{"model_name": "echo", "litellm_params": parameters}],
        routing_strategy="usage-based-routing-v2",
        num_retries=0,
        cooldown_time=0,
    )
    return lambda: router.acompletion(**BODY)


SUBJECTS: dict[str, Callable[[AsyncExitStack, str], Awaitable[Call]]] = {
    f"**stkai**, a window of {SLICE:g} s": _stkai(SLICE),
    "**stkai**, a window of 1 s": _stkai(1.0),
    "**stkai**, estimates that are never corrected": _stkai(SLICE, settles=False),
    "aiolimiter, estimates": _aiolimiter,
    "LiteLLM's router, tokens per minute": _litellm,
}


if __name__ == "__main__":
    run(measure)
