"""Metrics and traces of a stack, built from its events: pass a listener as `listener=` to any `build_*` function."""

from ._listeners import OpenTelemetryListener, PrometheusListener

__all__ = ["OpenTelemetryListener", "PrometheusListener"]
