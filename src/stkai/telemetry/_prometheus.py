"""The table of metrics as Prometheus collectors, named as OpenTelemetry's metrics are when exported to Prometheus."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ._metrics import DURATIONS, SHARE_RATE, Labels, Metric, Recorder

_UNITS: Final = {"s": "_seconds", "{request}/s": "_per_second"}
_COLLECTORS: Final[dict[str, tuple[Any, str, dict[str, Any]]]] = {
    "counter": (Counter, "inc", {}),
    # Each of several workers has its own calls and limiter.
    "active": (Gauge, "inc", {"multiprocess_mode": "livesum"}),
    "gauge": (Gauge, "set", {"multiprocess_mode": "livesum"}),
    "histogram": (Histogram, "observe", {"buckets": DURATIONS}),
}
"""For each kind of metric: its collector, the method that records a value, and further arguments."""

_by_registry: Final["WeakKeyDictionary[CollectorRegistry, Recorder]"] = WeakKeyDictionary()
_lock: Final = threading.Lock()


def recorder_of(given: CollectorRegistry | None) -> Recorder:
    """The recorder for a registry, by default the global one; its metrics are registered on first use."""
    registry = given or REGISTRY
    with _lock:
        if registry not in _by_registry:
            _by_registry[registry] = Recorder(partial(_recording, registry))
        return _by_registry[registry]


def _recording(registry: CollectorRegistry, metric: Metric) -> Callable[[float, Labels], None]:
    make, record_by, more = _COLLECTORS[metric.kind]
    if metric is SHARE_RATE:  # A group has one rate, which all members report.
        more = {"multiprocess_mode": "livemostrecent"}
    name = _underscored(metric.name) + _UNITS.get(metric.unit, "")
    labels = [_underscored(label) for label in metric.labels]
    collector = make(name, metric.text, labels, registry=registry, **more)

    def record(value: float, labels: Labels) -> None:
        getattr(collector.labels(*[labels.get(name, "") for name in metric.labels]), record_by)(value)

    return record


def _underscored(name: str) -> str:
    return name.replace(".", "_")
