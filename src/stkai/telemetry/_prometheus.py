"""The table of metrics as Prometheus collectors, named as OpenTelemetry's metrics are when exported to Prometheus."""

import threading
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ..events import Event
from ._metrics import DURATIONS, METRICS, SHARE_RATE, Metric, Recorder

_UNITS: Final = {"s": "_seconds", "{request}/s": "_per_second"}
_RECORD: Final = {"counter": "inc", "active": "inc", "gauge": "set", "histogram": "observe"}

_by_registry: "WeakKeyDictionary[CollectorRegistry, Collectors]" = WeakKeyDictionary()
_lock = threading.Lock()


def collectors_of(given: CollectorRegistry | None) -> "Collectors":
    """The metrics in that registry, by default the global one; registered on first use."""
    registry = given or REGISTRY
    with _lock:
        if registry not in _by_registry:
            _by_registry[registry] = Collectors(registry)
        return _by_registry[registry]


class Collectors:
    """Records the measurements of each event."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._recorder = Recorder()
        self._collectors = {metric: _made(registry, metric) for metric in METRICS}

    def __call__(self, event: Event) -> None:
        for metric, value, labels in self._recorder.measurements(event):
            series = self._collectors[metric].labels(*[labels.get(name, "") for name in metric.labels])
            getattr(series, _RECORD[metric.kind])(value)


def _made(registry: CollectorRegistry, metric: Metric) -> Any:
    name = _underscored(metric.name) + _UNITS.get(metric.unit, "")
    labels = [_underscored(label) for label in metric.labels]
    match metric.kind:
        case "counter":
            return Counter(name, metric.text, labels, registry=registry)
        case "histogram":
            return Histogram(name, metric.text, labels, registry=registry, buckets=DURATIONS)
        case "gauge" | "active":
            # With several workers, each has calls and a limiter of its own; a group has one rate, which all report.
            mode: Any = "livemostrecent" if metric is SHARE_RATE else "livesum"
            return Gauge(name, metric.text, labels, registry=registry, multiprocess_mode=mode)


def _underscored(name: str) -> str:
    return name.replace(".", "_")
