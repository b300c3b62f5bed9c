"""Draws docs/images/dashboard-*.svg from the metrics of a run in virtual time: `python -m benchmarks.dashboard`.

Twenty workers call a server that allows 20 requests per second, and 10 from the second minute on; for ten seconds of
the third minute it answers 503. The metrics come from a PrometheusListener, read once a second.
"""

from collections import defaultdict
from pathlib import Path

import httpx
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

import stkai
from benchmarks._harness import PAGE
from benchmarks._plots import new_figure, save
from benchmarks.adaptive.virtual import TrioClock, run_virtually, stream
from stkai.telemetry import PrometheusListener
from stkai.transports import adaptive, retry

PICTURE = PAGE.parent / "images" / "dashboard"
SECONDS = 240
HOST = "api.example.com"

Curves = dict[str, dict[str, list[float]]]
"""By metric and label: the value at each second."""


class _Server:
    """Fixed windows of one second."""

    def __init__(self) -> None:
        self.latency = stream("latency")
        self.accepted: dict[int, int] = defaultdict(int)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        second = int(trio.current_time())
        await trio.sleep(self.latency.uniform(0.1, 0.3))
        if 150 <= second < 160:
            return httpx.Response(503)
        if self.accepted[second] >= (20 if second < 60 else 10):
            return httpx.Response(429, headers={"retry-after": "1"})
        self.accepted[second] += 1
        return httpx.Response(200)


def simulate() -> Curves:
    """The samples of each second."""
    registry, server = CollectorRegistry(), _Server()
    curves: Curves = defaultdict(lambda: defaultdict(lambda: [0.0] * SECONDS))

    async def main() -> None:
        layers = [retry(stkai.RetryPolicy(3)), adaptive(stkai.AimdLimiter(20, 1.0))]
        builder = stkai.StackBuilder(
            layers, clock=TrioClock(), listener=[PrometheusListener(registry)], random=stream("jitter").random
        )
        transport = builder.build_async(httpx.MockTransport(server))

        async def work() -> None:
            while True:
                await transport.handle_async_request(httpx.Request("POST", f"https://{HOST}/answers"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(work)
            for second in range(SECONDS):
                await trio.sleep_until(second + 1)
                for metric in registry.collect():
                    _take(metric, curves, second)
            nursery.cancel_scope.cancel()

    run_virtually(main, 1)
    return curves


def _take(metric: Metric, curves: Curves, second: int) -> None:
    for sample in metric.samples:
        labels = sample.labels
        word = labels.get("http_response_status_code") or labels.get("stkai_cause") or ""
        curves[sample.name][word][second] += sample.value


def _per_second(curve: list[float], over: int = 10) -> list[float]:
    return [(now - curve[max(0, second - over)]) / min(second or 1, over) for second, now in enumerate(curve)]


def draw(curves: Curves, file: Path) -> None:
    """Four panels of the dashboard."""
    figure, axes = new_figure(2, 2, width=10, height=5.6)
    sent, waited, rate, retries = axes
    for word, curve in sorted(curves["http_client_request_duration_seconds_count"].items()):
        sent.plot(_per_second(curve), label=word)
    seconds = _per_second(curves["stkai_queue_duration_seconds_sum"][""])
    count = _per_second(curves["stkai_queue_duration_seconds_count"][""])
    waited.plot([total / number if number else 0.0 for total, number in zip(seconds, count, strict=True)])
    rate.plot(curves["stkai_rate_per_second"][""], label="allowed")
    rate.plot(_per_second(curves["stkai_permits_total"][""]), label="used")
    for word, curve in sorted(curves["stkai_retries_total"].items()):
        retries.plot(_per_second(curve), label=word)
    titles = [
        "Requests by status, per s",
        "Mean time in the queue, s",
        "Rate in force, per s",
        "Retries by cause, per s",
    ]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(ylim=(0, None), xlim=(0, SECONDS))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, framealpha=0)
    for axis in axes[2:]:
        axis.set_xlabel("seconds")
    save(figure, file)


if __name__ == "__main__":
    draw(simulate(), PICTURE)
