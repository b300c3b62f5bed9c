"""One quota for many processes: accuracy, fairness and cost: `python -m benchmarks.sharing`.

Needs `redis-server`. Everything runs on this machine. The other libraries' limiters ask again 20 ms after a refusal.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import redis
import trio
from tests.support.redis_servers import Server

import stkai
from benchmarks._harness import Table, run, versions
from benchmarks._members import Group, Report, run_group
from stkai.stores import Ask, FileStore, RedisStore
from stkai.transports import Run, Turn

START = 1.0
"""Seconds at the start that do not count: fifty processes connect to the store at once."""

POLL = 0.02
"""Seconds after which a refused request asks again, if the limiter does not say when."""


class Asking:
    """Another library's limiter, which grants or refuses; retried until it grants."""

    methods = frozenset({"POST"})
    max_wait_time = None

    def __init__(self, attempt: Callable[[], float]) -> None:
        self._attempt = attempt
        self._answers: dict[Turn, float] = {}

    def ask(self, turn: Turn, now: float) -> Any:
        answer = self._answers.pop(turn, None)
        if answer is not None:
            return answer

        def sync(left: float) -> None:
            self._answers[turn] = self._attempt()

        async def asynchronous(left: float) -> None:
            sync(left)

        return Run(sync, asynchronous)

    def leave(self, turn: Turn, now: float) -> None:
        self._answers.pop(turn, None)

    def learn(self, turn: Turn, answer: Any) -> None:
        """Learn nothing."""

    def settle(self, turn: Turn, cost: float, now: float) -> None:
        """Count requests only."""


def _limits(group: Group) -> Asking:
    from limits import RateLimitItemPerSecond
    from limits.storage import RedisStorage
    from limits.strategies import MovingWindowRateLimiter

    moving = MovingWindowRateLimiter(RedisStorage(group.store))
    item = RateLimitItemPerSecond(int(group.rate))
    return Asking(lambda: 0.0 if moving.hit(item, "quota") else POLL)


def _pyrate(group: Group) -> Asking:
    from pyrate_limiter import Duration, Limiter, Rate, RedisBucket

    rates = [Rate(int(group.rate), Duration.SECOND)]
    bucket: Any = RedisBucket.init(rates, redis.Redis.from_url(group.store), "pyrate")
    limiter = Limiter(bucket)
    return Asking(lambda: 0.0 if limiter.try_acquire("quota", blocking=False) else POLL)


_GCRA = """
local spacing, now = 1 / tonumber(ARGV[1]), redis.call("TIME")
now = now[1] + now[2] / 1e6
local next = math.max(tonumber(redis.call("GET", KEYS[1]) or now), now)
if next - now > spacing * (tonumber(ARGV[2]) - 1) + 1e-9 then return tostring(next - now) end
redis.call("SET", KEYS[1], string.format("%.17g", next + spacing), "EX", 60)
return "0"
"""


def _gcra(group: Group) -> Asking:
    """The algorithm of go-redis's redis_rate, which says when to ask again."""
    script = redis.Redis.from_url(group.store).register_script(_GCRA)
    return Asking(lambda: float(script(keys=["gcra"], args=[group.rate, 1])))


def _counter(group: Group) -> Asking:
    client: Any = redis.Redis.from_url(group.store)

    def attempt() -> float:
        now = time.time()
        key = f"count:{int(now)}"
        if client.incr(key) <= group.rate:
            return 0.0
        client.expire(key, 5)
        return 1 - now % 1

    return Asking(attempt)


def _bucket(group: Group) -> stkai.TokenBucket:
    return stkai.TokenBucket(group.rate, 1, burst=1, share="bench", store=group.store)


def measure(quick: bool) -> Sequence[Table]:
    """What each process gets of a shared quota, and the cost of asking for it."""
    with tempfile.TemporaryDirectory() as place, Server("redis", Path(place) / "redis") as server:
        file = f"file://{place}/store"
        return [
            _exactness(server, file, 10 if quick else 50, 4.0 if quick else 12.0),
            _latency(server, file, 300 if quick else 3000),
            _calls(server, 8, 2.0 if quick else 5.0),
        ]


