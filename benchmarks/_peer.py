"""Other libraries that limit or retry, each in a process of its own, from an environment of its own.

An environment is made on first use, below the system's temporary directory. A library that cannot be installed is left
out. Run as a program, this module is such a process: it reads one JSON command per line, and answers in JSON.
"""

import asyncio
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

NEEDS: dict[str, tuple[str, ...]] = {
    "stkai": (),  # It is the one that runs the benchmark.
    "token-throttle": ("token-throttle==14.0.0", "redis==8.1.0"),
    "throttled-py": ("throttled-py==3.5.0", "redis==8.1.0"),
    "pyrate-limiter": ("pyrate-limiter==4.5.1", "redis==8.1.0"),
    "aiolimiter": ("aiolimiter==1.3.0",),
    "httpx-retries": ("httpx-retries==0.6.0", "httpx==0.28.1"),
    "clientwright": ("clientwright==0.5.1", "httpx==0.28.1"),
    "headgate": ("headgate==0.7.0", "hishel<2"),  # It cannot be imported with hishel 2.
}
PYTHONS = {"headgate": "python3.14"}
"""For libraries that need another Python than the one that runs the benchmark."""

Permit = Callable[[int], AbstractAsyncContextManager[Any]]


class Peer:
    """The process of a library, and a way to send it commands."""

    def __init__(self, library: str, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks._peer", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def send(self, command: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What the last command returned.

        Raises:
            RuntimeError: it failed.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process died")
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        self.send(command, **arguments)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            """Closes its pipes."""


def available(libraries: Sequence[str]) -> dict[str, str]:
    """The Python that has each of these libraries; those that cannot be had are left out, with a printed word."""
    found = {library: _environment(library) for library in libraries}
    return {library: python for library, python in found.items() if python is not None}


def _environment(library: str) -> str | None:
    if not NEEDS[library]:
        return sys.executable
    base = shutil.which(PYTHONS.get(library, sys.executable))
    if base is None:
        print(f"{library} needs {PYTHONS[library]}: left out")
        return None
    name = f"stkai-benchmarks-{NEEDS[library][0]}-{sys.version_info[0]}.{sys.version_info[1]}"
    folder = Path(tempfile.gettempdir()) / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        for command in (
            [base, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *NEEDS[library]],
        ):
            if subprocess.run(command, check=False).returncode:
                print(f"{NEEDS[library][0]} could not be installed: left out")
                return None
        ready.touch()
    return str(python)


@asynccontextmanager
async def _after(waiting: Awaitable[Any]) -> AsyncIterator[None]:
    await waiting
    yield


async def _limit_stkai(limit: int, seconds: int, store: str, units: bool) -> Permit:
    import stkai

    if units:
        bucket = stkai.TokenBucket(None, seconds, max_cost=limit)
        return lambda cost: bucket.permit(cost=cost)
    bucket = stkai.TokenBucket(limit, seconds, share="peers" if store else None, store=store or None)
    return lambda _: bucket.permit()


async def _limit_token_throttle(limit: int, seconds: int, store: str, units: bool) -> Permit:
    lib = import_module("token_throttle")
    backend = lib.MemoryBackendBuilder()
    if store:
        backend = lib.RedisBackendBuilder(import_module("redis.asyncio").from_url(store), key_prefix="peers")
    quota = lib.Quota(metric="units", limit=limit, per_seconds=seconds)
    limiter = lib.RateLimiter(lib.PerModelConfig(quotas=lib.UsageQuotas([quota])), backend=backend)

    @asynccontextmanager
    async def permit(cost: int) -> AsyncIterator[None]:
        async with limiter.reserve({"units": cost}, model="m") as reservation:
            reservation.set_actual_usage({"units": cost})
            yield

    return permit


async def _limit_throttled_py(limit: int, seconds: int, store: str, units: bool) -> Permit:
    from datetime import timedelta

    lib = import_module("throttled.asyncio")
    quota = lib.rate_limiter.per_duration(timedelta(seconds=seconds), limit)
    more = {"store": lib.RedisStore(server=store)} if store else {}
    limiter = lib.Throttled(key="peers", using="token_bucket", quota=quota, timeout=600, **more)
    return lambda cost: _after(limiter.limit(cost=cost))


async def _limit_pyrate_limiter(limit: int, seconds: int, store: str, units: bool) -> Permit:
    lib = import_module("pyrate_limiter")
    rates: Any = [lib.Rate(limit, seconds * 1000)]
    if store:
        rates = await lib.RedisBucket.init(rates, import_module("redis.asyncio").from_url(store), "peers")
    limiter = lib.Limiter(rates)
    return lambda cost: _after(limiter.try_acquire_async("peers", cost))


async def _limit_aiolimiter(limit: int, seconds: int, store: str, units: bool) -> Permit:
    limiter = import_module("aiolimiter").AsyncLimiter(limit, seconds)
    return lambda cost: _after(limiter.acquire(cost))


def _client(library: str, url: str, kind: str) -> Any:
    if library == "stkai":
        import stkai

        limiter = stkai.AimdLimiter() if kind == "adaptive" else None
        budget = stkai.RetryBudget(ratio=0.2, min_per_second=10) if kind == "budget" else None
        retry = stkai.RetryPolicy(retry_unknown=kind != "careful", budget=budget)
        return stkai.build_async_client(auth=None, rate_limit=limiter, retry=retry)
    if library == "httpx_retries":
        import httpx

        return httpx.AsyncClient(transport=import_module("httpx_retries").RetryTransport(), timeout=30)
    lib = import_module(library)
    if library == "clientwright":
        return lib.build("httpx", lib.ClientConfig(service_name="peer"))
    return lib.AsyncBaseClient(base_url=url, rate=import_module("headgate.ratelimit").UNLIMITED)


async def _grants(
    library: str, file: str, limit: int, seconds: int, store: str, callers: int, lasts: float, at: float
) -> Any:
    """Take permits, write the time of each to the file, and count the errors that reach the callers."""
    permit = await globals()[f"_limit_{library}"](limit, seconds, store, False)
    errors: Counter[str] = Counter()
    if at:
        with suppress(Exception):
            async with permit(1):
                """Imports and connections take their time."""
    await asyncio.sleep(max(0.0, at - time.time()))
    with Path(file).open("a", buffering=1, encoding="utf-8") as out:  # noqa: ASYNC230 - it is written to at once

        async def work() -> None:
            while True:
                try:
                    async with permit(1):
                        out.write(f"{time.time()}\n")
                except Exception as error:
                    errors[type(error).__name__] += 1
                    await asyncio.sleep(0.05)

        await _for_a_while([asyncio.create_task(work()) for _ in range(callers)], lasts)
    return errors


async def _crowds(library: str, limit: int, lasts: float) -> Any:
    """Crowds of 100 wait and are cancelled, again and again: permits in all, and those of four steady callers."""
    permit = await globals()[f"_limit_{library}"](limit, 1, "", False)
    taken, end = Counter[str](), time.monotonic() + lasts

    async def steady() -> None:
        while True:
            async with permit(1):
                taken["steady"] += 1

    async def one() -> None:
        async with permit(1):
            taken["crowd"] += 1

    tasks = [asyncio.create_task(steady()) for _ in range(4)]
    await asyncio.sleep(0.3)
    while time.monotonic() < end - 1.5:
        await _for_a_while([asyncio.create_task(one()) for _ in range(100)], 0.05)
    await _for_a_while(tasks, end - time.monotonic())
    return taken["steady"] + taken["crowd"], taken["steady"]


async def _place(library: str) -> Any:
    """A call of 400 units waits, and 60 of 20 units come after it: its place among those served."""
    permit = await globals()[f"_limit_{library}"](1200, 6, "", True)
    served = []

    async def call(cost: int) -> None:
        async with permit(cost):
            served.append(cost)

    await call(1200)
    tasks = [asyncio.create_task(call(400))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(call(20)) for _ in range(60)]
    await asyncio.gather(*tasks)
    return served.index(400)  # The first place, 0, is that of the call which empties the bucket.


async def _calls(
    library: str, url: str, kind: str, count: int, method: str = "GET", pause: float | None = None
) -> Any:
    """Calls, all at once or with a pause after each: their statuses or errors."""
    async with _client(library, url, kind) as client:
        method_of = getattr(client, method.lower())

        async def call(number: int) -> str:
            seen: list[Any] = []
            # headgate hands the response only to a function.
            more = {"expect": seen.append} if library == "headgate" else {}
            try:
                response = await method_of(f"{url}/{number}", **more)
            except Exception as error:
                return type(error).__name__
            return str((seen or [response])[0].status_code)

        if pause is None:
            return await asyncio.gather(*map(call, range(count)))
        answers = []
        for number in range(count):
            answers.append(await call(number))
            await asyncio.sleep(pause)
        return answers


async def _for_a_while(tasks: "list[asyncio.Task[None]]", seconds: float) -> None:
    await asyncio.sleep(max(0.0, seconds))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)


def _serve(library: str) -> None:
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        arguments = json.loads(line)
        command = globals()["_" + arguments.pop("command")]
        answer = asyncio.run(command(library.replace("-", "_"), **arguments))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
