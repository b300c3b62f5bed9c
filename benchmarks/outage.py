"""The load on a server during an outage, with and without a retry budget: `python -m benchmarks.outage`.

In virtual time, with the real stack: 200 calls per second arrive at random, and the server refuses all of them for a
minute.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

import stkai
from benchmarks._harness import PAGE, Table, run, versions
from benchmarks._plots import new_figure, save
from benchmarks.adaptive.virtual import TrioClock, run_virtually, stream

PICTURE = PAGE.parent / "images" / "outage"
BEGINS, ENDS, OVER = 30.0, 90.0, 120.0
"""Seconds: when the outage begins and ends, and when the last call arrives."""


@dataclass(slots=True)
class Outcome:
    """One run.

    Attributes:
        received: requests that the server received in each second.
        failed: calls that failed, by the second in which they arrived.
        calls: calls that arrived in each second.
    """

    received: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    calls: Counter[int] = field(default_factory=Counter)


def policies() -> dict[str, stkai.RetryPolicy | None]:
    return {
        "no retries": None,
        "3 retries": stkai.RetryPolicy(3),
        "3 retries, budget of 0.2 and 10/s": stkai.RetryPolicy(3, budget=stkai.RetryBudget(0.2, 10)),
    }


def measure(quick: bool) -> Sequence[Table]:
    """The load on a server during an outage."""
    rate = 20.0 if quick else 200.0
    outcomes = {name: simulate(policy, rate) for name, policy in policies().items()}
    _plot(outcomes, rate, PICTURE)
    rows = []
    for name, outcome in outcomes.items():
        during = range(int(BEGINS), int(ENDS))
        load = [outcome.received[second] / rate for second in during]
        after = [outcome.received[second] / rate for second in range(int(ENDS), int(ENDS) + 5)]
        lost = sum(count for second, count in outcome.failed.items() if second not in during)
        share = sum(outcome.failed[second] for second in during) / sum(
            outcome.calls[second] for second in during
        )
        rows.append(
            [
                name,
                f"{sum(load) / len(load):.2f}",
                f"{max(load):.2f}",
                f"{sum(after) / len(after):.2f}",
                f"{share:.1%}",
                f"{lost}",
            ]
        )
    columns = [
        "",
        "load in the outage",
        "at its worst",
        "5 s after it",
        "calls in the outage that failed",
        "other calls that failed",
    ]
    note = f"Load: requests per second, as a multiple of the usual {rate:g}. {versions('httpx', 'tenacity')}."
    return [Table("outage", "What a server gets during an outage", columns, rows, [note])]


def simulate(policy: stkai.RetryPolicy | None, rate: float, seed: int = 1) -> Outcome:
    """Let calls arrive while the server refuses all of them for a time."""
    outcome = Outcome()
    chance, latency, jitter = stream("calls", seed), stream("latency", seed), stream("jitter", seed)

    async def answer(request: httpx.Request) -> httpx.Response:
        now = trio.current_time()
        outcome.received[int(now)] += 1
        await trio.sleep(latency.uniform(0.04, 0.06))
        return httpx.Response(503 if BEGINS <= now < ENDS else 200)

    async def main() -> None:
        clock = TrioClock()
        layers = [] if policy is None else [stkai.transports.retry(policy)]
        builder = stkai.StackBuilder(layers, clock=clock, listener=[], random=jitter.random)
        transport = builder.build_async(httpx.MockTransport(answer))

        async def call() -> None:
            second = int(trio.current_time())
            outcome.calls[second] += 1
            response = await transport.handle_async_request(httpx.Request("GET", "https://api.example.com"))
            if response.status_code != 200:
                outcome.failed[second] += 1

        async with trio.open_nursery() as nursery:
            while trio.current_time() < OVER:
                await trio.sleep(chance.expovariate(rate))
                nursery.start_soon(call)

    run_virtually(main, seed)
    return outcome


def _plot(outcomes: dict[str, Outcome], rate: float, file: Path) -> None:
    figure, (axis,) = new_figure(1, 1, width=9, height=3.6)
    axis.axvspan(BEGINS, ENDS, color="0.5", alpha=0.15, label="the server refuses all")
    for name, outcome in outcomes.items():
        seconds = range(int(OVER))
        axis.plot(seconds, [outcome.received[second] / rate for second in seconds], label=name)
    axis.set(xlabel="seconds", ylabel="requests, as a multiple of the usual", ylim=(0, None), xlim=(0, OVER))
    axis.legend(loc="upper right", framealpha=0)
    save(figure, file)


if __name__ == "__main__":
    run(measure)
