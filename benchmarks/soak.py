"""`python -m benchmarks.soak`: many calls, some with faults; in the end, nothing is lost and nothing has grown.

A server on loopback, in its own process, spoils one request in twenty: errors, refusals, connections that break at any
point. A sync client with threads and an async one with tasks share it. Every call must end in an answer or an error,
memory and file descriptors must stay flat, and the server must have seen what was sent. Bounded in count and time: at
most `--requests`, for at most `--seconds`.
"""

import argparse
import asyncio
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

import stkai

from ._spoiler import Spoiler, serving

WORKERS = 8
RETRY = stkai.RetryPolicy(max_retries=1, initial_delay=0.001)
MOST_GROWTH = 8 * 2**20
"""Bytes."""

LIMITS = httpx.Limits(max_connections=WORKERS)


# What is counted


@dataclass
class Ledger:
    """How the calls ended.

    Attributes:
        begun: calls that were started.
        outcomes: how many ended with each status, or with each error, by name.
        sent: requests that went to a wire, including those for tokens.
        answered: responses that came back from the wire.
    """

    begun: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    answered: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> int:
        return self.outcomes.total()

    @property
    def succeeded(self) -> int:
        return self.outcomes["200"]

    def begin(self) -> None:
        with self._lock:
            self.begun += 1

    def end(self, outcome: httpx.Response | httpx.HTTPError) -> None:
        with self._lock:
            if isinstance(outcome, httpx.Response):
                self.outcomes[str(outcome.status_code)] += 1
            else:
                self.outcomes[type(outcome).__name__] += 1

    def note(self, *, sent: int = 0, answered: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.answered += answered


class _Counted(httpx.HTTPTransport):
    """A wire that counts what goes through it."""

    def __init__(self, ledger: Ledger, **options: Any) -> None:
        super().__init__(**options)
        self._ledger = ledger

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._ledger.note(sent=1)
        response = super().handle_request(request)
        self._ledger.note(answered=1)
        return response


class _AsyncCounted(httpx.AsyncHTTPTransport):
    """The async version of `_Counted`."""

    def __init__(self, ledger: Ledger, **options: Any) -> None:
        super().__init__(**options)
        self._ledger = ledger

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._ledger.note(sent=1)
        response = await super().handle_async_request(request)
        self._ledger.note(answered=1)
        return response


@dataclass(frozen=True)
class Footprint:
    """What this process uses: bytes of memory, and open file descriptors."""

    memory: int
    descriptors: int

    @classmethod
    def now(cls) -> "Footprint":
        gc.collect()
        return cls(_resident(), sum(1 for _ in Path("/dev/fd").iterdir()))


def _resident() -> int:
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# The clients


class Soak:
    """Sends calls in rounds: half of each through a sync client with threads, half through an async one with tasks."""

    def __init__(self, server: Spoiler) -> None:
        self.ledger = Ledger()
        self._url = server.url
        self._token_wire = _Counted(self.ledger)
        provider = stkai.ClientCredentialsAuthProvider(*server.credentials, transport=self._token_wire)
        self._sync = stkai.build_client(
            auth=provider,
            rate_limit=stkai.TokenBucket(1_000_000, 1.0),
            retry=RETRY,
            transport=_Counted(self.ledger, limits=LIMITS),
            listener=lambda _: None,
        )
        self._async = stkai.build_async_client(
            auth=provider,
            rate_limit=stkai.AimdLimiter(1_000_000, 1.0, penalty_factor=0.01),
            retry=RETRY,
            transport=_AsyncCounted(self.ledger, limits=LIMITS),
            listener=lambda _: None,
        )
        self._runner = asyncio.Runner()
        self._pool = ThreadPoolExecutor(WORKERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sync.close()
        self._token_wire.close()
        self._runner.run(self._async.aclose())
        self._runner.close()
        self._pool.shutdown()

    def round(self, calls: int) -> None:
        """Make this many calls, and return when all have ended."""
        left = iter(range(calls // 2))
        for future in [self._pool.submit(self._work, left) for _ in range(WORKERS)]:
            future.result()
        self._runner.run(self._work_async(calls - calls // 2))

    def _work(self, left: Iterator[int]) -> None:
        for number in left:
            self.ledger.begin()
            try:
                response = self._sync.post(
                    self._url, data={"number": number}, timeout=30, retry=_retry(number)
                )
            except httpx.HTTPError as error:
                self.ledger.end(error)
            else:
                self.ledger.end(response)

    async def _work_async(self, calls: int) -> None:
        left = iter(range(calls))

        async def work() -> None:
            for number in left:
                self.ledger.begin()
                try:
                    response = await self._async.post(
                        self._url, data={"number": number}, timeout=30, retry=_retry(number)
                    )
                except httpx.HTTPError as error:
                    self.ledger.end(error)
                else:
                    self.ledger.end(response)

        await asyncio.gather(*(work() for _ in range(WORKERS)))


def _retry(number: int) -> stkai.RetryPolicy | None:
    """Every second call is sent only once, so that some failures are reported too."""
    return RETRY if number % 2 else None


@dataclass(frozen=True)
class Result:
    """The calls, what the process used after each round, and how many requests the server received."""

    ledger: Ledger
    footprints: list[Footprint]
    seconds: float
    seen: int

    def problems(self) -> list[str]:
        """What was lost, or has grown since the first fifth of the rounds."""
        ledger, warm, last = self.ledger, self.footprints[len(self.footprints) // 5], self.footprints[-1]
        checks = {
            f"{ledger.begun} calls begun, {ledger.ended} ended": ledger.begun == ledger.ended,
            # When the server closes a connection, a request that is just being sent is lost with it.
            f"{ledger.sent} sent, {self.seen} seen": ledger.answered <= self.seen <= ledger.sent,
            f"memory: {warm.memory} bytes, then {last.memory}": last.memory - warm.memory < MOST_GROWTH,
            f"file descriptors: {warm.descriptors}, then {last.descriptors}": (
                last.descriptors <= warm.descriptors + 4 * WORKERS
            ),
        }
        return [text for text, well in checks.items() if not well]


def soak(
    requests: int, seconds: float, rounds: int = 10, tell: Callable[[str], object] = lambda _: None
) -> Result:
    """Make `requests` calls in this many rounds; no round starts after this many seconds."""
    start = time.monotonic()
    footprints = []
    with serving() as server, Soak(server) as run:
        for number in range(rounds):
            if time.monotonic() - start > seconds:
                break
            run.round(requests // rounds)
            footprints.append(Footprint.now())
            tell(
                f"round {number + 1}: {run.ledger.ended:,} calls, {footprints[-1].memory / 2**20:.1f} MiB, "
                f"{footprints[-1].descriptors} file descriptors"
            )
    return Result(run.ledger, footprints, time.monotonic() - start, server.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=900.0)
    options = parser.parse_args()
    result = soak(options.requests, options.seconds, tell=print)
    ledger = result.ledger
    for outcome, count in ledger.outcomes.most_common():
        print(f"{count:>9,}  {outcome}")
    print(
        f"{ledger.begun:,} calls begun = {ledger.succeeded:,} succeeded + "
        f"{ledger.ended - ledger.succeeded:,} reported as failed, in {result.seconds:.0f} s"
    )
    if problems := result.problems():
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
