"""Metrics and traces of a stack, built from its events: pass a listener as `listener=` to any `build_*` function.

Each listener imports what it needs when it is created.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._errors import missing_extra
from ..events import Event

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
            from ._prometheus import recorder_of
        except ImportError as error:
            raise missing_extra("PrometheusListener", "prometheus") from error
        self._record: Callable[[Event], None] = recorder_of(registry)

    def __call__(self, event: Event) -> None:
        self._record(event)
