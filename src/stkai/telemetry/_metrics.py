"""The metrics of a stack: one table of instruments, and what each event records. OpenTelemetry and Prometheus read it.

Names and units follow https://opentelemetry.io/docs/specs/semconv/http/http-metrics/.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

from ..events import (
    AttemptFinished,
    AttemptStarted,
    CallFinished,
    CallStarted,
    Event,
    QuotaDisagreement,
    RateChanged,
    Rejected,
    RetryScheduled,
    StoreLost,
    StoreRestored,
    TokenRenewed,
    Waited,
)
from ._labels import Bounded, cause_of, error_type, method_of

Labels = dict[str, str | int]
"""Attributes of a measurement; those that do not apply are missing."""


class Metric(NamedTuple):
    """An instrument.

    Attributes:
        name: as OpenTelemetry writes it.
        kind: how its values are aggregated; an "active" count goes up and down.
        unit: seconds ("s"), or what is counted.
        text: what it measures.
        labels: the attributes that its measurements may have.
    """

    name: str
    kind: Literal["counter", "active", "gauge", "histogram"]
    unit: str
    text: str
    labels: tuple[str, ...]


_SERVER: Final = ("server.address",)
_OUTCOME: Final = ("http.request.method", *_SERVER, "http.response.status_code", "error.type")
_LAYER: Final = (*_SERVER, "stkai.layer")
_SHARE: Final = ("stkai.share",)

REQUEST: Final = Metric(
    "http.client.request.duration", "histogram", "s", "Duration of HTTP client requests.",
    (*_OUTCOME, "server.port"),
)  # fmt: skip
CALL: Final = Metric(
    "stkai.call.duration", "histogram", "s", "Duration of calls, with all their attempts and waits.", _OUTCOME
)
QUEUE: Final = Metric(
    "stkai.queue.duration", "histogram", "s", "Time that requests waited for a permit of a limiter.",
    (*_LAYER, "stkai.limit"),
)  # fmt: skip
TOKEN: Final = Metric(
    "stkai.token.renewal.duration", "histogram", "s", "Time that it took to fetch an access token.", _SERVER
)
ACTIVE: Final = Metric(
    "stkai.calls.active", "active", "{call}", "Calls that have started and not finished.", _SERVER
)
PERMITS: Final = Metric(
    "stkai.permits", "counter", "{permit}",
    "Requests sent to the wire; one behind a limiter has taken a permit.", _SERVER,
)  # fmt: skip
RETRIES: Final = Metric(
    "stkai.retries", "counter", "{retry}", "Failed attempts that are retried.", (*_SERVER, "stkai.cause")
)
REJECTIONS: Final = Metric(
    "stkai.rejections", "counter", "{request}", "Requests that a limiter of this program refused.", _LAYER
)
RATE: Final = Metric(
    "stkai.rate", "gauge", "{request}/s",
    "Current rate of this process's adaptive limiter, as of its last change.", _SERVER,
)  # fmt: skip
SHARE_RATE: Final = Metric(
    "stkai.share.rate", "gauge", "{request}/s",
    "Current rate of a whole group that shares an adaptive limiter: every member reports the same one.", _SHARE,
)  # fmt: skip
LOSSES: Final = Metric(
    "stkai.store.losses",
    "counter",
    "{loss}",
    "Times the store of a shared quota could not be reached.",
    _SHARE,
)
RESTORATIONS: Final = Metric(
    "stkai.store.restorations", "counter", "{restoration}",
    "Times the store of a shared quota answered again.", _SHARE,
)  # fmt: skip
DISAGREEMENTS: Final = Metric(
    "stkai.quota.disagreements", "counter", "{disagreement}",
    "Times another member of a share was found to have a different quota.", _SHARE,
)  # fmt: skip

METRICS: Final = (
    REQUEST, CALL, QUEUE, TOKEN, ACTIVE, PERMITS, RETRIES, REJECTIONS, RATE, SHARE_RATE, LOSSES, RESTORATIONS,
    DISAGREEMENTS,
)  # fmt: skip

_RECORDS: Final[dict[type[Event], tuple[tuple[Metric, Callable[[Any], float]], ...]]] = {
    CallStarted: ((ACTIVE, lambda _: 1),),
    CallFinished: ((ACTIVE, lambda _: -1), (CALL, lambda event: event.seconds)),
    AttemptStarted: ((PERMITS, lambda _: 1),),
    AttemptFinished: ((REQUEST, lambda event: event.seconds),),
    RetryScheduled: ((RETRIES, lambda _: 1),),
    Waited: ((QUEUE, lambda event: event.seconds),),
    Rejected: ((REJECTIONS, lambda _: 1),),
    TokenRenewed: ((TOKEN, lambda event: event.seconds),),
    StoreLost: ((LOSSES, lambda _: 1),),
    StoreRestored: ((RESTORATIONS, lambda _: 1),),
    QuotaDisagreement: ((DISAGREEMENTS, lambda _: 1),),
}


class Recorder:
    """Turns events into measurements whose labels have a limited number of values."""

    def __init__(self) -> None:
        self._bounded = {name: Bounded() for name in ("host", "layer", "limit", "cause", "share")}

    def measurements(self, event: Event) -> Iterator[tuple[Metric, float, Labels]]:
        """What an event records: the instrument, the value, and its labels."""
        if isinstance(event, RateChanged):
            metric = RATE if event.share is None else SHARE_RATE
            yield metric, event.new, self._labels(event, metric)
            return
        for metric, value in _RECORDS.get(type(event), ()):
            yield metric, value(event), self._labels(event, metric)

    def _labels(self, event: Any, metric: Metric) -> Labels:
        labels = {name: self._label(name, event) for name in metric.labels}
        return {name: value for name, value in labels.items() if value is not None}

    def _label(self, name: str, event: Any) -> str | int | None:
        call = event.call
        match name:
            case "server.address":
                return self._bounded["host"](call.host)
            case "server.port":
                port: int | None = call.port
                return port
            case "http.request.method":
                return method_of(call.method)
            case "http.response.status_code":
                status: int | None = event.status
                return status
            case "error.type":
                return error_type(event.status, event.error)
            case "stkai.cause":
                return self._bounded["cause"](cause_of(event.cause))
        kind = name.removeprefix("stkai.")
        word = getattr(event, kind)
        return self._bounded[kind](word) if word else None
