"""Many threads or tasks at once: the throughput, and how fairly and cheaply a limiter makes them wait.

Imports nothing of stkai, since the process of stkai 0.4.18 uses it too.
"""

import asyncio
import itertools
import math
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

_Arguments = TypeVarTuple("_Arguments")


def throughput(send: Callable[[], object], threads: int, count: int) -> float:
    """Calls per second by this many threads; each calls twice before the timer starts."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: send(), range(2 * threads)))
        start = time.perf_counter()
        list(pool.map(lambda _: send(), range(count)))
        return count / (time.perf_counter() - start)


async def async_throughput(send: Callable[[], Awaitable[object]], tasks: int, count: int) -> float:
    """Calls per second by this many tasks; each calls twice before the timer starts."""

    async def work(numbers: "itertools.repeat[None]") -> None:
        for _ in numbers:
            await send()

    async def all_of(calls: int) -> None:
        numbers = itertools.repeat(None, calls)
        await asyncio.gather(*(work(numbers) for _ in range(tasks)))

    await all_of(2 * tasks)
    start = time.perf_counter()
    await all_of(count)
    return count / (time.perf_counter() - start)


class _Watch:
    """Records when each request arrived and left."""

    def __init__(self) -> None:
        self.sleeps = 0
        self._numbers = itertools.count()
        self._waits: list[tuple[int, float, float]] = []

    def arrive(self) -> tuple[int, float]:
        return next(self._numbers), time.perf_counter()

    def leave(self, number: int, arrived: float) -> None:
        self._waits.append((number, arrived, time.perf_counter()))

    def report(self, rate: float, waiters: int, cpu: float) -> dict[str, float]:
        """Counts per permit; the rate as a share of `rate`, the longest wait as a multiple of the fair one."""
        left = [instant for _, _, instant in self._waits]
        permits = len(left)
        longest = max(instant - arrived for _, arrived, instant in self._waits)
        return {
            "rate": (permits - 1) / (left[-1] - left[0]) / rate,
            "sleeps": self.sleeps / permits,
            "overtaken": _overtaken([number for number, _, _ in self._waits]) / permits,
            "longest": longest / (waiters / rate),
            "cpu": cpu / permits * 1e6,
        }


def _overtaken(order: Sequence[int]) -> int:
    """How many left after one that had arrived later."""
    latest = itertools.accumulate(order, max)
    return sum(number < most for number, most in zip(order, latest, strict=True))


def crowd_of_threads(
    acquire: Callable[[], object], rate: float, threads: int, seconds: float
) -> dict[str, float]:
    """Let this many threads ask for one permit after another until the time is up."""
    watch = _Watch()
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        watch.sleeps += 1
        real_sleep(seconds)

    # A stack's threads sleep on something that wakes them when it is closed.
    waiting: Any = getattr(sys.modules.get("stkai._abandonable"), "AbandonableWork", None)
    real_wait: Any = None if waiting is None else waiting.wait

    def wait(self: Any, seconds: float = math.inf) -> Any:
        watch.sleeps += 1
        return real_wait(self, seconds)

    def work() -> None:
        while time.perf_counter() < end:
            number, arrived = watch.arrive()
            acquire()
            watch.leave(number, arrived)

    crowd = [threading.Thread(target=work) for _ in range(threads)]
    # Also for code that imported the function by its name.
    sleepers = [
        vars(module) for module in list(sys.modules.values()) if vars(module).get("sleep") is real_sleep
    ]
    cpu, end = time.process_time(), time.perf_counter() + seconds
    for names in sleepers:
        names["sleep"] = sleep
    if waiting is not None:
        waiting.wait = wait
    try:
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    finally:
        for names in sleepers:
            names["sleep"] = real_sleep
        if waiting is not None:
            waiting.wait = real_wait
    return watch.report(rate, threads, time.process_time() - cpu)


class _CountingLoop(asyncio.SelectorEventLoop):
    """Counts timers: every sleep is one, whatever calls it."""

    timers = 0

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Arguments]], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def crowd_of_tasks(
    prepare: Callable[[], Callable[[], Awaitable[object]]], rate: float, tasks: int
) -> dict[str, float]:
    """This many tasks arrive at once, each for one permit; `prepare` runs on the loop and returns what they await."""
    watch = _Watch()

    async def work(acquire: Callable[[], Awaitable[object]]) -> None:
        number, arrived = watch.arrive()
        await acquire()
        watch.leave(number, arrived)

    async def main() -> float:
        acquire = prepare()
        start = time.process_time()
        await asyncio.gather(*(work(acquire) for _ in range(tasks)))
        return time.process_time() - start

    with asyncio.Runner(loop_factory=_CountingLoop) as runner:
        cpu = runner.run(main())
        loop = runner.get_loop()
        watch.sleeps = loop.timers if isinstance(loop, _CountingLoop) else 0
    return watch.report(rate, tasks, cpu)


def median_of(reports: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(report[key] for report in reports)
