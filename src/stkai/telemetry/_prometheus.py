"""The table of metrics as Prometheus collectors, named as OpenTelemetry's metrics are when exported to Prometheus."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ._metrics import DURATIONS, SHARE_RATE, Labels, Metric, Recorder

_UNITS: Final = {"s": "_seconds", "{request}/s": "_per_second"}
_RECORD: Final = {"counter": "inc", "active": "inc", "gauge": "set", "histogram": "observe"}

_by_registry: "WeakKeyDictionary[CollectorRegistry, Recorder]" = WeakKeyDictionary()
_lock = threading.Lock()


def recorder_of(given: CollectorRegistry | None) -> Recorder:
    """The recorder for a registry, by default the global one; its metrics are registered on first use."""
    registry = given or REGISTRY
    with _lock:
        if registry not in _by_registry:
            _by_registry[registry] = Recorder(partial(_recording, registry))
        return _by_registry[registry]


def _recording(registry: CollectorRegistry, metric: Metric) -> Callable[[float, Labels], None]:
    collector, verb = _made(registry, metric), _RECORD[metric.kind]

    def record(value: float, labels: Labels) -> None:
        getattr(collector.labels(*[labels.get(name, "") for name in metric.labels]), verb)(value)

    return record


def _made(registry: CollectorRegistry, metric: Metric) -> Any:
    name = _underscored(metric.name) + _UNITS.get(metric.unit, "")
    labels = [_underscored(label) for label in metric.labels]
    match metric.kind:
        case "counter":
            return Counter(name, metric.text, labels, registry=registry)
        case "histogram":
            return Histogram(name, metric.text, labels, registry=registry, buckets=DURATIONS)
        case "gauge" | "active":
            # Each of several workers has its own calls and limiter; a group has one rate, which all members report.
            mode: Any = "livemostrecent" if metric is SHARE_RATE else "livesum"
            return Gauge(name, metric.text, labels, registry=registry, multiprocess_mode=mode)


def _underscored(name: str) -> str:
    return name.replace(".", "_")
