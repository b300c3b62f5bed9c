"""The table of metrics as OpenTelemetry instruments."""

from typing import Any, Final

from opentelemetry.metrics import Meter

from ..events import Event
from ._labels import DURATIONS
from ._metrics import METRICS, Metric, Recorder

_RECORD: Final = {"counter": "add", "active": "add", "gauge": "set", "histogram": "record"}


class Meters:
    """Records the measurements of each event."""

    def __init__(self, meter: Meter) -> None:
        self._recorder = Recorder()
        self._record = {metric: getattr(_made(meter, metric), _RECORD[metric.kind]) for metric in METRICS}

    def __call__(self, event: Event) -> None:
        for metric, value, labels in self._recorder.measurements(event):
            self._record[metric](value, labels)


def _made(meter: Meter, metric: Metric) -> Any:
    named = {"name": metric.name, "unit": metric.unit, "description": metric.text}
    match metric.kind:
        case "counter":
            return meter.create_counter(**named)
        case "active":
            return meter.create_up_down_counter(**named)
        case "gauge":
            return meter.create_gauge(**named)
        case "histogram":
            return meter.create_histogram(**named, explicit_bucket_boundaries_advisory=DURATIONS)