def _exactness(server: Server, file: str, processes: int, seconds: float) -> Table:
    subjects: dict[str, tuple[str, Callable[[Group], Any]]] = {
        "**stkai**, file": (file, _bucket),
        "**stkai**, Redis": (server.url, _bucket),
        "limits, moving window": (server.url, _limits),
        "pyrate-limiter, RedisBucket": (server.url, _pyrate),
        "GCRA as in redis_rate": (server.url, _gcra),
        "counter per second": (server.url, _counter),
    }
    rows = []
    for name, (store, make) in subjects.items():
        group = Group(processes=processes, store=store, seconds=START + seconds, workers=2, make=make)
        rows.append((name, *_figures(run_group(group).after(START), group.rate * seconds)))
    columns = ("limiter", "grants / limit", "most in a second", "least, most per process", "Jain")
    note = f"{versions('redis', 'limits', 'pyrate-limiter')}."
    title = f"{processes} processes with two threads each drain a quota of 50 per second, for {seconds:g} s"
    return Table("sharing-exactness", title, columns, rows, [note])


def _figures(report: Report, allowed: float) -> tuple[str, ...]:
    counts = [len(grants) for grants in report.grants.values()]
    return (
        f"{len(report.all) / allowed:.3f}",
        str(report.most_in_a_second),
        f"{min(counts)}, {max(counts)}",
        f"{report.jain:.4f}",
    )


def _latency(server: Server, file: str, number: int) -> Table:
    ask = Ask(share="latency", rate=1e6, burst=1.0, started=0.0, member="bench", want=1)
    rows = []
    for name, store in (("file", FileStore(file.removeprefix("file://"))), ("Redis", RedisStore(server.url))):
        samples = {
            "one lease": [_timed(partial(store.lease, ask)) for _ in range(number)],
            "a permit, sync": _permits(store, number),
            "a permit, asyncio": asyncio.run(_permits_async(store, number)),
            "a permit, trio": trio.run(_permits_async, store, number),
        }
        rows.append((name, *(f"{statistics.median(found) * 1e6:.0f}" for found in samples.values())))
        store.close()
    columns = ("store", "one lease", "a permit, sync", "a permit, asyncio", "a permit, trio")
    return Table("sharing-latency", "Median microseconds of a process that is alone", columns, rows)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _permits(store: Any, number: int) -> list[float]:
    limiter = stkai.TokenBucket(1e6, 1, share="permits", store=store)

    def permit() -> None:
        turn = Turn()
        while wait := limiter.ask(turn, time.monotonic()):
            if isinstance(wait, Run):
                wait.sync(1.0)

    return [_timed(permit) for _ in range(number)]


async def _permits_async(store: Any, number: int) -> list[float]:
    limiter = stkai.TokenBucket(1e6, 1, share="async permits", store=store)
    found = []
    for _ in range(number):
        start, turn = time.perf_counter(), Turn()
        while wait := limiter.ask(turn, time.monotonic()):
            if isinstance(wait, Run):
                await wait.asynchronous(1.0)
        found.append(time.perf_counter() - start)
    return found


def _calls(server: Server, processes: int, seconds: float) -> Table:
    """How often the store is asked per permit under a heavy load."""
    rows = []
    with server.client() as client:
        for workers in (1, 8, 32):
            client.flushall()
            before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
            report = run_group(
                Group(
                    processes=processes,
                    store=server.url,
                    rate=1000.0,
                    seconds=seconds,
                    workers=workers,
                    make=_bucket,
                )
            )
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
            grants = len(report.all)
            rows.append((str(workers), f"{grants / seconds:.0f}", f"{calls / max(1, grants):.2f}"))
    columns = ("threads per process", "grants per second", "calls per permit")
    return Table("sharing-calls", f"{processes} processes on 1000 per second, Redis", columns, rows)


if __name__ == "__main__":
    run(measure)
