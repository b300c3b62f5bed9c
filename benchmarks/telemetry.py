"""The cost of listeners per call, over a wire that answers at once: `python -m benchmarks.telemetry`."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import stkai
from benchmarks import _subjects as subjects
from benchmarks._harness import Table, interleave, ratios, run, show, versions

SILENT = "no listener: `listener=[]`"


def measure(quick: bool) -> Sequence[Table]:
    """The cost of listeners per call."""
    count, rounds = (200, 9) if quick else (500, 41)
    calls = {name: _timed(listeners, count, level) for name, (listeners, level) in _listeners().items()}
    samples = interleave(calls, rounds)
    relative = ratios(samples, SILENT)
    rows = []
    for name, values in samples.items():
        more = [value - base for value, base in zip(values, samples[SILENT], strict=True)]
        rows.append([name, show(relative[name]), show(more, 1)])
    note = (
        "stkai's own sync client with the standard stack; each call is one attempt. OpenTelemetry's spans go to a batch"
        " processor without an exporter's work, all of them sampled."
        f" {versions('opentelemetry-sdk', 'prometheus-client')}."
    )
    return [Table("telemetry", "What listeners take", ["", "ratio", "µs per call"], rows, [note])]


def _listeners() -> dict[str, tuple[Any, int]]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from prometheus_client import CollectorRegistry

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    traces = TracerProvider()
    traces.add_span_processor(BatchSpanProcessor(Nowhere()))
    meters = MeterProvider(metric_readers=[InMemoryMetricReader()])
    telemetry = stkai.telemetry
    return {
        SILENT: ([], logging.WARNING),
        "the default log, at WARNING": (None, logging.WARNING),
        "the default log, at INFO": (None, logging.INFO),
        "a listener that does nothing": ([lambda _: None], logging.WARNING),
        "PrometheusListener": ([telemetry.PrometheusListener(CollectorRegistry())], logging.WARNING),
        "OpenTelemetryListener": ([telemetry.OpenTelemetryListener(meters, traces)], logging.WARNING),
    }


def _timed(listener: Any, count: int, level: int) -> Callable[[], float]:
    transport = stkai.build_transport(
        auth=stkai.BearerAuth(subjects.provider(), allow_http=True),
        rate_limit=subjects.limiter(),
        retry=stkai.RetryPolicy(),
        transport=subjects.answer(),
        listener=listener,
    )
    client = stkai.HttpClient(transport)
    logger = logging.getLogger("stkai")

    def batch() -> float:
        logger.setLevel(level)
        logger.propagate = False
        for _ in range(count // 5):
            client.post(subjects.URL, data=subjects.DATA)
        start = time.process_time_ns()
        for _ in range(count):
            client.post(subjects.URL, data=subjects.DATA)
        return (time.process_time_ns() - start) / count / 1e3

    return batch


if __name__ == "__main__":
    run(measure)
