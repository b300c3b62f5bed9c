"""Metrics and traces of a stack, built from its events: pass a listener as `listener=` to any `build_*` function.

Each listener imports what it needs when it is created.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from .._errors import missing_extra
from ..events import Event
from ._metrics import DURATIONS, Labels, Metric, Recorder

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ["OpenTelemetryListener", "PrometheusListener"]
__dir__ = __all__.copy


class OpenTelemetryListener:
    """Turns the events of a stack into OpenTelemetry spans and metrics, following the HTTP client conventions.

    A call is a span, and each of its attempts is a CLIENT span inside it. Requests carry the context of their attempt
    (`traceparent`), and opentelemetry-instrumentation-httpx adds no second span for them. One listener serves any
    number of stacks.

    Args:
        meter_provider: receives the metrics; by default the global one.
        tracer_provider: receives the spans; by default the global one.

    Raises:
        ConfigurationError: opentelemetry-api is missing.
    """

    def __init__(
        self,
        meter_provider: "MeterProvider | None" = None,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        try:
            from ._opentelemetry import Spans, recorder_of
        except ImportError as error:
            raise missing_extra("OpenTelemetryListener", "otel") from error
        self._record: Callable[[Event], None] = recorder_of(meter_provider)
        self._spans: Callable[[Event], None] = Spans(tracer_provider)

    def __call__(self, event: Event) -> None:
        # In this order, a measurement is made inside its span, which can then be its exemplar.
        self._record(event)
        self._spans(event)


class PrometheusListener:
    """Turns the events of a stack into Prometheus metrics, named as OpenTelemetry's are when exported to Prometheus.

    Listeners with the same registry share their metrics, so each stack may have its own listener.

    Args:
        registry: where the metrics are registered; by default `prometheus_client.REGISTRY`.

    Raises:
        ConfigurationError: prometheus-client is missing.
    """

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise missing_extra("PrometheusListener", "prometheus") from error
        registry = registry or prometheus_client.REGISTRY
        with _lock:
            if registry not in _recorders:
                _recorders[registry] = Recorder(partial(_recording, prometheus_client, registry))
            self._record = _recorders[registry]

    def __call__(self, event: Event) -> None:
        self._record(event)


_UNITS: Final = {"s": "_seconds", "{request}/s": "_per_second"}
_COLLECTORS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "counter": ("Counter", "inc", {}),
    # Each of several workers has its own calls and limiter.
    "active": ("Gauge", "inc", {"multiprocess_mode": "livesum"}),
    "gauge": ("Gauge", "set", {"multiprocess_mode": "livesum"}),
    "common": ("Gauge", "set", {"multiprocess_mode": "livemostrecent"}),
    "histogram": ("Histogram", "observe", {"buckets": DURATIONS}),
}
"""For each kind of metric: its collector in Prometheus, the method that records a value, and further arguments."""

_recorders: Final["WeakKeyDictionary[CollectorRegistry, Recorder]"] = WeakKeyDictionary()
_lock: Final = threading.Lock()


def _recording(
    prometheus: Any, registry: "CollectorRegistry", metric: Metric
) -> Callable[[float, Labels], None]:
    """Registers a metric; returns the function that records its values."""
    kind, record_by, more = _COLLECTORS[metric.kind]
    name = _underscored(metric.name) + _UNITS.get(metric.unit, "")
    labels = [_underscored(label) for label in metric.labels]
    collector = getattr(prometheus, kind)(name, metric.text, labels, registry=registry, **more)

    def record(value: float, labels: Labels) -> None:
        getattr(collector.labels(*[labels.get(name, "") for name in metric.labels]), record_by)(value)

    return record


def _underscored(name: str) -> str:
    return name.replace(".", "_")
